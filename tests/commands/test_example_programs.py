"""Each example replaces the units that are due, in every seed, group and layer."""

from fractions import Fraction
import functools
import importlib
import math

from flax.core import FrozenDict
import jax
import numpy as np
from programs import run_program
import pytest

from experiments.examples import side_by_side
from experiments.examples.side_by_side import Outcome

SEEDS = 2
RATE, MATURITY = 2**-5, 3
HYPERPARAMETERS = FrozenDict(replacement_rate=RATE, maturity_threshold=MATURITY)
# Steps, tasks, and the shape of each group: units, and slices of a stack.
ONE = ()
EXAMPLES = {
    "ppo": (
        128,
        8,
        {
            f"{trunk}/layers_{layer}": (64, ONE)
            for trunk in ("actor", "critic")
            for layer in (0, 2)
        },
    ),
    "transformer": (24, 8, {"mlp": (64, (2,)), "value": (32, (2,))}),
    "resnet": (
        16,
        4,
        {
            "stem": (8, ONE),
            "first_0": (8, ONE),
            "first_1": (16, ONE),
            "second_1": (16, ONE),
        },
    ),
}


@functools.cache
def train(name, hyperparameters):
    """Trains briefly; there is much to compile and little to run."""
    example = importlib.import_module(f"experiments.examples.{name}")
    run = functools.partial(
        example.train.__wrapped__,
        steps=EXAMPLES[name][0],
        hyperparameters=hyperparameters,
    )
    keys = jax.random.split(jax.random.key(0), SEEDS)
    return jax.device_get(jax.jit(run)(keys))


def number_due(num_units, steps):
    """Of one group: a budget of rate x eligible units at each update."""
    ages, budget, total = np.zeros(num_units, int), Fraction(0), 0
    for _ in range(steps):
        ages += 1
        budget += Fraction(RATE) * int((ages > MATURITY).sum())
        number = math.floor(budget)
        ages[np.argsort(-ages)[:number]] = 0
        budget, total = budget - number, total + number
    return total


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_units_are_replaced_at_the_stated_rate(name):
    steps, tasks, groups = EXAMPLES[name]
    score, num_replaced = train(name, HYPERPARAMETERS)
    assert score.shape == (SEEDS, tasks)
    assert np.isfinite(score).all() and len(set(score[:, 0])) == SEEDS
    assert num_replaced.keys() == groups.keys()
    for group, (num_units, stack) in groups.items():
        wanted = np.full((SEEDS, *stack), number_due(num_units, steps))
        np.testing.assert_array_equal(num_replaced[group], wanted, err_msg=group)
        assert wanted.min() > 1


@pytest.mark.slow
def test_both_see_the_same_stream_and_begin_alike():
    """Until the first unit matures, after the first task, they are one optimizer."""
    steps, tasks, _ = EXAMPLES["transformer"]
    assert steps // tasks <= MATURITY
    alone = train("transformer", None)
    score, num_replaced = train("transformer", HYPERPARAMETERS)
    np.testing.assert_allclose(score[:, 0], alone.score[:, 0], rtol=1e-5)
    assert num_replaced and not alone.num_replaced
    assert (score[:, -1] != alone.score[:, -1]).all()


def fake_train(keys, *, steps, hyperparameters):
    score = np.array([[0.25, 0.5, 1.0], [0.125, 0.5, 2.0]]) * (
        1 + bool(hyperparameters)
    )
    replaced = {"a": np.array([3, 4]), "b": np.array([[1, 2], [5, 6]])}
    return Outcome(score, replaced if hyperparameters else {})


def test_the_report_has_every_seed_and_layer():
    outcomes = {
        name: fake_train(None, steps=9, hyperparameters=hyperparameters)
        for name, hyperparameters in (("alone", None), ("with", HYPERPARAMETERS))
    }
    lines = side_by_side.report(outcomes, "loss").splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[2:4]] == [
        "loss, first task",
        "loss, last task",
    ]
    assert [cell.strip() for cell in lines[3].split("|")[1:4]] == [
        "with",
        "0.500 0.250",
        "2.000 4.000",
    ]
    assert lines[-2:] == ["  a: 3 4", "  b: [1 2] [5 6]"]


def test_each_round_times_all_cases_after_they_are_compiled():
    calls = []

    def train(keys, *, steps, hyperparameters):
        calls.append(hyperparameters)
        return fake_train(keys, steps=steps, hyperparameters=hyperparameters)

    cases = {side_by_side.ALONE: None, side_by_side.WITH: HYPERPARAMETERS}
    table = side_by_side.timed(train, np.zeros(2), cases, 9, 3)
    # Each is compiled, then called once to no account, then once in each round.
    assert calls == [None, HYPERPARAMETERS] * 5
    assert "ratio to optimizer alone" in table
    assert "2 seeds" in table and "3 rounds of 9 updates" in table


def test_updates_are_whole_tasks():
    assert side_by_side.whole_tasks(100, 4, 3) == 32
    with pytest.raises(ValueError, match="--steps must be at least 12, got 11"):
        side_by_side.whole_tasks(11, 4, 3)


def test_a_bad_flag_is_told_in_a_line():
    result = run_program("examples.transformer", "--steps=7")
    assert result.returncode == 1
    assert "ValueError: --steps must be at least 8, got 7." in result.stderr
