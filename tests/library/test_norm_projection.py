"""Projection of kernels to their initial norms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from cbp_jax.optimizers._norm_projection import project_norms

NUM_STEPS = 3
PARAMS = tiny.make_conv_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)
FEATURES = tiny.make_features(NUM_STEPS)


def make(**options):
    return optax.chain(optax.sgd(0.1), project_norms(**options))


def reference(params, grads, projected):
    params = {path: np.asarray(param, np.float64) for path, param in params.items()}
    norms = {path: np.sqrt((param**2).sum()) for path, param in params.items()}
    for step in range(NUM_STEPS):
        for path, grad in grads.items():
            new = params[path] - 0.1 * grad[step]
            if path in projected:
                new = new * norms[path] / np.sqrt((new**2).sum())
            params[path] = new
    return params


@pytest.mark.parametrize("exclude", [(), ("head",), ("head/kernel",)])
def test_it_is_the_equation(exclude):
    projected = {"conv/kernel"} | (set() if exclude else {"head/kernel"})
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(np.float64), PARAMS)
        grads = jax.tree.map(lambda leaf: leaf.astype(np.float64), GRADS)
        history = tiny.loop(make(exclude=exclude), params, grads, FEATURES)
        actual = tiny.by_path(history[-1][0])
    wanted = reference(tiny.by_path(params), tiny.by_path(grads), projected)
    for path, param in wanted.items():
        np.testing.assert_allclose(actual[path], param, rtol=1e-12, err_msg=path)


def test_other_leaves_have_the_updates_of_the_base_optimizer_bit_for_bit():
    base, grads = optax.sgd(0.1), tiny.at(GRADS, 0)
    wanted, _ = base.update(grads, base.init(PARAMS))
    tx = make(exclude=("conv", "head/kernel"))
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    tiny.assert_equal(updates, wanted)


@pytest.mark.parametrize("step", [1.0, 0.5])
def test_kernels_without_a_norm_are_left_alone(step):
    params = {"zero": jnp.zeros((2, 2)), "gone": jnp.ones((2, 2))}
    updates = {"zero": jnp.ones((2, 2)), "gone": -step * jnp.ones((2, 2))}
    tx = project_norms()
    actual, _ = tx.update(updates, tx.init(params), params)
    new = optax.apply_updates(params, actual)
    np.testing.assert_array_equal(new["zero"], 1.0)
    np.testing.assert_allclose(new["gone"], 0.0 if step == 1 else 1.0)


def test_norms_of_bfloat16_kernels_are_float32():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    tx = project_norms()
    state = tx.init(params)
    updates, _ = tx.update(params, state, params)
    kernel = params["head"]["kernel"] + updates["head"]["kernel"]
    norm = np.linalg.norm(np.asarray(kernel, np.float32))
    assert state.norms["head"]["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(norm, state.norms["head"]["kernel"], rtol=0.01)


def test_an_unknown_layer_is_an_error():
    with pytest.raises(ValueError, match=r"exclude names 'haed'.*conv/bias.*head/kern"):
        project_norms(exclude=("haed",)).init(PARAMS)
