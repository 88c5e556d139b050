"""Which measures foretell scores, in results that are made up."""

import json

import numpy as np
import pytest
from scipy import stats

from experiments.reporting import (
    files,
    foretelling,
    foretelling_output,
    plots,
    run_results,
)
from experiments.reporting.trials import Run
from experiments.run import folder as folder_module

LAYERS = ("dense_0", "dense_1", "head")
METHODS = ("backprop", "l2")
SEEDS, TASKS = 8, 12
RNG = np.random.default_rng(0)
SHAPE = (len(METHODS), SEEDS, TASKS)
GOODNESS = RNG.normal(size=SHAPE)
NOISE = RNG.normal(size=SHAPE)


def make_run(measures, goodness=GOODNESS, score="accuracy", first_seed=0, **fields):
    """A run whose measures, by name, are [methods, seeds, tasks(, layers)]."""
    cases = []
    for index, method in enumerate(METHODS):
        found = {name: values[index] for name, values in measures.items()}
        own = goodness[index]
        found[score] = own if score == "accuracy" else -own
        cases.append(
            run_results.case_dataset(
                method,
                {"seed": first_seed + np.arange(len(own))},
                LAYERS,
                found,
                {"num_weights": [9, 9, 9], "num_units": [1, 3, 0]},
                examples_per_task=5,
                steps_per_task=5,
                steps_per_second=1.0,
                lanes_per_block=1,
            )
        )
    config = {"cases": {method: {} for method in METHODS}, "sweep": {}} | fields
    return Run("run", run_results.join_cases(cases, {"config": json.dumps(config)}))


def rows(measures, kind="between", group="", chosen=(), **options):
    found = foretelling.foretell([make_run(measures, **options)], chosen)
    return found.of(kind, group)


@pytest.mark.parametrize("kind", ["between", "within"])
@pytest.mark.parametrize("score", ["accuracy", "error"])
def test_a_monotone_relation_is_found_with_its_sign(kind, score):
    """More of `readiness` is better, and less of `sharpness`, whatever the score is."""
    found = rows(
        {"readiness": np.exp(3 * GOODNESS), "sharpness": 5 - GOODNESS**3},
        kind,
        score=score,
    )
    np.testing.assert_allclose(found["readiness"].alone, 1)
    np.testing.assert_allclose(found["sharpness"].alone, -1)


@pytest.mark.parametrize("kind", ["between", "within"])
def test_independent_noise_foretells_nothing(kind):
    found = rows({"readiness": NOISE}, kind)["readiness"]
    for one in (found.alone, found.partial):
        assert one.low < 0 < one.high
        assert one.high - one.low < 1


def test_correlations_are_means_of_spearmans_over_tasks_or_lanes():
    measure = GOODNESS + NOISE
    pairs = [
        np.moveaxis(each, 2, 0)[1:].reshape(11, 16) for each in (measure, GOODNESS)
    ]
    of_tasks = [stats.spearmanr(*pair).statistic for pair in zip(*pairs, strict=True)]
    of_lanes = np.array(
        [
            [
                stats.spearmanr(measure[m, s, 1:], GOODNESS[m, s, 1:]).statistic
                for s in range(SEEDS)
            ]
            for m in range(2)
        ]
    )
    foretold = foretelling.foretell([make_run({"readiness": measure})])

    def value(*group):
        return foretold.of(*group)["readiness"].alone.value

    assert value("between") == pytest.approx(np.mean(of_tasks))
    assert value("between", "3") == pytest.approx(of_tasks[2])
    assert value("within") == pytest.approx(np.mean(of_lanes))
    assert value("within", "l2") == pytest.approx(np.mean(of_lanes[1]))


def test_a_partial_correlation_is_that_of_what_the_others_leave():
    """With one task to rank in, by regression of the ranks on those of the other."""
    one, two = GOODNESS + NOISE, GOODNESS + 2 * RNG.normal(size=SHAPE)
    task = slice(0, 2)
    measures = {"readiness": one[..., task], "sharpness": two[..., task]}
    chosen = ("readiness", "sharpness")
    found = rows(measures, goodness=GOODNESS[..., task], chosen=chosen)
    ranks = [stats.rankdata(each[..., 1]) for each in (one, two, GOODNESS)]
    left = [
        each - np.polyval(np.polyfit(ranks[1], each, 1), ranks[1])
        for each in (ranks[0], ranks[2])
    ]
    expected = np.corrcoef(*left)[0, 1]
    assert found["readiness"].partial.value == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["between", "within"])
def test_a_copy_of_another_measure_adds_nothing(kind):
    measure = GOODNESS + NOISE
    alone = rows({"readiness": measure}, kind)["readiness"].partial
    assert alone.low > 0.3
    found = rows({"readiness": measure, "sharpness": -2 * measure}, kind)
    for name in ("readiness", "sharpness"):
        np.testing.assert_allclose(found[name].partial, 0, atol=1e-6)
    # Chosen without the copy, it adds what it did.
    chosen = ("readiness", *foretelling.BASELINES)
    both = {"readiness": measure, "sharpness": -2 * measure}
    assert rows(both, kind, chosen=chosen)["readiness"].partial == alone


def test_baselines_are_the_number_of_the_task_and_the_score_before_it():
    tasks = np.broadcast_to(np.arange(TASKS), SHAPE)
    found = rows({"readiness": NOISE}, "within", goodness=1.0 * tasks)
    for name in foretelling.BASELINES:
        np.testing.assert_allclose(found[name].alone, 1)
    found = rows({"readiness": NOISE}, "between", goodness=1.0 * tasks)
    assert np.isnan(found["task_number"].alone.value)


def test_what_is_measured_during_a_task_foretells_the_next():
    later = np.roll(GOODNESS, -1, axis=2)
    found = rows({"update_plasticity": later, "readiness": later}, "within")
    np.testing.assert_allclose(found["update_plasticity"].alone, 1)
    assert abs(found["readiness"].alone.value) < 0.5


def test_layers_are_averaged_by_their_units_and_missing_tasks_left_out():
    """One unit and three; the head is not measured, nor is every second task.

    All measures are compared in the same tasks.
    """
    layers = np.stack([GOODNESS - 3 * NOISE, GOODNESS + NOISE, NOISE * np.nan], axis=-1)
    layers[:, :, ::2] = np.nan
    half = np.where(np.arange(TASKS) % 2, GOODNESS, NOISE)
    measures = {"dead_units": layers, "readiness": half}
    foretold = foretelling.foretell([make_run(measures)])
    np.testing.assert_array_equal(foretold.points.tasks, [1, 3, 5, 7, 9, 11])
    for name in measures:
        np.testing.assert_allclose(foretold.of("within")[name].alone, 1)
    assert np.isfinite(foretold.of("between", "3")["readiness"].alone.value)


def test_lanes_that_diverged_are_named_and_left_out_from_then_on():
    goodness = GOODNESS.copy()
    goodness[0, 0, 4:] = np.nan
    run = make_run({"readiness": GOODNESS}, goodness)
    foretold = foretelling.foretell([run])
    np.testing.assert_allclose(foretold.of("between")["readiness"].alone, 1)
    assert foretold.warnings[0].startswith("1 of 16 lanes diverged.")


def test_runs_are_joined_by_method_and_seed():
    parts = [
        make_run(
            {"readiness": GOODNESS[:, seeds]}, GOODNESS[:, seeds], first_seed=first
        )
        for seeds, first in ((slice(0, 5), 0), (slice(5, 8), 5))
    ]
    joined = foretelling.foretell(parts)
    whole = foretelling.foretell([make_run({"readiness": GOODNESS})])
    assert str(joined.rows) == str(whole.rows)


@pytest.mark.parametrize(
    ("runs", "measures", "message"),
    [
        ([{}], ("readines",), "'readines', which the runs do not have.*readiness"),
        ([{"goodness": GOODNESS[:, :1]}], (), "have 1 seed .0.*run several"),
        ([{"goodness": GOODNESS[..., :1]}], (), "have 1 task.*run more"),
        ([{"probe_updates": 9}, {"probe_updates": 7}], (), "9, but .* has 7"),
        ([{"measure": 0 * NOISE}], (), "no measure that varies.*probe_every=1"),
    ],
)
def test_what_is_wrong_is_one_sentence(runs, measures, message):
    made = []
    for fields in runs:
        fields = {"goodness": GOODNESS, "measure": NOISE} | fields
        goodness, measure = fields.pop("goodness"), fields.pop("measure")
        own = measure[:, : goodness.shape[1], : goodness.shape[2]]
        made.append(make_run({"readiness": own}, goodness, **fields))
    with pytest.raises(ValueError, match=message):
        foretelling.foretell(made, measures)


def test_measures_that_were_never_taken_together_are_refused():
    is_even = np.arange(TASKS) % 4 == 0
    measures = {
        "readiness": np.where(is_even, NOISE, np.nan),
        "stable_rank": np.where(is_even, np.nan, NOISE),
    }
    with pytest.raises(ValueError, match="no task .* least often is readiness"):
        rows(measures)
    found = rows(measures, chosen=("stable_rank", "previous_score"))
    assert np.isfinite(found["stable_rank"].alone.value)


def test_too_few_points_for_the_partial_correlations_are_said_to_be():
    noises = {f"measure_{index}": RNG.normal(size=SHAPE) for index in range(9)}
    few = {name: values[:, :2, :3] for name, values in noises.items()}
    foretold = foretelling.foretell([make_run(few, GOODNESS[:, :2, :3])])
    assert "only 8 points have all 11 measures" in " ".join(foretold.warnings)
    assert np.isnan(foretold.of("between")["measure_0"].partial.value)


def test_tables_and_the_figure_show_the_correlations(tmp_path, monkeypatch):
    kept = []
    save = plots.save
    monkeypatch.setattr(
        plots, "save", lambda figure, path: kept.append(figure) or save(figure, path)
    )
    measures = {"sharpness": NOISE, "readiness": GOODNESS}
    foretold = foretelling.foretell([make_run(measures)])
    paths = foretelling_output.write(foretold, tmp_path / "foretelling")
    assert [path.name for path in paths] == list(files.FORETELLING_FILES)
    for path in paths:
        name = f"{files.FORETELLING_FOLDER}/{path.name}"
        assert folder_module.written_by_runs().fullmatch(name)
    text = paths[0].read_text()
    lines = [line for line in text.splitlines() if line.startswith("| readiness")]
    assert lines[0].split("|")[2].strip() == "+1.00 [+1.00, +1.00]"
    assert [cell.strip() for cell in lines[1].split("|")[2:4]] == ["+1.00", "+1.00"]
    table = [line.split(",") for line in paths[1].read_text().splitlines()]
    assert table[0][:5] == ["kind", "group", "measure", "correlation", "low"]
    # All, 11 tasks; all, 2 methods; 4 measures each.
    assert len(table) == 1 + 4 * (1 + 11 + 1 + 2)
    (figure,) = kept
    first, *others = figure.axes
    assert (first.get_xlabel(), len(others)) == ("readiness", 3)
    assert first.get_title() == "between +1.00, within +1.00"
    assert [line.get_label() for line in first.lines] == ["backprop", "L2"]
    np.testing.assert_allclose(first.lines[1].get_xdata(), GOODNESS[1, :, 1:].ravel())
    np.testing.assert_allclose(
        first.lines[1].get_ydata(), 100 * GOODNESS[1, :, 1:].ravel()
    )
