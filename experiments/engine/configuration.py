"""From a config to its cases, with every mistake found before anything runs."""

from collections.abc import Iterator, Mapping
import difflib
import json
import re
from typing import Any

from ml_collections import ConfigDict

import cbp_jax
from experiments.learning.checks import ConfigError
from experiments.learning.methods import parameters_of

VERSION_FIELD = "cbp_jax"
"""The field of a written config that tells the version, and that a run wrote it."""

# Fields that say how a run is carried out and leave its results as they are.
_NOT_RESULTS = (
    *("checkpoint_every", "checkpoint_seconds", "lanes_per_block", "probe"),
    *("tensorboard", "tasks_per_bin"),
)
# Every task follows from the key and its number, so a run can be made longer.
_NUM_TASKS = re.compile(r"(cases\..+\.)?num_tasks")


def complete(config: ConfigDict) -> ConfigDict:
    """Adds hyper-parameters of the methods that cases use, where they are missing.

    Args:
      config: the whole config; it is left as it is.

    Returns:
      A config with published values in place of those that it did not have.
    """
    completed = ConfigDict(config.to_dict())
    for case in config.cases.values():
        fields = config.to_dict() | case.to_dict()
        for name, parameter in parameters_of(fields).items():
            if name not in completed:
                completed[name] = parameter.default
    return completed


def make_cases(config: ConfigDict) -> dict[str, ConfigDict]:
    """Applies the overrides of each case to the config.

    Args:
      config: the whole config; `cases` maps names to overrides of other fields.

    Returns:
      The config of each case, in alphabetical order, which is that of a ConfigDict.

    Raises:
      ConfigError: no cases, an override of an unknown field or of a wrong type.
    """
    if not config.cases:
        raise ConfigError("config.cases is empty; name at least one case.")
    for name in config.cases:
        if not re.fullmatch(r"[\w+-][\w+. -]*", name):
            raise ConfigError(
                f"config.cases holds {name!r}; the name of a case is that of a folder: "
                "letters, digits, '_', '-', '+', '.' and spaces."
            )
    return {name: _make_case(config, name) for name in config.cases}


def check_has_effect(config: ConfigDict, field: str) -> None:
    """Raises ConfigError if the sweep or all cases set a field of their own."""
    if config.sweep.get(field):
        raise ConfigError(
            f"config.{field} has no effect, because it is swept here: set "
            f"--config.sweep.{field}='(VALUE, ...)'."
        )
    if config.cases and all(field in case for case in config.cases.values()):
        flags = [f"--config.cases.{name}.{field}" for name in config.cases]
        raise ConfigError(
            f"config.{field} has no effect, because every case sets its own: set "
            f"{', '.join(flags)}."
        )


def to_json(config: ConfigDict) -> str:
    """Writes a config and the version of the package as JSON."""
    fields = {VERSION_FIELD: cbp_jax.__version__} | config.to_dict()
    return json.dumps(fields, indent=2, default=list)


def differences(old: str, new: str) -> list[str]:
    """Says why a run of the new config cannot go on from one of the old.

    Args:
      old: written by `to_json`.
      new: written by `to_json`.

    Returns:
      One line for each field that differs, but for those that do not change results:
      how a run is carried out, and a number of tasks that has grown.
    """
    old_fields, new_fields = (dict(_flatten(json.loads(text))) for text in (old, new))
    missing = "(not there)"
    found = []
    for name in (*old_fields, *(new_fields.keys() - old_fields.keys())):
        before, after = old_fields.get(name, missing), new_fields.get(name, missing)
        if before == after or name.partition(".")[0] in _NOT_RESULTS:
            continue
        line = f"{name}: {before} -> {after}"
        if _NUM_TASKS.fullmatch(name) and isinstance(before, int):
            if isinstance(after, int) and after > before:
                continue
            line += " (a run can be made longer, not shorter)"
        found.append(line)
    return found


def _make_case(config: ConfigDict, name: str) -> ConfigDict:
    case = ConfigDict(config.to_dict())
    for field, value in config.cases[name].items():
        if field == "sweep":
            continue
        if field in ("cases", "num_seeds", "first_seed") or field not in config:
            fields = sorted(set(config) - {"cases", "num_seeds", "first_seed"})
            close = difflib.get_close_matches(field, fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose from {fields}."
            raise ConfigError(
                f"config.cases.{name} overrides {field!r}, which no case can: {hint}"
            )
        try:
            case[field] = value
        except TypeError as error:
            raise ConfigError(f"config.cases.{name}.{field}: {error}") from error
    own_sweep = config.cases[name].get("sweep", ConfigDict()).to_dict()
    _add_sweep(case, name, own_sweep)
    for field in config.cases[name]:
        if field not in own_sweep and case.sweep.get(field):
            raise ConfigError(
                f"config.cases.{name}.{field} has no effect, because config.sweep."
                f"{field} holds for all cases: set config.cases.{name}.sweep.{field} "
                "to () to keep the case out of it, or to values of its own."
            )
    return case


def _add_sweep(case: ConfigDict, name: str, sweep: Mapping[str, Any]) -> None:
    """Puts a case's own sweep beside that of the config, or in its place."""
    parameters = parameters_of(case.to_dict())
    for field, values in sweep.items():
        if values and field not in parameters:
            raise ConfigError(
                f"config.cases.{name}.sweep holds {field!r}, which its method does not "
                f"take: choose from {list(parameters)}."
            )
    case.sweep = case.sweep.to_dict() | dict(sweep)


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
