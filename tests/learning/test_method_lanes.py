"""Lanes of one program that differ in a method's own numbers, and solo runs of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import tiny_digits

from experiments import permuted_mnist
from experiments.run.config import complete, lane_hyperparameters, make_cases, make_grid

KEY = jax.random.key(0)
# A task is 40 updates.
IMAGES = jax.random.uniform(jax.random.key(1), (45, 1, 64))
LABELS = jnp.arange(45)[:, None] % 10

# For each method two values of its strength, in the range where it acts at once.
SWEEPS = {
    "l2_init": {"l2_init_strength": (0.1, 1.0)},
    "spectral_regularization": {"spectral_strength": (0.1, 0.5)},
    "weight_clipping": {"clipping_kappa": (0.5, 0.9)},
    "upgd": {"upgd_noise_scale": (0.1, 1.0), "upgd_decay_rate": (0.5, 0.9)},
    "redo": {"redo_threshold": (0.3, 0.7), "redo_every": (5, 7)},
    "self_normalized_resets": {"snr_lowest_threshold": (1, 3)},
    "regrama": {"regrama_threshold": (0.3, 0.7), "regrama_every": (5, 7)},
    "cpr": {"cpr_rate": (0.2, 0.5), "cpr_sharpness": (1.0, 8.0), "cpr_every": (5, 7)},
    "selective_weight_reinitialization": {"swr_fraction": (0.2, 0.5)},
    "shrink_and_perturb_events": {"shrink": (0.3, 0.6), "perturb": (0.1, 0.5)},
    "hare_and_tortoise": {"hare_decay": (0.5, 0.9), "hare_every": (3, 7)},
}
FIXED = {
    "self_normalized_resets": {"snr_first_threshold": 2},
    "selective_weight_reinitialization": {"swr_every": 7},
}
NORMALIZATION = {"online_norm_forward_decay": (0.8, 0.9)}


@pytest.mark.slow
@pytest.mark.parametrize("method", [*SWEEPS, "online"])
def test_every_lane_equals_its_solo_run(method):
    case = {"method": method, "sweep": SWEEPS.get(method)} | FIXED.get(method, {})
    if method == "online":
        case = {"method": "backprop", "normalization": "online"}
        case["sweep"] = NORMALIZATION
    config = complete(tiny_digits(cases={"one": case}, step_size=0.1))
    config = make_cases(config)["one"]
    grid = make_grid(config)
    learner = permuted_mnist.make_problem(config).learner

    def train(lane):
        hyperparameters = lane_hyperparameters(config, lane)

        def step(state, example):
            state, _, loss = learner.step(hyperparameters, state, *example)
            return state, loss

        return jax.lax.scan(step, learner.init(hyperparameters, KEY), (IMAGES, LABELS))[
            1
        ]

    together = np.asarray(jax.jit(jax.vmap(train))(grid.lanes))
    train = jax.jit(train)
    num_lanes = len(grid.lanes.seed)
    solo = [
        train(jax.tree.map(lambda x, i=i: x[i], grid.lanes)) for i in range(num_lanes)
    ]
    np.testing.assert_allclose(together, np.array(solo), rtol=2e-5, atol=1e-6)
    last = together[:, -5:].sum(axis=1).reshape(grid.shape)
    for axis in range(last.ndim - 1):
        assert (np.abs(np.diff(last, axis=axis)) > 1e-6).all(), axis
