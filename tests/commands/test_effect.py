"""That continual backprop does what it is for."""

import numpy as np
import pytest
import xarray as xr

from configs import pmnist
from experiments import permuted_mnist
from experiments.run import runner

NUM_SEEDS = 4
# The 97.5 % quantile of Student's t with 3 degrees of freedom.
QUANTILE = 3.182


@pytest.mark.slow
def test_continual_backprop_ends_above_backprop(tmp_path):
    """The first 16 tasks of the default run with large steps, 300,000 updates of each.

    In eight seeds the difference of the last tasks was from 7 to 13 points.
    """
    config = pmnist.get_config()
    config.num_seeds, config.num_tasks, config.step_size = NUM_SEEDS, 16, 0.03
    config.rank_every, config.lanes_per_block = 0, 1
    runner.run(config, tmp_path / "run", permuted_mnist.make_problem)
    with xr.open_dataset(tmp_path / "run" / "results.nc") as results:
        accuracy = results.accuracy.sel(case=["continual_backprop", "backprop"])
        accuracy = accuracy.transpose("case", "seed", "task").values
    first, last = accuracy[..., 0], accuracy[..., -4:].mean(axis=-1)
    gains = last[0] - last[1]
    margin = QUANTILE * gains.std(ddof=1) / np.sqrt(NUM_SEEDS)
    assert gains.mean() - margin > 0.03, gains
    # Neither is better at the first task, nor has it changed for continual backprop.
    assert abs(first[0].mean() - first[1].mean()) < 0.02
    assert abs(last[0].mean() - first[0].mean()) < 0.05
