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
    "ada_upgd": {
        "ada_upgd_noise_scale": (0.01, 0.3),
        "ada_upgd_decay_rate": (0.5, 0.9),
    },
    "pgd": {"pgd_noise_scale": (0.1, 1.0)},
    "upgd": {"upgd_noise_scale": (0.1, 1.0), "upgd_decay_rate": (0.5, 0.9)},
    "redo": {"redo_threshold": (0.3, 0.7), "redo_every": (5, 7)},
    "self_normalized_resets": {"snr_lowest_threshold": (1, 3)},
    "regrama": {"regrama_threshold": (0.3, 0.7), "regrama_every": (5, 7)},
    "cpr": {"cpr_rate": (0.2, 0.5), "cpr_sharpness": (1.0, 8.0), "cpr_every": (5, 7)},
    "selective_weight_reinitialization": {"swr_fraction": (0.2, 0.5)},
    "shrink_and_perturb_events": {"shrink": (0.3, 0.6), "perturb": (0.1, 0.5)},
    "l2_er": {"er_step_size": (0.01, 0.1), "er_every": (3, 7)},
    "feature_norm": {"feature_norm_strength": (0.1, 0.3)},
    "c_chain": {"chain_share": (0.5, 2.0), "chain_decay": (0.5, 0.9)},
    "infer": {"infer_strength": (0.1, 0.3), "infer_scale": (2.0, 5.0)},
    "parseval": {"parseval_strength": (1e-4, 5e-4)},
    "adamo": {"isometry_strength": (0.01, 0.1)},
    "wasserstein_init": {"wasserstein_strength": (1.0, 10.0)},
    "l1_init": {"l1_init_strength": (1e-3, 1e-2)},
    "dash": {"dash_lowest": (0.1, 0.4), "dash_smoothing": (0.1, 0.4)},
    "hare_and_tortoise": {"hare_decay": (0.5, 0.9), "hare_every": (3, 7)},
}
FIXED = {
    "dash": {"step_size": 0.01},
    "self_normalized_resets": {"snr_first_threshold": 2},
    "selective_weight_reinitialization": {"swr_every": 7},
}
# Normalizations, optimizers and activations, which go with any method.
FIELDS = {
    "online": (
        {"normalization": "online"},
        {"online_norm_forward_decay": (0.8, 0.9)},
    ),
    "adamw": ({"optimizer": "adamw"}, {"decoupled_decay": (0.1, 1.0)}),
    "rmsprop": ({"optimizer": "rmsprop"}, {"rms_decay": (0.5, 0.9)}),
    "muon": ({"optimizer": "muon", "step_size": 0.01}, {"muon_momentum": (0.5, 0.9)}),
    "aid": ({"activation": "aid"}, {"aid_p": (0.7, 0.9)}),
    "smooth_leaky": (
        {"activation": "smooth_leaky"},
        {"smooth_leaky_slope": (0.1, 0.5), "smooth_leaky_sharpness": (1.0, 2.0)},
    ),
    "randomized_smooth_leaky": (
        {"activation": "randomized_smooth_leaky"},
        {"smooth_leaky_low": (0.0, 0.1), "smooth_leaky_high": (0.3, 0.6)},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SWEEPS, *FIELDS])
def test_every_lane_equals_its_solo_run(name):
    case = {"method": name, "sweep": SWEEPS.get(name)} | FIXED.get(name, {})
    if name in FIELDS:
        fields, sweep = FIELDS[name]
        case = {"method": "backprop", **fields, "sweep": sweep}
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
