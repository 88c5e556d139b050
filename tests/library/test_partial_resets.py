"""Units reset in part: all goes as far as the fraction says, and no farther."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax

# Small numbers of few bits, whose halves, sums and products are exact.
FRESH = 0.5
STEP = 0.125


def few_bits(seed, *shape):
    return np.random.default_rng(seed).integers(-8, 8, shape).astype(np.float32) / 4


def params_of(*groups):
    return {
        name: {"kernel": few_bits(index, *shape), "bias": few_bits(9, shape[1])}
        for index, (name, shape) in enumerate(groups)
    }


PARAMS = params_of(*tiny.SHAPES.items())
GRADS = jax.tree.map(lambda leaf: few_bits(3, *leaf.shape), PARAMS)
FEATURES = tiny.at(tiny.make_features(), 0)
HALF = {name: np.full(width, 0.5) for name, width in tiny.WIDTHS.items()}


class AgeState(NamedTuple):
    age: jax.Array
    number: jax.Array


def fixed(fraction, number=None):
    """A rule that resets its group's first units by the same fractions every time."""

    def init(num_units, dtype):
        age = jnp.zeros(num_units, jnp.int32)
        return AgeState(age, jnp.zeros(num_units, dtype))

    def update(state, measured):
        num_units = measured.age.size
        score = jnp.arange(num_units, dtype=state.number.dtype)
        count = jnp.int32(num_units if number is None else number)
        choice = cbp_jax.Choice(score, count, measured.activation.mean(axis=(0, 1)))
        part = None if fraction is None else jnp.asarray(fraction, score.dtype)
        return state._replace(number=state.number + 1), choice._replace(fraction=part)

    return cbp_jax.Rule(init, update)


def make(fractions, base=None, units=tiny.UNITS, number=None, **options):
    """Resets by fractions, a dict by group name; None for whole resets."""
    return cbp_jax.reset_by_rule(
        optax.sgd(STEP, momentum=1.0) if base is None else base,
        units,
        lambda group: fixed(fractions and fractions[group.name], number),
        initializer=jax.nn.initializers.constant(FRESH),
        key=tiny.FAST_KEY,
        **options,
    )


def run(tx, params=PARAMS, grads=GRADS, features=FEATURES, num_steps=2):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(grads, state, params, features=features)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params)
    for _ in range(num_steps):
        params, state = step(params, state)
    return jax.device_get((params, state))


@functools.cache
def base_run(num_steps=1):
    base = optax.with_extra_args_support(optax.sgd(STEP, momentum=1.0))
    return run(base, num_steps=num_steps)


ONES = {name: np.ones(width) for name, width in tiny.WIDTHS.items()}


@pytest.mark.parametrize(
    "between_reset", ["fresh", pytest.param("zero", marks=pytest.mark.slow)]
)
def test_a_fraction_of_one_is_a_reset(between_reset):
    options = {"base": optax.adam(0.1), "between_reset": between_reset, "number": 3}
    tiny.assert_equal(run(make(ONES, **options)), run(make(None, **options)))


def test_a_fraction_of_zero_is_nothing():
    zeros = {name: np.zeros(width) for name, width in tiny.WIDTHS.items()}
    params, state = run(make(zeros))
    tiny.assert_equal((params, state.base_state), base_run(2))
    for name, width in tiny.WIDTHS.items():
        np.testing.assert_array_equal(state.units[name].age, 2)
        np.testing.assert_array_equal(state.replaced[name], width)
        assert state.num_replaced[name] == 0


def test_a_half_is_the_mean_of_the_old_and_the_new():
    """To the last bit; a weight between two units goes half way twice."""
    params, state = run(make(HALF), num_steps=1)
    old, old_state = base_run()
    np.testing.assert_array_equal(
        params["dense_0"]["kernel"], (old["dense_0"]["kernel"] + FRESH) / 2
    )
    np.testing.assert_array_equal(
        params["dense_1"]["kernel"], (old["dense_1"]["kernel"] / 2 + FRESH) / 2
    )
    np.testing.assert_array_equal(params["head"]["kernel"], old["head"]["kernel"] / 2)
    np.testing.assert_array_equal(params["head"]["bias"], old["head"]["bias"])
    traces, old_traces = state.base_state[0].trace, old_state[0].trace
    shares = {"dense_0": 2, "dense_1": 4, "head": 2}
    for name, share in shares.items():
        moment = old_traces[name]["kernel"] / share
        np.testing.assert_array_equal(traces[name]["kernel"], moment)
    for name in tiny.WIDTHS:
        np.testing.assert_array_equal(params[name]["bias"], old[name]["bias"] / 2)
        np.testing.assert_array_equal(
            traces[name]["bias"], old_traces[name]["bias"] / 2
        )
        # The age and the rule's own numbers go on.
        np.testing.assert_array_equal(state.units[name].age, 1)
        np.testing.assert_array_equal(state.units[name].number, 1)


def test_outgoing_weights_last_if_between_reset_is_zero():
    params, _ = run(make(HALF, between_reset="zero"), num_steps=1)
    old, _ = base_run()
    np.testing.assert_array_equal(
        params["dense_1"]["kernel"], (old["dense_1"]["kernel"] + FRESH) / 4
    )


def test_biases_and_moments_stay_on_request():
    params, state = run(make(HALF, biases="keep", moments="keep"), num_steps=1)
    old, old_state = base_run()
    tiny.assert_equal(state.base_state, old_state)
    for name in tiny.WIDTHS:
        np.testing.assert_array_equal(params[name]["bias"], old[name]["bias"])
    tiny.assert_equal(params["dense_0"]["kernel"], (old["dense_0"]["kernel"] + 0.5) / 2)
    # Their moments stay with the biases, whole resets or not.
    params, state = run(make(None, biases="keep"), num_steps=1)
    traces, old_traces = state.base_state[0].trace, old_state[0].trace
    np.testing.assert_array_equal(traces["dense_0"]["kernel"], 0)
    tiny.assert_equal(traces["dense_0"]["bias"], old_traces["dense_0"]["bias"])
    tiny.assert_equal(params["dense_0"]["bias"], old["dense_0"]["bias"])


MIXED = {
    "dense_0": np.array([0.3, 1.0, 0.0, np.nan, 2.0, 0.9], np.float32),
    "dense_1": np.array([1.0, 0.25, 0.0, 0.5, 1.0], np.float32),
}


def test_each_unit_goes_its_own_way_and_only_whole_resets_count():
    """By NumPy, two updates; no number and less than 0 are 0, more than 1 is 1."""
    params, state = run(make(MIXED, number=5, moments="keep"))
    first = np.array([0.3, 1, 0, 0, 1, 0], np.float32)  # The sixth is not chosen.
    second = MIXED["dense_1"]
    wanted = jax.tree.map(np.copy, PARAMS)
    for count in (1, 2):
        wanted = jax.tree.map(lambda p, g, n=count: p - n * STEP * g, wanted, GRADS)
        kernels = {name: wanted[name]["kernel"] for name in wanted}
        kernels["dense_0"] = (1 - first) * kernels["dense_0"] + first * FRESH
        kernels["dense_1"] = (1 - first)[:, None] * kernels["dense_1"]
        kernels["dense_1"] = (1 - second) * kernels["dense_1"] + second * FRESH
        kernels["head"] = (1 - second)[:, None] * kernels["head"]
        biases = {name: wanted[name]["bias"] for name in wanted}
        biases["dense_0"] = (1 - first) * biases["dense_0"]
        biases["dense_1"] = (1 - second) * biases["dense_1"]
        wanted = {n: {"kernel": kernels[n], "bias": biases[n]} for n in wanted}
    tiny.assert_close(params, wanted)
    masks = {n: tiny.mask_of(state.replaced[n], w) for n, w in tiny.WIDTHS.items()}
    np.testing.assert_array_equal(masks["dense_0"], first == 1)
    np.testing.assert_array_equal(masks["dense_1"], second == 1)
    for name, mask in masks.items():
        assert state.num_replaced[name] == 2 * mask.sum()
        for number in (state.units[name].age, state.units[name].number):
            np.testing.assert_array_equal(number, np.where(mask, 0, 2))
    # Who keeps other state by unit resets that of whole units alone.
    running = {"mean": jnp.ones(6)}
    group = tiny.UNITS[0]._replace(statistics="mean")
    reset = cbp_jax.reset_statistics(running, (group,), state.replaced)
    np.testing.assert_array_equal(reset["mean"], first != 1)


def test_groups_with_and_without_fractions():
    """Whole units of one layer next to halves of the other, which meet in a weight."""
    fractions = {"dense_0": None, "dense_1": HALF["dense_1"]}
    params, state = run(make(fractions), num_steps=1)
    np.testing.assert_array_equal(params["dense_0"]["kernel"], FRESH)
    np.testing.assert_array_equal(params["dense_1"]["kernel"], FRESH / 2)
    assert state.num_replaced == {"dense_0": 6, "dense_1": 0}
    np.testing.assert_array_equal(state.base_state[0].trace["dense_1"]["kernel"], 0)


def test_stacked_layers_and_their_normalization():
    params = {"up": few_bits(0, 2, 4, 3), "scale": np.full((2, 3), 3.0, np.float32)}
    params |= {"down": few_bits(1, 2, 3, 5), "norm_bias": few_bits(2, 2, 3)}
    group = cbp_jax.UnitGroup(
        *("mlp", "up", None, "down"),
        norm_scale="scale",
        norm_bias="norm_bias",
        stack_axes=1,
    )
    tx = make({"mlp": np.array([0.5, 0.0, 1.0])}, optax.sgd(0.0), (group,))
    grads = jax.tree.map(np.zeros_like, params)
    new, state = run(tx, params, grads, {"mlp": jnp.ones((2, 4, 3))}, 1)
    share = np.array([0.5, 1.0, 0.0], np.float32)
    np.testing.assert_array_equal(new["up"], params["up"] * share + FRESH * (1 - share))
    np.testing.assert_array_equal(new["down"], params["down"] * share[:, None])
    np.testing.assert_array_equal(new["scale"], [[2.0, 3.0, 1.0]] * 2)
    np.testing.assert_array_equal(new["norm_bias"], params["norm_bias"] * share)
    np.testing.assert_array_equal(state.replaced["mlp"], [[3, 3, 2]] * 2)
    np.testing.assert_array_equal(state.num_replaced["mlp"], [1, 1])


def test_a_map_that_is_flattened():
    """Outgoing weights of all positions of a channel go as far."""
    params = {"conv": few_bits(0, 2, 2, 1, 3), "dense": few_bits(1, 12, 2)}
    group = cbp_jax.UnitGroup("conv", "conv", None, "dense")
    tx = make({"conv": np.array([0.5, 0.0, 1.0])}, optax.sgd(0.0), (group,))
    grads = jax.tree.map(np.zeros_like, params)
    new, _ = run(tx, params, grads, {"conv": jnp.ones((4, 2, 2, 3))}, 1)
    share = np.array([0.5, 1.0, 0.0], np.float32)
    np.testing.assert_array_equal(
        new["conv"], params["conv"] * share + FRESH * (1 - share)
    )
    np.testing.assert_array_equal(
        new["dense"], params["dense"] * np.tile(share, 4)[:, None]
    )


def test_means_are_transferred_in_part():
    """What the consumers lose of a unit's mean goes to their biases."""
    params, _ = run(make(HALF, transfer_mean=True), num_steps=1)
    old, _ = base_run()
    mean = np.asarray(FEATURES["dense_1"]).mean(axis=0)
    np.testing.assert_allclose(
        params["head"]["bias"],
        old["head"]["bias"] + mean @ old["head"]["kernel"] / 2,
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "dtype", ["bfloat16", pytest.param("float64", marks=pytest.mark.slow)]
)
def test_dtypes_and_structure_are_kept(dtype):
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("strict"):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), PARAMS)
        tx = make(HALF)
        state = tx.init(params)
        updates, after = jax.eval_shape(
            lambda state: tx.update(params, state, params, features=FEATURES), state
        )
        assert jax.tree.map(kind, updates) == jax.tree.map(kind, params)
        assert jax.tree.map(kind, after) == jax.tree.map(kind, state)


def kind(leaf):
    return leaf.shape, str(leaf.dtype)


def test_a_fraction_of_a_wrong_shape_is_an_error():
    with pytest.raises(ValueError, match=r"fraction .* shape \(5,\).* of shape \(6,\)"):
        run(make({"dense_0": np.ones(5), "dense_1": np.ones(5)}))
