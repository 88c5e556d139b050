"""From a config to its cases, with every mistake found before anything runs."""

from collections.abc import Iterator, Mapping
import json
import re
from typing import Any

from ml_collections import ConfigDict

import cbp_jax
from experiments.engine import numerics
from experiments.learning.checks import ConfigError, did_you_mean
from experiments.learning.hyper_parameters import (
    OPTIMIZER_PARAMETERS,
    optimizer_parameters,
)
from experiments.learning.methods import HYPER_PARAMETERS, METHODS, parameters_of

VERSION_FIELD = "cbp_jax"
"""The field of a written config that tells the version, and that a run wrote it."""

NOT_OF_A_CASE = ("cases", "num_seeds", "first_seed")
"""Fields of a config that hold for all cases."""

_NUMERICS_FIELD = "numerics"  # Of a written config, see `numerics.environment`.

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
        taken = OPTIMIZER_PARAMETERS | parameters_of(fields)
        for name, parameter in taken.items():
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
      ConfigError: no cases, an override of an unknown field or of a wrong type, or a
        sweep of what no case takes.
    """
    if not config.cases:
        raise ConfigError("config.cases is empty; name at least one case.")
    for name in config.cases:
        if not re.fullmatch(r"[\w+-][\w+. -]*", name):
            raise ConfigError(
                f"config.cases holds {name!r}; the name of a case is that of a folder: "
                "letters, digits, '_', '-', '+', '.' and spaces."
            )
    cases = {name: _make_case(config, name) for name in config.cases}
    for field, values in config.sweep.items():
        if values and field in HYPER_PARAMETERS:
            _check_is_taken(f"sweep.{field}", cases)
    return cases


def check_has_effect(config: ConfigDict, field: str, case: str | None = None) -> None:
    """Raises ConfigError if setting a field does nothing.

    No case may take it, or the sweep or all cases that do have their own.

    Args:
      config: the whole config.
      field: its name.
      case: the case that it was set for, None for all.
    """
    cases = {
        name: ConfigDict(config.to_dict() | overrides.to_dict())
        for name, overrides in config.cases.items()
        if case in (None, name)
    }
    if field in HYPER_PARAMETERS:
        _check_is_taken(field if case is None else f"cases.{case}.{field}", cases)
        cases = {
            name: one
            for name, one in cases.items()
            if field in parameters_of(one.to_dict())
        }
    if case is not None:
        return
    if config.sweep.get(field):
        raise ConfigError(
            f"config.{field} has no effect, because it is swept here: set "
            f"--config.sweep.{field}='(VALUE, ...)'."
        )
    if cases and all(field in config.cases[name] for name in cases):
        flags = [f"--config.cases.{name}.{field}" for name in cases]
        raise ConfigError(
            f"config.{field} has no effect, because every case that takes it sets its "
            f"own: set {', '.join(flags)}."
        )


def to_json(config: ConfigDict) -> str:
    """Writes a config, the version of the package and what else numbers depend on."""
    fields = {
        VERSION_FIELD: cbp_jax.__version__,
        _NUMERICS_FIELD: numerics.environment(),
    }
    return json.dumps(fields | config.to_dict(), indent=2, default=list)


def differences(old: str, new: str) -> list[str]:
    """Says why a run of the new config cannot go on from one of the old.

    Args:
      old: written by `to_json`.
      new: written by `to_json`.

    Returns:
      One line for each field that differs, but for those that do not change results:
      how a run is carried out, and a number of tasks that has grown. And one for each
      setting of JAX that differs and changes numbers.
    """
    old_config, new_config = json.loads(old), json.loads(new)
    found = numerics.differences(
        old_config.pop(_NUMERICS_FIELD, None), new_config.pop(_NUMERICS_FIELD, {})
    )
    old_fields, new_fields = map(dict, map(_flatten, (old_config, new_config)))
    missing = "(not there)"
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
        if field in NOT_OF_A_CASE or field not in config:
            hint = did_you_mean(field, sorted({*config} - {*NOT_OF_A_CASE}))
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
    """Puts a case's own sweep beside that of the config, or in its place.

    Of the config's sweep a case has what it takes, or else its lanes would be trained
    several times alike. What is no hyper-parameter at all stays, for `make_grid` to
    name.
    """
    parameters = parameters_of(case.to_dict())
    # A method that is an optimizer itself says why it takes nothing of the other.
    known = parameters | optimizer_parameters(case.optimizer)
    for field, values in sweep.items():
        if values and field not in known:
            raise ConfigError(
                f"config.cases.{name}.sweep holds {field!r}, which its method does not "
                f"take: {did_you_mean(field, list(parameters), list_all=True)}"
            )
    shared = {
        field: values
        for field, values in case.sweep.items()
        if field in parameters or field not in HYPER_PARAMETERS
    }
    case.sweep = shared | dict(sweep)


def _check_is_taken(path: str, cases: Mapping[str, ConfigDict]) -> None:
    """Raises ConfigError for a hyper-parameter that none of some cases takes."""
    field = path.rpartition(".")[2]
    taken: dict[str, Any] = {}
    for case in cases.values():
        taken |= parameters_of(case.to_dict())
    if cases and field not in taken:
        who = f"case {next(iter(cases))!r} does" if len(cases) == 1 else "the cases do"
        takers = [
            name for name, method in METHODS.items() if field in method.hyper_parameters
        ]
        hint = f" It goes with config.method {', '.join(takers)}." if takers else ""
        raise ConfigError(
            f"config.{path} has no effect, because {who} not take it: "
            f"{did_you_mean(field, list(taken), list_all=True)}{hint}"
        )


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
