"""The presets that compare methods, from their configs to a verdict."""

import numpy as np
import pytest
from tiny_runs import tiny_bits, tiny_digits, tiny_labels

from configs import imagenet, labels, methods, pmnist, scr
from experiments import changing_labels, permuted_mnist, slowly_changing_regression
from experiments.reporting import comparison
from experiments.reporting.trials import Run
from experiments.run import cases, runner
from experiments.run.config import complete, make_cases, make_grid

PROBLEMS = {
    "digits": (pmnist, "comparison", permuted_mnist.make_problem, tiny_digits),
    "regression": (
        scr,
        "comparison",
        slowly_changing_regression.make_problem,
        tiny_bits,
    ),
    "labels": (labels, "comparison", changing_labels.make_problem, tiny_labels),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_method_has_three_trials_of_its_own(name):
    presets, preset, make_problem, _ = PROBLEMS[name]
    config = complete(presets.get_config(preset))
    made = make_cases(config)
    assert set(methods.newer_methods(adam_step_size=1.0)) < set(made)
    assert set(methods.paper_methods(adam_step_size=1.0)) < set(made)
    for case in made.values():
        grid = make_grid(case)
        (swept, _) = grid.coordinates
        assert grid.shape == (3, config.num_seeds)
        # The settings of the preset `methods` are among what is tried, or near it.
        low, high = np.sort(grid.coordinates[swept])[[0, -1]]
        assert low <= case[swept] <= high or case[swept] == 0
    make_problem(made["fire"])  # Raises if its fields do not go together.


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_method_has_the_same_search_budget(name):
    presets, preset, *_ = PROBLEMS[name]
    config = presets.get_config("search")
    assert set(config.cases) == set(presets.get_config(preset).cases)
    step_sizes = {}
    for case in make_cases(config).values():
        grid = make_grid(case)
        assert grid.shape == (16, 3)
        by_range = step_sizes.setdefault(tuple(case.search.step_size), set())
        by_range.add(tuple(grid.trials["step_size"]))
    assert [len(one) for one in step_sizes.values()] == [1, 1]


def test_textures_search_every_method_in_ranges_of_their_own():
    config = imagenet.get_config("search")
    published = imagenet.get_config("methods").cases
    assert {"linear"} | set(config.cases) == set(published)
    for name, case in make_cases(config).items():
        grid = make_grid(case)
        assert grid.shape == (16, 3)
        low, high = case.search.step_size
        assert low < case.step_size < high
        if name == "upgd":  # Without momentum, so ten times as large.
            assert (low, high) == (0.03, 3.0)
        if "replacement_rate" in case.search:
            low, high = case.search.replacement_rate
            assert low < 0.01 < high


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_method_of_the_preset_can_be_run(name):
    """The cases of digits are traced, which runs everything but the compiler."""
    presets, _, make_problem, tiny = PROBLEMS[name]
    given = presets.get_config("methods")
    config = tiny(cases=given.cases.to_dict(), rank_every=0)
    if name == "regression":
        config.drift_every = 10  # Mini-batches must divide it.
        for case in make_cases(complete(config)).values():
            make_problem(case)
        return
    prepared = cases.prepare_cases(complete(config), make_problem)
    assert {case.name for case in prepared} == set(given.cases)


def test_mnist_is_tuned_on_other_seeds_than_it_is_judged_on():
    tuning, judging = (
        pmnist.get_config(preset)
        for preset in ("comparison_mnist_tuning", "comparison_mnist")
    )
    assert set(tuning.cases) == set(judging.cases)
    assert tuning.first_seed + tuning.num_seeds <= judging.first_seed
    assert tuning.num_tasks < judging.num_tasks == 100
    for config in (tuning, judging):
        assert (config.hidden_layers, config.hidden_units) == (3, 100)
        assert config.examples_per_task == 60_000


def test_the_papers_methods_have_eight_trials_on_mnist():
    config = complete(pmnist.get_config("search_mnist"))
    assert set(config.cases) == set(pmnist.get_config("comparison_mnist").cases)
    assert (config.num_tasks, config.examples_per_task) == (10, 60_000)
    for case in make_cases(config).values():
        grid = make_grid(case)
        assert grid.shape == (8, 2)
        low, high = case.search.step_size
        assert low < case.step_size < high


@pytest.mark.slow
def test_a_run_of_the_preset_leads_to_a_verdict(tmp_path):
    presets, preset, make_problem, tiny = PROBLEMS["digits"]
    given = presets.get_config(preset).cases
    kept = {method: given[method].to_dict() for method in ("backprop", "l2")}
    kept["l2"]["sweep"] = {"weight_decay": (1e-4, 10.0, 1e-3)}
    config = tiny(cases=kept, num_seeds=4, num_tasks=3, rank_every=0)
    run = Run("digits", runner.run(config, tmp_path / "run", make_problem))
    compared = comparison.compare([run], [], 2, "backprop", 0)
    assert compared.tuning_seeds == [0, 1]
    chosen = {choice.method: choice.trial.setting for choice in compared.choices}
    assert chosen["l2"]["weight_decay"] < 1  # All that 10 leaves of a network is 0.
    assert chosen["backprop"].keys() == {"step_size"}
    for verdicts in compared.verdicts.values():
        assert {(one.method, one.num_seeds) for one in verdicts} == {
            ("backprop", 2),
            ("l2", 2),
        }
