"""Turns the command line into cases and lanes, and finds all mistakes before a run.

A lane takes the value of a field from the last of these that sets it:

1. the default of a hyperparameter that its case takes, in `learning/`;
2. the config file: the fields of all problems, of its problem, of its preset;
3. `--config.FIELD=VALUE`;
4. its case: `config.cases.NAME` in the file, and `--config.cases.NAME.FIELD=VALUE`;
5. its point of the sweep: `config.cases.NAME.sweep` or, for hyperparameters that are
   not in it but that the case takes, `config.sweep`;
6. its trial of the search, whose ranges are `config.cases.NAME.search` or, likewise,
   `config.search`. There are `config.num_trials` of them.

Setting a value that is overridden in every case is an error.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
import math
import re
import sys
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

from absl import flags
import jax
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path
import numpy as np

from experiments.learning.base_optimizers import (
    ALWAYS_IN_CONFIGS,
    OPTIMIZERS,
    optimizer_hyperparameters,
)
from experiments.learning.checks import ConfigError, did_you_mean
from experiments.learning.hyperparameters import HYPERPARAMETERS
from experiments.learning.keys import make_key
from experiments.learning.methods import METHODS, hyperparameters_of
from experiments.run.search import draw_trials

NOT_OF_A_CASE = ("cases", "num_seeds", "first_seed")
"""Fields of a config that a case cannot override."""


# Smallest and largest values of the integer fields, if a problem has them.
_COUNTS = {
    "num_tasks": (1, 2**31 - 1),
    "num_trials": (1, 10_000_000),
    "examples_per_task": (1, 2**31 - 1),
    "checkpoint_every": (1, 2**31 - 1),
    "checkpoint_seconds": (0, 2**31 - 1),
    "hidden_layers": (0, 1000),  # Each is compiled separately.
    "lanes_per_block": (0, 2**31 - 1),
    "rank_every": (0, 2**31 - 1),
    "probe_every": (0, 2**31 - 1),
    "replacement_log": (0, 2**31 - 1),
}

_LAST_SEED = 2**32 - 1
_MOST_LANES = 10_000_000

Path = tuple[str | int, ...]


def define_config_flag(
    arguments: list[str] | None = None, flag_values: flags.FlagValues = flags.FLAGS
) -> flags.FlagHolder:
    """Defines `--config=FILE[:PRESET]` and the flags that override its fields.

    `--config.FIELD=VALUE` sets a field for all cases, `--config.cases.NAME.FIELD=VALUE`
    for one. `--config.sweep.FIELD='(VALUE, ...)'` and
    `--config.cases.NAME.sweep.FIELD='(VALUE, ...)'` make lanes, and so do
    `--config.search.FIELD='(LOW, HIGH)'` and
    `--config.cases.NAME.search.FIELD='(LOW, HIGH)'`.

    Args:
      arguments: the command line; None for that of the process.
      flag_values: the flags to add it to.
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
    """Reads a config, and adds fields that flags set but the config lacks."""

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
    """Yields the fields that command-line arguments override.

    Yields:
      Their paths, without `config`.
    """
    for argument in arguments:
        flag = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if flag:
            try:
                yield config_path.split(flag[1])
            except ValueError:
                continue  # `ml_collections` reports it.


def _add_missing(config: ConfigDict, path: Path) -> None:
    """Adds a missing field to the config, the sweep or a case.

    Raises:
      flags.Error: there is no such field, or it cannot be set there.
    """
    match path:
        case ("sweep" | "search" as kind, name):
            _add_swept(config, config[kind], f"config.{kind}", name)
        case ("cases", name, *_) if name not in config.cases:
            raise flags.Error(
                f"config.cases has no case {name!r}: "
                f"{did_you_mean(str(name), list(config.cases))}"
            )
        case ("cases", name, "sweep" | "search" as kind, *swept):
            own = config.cases[name]
            if kind not in own:
                own[kind] = ConfigDict()
            for field in swept:
                _add_swept(config, own[kind], f"config.cases.{name}.{kind}", field)
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
            f"{where} cannot contain {name!r}, which changes the compiled program: "
            "make each value a case in config.cases."
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
            f"config.cases.{name} cannot set {field!r}, which is the same for all "
            f"cases: set --config.{field}."
        )
    if field in config:
        # From a copy, so that setting it in the case does not change the config.
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
    """Adds missing hyperparameters that the cases take.

    Args:
      config: the whole config, which is not changed.

    Returns:
      A config with the published values of the hyperparameters that were missing, and
      an entry in `sweep` for each hyperparameter.
    """
    completed = ConfigDict(config.to_dict())
    _add_hyperparameters(completed)
    return completed


def _add_hyperparameters(config: ConfigDict) -> None:
    for fields in _merged(config).values():
        taken = ALWAYS_IN_CONFIGS | hyperparameters_of(fields)
        for name, hyperparameter in taken.items():
            if name not in config:
                config[name] = hyperparameter.default
            if name not in config.sweep:
                config.sweep[name] = ()


def _merged(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Returns the fields of each case, unchecked.

    A case with a sweep or a search of its own has only that one.
    """
    return {
        name: config.to_dict() | case.to_dict() for name, case in config.cases.items()
    }


def make_cases(config: ConfigDict) -> dict[str, ConfigDict]:
    """Makes the config of each case; the docstring of this module has the precedence.

    Args:
      config: the whole config; `cases` maps names to overrides of other fields.

    Returns:
      The config of each case, in alphabetical order, as in a ConfigDict. Its `sweep`
      also holds the values of the trials for each field in its `search`.

    Raises:
      ConfigError: there are no cases, an override has an unknown field or the wrong
        type, a swept or searched hyperparameter is taken by no case, an integer is out
        of range, or a search is impossible.
    """
    if not config.cases:
        raise ConfigError("config.cases is empty; name at least one case.")
    for name in config.cases:
        if not re.fullmatch(r"[\w+-][\w+. -]*", name):
            raise ConfigError(
                f"config.cases contains {name!r}. The name of a case is also that of a "
                "folder: use letters, digits, '_', '-', '+', '.' and spaces."
            )
    config = complete(config)
    cases = {name: _make_case(config, name) for name in config.cases}
    for kind in ("sweep", "search"):
        for field, values in config[kind].items():
            if values and field in HYPERPARAMETERS:
                _check_is_taken(f"{kind}.{field}", cases)
    for name, case in cases.items():
        _check_counts(name, config.cases[name], case)
        _add_trials(case, name, config.cases[name])
    return cases


def keep_cases(config: ConfigDict, names: Sequence[str]) -> None:
    """Removes all but the named cases from a config.

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
    """Raises ConfigError if setting a field has no effect.

    That is so if no case takes it, or if the sweep, the search or every case that takes
    it overrides it.

    Args:
      config: the whole config.
      field: name of the field.
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
    searching = [name for name, one in cases.items() if _searched(config, name, field)]
    if cases and len(searching) == len(cases):
        is_shared = bool(config.search.get(field)) and case is None
        where = ["search"] if is_shared else [f"cases.{n}.search" for n in searching]
        flags = [f"--config.{one}.{field}='(LOW, HIGH)'" for one in where]
        path = field if case is None else f"cases.{case}.{field}"
        raise ConfigError(
            f"config.{path} has no effect, because it is searched: set "
            f"{', '.join(flags)}."
        )
    if field == "num_trials" and not any(
        any(one.values())
        for one in (config.search, *(case["search"] for case in cases.values()))
    ):
        raise ConfigError(
            "config.num_trials has no effect, because nothing is searched: set "
            "--config.search.FIELD='(LOW, HIGH)'."
        )
    if case is not None:
        return
    if config.sweep.get(field):
        raise ConfigError(
            f"config.{field} has no effect, because it is swept: set "
            f"--config.sweep.{field}='(VALUE, ...)'."
        )
    if cases and all(field in config.cases[name] for name in cases):
        flags = [f"--config.cases.{name}.{field}" for name in cases]
        raise ConfigError(
            f"config.{field} has no effect, because every case that takes it overrides "
            f"it: set {', '.join(flags)}."
        )


def _searched(config: ConfigDict, name: str, field: str) -> Any:
    """Returns the range in which a case searches a field; empty or None if it does not.

    A case without an own range may still not take the field.
    """
    own = config.cases[name].get("search", ConfigDict())
    return own[field] if field in own else config.search.get(field)


def _make_case(config: ConfigDict, name: str) -> ConfigDict:
    case = ConfigDict(config.to_dict())
    for field, value in config.cases[name].items():
        if field in ("sweep", "search"):
            continue
        if field in NOT_OF_A_CASE or field not in config:
            hint = did_you_mean(field, sorted({*config} - {*NOT_OF_A_CASE}))
            raise ConfigError(
                f"config.cases.{name} overrides {field!r}, which a case cannot: {hint}"
            )
        try:
            case[field] = value
        except TypeError as error:
            raise ConfigError(f"config.cases.{name}.{field}: {error}") from error
    for kind in ("sweep", "search"):
        own = config.cases[name].get(kind, ConfigDict()).to_dict()
        _merge(case, name, kind, own)
        for field in config.cases[name]:
            if field not in own and case[kind].get(field):
                raise ConfigError(
                    f"config.cases.{name}.{field} has no effect, because config.{kind}."
                    f"{field} applies to all cases: set config.cases.{name}.{kind}."
                    f"{field} to () to exclude the case, or to other values."
                )
    return case


def _merge(case: ConfigDict, name: str, kind: str, own: Mapping[str, Any]) -> None:
    """Merges a case's own sweep or search into that of the config, which it overrides.

    Hyperparameters that the case does not take are dropped from that of the config;
    otherwise identical lanes would be trained. Names that are no hyperparameters are
    kept for `make_grid` and `_add_trials` to report.
    """
    parameters = hyperparameters_of(case.to_dict())
    # A method that is itself an optimizer reports why it takes none of the other's.
    known = parameters | optimizer_hyperparameters(case.optimizer, case)
    for field, values in own.items():
        if values and field not in known:
            raise ConfigError(
                f"config.cases.{name}.{kind} contains {field!r}, which the case does "
                f"not take: {did_you_mean(field, list(parameters), list_all=True)}"
            )
    shared = {
        field: values
        for field, values in case[kind].items()
        if field in parameters or field not in HYPERPARAMETERS
    }
    case[kind] = shared | dict(own)


def _add_trials(case: ConfigDict, name: str, overrides: ConfigDict) -> None:
    """Adds the values of the trials to a case's sweep, if it searches any field.

    The field itself becomes that of the first trial, so that code that depends on the
    largest value of a sweep and on the field is that of a run without a search.
    """
    _check_names("search", case)
    own = overrides.get("search", ConfigDict())
    for field, ends in case.search.items():
        if ends in ((), []):
            continue
        path = f"cases.{name}.search.{field}" if field in own else f"search.{field}"
        HYPERPARAMETERS[field].check_search(path, ends)
        if case.sweep.get(field):
            raise ConfigError(
                f"config.{path} has a range, but case {name!r} also sweeps {field}: "
                f"set config.{path} or the sweep to ()."
            )
    ranges = searched_ranges(case)
    if not ranges:
        return
    trials = draw_trials(ranges, case.num_trials)
    points = np.stack(list(trials.values()), axis=1).astype(np.float32)
    num_points = len(np.unique(points, axis=0))
    if num_points < case.num_trials:
        raise ConfigError(
            f"config.num_trials is {case.num_trials}, but the search of case {name!r} "
            f"({', '.join(ranges)}) has only {num_points} different points: lower "
            "config.num_trials, widen the ranges, or search more fields."
        )
    for field, values in trials.items():
        case.sweep[field] = tuple(values.tolist())
        with case.ignore_type():
            case[field] = float(values[0])


def _check_is_taken(path: str, cases: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ConfigError if none of the cases takes a hyperparameter."""
    field = path.rpartition(".")[2]
    taken: dict[str, Any] = {}
    for case in cases.values():
        taken |= hyperparameters_of(case)
    if cases and field not in taken:
        who = f"case {next(iter(cases))!r} does" if len(cases) == 1 else "the cases do"
        hint = ""
        for kind, declared in (("method", METHODS), ("optimizer", OPTIMIZERS)):
            takers = [
                name for name, one in declared.items() if field in one.hyperparameters
            ]
            if takers:
                hint += f" It goes with config.{kind} {', '.join(takers)}."
        raise ConfigError(
            f"config.{path} has no effect, because {who} not take it: "
            f"{did_you_mean(field, list(taken), list_all=True)}{hint}"
        )


def _check_counts(name: str, overrides: Collection[str], config: Any) -> None:
    """Raises ConfigError if an integer field of a case is out of range."""
    for field, (least, most) in _COUNTS.items():
        if field in config and not least <= config[field] <= most:
            path = f"cases.{name}.{field}" if field in overrides else field
            raise ConfigError(
                f"config.{path} must be from {least} to {most}, got {config[field]}."
            )


class Lane(NamedTuple):
    """What differs between lanes: arrays [L], or scalars inside one lane."""

    seed: jax.Array  # uint32
    hyperparameters: dict[str, jax.Array]  # float32


class LaneGrid(NamedTuple):
    """The lanes of a case in the order (swept values ..., trial, seed)."""

    lanes: Lane  # NumPy arrays [L]
    coordinates: dict[str, np.ndarray]  # Swept names, "trial" of a search, "seed".
    # The values of searched hyperparameters, float64 [trials].
    trials: Mapping[str, np.ndarray] = MappingProxyType({})

    @property
    def swept_names(self) -> list[str]:
        """The hyperparameters that are swept or searched."""
        names = (*self.coordinates, *self.trials)
        return [name for name in names if name not in ("trial", "seed")]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the coordinates; their product is L."""
        return tuple(len(values) for values in self.coordinates.values())


def make_grid(config: Any) -> LaneGrid:
    """Lays out the lanes of a case.

    Args:
      config: the case's config, with `num_seeds`, `first_seed`, `sweep` and `search`;
        the values of the fields in `search` are in `sweep`, as `make_cases` puts them.

    Returns:
      The grid of all combinations of swept values, trials and seeds. Hyperparameters
      that are off in every lane are left out, so that no code is compiled for them.

    Raises:
      ConfigError: there are no seeds, or one is above 2**32 - 1; or the sweep contains
        a name that is not a hyperparameter, a duplicate, or a value out of range.
    """
    last_seed = config.first_seed + config.num_seeds - 1
    if config.num_seeds < 1 or config.first_seed < 0 or last_seed > _LAST_SEED:
        raise ConfigError(
            "config.num_seeds must be at least 1, config.first_seed not negative, and "
            f"no seed above {_LAST_SEED}; got {config.num_seeds} seeds from "
            f"{config.first_seed} to {last_seed}."
        )
    _check_names("sweep", config)
    swept = {}
    for name in HYPERPARAMETERS:
        values = config.sweep.get(name, ())
        if not isinstance(values, list | tuple):
            raise ConfigError(
                f"config.sweep.{name} is {values!r}, which is not a tuple: write "
                "(0.1, 0.2), or (0.1,) for a single value."
            )
        if values:
            swept[name] = tuple(values)
    names = [name for name in HYPERPARAMETERS if name in config]
    searched = [name for name in swept if config.search.get(name)]
    for name in names:
        HYPERPARAMETERS[name].range.check(name, config[name])
        if name not in searched:
            _check_swept(name, swept.get(name, ()))
    coordinates = {name: np.asarray(values, float) for name, values in swept.items()}
    trials = {name: coordinates.pop(name) for name in searched}
    if trials:
        coordinates["trial"] = np.arange(len(next(iter(trials.values()))))
    num_lanes = config.num_seeds * math.prod(map(len, coordinates.values()))
    if num_lanes > _MOST_LANES:
        search = f", config.num_trials ({config.num_trials})" if trials else ""
        raise ConfigError(
            f"config.num_seeds ({config.num_seeds}){search} and config.sweep make "
            f"{num_lanes} lanes; a case can have at most {_MOST_LANES}."
        )
    seeds = range(config.first_seed, last_seed + 1)
    coordinates["seed"] = np.asarray(seeds, np.uint32)
    points = [one.ravel() for one in np.meshgrid(*coordinates.values(), indexing="ij")]
    columns = setting_at(dict(zip(coordinates, points, strict=True)), trials)
    hyperparameters = {
        name: np.asarray(columns.get(name, [config[name]] * num_lanes), np.float32)
        for name in names
        if name in swept or config[name] != HYPERPARAMETERS[name].off
    }
    lanes = Lane(np.asarray(columns["seed"], np.uint32), hyperparameters)
    return LaneGrid(lanes, coordinates, trials)


def setting_at(
    point: Mapping[str, Any], trials: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Replaces the number of a trial by its values.

    Args:
      point: numbers or arrays by name, with "trial" if there are any.
      trials: see `LaneGrid`.
    """
    setting = dict(point)
    if "trial" in setting:
        trial = setting.pop("trial")
        setting |= {name: values[trial] for name, values in trials.items()}
    return setting


def searched_ranges(config: Any) -> dict[str, tuple[str, tuple[float, ...]]]:
    """Returns the scale and the range of each field that a case searches."""
    return {
        name: (HYPERPARAMETERS[name].scale, tuple(config.search[name]))
        for name in HYPERPARAMETERS
        if config.search.get(name)
    }


def _check_names(kind: str, config: Any) -> None:
    """Raises ConfigError if a sweep or search contains what is no hyperparameter."""
    for name in config[kind]:
        if name in HYPERPARAMETERS:
            continue
        if name not in config:
            raise ConfigError(
                f"config.{kind} contains {name!r}, which is not a field: "
                f"{did_you_mean(name, list(HYPERPARAMETERS))}"
            )
        raise ConfigError(
            f"config.{kind} cannot contain {name!r}, which changes the compiled "
            f"program: make each value a case in config.cases. The {kind} can "
            f"contain {list(HYPERPARAMETERS)}."
        )


def _check_swept(name: str, values: Sequence[float]) -> None:
    """Raises ConfigError for values out of range and for duplicates."""
    for value in values:
        HYPERPARAMETERS[name].range.check(f"sweep.{name}", value)
    if len(np.unique(np.asarray(values, np.float32))) < len(values):
        raise ConfigError(
            f"config.sweep.{name} contains a value twice, in the lanes' float32: "
            f"{values}. Remove the duplicate."
        )


def lane_hyperparameters(config: Any, lane: Lane) -> SimpleNamespace:
    """Returns the hyperparameters of one lane: traced, or numbers if they are off."""
    fixed = {name: config[name] for name in HYPERPARAMETERS if name in config}
    return SimpleNamespace(**(fixed | lane.hyperparameters))


def lane_key(lane: Lane) -> jax.Array:
    """Returns the key from which all random numbers of a lane are derived."""
    return make_key(lane.seed)
