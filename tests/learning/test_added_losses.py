"""Methods that add a loss: what they do to a run, against NumPy, and where they go."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_runs import one_lane, run_dying_once, tiny_bits, tiny_digits
import xarray as xr

from experiments import permuted_mnist, slowly_changing_regression
from experiments.learning import methods
from experiments.run import runner, storage
from experiments.run.config import complete, make_cases

NUM_UPDATES = 9
SIZE, WIDTH, BATCH = 64, 5, 2
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(NUM_UPDATES, BATCH, SIZE)).astype(np.float32) / 4
LABELS = RNG.integers(0, 10, (NUM_UPDATES, BATCH)).astype(np.int32)
STEP_SIZE = 0.1
ADDING = [name for name, method in methods.METHODS.items() if method.adds_loss]


def make(method, **fields):
    fields = {"method": method, "batch_size": BATCH} | fields
    config = tiny_digits(cases={"one": fields}, step_size=STEP_SIZE)
    return make_cases(complete(config))["one"]


@functools.cache
def learner_of(method, **fields):
    config = make(method, **fields)
    return permuted_mnist.make_problem(config).learner, *one_lane(config)


def train(method, **fields):
    """Returns the first state and those after each update, along a leading axis."""
    learner, hyperparameters, key = learner_of(method, **fields)

    def step(state, batch):
        state, _, loss = learner.step(hyperparameters, state, *batch)
        return state, (state, loss)

    first = learner.init(hyperparameters, key)
    batches = jnp.asarray(INPUTS), jnp.asarray(LABELS)
    _, (states, losses) = jax.jit(lambda: jax.lax.scan(step, first, batches))()
    return first, states, losses


class Network:
    """The network of these runs in NumPy: a hidden layer of ReLUs, and a head."""

    def __init__(self, params):
        self.params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def features(self, x):
        hidden = self.params["dense_0"]
        return np.maximum(x @ hidden["kernel"] + hidden["bias"], 0)

    def logits(self, x):
        head = self.params["head"]
        return self.features(x) @ head["kernel"] + head["bias"]

    def gradient(self, x, to_logits, to_features=0.0):
        """Of a loss with these derivatives to the logits and to the features."""
        h = self.features(x)
        back = to_logits @ self.params["head"]["kernel"].T + to_features
        back = back * (h > 0)
        return {
            "dense_0": {"kernel": x.T @ back, "bias": back.sum(axis=0)},
            "head": {"kernel": h.T @ to_logits, "bias": to_logits.sum(axis=0)},
        }

    def descend(self, gradient, step_size=STEP_SIZE):
        self.params = jax.tree.map(
            lambda param, grad: param - step_size * grad, self.params, gradient
        )


def add(*trees):
    return jax.tree.map(lambda *leaves: sum(leaves), *trees)


def softmax(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def task(network, x, labels):
    """The cross-entropy, and its derivative to the logits."""
    p, rows = softmax(network.logits(x)), np.arange(len(x))
    loss = -np.log(p[rows, labels]).mean()
    p[rows, labels] -= 1
    return loss, p / len(x)


def by_feature_norm(network, first):
    del first
    for x, labels in zip(INPUTS, LABELS, strict=True):
        _, to_logits = task(network, x, labels)
        to_features = 0.3 * 2 * network.features(x) / BATCH
        network.descend(network.gradient(x, to_logits, to_features))


def by_churn(network, first):
    del first
    earlier, means, history = Network(network.params), np.zeros(2), []
    for x, labels in zip(INPUTS, LABELS, strict=True):
        loss, to_logits = task(network, x, labels)
        gradient = network.gradient(x, to_logits)
        if len(history) >= 2:
            other = history[-2]
            old, new = softmax(earlier.logits(other)), softmax(network.logits(other))
            churn = -(old * np.log(new)).sum(axis=1).mean()
            strength = 0.5 * means[0] / (means[1] + 1e-8) if means[1] else 0
            to_other = strength * (new - old) / BATCH
            gradient = add(gradient, network.gradient(other, to_other))
            means = 0.8 * means + 0.2 * np.array([loss, churn])
        earlier = Network(network.params)
        history.append(x)
        network.descend(gradient)


def by_infer(network, first):
    initial = Network(network.params)
    heads = initial_heads = np.asarray(first.memory.initial_heads, np.float64)
    for x, labels in zip(INPUTS, LABELS, strict=True):
        _, to_logits = task(network, x, labels)
        h = network.features(x)
        error = h @ heads - 3 * initial.features(x) @ initial_heads
        slope = 0.2 * 2 * error / error.size
        gradient = network.gradient(x, to_logits, slope @ heads.T)
        heads = heads - STEP_SIZE * h.T @ slope
        network.descend(gradient)
    assert np.abs(heads - initial_heads).max() > 1e-3


def by_effective_rank(network, first):
    del first
    for update, (x, labels) in enumerate(zip(INPUTS, LABELS, strict=True), start=1):
        _, to_logits = task(network, x, labels)
        decay = jax.tree.map(lambda param: 0.1 * param, network.params)
        network.descend(add(network.gradient(x, to_logits), decay))
        if update % 4 == 0:
            inputs = INPUTS[update - 4 : update].reshape(-1, SIZE)
            h = network.features(inputs)
            u, s, v = np.linalg.svd(h, full_matrices=False)
            p = s / s.sum()
            slopes = np.log(p + 1e-8) + p / (p + 1e-8)
            rank = np.exp(-(p * np.log(p + 1e-8)).sum())
            to_rank = rank / s.sum() * u * ((p * slopes).sum() - slopes) @ v
            none = np.zeros((len(inputs), 10))
            network.descend(network.gradient(inputs, none, -to_rank), 0.05)


IN_NUMPY = {
    "feature_norm": (by_feature_norm, {"feature_norm_strength": 0.3}),
    "c_chain": (by_churn, {"chain_share": 0.5, "chain_decay": 0.8}),
    "infer": (by_infer, {"infer_strength": 0.2, "infer_scale": 3.0}),
    "l2_er": (
        by_effective_rank,
        {"er_step_size": 0.05, "er_every": 4, "weight_decay": 0.1},
    ),
}


def test_every_such_method_is_compared():
    assert set(IN_NUMPY) == set(ADDING)


@pytest.mark.parametrize("name", IN_NUMPY)
def test_it_is_the_equation(name):
    run, fields = IN_NUMPY[name]
    first, states, losses = train(name, **fields)
    network = Network(first.params)
    np.testing.assert_allclose(losses[0], task(network, INPUTS[0], LABELS[0])[0], 1e-5)
    run(network, first)
    for path, wanted in tiny.by_path(network.params).items():
        actual = tiny.by_path(tiny.at(states, -1).params)[path]
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", ADDING)
def test_it_goes_with_other_fields_and_keeps_the_state(name):
    """Traced only: shapes, dtypes and structure, which a scan and checkpoints need."""
    learner, hyperparameters, key = learner_of(
        name,
        **{"normalization": "batch", "activation": "crelu", "hidden_layers": 2},
        **{"batch_size": 4, "momentum": 0.5, "noise_scale": 0.01},
    )
    batch = 4
    state = jax.eval_shape(lambda: learner.init(hyperparameters, key))
    inputs = jax.ShapeDtypeStruct((batch, SIZE), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)

    def step(state, inputs, labels):
        return learner.step(hyperparameters, state, inputs, labels)[0]

    assert jax.eval_shape(step, state, inputs, labels) == state
    # Measures preview an update on any number of examples.
    many = jax.ShapeDtypeStruct((7, SIZE), jnp.float32)
    grads, _ = jax.eval_shape(
        lambda *args: learner.preview(hyperparameters, *args),
        *(state, many, jax.ShapeDtypeStruct((7,), jnp.int32)),
    )
    assert grads == state.params


@pytest.mark.slow
@pytest.mark.parametrize("name", ADDING)
def test_it_acts_with_normalization_dropout_and_adam(name):
    _, fields = IN_NUMPY[name]
    others = {"normalization": "online", "dropout_rate": 0.2, "optimizer": "adam"}
    others |= {"step_size": 0.01, "weight_decay": fields.get("weight_decay", 0.0)}
    (_, states, _), (_, plain, _) = (
        train(name, **fields | others),
        train("backprop", **others),
    )
    kernels = states.params["dense_0"]["kernel"], plain.params["dense_0"]["kernel"]
    assert np.isfinite(kernels).all()
    assert np.abs(kernels[0][-1] - kernels[1][-1]).max() > 1e-4


def test_features_need_a_hidden_layer():
    for name in ("l2_er", "feature_norm", "infer"):
        with pytest.raises(ValueError, match=f"'{name}' needs hidden units"):
            permuted_mnist.make_problem(make(name, hidden_layers=0))


def test_churn_of_values_is_their_squared_error():
    config = tiny_bits(cases={"c_chain": {"method": "c_chain"}})
    config = make_cases(complete(config))["c_chain"]
    learner = slowly_changing_regression.make_problem(config).learner
    hyperparameters, key = one_lane(config)
    state = jax.eval_shape(lambda: learner.init(hyperparameters, key))
    shapes = state.memory.inputs.shape[1:], (1,)
    values = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    jaxpr = jax.make_jaxpr(lambda *args: learner.step(hyperparameters, *args))(
        state, *values
    )
    assert "exp" not in str(jaxpr)


@functools.cache
def jitted_step(name):
    learner, hyperparameters, _ = learner_of(name, **IN_NUMPY[name][1])
    return jax.jit(lambda *args: learner.step(hyperparameters, *args)[0])


def test_a_stored_state_goes_on_as_if_it_had_not_been_stored():
    learner, hyperparameters, key = learner_of("c_chain", **IN_NUMPY["c_chain"][1])
    step, state = jitted_step("c_chain"), learner.init(hyperparameters, key)
    resumed = state
    for update in range(6):
        if update == 4:
            lanes = jax.tree.map(lambda leaf: leaf[None], state)
            stored = storage.to_dict(jax.device_get(storage.keys_to_data(lanes)))
            restored = storage.from_dict(stored, lanes, "c_chain")
            resumed = tiny.at(storage.data_to_keys(restored, lanes), 0)
        state = step(state, INPUTS[update], LABELS[update])
        resumed = step(resumed, INPUTS[update], LABELS[update])
    tiny.assert_equal(resumed.params, state.params)
    tiny.assert_equal(resumed.memory, state.memory)
    assert resumed.memory.churn > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ADDING)
def test_a_killed_run_ends_with_the_same_numbers(name, tmp_path, monkeypatch):
    _, fields = IN_NUMPY[name]
    config = tiny_digits(
        cases={"one": {"method": name} | fields}, num_tasks=4, checkpoint_every=2
    )
    make_problem = permuted_mnist.make_problem
    whole = runner.run(config, tmp_path / "whole", make_problem)
    resumed, _ = run_dying_once(
        config, tmp_path / "run", make_problem, monkeypatch, at_call=4
    )
    xr.testing.assert_equal(
        resumed.drop_vars("steps_per_second"), whole.drop_vars("steps_per_second")
    )
