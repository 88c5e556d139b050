"""The measures of plasticity against recorded values, closed forms and invariances."""

import functools
import pathlib

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbp_jax import metrics

pytestmark = pytest.mark.usefixtures("strict_dtype_promotion")

TRACE = pathlib.Path(__file__).parents[1] / "traces" / "matrix_ranks.npz"
METHODS = ("svd", "gram")
RANKS = (
    metrics.effective_rank,
    metrics.stable_rank,
    metrics.approximate_rank,
    metrics.numerical_rank,
)
SHAPE = (12, 8)


@functools.partial(jax.jit, static_argnames="method")
def all_ranks(features, method):
    return [rank(features, method=method) for rank in RANKS]


def orthogonal(num_rows, num_columns, seed=0):
    normal = np.random.default_rng(seed).normal(size=(num_rows, num_columns))
    return np.linalg.qr(normal)[0]


def with_singular_values(values, shape, seed=0):
    left = orthogonal(shape[0], len(values), seed)
    right = orthogonal(shape[1], len(values), seed + 1)
    return (left * np.asarray(values)) @ right.T


def relu_features(num_samples, num_units, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(num_samples, 100))
    weights = rng.normal(size=(100, num_units)) / 10
    return np.maximum(inputs @ weights, 0).astype(np.float32)


def reference_effective_rank(values):
    share = values[values > 0] / np.sum(values)
    return np.exp(-np.sum(share * np.log(share)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("index", range(6))
def test_ranks_agree_with_the_authors_code(index, method):
    with jax.enable_x64(True), np.load(TRACE) as trace:
        features = trace[f"m{index}"]
        ranks = all_ranks(features, method)
        assert all(rank.dtype == jnp.float64 for rank in ranks)
        effective, stable, approximate, numerical = map(float, ranks)
        assert effective == pytest.approx(trace[f"effective_rank{index}"], rel=1e-5)
        assert stable == trace[f"abs_approximate_rank{index}"]
        assert approximate == trace[f"approximate_rank{index}"]
        assert numerical == np.linalg.matrix_rank(features)
        num_dead = float(metrics.dead_units(features)) * features.shape[1]
        assert num_dead == trace[f"dead{index}"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_orthogonal_columns_have_full_rank_at_any_scale(method, scale):
    features = (orthogonal(*SHAPE) * scale).astype(np.float32)
    np.testing.assert_allclose(all_ranks(features, method), 8, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_more_units_than_samples(method):
    features = orthogonal(*SHAPE).T.astype(np.float32)
    np.testing.assert_allclose(all_ranks(features, method), 8, rtol=1e-5)


@pytest.mark.parametrize(("method", "tolerance"), [("svd", 1e-4), ("gram", 0.03)])
def test_rank_one_matrix_has_every_rank_one(method, tolerance):
    features = np.outer(np.arange(1, 13), np.arange(1, 9)).astype(np.float32)
    np.testing.assert_allclose(all_ranks(features, method), 1, rtol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_the_ranks_differ_as_their_formulas_do(method):
    # Shares of the sum: .625, .3125, .0625; of the sum of squares: .7937, .1984, .0079.
    features = with_singular_values([10, 5, 1], SHAPE)
    effective = reference_effective_rank(np.array([10, 5, 1]))
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            metrics.effective_rank(features, method), effective, rtol=1e-7
        )
        assert metrics.stable_rank(features, method=method) == 3
        assert metrics.stable_rank(features, 0.93, method) == 2
        assert metrics.stable_rank(features, 0.62, method) == 1
        assert metrics.approximate_rank(features, method=method) == 2
        assert metrics.approximate_rank(features, 0.9925, method) == 3
        assert metrics.approximate_rank(features, 0.79, method) == 1
        assert metrics.numerical_rank(features, method=method) == 3
        assert metrics.numerical_rank(features, 4.0, method) == 2


def test_a_share_that_is_only_reached_does_not_count():
    features = np.eye(4)
    assert metrics.stable_rank(features, 0.5) == 3
    assert metrics.approximate_rank(features, 0.5) == 3


@pytest.mark.parametrize("method", METHODS)
def test_singular_values_descend(method):
    values = [5.0, 4.0, 2.0, 0.5]
    features = with_singular_values(values, (9, 4))
    np.testing.assert_allclose(
        metrics.singular_values(features, method), values, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("shape", "tolerance"), [((1000, 120), 1e-4), ((200, 200), 5e-3)]
)
def test_gram_is_as_accurate_as_its_docstring_says(shape, tolerance):
    features = relu_features(*shape)
    exact = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    error = np.abs(metrics.singular_values(features, "gram") - exact) / exact[0]
    assert error.max() < 6e-4
    assert error[exact > 0.1 * exact[0]].max() < 3e-7
    effective = metrics.effective_rank(features, "gram")
    expected = reference_effective_rank(exact)
    np.testing.assert_allclose(effective, expected, rtol=tolerance)
    reference = metrics.effective_rank(features, "svd")
    np.testing.assert_allclose(reference, expected, rtol=1e-5)


def test_gram_drops_the_rounding_noise_of_a_low_rank_matrix():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 200))
    features = features.astype(np.float32)
    expected = metrics.effective_rank(features, "svd")
    effective = metrics.effective_rank(features, "gram")
    np.testing.assert_allclose(effective, expected, rtol=0.03)
    assert metrics.stable_rank(features, method="gram") == 3
    assert metrics.numerical_rank(features, method="gram") == 3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_zeros_have_rank_zero_and_a_diverged_network_has_nan(bad, method):
    features = np.zeros(SHAPE, np.float32)
    np.testing.assert_array_equal(all_ranks(features, method), np.zeros(4))
    features[3, 2] = bad
    assert np.isnan(all_ranks(features, method)).all()


@pytest.mark.parametrize("method", METHODS)
def test_ranks_under_vmap_are_the_ranks_one_by_one(method):
    batch = np.stack([relu_features(*SHAPE, seed) for seed in range(3)])
    batch[1, :, 2:] = 0
    batched = jax.vmap(functools.partial(all_ranks, method=method))(batch)
    single = [all_ranks(features, method) for features in batch]
    np.testing.assert_allclose(np.transpose(batched), single, rtol=1e-5)
    assert np.all(np.less(single[1], single[0]))


@given(
    seed=st.integers(0, 2**31),
    num_directions=st.integers(1, SHAPE[1]),
    exponent=st.integers(-20, 20),
)
@settings(deadline=None, max_examples=20)
def test_effective_rank_is_bounded_and_invariant(seed, num_directions, exponent):
    rng = np.random.default_rng(seed)
    left = rng.normal(size=(SHAPE[0], num_directions))
    features = left @ rng.normal(size=(num_directions, SHAPE[1]))
    with jax.enable_x64(True):
        effective_rank = jax.jit(metrics.effective_rank)
        effective = effective_rank(features)
        # Rounding leaves the singular values beyond the rank near 1e-16.
        assert 1 - 1e-9 <= effective <= num_directions * (1 + 1e-9)
        scaled = effective_rank(features * 2.0**exponent)
        np.testing.assert_allclose(scaled, effective, rtol=1e-9)
        permuted = effective_rank(rng.permutation(features))
        np.testing.assert_allclose(permuted, effective, rtol=1e-9)


def test_unknown_method_names_the_choices():
    for rank in RANKS:
        with pytest.raises(ValueError, match="'qr'.*'svd', 'gram'"):
            rank(np.eye(3), method="qr")


def test_features_of_a_convolution_must_be_flattened_for_a_rank():
    with pytest.raises(ValueError, match=r"has shape \(2, 3, 3, 4\).*reshape"):
        metrics.effective_rank(np.ones((2, 3, 3, 4)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32, jnp.bool_])
def test_narrow_features_are_measured_in_float32(dtype):
    features = jnp.eye(*SHAPE).astype(dtype)
    ranks = all_ranks(features, "svd")
    assert all(rank.dtype == jnp.float32 for rank in ranks)
    np.testing.assert_allclose(ranks, 8, rtol=1e-5)
    assert metrics.dead_units(features).dtype == jnp.float32
    assert metrics.dormant_units(features, 0.2) == 1
    # In bfloat16 the sum of so many small weights would stop growing.
    magnitude = metrics.weight_magnitude(jnp.full((300, 300), 1, dtype))
    assert magnitude.dtype == jnp.float32
    assert magnitude == 1


def test_weight_magnitude_leaves_biases_out():
    params = {
        "convolution": {"kernel": np.full((2, 2, 1, 3), -2.0), "bias": np.ones(3)},
        "head": {"kernel": np.full((3, 4), 0.5), "bias": np.full(4, 100.0)},
        "scale": np.float32(7),
    }
    expected = (12 * 2 + 12 * 0.5) / 24
    assert metrics.weight_magnitude(params) == pytest.approx(expected)
    kernel = params["head"]["kernel"]
    assert metrics.weight_magnitude(kernel) == pytest.approx(0.5)


def test_weight_magnitude_mixes_precisions():
    with jax.enable_x64(True):
        params = [jnp.ones((2, 2), jnp.bfloat16), jnp.ones((2, 2), jnp.float64)]
        assert metrics.weight_magnitude(params).dtype == jnp.float64


def test_weight_magnitude_of_lanes_is_one_number_a_lane():
    params = {"kernel": np.ones((3, 2, 2)), "bias": np.full((3, 2), 9.0)}
    np.testing.assert_array_equal(
        jax.vmap(metrics.weight_magnitude)(params), np.ones(3)
    )


def test_weight_magnitude_without_a_matrix_is_an_error():
    with pytest.raises(ValueError, match=r"shapes \[\(3,\)\], none with two"):
        metrics.weight_magnitude({"bias": np.ones(3)})


def test_the_other_ranks_differ_as_their_formulas_do():
    values = np.array([10.0, 5.0, 1.0])
    features = with_singular_values(values, SHAPE)
    with jax.enable_x64(True):
        ratio = np.sum(values**2) ** 2 / np.sum(values**4)
        np.testing.assert_allclose(metrics.participation_ratio(features), ratio)
        effective = reference_effective_rank(values)
        np.testing.assert_allclose(metrics.rankme(features), effective, rtol=3e-5)
        assert metrics.rankme(features) > effective + 1e-6
        # Shares of the sum are .625, .3125 and .0625.
        assert metrics.srank(features) == 3
        assert metrics.srank(features, 0.07) == 2
        assert metrics.srank(features, 0.38) == 1
    # A share that is only reached counts, other than for the stable rank.
    assert metrics.srank(np.eye(4), 0.5) == 2
    assert metrics.stable_rank(np.eye(4), 0.5) == 3


@functools.partial(jax.jit, static_argnames="method")
@functools.partial(jax.vmap, in_axes=(0, None))
def other_ranks(features, method):
    ranks = metrics.participation_ratio, metrics.rankme, metrics.srank
    return [rank(features, method=method) for rank in ranks]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_other_ranks_at_any_scale_of_zeros_and_of_nan(method, dtype):
    lanes = np.stack([np.eye(*SHAPE) * scale for scale in (1, 2e-25, 2e25, 0, np.nan)])
    ratio, rankme, srank = other_ranks(jnp.asarray(lanes, dtype), method)
    assert ratio.dtype == rankme.dtype == srank.dtype == jnp.float32
    np.testing.assert_allclose(ratio, [8, 8, 8, 0, np.nan], rtol=1e-5)
    np.testing.assert_allclose(rankme, [8, 8, 8, 1, np.nan], rtol=3e-5)
    np.testing.assert_array_equal(srank, [8, 8, 8, 0, np.nan])


def weight_measures(kernel):
    return [
        metrics.spectral_norm(kernel),
        metrics.condition_number(kernel),
        metrics.isometry_gap(kernel),
    ]


def test_weights_with_known_singular_values():
    kernels = np.stack(
        [
            with_singular_values([4, 2, 1], (6, 3)),
            orthogonal(6, 3),
            with_singular_values([2, 1, 0], (6, 3)),
            np.zeros((6, 3)),
            np.full((6, 3), np.nan),
        ]
    )
    measure = jax.jit(jax.vmap(weight_measures))
    largest = 1 / (6 * np.finfo(np.float32).eps)  # Of a singular matrix.
    wanted = [
        [4, 1, 2, 0, np.nan],
        [4, 1, largest, largest, np.nan],
        [np.sqrt(15**2 + 3**2), 0, np.sqrt(3**2 + 1), np.sqrt(3), np.nan],
    ]
    for axes in ((0, 1, 2), (0, 2, 1)):  # Wide kernels, too.
        lanes = np.asarray(kernels.transpose(axes), np.float32)
        for found, values in zip(measure(lanes), wanted, strict=True):
            np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-5)
    windows = np.asarray(kernels[0], np.float32).reshape(2, 3, 1, 3)
    assert metrics.spectral_norm(windows) == pytest.approx(4, rel=1e-5)
    narrow = jnp.eye(3, dtype=jnp.bfloat16)
    assert [float(each) for each in weight_measures(narrow)] == [1, 1, 0]
    with pytest.raises(ValueError, match=r"shape \(3,\), expected two or more"):
        metrics.spectral_norm(np.ones(3))


def test_the_distance_from_initialization_is_over_all_leaves():
    before = {"kernel": np.ones((2, 2), np.float32), "bias": jnp.zeros(1, jnp.bfloat16)}
    after = {"kernel": before["kernel"] + 2, "bias": before["bias"] + 3}
    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, 0 * leaf]), after)
    distance = jax.vmap(metrics.distance_from_initialization, (0, None))(lanes, before)
    np.testing.assert_allclose(distance, [5, 2], rtol=1e-6)
    assert distance.dtype == jnp.float32
    with pytest.raises(ValueError, match="initial_params has the structure"):
        metrics.distance_from_initialization(after, after["kernel"])
