"""The problem of pairs of classes: its tasks, its presets and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_runs import run_dying_once, tiny_pairs
import xarray as xr

from cbp_jax.networks import ConvNet
from configs import imagenet
from experiments import continual_imagenet
from experiments.reporting import run_results
from experiments.run import cases, command_line, runner
from experiments.run.config import complete, make_cases
from experiments.streams import class_pairs

MAKE_PROBLEM = continual_imagenet.make_problem
PRESETS = ("default", "paper", "cifar100", "methods", "search", "smoke")
TIMES = ["steps_per_second"]


def compile_case(**fields):
    """The only case of a tiny config, compiled for its two lanes."""
    config = complete(tiny_pairs(cases={"one": fields}))
    (case,) = cases.prepare_cases(config, MAKE_PROBLEM)
    return case, cases.CompiledCase(case, 1)


def lane(tree, index):
    return jax.tree.map(lambda leaf: np.array(leaf[index]), tree)


@pytest.fixture
def folder(tmp_path):
    """Five classes of seven images."""
    images = np.random.default_rng(0).integers(0, 256, (5, 7, 12, 12, 3), np.uint8)
    for number, one_class in enumerate(images):
        np.save(tmp_path / f"{number}.npy", one_class)
    return tmp_path, images


def test_a_task_is_epochs_of_shuffled_batches_and_a_test(folder):
    """Task 1 of the second lane, by hand in float64 from where task 0 has left it."""
    path, images = folder
    case, program = compile_case(
        method="backprop",
        dataset="class_files",
        data_dir=str(path),
        step_size=0.05,
    )
    assert "images" not in repr(jax.tree.structure(program.start(None)))
    state, *_ = program.run_task(program.start(None), 0)
    before = lane((state.learner.params, state.learner.optimizer_state), 1)
    state, measured, _ = program.run_task(state, 1)
    after = lane(state.learner.params, 1)
    measured = lane(measured, 1)

    key = jax.random.key(jnp.uint32(1))
    orders = np.asarray(class_pairs.draw_orders(key, 1, 2, 8))
    pair = images[np.asarray(class_pairs.draw_classes(key, 1, 5))] / 255
    pair = pair - images[:, :4].mean((0, 1)) / 255
    train, train_labels = pair[:, :4].reshape(8, 12, 12, 3), np.repeat([0, 1], 4)
    test, test_labels = pair[:, 4:].reshape(6, 12, 12, 3), np.repeat([0, 1], 3)
    params, trace = before[0], optax.tree.get(before[1], "trace")
    params["head"] = jax.tree.map(np.zeros_like, params["head"])
    assert np.any(trace["head"]["kernel"])
    with jax.enable_x64(True):
        network = ConvNet(2, "relu", (3,), (5,), (5,), convolution="xla")

        @jax.jit
        def loss_and_grads(params, inputs, labels):
            def loss(params):
                outputs, _ = network.apply({"params": params}, inputs)
                return -jnp.take_along_axis(
                    jax.nn.log_softmax(outputs), labels[:, None], axis=1
                ).mean()

            return jax.value_and_grad(loss)(params)

        losses, accuracies = [], []
        params, trace = jax.tree.map(np.float64, (params, trace))
        for order in orders:
            for batch in order.reshape(2, 4):
                loss, grads = loss_and_grads(params, train[batch], train_labels[batch])
                trace = jax.tree.map(lambda m, g: 0.9 * m + g, trace, grads)
                params = jax.tree.map(lambda p, m: p - 0.05 * m, params, trace)
                losses.append(loss)
            outputs, _ = network.apply({"params": params}, test)
            accuracies.append(np.mean(np.argmax(outputs, axis=1) == test_labels))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        after,
        params,
    )
    np.testing.assert_allclose(measured["loss"], np.mean(losses), rtol=1e-4)
    np.testing.assert_allclose(measured["accuracy_by_epoch"], accuracies)
    np.testing.assert_allclose(measured["accuracy"], accuracies[-1])


LINEAR = {"conv_channels": (), "conv_sizes": (), "hidden_layers": 0}


@pytest.mark.slow
def test_a_full_reset_comes_after_the_test_and_leaves_nothing_behind():
    """Its first task is that of backprop; then the network is as good as new."""
    _, plain = compile_case(method="backprop", **LINEAR)
    case, program = compile_case(method="full_reset", **LINEAR)
    _, wanted, _ = plain.run_task(plain.start(None), 0)
    state, measured, _ = program.run_task(program.start(None), 0)
    for name in ("loss", "accuracy", "weight_magnitude"):
        np.testing.assert_allclose(measured[name], wanted[name], rtol=1e-5)
    assert case.problem.updates_per_task == 5
    np.testing.assert_array_equal(state.learner.num_updates, 5)
    trace = optax.tree.get(state.learner.optimizer_state, "trace")
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(trace))
    kernel = np.abs(state.learner.params["head"]["kernel"])
    bound = 1 / np.sqrt(12 * 12 * 3)
    assert 0.95 * bound < kernel.max() <= bound


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three tasks, its config and its folder; backprop at two step sizes."""
    config = tiny_pairs(num_tasks=3, checkpoint_every=1, tasks_per_bin=2)
    config.cases = {
        "backprop": {"method": "backprop", "sweep": {"step_size": (0.01, 0.1)}},
        "linear": {"method": "full_reset"} | LINEAR,
    }
    folder = tmp_path_factory.mktemp("run") / "run"
    return runner.run(config, folder, MAKE_PROBLEM), config, folder


def only_backprop(config, *step_sizes):
    config = config.copy_and_resolve_references()
    config.cases = {"backprop": config.cases.backprop.to_dict()}
    config.cases.backprop.sweep.step_size = step_sizes
    return config


def test_a_run_writes_its_table_and_figures(finished, capsys):
    dataset, config, folder = finished
    assert dict(dataset.accuracy_by_epoch.sizes) == {
        **{"case": 2, "point": 2, "seed": 2},
        **{"task": 3, "epoch": 2},
    }
    xr.testing.assert_equal(
        dataset.accuracy_by_epoch.isel(epoch=-1, drop=True), dataset.accuracy
    )
    np.testing.assert_array_equal(dataset.examples[0, 0], [16, 32, 48])
    linear = dataset.sel(case="linear", point=0)
    assert linear.dead_units.isnull().all()
    assert linear.accuracy.notnull().all()
    # Each lane has a pair of its own, linear models the same as networks.
    assert len(np.unique(dataset.loss.sel(case="backprop", task=0))) == 4

    assert command_line.train(config, folder, MAKE_PROBLEM) == 0
    printed = capsys.readouterr().out
    for name in ("| backprop", "| linear", "last 2 tasks, accuracy %"):
        assert name in printed
    for name in ("learning.png", "bins.png"):
        assert (folder / "figures" / name).stat().st_size > 0
    assert "seed,task,epoch,layer,variable" in run_results.tidy_csv(dataset)


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(finished, tmp_path, monkeypatch):
    whole, config, _ = finished
    resumed, calls = run_dying_once(
        config, tmp_path / "run", MAKE_PROBLEM, monkeypatch, at_call=5
    )
    assert calls[4:6] == [1, 1]
    xr.testing.assert_equal(resumed.drop_vars(TIMES), whole.drop_vars(TIMES))


@pytest.mark.slow
def test_one_device_gives_what_four_do(finished, tmp_path, monkeypatch):
    whole, config, _ = finished
    one_device = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one_device)
    alone = runner.run(only_backprop(config, 0.01, 0.1), tmp_path, MAKE_PROBLEM)
    for name in ("loss", "accuracy", "weight_magnitude"):
        wanted = whole[name].sel(case="backprop")
        found = alone[name].sel(case="backprop").rename(step_size="point")
        if "layer" in wanted.dims:
            wanted = wanted.sel(layer=alone.layer)
        np.testing.assert_array_equal(found.transpose(*wanted.dims), wanted)


def test_a_diverged_lane_is_nan_and_leaves_the_others_alone(finished, tmp_path):
    whole, config, _ = finished
    mixed = runner.run(only_backprop(config, 0.01, 1e30), tmp_path, MAKE_PROBLEM)
    mixed = mixed.sel(case="backprop")
    assert mixed.accuracy.sel(step_size=1e30).isnull().all()
    wanted = whole.accuracy.sel(case="backprop", point=0)
    np.testing.assert_array_equal(mixed.accuracy.sel(step_size=0.01), wanted)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_whole(preset):
    """At full size, up to the data that it wants."""
    config = complete(imagenet.get_config(preset))
    config.dataset = "textures"
    for case in make_cases(config).values():
        problem = MAKE_PROBLEM(case)
        images = {"cifar100": 1000, "smoke": 8}.get(preset, 2 * case.train_per_class)
        assert problem.examples_per_task == case.num_epochs * images
    if preset == "paper":
        assert problem.examples_per_task == 300_000
        assert not set(imagenet.get_config().cases) - set(config.cases)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 3}, "batch_size must divide .* 2 x .* = 8, got 3"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_epochs": 0}, "num_epochs must be at least 1"),
        ({"measured_examples": 9}, "measured_examples must be from 1 to .* = 8, got 9"),
        ({"conv_channels": (3, 4)}, r"the same length .*got \(3, 4\) and \(5,\)"),
        ({"conv_sizes": (0,)}, r"at least 1, got \(3,\) and \(0,\)"),
        ({"conv_sizes": (12,)}, "images of 12 pixels: 12 -> 0 after"),
        ({"hidden_layers": -1}, "hidden_layers must be at least 0"),
        ({"hidden_units": 0}, "hidden_units at least 1"),
        ({"convolution": "fft"}, r"\['auto', 'patches', 'xla'\], got 'fft'"),
        ({"normalization": "group"}, "normalization must be one of"),
        ({"activation": "rleu"}, "leaky_relu"),
        ({"rank_method": "svdd"}, "gram"),
        ({"method": "cbp"}, "method must be one of .*'cbp'"),
        ({"dataset": "imagenet"}, "dataset must be one of"),
        (
            {"conv_channels": (), "conv_sizes": (), "hidden_layers": 0},
            "needs hidden units",
        ),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(fields, message):
    config = complete(tiny_pairs())
    for field, value in ({"method": "continual_backprop"} | fields).items():
        config[field] = value
    with pytest.raises(ValueError, match=message):
        MAKE_PROBLEM(config)


def test_mistakes_in_the_data_show_before_anything_is_written(tmp_path):
    config = tiny_pairs(dataset="class_files", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="contains no class files"):
        runner.run(config, tmp_path / "run", MAKE_PROBLEM)
    assert not (tmp_path / "run").exists()


def test_an_unknown_preset_lists_the_presets():
    with pytest.raises(ValueError, match="'papr'") as error:
        imagenet.get_config("papr")
    assert all(preset in str(error.value) for preset in PRESETS)
