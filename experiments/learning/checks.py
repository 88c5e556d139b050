"""Checks of config fields before a run."""

from collections.abc import Collection, Sequence
import difflib
from typing import Any

from ml_collections import ConfigDict


class ConfigError(ValueError):
    """A config that cannot be run; the message states the value and the remedy."""


_LARGEST_INTEGER = 2**31 - 1


def did_you_mean(name: str, known: Sequence[str], *, list_all: bool = False) -> str:
    """Suggests the closest known name; if none is close, lists all."""
    close = difflib.get_close_matches(name, known, n=1)
    if close and not list_all:
        return f"did you mean {close[0]!r}?"
    suggestion = f"did you mean {close[0]!r}, or " if close else "choose "
    return f"{suggestion}one of {list(known)}{'?' if close else '.'}"


def check_positive(config: ConfigDict, *names: str) -> None:
    """Raises ConfigError unless the named fields are positive int32 numbers."""
    for name in names:
        if config[name] < 1:
            raise ConfigError(f"config.{name} must be at least 1, got {config[name]}.")
        if config[name] > _LARGEST_INTEGER:
            raise ConfigError(
                f"config.{name} must be at most {_LARGEST_INTEGER}, got {config[name]}."
            )


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raises ConfigError unless the value of a field is one of the choices."""
    if value not in choices:
        raise ConfigError(
            f"config.{name} must be one of {list(choices)}, got {value!r}."
        )


def check_measured_examples(config: ConfigDict) -> None:
    """Raises ConfigError unless a task has as many examples as are measured."""
    if not 1 <= config.measured_examples <= config.examples_per_task:
        raise ConfigError(
            "config.measured_examples must be from 1 to config.examples_per_task "
            f"({config.examples_per_task}), got {config.measured_examples}."
        )


def check_batch_size(config: ConfigDict, *names: str) -> None:
    """Raises ConfigError unless the batch size divides each of the named fields."""
    check_positive(config, "batch_size")
    for name in names:
        if config[name] % config.batch_size:
            raise ConfigError(
                f"config.batch_size must divide config.{name} ({config[name]}), got "
                f"{config.batch_size}."
            )
