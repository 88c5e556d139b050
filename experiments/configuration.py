"""From a config to its cases, with every mistake found before anything runs."""

from collections.abc import Collection, Iterator, Mapping
import difflib
import json
from typing import Any

from ml_collections import ConfigDict

import cbp_jax

# Fields that say how a run is carried out and leave its results as they are.
_NOT_RESULTS = ("checkpoint_every", "lanes_per_block", "probe", "tensorboard")


class ConfigError(ValueError):
    """A config that cannot be run; the message names the value and the cure."""


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
    return {name: _make_case(config, name) for name in config.cases}


def check_positive(config: ConfigDict, *names: str) -> None:
    """Raises ConfigError unless the named integer fields are at least 1."""
    for name in names:
        if config[name] < 1:
            raise ConfigError(f"config.{name} must be at least 1, got {config[name]}.")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises ConfigError unless the value of a field is one of the choices."""
    if value not in choices:
        raise ConfigError(
            f"config.{name} must be one of {list(choices)}, got {value!r}."
        )


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
    fields = {"cbp_jax": cbp_jax.__version__} | config.to_dict()
    return json.dumps(fields, indent=2, default=list)


def differences(old: str, new: str) -> list[str]:
    """Compares two configs written by `to_json`: one line for each field that differs.

    Fields that do not change results are passed over.
    """
    old_fields, new_fields = (dict(_flatten(json.loads(text))) for text in (old, new))
    missing = "(not there)"
    return [
        f"{name}: {old_fields.get(name, missing)} -> {new_fields.get(name, missing)}"
        for name in (*old_fields, *(new_fields.keys() - old_fields.keys()))
        if name.partition(".")[0] not in _NOT_RESULTS
        and old_fields.get(name, missing) != new_fields.get(name, missing)
    ]


def _make_case(config: ConfigDict, name: str) -> ConfigDict:
    case = ConfigDict(config.to_dict())
    for field, value in config.cases[name].items():
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
    return case


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
