"""Replays traces of the authors' PyTorch code through the public API.

Every trace holds inputs, targets and initial params; the replay must make the same
replacements at every step and end with the same params. Fresh weights were made
deterministic (`trace_initializer`), so the whole algorithm is compared in float64.
"""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cbp_jax

TRACES = pathlib.Path(__file__).parents[1] / "traces"
UTILITIES = {
    "contribution": cbp_jax.utility.contribution,
    "zero_contribution": cbp_jax.utility.mean_corrected_contribution,
    "adaptable_contribution": cbp_jax.utility.overall,
    "adaptation": cbp_jax.utility.adaptation,
    "weight": cbp_jax.utility.weight_magnitude,
    "feature_by_input": cbp_jax.utility.activation_over_input,
}
ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def trace_initializer(gain):
    """Fresh columns of the traces: `bound * cos(j + 1)`, or its conv counterpart."""

    def init(key, shape, dtype):
        del key
        bound = gain / math.sqrt(math.prod(shape[:-1]))
        if len(shape) == 2:
            pattern = jnp.arange(shape[0], dtype=dtype) + 1
        else:
            kh, kw, ci = (jnp.arange(size, dtype=dtype) for size in shape[:-1])
            pattern = 0.7 * kh[:, None, None] + 0.3 * kw[:, None] + ci + 1
        return jnp.broadcast_to((bound * jnp.cos(pattern))[..., None], shape).astype(
            dtype
        )

    return init


def load(name):
    with np.load(TRACES / f"{name}.npz") as file:
        arrays = dict(file)
    return json.loads(str(arrays.pop("config"))), arrays


def initial_params(arrays, names):
    return {
        name: {
            "kernel": jnp.asarray(arrays[f"w{index}_init"], jnp.float64),
            "bias": jnp.asarray(arrays[f"b{index}_init"], jnp.float64),
        }
        for index, name in enumerate(names)
    }


def replay(tx, apply, loss_fn, params, inputs, targets):
    """Runs all steps; returns params and state after each, and the losses before."""

    def loss_and_features(params, x, y):
        outputs, features = apply(params, x)
        return loss_fn(outputs, y), features

    def step(carry, batch):
        params, state = carry
        (loss, features), grads = jax.value_and_grad(loss_and_features, has_aux=True)(
            params, *batch
        )
        updates, state = tx.update(grads, state, params, features=features)
        params = optax.apply_updates(params, updates)
        record = (params, state.units, state.replaced, loss)
        return (params, state), record

    carry = (params, tx.init(params))
    _, records = jax.jit(lambda carry: jax.lax.scan(step, carry, (inputs, targets)))(
        carry
    )
    return jax.device_get(records)


def check_units(arrays, names, unit_states, replaced):
    for index, name in enumerate(names[:-1]):
        wanted = arrays[f"replaced{index}"]
        steps, width = wanted.shape
        actual = np.zeros((steps, width + 1), bool)
        np.put_along_axis(actual, replaced[name], True, axis=1)
        np.testing.assert_array_equal(actual[:, :width], wanted, err_msg=name)
        state = unit_states[name]
        np.testing.assert_array_equal(state.age, arrays[f"age{index}"], err_msg=name)
        np.testing.assert_allclose(
            state.mean_activation, arrays[f"mean{index}"], atol=1e-6, err_msg=name
        )
        recorded = arrays[f"utility{index}"]
        np.testing.assert_allclose(
            state.utility, recorded, rtol=2e-6, atol=1e-6, err_msg=name
        )
        assert wanted.any(), f"the trace never replaces a unit of {name}"


MLP_TRACES = sorted(path.stem for path in TRACES.glob("mlp_*.npz"))


@pytest.mark.parametrize("name", MLP_TRACES)
def test_mlp_trace(name):
    config, arrays = load(name)
    num_layers = len(config["sizes"]) - 1
    names = [f"layer_{index}" for index in range(num_layers)]
    units = cbp_jax.sequential_units(names)
    activation = ACTIVATIONS[config["activation"]]

    def apply(params, x):
        features = {}
        for layer in names[:-1]:
            x = activation(x @ params[layer]["kernel"] + params[layer]["bias"])
            features[layer] = x
        return x @ params[names[-1]]["kernel"] + params[names[-1]]["bias"], features

    def loss_fn(outputs, targets):
        if config["loss"] == "mse":
            return jnp.mean((outputs - targets) ** 2)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()

    if config["optimizer"] == "adam":
        base = cbp_jax.optimizers.adam_with_unit_counts(
            config["step_size"], units, eps_before_correction=True
        )
    else:
        base = optax.chain(
            optax.add_decayed_weights(config["weight_decay"]),
            optax.sgd(config["step_size"]),
        )
    gain = float(arrays["bound0"]) * math.sqrt(config["sizes"][0])
    tx = cbp_jax.continual_backprop(
        base,
        units,
        replacement_rate=config["replacement_rate"],
        decay_rate=config["decay_rate"],
        maturity_threshold=config["maturity_threshold"],
        utility_fn=UTILITIES[config["utility"]],
        initializer=trace_initializer(gain),
        key=jax.random.key(0),
    )
    params, unit_states, replaced, losses = replay(
        tx,
        apply,
        loss_fn,
        initial_params(arrays, names),
        jnp.asarray(arrays["x"]),
        jnp.asarray(arrays["y"]),
    )
    check_units(arrays, names, unit_states, replaced)
    np.testing.assert_allclose(losses, arrays["loss"], rtol=0, atol=1e-10)
    for index, layer in enumerate(names):
        for row, after in enumerate(arrays["param_steps"]):
            for leaf, letter in (("kernel", "w"), ("bias", "b")):
                np.testing.assert_allclose(
                    params[layer][leaf][after - 1],
                    arrays[f"{letter}{index}"][row],
                    rtol=0,
                    atol=1e-10,
                    err_msg=f"{layer}/{leaf} after {after} updates",
                )
        if index < num_layers - 1:
            np.testing.assert_allclose(
                unit_states[layer].utility[-1],
                arrays[f"utility{index}_final"],
                rtol=1e-10,
            )


def test_conv_trace():
    config, arrays = load("conv_sgd_momentum")
    network = cbp_jax.networks.ConvNet(activation="leaky_relu", convolution="patches")
    groups = network.units()
    names = [*(group.name for group in groups), "head"]

    def apply(params, x):
        return network.apply({"params": params}, x)

    def loss_fn(outputs, targets):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()

    tx = cbp_jax.continual_backprop(
        optax.sgd(config["step_size"], momentum=config["momentum"]),
        groups,
        **cbp_jax.variants.RELEASED_CONV
        | {
            "replacement_rate": config["replacement_rate"],
            "decay_rate": config["decay_rate"],
            "maturity_threshold": config["maturity_threshold"],
        },
        initializer=trace_initializer(1.0),
        key=jax.random.key(0),
        moments="keep",
    )
    params, unit_states, replaced, losses = replay(
        tx,
        apply,
        loss_fn,
        initial_params(arrays, names),
        jnp.asarray(arrays["x"], jnp.float64) / 32,
        jnp.asarray(arrays["y"]),
    )
    check_units(arrays, names, unit_states, replaced)
    np.testing.assert_allclose(losses, arrays["loss"], rtol=0, atol=1e-10)
    for index, layer in enumerate(names):
        for after in config["param_steps"]:
            for leaf, letter in (("kernel", "w"), ("bias", "b")):
                np.testing.assert_allclose(
                    params[layer][leaf][after - 1],
                    arrays[f"{letter}{index}_step{after}"],
                    rtol=0,
                    atol=1e-6,
                    err_msg=f"{layer}/{leaf} after {after} updates",
                )
