"""Draws the figures of runs, finished or not.

    python -m experiments.figures RUN ...

Each RUN is a run folder; its figures go to RUN/figures. If the run has a replacement
log, a table says how old the units were that each case replaced.
"""

from collections.abc import Sequence
import pathlib
import sys

from absl import app

from experiments.learning import variants  # noqa: F401  Sets the styles in figures.
from experiments.reporting import plots, run_results, survival


def _main(arguments: Sequence[str]) -> None:
    if len(arguments) < 2:
        raise app.UsageError("Pass at least one run folder.")
    try:
        for run in arguments[1:]:
            dataset = run_results.load(run)
            for path in plots.draw_run(dataset, pathlib.Path(run)):
                print(path)
            if text := survival.replaced_table(pathlib.Path(run), dataset):
                print(text)
            for line in run_results.remarks(dataset):
                print(f"{run}: {line}", file=sys.stderr)
    except OSError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    app.run(_main)
