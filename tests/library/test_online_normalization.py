"""Online normalization against a plain loop of the published equations.

Shapes: T batches, B examples, P positions, N units.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbp_jax.layers import (
    OnlineNorm,
    OnlineNormalizationState,
    init_online_normalization,
    layer_scaling,
    online_normalization,
    value_and_grad_with_state,
)

T, B, N = 3, 4, 5
FORWARD, BACKWARD, EPSILON = 0.9, 0.7, 1e-5


@jax.jit
def step(inputs, state, cotangents, forward_decay, backward_decay):
    """Returns outputs, the gradient of the inputs and the next state."""

    def loss_of(inputs, state):
        outputs, state = online_normalization(
            inputs, state, forward_decay=forward_decay, backward_decay=backward_decay
        )
        return jnp.sum(outputs * cotangents), (outputs, state)

    grads, (outputs, new) = jax.grad(loss_of, (0, 1), has_aux=True)(inputs, state)
    sent_back, increments = grads  # The mean and the variance get 0.
    return outputs, sent_back, jax.tree.map(jnp.add, new, increments)


class Loop:
    """The published equations of one layer, example by example, in NumPy."""

    def __init__(self, num_units):
        self.mean, self.var = np.zeros(num_units), np.ones(num_units)
        self.u, self.v = np.zeros(num_units), np.zeros(num_units)

    def forward(self, inputs):
        self.outputs, self.scales = [], []
        for x in inputs.reshape(len(inputs), -1, inputs.shape[-1]):
            self.scales.append(np.sqrt(self.var + EPSILON))
            self.outputs.append((x - self.mean) / self.scales[-1])
            own = x.mean(0)
            self.var = (
                FORWARD * self.var
                + (1 - FORWARD) * ((x - own) ** 2).mean(0)
                + FORWARD * (1 - FORWARD) * (own - self.mean) ** 2
            )
            self.mean = self.mean + (1 - FORWARD) * (own - self.mean)
        return np.reshape(self.outputs, inputs.shape)

    def backward(self, gradients):
        sent_back = []
        flat = gradients.reshape(len(gradients), -1, gradients.shape[-1])
        for gradient, y, scale in zip(flat, self.outputs, self.scales, strict=True):
            gradient = gradient - (1 - BACKWARD) * self.v * y
            self.v = self.v + (gradient * y).mean(0)
            sent_back.append(gradient / scale - (1 - BACKWARD) * self.u)
            self.u = self.u + sent_back[-1].mean(0)
        return np.reshape(sent_back, gradients.shape)


def make_stream(*positions, seed=0):
    """Returns inputs and gradients [T, B, ..., N]."""
    rng = np.random.default_rng(seed)
    shape = (T, B, *positions, N)
    return 2 + 3 * rng.normal(size=shape), 0.5 + rng.normal(size=shape)


def close(actual, wanted):
    np.testing.assert_allclose(actual, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("positions", [(), (2, 3)])
def test_forward_backward_and_state_are_the_published_equations(positions):
    with jax.enable_x64(True):
        state, loop = init_online_normalization(N, jnp.float64), Loop(N)
        for inputs, gradients in zip(*make_stream(*positions), strict=True):
            outputs, sent_back, state = step(
                inputs, state, gradients, FORWARD, BACKWARD
            )
            close(outputs, loop.forward(inputs))
            close(sent_back, loop.backward(gradients))
            for name, value in state._asdict().items():
                assert value.dtype == jnp.float64
                close(value, getattr(loop, name))


def scaled(outputs, gradients):
    """The paper's guard: outputs, and its exact derivative."""
    size = np.sqrt((outputs**2).mean(-1, keepdims=True) + EPSILON)
    guarded = outputs / size
    along = (gradients * guarded).mean(-1, keepdims=True) * guarded
    return guarded, (gradients - along) / size


def clipped(outputs, gradients):
    return np.clip(outputs, -5, 5), gradients * (np.abs(outputs) < 5)


def unguarded(outputs, gradients):
    return outputs, gradients


@pytest.mark.parametrize(
    "guard, rule",
    [("layer_scaling", scaled), ("clip", clipped), ("none", unguarded)],
)
def test_scale_shift_and_guard_of_the_module(guard, rule):
    with jax.enable_x64(True):
        layer = OnlineNorm(False, FORWARD, BACKWARD, EPSILON, guard, jnp.float64)
        stream, cotangents = make_stream()
        scale, bias = np.linspace(0.5, 4, N), np.linspace(-1, 1, N)

        def loss_fn(params, state, inputs, cotangents):
            outputs, state = layer.apply(
                {"params": params["norm"], **state},
                inputs + params["inputs"],
                mutable=list(state),
            )
            return jnp.sum(outputs * cotangents), (state, outputs)

        variables = layer.init(jax.random.key(0), stream[0])
        state = {name: variables[name] for name in ("batch_stats", "backward_stats")}
        params = {
            "norm": {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)},
            "inputs": jnp.zeros(stream[0].shape),
        }
        train_step, loop = jax.jit(value_and_grad_with_state(loss_fn)), Loop(N)
        for inputs, gradients in zip(stream, cotangents, strict=True):
            (_, outputs), grads, state = train_step(params, state, inputs, gradients)
            normalized = loop.forward(inputs)
            wanted, gradients = rule(normalized * scale + bias, gradients)
            close(outputs, wanted)
            close(grads["norm"]["bias"], gradients.sum(0))
            close(grads["norm"]["scale"], (gradients * normalized).sum(0))
            close(grads["inputs"], loop.backward(gradients * scale))
            for leaves in state.values():
                for name, value in leaves.items():
                    close(value, getattr(loop, name))
        if guard == "clip":
            assert (np.abs(wanted) == 5).any()


def test_layer_scaling_takes_all_of_an_example():
    inputs = jnp.array([[[3.0, 4.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    scaled = layer_scaling(inputs, 0.0)
    np.testing.assert_allclose(scaled[0], inputs[0] / 2.5, rtol=1e-6)
    np.testing.assert_allclose(scaled[1], inputs[1], rtol=1e-6)


def test_measuring_uses_the_state_and_leaves_it():
    state = OnlineNormalizationState(*jnp.array([[1.0], [4.0], [3.0], [2.0]]))
    variables = {
        "params": {"scale": jnp.array([2.0]), "bias": jnp.array([0.5])},
        "batch_stats": {"mean": state.mean, "var": state.var},
    }
    layer = OnlineNorm(use_running_average=True, epsilon=0.0, guard="none")
    outputs, new = layer.apply(variables, jnp.array([[5.0], [-3.0]]), mutable=True)
    np.testing.assert_allclose(outputs, [[4.5], [-3.5]], rtol=1e-6)
    np.testing.assert_array_equal(new["batch_stats"]["mean"], state.mean)
    np.testing.assert_array_equal(new["batch_stats"]["var"], state.var)


def test_init_leaves_the_state_newborn():
    variables = OnlineNorm().init(jax.random.key(0), jnp.full((2, 3), 7.0))
    for name, value in (("mean", 0), ("var", 1)):
        np.testing.assert_array_equal(variables["batch_stats"][name], value)
    for name in ("u", "v"):
        np.testing.assert_array_equal(variables["backward_stats"][name], 0)


def test_estimates_are_weighted_moments_and_converge_to_those_of_the_data():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(10, N)) * [1, 2, 5, 0.1, 3] + [0, 10, -3, 0.5, 1]
    decay, stream = 0.999, np.tile(data, (2000, 1))
    with jax.enable_x64(True):
        state = init_online_normalization(N, jnp.float64)
        state = jax.device_get(step(stream, state, 0 * stream, decay, BACKWARD)[2])
    weights = (1 - decay) * decay ** np.arange(len(stream))[::-1]
    mean = weights @ stream
    square = weights @ stream**2 + decay ** len(stream)
    np.testing.assert_allclose(state.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(state.var, square - mean**2, rtol=1e-9)
    spread = data.std(0)
    np.testing.assert_array_less(np.abs(state.mean - data.mean(0)), 0.01 * spread)
    np.testing.assert_allclose(state.var, data.var(0), rtol=0.01)


def test_gradients_sent_back_are_orthogonal_in_the_long_run():
    rng = np.random.default_rng(0)
    stream = rng.normal(size=(5000, N))
    gradients = 1 + 2 * stream + rng.normal(size=stream.shape)
    with jax.enable_x64(True):
        state = init_online_normalization(N, jnp.float64)
        outputs, free, _ = jax.device_get(step(stream, state, gradients, 0.99, 1.0))
        _, sent_back, state = jax.device_get(step(stream, state, gradients, 0.99, 0.9))
    np.testing.assert_allclose(state.u, sent_back.sum(0), rtol=1e-9)
    assert free.mean(0).min() > 0.8
    assert (free * outputs).mean(0).min() > 1.5
    assert np.abs(sent_back.mean(0)).max() < 0.02
    assert np.abs((sent_back * outputs).mean(0)).max() < 0.05


def test_lanes_with_decays_of_their_own_are_solo_runs():
    inputs, gradients = (jnp.asarray(x, jnp.float32) for x in make_stream())
    state = init_online_normalization(N)
    forward, backward = jnp.array([0.9, 0.99, 0.5]), jnp.array([0.7, 1.0, 0.0])
    lanes = jax.jit(jax.vmap(step, (0, None, 0, 0, 0)))(
        inputs, state, gradients, forward, backward
    )
    for lane in range(T):
        solo = step(inputs[lane], state, gradients[lane], forward[lane], backward[lane])
        jax.tree.map(
            lambda many, one, lane=lane: np.testing.assert_allclose(
                many[lane], one, rtol=1e-5, atol=1e-6
            ),
            lanes,
            solo,
        )


def test_bfloat16_inputs_are_computed_in_the_states_dtype():
    inputs, gradients = (jnp.asarray(x[0], jnp.bfloat16) for x in make_stream())
    state = init_online_normalization(N)
    narrow = step(inputs, state, gradients, FORWARD, BACKWARD)
    wide = step(
        inputs.astype(jnp.float32),
        state,
        gradients.astype(jnp.float32),
        FORWARD,
        BACKWARD,
    )
    assert narrow[0].dtype == narrow[1].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in narrow[2]} == {jnp.dtype(jnp.float32)}
    for actual, wanted in zip(narrow[:2], wide[:2], strict=True):
        np.testing.assert_array_equal(actual, wanted.astype(jnp.bfloat16))
    for actual, wanted in zip(narrow[2], wide[2], strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-6)
    variables = OnlineNorm().init(jax.random.key(0), inputs)
    assert variables["batch_stats"]["mean"].dtype == jnp.float32


@pytest.mark.parametrize(
    "inputs, options, message",
    [
        (jnp.zeros((2, 3)), {}, r"5 units got inputs of shape \(2, 3\)"),
        (jnp.zeros(5), {}, r"a batch axis: inputs\[None\]"),
        (jnp.zeros((2, 5), int), {}, r"dtype int32.*inputs.astype"),
        (jnp.zeros((2, 5)), {"forward_decay": 1.0}, r"forward_decay must be in \[0, 1"),
        (jnp.zeros((2, 5)), {"backward_decay": -0.1}, r"backward_decay .* got -0.1"),
    ],
)
def test_errors(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        online_normalization(inputs, init_online_normalization(N), **options)


def test_errors_of_the_module():
    with pytest.raises(ValueError, match="guard must be one of .* got 'clamp'"):
        OnlineNorm(guard="clamp").init(jax.random.key(0), jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="a single example a batch axis"):
        OnlineNorm().init(jax.random.key(0), jnp.zeros(3))
