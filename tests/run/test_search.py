"""Searches: where their trials are, and that each is a run like any other."""

import json

import numpy as np
import pytest
from tiny_runs import tiny_digits
import xarray as xr

from configs import methods as method_configs
from experiments import permuted_mnist
from experiments.learning.checks import ConfigError
from experiments.learning.hyperparameters import (
    FINITE,
    HYPERPARAMETERS,
    Hyperparameter,
)
from experiments.learning.methods import METHODS
from experiments.reporting import run_results, scales
from experiments.run import folder, provenance, runner
from experiments.run.config import (
    check_has_effect,
    complete,
    make_cases,
    make_grid,
    searched_ranges,
)
from experiments.run.hooks import TaskResult, scalars
from experiments.run.search import draw_trials

STEPS = ("log", (1e-3, 1e-1))
RATES = ("log", (1e-6, 1e-2))


def search_config(num_trials=4, **fields):
    """A config whose cases search their step size, and one its replacement rate."""
    config = tiny_digits(num_trials=num_trials, **fields)
    config.search.step_size = (1e-3, 1e-1)
    config.search.replacement_rate = (1e-6, 1e-2)
    return complete(config)


def test_points_are_the_same_in_each_process_and_version():
    trials = draw_trials({"step_size": STEPS, "replacement_rate": RATES}, 3)
    np.testing.assert_array_equal(trials["step_size"], [0.006605, 0.02799, 0.0573])
    assert trials["step_size"].dtype == np.float64
    assert draw_trials({"step_size": STEPS}, 1)["step_size"] == [0.006605]


def test_more_trials_begin_with_the_same_points():
    ranges = {"step_size": STEPS, "replacement_rate": RATES}
    longest = draw_trials(ranges, 33)
    for number in (1, 2, 5, 16, 32):
        for name, values in draw_trials(ranges, number).items():
            np.testing.assert_array_equal(values, longest[name][:number])


def test_methods_share_the_places_of_their_step_sizes():
    alone = draw_trials({"step_size": ("log", (1e-4, 1e-2))}, 16)["step_size"]
    other = draw_trials({"step_size": STEPS, "replacement_rate": RATES}, 16)
    np.testing.assert_allclose(10 * alone, other["step_size"], rtol=1e-3)


@pytest.mark.parametrize(
    ("scale", "ends", "line"),
    [
        ("log", (1e-5, 1e-1), np.log),
        ("linear", (-1.0, 3.0), lambda values: values),
        ("log_complement", (0.9, 0.9999), lambda values: -np.log(1 - values)),
    ],
)
def test_trials_fill_a_range_evenly_on_its_scale(scale, ends, line):
    """Of 16 trials one is in each sixteenth, as of the points of Sobol."""
    values = draw_trials({"step_size": (scale, ends)}, 16)["step_size"]
    low, high = line(np.array(ends))
    places = (line(values) - low) / (high - low)
    assert sorted(np.floor(places * 16)) == list(range(16))
    for value, place in zip(values, places, strict=True):
        assert scales.place_in(scale, ends, value) == pytest.approx(place, abs=1e-9)


def test_two_dimensions_are_filled_together():
    values = draw_trials({"a": ("linear", (0, 1)), "b": ("linear", (0, 1))}, 16)
    cells = {(int(4 * a), int(4 * b)) for a, b in zip(*values.values(), strict=True)}
    assert len(cells) == 16


def test_a_choice_takes_each_of_its_values_equally_often():
    values = draw_trials({"redo_every": ("choice", (10, 30, 100, 300))}, 8)
    found, counts = np.unique(values["redo_every"], return_counts=True)
    assert (list(found), list(counts)) == ([10, 30, 100, 300], [2] * 4)


def test_values_have_four_digits_and_stay_in_the_range():
    ends = (0.00123456, 0.00123654)
    values = scales.values_at("log", ends, np.linspace(0, 0.9999, 50))
    assert ends[0] <= values.min() and values.max() <= ends[1]
    # Those of a decay are digits of its distance from 1.
    (value,) = scales.values_at("log_complement", (0.9, 0.9999), np.array([0.98765]))
    assert value == pytest.approx(1 - 1.089e-4, abs=1e-12)


def test_trials_of_a_case_are_lanes_that_belong_together():
    cases = make_cases(search_config(num_seeds=2))
    grid = make_grid(cases["continual_backprop"])
    assert grid.shape == (4, 2)
    assert list(grid.coordinates) == ["trial", "seed"]
    trials = draw_trials({"step_size": STEPS, "replacement_rate": RATES}, 4)
    for name, values in trials.items():
        np.testing.assert_array_equal(grid.trials[name], values)
        lanes = grid.lanes.hyperparameters[name]
        np.testing.assert_array_equal(lanes, np.repeat(values, 2).astype(np.float32))
    np.testing.assert_array_equal(grid.lanes.seed, [0, 1] * 4)
    # The other case has no replacement rate to search.
    assert list(make_grid(cases["backprop"]).trials) == ["step_size"]


def test_each_trial_is_run_at_each_value_of_a_sweep():
    config = search_config(num_seeds=1, num_trials=2)
    config.sweep.momentum = (0.0, 0.5, 0.9)
    grid = make_grid(make_cases(config)["continual_backprop"])
    assert list(grid.coordinates) == ["momentum", "trial", "seed"]
    lanes = grid.lanes.hyperparameters
    np.testing.assert_allclose(lanes["momentum"], np.repeat([0, 0.5, 0.9], 2))
    np.testing.assert_allclose(lanes["step_size"], [0.006605, 0.02799] * 3)


def test_a_case_has_its_own_range_or_number_or_no_search():
    config = search_config()
    config.cases.backprop.search = {"step_size": (0.1, 0.2)}
    config.cases.backprop.num_trials = 7
    config.cases.continual_backprop.search = {"step_size": ()}
    cases = make_cases(config)
    own = make_grid(cases["backprop"]).trials["step_size"]
    assert len(own) == 7 and 0.1 <= own.min() <= own.max() <= 0.2
    assert list(make_grid(cases["continual_backprop"]).trials) == ["replacement_rate"]
    assert searched_ranges(cases["backprop"]) == {"step_size": ("log", (0.1, 0.2))}


def test_without_a_search_there_is_no_trace_of_one():
    config = tiny_digits()
    case = make_cases(config)["backprop"]
    assert not searched_ranges(case) and not make_grid(case).trials
    assert not run_results.search_attribute({"backprop": {}})
    # A run of a version without searches goes on.
    old = json.loads(provenance.to_json(config))
    del old["search"], old["num_trials"]
    assert not provenance.config_differences(
        json.dumps(old), provenance.to_json(config)
    )


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"step_size": (0.1, 0.1)}, r"is \(0\.1, 0\.1\), but its first value must be"),
        ({"step_size": (0.2, 0.1)}, "first value must be lower than its second"),
        ({"step_size": (-0.1, 0.1)}, r"search\.step_size must be in \[0, inf\)"),
        ({"step_size": (0.0, 0.1)}, "does not fit on the scale 'log'"),
        ({"step_size": (0.1, 0.2, 0.3)}, r"is no range: write \(LOW, HIGH\)"),
        ({"step_size": 0.1}, r"is 0\.1, which is no range"),
        ({"step_size": ("a", 0.1)}, "must be a number"),
        ({"replacement_rate": (0.1, 1.5)}, r"must be in \[0, 1\], got 1\.5"),
        ({"stepsize": (0.1, 0.2)}, "'stepsize', .*did you mean 'step_size'"),
        ({"hidden_units": (1, 9)}, "'hidden_units', which changes the compiled pro"),
        ({"redo_threshold": (0.1, 0.2)}, r"search\.redo_threshold has no effect"),
    ],
)
def test_what_cannot_be_searched_is_an_error(search, message):
    config = tiny_digits(search=search)
    with pytest.raises(ConfigError, match=message):
        make_cases(config)


def test_a_wrong_range_of_a_case_names_the_case():
    config = search_config()
    config.cases.backprop.search = {"step_size": (0.2, 0.1)}
    with pytest.raises(ConfigError, match=r"config\.cases\.backprop\.search\.step_siz"):
        make_cases(config)
    config.cases.backprop.search = {"redo_threshold": (0.1, 0.2)}
    with pytest.raises(ConfigError, match=r"backprop\.search contains 'redo_threshol"):
        make_cases(config)


def test_a_field_is_swept_or_searched_or_set():
    config = search_config()
    config.sweep.step_size = (0.1, 0.2)
    with pytest.raises(ConfigError, match=r"search\.step_size has .* also sweeps"):
        make_cases(config)
    config = search_config(cases={"own": {"method": "backprop", "step_size": 0.5}})
    with pytest.raises(ConfigError, match=r"own\.step_size has no .*search\.step_size"):
        make_cases(config)


@pytest.mark.parametrize("number", [0, -1, 10**9])
def test_the_number_of_trials_is_in_range(number):
    with pytest.raises(ConfigError, match=r"num_trials must be from 1 to"):
        make_cases(search_config(num_trials=number))


def test_trials_that_would_be_alike_are_an_error():
    choice = {"redo_every": (10, 20)}
    config = tiny_digits(cases={"redo": {"method": "redo", "search": choice}})
    config.num_trials = 4
    with pytest.raises(ConfigError, match="only 2 different points: lower config.num"):
        make_cases(config)
    config.num_trials = 2
    grid = make_grid(make_cases(config)["redo"])
    assert sorted(grid.trials["redo_every"]) == [10, 20]


def test_flags_that_a_search_makes_pointless_are_errors():
    config = search_config()
    with pytest.raises(ConfigError, match=r"searched: set --config\.search\.step_size"):
        check_has_effect(config, "step_size")
    with pytest.raises(ConfigError, match=r"backprop\.step_size has no effect"):
        check_has_effect(config, "step_size", "backprop")
    check_has_effect(config, "num_trials")
    check_has_effect(config, "momentum")
    with pytest.raises(ConfigError, match="num_trials has no effect, because nothing"):
        check_has_effect(tiny_digits(), "num_trials")


def test_the_usual_range_is_declared_or_that_of_the_values_to_try():
    def usual(**fields):
        return Hyperparameter(0.5, FINITE, None, "", **fields).usual_search

    assert usual() == ()
    assert usual(values=(0.1, 0.3, 0.2)) == (0.1, 0.3)
    assert usual(values=(0.1, 0.3), search=(0.01, 1.0)) == (0.01, 1.0)
    assert usual(values=(3, 1, 2), scale="choice") == (3, 1, 2)
    # 0 is not on the scale.
    assert usual(values=(0.0, 0.3)) == ()
    for fields, message in (
        ({"scale": "logarithmic"}, "choose one of"),
        ({"search": (0.1, -0.2)}, "must be in"),
        ({"search": (1, 1), "scale": "choice"}, "contains a value twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            Hyperparameter(0.5, FINITE, None, "", **fields).check("one")


def test_each_method_searches_its_step_size_and_what_it_declares():
    given = method_configs.paper_methods(adam_step_size=0.1)
    given |= method_configs.newer_methods(adam_step_size=0.1)
    cases = method_configs.with_search(
        given, step_sizes=(1e-3, 0.1), adam_step_sizes=(1e-5, 1e-2)
    )
    for name, case in cases.items():
        own = METHODS[case["method"]]
        is_sgd = case.get("optimizer", "sgd") == "sgd" and not own.steps_like_adam
        ends = (1e-3, 0.1) if is_sgd else (1e-5, 1e-2)
        assert case["search"]["step_size"] == ends, name
        tried = {f for f, one in own.hyperparameters.items() if one.values}
        assert tried <= case["search"].keys(), name
        # The published setting is inside of what is searched.
        for field, ends in case["search"].items():
            default = case.get(field, HYPERPARAMETERS[field].default)
            if default and field != "step_size":
                assert min(ends) <= default <= max(ends), (name, field)
    assert cases["shrink_and_perturb"]["search"].keys() == {
        *("step_size", "weight_decay", "noise_scale")
    }
    assert cases["adam_equal_betas"]["search"].keys() == {"step_size"}


def test_hooks_name_a_trial_by_its_values():
    result = TaskResult(
        *("redo", 0),
        {"trial": np.arange(2), "seed": np.arange(3)},
        ("head",),
        {"loss": np.arange(6.0).reshape(2, 3)},
        {"step_size": np.array([0.1, 0.2]), "redo_every": np.array([10, 20])},
    )
    assert dict(scalars(result)) == {
        "redo, step_size 0.1, redo_every 10": {"loss": 1.0},
        "redo, step_size 0.2, redo_every 20": {"loss": 4.0},
    }


ONLY_CONTINUAL = {"continual_backprop": {"method": "continual_backprop"}}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search of two trials, and its folder."""
    place = tmp_path_factory.mktemp("search") / "run"
    config = search_config(
        num_trials=2,
        cases=ONLY_CONTINUAL,
        maturity_threshold=5,
        rank_every=0,
        replacement_log=20,
        lanes_per_block=1,
    )
    config.search.replacement_rate = (0.01, 0.5)
    return runner.run(config, place, permuted_mnist.make_problem), config, place


def test_results_name_the_points_and_ranges(searched):
    dataset, _, place = searched
    assert dataset.accuracy.dims == ("case", "point", "seed", "task")
    rates = ("log", (0.01, 0.5))
    trials = draw_trials({"step_size": STEPS, "replacement_rate": rates}, 2)
    found = xr.load_dataset(place / "results.nc")
    for name, values in trials.items():
        np.testing.assert_array_equal(
            found[name].sel(case="continual_backprop"), values
        )
    assert run_results.ranges_of(found) == {
        "continual_backprop": {
            "step_size": ("log", [1e-3, 1e-1]),
            "replacement_rate": ("log", [0.01, 0.5]),
        }
    }
    header, line, *_ = (place / "replacements.csv").read_text().splitlines()
    assert header.startswith("case,task,step_size,replacement_rate,seed,")
    assert line.split(",")[2] in map(str, trials["step_size"])


def test_a_search_of_one_point_is_a_plain_run(searched, tmp_path):
    """The same bytes; and so is each trial of a longer search."""
    dataset, config, _ = searched
    one = complete(config)
    one.num_trials = 1
    point = draw_trials(searched_ranges(one), 1)
    alone = runner.run(one, tmp_path / "search", permuted_mnist.make_problem)
    plain = complete(config)
    plain.search = {}
    plain.update({name: float(values[0]) for name, values in point.items()})
    expected = runner.run(plain, tmp_path / "plain", permuted_mnist.make_problem)
    assert expected.accuracy.dims == ("case", "seed", "task")
    for name in ("accuracy", "loss", "weight_magnitude", "units_reset"):
        values = alone[name].squeeze(["step_size", "replacement_rate"]).values
        np.testing.assert_array_equal(values, expected[name].values)
        np.testing.assert_allclose(
            dataset[name].isel(point=0).values, values, rtol=1e-5, atol=1e-6
        )
    assert expected.units_reset.max() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_trials": 3}, "num_trials: 2 -> 3"),
        ({"num_seeds": 3}, "num_seeds: 2 -> 3"),
        ({"search": {"step_size": (1e-3, 1.0)}}, r"search\.step_size: "),
    ],
)
def test_a_search_does_not_go_on_with_other_trials_or_seeds(searched, changes, message):
    _, config, place = searched
    other = complete(config)
    other.update(changes)
    with pytest.raises(folder.RunFolderError, match=message):
        runner.run(other, place, permuted_mnist.make_problem)
