"""Prints the results of a run, finished or not.

    python -m experiments.results RUN [--tasks=0,-1 | --csv] [--output=FILE]

prints the table of a run, or a table of the score in chosen tasks, or writes every
value as one line of a tidy CSV table.

With `--config.replacement_log=N`, the run folder also contains replacements.csv, with
one line for each of the first N replacements per lane and task. Its columns are case,
task, the swept hyperparameters (empty if a case does not sweep them) and seed, then

    step     updates since the start of the task
    layer    name of the hidden layer
    unit     index of the unit in the layer
    age      updates since the unit's last reset
    utility  age-corrected, from the previous update; nan if the rule has no utilities

A run can be made longer: repeat its command with a larger --config.num_tasks.
"""

from collections.abc import Sequence
import pathlib
import re
import sys

from absl import app, flags

from experiments.reporting import run_results, tables


def _main(arguments: Sequence[str]) -> None:
    if len(arguments) != 2:
        raise app.UsageError("Pass one run folder.")
    if _CSV.value and _TASKS.value:
        raise app.UsageError("--csv writes all tasks; omit either --csv or --tasks.")
    try:
        dataset = run_results.load(arguments[1])
        if _CSV.value:
            text = run_results.tidy_csv(dataset)
        elif _TASKS.value:
            text = tables.score_table(dataset, [int(task) for task in _TASKS.value])
            text += "\nMeans over seeds ± one standard error."
        else:
            text = tables.summary_table(dataset) + f"\n{tables.INTERVALS}"
        if _OUTPUT.value:
            pathlib.Path(_OUTPUT.value).write_text(text)
        else:
            print(text)
        for line in run_results.remarks(dataset):
            print(line, file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    _CSV = flags.DEFINE_bool("csv", False, "Write every value as a tidy CSV table.")
    _TASKS = flags.DEFINE_list(
        "tasks", None, "Tasks whose score is printed, ± one standard error."
    )
    flags.register_validator(
        "tasks",
        lambda tasks: all(re.fullmatch(r"-?\d+", task) for task in tasks or ()),
        "must be integers, as in --tasks=0,10,-1.",
    )
    _OUTPUT = flags.DEFINE_string("output", None, "File to write instead of printing.")
    app.run(_main)
