"""Losses to add to a task's: values and gradients against NumPy, in any params tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cbp_jax import losses, metrics

RNG = np.random.default_rng(0)
# Kernels of both shapes, a convolution, a bias, and the scale of a normalization.
PARAMS = {
    "conv": {"kernel": RNG.normal(size=(2, 1, 2, 4)), "bias": RNG.normal(size=4)},
    "norm": {"scale": RNG.normal(size=4)},
    "wide": {"kernel": RNG.normal(size=(2, 4))},
    "head": {"kernel": RNG.normal(size=(4, 2)), "bias": RNG.normal(size=2)},
}
INITIAL = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape), PARAMS)
KERNELS = [PARAMS["conv"]["kernel"].reshape(4, 4), PARAMS["wide"]["kernel"]]
FEATURES = {
    "first": RNG.normal(size=(5, 3)),
    "map": RNG.normal(size=(5, 2, 2)),
}
OUTPUTS, EARLIER = RNG.normal(size=(2, 3, 4))
HEADS, INITIAL_HEADS = RNG.normal(size=(2, 3, 2))


def kernels_of(params):
    return [
        params["conv"]["kernel"].reshape(4, 4).T,
        params["wide"]["kernel"].T,
        params["head"]["kernel"].T,
    ]


def frobenius(matrix):
    return (matrix**2).sum()


def parseval(params):
    hidden = kernels_of(params)[:2]
    return sum(
        (64 / len(w)) ** 2 * frobenius(w @ w.T - 2 * np.eye(len(w))) for w in hidden
    )


def parseval_in_groups(params):
    total = 0
    for w in kernels_of(params)[:2]:
        for rows in (w[:2], w[2:]):
            total += frobenius(rows @ rows.T - 9 * np.eye(2))
    return total


def isometry(params):
    """From the singular values, which the loss does not compute."""
    singular = [np.linalg.svd(w, compute_uv=False) for w in kernels_of(params)]
    return sum(((values**2 - 1) ** 2).sum() for values in singular)


def by_leaf(distance):
    def total(params):
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(INITIAL), strict=True)
        return sum(distance(param.ravel(), initial.ravel()) for param, initial in pairs)

    return total


def wasserstein(param, initial):
    """By the definition: the cheapest of all ways to move one set onto the other."""
    order, total = np.argsort(param), 0
    for place, index in enumerate(order):
        total += (param[index] - np.sort(initial)[place]) ** 2
    return total / len(param)


def huber(param, initial):
    d = np.abs(param - initial)
    return np.where(d <= 0.5, d**2 / 2, 0.5 * (d - 0.25)).sum()


def effective_rank(features):
    ranks = []
    for layer in jax.tree.leaves(features):
        values = np.linalg.svd(layer.reshape(-1, layer.shape[-1]), compute_uv=False)
        p = values / values.sum()
        ranks.append(np.exp(-(p * np.log(p + 1e-8)).sum()))
    return -np.mean(ranks)


def feature_norm(features):
    return np.mean([(layer**2).sum() / 5 for layer in jax.tree.leaves(features)])


def softmax(logits):
    e = np.exp(logits)
    return e / e.sum(axis=-1, keepdims=True)


def infer(features):
    targets = 100 * FEATURES["first"] @ INITIAL_HEADS
    return ((features @ HEADS - targets) ** 2).mean()


NO_HEAD = {"exclude": ("head",)}
CASES = {
    "parseval": (lambda p: losses.parseval(p, **NO_HEAD), parseval, PARAMS),
    "parseval in groups": (
        lambda p: losses.parseval(
            p, gain=3.0, reference_width=None, num_groups=2, **NO_HEAD
        ),
        parseval_in_groups,
        PARAMS,
    ),
    "isometry": (losses.isometry, isometry, PARAMS),
    "l1_to_init": (
        lambda p: losses.l1_to_init(p, INITIAL),
        by_leaf(lambda param, initial: np.abs(param - initial).sum()),
        PARAMS,
    ),
    "huber_to_init": (
        lambda p: losses.huber_to_init(p, INITIAL, delta=0.5),
        by_leaf(huber),
        PARAMS,
    ),
    "wasserstein_to_init": (
        lambda p: losses.wasserstein_to_init(p, INITIAL),
        by_leaf(wasserstein),
        PARAMS,
    ),
    "negative_effective_rank": (
        losses.negative_effective_rank,
        effective_rank,
        FEATURES,
    ),
    "feature_norm": (losses.feature_norm, feature_norm, FEATURES),
    "churn": (
        lambda outputs: losses.churn(outputs, EARLIER),
        lambda outputs: (
            -np.mean((softmax(EARLIER) * np.log(softmax(outputs))).sum(axis=-1))
        ),
        OUTPUTS,
    ),
    "squared churn": (
        lambda outputs: losses.churn(outputs, EARLIER, kind="squared_error"),
        lambda outputs: np.mean((outputs - EARLIER) ** 2),
        OUTPUTS,
    ),
    "infer": (
        lambda features: losses.infer(
            features, FEATURES["first"], HEADS, INITIAL_HEADS
        ),
        infer,
        FEATURES["first"] / 2,
    ),
}
# All in one program, which compiles faster than many; `vmap` over two lanes.
FUNCTIONS = {name: function for name, (function, _, _) in CASES.items()}
LANES = {
    name: jax.tree.map(lambda leaf: np.stack([leaf, 1.5 * leaf]), argument)
    for name, (_, _, argument) in CASES.items()
}


@pytest.fixture(scope="module")
def found():
    with jax.enable_x64(True):

        @jax.jit
        @jax.vmap
        def run(arguments):
            return {
                name: jax.value_and_grad(function)(arguments[name])
                for name, function in FUNCTIONS.items()
            }

        return jax.device_get(run(LANES))


def slopes(function, argument):
    """Finite differences of a NumPy function of a tree."""
    leaves, treedef = jax.tree.flatten(argument)
    found = []
    for place, leaf in enumerate(leaves):
        slope = np.zeros(leaf.shape)
        for index in np.ndindex(leaf.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = leaf.copy()
                moved[index] += step
                others = [*leaves[:place], moved, *leaves[place + 1 :]]
                ends.append(function(treedef.unflatten(others)))
            slope[index] = (ends[0] - ends[1]) / 2e-6
        found.append(slope)
    return found


@pytest.mark.parametrize("lane", range(2))
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_numpy(name, lane, found):
    _, wanted, _ = CASES[name]
    argument = tiny.at(LANES[name], lane)
    value, grads = tiny.at(found[name], lane)
    np.testing.assert_allclose(value, wanted(argument), rtol=1e-10)
    for actual, slope in zip(
        jax.tree.leaves(grads), slopes(wanted, argument), strict=True
    ):
        scale = np.abs(slope).max() + 1e-3
        np.testing.assert_allclose(actual / scale, slope / scale, atol=1e-6)


def test_half_precision_is_computed_in_float32_and_gets_its_own_gradient():
    half = {
        name: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), argument)
        for name, (_, _, argument) in CASES.items()
    }
    found = jax.jit(
        lambda half: {
            name: jax.value_and_grad(function)(half[name])
            for name, function in FUNCTIONS.items()
        }
    )(half)
    for name, (value, grads) in found.items():
        assert value.dtype == jnp.float32, name
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(grads)}
        assert dtypes == {jnp.dtype("bfloat16")}, name
        rounded = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), half[name])
        wanted = CASES[name][1](rounded)
        np.testing.assert_allclose(value, wanted, rtol=1e-4, err_msg=name)


def test_no_gradient_flows_into_what_is_kept():
    for kept in (
        lambda initial: losses.l1_to_init(PARAMS, initial),
        lambda initial: losses.wasserstein_to_init(PARAMS, initial),
    ):
        assert not np.any(jax.tree.leaves(jax.grad(kept)(INITIAL))[0])
    assert not np.any(jax.grad(losses.churn, argnums=1)(OUTPUTS, EARLIER))


DEFICIENT = {
    "dead units": np.diag([3.0, 1.0, 0.0, 0.0]),
    "equal samples": np.ones((4, 1)) * np.arange(1.0, 5),
    "nothing": np.zeros((4, 4)),
}


@pytest.mark.parametrize("name", DEFICIENT)
def test_the_gradient_of_a_rank_is_finite_and_ascends_where_it_is_deficient(name):
    features = jnp.asarray(DEFICIENT[name], jnp.float32)
    with jax.debug_nans(True), jax.debug_infs(True):
        value, grad = jax.value_and_grad(losses.negative_effective_rank)(features)
    rank = metrics.effective_rank(features)
    np.testing.assert_allclose(-value, rank, rtol=1e-5)
    assert np.isfinite(grad).all()
    if name == "nothing":
        assert not grad.any()
        return
    assert metrics.effective_rank(features - 1e-3 * grad) > rank + 1e-3


def test_equinox_and_nnx_params_and_those_of_haiku_give_the_same_numbers():
    wide, head = PARAMS["wide"]["kernel"], PARAMS["head"]["kernel"]
    flax = {"a": {"kernel": wide}, "b": {"kernel": head, "bias": np.ones(2)}}
    haiku = {"a": {"w": wide}, "b": {"w": head, "b": np.ones(2)}}
    wrapped = {
        "a": {"kernel": {"value": wide}},
        "b": {"kernel": {"value": head}, "bias": {"value": np.ones(2)}},
    }
    equinox = [{"weight": wide.T}, {"weight": head.T, "bias": np.ones(2)}]
    for loss in (losses.parseval, losses.isometry):
        wanted = float(loss(flax))
        for params in (haiku, wrapped):
            np.testing.assert_allclose(loss(params), wanted, rtol=1e-6)
        np.testing.assert_allclose(loss(equinox, layout="oi"), wanted, rtol=1e-6)
        # Its kernels are not square, and only one layout is right for its parseval.
        alone = loss(flax, exclude=("b",)), loss(equinox, layout="oi", exclude=("1",))
        np.testing.assert_allclose(*alone, rtol=1e-6)
        assert loss({"bias": np.ones(3)}) == 0


def test_heads_have_the_published_number_and_bound():
    heads = losses.infer_heads(jax.random.key(0), 400)
    assert heads.shape == (400, 10)
    assert 0.99 / 20 < np.abs(heads).max() <= 1 / 20


def test_errors_say_what_to_write():
    for wrong, message in (
        (lambda: losses.parseval(PARAMS, num_groups=3), "4 outputs, which num_groups"),
        (lambda: losses.isometry(PARAMS, layout="xy"), r"one of \['io', 'oi'\]"),
        (lambda: losses.isometry(PARAMS, exclude=("tail",)), "'tail', which is not in"),
        (lambda: losses.churn(OUTPUTS, EARLIER, kind="l1"), r"kind must be one of"),
        (lambda: losses.feature_norm({}), "feature_norm got no features"),
        (lambda: losses.negative_effective_rank([]), "at least one hidden layer"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
