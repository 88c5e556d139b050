"""The run that evaluates a search: its config, and the command that trains it."""

import json

import numpy as np
from programs import run_program
import pytest
from tiny_runs import tiny_digits, tiny_pairs

from experiments import permuted_mnist
from experiments.learning.checks import ConfigError
from experiments.reporting import comparison, files, run_results
from experiments.reporting.trials import Run
from experiments.run import folder as folder_module
from experiments.run import provenance, runner
from experiments.run.config import complete, make_cases, make_grid
from experiments.run.evaluation import evaluation_config, problem_of
from experiments.run.folder import CONFIG_FILE

CASES = {
    "backprop": {"method": "backprop", "hidden_units": 4},
    "redo": {
        **{"method": "redo", "step_size": 0.1},
        "search": {"redo_every": (10, 20), "step_size": (0.1, 0.3)},
    },
}
SETTINGS = {
    "backprop": {"step_size": 0.01234},
    "redo": {"step_size": 0.2, "redo_every": 20.0},
}


@pytest.fixture
def run(tmp_path):
    """A folder with the config of a search."""
    config = tiny_digits(cases=CASES, num_seeds=3, first_seed=2, num_trials=5)
    config.search.step_size = (1e-3, 1e-1)
    config.sweep.momentum = (0.0, 0.9)
    (tmp_path / CONFIG_FILE).write_text(provenance.to_json(complete(config)))
    return tmp_path


def test_it_trains_the_chosen_settings_on_the_seeds_that_follow(run):
    config = complete(evaluation_config(run, SETTINGS, 8))
    cases = make_cases(config)
    for name, setting in SETTINGS.items():
        grid = make_grid(cases[name])
        assert list(grid.coordinates) == ["seed"]
        np.testing.assert_array_equal(grid.lanes.seed, range(5, 13))
        for field, value in setting.items():
            assert cases[name][field] == value
    # All else is as in the search.
    assert (cases["backprop"].hidden_units, cases["redo"].hidden_units) == (4, 5)
    assert cases["redo"].num_tasks == 2
    assert evaluation_config(run, SETTINGS, 8, 30).num_tasks == 30


def test_a_written_config_is_read_as_it_was(tmp_path):
    """Tuples, which JSON does not have, may be static arguments."""
    given = complete(tiny_pairs())
    (tmp_path / CONFIG_FILE).write_text(provenance.to_json(given))
    config = evaluation_config(tmp_path, {"backprop": {}}, given.num_seeds)
    config = complete(config)
    config.cases, config.first_seed = given.cases, given.first_seed
    config.num_trials, config.sweep = given.num_trials, given.sweep
    assert config.to_dict() == given.to_dict()


def test_runs_of_earlier_versions_have_no_search_and_can_be_evaluated(run):
    fields = json.loads((run / CONFIG_FILE).read_text())
    del fields["search"], fields["num_trials"], fields["cases"]["redo"]["search"]
    (run / CONFIG_FILE).write_text(json.dumps(fields))
    cases = make_cases(complete(evaluation_config(run, SETTINGS, 2)))
    assert cases["redo"].redo_every == 20


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((1,), "--num_seeds is 1, but an interval needs several"),
        ((2, 0), "--num_tasks is 0: pass at least 1"),
    ],
)
def test_too_few_seeds_or_tasks_are_refused(run, numbers, message):
    with pytest.raises(ConfigError, match=message):
        evaluation_config(run, SETTINGS, *numbers)


def test_the_code_of_a_run_names_its_problem(run):
    code = provenance.current_code(permuted_mnist.make_problem)
    provenance.write_codes(run, [code])
    assert problem_of(run) == "permuted_mnist"
    provenance.write_codes(run, [provenance.unrecorded_code("0.2.0")])
    with pytest.raises(ConfigError, match="does not say which program wrote it: run"):
        problem_of(run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "RUN", "--evaluate", "--num_seeds=9"], "takes one run folder, got 2"),
        (["RUN", "--evaluate", "--tuning_run=RUN"], "1 and 1 tuning runs"),
        (["RUN", "--evaluate"], "pass --num_seeds=10"),
        (["RUN", "--num_seeds=9"], "--num_seeds is for an evaluation: add --evaluate"),
        (["RUN", "--overwrite"], "--overwrite is for an evaluation"),
    ],
)
def test_flags_that_do_not_go_together_are_named(run, arguments, message):
    arguments = [argument.replace("RUN", str(run)) for argument in arguments]
    finished = run_program("compare", *arguments)
    assert finished.returncode == 1
    assert message in finished.stdout + finished.stderr


@pytest.mark.slow
def test_one_command_evaluates_a_search_and_compares(tmp_path):
    cases = {name: {"method": name} for name in ("backprop", "redo")}
    config = tiny_digits(cases=cases, num_seeds=2, num_trials=3, rank_every=0)
    config.search.step_size = (1e-3, 0.5)
    config.search.redo_threshold = (0.01, 0.1)
    place = tmp_path / "search"
    dataset = runner.run(config, place, permuted_mnist.make_problem)
    command = ("compare", place, "--evaluate", "--num_seeds=3")
    wrong = run_program(*command, "--reference=adam")
    assert "--reference=adam was not run" in wrong.stderr
    assert not (place / files.EVALUATION_FOLDER).exists()

    finished = run_program(*command)
    assert finished.returncode == 0, finished.stderr
    evaluation = run_results.load(place / files.EVALUATION_FOLDER)
    np.testing.assert_array_equal(evaluation.seed, [2, 3, 4])
    choices, _ = comparison.choose_settings([Run("search", dataset)], None)
    fields = json.loads(evaluation.attrs["config"])["cases"]
    for choice in choices:
        chosen = {name: fields[choice.method][name] for name in choice.trial.setting}
        assert chosen == choice.trial.setting
    text = (place / files.COMPARISON_FOLDER / "comparison.md").read_text()
    assert "chosen on 2 seeds (0, 1)" in text
    assert "evaluated on 3 seeds (2 to 4)" in text
    assert "## Ranking" in text

    # Again, it trains no more; and --overwrite may delete the search with all of it.
    again = run_program(*command)
    assert text.splitlines()[0] in again.stdout
    pattern = folder_module.written_by_runs()
    for path in place.rglob("*"):
        name = path.relative_to(place).as_posix()
        assert path.is_dir() or pattern.fullmatch(name), name
    more = run_program(*command[:-1], "--num_seeds=4")
    assert more.returncode == 1
    assert "num_seeds: 3 -> 4" in more.stderr
    assert run_program(*command[:-1], "--num_seeds=4", "--overwrite").returncode == 0
    evaluation = run_results.load(place / files.EVALUATION_FOLDER)
    np.testing.assert_array_equal(evaluation.seed, [2, 3, 4, 5])
