"""The command that compares runs."""

from made_up_runs import level, make_run
import numpy as np
from programs import run_program
import pytest

from experiments.reporting import comparison, files, run_results
from experiments.reporting import comparison_output as tables
from experiments.reporting.trials import Run
from experiments.run import folder as folder_module

LEVELS = np.array([0.0, 0.06, 0.02, 0.05, 0.01, 0.03, 0.04, 0.02, 0.0, 0.07])
METHODS = {
    "backprop": {0.0: level(0.5 + LEVELS)},
    "l2": {0.1: level(0.6 + LEVELS * 1.1), 0.2: level(0.55 + LEVELS)},
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    run_results.save(make_run(METHODS, range(10)).dataset, folder)
    return folder


def test_it_prints_and_writes_the_comparison(run):
    finished = run_program("compare", run, "--tuning_seeds=1")
    assert (finished.returncode, finished.stderr) == (0, "")
    folder = run / files.COMPARISON_FOLDER
    names = files.COMPARISON_FILES
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    compared = comparison.compare(
        [Run("", run_results.load(run))], (), 1, "backprop", 0
    )
    assert (folder / "comparison.md").read_text() == tables.markdown(compared)
    assert (folder / "comparison.csv").read_text() == tables.verdicts_csv(compared)
    assert (folder / "trials.csv").read_text() == tables.trials_csv(compared.choices)
    printed = tables.markdown(compared).splitlines()
    printed += ["", *(str(folder / name) for name in names)]
    assert finished.stdout.splitlines() == printed
    # The folder is the run's own, so that --overwrite may delete it.
    for name in names:
        path = f"{files.COMPARISON_FOLDER}/{name}"
        assert folder_module.written_by_runs().fullmatch(path)


def test_a_tuning_run_alone_prints_the_flags_of_the_run_to_evaluate(run):
    finished = run_program("compare", f"--tuning_run={run}")
    assert finished.returncode == 0
    assert "--config.cases.l2.sweep.weight_decay='(0.1,)'" in finished.stdout
    assert not (run / files.COMPARISON_FOLDER).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Pass at least one run folder"),
        (["RUN"], "l2 has 2 settings but no seeds to choose one"),
    ],
)
def test_what_is_wrong_is_one_sentence(run, arguments, message):
    arguments = [argument.replace("RUN", str(run)) for argument in arguments]
    finished = run_program("compare", *arguments)
    assert finished.returncode == 1
    assert message in finished.stdout + finished.stderr
