"""Compares the methods of finished runs, each at its best setting.

    python -m experiments.compare RUN ... --tuning_seeds=N [--reference=backprop]
    python -m experiments.compare RUN ... --tuning_run=RUN [--tuning_seeds=N]
    python -m experiments.compare --tuning_run=RUN

A run has methods (cases), settings (sweeps) and seeds; several runs are pooled. The
first N seeds choose each method's setting by its mean score over all tasks; the other
seeds evaluate it. With --tuning_run, the seeds of that run choose, and RUN needs only
the chosen settings, with other seeds. Without RUN, the program prints the choices and
the flags to run them with.

It writes the tables comparison.md, comparison.csv and trials.csv and the figures
differences.png and curves.png to RUN/comparison of the first run, or to --output.
"""

from collections.abc import Sequence
import pathlib
import sys

from absl import app, flags

from experiments.learning import variants  # noqa: F401  Sets the styles in figures.
from experiments.reporting import (
    comparison,
    comparison_output,
    files,
    run_results,
)
from experiments.reporting.trials import Run


def _main(arguments: Sequence[str]) -> None:
    names = list(arguments[1:])
    if not names and not _TUNING_RUN.value:
        raise app.UsageError("Pass at least one run folder.")
    try:
        runs, tuning_runs = (
            [Run(name, run_results.load(name)) for name in group]
            for group in (names, _TUNING_RUN.value)
        )
        if not runs:
            _print_choices(tuning_runs)
            return
        compared = comparison.compare(
            runs,
            tuning_runs,
            _TUNING_SEEDS.value,
            _REFERENCE.value,
            _BOOTSTRAP_SEED.value,
        )
        folder = pathlib.Path(_OUTPUT.value or f"{names[0]}/{files.COMPARISON_FOLDER}")
        print(comparison_output.markdown(compared))
        print(*comparison_output.write(compared, folder), sep="\n")
        for run in (*runs, *tuning_runs):
            for line in run_results.remarks(run.dataset):
                print(f"{run.name}: {line}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


def _print_choices(tuning_runs: Sequence[Run]) -> None:
    choices, warnings = comparison.choose_settings(tuning_runs, _TUNING_SEEDS.value)
    print(comparison_output.choice_table(choices))
    print(*warnings, "", *comparison_output.flags(choices), sep="\n")


if __name__ == "__main__":
    _TUNING_RUN = flags.DEFINE_multi_string(
        "tuning_run", [], "Run whose seeds choose the settings; can be repeated."
    )
    _TUNING_SEEDS = flags.DEFINE_integer(
        "tuning_seeds",
        None,
        "Number of seeds, from the first, that choose the settings.",
        lower_bound=0,
    )
    _REFERENCE = flags.DEFINE_string(
        "reference", "backprop", "Method that the others are compared with."
    )
    _OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.")
    _BOOTSTRAP_SEED = flags.DEFINE_integer(
        "bootstrap_seed", 0, "Seed of the resampling.", lower_bound=0
    )
    app.run(_main)
