"""Compares the methods of finished runs, each at its best setting.

    python -m experiments.compare RUN --evaluate --num_seeds=N [--reference=backprop]
    python -m experiments.compare RUN ... --tuning_seeds=N
    python -m experiments.compare RUN ... --tuning_run=RUN [--tuning_seeds=N]
    python -m experiments.compare --tuning_run=RUN

A run has methods (cases), settings (searches or sweeps) and seeds; several runs are
pooled. Some seeds choose each method's setting by its mean score over all tasks; other
seeds evaluate it.

With --evaluate, all seeds of RUN choose, or the first --tuning_seeds of them. Then the
chosen settings are trained on N further seeds, as a run in RUN/evaluation (or
--workdir), which the same command continues if it was stopped. Without it, the first
--tuning_seeds seeds choose and the others evaluate. With --tuning_run, the seeds of
that run choose, and RUN needs only the chosen settings, with other seeds. Without RUN,
the program prints the choices and the flags to run them with.

It writes the tables comparison.md, comparison.csv and trials.csv and the figures
differences.png and curves.png to RUN/comparison of the first run, or to --output. Of a
search it also writes what tuning costs, tuning.csv and tuning.png, and the score over
each hyperparameter, sensitivity.png.
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
    tuning_names = _TUNING_RUN.value
    if not names and not tuning_names:
        raise app.UsageError("Pass at least one run folder.")
    folder = pathlib.Path(
        _OUTPUT.value or pathlib.Path(*names[:1]) / files.COMPARISON_FOLDER
    )
    _check_flags(names)
    try:
        if _EVALUATE.value:
            names, tuning_names = [_evaluate(pathlib.Path(names[0]))], names
        runs, tuning_runs = (
            [Run(name, run_results.load(name)) for name in group]
            for group in (names, tuning_names)
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
        print(comparison_output.markdown(compared))
        print(*comparison_output.write(compared, folder), sep="\n")
        for run in (*runs, *tuning_runs):
            for line in run_results.remarks(run.dataset):
                print(f"{run.name}: {line}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


def _check_flags(names: Sequence[str]) -> None:
    """Raises UsageError if flags of the evaluation do not go together."""
    if _EVALUATE.value:
        if len(names) != 1 or _TUNING_RUN.value:
            raise app.UsageError(
                f"--evaluate takes one run folder, got {len(names)} and "
                f"{len(_TUNING_RUN.value)} tuning runs: pass RUN --evaluate."
            )
        if _NUM_SEEDS.value is None:
            raise app.UsageError(
                "--evaluate needs a number of further seeds: pass --num_seeds=10."
            )
        return
    for flag in (_NUM_SEEDS, _NUM_TASKS, _WORKDIR, _OVERWRITE, _ALLOW_CHANGED_CODE):
        if flag.value not in (None, False):
            raise app.UsageError(
                f"--{flag.name} is for an evaluation: add --evaluate, or omit it."
            )


def _evaluate(run: pathlib.Path) -> str:
    """Trains the chosen settings of a run on further seeds; returns the run folder."""
    # Only an evaluation needs what trains.
    from experiments.run import command_line, evaluation, from_python, machine

    runs = [Run(str(run), run_results.load(run))]
    choices, _ = comparison.choose_settings(runs, _TUNING_SEEDS.value)
    comparison.check_reference(_REFERENCE.value, [choice.method for choice in choices])
    print(f"{comparison_output.choice_table(choices)}\n")
    config = evaluation.evaluation_config(
        run,
        {choice.method: choice.trial.setting for choice in choices},
        _NUM_SEEDS.value,
        _NUM_TASKS.value,
    )
    make_problem = from_python.find_problem(evaluation.problem_of(run))
    folder = pathlib.Path(_WORKDIR.value or run / files.EVALUATION_FOLDER)
    machine.use_all_cores()
    machine.keep_compiled_programs(run)
    try:
        status = command_line.train(
            config, folder, make_problem, _OVERWRITE.value, _ALLOW_CHANGED_CODE.value
        )
    except KeyboardInterrupt:
        command_line.end_at_once()
    if status:
        sys.exit(status)
    return str(folder)


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
    _EVALUATE = flags.DEFINE_bool(
        "evaluate", False, "Train the chosen settings on further seeds, and compare."
    )
    _NUM_SEEDS = flags.DEFINE_integer(
        "num_seeds", None, "Number of seeds of the evaluation."
    )
    _NUM_TASKS = flags.DEFINE_integer(
        "num_tasks", None, "Number of tasks of the evaluation; that of RUN by default."
    )
    _WORKDIR = flags.DEFINE_string(
        "workdir", None, "Folder of the evaluation; RUN/evaluation by default."
    )
    _OVERWRITE = flags.DEFINE_bool(
        "overwrite", False, "Delete the evaluation in the folder."
    )
    _ALLOW_CHANGED_CODE = flags.DEFINE_bool(
        "allow_changed_code", False, "Continue an evaluation that other code started."
    )
    app.run(_main)
