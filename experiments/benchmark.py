r"""Times the methods of a config beside each other.

    python -m experiments.benchmark PROBLEM --config=configs/pmnist.py:methods \
        [--config.FIELD=VALUE] [--reference=backprop] [--steps=1000] [--rounds=7]

PROBLEM is the name of a program, such as permuted_mnist. The lanes are those that a run
of the config would have. Prints the wall time of an update of a lane, all lanes running
at once, and its ratio to that of a reference case in the same round: medians over the
rounds, and the range that holds the middle half of them.
"""

from collections.abc import Mapping, Sequence
import importlib
import sys

from absl import app, flags
import jax
from ml_collections import config_flags
import numpy as np

from experiments.engine import command_line
from experiments.engine.timing import time_cases
from experiments.reporting.tables import format_table

PROBLEMS = ("continual_imagenet", "permuted_mnist", "slowly_changing_regression")


def _main(arguments: Sequence[str]) -> None:
    if len(arguments) != 2 or arguments[1] not in PROBLEMS:
        raise app.UsageError(f"Name one problem of {list(PROBLEMS)}.")
    config = _CONFIG.value
    if _REFERENCE.value not in config.cases:
        raise app.UsageError(
            f"--reference must be one of the config's cases {sorted(config.cases)}, "
            f"got {_REFERENCE.value!r}."
        )
    command_line.use_all_cores()
    problem = importlib.import_module(f"experiments.{arguments[1]}")
    try:
        seconds = time_cases(
            config, problem.make_problem, steps=_STEPS.value, rounds=_ROUNDS.value
        )
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
    print(format_table(rows(seconds, _REFERENCE.value)))
    devices = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    print(
        f"{devices}, JAX {jax.__version__}; "
        f"medians of {_ROUNDS.value} rounds of {_STEPS.value} updates (middle half)."
    )


def rows(seconds: Mapping[str, np.ndarray], reference: str) -> list[dict[str, str]]:
    """Lays out times, the fastest case first.

    Args:
      seconds: for each case seconds per update of a lane, [rounds].
      reference: the case to divide by, round by round.

    Returns:
      One line for each case.
    """
    found = []
    for name in sorted(seconds, key=lambda name: np.median(seconds[name])):
        microseconds, ratio = 1e6 * seconds[name], seconds[name] / seconds[reference]
        found.append(
            {
                "case": name,
                "µs per lane and update": _median(microseconds),
                f"ratio to {reference}": _median(ratio),
            }
        )
    return found


def _median(values: np.ndarray) -> str:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file(
        "config", None, "Config file, with a preset after a colon."
    )
    _REFERENCE = flags.DEFINE_string("reference", "backprop", "Case to compare with.")
    _STEPS = flags.DEFINE_integer("steps", 1000, "Updates of a timed task.", 1)
    _ROUNDS = flags.DEFINE_integer("rounds", 7, "Times that each case is timed.", 1)
    flags.mark_flag_as_required("config")
    app.run(_main, flags_parser=command_line.parse_flags)
