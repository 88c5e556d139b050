"""Projection of kernels to their initial norms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from cbp_jax.optimizers.norm_projection import project_norms

NUM_STEPS = 3
PARAMS = {
    "conv": {
        "kernel": tiny.make_params()["dense_0"]["kernel"].reshape(2, 2, 2, 3),
        "bias": jnp.arange(3.0),
    },
    "norm": {"scale": jnp.full(3, 2.0)},
    "head": tiny.make_params()["head"],
}
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


def test_lanes_have_norms_of_their_own():
    def last(params):
        return tiny.run(make(), params, GRADS, FEATURES)[0]

    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, 3 * leaf]), PARAMS)
    actual = jax.jit(jax.vmap(last))(lanes)
    norms = np.linalg.norm(actual["head"]["kernel"].reshape(2, NUM_STEPS, -1), axis=-1)
    initial = np.linalg.norm(PARAMS["head"]["kernel"])
    np.testing.assert_allclose(norms, initial * np.array([[1.0], [3.0]]).repeat(3, 1))
    tiny.assert_close(tiny.at(actual, 0), jax.jit(last)(PARAMS))


def test_bfloat16_updates_have_float32_norms():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    tx = project_norms()
    state = tx.init(params)
    with jax.numpy_dtype_promotion("strict"):
        updates, next_state = jax.lax.cond(
            True, tx.update, lambda *args: args[:2], params, state, params
        )
    for leaf in jax.tree.leaves(updates):
        assert leaf.dtype == jnp.bfloat16
    for leaf in jax.tree.leaves(next_state):
        assert leaf.dtype == jnp.float32
    kernel = params["head"]["kernel"] + updates["head"]["kernel"]
    norm = np.linalg.norm(np.asarray(kernel, np.float32))
    np.testing.assert_allclose(norm, state.norms["head"]["kernel"], rtol=0.01)
    owners = optax.tree.map_params(tx, lambda _: 1, state)
    assert jax.tree.leaves(owners) == [1] * 5


def test_multi_steps_project_once_for_all_gradients():
    tx = optax.MultiSteps(make(), 3)
    history = tiny.loop(tx, PARAMS, GRADS, FEATURES)
    tiny.assert_equal(history[1][0], PARAMS)
    grad = jax.tree.map(lambda leaf: leaf.mean(0, keepdims=True), GRADS)
    wanted = tiny.loop(make(), PARAMS, grad, FEATURES)
    tiny.assert_close(history[2][0], wanted[0][0])


def test_errors_say_what_to_do():
    tx = project_norms()
    with pytest.raises(ValueError, match="project_norms needs the params"):
        tx.update(PARAMS, tx.init(PARAMS))
    with pytest.raises(ValueError, match=r"'haed'.*conv/bias.*head/kernel"):
        project_norms(exclude=("haed",)).init(PARAMS)
