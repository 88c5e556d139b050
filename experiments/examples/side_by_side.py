"""The command line of all examples, which train with and without continual backprop.

    python -m experiments.examples.NAME [--steps=N] [--seeds=N] [--compare=ROUNDS]
        [--replacement_rate=R] [--maturity_threshold=M]

trains on the same streams with the optimizer alone and inside continual backprop, and
prints the scores in the first and last task and the number of units replaced in each
seed. With --compare, it prints the time per update instead, measured in alternating
rounds.
"""

from collections.abc import Callable, Mapping
import sys
from typing import Any, NamedTuple, Protocol

from absl import app, flags, logging
from flax.core import FrozenDict
import jax
import numpy as np

from experiments.reporting.tables import format_table
from experiments.timing.rounds import take_turns
from experiments.timing.table import spread

ALONE, WITH = "optimizer alone", "continual_backprop"


class Outcome(NamedTuple):
    """The results of one run of an example."""

    score: jax.Array  # [seeds, tasks], a mean over each task.
    num_replaced: dict[str, jax.Array]  # int32 [seeds, *S].


class Train(Protocol):
    """An example, jitted with static `steps` and `hyperparameters`."""

    def __call__(
        self, keys: jax.Array, *, steps: int, hyperparameters: FrozenDict | None
    ) -> Outcome:
        """Trains a learner for each key.

        Args:
          keys: PRNG keys, [seeds].
          steps: number of optimizer updates.
          hyperparameters: arguments of `continual_backprop`, or None for the optimizer
            alone.
        """


def run(
    train: Train, score: str, *, steps: int, seeds: int, rate: float, maturity: int
) -> None:
    """Parses the flags and runs an example; does not return.

    Args:
      train: the example.
      score: name of its score.
      steps: default number of optimizer updates.
      seeds: default number of learners.
      rate: default fraction of eligible units replaced per update.
      maturity: default number of updates before a unit is eligible.
    """
    steps = flags.DEFINE_integer("steps", steps, "Number of optimizer updates.", 1)
    seeds = flags.DEFINE_integer("seeds", seeds, "Number of learners.", 1)
    rounds = flags.DEFINE_integer(
        "compare", 0, "Time both in this many rounds instead; 0 for no timing.", 0
    )
    rate = flags.DEFINE_float(
        *("replacement_rate", rate),
        *("Fraction of eligible units replaced per update.", 0, 1),
    )
    maturity = flags.DEFINE_integer(
        "maturity_threshold", maturity, "Updates before a unit can be replaced.", 0
    )

    def main(arguments: list[str]) -> None:
        if len(arguments) > 1:
            raise app.UsageError(f"Unknown arguments: {arguments[1:]}.")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # JAX reports missing accelerators.
        # With other generators, all seeds under vmap would draw from the first key.
        key = jax.random.key(0, impl="threefry2x32")
        keys = jax.random.split(key, seeds.value)
        hyperparameters = FrozenDict(
            replacement_rate=rate.value, maturity_threshold=maturity.value
        )
        cases = {ALONE: None, WITH: hyperparameters}
        try:
            if rounds.value:
                print(timed(train, keys, cases, steps.value, rounds.value))
                return
            outcomes = {
                name: train(keys, steps=steps.value, hyperparameters=hyperparameters)
                for name, hyperparameters in cases.items()
            }
        except ValueError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            sys.exit(1)
        print(report(outcomes, score))

    app.run(main)


def whole_tasks(steps: int, tasks: int, size: int = 1) -> int:
    """Returns how many groups of `size` updates fit, a multiple of `tasks`.

    Raises:
      ValueError: there are too few updates for one group per task.
    """
    if steps < tasks * size:
        raise ValueError(f"--steps must be at least {tasks * size}, got {steps}.")
    return steps // (tasks * size) * tasks


def outcome(scores: jax.Array, tasks: int, state: Any) -> Outcome:
    """Returns the results of one learner, from its scores and final state."""
    return Outcome(
        scores.reshape(tasks, -1).mean(axis=1), getattr(state, "num_replaced", {})
    )


def report(outcomes: Mapping[str, Outcome], score: str) -> str:
    """Lays out the scores of the first and last task, and the units replaced."""
    table = []
    for name, outcome in outcomes.items():
        row = {"case": name}
        for title, task in (("first task", 0), ("last task", -1)):
            values = np.asarray(outcome.score, np.float64)[:, task]
            row[f"{score}, {title}"] = " ".join(f"{value:.3f}" for value in values)
        table.append(row)
    lines = [format_table(table), "Each number is for one seed."]
    for outcome in outcomes.values():
        if outcome.num_replaced:
            lines.append("Replaced units, by seed:")
        for group, numbers in outcome.num_replaced.items():
            lines.append(f"  {group}: {' '.join(map(str, np.asarray(numbers)))}")
    return "\n".join(lines)


def timed(
    train: Train,
    keys: jax.Array,
    cases: Mapping[str, FrozenDict | None],
    steps: int,
    rounds: int,
) -> str:
    """Times both cases in turns, and lays out medians and quartiles of the rounds."""

    def program(hyperparameters: FrozenDict | None) -> Callable[[], None]:
        def call() -> None:
            jax.block_until_ready(
                train(keys, steps=steps, hyperparameters=hyperparameters)
            )

        call()  # The first call compiles.
        return call

    seconds = take_turns(
        {name: program(hyperparameters) for name, hyperparameters in cases.items()},
        rounds=rounds,
    )
    table = [
        {
            "case": name,
            "µs per update of all seeds": _quartiles(1e6 * found / steps),
            f"ratio to {ALONE}": _quartiles(found / seconds[ALONE]),
        }
        for name, found in seconds.items()
    ]
    devices = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    return (
        f"{format_table(table)}\n{len(keys)} seeds, {devices}, JAX {jax.__version__}; "
        f"medians of {rounds} rounds of {steps} updates (middle half)."
    )


def _quartiles(values: np.ndarray) -> str:
    return spread(*np.quantile(values, (0.5, 0.25, 0.75)))
