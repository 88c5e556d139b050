"""Which optimizers can be the base, and what is wrong with the others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
import pytest
import tiny

import cbp_jax
from cbp_jax._trees import reset_moments
from cbp_jax._units import UnitMask, resolve_units

UNITS = cbp_jax.sequential_units(("dense_0", "head"), bias=None)
SHAPES = {"dense_0": (3, 4), "head": (4, 2)}
PARAMS = {
    name: {
        "kernel": jnp.asarray(np.random.default_rng(0).normal(size=shape), "float32")
    }
    for name, shape in SHAPES.items()
}
FEATURES = {"dense_0": jnp.ones((2, 4))}


def make(base, units=UNITS, **options):
    options = {
        "replacement_rate": 0.5,
        "maturity_threshold": 4,
        "initializer": tiny.rows_initializer,
        "key": tiny.FAST_KEY,
    } | options
    return cbp_jax.continual_backprop(base, units, **options)


def message_of(base, **options):
    with pytest.raises(ValueError) as caught:
        make(base, **options).init(PARAMS)
    return str(caught.value)


def every_other_call():
    """Accumulates two gradients; optax knows nothing of it."""

    def init(params):
        return jnp.zeros((), bool), jax.tree.map(jnp.zeros_like, params)

    def update(updates, state, params=None):
        del params
        is_second, held = state
        summed = jax.tree.map(jnp.add, updates, held)
        updates, held = (
            jax.tree.map(lambda leaf, keep=keep: jnp.where(keep, leaf, 0), summed)
            for keep in (is_second, ~is_second)
        )
        return updates, (~is_second, held)

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize(
    ("base", "parts"),
    [
        (optax.MultiSteps(optax.sgd(0.1), 2), ("MultiSteps", "every mini-batch")),
        (
            optax.chain(optax.sgd(0.1), optax.apply_every(4)),
            ("optax.apply_every", "optax.MultiSteps(continual_backprop("),
        ),
        (
            optax.partition(
                {"a": optax.sgd(0.1), "b": optax.apply_every(4)},
                {"dense_0": "a", "head": "b"},
            ),
            ("optax.apply_every",),
        ),
        (
            optax.conditionally_mask(optax.adam(0.1), lambda step: step % 2 == 0),
            ("optax.conditionally_mask(continual_backprop(",),
        ),
        (contrib.sam(optax.sgd(0.1), optax.sgd(0.1)), ("sam", "opaque_mode=True")),
        (
            every_other_call(),
            ("in a trial, 50 of 100 updates were not 0", "MultiSteps"),
        ),
        (
            optax.sgd(lambda count: jnp.where(count % 4 == 3, 0.1, 0.0)),
            ("in a trial, 25 of 100 updates were not 0",),
        ),
    ],
    ids=lambda value: None,
)
@pytest.mark.parametrize("moments", ["reset", "keep"])
def test_a_base_that_moves_the_params_now_and_then_is_refused(base, parts, moments):
    message = message_of(base, moments=moments)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("where", ["jit", "vmap", "eval_shape"])
def test_it_is_refused_wherever_the_state_is_initialized(where):
    """Its step size may be traced."""

    def init(step_size):
        return make(optax.chain(every_other_call(), optax.sgd(step_size))).init(PARAMS)

    calls = {
        "jit": lambda: jax.jit(init)(0.1),
        "vmap": lambda: jax.vmap(init)(jnp.ones(2)),
        "eval_shape": lambda: jax.eval_shape(init, 0.1),
    }
    with pytest.raises(ValueError, match="not change the params at every call"):
        calls[where]()


@pytest.mark.parametrize(
    "base",
    [
        optax.sgd(optax.linear_schedule(0.0, 0.1, 10)),
        optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 20)),
        # A triangle that begins anew every eight updates.
        optax.sgd(lambda count: 0.1 * jnp.abs(count % 8 - 4)),
        optax.set_to_zero(),
        optax.apply_if_finite(optax.adam(0.1), 2),
        optax.conditionally_transform(optax.scale(0.5), lambda step: step % 2 == 0),
        contrib.adopt(0.1),
        optax.polyak_sgd(),
    ],
    ids=lambda value: None,
)
def test_schedules_and_conditions_on_gradients_are_not(base):
    make(base).init(PARAMS)


def optimizer(name):
    """Any optimizer of optax and `optax.contrib`, at a learning rate of 0.01."""
    special = {
        "adopt_without_clipping": lambda: contrib.adopt(0.01, use_clipping=False),
        "centered_rmsprop": lambda: optax.rmsprop(0.01, centered=True),
        "cocob": contrib.cocob,
        "dog": lambda: contrib.dog(1.0),
        "mechanize": lambda: contrib.mechanize(optax.adam(0.01)),
        "noisy_sgd": lambda: optax.noisy_sgd(0.01, key=jax.random.key(0)),
        "simplified_ademamix": lambda: contrib.simplified_ademamix(0.01, alpha=0.0),
    }
    if name in special:
        return special[name]()
    return getattr(optax, name, getattr(contrib, name, None))(0.01)


OPTIMIZERS = (
    # optax
    *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw"),
    *("adamw", "adan", "amsgrad", "fromage", "lamb", "lars", "lion", "nadam", "nadamw"),
    *("noisy_sgd", "novograd", "optimistic_adam_v2", "optimistic_gradient_descent"),
    *("polyak_sgd", "radam", "rmsprop", "rprop", "sgd", "sign_sgd", "signum", "yogi"),
    # optax.contrib
    *("acprop", "ademamix", "adopt", "cocob", "dadapt_adamw", "dog", "dowg", "madgrad"),
    *("mechanize", "momo", "momo_adam", "muon", "prodigy", "schedule_free_adamw"),
    *("schedule_free_sgd", "simplified_ademamix", "sophia"),
    # Others than the default of one.
    *("adopt_without_clipping", "centered_rmsprop"),
)
# The arrays that hold what these divide by.
REFUSED = {"acprop": ("nu",), "adopt_without_clipping": ("nu",)}
NUM_UPDATES, NUM_AFTER = 300, 5


def lengths_of_steps(base, keep):
    """Longest entries of the steps of all units, and of a unit that was reset."""
    base = optax.with_extra_args_support(base)

    @jax.jit
    def step(params, state, grads):
        numbers = {"value": jnp.float32(1), "obj_fn": optax.tree.sum}
        updates, state = base.update(grads, state, params, **numbers)
        entries = [updates["dense_0"]["kernel"], updates["head"]["kernel"].T]
        longest = jnp.max(jnp.abs(jnp.concatenate(entries)), axis=0)  # [N]
        return optax.apply_updates(params, updates), state, longest

    rng, params, state = np.random.default_rng(1), PARAMS, base.init(PARAMS)
    lengths = []
    for index in range(NUM_UPDATES + NUM_AFTER):
        if index == NUM_UPDATES:
            (group,) = resolve_units(UNITS, params)
            masks = [(group, UnitMask(jnp.arange(4) == 1))]
            state = reset_moments(base, state, params, masks, keep)
        grads = jax.tree.map(
            lambda leaf: rng.normal(size=leaf.shape).astype("float32"), params
        )
        params, state, longest = step(params, state, grads)
        lengths.append(longest)
    lengths = np.asarray(lengths)
    return lengths[:NUM_UPDATES], lengths[NUM_UPDATES:, 1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_step_of_a_reborn_unit_is_ten_times_too_long(name):
    base, keep = optimizer(name), REFUSED.get(name, ())
    make(base, keep_state=keep).init(PARAMS)
    before, after = lengths_of_steps(base, keep)
    assert before.max() > 0
    assert after.max() < 10 * before.max()
    assert np.isfinite(after).all()


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("acprop", lambda base: optax.chain(optax.clip_by_global_norm(1.0), base)),
        ("adopt_without_clipping", lambda base: optax.apply_if_finite(base, 2)),
    ],
    ids=["chain", "apply_if_finite"],
)
def test_a_base_that_divides_by_a_newborn_moment_is_refused(name, wrap):
    base = wrap(optimizer(name))
    message = message_of(base)
    assert "divides by a moment that is 0 in a reset unit" in message
    assert "keep_state=('nu',)" in message
    make(base, keep_state=("nu",)).init(PARAMS)
    make(base, moments="keep").init(PARAMS)
    with pytest.raises(ValueError, match="divides by a moment"):
        jax.vmap(lambda rate: make(optax.chain(base, optax.scale(rate))).init(PARAMS))(
            jnp.ones(2)
        )


def test_a_field_to_keep_that_the_state_does_not_have():
    message = message_of(optax.adam(0.1), keep_state=("nu", "mo"))
    assert "keep_state names ['mo']" in message
    assert "0/mu/dense_0/kernel" in message


RNG = np.random.default_rng(0)
INPUTS = jnp.asarray(RNG.normal(size=(32, 3)), jnp.float32)
TARGETS = jnp.sin(INPUTS @ jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32))
LINE_SEARCHES = {
    "lbfgs": optax.lbfgs(),
    "backtracking": optax.chain(
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(1.0),
        optax.scale_by_backtracking_linesearch(15, store_grad=True),
    ),
    "unit_counts": optax.chain(
        cbp_jax.optimizers.adam_with_unit_counts(1.0, UNITS),
        optax.scale_by_backtracking_linesearch(15, store_grad=True),
    ),
}


def loss_fn(params, inputs):
    hidden = jnp.tanh(inputs @ params["dense_0"]["kernel"])
    return jnp.mean((hidden @ params["head"]["kernel"] - TARGETS) ** 2)


def features_of(params):
    return {"dense_0": jnp.tanh(INPUTS @ params["dense_0"]["kernel"])}


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("lbfgs", "reset"),
        ("lbfgs", "keep"),
        ("backtracking", "reset"),
        ("unit_counts", "keep"),
    ],
)
def test_line_searches_learn_while_units_are_replaced(name, moments):
    tx = make(LINE_SEARCHES[name], replacement_rate=0.05, moments=moments)
    value_and_grad = optax.value_and_grad_from_state(loss_fn)

    @jax.jit
    def step(params, state):
        value, grad = value_and_grad(params, INPUTS, state=state.base_state)
        wanted = jax.value_and_grad(loss_fn)(params, INPUTS)
        updates, state = tx.update(
            grad,
            state,
            params,
            features=features_of(params),
            value=value,
            grad=grad,
            value_fn=loss_fn,
            inputs=INPUTS,
        )
        return optax.apply_updates(params, updates), state, (value, grad), wanted

    params, state, values, fresh = PARAMS, tx.init(PARAMS), [], []
    for _ in range(20):
        params, state, seen, wanted = step(params, state)
        # Also after a reset the line search knows the loss and the gradient.
        tiny.assert_close(seen, wanted)
        values.append(float(seen[0]))
        if state.replaced["dense_0"][0] < 4:
            fresh.append(state)
    assert len(fresh) >= 2
    assert values[-1] < values[0] / 2
    base = LINE_SEARCHES[name]
    for state in fresh:
        unit = int(state.replaced["dense_0"][0])
        if name == "lbfgs" and moments == "reset":
            tiny.assert_equal(state.base_state, base.init(PARAMS))
        elif name == "backtracking":
            moment = state.base_state[0].nu["dense_0"]["kernel"]
            assert (moment[:, unit] == 0).all()
            assert (np.delete(moment, unit, axis=1) > 0).all()


def test_a_line_search_in_front_of_replace_units_takes_features_for_the_loss():
    options = {"key": tiny.FAST_KEY, "initializer": tiny.rows_initializer}
    tx = optax.chain(optax.lbfgs(), cbp_jax.replace_units(UNITS, **options))

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(loss_fn)(params, INPUTS)
        updates, _ = tx.update(
            grad,
            state,
            params,
            features=features_of(params),
            value=value,
            grad=grad,
            value_fn=lambda params, features: loss_fn(params, INPUTS),
        )
        return value, loss_fn(optax.apply_updates(params, updates), INPUTS)

    value, new_value = step(PARAMS, tx.init(PARAMS))
    assert new_value < value


def test_a_base_that_takes_no_extra_arguments_but_its_own():
    def update(updates, state, params=None, *, scale):
        del params
        return jax.tree.map(lambda leaf: scale * leaf, updates), state

    base = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx = make(base)
    updates, _ = jax.jit(
        lambda state: tx.update(PARAMS, state, PARAMS, features=FEATURES, scale=2.0)
    )(tx.init(PARAMS))
    tiny.assert_equal(updates, jax.tree.map(lambda leaf: 2 * leaf, PARAMS))
