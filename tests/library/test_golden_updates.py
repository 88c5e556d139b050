"""The first updates of every rule and optimizer, see `golden_numbers`."""

from typing import NamedTuple
import warnings

from golden_numbers import Golden
import jax
import jax.numpy as jnp
import numpy as np
from op_by_op import op_by_op
import optax
import optimizer_cases
import pytest
import tiny

import cbp_jax
from cbp_jax import optimizers, utility, variants

RULES = Golden("rules", __file__)
OPTIMIZERS = Golden("optimizers", __file__)

KEY = jax.random.key(7)
NUM_UPDATES = 4
PARAMS = tiny.make_params()
SGD = optax.sgd(0.1)
# As NumPy's arrays, since to take a part of one of JAX's is a program.
GRADS = jax.device_get(tiny.make_grads(NUM_UPDATES, PARAMS))


def make_features():
    """Activations of ReLUs, two of them weak; unit 2 is dead in half of the updates."""
    features = jax.tree.map(jax.nn.relu, tiny.make_features(NUM_UPDATES))
    first, second = features["dense_0"], features["dense_1"]
    first = first * jnp.array([1, 0.1, 1, 2, 0.02, 1], jnp.float32)
    return jax.device_get(
        {
            "dense_0": first.at[1:3, :, 2].set(0.0),
            "dense_1": second * jnp.array([0.1, 1, 1, 3, 0.02], jnp.float32),
        }
    )


FEATURES = make_features()


def take_updates(tx, params=PARAMS, grads=GRADS, features=FEATURES, units=tiny.UNITS):
    """What can be seen of some updates: params, units' statistics, who was replaced."""

    @op_by_op
    def update(params, state, grads, features):
        updates, state = tx.update(grads, state, params, features=features)
        return optax.apply_updates(params, updates), state

    state = op_by_op(tx.init)(params)
    replaced = {group.name: [] for group in units}
    for index in range(NUM_UPDATES):
        batch = tiny.at((grads, features), index)
        params, state = update(params, state, *batch)
        reset = state if hasattr(state, "replaced") else state[-1]
        for name, history in replaced.items():
            history.append(indices(reset.replaced[name], reset.units[name].age))
    statistics = {
        name: {
            field: getattr(reset.units[name], field)
            for field in ("age", "utility", "mean_activation")
            if hasattr(reset.units[name], field)
        }
        for name in replaced
    }
    return {
        "params": params,
        "moments": getattr(reset, "base_state", ()),
        "units": statistics,
        "replaced in each update": {
            name: " ".join(map(str, history)) for name, history in replaced.items()
        },
        "num_replaced": {name: reset.num_replaced[name] for name in replaced},
    }


def indices(replaced, age):
    """The units among indices `[..., K]`, where as many as there are stand for none."""
    replaced = np.asarray(replaced)
    if replaced.ndim > 1:
        return [indices(*lane) for lane in zip(replaced, age, strict=True)]
    return sorted(replaced[replaced < age.shape[-1]].tolist())


def replace(base=SGD, units=tiny.UNITS, **options):
    """Continual backprop that replaces units from the second update on."""
    numbers = {"replacement_rate": 0.3, "decay_rate": 0.9, "maturity_threshold": 1}
    options = numbers | {"key": KEY} | options
    with warnings.catch_warnings():  # Of a low maturity without a correction.
        warnings.simplefilter("ignore", UserWarning)
        return cbp_jax.continual_backprop(base, units, **options)


def variant(name):
    """A published variant, with numbers that let it replace units at once."""
    numbers = {"replacement_rate": 0.3, "maturity_threshold": 1}
    # Without correction for age a unit must mature for some times 1 / (1 - decay).
    numbers |= {"decay_rate": 0.0} if name == "NATURE" else {}
    return replace(**(getattr(variants, name) | numbers))


def in_lanes():
    """Two lanes under `vmap`, of different keys, rates and decays."""

    def tx_of(lane):
        rate, decay, key = lane
        return replace(replacement_rate=rate, decay_rate=decay, key=key, max_per_step=2)

    lanes = jnp.array([0.3, 0.1]), jnp.array([0.9, 0.5]), jax.random.split(KEY)
    return optax.GradientTransformationExtraArgs(
        lambda params: jax.vmap(lambda lane, params: tx_of(lane).init(params))(
            lanes, params
        ),
        lambda grads, state, params, features: jax.vmap(
            lambda lane, state, grads, params: tx_of(lane).update(
                grads, state, params, features=features
            ),
            in_axes=(0, 0, None, 0),
        )(lanes, state, grads, params),
    )


class StrengthState(NamedTuple):
    age: jax.Array
    clock: jax.Array


def smallest_outgoing():
    """A rule of its own: every second update the unit of the least outgoing weights."""

    def init(num_units, dtype):
        del dtype
        age = jnp.zeros(num_units, jnp.int32)
        return StrengthState(age, jnp.zeros((), jnp.int32))

    def update(state, measured):
        clock = state.clock + 1
        strength = measured.outgoing_magnitude.mean(axis=0)
        strength += measured.incoming_magnitude + measured.activation.sum(axis=(0, 1))
        number = (clock % 2 == 0).astype(jnp.int32)
        return state._replace(clock=clock), cbp_jax.Choice(strength, number)

    return cbp_jax.Rule(init, update, most=lambda num_units: 1)


ADAM = optimizers.adam_with_unit_counts(0.1, tiny.UNITS)
MOMENTUM = optax.sgd(0.1, momentum=0.9)
# One layer: how two neighbors are reset in one update is tested elsewhere.
FIRST, SECOND = tiny.UNITS[:1], tiny.UNITS[1:]
UTILITIES = (
    *("contribution", "mean_corrected_contribution", "adaptation", "overall"),
    *("weight_magnitude", "activation_over_input", "random"),
)
RULE_CASES = {
    **{
        f"recipe {name}": variant(name)
        for name in ("PREPRINT", "NATURE", "RELEASED_MLP", "RELEASED_CONV")
    },
    **{
        f"utility {name}": replace(utility_fn=getattr(utility, name))
        for name in UTILITIES
    },
    "utility gradient": replace(utility_fn=utility.gradient),
    "utility inverted": replace(utility_fn=utility.inverted(utility.overall)),
    **{
        f"budget {budget}, count {count}": replace(budget=budget, count=count)
        for budget in ("accumulate", "bernoulli")
        for count in ("eligible", "all")
    },
    "one unit at most": replace(replacement_rate=0.9, max_per_step=1),
    "every unit at every update": replace(replacement_rate=1.0, maturity_threshold=0),
    "not corrected for age": replace(
        bias_correction=False, decay_rate=0.0, replacement_rate=0.6, max_per_step=2
    ),
    "rate by a schedule": replace(
        replacement_rate=lambda count: jnp.where(count < 2, 0.0, 0.5), max_per_step=2
    ),
    "rates of groups": replace(
        units=(
            tiny.UNITS[0]._replace(replacement_rate=0.0),
            tiny.UNITS[1]._replace(replacement_rate=0.4),
        )
    ),
    "mean activations are transferred": replace(transfer_mean=True),
    "glorot": replace(initializer=jax.nn.initializers.glorot_uniform()),
    "momentum": replace(MOMENTUM),
    "momentum is kept": replace(MOMENTUM, moments="keep"),
    "adam": replace(optax.adam(0.1)),
    "adam_with_unit_counts": replace(ADAM),
    "replace_units": optax.chain(
        MOMENTUM,
        cbp_jax.replace_units(
            tiny.UNITS, replacement_rate=0.3, maturity_threshold=1, key=KEY
        ),
    ),
    "reset_by_rule": cbp_jax.reset_by_rule(
        SGD, tiny.UNITS, smallest_outgoing(), key=KEY
    ),
    "redo": cbp_jax.redo(SGD, FIRST, threshold=0.2, reset_every=2, key=KEY),
    "redo of the last layer": cbp_jax.redo(
        MOMENTUM, SECOND, threshold=0.2, reset_every=1, key=KEY
    ),
    "redo over an interval": cbp_jax.redo(
        SGD, FIRST, threshold=0.4, reset_every=2, over_interval=True, key=KEY
    ),
    "regrama": cbp_jax.regrama(
        MOMENTUM, tiny.UNITS, threshold=0.9, reset_every=2, key=KEY
    ),
    "cpr": cbp_jax.cpr(
        MOMENTUM,
        tiny.UNITS,
        replacement_rate=1.0,
        decay_rate=0.5,
        reset_every=2,
        key=KEY,
    ),
    "self_normalized_resets": cbp_jax.self_normalized_resets(
        MOMENTUM,
        tiny.UNITS,
        rejection_rate=0.4,
        first_threshold=2,
        lowest_threshold=1,
        refresh_every=2,
        key=KEY,
    ),
}


@pytest.mark.parametrize("name", RULE_CASES)
def test_the_first_updates_of_a_rule(name):
    units = FIRST if "redo" in name else tiny.UNITS
    units = SECOND if "last layer" in name else units
    found = take_updates(RULE_CASES[name], units=units)
    assert sum(map(np.sum, found["num_replaced"].values())) > 0
    RULES.check(name, found)


def test_the_first_updates_of_lanes():
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), PARAMS)
    RULES.check("lanes", take_updates(in_lanes(), params))


def test_the_first_updates_of_a_convolution():
    """Of 3 channels, normalized and flattened into a dense head, 2 x 2 positions."""
    params = tiny.make_conv_params()
    params["head"] = {"kernel": jnp.sin(jnp.arange(24.0)).reshape(12, 2)}
    units = (
        cbp_jax.UnitGroup(
            "conv",
            "conv/kernel",
            "conv/bias",
            "head/kernel",
            norm_scale="norm/scale",
        ),
    )
    features = jax.tree.map(jnp.cos, {"conv": jnp.arange(96.0).reshape(4, 2, 2, 2, 3)})
    grads = tiny.make_grads(NUM_UPDATES, params)
    found = take_updates(replace(units=units), params, grads, features, units)
    assert found["num_replaced"]["conv"] > 0
    RULES.check("convolution", found)


@pytest.mark.parametrize("name", optimizer_cases.CASES)
def test_the_first_updates_of_an_optimizer(name):
    tx, params = optimizer_cases.make(name, key=KEY), optimizer_cases.PARAMS

    @op_by_op
    def update(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, history = op_by_op(tx.init)(params), []
    grads = jax.device_get(optimizer_cases.GRADS)
    for index in range(optimizer_cases.NUM_STEPS):
        params, state = update(params, state, tiny.at(grads, index))
        history.append(params)
    found = {f"params after {index + 1}": one for index, one in enumerate(history)}
    OPTIMIZERS.check(name, found)


@pytest.mark.parametrize("noise", optimizers.NOISES)
def test_the_noise_of_an_optimizer(noise):
    tx = optimizers.perturb(0.1, key=KEY, noise=noise)
    grads = tiny.at(optimizer_cases.GRADS, 0)
    state = op_by_op(tx.init)(grads)
    updates, _ = op_by_op(tx.update)(grads, state, optimizer_cases.PARAMS)
    OPTIMIZERS.check(f"perturb by {noise}", updates)


def test_each_entry_is_checked():
    RULES.check_names([*RULE_CASES, "lanes", "convolution"])
    noises = [f"perturb by {noise}" for noise in optimizers.NOISES]
    OPTIMIZERS.check_names([*optimizer_cases.CASES, *noises])
