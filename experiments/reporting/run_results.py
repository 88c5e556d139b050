"""The results of a run as one labeled data set, and their file.

Internally, all learners are on one dimension, `lane`, with the coordinates case, each
swept hyperparameter (NaN if the case does not sweep it) and seed.

The data set that is written and read (`public_form`) has the dimensions case, each
swept hyperparameter, seed, task and layer; and epoch, for measures after each epoch of
a task. If cases sweep different hyperparameters, or search several, one dimension
`point` replaces these: point p of a case is the p-th combination of its own values, or
its p-th trial, and the values are coordinates (case, point). The attribute `search` is
the scale and the range of each hyperparameter that a case searches, as JSON.

The results of an unfinished run are NaN for tasks that are not done, including their
`examples`. The attributes `tasks_done` and `tasks_planned` are the progress of each
case, and `code` is the code that computed the results; all three are JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
import io
import itertools
import json
import math
import os
import pathlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.reporting.files import RESULTS_FILE

if TYPE_CHECKING:
    import xarray as xr

BY_EPOCH = "_by_epoch"
"""Ending of the names of variables that are measured after each epoch of a task."""

_OF_A_SETTING = ("examples", "steps")
_OF_A_CASE = (
    *("num_weights", "num_units", "num_features"),
    *("steps_per_second", "lanes_per_block"),
)
"""Variables that are the same for all seeds, and for all lanes of a case."""

# Descriptions of the variables, for readers of the file.
DESCRIPTIONS = {
    "accuracy": "fraction of correct predictions: online, before the update, or on the "
    "test images at the end of the task",
    "accuracy_by_epoch": "fraction of correct predictions on the test images",
    "train_accuracy": "fraction of correct predictions on the training images at the "
    "end of the task",
    "test_accuracy": "fraction of correct predictions on the test images at the end of "
    "the task",
    "error": "squared error, before the update",
    "loss": "minimized loss, before the update",
    "dead_units": "fraction of units whose output is 0 on all measured examples",
    "tau_dormant_units": "fraction of units with at most 0.1 of the layer's mean |h|",
    "saturated_units": "fraction of units near an asymptote on 99 % of the examples",
    "effective_rank": "exp(entropy of the normalized singular values) of the features",
    "stable_rank": "number of singular values with 99 % of their sum",
    "approximate_rank": "number of singular values with 99 % of the sum of squares",
    "weight_magnitude": "mean |w| of the layer's kernel",
    "gradient_norm": "L2 norm of the gradient on the measured examples",
    "update_to_weight": "norm of one update on these examples over that of the params",
    "update_plasticity": "share of the loss of its own batch that an update removes",
    "aged_area": "area under the loss of a copy that learns the task's first examples",
    "fresh_area": "the same for a copy of the initial params",
    "aged_minus_fresh": "aged_area minus fresh_area: above 0 if plasticity is lost",
    "aged_updates": "updates of the aged copy to half the first loss of the fresh one",
    "readiness": "gradient_strength times gradient_reliability, before the task",
    "gradient_strength": "squared norm of the gradient over the loss",
    "gradient_reliability": "squared norm of the gradient over that of batches' ones",
    "always_on_units": "fraction of units above 0 on at least 90 % of the examples",
    "duplicate_units": "fraction of units with a cosine above 0.95 to another unit",
    "gradient_dormant_units": "fraction of units with at most 0.01 of the layer's mean "
    "gradient",
    "participation_ratio": "squared sum of the squared singular values of the features "
    "over the sum of their fourth powers",
    "spectral_norm": "largest singular value of the layer's kernel",
    "distance_from_initialization": "L2 distance of the layer from its first params",
    "hessian_rank": "number of eigenvalues of the Hessian above 0.1 in magnitude, of "
    "those that 100 Lanczos steps find",
    "sharpness": "largest of these eigenvalues",
    "tangent_kernel_rank": "effective rank of the tangent kernel on up to 32 examples",
    "tangent_kernel_condition": "condition number of this kernel",
    "mean_age": "updates since the last reset of a unit, mean over the layer",
    "units_reset": "units of the layer reset since the first task",
    "steps_per_second": "updates per second over all lanes, without compilation",
    "lanes_per_block": "lanes vmapped together on a device",
    "examples": "examples seen by the end of the task",
    "steps": "updates made by the end of the task",
    "num_weights": "entries of the layer's kernel",
    "num_units": "hidden units of the layer, 0 for the head",
    "num_features": "outputs of the units at each position, 0 for the head",
    "dead_units_percent": "dead units, 0 to 100",
    "effective_rank_percent": "effective rank as a percentage of the width, 0 to 100",
}


def case_dataset(
    name: str,
    coordinates: Mapping[str, np.ndarray],
    layers: Sequence[str],
    metrics: Mapping[str, np.ndarray],
    layer_sizes: Mapping[str, Sequence[int]],
    examples_per_task: int,
    steps_per_task: int,
    steps_per_second: float,
    lanes_per_block: int,
    trials: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> xr.Dataset:
    """Labels the metrics of one case.

    Args:
      name: name of the case.
      coordinates: values of each swept hyperparameter, "trial" if there are any, then
        the seeds; the L lanes are all combinations.
      layers: names of the learner's layers.
      metrics: arrays [L, tasks], [L, tasks, layers] or, if their names end in
        `_by_epoch`, [L, tasks, epochs]; empty if the case has not started.
      layer_sizes: `num_weights`, `num_units` and `num_features` of each layer.
      examples_per_task: examples per lane and task.
      steps_per_task: updates per lane and task.
      steps_per_second: updates per second of the case.
      lanes_per_block: lanes that each device vmapped together.
      trials: values of each searched hyperparameter, by trial.

    Returns:
      The lanes, with dimensions (lane, task, layer) and, if anything was measured after
      each epoch, `epoch`.
    """
    import xarray as xr

    grid = np.meshgrid(*coordinates.values(), indexing="ij")
    columns = {
        name: values.ravel() for name, values in zip(coordinates, grid, strict=True)
    }
    if trials:
        trial, seed = columns.pop("trial"), columns.pop("seed")
        columns |= {name: values[trial] for name, values in trials.items()}
        columns["seed"] = seed
    num_lanes = grid[0].size
    num_tasks = next((values.shape[1] for values in metrics.values()), 0)
    tasks_done = np.arange(num_tasks) + 1
    shared = {
        "examples": (["task"], 1.0 * tasks_done * examples_per_task),
        "steps": (["task"], 1.0 * tasks_done * steps_per_task),
        "steps_per_second": ([], float(steps_per_second)),
        "lanes_per_block": ([], float(lanes_per_block)),
    } | {
        size: (["layer"], np.array(values, float))
        for size, values in layer_sizes.items()
    }
    lanes = xr.Dataset(
        {
            metric: (
                ("lane", "task", "epoch" if metric.endswith(BY_EPOCH) else "layer")[
                    : values.ndim
                ],
                np.asarray(values, float),
            )
            for metric, values in metrics.items()
        }
        | {
            key: (("lane", *dims), np.tile(values, (num_lanes, *(1 for _ in dims))))
            for key, (dims, values) in shared.items()
        },
        coords={"case": ("lane", [name] * num_lanes)}
        | {key: ("lane", values) for key, values in columns.items()}
        | {"task": np.arange(num_tasks), "layer": list(layers)},
    )
    return _add_percentages(lanes)


def _add_percentages(lanes: xr.Dataset) -> xr.Dataset:
    """Adds measures that the paper shows as percentages of the width, 0 to 100."""
    if "dead_units" in lanes:
        lanes["dead_units_percent"] = 100 * lanes.dead_units
    if "effective_rank" in lanes:
        width = lanes.num_features.where(lanes.num_features > 0)
        lanes["effective_rank_percent"] = 100 * lanes.effective_rank / width
    return lanes


def join_cases(
    cases: Sequence[xr.Dataset], attributes: Mapping[str, Any]
) -> xr.Dataset:
    """Joins the lanes of cases; missing tasks and layers of a case are NaN.

    Returns:
      The results as they are written; see `public_form`.
    """
    import xarray as xr

    swept = dict.fromkeys(itertools.chain(*map(swept_names, cases)))
    layers = dict.fromkeys(itertools.chain(*(case.layer.values for case in cases)))
    layers = [*(layer for layer in layers if layer != "head"), "head"]
    num_tasks = max(case.sizes["task"] for case in cases)
    lanes = xr.concat(
        [
            case.reindex(layer=layers, task=np.arange(num_tasks)).assign_coords(
                {
                    name: ("lane", np.full(case.sizes["lane"], np.nan))
                    for name in swept
                    if name not in case.coords
                }
            )
            for case in cases
        ],
        dim="lane",
        data_vars="all",
        coords="minimal",
        compat="equals",
        join="outer",
    )
    return public_form(lanes).assign_attrs(attributes)


def public_form(lanes: xr.Dataset) -> xr.Dataset:
    """Lays lanes out along case, each swept hyperparameter, and seed.

    If all cases sweep the same values, each hyperparameter is a dimension; otherwise
    there is the dimension `point`.
    """
    import xarray as xr

    settings = _settings_of_lanes(lanes)
    # The number of each point of each case.
    points: dict[str, dict[tuple[tuple[str, float], ...], int]] = {}
    for (_, case), *point in settings:
        own = points.setdefault(case, {})
        own.setdefault(tuple(point), len(own))
    first = next(iter(points.values()))
    sweep = _swept_values(first)
    sizes = tuple(len(values) for values in sweep.values())
    same_sweep = len(first) == math.prod(sizes) and all(
        own.keys() == first.keys() for own in points.values()
    )
    num_points = max(map(len, points.values()))
    if same_sweep:
        points = dict.fromkeys(points, first)
    else:
        sweep, sizes = {"point": np.arange(num_points)}, (num_points,)
    cases, seeds = list(points), list(dict.fromkeys(lanes.seed.values.tolist()))
    places = (
        (cases.index(case), points[case][tuple(point)], seeds.index(seed))
        for ((_, case), *point), seed in zip(
            settings, lanes.seed.values.tolist(), strict=True
        )
    )
    index = tuple(np.array(numbers) for numbers in zip(*places, strict=True))

    def variable(name: str) -> tuple[tuple[str, ...], np.ndarray]:
        """Returns the dimensions and values of a variable."""
        values, (_, *others) = lanes[name].values, lanes[name].dims
        full = np.full((len(cases), num_points, len(seeds), *values.shape[1:]), np.nan)
        full[index] = values
        if name in _OF_A_CASE or (name in _OF_A_SETTING and same_sweep):
            return ("case", *others), full[:, 0, 0]
        if name in _OF_A_SETTING:
            return ("case", "point", *others), full[:, :, 0]
        shape = (len(cases), *sizes, len(seeds), *values.shape[1:])
        return ("case", *sweep, "seed", *others), full.reshape(shape)

    coordinates = {"case": cases, **sweep, "seed": np.array(seeds, lanes.seed.dtype)}
    if not same_sweep:
        for name in swept_names(lanes):
            values = np.full((len(cases), num_points), np.nan)
            values[index[:2]] = lanes[name].values
            coordinates[name] = ("case", "point"), values
    coordinates |= {name: lanes[name].values for name in ("task", "layer")}
    dataset = xr.Dataset(
        {name: variable(name) for name in lanes.data_vars}, coordinates
    )
    for name, description in DESCRIPTIONS.items():
        if name in dataset:
            dataset[name].attrs["description"] = description
    return dataset.assign_attrs(lanes.attrs)


def lanes_of(dataset: xr.Dataset) -> xr.Dataset:
    """Returns the lanes of a run that have started, including those that diverged.

    Args:
      dataset: results of a run, written by any version of this program.

    Returns:
      All variables with a dimension `lane`. Its coordinates are the case, each
      hyperparameter that any case sweeps (NaN if the lane's does not), and the seed.
    """
    if "point" in dataset.dims:
        dataset = dataset.drop_vars("point", errors="ignore")
        sweep = ["point"]
    else:
        sweep = swept_names(dataset)
    lanes = dataset.stack(lane=("case", *sweep, "seed"), create_index=False)
    lanes = lanes.transpose("lane", ...)
    # If a case has no results, or fewer points than another, examples are NaN.
    return lanes.isel(lane=lanes.examples.notnull().any("task").values)


def settings_of(dataset: xr.Dataset) -> Iterator[tuple[dict[str, Any], xr.Dataset]]:
    """Yields all settings that were run: the points of each case.

    Yields:
      The labels of the setting (the case and the values that it sweeps), and its
      results with the dimensions seed, task and layer.
    """
    lanes = lanes_of(dataset)
    found: dict[tuple[tuple[str, Any], ...], list[int]] = {}
    for lane, setting in enumerate(_settings_of_lanes(lanes)):
        found.setdefault(setting, []).append(lane)
    shared = [name for name in (*_OF_A_SETTING, *_OF_A_CASE) if name in lanes]
    for setting, own in found.items():
        results = lanes.isel(lane=own).swap_dims(lane="seed")
        results = results.drop_vars(["case", *swept_names(lanes)])
        yield (
            dict(setting),
            results.assign({name: results[name].isel(seed=0) for name in shared}),
        )


def swept_names(dataset: xr.Dataset) -> list[str]:
    """Returns the hyperparameters that any case sweeps, for results in any form."""
    others = ("case", "seed", "task", "layer", "epoch", "point")
    return [str(name) for name in dataset.coords if name not in others]


def _settings_of_lanes(lanes: xr.Dataset) -> list[tuple[tuple[str, Any], ...]]:
    """Returns the names and values of each lane's case and swept hyperparameters."""
    names = ("case", *swept_names(lanes))
    columns = (lanes[name].values.tolist() for name in names)
    return [
        tuple(
            (name, value)
            for name, value in zip(names, lane, strict=True)
            if name == "case" or not math.isnan(value)
        )
        for lane in zip(*columns, strict=True)
    ]


def _swept_values(
    points: Iterable[tuple[tuple[str, float], ...]],
) -> dict[str, list[float]]:
    """Returns the distinct values of each hyperparameter, in order."""
    values: dict[str, dict[float, None]] = {}
    for name, value in itertools.chain(*points):
        values.setdefault(name, {})[value] = None
    return {name: list(found) for name, found in values.items()}


def task_attributes(tasks: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Returns attributes with the number of tasks done and planned, for each case.

    Args:
      tasks: both numbers of each case.
    """
    done, planned = (
        json.dumps({case: numbers[index] for case, numbers in tasks.items()})
        for index in range(2)
    )
    return {"tasks_done": done, "tasks_planned": planned}


def search_attribute(
    ranges: Mapping[str, Mapping[str, tuple[str, Sequence[float]]]],
) -> dict[str, str]:
    """Returns the attribute of a search; none if no case searches.

    Args:
      ranges: for each case, the scale and the range of each searched hyperparameter.
    """
    searching = {case: own for case, own in ranges.items() if own}
    return {"search": json.dumps(searching)} if searching else {}


def ranges_of(dataset: xr.Dataset) -> dict[str, dict[str, tuple[str, list[float]]]]:
    """Returns the scale and the range of what each case of a run searches."""
    found = json.loads(dataset.attrs.get("search", "{}"))
    return {
        case: {name: (scale, ends) for name, (scale, ends) in own.items()}
        for case, own in found.items()
    }


def unfinished(dataset: xr.Dataset) -> str:
    """Describes the progress of an unfinished run; "" for a finished run."""
    done, planned = (
        json.loads(dataset.attrs.get(name, "{}"))
        for name in ("tasks_done", "tasks_planned")
    )
    if done == planned:
        return ""
    shown = [f"{case} {done[case]} of {number}" for case, number in planned.items()]
    return f"tasks done: {', '.join(shown)}"


def remarks(dataset: xr.Dataset) -> list[str]:
    """Warns readers of the results if a run is unfinished, or if its code changed."""
    found = []
    if how_far := unfinished(dataset):
        found.append(
            f"This run is unfinished ({how_far}). Run its command again to continue it."
        )
    codes = json.loads(dataset.attrs.get("code", "[]"))
    if len(codes) > 1:
        found.append(
            "The code changed during this run: "
            + "; then ".join(map(describe_code, codes))
            + "."
        )
    return found


def describe_code(code: Mapping[str, Any]) -> str:
    """Describes the code of a run: versions, commit and hash of the sources."""
    parts = [f"cbp_jax {code['cbp_jax']}"]
    parts += [f"{name} {code[name]}" for name in ("jax", "jaxlib") if name in code]
    if code.get("commit"):
        changes = " with changes" if code.get("dirty") else ""
        parts.append(f"commit {code['commit'][:12]}{changes}")
    return ", ".join([*parts, f"sources {code['sources'][:12]}"])


def save(dataset: xr.Dataset, folder: pathlib.Path) -> pathlib.Path:
    """Writes `results.nc` atomically.

    Raises:
      OSError: the file cannot be written; an older one is still intact.
    """
    path = folder / RESULTS_FILE
    temporary = folder / f".{RESULTS_FILE}"
    # HDF5 itself can crash the process when a disk is full.
    contents = io.BytesIO()
    dataset.to_netcdf(contents, engine="h5netcdf")
    try:
        temporary.write_bytes(contents.getbuffer())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load(folder: str | os.PathLike) -> xr.Dataset:
    """Reads the results of a run folder, or of a results file.

    The variable `dormant_units` of older runs is read as `tau_dormant_units`.

    Raises:
      FileNotFoundError: there are no results.
      OSError: the file is locked, damaged or of another kind.
    """
    import xarray as xr

    path = pathlib.Path(folder)
    path = path / RESULTS_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: pass the folder of a run. A run writes its "
            "results from its first checkpoints on."
        )
    try:
        dataset = xr.load_dataset(path, engine="h5netcdf")
    except OSError as error:
        if "unable to lock file" in str(error):
            raise OSError(
                f"{path} is locked by another program, or its file system has no locks "
                f"({error}). Close the file there (in a notebook, `dataset.close()`), "
                "or set HDF5_USE_FILE_LOCKING=FALSE for this command."
            ) from error
        raise OSError(
            f"{path} cannot be read: {error}. Run the command of the run again to "
            "rewrite it from the last checkpoint."
        ) from error
    old_names = {"dormant_units": "tau_dormant_units"}
    return dataset.rename({k: v for k, v in old_names.items() if k in dataset})


def tidy_csv(dataset: xr.Dataset) -> str:
    """Writes a run as CSV: columns case, swept ..., seed, task, layer, variable, value.

    There is one line for each finite value. `task` and `layer` are empty if a variable
    does not have them, and a swept hyperparameter if the case does not sweep it. If
    anything was measured after each epoch, there is also a column `epoch`.
    """
    import pandas as pd

    point = ["point"] if "point" in dataset.dims else []
    epoch = ["epoch"] if "epoch" in dataset.dims else []
    columns = ["case", *point, *swept_names(dataset), "seed", "task", *epoch, "layer"]
    columns += ["variable", "value"]
    tables = []
    for name, values in dataset.data_vars.items():
        table = values.rename("value").to_dataframe().reset_index()
        table = table.dropna(subset=["value"])
        tables.append(table.assign(variable=name).reindex(columns=columns))
    return pd.concat(tables).to_csv(index=False, float_format="%.9g")
