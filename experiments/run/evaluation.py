"""The run that evaluates a search: its chosen settings on further seeds."""

from collections.abc import Mapping
import json
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from experiments.learning.checks import ConfigError
from experiments.run.folder import CONFIG_FILE
from experiments.run.provenance import NOT_OF_A_CONFIG, read_codes


def evaluation_config(
    run: pathlib.Path,
    settings: Mapping[str, Mapping[str, float]],
    num_seeds: int,
    num_tasks: int | None = None,
) -> ConfigDict:
    """Makes the config that trains the chosen settings of a run on further seeds.

    Args:
      run: the folder of a finished run, of a search or of a sweep.
      settings: for each case to train, its chosen hyperparameters.
      num_seeds: number of seeds, which follow those of the run.
      num_tasks: number of tasks; None for that of the run.

    Returns:
      The config of the run, without a sweep or a search.

    Raises:
      ConfigError: there are fewer than 2 seeds, which an interval needs, or less than 1
        task.
      OSError: the folder contains no run.
    """
    if num_seeds < 2:
        raise ConfigError(
            f"--num_seeds is {num_seeds}, but an interval needs several seeds: pass at "
            "least 5, preferably 10 or more."
        )
    if num_tasks is not None and num_tasks < 1:
        raise ConfigError(f"--num_tasks is {num_tasks}: pass at least 1.")
    fields = json.loads((run / CONFIG_FILE).read_text())
    cases = {}
    for name, setting in settings.items():
        case = fields["cases"][name]
        kept = {k: v for k, v in case.items() if k not in ("sweep", "search")}
        cases[name] = kept | dict(setting)
    config = {k: v for k, v in fields.items() if k not in NOT_OF_A_CONFIG}
    for name in {name for setting in settings.values() for name in setting}:
        config[name] = float(config[name])  # An integer would not take the settings.
    config |= {
        "cases": cases,
        "sweep": {},
        "search": {},
        "first_seed": fields["first_seed"] + fields["num_seeds"],
        "num_seeds": num_seeds,
    }
    if num_tasks is not None:
        config["num_tasks"] = num_tasks
    return ConfigDict(_with_tuples({"num_trials": 1} | config))


def _with_tuples(value: Any) -> Any:
    """Makes tuples of lists, as which JSON writes them."""
    if isinstance(value, dict):
        return {name: _with_tuples(one) for name, one in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def problem_of(run: pathlib.Path) -> str:
    """Returns the name of the program that wrote a run.

    Raises:
      ConfigError: the run does not tell.
    """
    for code in reversed(read_codes(run)):
        for name in code["files"]:
            if found := re.fullmatch(r"experiments/(\w+)\.py", name):
                return found[1]
    raise ConfigError(
        f"{run} does not say which program wrote it: run the chosen settings with that "
        f"program, and compare with --tuning_run={run}."
    )
