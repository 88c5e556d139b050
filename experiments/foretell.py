"""Finds which measures, taken before a task, foretell how well the task goes.

    python -m experiments.foretell RUN ... [--measures=NAME,NAME]

A run has methods (cases), settings (sweeps) and seeds; several runs are joined. Run
them with --config.probe_every=1, or every so many tasks, for the costlier measures:
how fast a copy of the network learns the next task, readiness, and more.

Each measure is correlated (Spearman) with the score of the task that follows: between
the learners at a task, and within a learner over its tasks; alone, and given all other
measures. --measures chooses among them. Two baselines are measures, too: task_number
and previous_score.

It writes the tables foretelling.md and foretelling.csv and the figure foretelling.png
to RUN/foretelling of the first run, or to --output.
"""

from collections.abc import Sequence
import pathlib
import sys

from absl import app, flags

from experiments.learning import variants  # noqa: F401  Sets the styles in figures.
from experiments.reporting import (
    files,
    foretelling,
    foretelling_output,
    run_results,
)
from experiments.reporting.trials import Run


def _main(arguments: Sequence[str]) -> None:
    names = list(arguments[1:])
    if not names:
        raise app.UsageError("Pass at least one run folder.")
    try:
        runs = [Run(name, run_results.load(name)) for name in names]
        foretold = foretelling.foretell(runs, _MEASURES.value)
        folder = pathlib.Path(_OUTPUT.value or f"{names[0]}/{files.FORETELLING_FOLDER}")
        print(foretelling_output.markdown(foretold))
        print(*foretelling_output.write(foretold, folder), sep="\n")
        for run in runs:
            for line in run_results.remarks(run.dataset):
                print(f"{run.name}: {line}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    _MEASURES = flags.DEFINE_list("measures", [], "Measures to use; all if empty.")
    _OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.")
    app.run(_main)
