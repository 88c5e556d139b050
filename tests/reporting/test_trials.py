"""Trials read from several runs: what unites, and what cannot be compared."""

import json

from made_up_runs import level, make_run
import numpy as np
import pytest

from experiments.reporting import comparison
from experiments.reporting.trials import check_same_problem, read_trials

LEVELS = np.array([0.0, 0.06, 0.02, 0.05, 0.01, 0.03])


def compare(runs, tuning_runs=(), tuning_seeds=None):
    return comparison.compare(runs, tuning_runs, tuning_seeds, "backprop", 0)


def settings(base, *values):
    """Curves of six seeds; each setting is 0.1 better than the one before."""
    return {value: level(base + 0.1 * i + LEVELS) for i, value in enumerate(values)}


def rows(methods, rows):
    return {
        name: {value: curves[rows] for value, curves in one.items()}
        for name, one in methods.items()
    }


def test_seeds_and_settings_of_several_runs_unite():
    methods = {"backprop": settings(0.5, 0), "l2": settings(0.4, 0.1, 0.2, 0.3)}
    weak = {"l2": {0.1: methods["l2"].pop(0.1)}, "adam": settings(0.3, 0.5)}
    runs = [
        make_run(rows(methods, [0, 1]), [0, 1], "first"),
        make_run(rows(methods, [2, 3, 4, 5]), range(2, 6), "later"),
        make_run(weak, range(6), "other"),
    ]
    trials = read_trials(runs, ())
    assert [str(trial) for trial in trials] == [
        "backprop",
        *("l2 (weight_decay 0.1)", "l2 (weight_decay 0.2)", "l2 (weight_decay 0.3)"),
        "adam",
    ]
    for trial in trials:
        assert trial.seeds == list(range(6))
    np.testing.assert_allclose(trials[2].scores([4, 1])[:, 0], [0.51, 0.56])
    compared = compare(runs, tuning_seeds=2)
    assert compared.choices[1].trial.setting == {"weight_decay": 0.3}
    assert {one.num_seeds for one in compared.verdicts["all_tasks"]} == {4}
    # Any order of runs leads to the same verdicts.
    assert compare(runs[::-1], tuning_seeds=2).verdicts == compared.verdicts


def test_of_a_seed_that_two_runs_have_the_first_is_taken():
    first = make_run({"backprop": {0: level([0.5, 0.6])}}, [0, 1], "first")
    second = make_run({"backprop": {0: level([0.7, 0.8])}}, [1, 2], "second")
    (trial,) = read_trials([first, second], ())
    np.testing.assert_allclose(trial.scores([0, 1, 2])[:, 0], [0.5, 0.6, 0.8])


def test_a_tuning_run_chooses_and_another_one_evaluates():
    methods = {"backprop": settings(0.5, 0), "l2": settings(0.45, 0.1, 0.2)}
    tuning = make_run(rows(methods, [0, 1]), [0, 1], "tuning", num_tasks=5)
    tuning = tuning._replace(dataset=tuning.dataset.isel(task=slice(5)))
    # The evaluation run has no sweep, but the case's own value; its seed 1 has chosen.
    chosen = {"backprop": {0.0: level(0.5 + LEVELS)}, "l2": {0.0: level(0.6 + LEVELS)}}
    evaluation = make_run(
        chosen, range(1, 7), "evaluation", cases={"l2": {"weight_decay": 0.2}}
    )
    evaluation = evaluation._replace(
        dataset=evaluation.dataset.isel(weight_decay=0, drop=True)
    )
    compared = compare([evaluation], [tuning])
    assert compared.tuning_seeds == [0, 1]
    assert compared.choices[1].trial.setting == {"weight_decay": 0.2}
    assert compared.evaluated["l2"].seeds == [2, 3, 4, 5, 6]
    assert compared.verdicts["all_tasks"][0].mean == pytest.approx(
        0.6 + LEVELS[1:].mean()
    )
    # With the first seed alone, the other one is fresh.
    assert compare([evaluation], [tuning], 1).evaluated["l2"].seeds == list(range(1, 7))
    # A method that tried one setting need not be in the tuning run.
    alone = make_run({"l2": rows(methods, [0, 1])["l2"]}, [0, 1], "tuning")
    assert [len(one.trials) for one in compare([evaluation], [alone]).choices] == [1, 2]


def test_a_chosen_setting_that_was_not_run_is_named():
    methods = {"backprop": settings(0.5, 0), "l2": settings(0.45, 0.1, 0.2)}
    weak = {"backprop": settings(0.5, 0), "l2": settings(0.45, 0.1)}
    with pytest.raises(
        ValueError, match=r"l2 \(weight_decay 0.2\) was chosen .* l2 \(weight_decay 0.1"
    ):
        compare([make_run(weak, range(6, 12))], [make_run(methods, range(6))])


def test_a_setting_without_some_tuning_seeds_is_named():
    methods = {"backprop": settings(0.5, 0), "l2": settings(0.4, 0.1)}
    later = {"l2": settings(0.4, 0.2)}
    runs = [make_run(methods, range(6)), make_run(later, range(1, 7))]
    pattern = r"l2 \(weight_decay 0.2\) was not run with seeds 0, but these"
    with pytest.raises(ValueError, match=pattern):
        compare(runs, tuning_seeds=2)


def test_the_best_of_a_grid_of_two_hyper_parameters_has_an_edge_for_each():
    runs = [
        make_run(
            {"backprop": settings(base, 0.1, 0.2, 0.3)}, range(6), name, step_size=step
        )
        for name, step, base in (("a", 0.1, 0.2), ("b", 0.2, 0.5), ("c", 0.3, 0.4))
    ]
    for run in runs:
        fields = json.loads(run.dataset.attrs["config"])
        fields["sweep"]["step_size"] = []  # That it could have been swept.
        run.dataset.attrs["config"] = json.dumps(fields)
    (choice,), _ = comparison.choose_settings(runs, 3)
    assert len(choice.trials) == 9
    assert choice.trial.setting == {"weight_decay": 0.3, "step_size": 0.2}
    assert choice.at_edge == ["weight_decay"]


def test_methods_are_evaluated_on_the_seeds_that_they_share_with_the_reference():
    run = make_run({"backprop": settings(0.5, 0)}, range(6))
    other = make_run({"l2": settings(0.45, 0)}, range(2, 8))
    compared = compare([run, other], tuning_seeds=0)
    assert compared.evaluated["l2"].seeds == [2, 3, 4, 5]
    (l2,) = [one for one in compared.verdicts["all_tasks"] if one.method == "l2"]
    difference = 0.45 + LEVELS[:4] - 0.5 - LEVELS[2:]
    assert l2.paired.difference == pytest.approx(difference.mean())
    fewer = "Evaluated on fewer seeds than backprop (6): l2 4."
    assert fewer in compared.warnings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "mnist"}, r"dataset \(digits and mnist\)"),
        (
            {"cases": {"l2": {"activation": "tanh"}}},
            r"cases.l2.activation \(relu and tanh\)",
        ),
        ({"score": "error"}, "first measures accuracy, but second measures error"),
    ],
)
def test_runs_of_different_streams_or_learners_cannot_be_compared(fields, message):
    methods = {"backprop": settings(0.5, 0), "l2": settings(0.4, 0)}
    first = make_run(methods, range(6), "first")
    second = make_run(methods, range(6), "second", **fields)
    with pytest.raises(ValueError, match=message):
        check_same_problem([first, second])


def test_runs_may_differ_in_what_changes_no_result():
    methods = {"backprop": settings(0.5, 0)}
    first = make_run(methods, range(6), cases={"backprop": {"activation": "tanh"}})
    other = {"adam": settings(0.4, 0)}
    adam = {"adam": {"activation": "elu"}}
    check_same_problem(
        [first, make_run(other, range(6), weight_decay=0.3, preset="b", cases=adam)]
    )


def test_trials_of_different_lengths_and_cases_without_results_are_refused():
    methods = {"backprop": settings(0.5, 0), "l2": settings(0.4, 0)}
    run = make_run(methods, range(6), "run")
    short = make_run({"adam": {0: level(LEVELS, 12)}}, range(6))
    pattern = "adam: 12 tasks, 600 examples; backprop: 20 tasks, 1,000 .*--tuning_run"
    with pytest.raises(ValueError, match=pattern):
        read_trials([run, short], ())
    run.dataset["examples"].loc[{"case": "l2"}] = np.nan
    with pytest.raises(ValueError, match="run has no results of l2 yet"):
        read_trials([run], ())
