"""What runs write to their results: smoke runs, and all methods; see `golden_numbers`.

They are of one seed and short, since rounding grows with each update, and what methods
do now and then they do soon.
"""

from golden_numbers import Golden
import jax
from op_by_op import op_by_op
import pytest
import xarray as xr

from configs import imagenet, labels, methods, pmnist, scr
from configs import warm_start as growing
from experiments import (
    changing_labels,
    continual_imagenet,
    permuted_mnist,
    slowly_changing_regression,
    warm_start,
)
from experiments.run import runner
from experiments.run.config import complete

RUNS = Golden("runs", __file__)

SOON = {
    **{"replacement_rate": 0.1, "maturity_threshold": 3},
    **{"redo_threshold": 0.5, "redo_every": 4},
    **{"snr_rejection_rate": 0.3, "snr_first_threshold": 3, "snr_lowest_threshold": 2},
    **{"regrama_threshold": 0.5, "regrama_every": 4},
    **{"cpr_rate": 0.5, "cpr_decay_rate": 0.5, "cpr_every": 4},
    **{"swr_every": 4, "hare_every": 3, "hare_decay": 0.8, "er_every": 4},
}
# Small singular values are rounding where ranks are not found by "svd".
SHORT = {"num_seeds": 1, "first_seed": 3, "rank_method": "svd", "lanes_per_block": 1}
METHODS = (
    methods.paper_methods(adam_step_size=0.01)
    | methods.batch_methods(batch_size=3, step_size=0.1)
    | methods.newer_methods(adam_step_size=0.01)
)


def smoke(presets, **fields):
    """The smoke preset with the fields of these runs, and others."""
    config = complete(presets.get_config("smoke"))
    fields = SHORT | fields
    config.update(fields | {name: SOON[name] for name in SOON if name in config})
    return config


def all_methods():
    config = complete(pmnist.get_config("methods"))
    size = {"examples_per_task": 6, "measured_examples": 6, "num_tasks": 2}
    network = {"hidden_layers": 1, "hidden_units": 5}
    config.update(SHORT | size | network | SOON)
    config.cases = METHODS
    return config


BITS = {"examples_per_task": 12, "measured_examples": 12, "drift_every": 6}
BATCHES = {"examples_per_task": 12, "measured_examples": 12, "batch_size": 3}
RUN_OF = {
    "permuted_mnist": (
        permuted_mnist,
        lambda: smoke(pmnist, examples_per_task=12, measured_examples=12),
    ),
    "slowly_changing_regression": (
        slowly_changing_regression,
        lambda: smoke(scr, **BITS),
    ),
    "continual_imagenet": (
        continual_imagenet,
        lambda: smoke(imagenet, num_epochs=2, test_every_epoch=True),
    ),
    "changing_labels": (
        changing_labels,
        lambda: smoke(labels, examples_per_task=12, measured_examples=12),
    ),
    "warm_start": (warm_start, lambda: smoke(growing, **BATCHES)),
    "methods": (permuted_mnist, all_methods),
}
CASES = [
    (name, case)
    for name, (_, make_config) in RUN_OF.items()
    for case in make_config().cases
]


@pytest.fixture(scope="module")
def results_of(tmp_path_factory):
    """Runs a config when it is first asked for."""
    done = {}

    def run(name):
        if name not in done:
            done[name] = None
            program, make_config = RUN_OF[name]
            folder = tmp_path_factory.mktemp("golden") / "run"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(jax, "jit", lambda function, **_: op_by_op(function))
                runner.run(make_config(), folder, program.make_problem)
            done[name] = xr.load_dataset(folder / "results.nc")
        assert done[name] is not None, "The run has failed in the first of its tests."
        return done[name]

    return run


def quick_or_slow(name, case):
    marks = () if name == "permuted_mnist" else pytest.mark.slow
    return pytest.param(name, case, marks=marks)


@pytest.mark.parametrize(("name", "case"), [quick_or_slow(*case) for case in CASES])
def test_the_results_of_a_case(name, case, results_of):
    results = results_of(name).sel(case=case, seed=SHORT["first_seed"])
    measured = {
        f"{variable} in task {task}": array.sel(task=task).values
        for variable, array in results.data_vars.items()
        for task in results.task.values
        if "task" in array.dims
    }
    RUNS.check(f"{name}: {case}", measured)


def test_each_entry_is_checked():
    RUNS.check_names([f"{name}: {case}" for name, case in CASES])
