"""The problem of changing labels: what it measures, and what a run of it must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import run_dying_once, tiny_labels
import xarray as xr

from cbp_jax import networks
from configs import labels, pmnist
from experiments import changing_labels, permuted_mnist
from experiments.learning import stream_problem
from experiments.learning.checks import ConfigError
from experiments.learning.stream_problem import make_stream_problem
from experiments.run import cases, runner
from experiments.run.config import complete, make_cases
from experiments.streams import changing_labels as streams

MAKE_PROBLEM = changing_labels.make_problem
TIMES = ["steps_per_second"]


def compiled(make_problem=MAKE_PROBLEM, **fields):
    """The only case of a tiny config, compiled for its lanes."""
    case = {"method": fields.pop("method", "backprop")}
    config = complete(tiny_labels(cases={"one": case}, **fields))
    (prepared,) = cases.prepare_cases(config, make_problem)
    return prepared, cases.CompiledCase(prepared, 1)


def lane(tree, index):
    return jax.tree.map(lambda leaf: np.asarray(leaf[index]), tree)


def test_a_task_ends_with_the_accuracy_on_its_own_labels(monkeypatch):
    """By hand for the second lane, from the params that the task leaves behind."""
    monkeypatch.setattr(stream_problem, "_EVALUATED_TOGETHER", 7)
    prepared, program = compiled(step_size=0.3, batch_size=2)
    state, *_ = program.run_task(program.start(None), 0)
    state, measured, _ = program.run_task(state, 1)
    params, measured = lane(state.learner.params, 1), lane(measured, 1)
    stream = streams.make_stream(prepared.config)
    key = jax.random.fold_in(jax.random.key(jnp.uint32(1)), 1)
    for name, number in (("train_accuracy", 20), ("test_accuracy", 10)):
        (images, wanted), _ = stream.evaluations[name](key, jnp.int32(1), stream.data)
        inputs = np.asarray(stream.data["images"])[np.asarray(images)] / np.float32(16)
        outputs, _ = networks.MLP((5,), 10).apply({"params": params}, inputs)
        is_correct = np.argmax(outputs, axis=1) == np.asarray(wanted)
        assert is_correct.shape == (number,)
        np.testing.assert_allclose(measured[name], is_correct.mean(), rtol=1e-6)
    assert measured["train_accuracy"] > 0.2  # It has learned something.


@pytest.mark.slow
def test_a_full_reset_comes_after_the_evaluation():
    """Its first task is that of backprop, measures included."""
    _, plain = compiled(step_size=0.3)
    prepared, program = compiled(method="full_reset", step_size=0.3)
    _, wanted, _ = plain.run_task(plain.start(None), 0)
    state, measured, _ = program.run_task(program.start(None), 0)
    for name in ("loss", "accuracy", "train_accuracy", "test_accuracy"):
        np.testing.assert_allclose(measured[name], wanted[name], rtol=1e-5)
    assert prepared.problem.updates_per_task == 41
    np.testing.assert_array_equal(state.learner.num_updates, 41)
    assert not np.any(state.learner.params["head"]["bias"])


@pytest.mark.slow
def test_an_evaluation_of_a_regression_is_an_error():
    """Of a linear model of two numbers, whose targets are 0: the mean square."""

    def sample(key, task, data):
        return jnp.ones((40, 2)), jnp.zeros((40, 2))

    def draw(key, task, data):
        return jnp.eye(2) * (task + 2.0), jnp.zeros((2, 2))

    def make_problem(config):
        return make_stream_problem(
            config,
            sample,
            input_shape=(2,),
            num_outputs=2,
            loss="squared_error",
            evaluations={"final_error": draw},
        )

    _, program = compiled(make_problem, hidden_layers=0, step_size=1e-30)
    state, measured, _ = program.run_task(program.start(None), 1)
    kernel = lane(state.learner.params, 0)["head"]["kernel"]
    np.testing.assert_allclose(
        measured["final_error"][0], 9 * (kernel**2).mean(), rtol=1e-5
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three tasks with all kinds of change, its config and its folder."""
    config = tiny_labels(num_tasks=3, checkpoint_every=1)
    config.cases = {"backprop": {"method": "backprop"}}
    config.transition, config.recurrent, config.change_fraction = 10, 2, 0.5
    folder = tmp_path_factory.mktemp("labels") / "run"
    return runner.run(config, folder, MAKE_PROBLEM), config, folder


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(finished, tmp_path, monkeypatch):
    whole, config, _ = finished
    resumed, calls = run_dying_once(
        config, tmp_path / "run", MAKE_PROBLEM, monkeypatch, at_call=2
    )
    assert calls == [0, 1, 1, 2]
    xr.testing.assert_equal(resumed.drop_vars(TIMES), whole.drop_vars(TIMES))


@pytest.mark.slow
def test_a_lane_is_what_it_is_alone(finished, tmp_path):
    whole, config, _ = finished
    alone = config.copy_and_resolve_references()
    alone.num_seeds, alone.first_seed = 1, 1
    alone = runner.run(alone, tmp_path / "run", MAKE_PROBLEM)
    for name in ("accuracy", "loss", "train_accuracy", "test_accuracy"):
        np.testing.assert_array_equal(alone[name].sel(seed=1), whole[name].sel(seed=1))
        assert not np.array_equal(whole[name].sel(seed=0), whole[name].sel(seed=1))


@pytest.mark.parametrize(
    "preset",
    ["default", "l2_init_random", pytest.param("methods", marks=pytest.mark.slow)],
)
def test_every_preset_is_whole(preset):
    """At full size, up to the data that it wants."""
    config = complete(labels.get_config(preset))
    if config.dataset == "mnist":
        config.dataset = "digits"
    for case in make_cases(config).values():
        problem = MAKE_PROBLEM(case)
        assert problem.examples_per_task == config.examples_per_task
    if preset == "l2_init_random":
        assert problem.updates_per_task == 400 * 1200 // 16


def test_published_networks_have_layers_of_other_widths():
    config = labels.get_config("upgd_permuted")
    assert config.num_tasks * config.examples_per_task == 1_000_000
    config.examples_per_task = config.measured_examples = 1000
    for make_problem, preset in (
        (MAKE_PROBLEM, config),
        (permuted_mnist.make_problem, pmnist.get_config("upgd")),
    ):
        preset.dataset = "digits"
        case = make_cases(complete(preset))["backprop"]
        assert make_problem(case).learner.layer_sizes["num_units"] == [300, 150, 0]
        case.hidden_layers = 3
        with pytest.raises(ConfigError, match=r"\(300, 150\) has 2 widths, but .* 3"):
            make_problem(case)
        case.hidden_layers, case.hidden_units = 2, (300, 0)
        with pytest.raises(ConfigError, match=r"at least 1, got 2 and \(300, 0\)"):
            make_problem(case)
