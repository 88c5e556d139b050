"""Draws the figures of finished runs.

    python -m experiments.figures RUN ...

Each RUN is a run folder; its figures go to RUN/figures.
"""

from collections.abc import Sequence
import pathlib
import sys

from absl import app

from experiments.reporting import plots, run_results


def _main(arguments: Sequence[str]) -> None:
    if len(arguments) < 2:
        raise app.UsageError("Name at least one run folder.")
    try:
        for run in arguments[1:]:
            for path in plots.draw_run(run_results.load(run), pathlib.Path(run)):
                print(path)
    except OSError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    app.run(_main)
