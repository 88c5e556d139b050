"""Results of a run as one labeled data set, and the file that holds it.

Dimensions: case, each swept hyper-parameter, seed, task, layer; and epoch, for what is
measured after each epoch of a task. Where cases sweep different hyper-parameters there
is one dimension `point` in the place of theirs: point p of a case is the p-th
combination of its own values, coordinates (case, point).

Results of an unfinished run are NaN where a task is not done yet, its `examples` too.
The attributes `tasks_done` and `tasks_planned` tell how far each case has come, `code`
which code has computed the results; all three are JSON.
"""

from collections.abc import Mapping, Sequence
import io
import itertools
import json
import os
import pathlib
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

RESULTS_FILE = "results.nc"

NOT_SWEPT = ("case", "seed", "task", "layer", "epoch")
"""All dimensions but those of the sweep."""

BY_EPOCH = "_by_epoch"
"""How the names of variables end that are measured after each epoch of a task."""

# What each variable is, for readers of the file.
DESCRIPTIONS = {
    "accuracy": "fraction of correct predictions: online, before the update, or of the "
    "test images at the end of the task",
    "accuracy_by_epoch": "fraction of correct predictions of the test images",
    "error": "squared error, before the update",
    "loss": "loss minimized, before the update",
    "dead_units": "fraction of units whose output is 0 on all measured examples",
    "dormant_units": "fraction of units with at most 0.1 of the layer's mean |h|",
    "saturated_units": "fraction of units near an asymptote on 99 % of the examples",
    "effective_rank": "exp(entropy of the normalized singular values) of the features",
    "stable_rank": "singular values that hold 99 % of their sum",
    "approximate_rank": "singular values that hold 99 % of the sum of their squares",
    "weight_magnitude": "mean |w| of the layer's kernel",
    "gradient_norm": "L2 norm of the gradient on the measured examples",
    "update_to_weight": "norm of one update on these examples over that of the params",
    "mean_age": "updates since the birth of a unit, mean over the layer",
    "units_reset": "units of the layer reset since the first task",
    "steps_per_second": "updates per second over all lanes, without compilation",
    "lanes_per_block": "lanes vmapped together on a device",
    "examples": "examples seen by the end of the task",
    "steps": "updates made by the end of the task",
    "num_weights": "entries of the layer's kernel",
    "num_units": "hidden units of the layer, 0 for the head",
    "num_features": "outputs of the units at each position, 0 for the head",
    "dead_units_percent": "dead units, 0 to 100",
    "effective_rank_percent": "effective rank as a share of the width, 0 to 100",
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
) -> xr.Dataset:
    """Labels the metrics of one case.

    Args:
      name: of the case.
      coordinates: values of each swept hyper-parameter, then the seeds; the L lanes
        are all combinations.
      layers: names of the learner's layers.
      metrics: arrays [L, tasks], [L, tasks, layers] or, if their names end in
        `_by_epoch`, [L, tasks, epochs]; none of a case that has not begun.
      layer_sizes: `num_weights`, `num_units` and `num_features` of each layer.
      examples_per_task: examples that a task shows to a lane.
      steps_per_task: updates that a lane makes in a task.
      steps_per_second: of the case.
      lanes_per_block: lanes that each device vmapped together.

    Returns:
      A dataset with dimensions (case, swept ..., seed, task, layer) and, if anything
      was measured after each epoch, `epoch`.
    """
    lane_shape = tuple(len(values) for values in coordinates.values())
    variables = {}
    for metric, values in metrics.items():
        last = "epoch" if metric.endswith(BY_EPOCH) else "layer"
        dims = (*coordinates, "task", last)[: len(lane_shape) + values.ndim - 1]
        variables[metric] = (dims, values.reshape(*lane_shape, *values.shape[1:]))
    num_tasks = next((values.shape[1] for values in metrics.values()), 0)
    tasks_done = np.arange(num_tasks) + 1
    variables["examples"] = ("task", tasks_done * examples_per_task)
    variables["steps"] = ("task", tasks_done * steps_per_task)
    variables["steps_per_second"] = ((), steps_per_second)
    variables["lanes_per_block"] = ((), lanes_per_block)
    variables |= {size: ("layer", list(values)) for size, values in layer_sizes.items()}
    dataset = xr.Dataset(
        {
            key: (dims, np.asarray(values, float))
            for key, (dims, values) in variables.items()
        },
        coords={**coordinates, "task": np.arange(num_tasks), "layer": list(layers)},
    )
    return _add_percentages(dataset).expand_dims(case=[name])


def _add_percentages(dataset: xr.Dataset) -> xr.Dataset:
    """Adds what the paper draws as a share of the width, 0 to 100."""
    if "dead_units" in dataset:
        dataset["dead_units_percent"] = 100 * dataset.dead_units
    if "effective_rank" in dataset:
        width = dataset.num_features.where(dataset.num_features > 0)
        dataset["effective_rank_percent"] = 100 * dataset.effective_rank / width
    return dataset


def join_cases(
    cases: Sequence[xr.Dataset], attributes: Mapping[str, Any]
) -> xr.Dataset:
    """Joins the data sets of cases; what one lacks (tasks, layers) is NaN there.

    Cases of the same sweep keep its dimensions, others get the dimension `point`.
    """
    first, *others = (
        {name: tuple(case[name].values) for name in _swept(case)} for case in cases
    )
    if any(other != first for other in others):
        cases = _to_points(cases)
    layers = list(
        dict.fromkeys(itertools.chain(*(case.layer.values for case in cases)))
    )
    hidden = [layer for layer in layers if layer != "head"]
    num_tasks = max(case.sizes["task"] for case in cases)
    cases = [
        case.reindex(layer=[*hidden, "head"], task=np.arange(num_tasks))
        for case in cases
    ]
    dataset = xr.concat(
        cases,
        dim="case",
        data_vars="all",
        coords="minimal",
        compat="equals",
        join="outer",
    )
    for name, description in DESCRIPTIONS.items():
        if name in dataset:
            dataset[name].attrs["description"] = description
    # What a case lacks that has not begun would come in another order.
    return dataset.transpose("case", ...).assign_attrs(attributes)


def _to_points(cases: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """Lays the sweep of each case along one dimension of the same length for all."""
    names = list(dict.fromkeys(itertools.chain(*(_swept(case) for case in cases))))
    flat = [_to_point_dimension(case, names) for case in cases]
    num_points = max(case.sizes["point"] for case in flat)
    return [case.reindex(point=np.arange(num_points)) for case in flat]


def _to_point_dimension(case: xr.Dataset, names: Sequence[str]) -> xr.Dataset:
    """Lays the sweep of a case along `point`; of `names` it has NaN where not swept."""
    own = _swept(case)
    if own:
        case = case.stack(point=own)
    else:
        case = case.map(
            lambda one: one.expand_dims("point") if "seed" in one.dims else one
        )
    num_points = case.sizes["point"]
    values = {name: case[name].values for name in own}
    case = case.drop_vars(["point", *own], errors="ignore")
    case = case.assign_coords(point=np.arange(num_points))
    # Which points there are must still be seen when others have more.
    for name in ("examples", "steps"):
        case[name] = case[name].expand_dims(point=case.point)
    missing = np.full(num_points, np.nan)
    return case.assign_coords(
        {name: (("case", "point"), values.get(name, missing)[None]) for name in names}
    )


def task_attributes(tasks: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Returns attributes that tell how many tasks of each case are done, of how many.

    Args:
      tasks: both numbers of each case.
    """
    done, planned = (
        json.dumps({case: numbers[index] for case, numbers in tasks.items()})
        for index in range(2)
    )
    return {"tasks_done": done, "tasks_planned": planned}


def unfinished(dataset: xr.Dataset) -> str:
    """Says how far a run has come that is not finished; "" of one that is."""
    done, planned = (
        json.loads(dataset.attrs.get(name, "{}"))
        for name in ("tasks_done", "tasks_planned")
    )
    if done == planned:
        return ""
    shown = [f"{case} {done[case]} of {number}" for case, number in planned.items()]
    return f"tasks done: {', '.join(shown)}"


def remarks(dataset: xr.Dataset) -> list[str]:
    """Says what a reader of the results must know: unfinished, or of several codes."""
    found = []
    if how_far := unfinished(dataset):
        found.append(
            f"This run is unfinished ({how_far}). Its command, started again, goes on "
            "with it."
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
    """Names the code of a run: its versions, its commit and the hash of its sources."""
    parts = [f"cbp_jax {code['cbp_jax']}"]
    parts += [f"{name} {code[name]}" for name in ("jax", "jaxlib") if name in code]
    if code.get("commit"):
        changes = " with changes" if code.get("dirty") else ""
        parts.append(f"commit {code['commit'][:12]}{changes}")
    return ", ".join([*parts, f"sources {code['sources'][:12]}"])


def save(dataset: xr.Dataset, folder: pathlib.Path) -> pathlib.Path:
    """Writes `results.nc` so that it is always either the old file or the new one.

    Raises:
      OSError: the file cannot be written; an older one is still whole.
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

    Raises:
      FileNotFoundError: there are none.
      OSError: the file is locked, damaged or of another kind.
    """
    path = pathlib.Path(folder)
    path = path / RESULTS_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give the folder that a run has named. A run "
            "writes its results from its first checkpoints on."
        )
    try:
        return xr.load_dataset(path, engine="h5netcdf")
    except OSError as error:
        if "unable to lock file" in str(error):
            raise OSError(
                f"{path} is locked by another program, or its file system has no locks "
                f"({error}). Close the file there (in a notebook, `dataset.close()`), "
                "or set HDF5_USE_FILE_LOCKING=FALSE in the environment of this command."
            ) from error
        raise OSError(
            f"{path} cannot be read: {error}. The command of the run writes it anew "
            "from the last checkpoint."
        ) from error


def tidy_csv(dataset: xr.Dataset) -> str:
    """Writes a run as CSV: columns case, swept ..., seed, task, layer, variable, value.

    One line for each finite value; `task` and `layer` are empty where a variable has
    none, a swept hyper-parameter where a case does not sweep it. If anything was
    measured after each epoch, there is a column `epoch` as well.
    """
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


def swept_names(dataset: xr.Dataset) -> list[str]:
    """Returns the hyper-parameters that any case sweeps."""
    own = [name for name in dataset.coords if "point" in dataset[name].dims]
    return [name for name in (*_swept(dataset), *own) if name != "point"]


def _swept(dataset: xr.Dataset) -> list[str]:
    """Returns the dimensions of the sweep; see the module for `point`."""
    return [name for name in dataset.dims if name not in NOT_SWEPT]
