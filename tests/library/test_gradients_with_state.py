"""Gradients of networks with and without state beside the params."""

import inspect
import re
import textwrap

import flax
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax.layers import value_and_grad_with_state
from cbp_jax.networks import MLP

RNG = np.random.default_rng(0)
INPUTS = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
TARGETS = jnp.asarray(RNG.normal(size=(6, 2)), jnp.float32)


def make(normalization):
    """Returns a network's loss function, params and state."""
    network = MLP((5,), 2, "tanh", normalization)

    def loss_fn(params, state, inputs, targets):
        (outputs, features), state = network.apply(
            {"params": params, **state}, inputs, train=True, mutable=list(state)
        )
        return jnp.mean(jnp.square(outputs - targets)), (state, features)

    variables = jax.jit(network.init)(tiny.FAST_KEY, INPUTS)
    state, params = flax.core.pop(variables, "params")
    return loss_fn, params, state


def test_without_state_it_is_value_and_grad_bit_for_bit():
    loss_fn, params, state = make("none")
    assert state == {}

    @jax.jit
    def plain(params):
        loss, (_, features) = loss_fn(params, {}, INPUTS, TARGETS)
        return loss, features

    wanted = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
    step = jax.jit(value_and_grad_with_state(loss_fn))
    value, grads, state = step(params, {}, INPUTS, TARGETS)
    tiny.assert_equal((value, grads), wanted)
    assert state == {}


def test_running_statistics_of_batch_normalization_are_flaxs_own():
    loss_fn, params, state = make("batch")
    step = jax.jit(value_and_grad_with_state(loss_fn))

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            hidden = nn.Dense(5, use_bias=False)(inputs)
            hidden = nn.tanh(nn.BatchNorm(use_running_average=False)(hidden))
            return nn.Dense(2)(hidden)

    plain = {
        "params": {
            "Dense_0": params["dense_0"],
            "BatchNorm_0": params["norm_0"],
            "Dense_1": params["head"],
        },
        "batch_stats": {"BatchNorm_0": state["batch_stats"]["norm_0"]},
    }

    def plain_loss(params, state, inputs):
        outputs, state = Plain().apply(
            {"params": params, **state}, inputs, mutable=["batch_stats"]
        )
        return jnp.mean(jnp.square(outputs - TARGETS)), state

    plain_step = jax.jit(jax.value_and_grad(plain_loss, has_aux=True))
    plain_state = {"batch_stats": plain["batch_stats"]}
    for shift in (0.0, 3.0):
        (loss, _), grads, state = step(params, state, INPUTS + shift, TARGETS)
        (wanted, plain_state), plain_grads = plain_step(
            plain["params"], plain_state, INPUTS + shift
        )
        np.testing.assert_allclose(loss, wanted, rtol=1e-6)
        tiny.assert_close(grads["norm_0"], plain_grads["BatchNorm_0"])
        tiny.assert_close(
            state["batch_stats"]["norm_0"], plain_state["batch_stats"]["BatchNorm_0"]
        )
    hidden = INPUTS @ params["dense_0"]["kernel"]
    shifted = (INPUTS + 3) @ params["dense_0"]["kernel"]
    mean = 0.99 * 0.01 * hidden.mean(0) + 0.01 * shifted.mean(0)
    var = 0.99**2 + 0.99 * 0.01 * hidden.var(0) + 0.01 * shifted.var(0)
    statistics = state["batch_stats"]["norm_0"]
    np.testing.assert_allclose(statistics["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(statistics["var"], var, rtol=1e-4)


def test_the_gradient_of_backward_statistics_is_added_to_them():
    def loss_fn(params, state, inputs):
        sums = state["backward_stats"]["sums"]
        loss = jnp.sum(inputs * params) + jnp.sum(inputs**2 * sums)
        return loss, ({"other": {"count": state["other"]["count"] + 1}}, "aux")

    state = {
        "backward_stats": {"sums": jnp.array([10.0, 20.0])},
        "other": {"count": jnp.int32(4)},
        "still": {"leaf": jnp.array(7.0)},
    }
    (loss, aux), grads, new = value_and_grad_with_state(loss_fn)(
        jnp.array([1.0, 2.0]), state, jnp.array([2.0, 3.0])
    )
    assert (loss, aux) == (8 + 40 + 180, "aux")
    np.testing.assert_array_equal(grads, [2, 3])
    np.testing.assert_array_equal(new["backward_stats"]["sums"], [14, 29])
    assert new["other"]["count"] == 5
    assert new["still"] == state["still"]


def test_a_scan_carries_the_state_whatever_the_forward_pass_computes_in():
    with jax.enable_x64(True):
        for normalization in ("online", "batch"):
            loss_fn, params, state = make(normalization)
            inputs = jnp.asarray(INPUTS, jnp.float64)

            def step(state, _, loss_fn=loss_fn, params=params, inputs=inputs):
                train_step = value_and_grad_with_state(loss_fn)
                return train_step(params, state, inputs, TARGETS)[2], None

            final, _ = jax.jit(lambda s, f=step: jax.lax.scan(f, s, length=2))(state)
            for leaf, new in zip(
                jax.tree.leaves(state), jax.tree.leaves(final), strict=True
            ):
                assert (new.dtype, new.shape) == (leaf.dtype, leaf.shape)
                assert np.abs(jax.device_get(new) - jax.device_get(leaf)).max() > 0


def test_a_collection_that_the_state_lacks_is_an_error():
    loss_fn, params, state = make("online")

    def returns_more(params, state, *args):
        loss, (state, aux) = loss_fn(params, state, *args)
        return loss, ({**state, "intermediates": {}}, aux)

    step = value_and_grad_with_state(returns_more)
    with pytest.raises(ValueError, match=r"\['intermediates'\], which are not in"):
        jax.eval_shape(step, params, state, INPUTS, TARGETS)


def test_its_example_runs():
    text = inspect.getdoc(value_and_grad_with_state)
    (example,) = re.findall(r"Example::\n\n(.*?)\n\nArgs:", text, re.DOTALL)

    @jax.jit
    def run(key, images, labels):
        names = {"cbp_jax": cbp_jax, "flax": flax, "optax": optax}
        names |= {"key": key, "images": images, "labels": labels}
        exec(textwrap.dedent(example), names)
        return names["loss"], names["features"], names["state"]

    loss, features, state = run(tiny.FAST_KEY, INPUTS, jnp.arange(6))
    assert np.isfinite(loss)
    assert jax.tree.map(jnp.shape, features) == {"dense_0": (6, 64), "dense_1": (6, 64)}
    assert set(state) == {"batch_stats", "backward_stats"}
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(state))
