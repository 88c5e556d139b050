"""The command that finds which measures foretell scores."""

from made_up_runs import make_run
import numpy as np
from programs import run_program
import pytest

from experiments.reporting import (
    files,
    foretelling,
    foretelling_output,
    run_results,
)
from experiments.reporting.trials import Run

pytestmark = pytest.mark.slow

CURVES = np.random.default_rng(0).random((2, 6, 20))
METHODS = {
    method: {0.0: curves}
    for method, curves in zip(("backprop", "l2"), CURVES, strict=True)
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    dataset = make_run(METHODS, range(6)).dataset
    run_results.save(dataset.assign(readiness=dataset.accuracy**2), folder)
    return folder


def test_it_prints_and_writes_what_foretells(run):
    finished = run_program("foretell", run)
    assert (finished.returncode, finished.stderr) == (0, "")
    folder = run / files.FORETELLING_FOLDER
    found = foretelling.foretell([Run("", run_results.load(run))])
    text = foretelling_output.markdown(found)
    assert found.of("between")["readiness"].alone.value == pytest.approx(1)
    assert (folder / "foretelling.md").read_text() == text
    assert (folder / "foretelling.csv").read_text() == foretelling_output.csv(found)
    paths = [str(folder / name) for name in files.FORETELLING_FILES]
    assert finished.stdout.splitlines() == [*text.splitlines(), "", *paths]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Pass at least one run folder"),
        (["RUN/nowhere"], "nowhere does not exist: pass the folder of a run"),
        (["RUN", "--measures=sharpness"], "'sharpness', which the runs do not have"),
    ],
)
def test_what_is_wrong_is_one_sentence(run, arguments, message):
    arguments = [argument.replace("RUN", str(run)) for argument in arguments]
    finished = run_program("foretell", *arguments)
    assert finished.returncode == 1
    assert message in finished.stdout + finished.stderr
