import csv
import json
import operator
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import one_lane, tiny_digits

from experiments import permuted_mnist
from experiments.learning import replacement_log
from experiments.learning.replacement_log import empty_log
from experiments.reporting import (
    comparison,
    files,
    plots,
    run_results,
    survival,
    tables,
    trials,
)
from experiments.run import runner
from experiments.run.logs import LogFile

ONLY_CONTINUAL = {"continual_backprop": {"method": "continual_backprop"}}


def log_config(**overrides):
    fields = {
        "cases": ONLY_CONTINUAL,
        "method": "continual_backprop",
        "hidden_layers": 2,
        "replacement_rate": 0.03,
        "maturity_threshold": 5,
    }
    return tiny_digits(**(fields | overrides))


@pytest.fixture(scope="module")
def stepped():
    """Forty steps of one learner: log after the last, states before and after each."""
    config = log_config(replacement_log=100)
    learner = permuted_mnist.make_problem(config).learner
    hyperparameters, key = one_lane(config)
    state = learner.init(hyperparameters, key)
    images = jax.random.uniform(key, (40, 1, 64))

    def step(state, image):
        before = state.optimizer_state
        state, _, _ = learner.step(hyperparameters, state, image, jnp.zeros(1, int))
        return state, (before, state.optimizer_state)

    state, states = jax.jit(lambda state: jax.lax.scan(step, state, images))(state)
    return state.log, *states


def test_the_log_holds_every_replacement_with_its_age_and_utility(stepped):
    log, before, after = stepped
    expected = []
    for step in range(40):
        for layer, name in enumerate(("dense_0", "dense_1")):
            for unit in np.asarray(after.replaced[name][step]):
                if unit < 5:
                    age = int(before.units[name].age[step, unit])
                    utility = float(before.units[name].utility[step, unit])
                    expected.append(
                        (step, layer, unit, age + 1, utility / (1 - 0.99**age))
                    )
    assert len(expected) >= 6
    assert log.count == len(expected)
    fields = (log.step, log.layer, log.unit, log.age, log.utility)
    np.testing.assert_allclose(
        np.array([np.asarray(field)[: log.count] for field in fields]).T,
        np.array(expected),
        rtol=1e-4,
        atol=1e-7,
    )


def test_a_full_log_keeps_the_first_events_and_counts_the_rest(stepped):
    full, before, after = stepped
    log, hyperparameters = empty_log(2), SimpleNamespace(decay_rate=0.99)
    for step in range(40):
        at_step = operator.itemgetter(step)
        states = (jax.tree.map(at_step, states) for states in (before, after))
        log = replacement_log.record(
            log, ("dense_0", "dense_1"), hyperparameters, *states
        )
    assert log.count == full.count
    for field in ("step", "layer", "unit", "age"):
        np.testing.assert_array_equal(getattr(log, field), getattr(full, field)[:2])


@pytest.mark.slow
def test_a_run_writes_its_log_and_draws_survival(tmp_path, capsys):
    config = log_config(num_tasks=3, replacement_log=50)
    dataset = runner.run(config, tmp_path, permuted_mnist.make_problem)
    with (tmp_path / "replacements.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("case", "task", "seed", "step", "layer", "unit", "age", "utility")
    ]
    # 0.03 x 4 or 5 eligible units x 115 steps, for each of 2 seeds and 2 layers.
    assert 4 * 11 < len(rows) < 4 * 18
    assert {row["seed"] for row in rows} == {"0", "1"}
    assert {row["layer"] for row in rows} == {"dense_0", "dense_1"}
    assert all(5 < int(row["age"]) <= 120 for row in rows)
    paths = plots.draw_run(dataset, tmp_path)
    names = (files.LEARNING_FIGURE, files.SURVIVAL_FIGURE)
    assert paths == [tmp_path / "figures" / name for name in names]
    assert set(names) <= set(files.FIGURE_FILES)

    lives = survival.read_lives(tmp_path / "replacements.csv", dataset)
    for deaths, alive in lives.values():
        assert alive.size == 2 * 5
        # The lives of all units together fill the run: 2 seeds x 5 units x 120 steps.
        assert deaths.sum() + alive.sum() == 2 * 5 * 120


@pytest.mark.slow
def test_cases_that_sweep_different_numbers_share_a_log_and_are_compared(tmp_path):
    """Backprop takes no replacement rate, so it is trained once."""
    config = log_config(num_tasks=1, replacement_log=50, hidden_layers=1)
    config.cases.backprop = {"method": "backprop"}
    config.cases.random = {
        "method": "random_replacement",
        "sweep": {"step_size": (0.1,)},
    }
    config.sweep.replacement_rate = (0.1, 0.2, 0.3)
    dataset = runner.run(config, tmp_path, permuted_mnist.make_problem)
    points = [labels for labels, _ in run_results.settings_of(dataset)]
    assert [len(point) for point in points] == [1, 2, 2, 2, 3, 3, 3]
    assert tables.summary_table(dataset).count("\n") == 1 + 7

    with (tmp_path / "replacements.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        is_random = row["case"] == "random"
        assert row["step_size"] == ("0.1" if is_random else "")
        assert float(row["replacement_rate"]) in (0.1, 0.2, 0.3)
        assert int(row["seed"]) in (0, 1)
    lives = survival.read_lives(tmp_path / "replacements.csv", dataset)
    assert {case for case, _ in lives} == {"continual_backprop", "random"}
    for deaths, alive in lives.values():
        # 3 rates x 2 seeds x 5 units x 40 steps.
        assert deaths.sum() + alive.sum() == 3 * 2 * 5 * 40

    choices, _ = comparison.choose_settings([trials.Run("run", dataset)], None)
    tried = {choice.method: len(choice.trials) for choice in choices}
    assert tried == {"backprop": 1, "continual_backprop": 3, "random": 3}
    assert not next(one for one in choices if one.method == "backprop").at_edge


@pytest.mark.slow
def test_events_that_do_not_fit_are_reported(tmp_path, capsys):
    config = log_config(num_tasks=1, replacement_log=1)
    runner.run(config, tmp_path, permuted_mnist.make_problem)
    assert "raise config.replacement_log" in capsys.readouterr().out
    with (tmp_path / "replacements.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


@pytest.mark.slow
def test_a_resumed_run_takes_back_what_the_checkpoint_does_not_know(tmp_path):
    config = log_config(num_tasks=3, replacement_log=50, checkpoint_every=1)
    make_problem = permuted_mnist.make_problem
    runner.run(config, tmp_path / "whole", make_problem)
    whole = (tmp_path / "whole" / "replacements.csv").read_text()

    run_task, calls = runner.CompiledCase.run_task, []

    def die(self, state, task):
        calls.append(task)
        result = run_task(self, state, task)
        if len(calls) == 2:
            log = result[2]
            LogFile(tmp_path / "killed").append(
                "continual_backprop", task, {"seed": np.arange(2)}, ("a", "b"), log
            )
            raise RuntimeError("power cut")
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.CompiledCase, "run_task", die)
        with pytest.raises(RuntimeError, match="power cut"):
            runner.run(config, tmp_path / "killed", make_problem)
    runner.run(config, tmp_path / "killed", make_problem)
    assert (tmp_path / "killed" / "replacements.csv").read_text() == whole


def test_the_share_of_newborns_and_the_median_age_are_those_of_the_log(tmp_path):
    """`slow` sweeps its maturity threshold, and `other` has none of its own."""
    rows = {
        ("slow", "0", "10"): (19, 21, 15),
        ("slow", "0", "20"): (39, 100),
        ("other", "0", ""): (59, 60, 61),
        ("other", "1", ""): (7,),
        ("slow", "2", "20"): (5,),  # Of a task that is not in the results.
    }
    log = tmp_path / files.REPLACEMENTS_FILE
    with log.open("w", newline="") as file:
        writer = csv.writer(file)
        header = ("case", "task", "maturity_threshold", "seed")
        writer.writerow([*header, "step", "layer", "unit", "age", "utility"])
        for (case, task, maturity), ages in rows.items():
            for age in ages:
                writer.writerow([case, task, maturity, 0, 1, "dense_0", 0, age, 0.5])
    cases = [
        run_results.case_dataset(
            name,
            swept | {"seed": np.array([0])},
            ("dense_0", "head"),
            {"accuracy": np.zeros((lanes, 2))},
            {"num_weights": [9, 9], "num_units": [5, 0]},
            examples_per_task=5,
            steps_per_task=5,
            steps_per_second=1.0,
            lanes_per_block=1,
        )
        for name, swept, lanes in (
            ("slow", {"maturity_threshold": np.array([10.0, 20.0])}, 2),
            ("other", {}, 1),
        )
    ]
    config = {
        "maturity_threshold": 30,
        "replacement_log": 3,
        "cases": {"slow": {}, "other": {"method": "redo"}},
    }
    dataset = run_results.join_cases(cases, {"config": json.dumps(config)})
    early, late, other = survival.read_replaced(log, dataset)
    # Newborns are below 20, below 40, and below 60.
    assert (early.case, early.newborn_share, early.median_age) == ("slow", 2 / 3, 19)
    assert (late.case, late.newborn_share, late.median_age) == ("slow", 1 / 2, 69.5)
    assert (other.case, other.newborn_share, other.median_age) == ("other", 2 / 4, 59.5)
    assert late.setting == {"maturity_threshold": "20"}
    assert (early.num_full, late.num_full, other.num_full) == (1, 0, 1)
    table = survival.replaced_table(tmp_path, dataset)
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()
    ]
    assert lines[2] == ["slow", "10", "3", "66.7", "19"]
    assert lines[4] == ["other", "", "4", "50.0", "60"]
    assert "full in 2 tasks" in table
    del config["maturity_threshold"]
    dataset.attrs["config"] = json.dumps(config)
    assert np.isnan(survival.read_replaced(log, dataset)[-1].newborn_share)
    assert survival.replaced_table(tmp_path / "nowhere", dataset) == ""


def test_survival_is_the_product_of_the_shares_that_live_on():
    """Deaths at 2, 2 and 5; one unit alive at 3, one at 7."""
    ages, share = survival.survival(np.array([2, 5, 2]), np.array([3, 7]))
    np.testing.assert_array_equal(ages, [2, 5])
    # At 2 five are at risk and two die; at 5 two are at risk and one dies.
    np.testing.assert_allclose(share, [3 / 5, 3 / 5 * 1 / 2])


@pytest.mark.slow
def test_the_log_is_off_by_default(tmp_path):
    dataset = runner.run(log_config(num_tasks=1), tmp_path, permuted_mnist.make_problem)
    assert not (tmp_path / "replacements.csv").exists()
    assert json.loads(dataset.attrs["config"])["replacement_log"] == 0
