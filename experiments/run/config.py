"""From the command line to cases and lanes, with all mistakes found before a run.

What a lane is told of a field, the later the stronger:

1. the default of a hyperparameter that its case takes, in `learning/methods.py`;
2. the config file: fields of all problems, of its problem, of its preset;
3. `--config.FIELD=VALUE`;
4. its case: `config.cases.NAME` in the file, and `--config.cases.NAME.FIELD=VALUE`;
5. its point of the sweep: of `config.sweep` where its case takes that, and in its place
   of `config.cases.NAME.sweep`.

Setting what something stronger hides in every case is an error.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
import itertools
import math
import re
import sys
from types import SimpleNamespace
from typing import Any, NamedTuple

from absl import flags
import jax
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path
import numpy as np

from experiments.learning.checks import ConfigError, did_you_mean
from experiments.learning.keys import make_key
from experiments.learning.methods import (
    HYPERPARAMETERS,
    METHODS,
    OPTIMIZER_HYPERPARAMETERS,
    hyperparameters_of,
    optimizer_hyperparameters,
)

NOT_OF_A_CASE = ("cases", "num_seeds", "first_seed")
"""Fields of a config that hold for all cases."""


# Least and most of the fields that count something, where a problem has them.
_COUNTS = {
    "num_tasks": (1, 2**31 - 1),
    "examples_per_task": (1, 2**31 - 1),
    "checkpoint_every": (1, 2**31 - 1),
    "checkpoint_seconds": (0, 2**31 - 1),
    "hidden_layers": (0, 1000),  # Each is compiled on its own.
    "lanes_per_block": (0, 2**31 - 1),
    "rank_every": (0, 2**31 - 1),
    "replacement_log": (0, 2**31 - 1),
}

_LAST_SEED = 2**32 - 1
_MOST_LANES = 10_000_000

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
                if "cases" in config:
                    _add_hyperparameters(config)
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
        case ("cases", name, "sweep", *swept):
            own = config.cases[name]
            if "sweep" not in own:
                own.sweep = ConfigDict()
            for field in swept:
                _add_swept(config, own.sweep, f"config.cases.{name}.sweep", field)
        case ("cases", name, field, *_):
            _add_to_case(config, str(name), str(field))
        case (field,) if field not in config and field in HYPERPARAMETERS:
            config[field] = HYPERPARAMETERS[field].default


def _add_swept(config: ConfigDict, sweep: ConfigDict, where: str, name: Any) -> None:
    if name in sweep:
        return
    if name in HYPERPARAMETERS:
        sweep[name] = ()
    elif name in config:
        raise flags.Error(
            f"{where} cannot hold {name!r}, which changes the compiled program: make "
            "its values cases of config.cases."
        )
    else:
        raise flags.Error(
            f"{where} has no {name!r}: {did_you_mean(str(name), list(HYPERPARAMETERS))}"
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
    elif field in HYPERPARAMETERS:
        case[field] = HYPERPARAMETERS[field].default
    else:
        known = {*config, *HYPERPARAMETERS} - {*NOT_OF_A_CASE}
        raise flags.Error(
            f"config.cases.{name} has no field {field!r}: "
            f"{did_you_mean(field, sorted(known))}"
        )


def complete(config: ConfigDict) -> ConfigDict:
    """Adds the hyperparameters that cases take, where they are missing.

    Args:
      config: the whole config; it is left as it is.

    Returns:
      A config with published values in place of those that it did not have, and a place
      for each in `sweep`.
    """
    completed = ConfigDict(config.to_dict())
    _add_hyperparameters(completed)
    return completed


def _add_hyperparameters(config: ConfigDict) -> None:
    for fields in _merged(config).values():
        taken = OPTIMIZER_HYPERPARAMETERS | hyperparameters_of(fields)
        for name, hyperparameter in taken.items():
            if name not in config:
                config[name] = hyperparameter.default
            if name not in config.sweep:
                config.sweep[name] = ()


def _merged(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Returns the fields of each case, unchecked and with its own sweep alone."""
    return {
        name: config.to_dict() | case.to_dict() for name, case in config.cases.items()
    }


def make_cases(config: ConfigDict) -> dict[str, ConfigDict]:
    """Makes the config of each case, in the order that the top of this file tells.

    Args:
      config: the whole config; `cases` maps names to overrides of other fields.

    Returns:
      The config of each case, in alphabetical order, which is that of a ConfigDict.

    Raises:
      ConfigError: no cases, an override of an unknown field or of a wrong type, a
        sweep of what no case takes, or a number of something that cannot be.
    """
    if not config.cases:
        raise ConfigError("config.cases is empty; name at least one case.")
    for name in config.cases:
        if not re.fullmatch(r"[\w+-][\w+. -]*", name):
            raise ConfigError(
                f"config.cases holds {name!r}; the name of a case is that of a folder: "
                "letters, digits, '_', '-', '+', '.' and spaces."
            )
    config = complete(config)
    cases = {name: _make_case(config, name) for name in config.cases}
    for field, values in config.sweep.items():
        if values and field in HYPERPARAMETERS:
            _check_is_taken(f"sweep.{field}", cases)
    for name, case in cases.items():
        _check_counts(name, config.cases[name], case)
    return cases


def keep_cases(config: ConfigDict, names: Sequence[str]) -> None:
    """Leaves only the named cases in a config.

    Raises:
      ConfigError: it has no such case.
    """
    for name in names:
        if name not in config.cases:
            raise ConfigError(
                f"--cases: the config has no case {name!r}: "
                f"{did_you_mean(name, list(config.cases))}"
            )
    with config.unlocked():
        for name in [name for name in config.cases if name not in names]:
            del config.cases[name]


def check_has_effect(config: ConfigDict, field: str, case: str | None = None) -> None:
    """Raises ConfigError if setting a field does nothing.

    No case may take it, or the sweep or all cases that do have their own.

    Args:
      config: the whole config.
      field: its name.
      case: the case that it was set for, None for all.
    """
    cases = {
        name: fields for name, fields in _merged(config).items() if case in (None, name)
    }
    if field in HYPERPARAMETERS:
        _check_is_taken(field if case is None else f"cases.{case}.{field}", cases)
        cases = {
            name: one for name, one in cases.items() if field in hyperparameters_of(one)
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
    several times alike. What is no hyperparameter at all stays, for `make_grid` to
    name.
    """
    parameters = hyperparameters_of(case.to_dict())
    # A method that is an optimizer itself says why it takes nothing of the other.
    known = parameters | optimizer_hyperparameters(case.optimizer, case)
    for field, values in sweep.items():
        if values and field not in known:
            raise ConfigError(
                f"config.cases.{name}.sweep holds {field!r}, which it does not take: "
                f" {did_you_mean(field, list(parameters), list_all=True)}"
            )
    shared = {
        field: values
        for field, values in case.sweep.items()
        if field in parameters or field not in HYPERPARAMETERS
    }
    case.sweep = shared | dict(sweep)


def _check_is_taken(path: str, cases: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ConfigError for a hyperparameter that none of some cases takes."""
    field = path.rpartition(".")[2]
    taken: dict[str, Any] = {}
    for case in cases.values():
        taken |= hyperparameters_of(case)
    if cases and field not in taken:
        who = f"case {next(iter(cases))!r} does" if len(cases) == 1 else "the cases do"
        takers = [
            name for name, method in METHODS.items() if field in method.hyperparameters
        ]
        hint = f" It goes with config.method {', '.join(takers)}." if takers else ""
        raise ConfigError(
            f"config.{path} has no effect, because {who} not take it: "
            f"{did_you_mean(field, list(taken), list_all=True)}{hint}"
        )


def _check_counts(name: str, overrides: Collection[str], config: Any) -> None:
    """Raises ConfigError unless all counts of a case are what they can be."""
    for field, (least, most) in _COUNTS.items():
        if field in config and not least <= config[field] <= most:
            path = f"cases.{name}.{field}" if field in overrides else field
            raise ConfigError(
                f"config.{path} must be from {least} to {most}, got {config[field]}."
            )


class Lane(NamedTuple):
    """What tells lanes apart: arrays [L], or scalars inside one lane."""

    seed: jax.Array  # uint32
    hyperparameters: dict[str, jax.Array]  # float32


class LaneGrid(NamedTuple):
    """The lanes of a case in the order (swept values ..., seed)."""

    lanes: Lane  # NumPy arrays [L]
    coordinates: dict[str, np.ndarray]  # Swept names, then "seed".

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the coordinates; their product is L."""
        return tuple(len(values) for values in self.coordinates.values())


def make_grid(config: Any) -> LaneGrid:
    """Lays out the lanes of a case.

    Args:
      config: the case's config, with `num_seeds`, `first_seed` and `sweep`.

    Returns:
      The grid of all combinations. Hyperparameters that are off in every lane are left
      out, so that no code is compiled for them.

    Raises:
      ConfigError: no seeds, or one past 2**32 - 1; a sweep over something that is not a
        hyperparameter, over a value twice, or over one out of range.
    """
    last_seed = config.first_seed + config.num_seeds - 1
    if config.num_seeds < 1 or config.first_seed < 0 or last_seed > _LAST_SEED:
        raise ConfigError(
            "config.num_seeds must be at least 1, config.first_seed not negative, and "
            f"no seed above {_LAST_SEED}; got {config.num_seeds} seeds from "
            f"{config.first_seed} to {last_seed}."
        )
    for name in config.sweep:
        if name not in HYPERPARAMETERS:
            if name not in config:
                raise ConfigError(
                    f"config.sweep holds {name!r}, which is no field: "
                    f"{did_you_mean(name, list(HYPERPARAMETERS))}"
                )
            raise ConfigError(
                f"config.sweep cannot hold {name!r}: it changes the compiled program. "
                f"Make each value a case of config.cases. In one program sweep "
                f"{list(HYPERPARAMETERS)}."
            )
    swept = {
        name: tuple(config.sweep[name])
        for name in HYPERPARAMETERS
        if config.sweep.get(name)
    }
    names = [name for name in HYPERPARAMETERS if name in config]
    for name in names:
        HYPERPARAMETERS[name].range.check(name, config[name])
        _check_swept(name, swept.get(name, ()))
    num_lanes = config.num_seeds * math.prod(map(len, swept.values()))
    if num_lanes > _MOST_LANES:
        raise ConfigError(
            f"config.num_seeds ({config.num_seeds}) and config.sweep make {num_lanes} "
            f"lanes; a case can have {_MOST_LANES}."
        )
    seeds = range(config.first_seed, last_seed + 1)
    coordinates = {name: np.asarray(values, float) for name, values in swept.items()}
    coordinates["seed"] = np.asarray(seeds, np.uint32)
    points = list(itertools.product(*coordinates.values()))
    columns = dict(zip(coordinates, zip(*points, strict=True), strict=True))
    hyperparameters = {
        name: np.asarray(columns.get(name, [config[name]] * len(points)), np.float32)
        for name in names
        if name in swept or config[name] != HYPERPARAMETERS[name].off
    }
    lanes = Lane(np.asarray(columns["seed"], np.uint32), hyperparameters)
    return LaneGrid(lanes, coordinates)


def _check_swept(name: str, values: Sequence[float]) -> None:
    """Raises ConfigError for values out of range, and for the same one twice."""
    for value in values:
        HYPERPARAMETERS[name].range.check(f"sweep.{name}", value)
    if len(np.unique(np.asarray(values, np.float32))) < len(values):
        raise ConfigError(
            f"config.sweep.{name} holds a value twice, as lanes see it in float32: "
            f"{values}. Each value makes lanes of its own; leave the second out."
        )


def lane_hyperparameters(config: Any, lane: Lane) -> SimpleNamespace:
    """Returns the hyperparameters of one lane: traced, or a number where off."""
    fixed = {name: config[name] for name in HYPERPARAMETERS if name in config}
    return SimpleNamespace(**(fixed | lane.hyperparameters))


def lane_key(lane: Lane) -> jax.Array:
    """Returns the key from which everything random in a lane derives."""
    return make_key(lane.seed)
