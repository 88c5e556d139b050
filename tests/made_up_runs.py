"""Made-up results of runs whose order of methods is known."""

import json

import numpy as np

from experiments.reporting import run_results
from experiments.reporting.trials import Run

TASKS = 20


def make_run(methods, seeds, name="run", score="accuracy", **fields):
    """Results of methods, each of which may sweep weight decays of its own.

    Args:
      methods: for each case its curves [seeds, tasks] by weight decay.
      seeds: of all of them.
      name: of the run.
      score: the variable that the curves are.
      **fields: of the config; `cases` adds overrides to cases.
    """
    seeds = np.asarray(seeds, np.uint32)
    cases, overrides = [], fields.pop("cases", {})
    for case, by_strength in methods.items():
        curves = np.stack([np.asarray(c, float) for c in by_strength.values()])
        lanes, num_tasks = len(by_strength) * len(seeds), curves.shape[-1]
        dataset = run_results.case_dataset(
            case,
            {"weight_decay": np.array(list(by_strength), float), "seed": seeds},
            ("dense_0", "head"),
            {
                score: curves.reshape(lanes, num_tasks),
                "dead_units": np.tile([0.1, np.nan], (lanes, num_tasks, 1)),
            },
            {"num_weights": [30, 10], "num_units": [10, 0], "num_features": [10, 0]},
            examples_per_task=50,
            steps_per_task=50,
            steps_per_second=1000.0,
            lanes_per_block=1,
        )
        cases.append(dataset)
    config = {
        "cases": {case: overrides.get(case, {}) for case in methods},
        "sweep": {"weight_decay": []},
        "weight_decay": 0.0,
        "num_seeds": len(seeds),
        "num_tasks": TASKS,
        "dataset": "digits",
        "activation": "relu",
        "hidden_layers": 1,
    }
    attributes = {"config": json.dumps(config | fields)}
    return Run(name, run_results.join_cases(cases, attributes))


def level(values, num_tasks=TASKS):
    """Curves [seeds, tasks] that stay at the value of their seed."""
    return np.repeat(np.asarray(values, float)[:, None], num_tasks, axis=1)


def diverging(curves, seed, task):
    """The curves, of which one diverges in a task."""
    curves = np.array(curves)
    curves[seed, task:] = np.nan
    return curves


def make_search(methods, seeds, name="search", score="accuracy", **fields):
    """Results of a search, in which each trial has a level on all tasks.

    Args:
      methods: for each case the values of its hyperparameters, by name, each [trials],
        their scales and ranges, by name, and levels [trials, seeds].
      seeds: of all of them.
      name: of the run.
      score: the variable that the levels are.
      **fields: of the config; `cases` adds overrides to cases.
    """
    seeds = np.asarray(seeds, np.uint32)
    cases, overrides = [], fields.pop("cases", {})
    for case, (trials, _, levels) in methods.items():
        levels = np.asarray(levels, float)
        dataset = run_results.case_dataset(
            case,
            {"trial": np.arange(len(levels)), "seed": seeds},
            ("dense_0", "head"),
            {score: level(levels.ravel())},
            {"num_weights": [30, 10], "num_units": [10, 0], "num_features": [10, 0]},
            examples_per_task=50,
            steps_per_task=50,
            steps_per_second=1000.0,
            lanes_per_block=1,
            trials={field: np.asarray(values) for field, values in trials.items()},
        )
        cases.append(dataset)
    defaults = {field: 0.5 for trials, *_ in methods.values() for field in trials}
    config = {
        "cases": {
            case: {"search": {field: ends for field, (_, ends) in ranges.items()}}
            | overrides.get(case, {})
            for case, (_, ranges, _) in methods.items()
        },
        "sweep": {},
        "search": {},
        "num_seeds": len(seeds),
        "num_tasks": TASKS,
        "dataset": "digits",
        "activation": "relu",
        "hidden_layers": 1,
    }
    attributes = {"config": json.dumps(config | defaults | fields)}
    ranges = {case: own for case, (_, own, _) in methods.items()}
    attributes |= run_results.search_attribute(ranges)
    return Run(name, run_results.join_cases(cases, attributes))
