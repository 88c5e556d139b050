"""Flags that override fields of a config, also those that its file leaves out.

A case holds only what it sets itself, and the sweep only what the methods of its cases
take, but `ml_collections` overrides only what is there. What is missing and can be set
is put there before, with the value that the config has for all cases.
"""

from collections.abc import Iterator, Sequence
import re
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from experiments.engine.configuration import NOT_OF_A_CASE
from experiments.learning.checks import did_you_mean
from experiments.learning.methods import HYPER_PARAMETERS

Path = tuple[str | int, ...]


def define_config_flag(
    arguments: list[str] | None = None, flag_values: flags.FlagValues = flags.FLAGS
) -> flags.FlagHolder:
    """Defines `--config=FILE[:PRESET]` and what overrides its fields.

    `--config.FIELD=VALUE` sets a field for all cases, `--config.cases.NAME.FIELD=VALUE`
    for one; `--config.sweep.FIELD='(VALUE, ...)'` and
    `--config.cases.NAME.sweep.FIELD='(VALUE, ...)'` make lanes.

    Args:
      arguments: of the command line; None for those of the process.
      flag_values: where to define it.
    """
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, with a preset after a colon.",
        flag_values=flag_values,
        sys_argv=arguments,
    )
    flag = flag_values["config"]
    flag.parser = _ConfigParser(inner=flag.parser, arguments=arguments)
    return holder


class _ConfigParser(flags.ArgumentParser):
    """Reads a config, and adds what flags set and it does not have."""

    def __init__(self, *, inner: flags.ArgumentParser, arguments: list[str] | None):
        self._inner = inner
        self._arguments = arguments

    def parse(self, argument: Any) -> Any:
        config = self._inner.parse(argument)
        if isinstance(config, ConfigDict):
            with config.unlocked():
                given = sys.argv if self._arguments is None else self._arguments
                for path in overridden(given):
                    _add_missing(config, path)
        return config

    def flag_type(self) -> str:
        return self._inner.flag_type()


def overridden(arguments: Sequence[str]) -> Iterator[Path]:
    """Finds the fields that arguments of the command line override.

    Yields:
      Their paths, without `config`.
    """
    for argument in arguments:
        flag = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if flag:
            try:
                yield config_path.split(flag[1])
            except ValueError:
                continue  # `ml_collections` names it.


def _add_missing(config: ConfigDict, path: Path) -> None:
    """Adds a field that a case, the sweep or the config can have, if it is not there.

    Raises:
      flags.Error: they cannot have it.
    """
    match path:
        case ("sweep", name):
            _add_swept(config, config.sweep, "config.sweep", name)
        case ("cases", name, *_) if name not in config.cases:
            raise flags.Error(
                f"config.cases has no case {name!r}: "
                f"{did_you_mean(str(name), list(config.cases))}"
            )
        case ("cases", name, "sweep", swept):
            own = config.cases[name]
            if "sweep" not in own:
                own.sweep = ConfigDict()
            _add_swept(config, own.sweep, f"config.cases.{name}.sweep", swept)
        case ("cases", name, "sweep"):
            config.cases[name].setdefault("sweep", ConfigDict())
        case ("cases", name, field, *_):
            _add_to_case(config, str(name), str(field))
        case (field,) if field not in config and field in HYPER_PARAMETERS:
            config[field] = HYPER_PARAMETERS[field].default


def _add_swept(config: ConfigDict, sweep: ConfigDict, where: str, name: Any) -> None:
    if name in sweep:
        return
    if name in HYPER_PARAMETERS:
        sweep[name] = ()
    elif name in config:
        raise flags.Error(
            f"{where} cannot hold {name!r}, which changes the compiled program: make "
            "its values cases of config.cases."
        )
    else:
        raise flags.Error(
            f"{where} has no {name!r}: "
            f"{did_you_mean(str(name), list(HYPER_PARAMETERS))}"
        )


def _add_to_case(config: ConfigDict, name: str, field: str) -> None:
    case = config.cases[name]
    if field in case:
        return
    if field in NOT_OF_A_CASE:
        raise flags.Error(
            f"config.cases.{name} cannot set {field!r}, which is one for all cases: "
            f"set --config.{field}."
        )
    if field in config:
        # Of a copy, because what the case sets must not change the config.
        case[field] = ConfigDict(config.to_dict())[field]
    elif field in HYPER_PARAMETERS:
        case[field] = HYPER_PARAMETERS[field].default
    else:
        known = {*config, *HYPER_PARAMETERS} - {*NOT_OF_A_CASE}
        raise flags.Error(
            f"config.cases.{name} has no field {field!r}: "
            f"{did_you_mean(field, sorted(known))}"
        )
