"""Methods beside each other: what is planted is found."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_runs import tiny_bits, tiny_digits, tiny_pairs

from experiments import permuted_mnist, slowly_changing_regression
from experiments.learning.checks import ConfigError
from experiments.run import machine as memory
from experiments.run.config import complete, make_cases
from experiments.timing import groups, sessions
from experiments.timing.groups import Group, Plan, Timed
from experiments.timing.machine import Machine
from experiments.timing.programs import Cost
from experiments.timing.rounds import Deadline
from experiments.timing.short_tasks import shorten
from experiments.timing.table import CsvFile, rows

PLAN = Plan("backprop", steps=20, rounds=3, sample_seconds=0.0)
WHERE = {"device": "", "jax": ""}


def slow_digits():
    """Beside backprop with 5 units a method of more than 10,000 times the work."""
    config = tiny_digits()
    config.cases = {
        "backprop": {"method": "backprop"},
        "slow": {
            "method": "backprop",
            "hidden_layers": 2,
            "hidden_units": 1500,
            "batch_size": 20,
        },
    }
    return config


@pytest.fixture(scope="module")
def machine():
    return Machine(stream_megabytes=1, matrix_size=64)


@pytest.fixture(scope="module")
def slow_group(machine):
    return groups.time_group(
        slow_digits(),
        permuted_mnist.make_problem,
        PLAN,
        machine,
        Deadline(),
        costs={},
    )


def test_a_planted_slow_method_shows_as_slow(slow_group):
    found = rows(slow_group, problem="", network="", reference="backprop", where=WHERE)
    by_name = {row["method"]: row for row in found}
    assert found[-1]["method"] == "slow"
    assert by_name["slow"]["ratio_to_reference"] > 10
    assert by_name["slow"]["ratio_to_floor"] > 10
    assert by_name["backprop"]["ratio_to_reference"] == 1
    assert by_name["slow"]["operations"] > 1000 * by_name["backprop"]["operations"]
    assert by_name["slow"]["weight_bytes"] > 200 * by_name["backprop"]["weight_bytes"]
    assert by_name["slow"]["memory_bytes"] > by_name["backprop"]["memory_bytes"]


def test_all_of_a_group_take_part_in_all_rounds(slow_group):
    assert set(slow_group.timed) == {"backprop", "slow", "floor"}
    for one in slow_group.timed.values():
        assert one.status == "ok"
        assert one.seconds.shape == (3,)
        assert (one.seconds > 0).all()
        assert one.lanes == 2
        assert one.compile_seconds > 0
    assert (slow_group.stream_rate > 0).all()
    assert (slow_group.product_rate > 0).all()


def test_an_update_is_counted_once_for_all_numbers_of_lanes(monkeypatch):
    counted = []
    monkeypatch.setattr(groups.programs, "update_cost", counted.append)
    known = {}
    for steps, lanes, units in ((5, 2, 5), (9, 3, 5), (9, 3, 4)):
        config = shorten(tiny_digits(num_seeds=lanes, hidden_units=units), steps)
        case = make_cases(complete(config))["backprop"]
        groups._cost("m", SimpleNamespace(config=case), known)
    assert len(counted) == len(known) == 2


def test_shares_of_data_and_measures_follow_from_their_times():
    """10 lanes x 5 updates in 2 s, of which 1.5 s are updates; measures take 1 s.

    In a run a task has 20 updates: 8 s for all lanes, and the 1 s.
    """
    program = SimpleNamespace(lane_steps=50, compile_seconds=7.0, memory_bytes=9)
    updates = SimpleNamespace(lane_steps=100)
    case = SimpleNamespace(
        num_lanes=10, config=SimpleNamespace(lanes_per_block=2), problem=None
    )
    whole = SimpleNamespace(problem=SimpleNamespace(updates_per_task=20))
    timed = groups._timed(
        "m",
        case,
        {"m": whole},
        {"m": program, "updates alone: m": updates, "measures: m": None},
        {
            "m": np.full(3, 2.0),
            "updates alone: m": np.full(3, 3.0),
            "measures: m": np.full(3, 1.0),
        },
        Cost(1, 2),
        weight_bytes=3,
    )
    np.testing.assert_allclose(timed.seconds, 0.04)
    assert timed.data_share == pytest.approx(0.25)
    assert timed.measures_share == pytest.approx(1 / 9)
    assert (timed.compile_seconds, timed.memory_bytes, timed.block) == (7.0, 9, 2)


def test_parts_are_timed_where_a_plan_asks(machine):
    config = tiny_bits(num_seeds=2)
    name = "backprop_relu"
    config.cases = {name: config.cases[name].to_dict()}
    plan = PLAN._replace(reference=name, parts=("data", "measures"), rounds=1)
    group = groups.time_group(
        config,
        slowly_changing_regression.make_problem,
        plan,
        machine,
        Deadline(),
        costs={},
    )
    timed = group.timed[name]
    assert 0 < timed.measures_share < 1
    assert timed.data_share < 1


def test_what_does_not_fit_is_left_out_and_says_so():
    def fail(error):
        raise error

    exhausted = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore")
    built, failed = groups._build(
        {
            "first": lambda: fail(MemoryError("needs 9 bytes")),
            "good": lambda: lambda: None,
            "second": lambda: lambda: fail(exhausted),
        }
    )
    assert set(built) == {"good"}
    assert failed == {
        "first": "out of memory: needs 9 bytes",
        "second": "out of memory: RESOURCE_EXHAUSTED: 9 GB",
    }
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        groups._build({"bad": lambda: fail(jax.errors.JaxRuntimeError("INTERNAL"))})


def group_of(name, lanes=2, **overrides):
    config = tiny_digits(num_seeds=lanes, **overrides)
    return SimpleNamespace(
        problem="digits", network=name, steps=20, parts=(), config=config
    )


def session(chosen, deadline, csv_file):
    return sessions.time_groups(
        chosen, lambda name: permuted_mnist.make_problem, PLAN, None, deadline, csv_file
    )


def test_groups_are_chosen_by_a_part_of_their_names():
    groups = [group_of("1 x 5"), group_of("1 x 5", lanes=3), group_of("2 x 5")]
    assert sessions.choose(groups, "") == groups
    assert sessions.choose(groups, "1 x 5") == groups[:2]
    assert sessions.choose(groups, "digits, 1 x 5, 3 lanes") == groups[1:2]
    with pytest.raises(ConfigError, match="'3 x 5'.*digits, 2 x 5, 2 lanes"):
        sessions.choose(groups, "3 x 5")


def test_lanes_that_cannot_fit_are_a_row_and_the_next_group_begins(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(memory, "device_limit", lambda: 1000)
    csv_file = CsvFile(tmp_path / "found.csv")
    chosen = [group_of("first"), group_of("second")]
    for new in session(chosen, Deadline(), csv_file):
        assert len(new) == 2
        for row in new:
            assert row["status"].startswith("out of memory: Case")
    assert len(csv_file.path.read_text().splitlines()) == 5


def test_rows_are_written_before_the_next_group_and_no_group_without_time(
    tmp_path, monkeypatch
):
    """Groups take 100 s, as a clock says that only they move; there are 250 s."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    csv_file = CsvFile(tmp_path / "found.csv")
    slices = []

    def time_group(config, make_problem, plan, machine, deadline, costs):
        slices.append(deadline.seconds_left)
        now[0] += 100
        timed = {"backprop": Timed("ok", config.num_seeds, 1, np.ones(1))}
        return Group(timed, np.ones(1), np.ones(1))

    monkeypatch.setattr(sessions, "time_group", time_group)
    chosen = [group_of(name) for name in ("a", "a", "b", "a")]
    lengths, statuses = [], []
    for new in session(chosen, Deadline(250), csv_file):
        lengths.append(len(csv_file.path.read_text().splitlines()))
        statuses.append({row["status"] for row in new})
    assert statuses == [{"ok"}, {"ok"}, {"no time left"}, {"no time left"}]
    assert lengths == [2, 3, 5, 7]
    # Twice an equal part of what is left.
    assert slices == [pytest.approx(2 * 250 / 4), pytest.approx(2 * 150 / 3)]


def test_a_task_of_epochs_is_shortened_to_whole_epochs():
    """Forty images a class make an epoch of 8 updates; 20 updates are 2.5 epochs."""
    config = tiny_pairs(train_per_class=40, batch_size=10)
    config.cases.linear.batch_size = 40
    cases = shorten(config, 20).cases
    assert (cases.backprop.num_epochs, cases.linear.num_epochs) == (2, 10)
    assert shorten(config, 1).cases.backprop.num_epochs == 1


def test_a_task_of_batches_is_shortened_to_so_many_and_the_config_left():
    config = tiny_digits()
    config.cases.backprop.batch_size = 4
    short = shorten(config, 20)
    assert short.cases.backprop.examples_per_task == 80
    assert short.cases.continual_backprop.examples_per_task == 20
    assert (short.measured_examples, config.measured_examples) == (2, 20)
    assert config.examples_per_task == 40
    assert math.isclose(short.step_size, config.step_size)
