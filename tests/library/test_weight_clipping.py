"""Weight clipping: bounds of kernels and biases, what is inside them, errors."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from cbp_jax.optimizers._weight_clipping import clip_weights, uniform_fan_in_bound

NUM_STEPS = 3
PARAMS = tiny.make_conv_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)
FEATURES = tiny.make_features(NUM_STEPS)
# 1 / sqrt(2 * 2 * 2) and 1 / sqrt(5); no bound without a kernel.
BOUNDS = {
    "conv/kernel": 8**-0.5,
    "conv/bias": 8**-0.5,
    "norm/scale": np.inf,
    "head/kernel": 5**-0.5,
    "head/bias": 5**-0.5,
}


def make(kappa, **options):
    return optax.chain(optax.sgd(0.1), clip_weights(kappa, **options))


def reference(kappa, bounds):
    params = {path: param.copy() for path, param in tiny.by_path(PARAMS).items()}
    for step in range(NUM_STEPS):
        for path, grad in tiny.by_path(GRADS).items():
            limit = kappa * bounds[path]
            params[path] = np.clip(params[path] - 0.1 * grad[step], -limit, limit)
    return params


@pytest.mark.parametrize(
    ("options", "bounds"),
    [
        ({}, BOUNDS),
        ({"exclude": ("head",)}, BOUNDS | {"head/kernel": np.inf, "head/bias": np.inf}),
        (
            {"bounds": lambda path, shape: len(path) + 0.1 * len(shape)},
            {
                path: len(path) + 0.1 * len(shape)
                for path, shape in {
                    "conv/kernel": "abcd",
                    "conv/bias": "abcd",
                    "norm/scale": "a",
                    "head/kernel": "ab",
                    "head/bias": "ab",
                }.items()
            },
        ),
    ],
)
def test_it_is_the_equation(options, bounds):
    kappa = 0.1 if "bounds" in options else 2.0
    actual = tiny.by_path(
        tiny.loop(make(kappa, **options), PARAMS, GRADS, FEATURES)[-1][0]
    )
    wanted = reference(kappa, bounds)
    assert any((np.abs(wanted[path]) == kappa * bounds[path]).any() for path in wanted)
    for path, param in wanted.items():
        np.testing.assert_allclose(actual[path], param, rtol=1e-5, err_msg=path)


def test_entries_inside_keep_their_updates_bit_for_bit():
    updates, tx = tiny.at(GRADS, 0), clip_weights(2.0)
    clipped, _ = jax.jit(tx.update)(updates, tx.init(PARAMS), PARAMS)
    update = updates["head"]["kernel"]
    inside = np.abs(PARAMS["head"]["kernel"] + update) <= 2 * 5**-0.5
    assert 0 < inside.sum() < inside.size
    np.testing.assert_array_equal(clipped["head"]["kernel"][inside], update[inside])


def test_bfloat16_and_nnx_states():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(4, 3, rngs=rngs)
            self.norm = nnx.LayerNorm(3, rngs=rngs)

    params = nnx.state(Network(nnx.Rngs(0)), nnx.Param)
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, 2, jnp.bfloat16), params)
    tx = clip_weights(jnp.float32(2.0))
    state = tx.init(params)
    updates = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(updates, state, params)
    new = tiny.by_path(optax.apply_updates(params, updates))
    for path, leaf in new.items():
        limit = 2.0 if path.startswith("norm") else 2 / np.sqrt(4)
        np.testing.assert_array_equal(leaf.astype(np.float32), limit, err_msg=path)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"kappa must be in \[0, inf\], got -1"):
        clip_weights(-1.0)
    with pytest.raises(ValueError, match="'haed'"):
        clip_weights(1.0, exclude=("haed",)).init(PARAMS)
    assert uniform_fan_in_bound("head/kernel", (2, 8, 3)) == 0.25
