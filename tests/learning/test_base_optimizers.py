"""The optimizers that a config can name: their steps, and what a reset does to them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import cbp_jax
from experiments.learning import base_optimizers
from experiments.learning.base_optimizers import (
    OPTIMIZERS,
    optimizer,
    optimizer_hyperparameters,
)
from experiments.learning.hyperparameters import HYPERPARAMETERS

NUM_STEPS = 4
RATE = 0.1
PARAMS = tiny.make_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)
FEATURES = tiny.make_features(NUM_STEPS)
UNITS = tiny.UNITS
NUMBERS = SimpleNamespace(
    step_size=RATE,
    **{"momentum": 0.5, "b1": 0.8, "b2": 0.9, "decoupled_decay": 0.3},
    **{"rms_decay": 0.7, "muon_momentum": 0.8, "muon_rms": 0.2},
)


def adam_direction(history):
    mu = nu = 0.0
    for grad in history:
        mu = 0.8 * mu + 0.2 * grad
        nu = 0.9 * nu + 0.1 * grad**2
    count = len(history)
    return mu / (1 - 0.8**count) / (np.sqrt(nu / (1 - 0.9**count)) + 1e-8)


def nadam_direction(history):
    """Muon's Adam looks one step ahead, as its momentum does."""
    mu = nu = 0.0
    for grad in history:
        mu = 0.8 * mu + 0.2 * grad
        nu = 0.9 * nu + 0.1 * grad**2
    count = len(history)
    first = 0.8 * mu / (1 - 0.8 ** (count + 1)) + 0.2 * history[-1] / (1 - 0.8**count)
    return first / (np.sqrt(nu / (1 - 0.9**count)) + 1e-8)


def rms_direction(history):
    nu = 0.0
    for grad in history:
        nu = 0.7 * nu + 0.3 * grad**2
    return history[-1] / np.sqrt(nu + 1e-8)


def muon_direction(history):
    if history[-1].ndim < 2:
        return nadam_direction(history)
    mu = 0.0
    for grad in history:
        mu = 0.8 * mu + 0.2 * grad
    count = len(history)
    matrix = 0.8 * mu / (1 - 0.8 ** (count + 1))
    matrix = matrix + 0.2 * history[-1] / (1 - 0.8**count)
    tall = matrix.shape[0] > matrix.shape[1]
    matrix = matrix.T if tall else matrix
    matrix = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = matrix @ matrix.T
        matrix = 3.4445 * matrix + (-4.7750 * gram + 2.0315 * gram @ gram) @ matrix
    matrix = matrix.T if tall else matrix
    return matrix * 0.2 * np.sqrt(max(matrix.shape))


DIRECTIONS = {
    "adam": (adam_direction, 0.0),
    "adamw": (adam_direction, 0.3),
    "rmsprop": (rms_direction, 0.0),
    "muon": (muon_direction, 0.0),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_it_is_the_equation(name):
    direction, decay = DIRECTIONS[name]
    tx = OPTIMIZERS[name].build(NUMBERS, UNITS)
    history = tiny.loop(tx, PARAMS, GRADS, FEATURES)
    grads = tiny.by_path(GRADS)
    for path, param in tiny.by_path(PARAMS).items():
        param = np.asarray(param, np.float64)
        seen = np.asarray(grads[path], np.float64)
        for step, (params, _) in enumerate(history):
            moved = direction(seen[: step + 1]) + decay * param
            param = param - RATE * moved
            np.testing.assert_allclose(
                tiny.by_path(params)[path], param, rtol=2e-4, atol=2e-5, err_msg=path
            )


def test_the_decay_of_adamw_can_be_off():
    grads = tiny.at(GRADS, 0)
    updates = []
    for name in ("adam", "adamw"):
        numbers = SimpleNamespace(**vars(NUMBERS) | {"decoupled_decay": 0.0})
        tx = OPTIMIZERS[name].build(numbers, UNITS)
        updates.append(tx.update(grads, tx.init(PARAMS), PARAMS)[0])
    tiny.assert_equal(*updates)


# Entries of each leaf that belong to unit i of dense_0 or unit j of dense_1.
def entries_of(path, first, second):
    layer, kind = path.split("/")[-2:]
    columns = {"dense_0": first, "dense_1": second, "head": None}[layer]
    rows = {"dense_0": None, "dense_1": first, "head": second}[layer]
    mask = np.zeros(PARAMS[layer][kind].shape, bool)
    if columns is not None:
        mask[..., columns] = True
    if rows is not None and kind == "kernel":
        mask[rows] = True
    return mask


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("sgd", "adam") else ())
        for name in sorted(OPTIMIZERS)
    ],
)
def test_moments_of_reborn_units_are_as_born(name):
    """Of every array like a param, and of nothing else."""
    base = OPTIMIZERS[name].build(NUMBERS, UNITS)
    tx = cbp_jax.continual_backprop(
        base,
        UNITS,
        replacement_rate=0.3,
        maturity_threshold=1,
        initializer=tiny.rows_initializer,
        max_per_step=1,
        key=tiny.FAST_KEY,
    )
    history = tiny.loop(tx, PARAMS, GRADS, FEATURES)
    plain = tiny.loop(base, PARAMS, GRADS, FEATURES)
    params, state = history[2]
    first, second = (int(state.replaced[name][0]) for name in ("dense_0", "dense_1"))
    assert first < 6 and second < 5
    born = tiny.by_path(base.init(params))
    found = {"sgd": 1, "adam": 2, "adamw": 2, "rmsprop": 1, "muon": 3}[name]
    arrays = 0
    for path, leaf in tiny.by_path(state.base_state).items():
        if leaf.ndim == 0 or "/" not in path or path.split("/")[-2] not in PARAMS:
            np.testing.assert_array_equal(leaf, tiny.by_path(plain[2][1])[path], path)
            continue
        arrays += 1
        mask = entries_of(path, first, second)
        np.testing.assert_array_equal(leaf[mask], born[path][mask], path)
        assert (leaf[~mask] != born[path][~mask]).any(), path
    # Muon has one momentum of kernels, and two moments of biases.
    assert arrays == (3 + 2 * 3 if name == "muon" else found * 6)


def test_an_optimizer_is_one_declaration(monkeypatch):
    monkeypatch.setattr(base_optimizers, "_OPTIMIZERS", {})
    betas = {name: HYPERPARAMETERS[name] for name in ("b1", "b2")}
    optimizer("mine", **betas)(lambda numbers, units: None)
    with pytest.raises(ValueError, match="'mine' already exists; choose another name"):
        optimizer("mine")(lambda numbers, units: None)
    different = betas["b1"]._replace(default=0.5)
    with pytest.raises(ValueError, match="'b1' is declared twice"):
        optimizer("other", b1=different)(lambda numbers, units: None)


def test_what_an_optimizer_takes():
    fields = {"hidden_layers": 1}
    assert list(optimizer_hyperparameters("adamw", fields)) == [
        *("step_size", "b1", "b2", "decoupled_decay"),
        *("weight_decay", "noise_scale", "dropout_rate"),
    ]
    assert list(optimizer_hyperparameters(None, {"hidden_layers": 0})) == ["step_size"]


@pytest.mark.slow
def test_lanes_of_muon_differ_in_its_momentum():
    def step(momentum):
        numbers = SimpleNamespace(**vars(NUMBERS) | {"muon_momentum": momentum})
        tx = OPTIMIZERS["muon"].build(numbers, UNITS)
        state = tx.init(PARAMS)
        for index in range(2):
            updates, state = tx.update(tiny.at(GRADS, index), state, PARAMS)
        return updates["dense_1"]["kernel"]

    momenta = jnp.array([0.5, 0.8])
    lanes = jax.jit(jax.vmap(step))(momenta)
    solo = jax.jit(step)
    for lane, momentum in zip(lanes, momenta, strict=True):
        np.testing.assert_allclose(lane, solo(momentum), rtol=1e-4, atol=1e-6)
    assert np.abs(lanes[0] - lanes[1]).max() > 1e-3
