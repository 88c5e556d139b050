"""What the smoke runs of all problems write to their results, see `golden_numbers`.

They are shortened, because rounding grows with each update, and units are replaced from
the first updates on.
"""

from golden_numbers import Golden
import jax
import pytest
import xarray as xr

from configs import imagenet, pmnist, scr
from experiments import continual_imagenet, permuted_mnist, slowly_changing_regression
from experiments.run import runner

RUNS = Golden("runs", __file__)

SHORT = {"examples_per_task": 40, "measured_examples": 40}
SOON = {"replacement_rate": 0.05, "maturity_threshold": 5}
PROBLEMS = {
    "permuted_mnist": (permuted_mnist, pmnist, SHORT | SOON),
    "slowly_changing_regression": (
        slowly_changing_regression,
        scr,
        SHORT | SOON | {"drift_every": 10},
    ),
    "continual_imagenet": (
        continual_imagenet,
        imagenet,
        {"replacement_rate": 0.2, "maturity_threshold": 1, "test_every_epoch": True},
    ),
}


@pytest.fixture(autouse=True)
def _compile_fast():
    """Optimized programs round a little otherwise, and take twice the time to make."""
    option = "jax_disable_most_optimizations"
    before = jax.config.read(option)
    jax.config.update(option, True)
    yield
    jax.config.update(option, before)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_results_of_a_smoke_run(problem, tmp_path):
    program, presets, fields = PROBLEMS[problem]
    config = presets.get_config("smoke")
    config.update(fields | {"lanes_per_block": 1})
    runner.run(config, tmp_path / "run", program.make_problem)
    with xr.open_dataset(tmp_path / "run" / "results.nc") as results:
        for case in results.case.values:
            of_case = results.sel(case=case).drop_vars("case")
            found = {
                name: array.transpose("seed", ...).values
                for name, array in of_case.data_vars.items()
                if not name.startswith(("steps_per_second", "lanes_per_block"))
            }
            RUNS.check(f"{problem}, {case}", found)
