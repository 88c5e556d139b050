"""Probes of a learner: they leave it alone, and measure what the library does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_runs import one_lane, tiny_bits, tiny_digits, tiny_pairs

from cbp_jax import metrics, networks
from configs import imagenet, labels, pmnist, scr, warm_start
from experiments import continual_imagenet, permuted_mnist, slowly_changing_regression
from experiments.learning.checks import ConfigError
from experiments.learning.keys import STREAM
from experiments.learning.probes import check_probes
from experiments.run import runner
from experiments.run.config import make_cases
from experiments.streams import permuted_images

UPDATES, EXAMPLES, STEP_SIZE = 4, 20, 0.1
DEFAULT = ("aged_against_fresh", "readiness", "layers", "update_plasticity")
NETWORK = networks.MLP((5,), 10)


@functools.cache
def run_tasks(probe_every):
    """Three tasks of backprop: the problem, the state before each, its metrics."""
    config = tiny_digits(
        method="backprop",
        step_size=STEP_SIZE,
        probe_every=probe_every,
        probe_measures=DEFAULT,
        probe_examples=EXAMPLES,
        probe_updates=UPDATES,
    )
    problem = permuted_mnist.make_problem(config)
    hyperparameters, key = one_lane(config)
    state = jax.jit(lambda: problem.learner.init(hyperparameters, key))()
    run_task = jax.jit(functools.partial(problem.run_task, hyperparameters))
    found = []
    for task in range(3):
        new_state, measured = run_task(state, key, jnp.int32(task), problem.data)
        found.append((state, measured))
        state = new_state
    stream = permuted_images.make_stream(config)

    @jax.jit
    def examples(key):
        key = jax.random.fold_in(key, STREAM)
        drawn = stream.sample(key, jnp.int32(2), jax.tree.map(jnp.asarray, stream.data))
        return drawn.read(drawn.items)

    return state, found, examples(key)


def loss(params, images, labels):
    logits, _ = NETWORK.apply({"params": params}, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


def test_a_probe_does_not_change_the_run():
    with_probes, without = run_tasks(2), run_tasks(0)
    for one, other in zip(
        jax.tree.leaves(with_probes[0].params),
        jax.tree.leaves(without[0].params),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    for (_, probed), (_, measured) in zip(with_probes[1], without[1], strict=True):
        assert "readiness" not in measured
        assert len(probed) == len(measured) + 4 + 3 + 6 + 1
        for name in measured:
            np.testing.assert_array_equal(
                np.asarray(probed[name]), np.asarray(measured[name]), name
            )


def test_a_probe_measures_what_the_library_does():
    _, found, (images, labels) = run_tasks(2)
    (first, _), _, (state, measured) = found
    probe = images[:EXAMPLES], labels[:EXAMPLES]
    aged = metrics.aged_against_fresh(
        loss, state.params, first.params, *probe, num_updates=UPDATES
    )
    ready = metrics.readiness(loss, state.params, *probe, batch_size=1)
    features = NETWORK.apply({"params": state.params}, probe[0])[1]["dense_0"]
    kernel_grad = jax.grad(loss)(state.params, *probe)["dense_0"]["kernel"]
    expected = {
        "aged_area": aged.aged_area,
        "fresh_area": aged.fresh_area,
        "aged_minus_fresh": aged.difference,
        "aged_updates": aged.aged_updates,
        "readiness": ready.readiness,
        "gradient_strength": ready.strength,
        "gradient_reliability": ready.reliability,
        "always_on_units": [metrics.always_on_units(features), np.nan],
        "duplicate_units": [metrics.duplicate_units(features), np.nan],
        "gradient_dormant_units": [
            metrics.gradient_dormant_units(kernel_grad),
            np.nan,
        ],
        "participation_ratio": [metrics.participation_ratio(features), np.nan],
        "spectral_norm": [
            metrics.spectral_norm(state.params[name]["kernel"])
            for name in ("dense_0", "head")
        ],
        "distance_from_initialization": [
            metrics.distance_from_initialization(state.params[name], first.params[name])
            for name in ("dense_0", "head")
        ],
    }
    assert aged.difference != 0
    for name, numbers in expected.items():
        np.testing.assert_allclose(
            np.asarray(measured[name]), np.array(numbers), 1e-3, 1e-5, err_msg=name
        )


def test_plasticity_of_an_update_is_averaged_over_the_task():
    _, found, examples = run_tasks(2)

    def update(params, example):
        batch = [leaf[None] for leaf in example]
        before, grads = jax.value_and_grad(loss)(params, *batch)
        params = jax.tree.map(lambda leaf, grad: leaf - STEP_SIZE * grad, params, grads)
        after = loss(params, *batch)
        return params, jnp.clip(1 - after / before, 0, 1)

    _, shares = jax.lax.scan(update, found[2][0].params, tuple(examples))
    measured = [float(np.asarray(each["update_plasticity"])) for _, each in found]
    np.testing.assert_allclose(measured[2], shares.mean(), rtol=1e-4)
    assert min(measured) > 0


def test_tasks_between_probes_are_not_measured_and_at_first_nothing_is_aged():
    measured = [each for _, each in run_tasks(2)[1]]
    for name in ("readiness", "aged_area", "spectral_norm"):
        is_measured = [np.isfinite(np.asarray(each[name])).all() for each in measured]
        assert is_measured == [True, False, True], name
    assert np.asarray(measured[0]["aged_minus_fresh"]) == 0
    assert np.asarray(measured[0]["aged_area"]) > 0
    assert not np.asarray(measured[0]["distance_from_initialization"]).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"probe_examples": 41}, "probe_examples is 41, but the examples of a task"),
        ({"probe_examples": 7, "batch_size": 4}, "7, but .* batches.* at least 8"),
        ({"probe_examples": 0}, "probe_examples must be at least 1"),
        ({"probe_updates": 0}, "probe_updates must be at least 1"),
        ({"probe_measures": ("readyness",)}, "one of .*'readiness'.*got 'readyness'"),
        (
            {"probe_measures": ("hessian",), "normalization": "online"},
            "without derivatives: leave 'hessian' out",
        ),
    ],
)
def test_fields_of_probes_that_do_not_fit_are_refused(fields, message):
    config = tiny_digits(**{"probe_every": 1, "probe_examples": 40} | fields)
    with pytest.raises(ConfigError, match=message):
        check_probes(config, "the examples of a task", 40)
    config.probe_every = 0
    check_probes(config, "the examples of a task", 40)


@pytest.mark.slow
@pytest.mark.parametrize("module", [imagenet, labels, pmnist, scr, warm_start])
def test_probes_of_every_preset_fit_its_tasks(module):
    for preset in module._PRESETS:
        config = module.get_config(preset)
        config.probe_every = 1
        for case in make_cases(config).values():
            number = 2 * case.get("train_per_class", 0) or case.examples_per_task
            check_probes(case, "the examples of a task", number)


CONTINUAL = {"continual_backprop": {"method": "continual_backprop"}}
BATCHES = {"method": "backprop", "batch_size": 4}
ALL = (*DEFAULT, "hessian", "tangent_kernel")


@pytest.mark.slow
@pytest.mark.usefixtures("_full_optimization")
@pytest.mark.parametrize(
    ("make_config", "problem", "cases", "probes"),
    [
        (tiny_digits, permuted_mnist, CONTINUAL, ALL),
        (tiny_digits, permuted_mnist, {"dropout": {"dropout_rate": 0.2}}, ALL),
        (
            *(tiny_digits, permuted_mnist),
            *({"batch": BATCHES | {"normalization": "batch"}}, ALL),
        ),
        (
            *(tiny_digits, permuted_mnist),
            *({"online": BATCHES | {"normalization": "online"}}, DEFAULT),
        ),
        (tiny_bits, slowly_changing_regression, CONTINUAL, ALL),
        (
            *(tiny_pairs, continual_imagenet),
            *(CONTINUAL, (*DEFAULT, "tangent_kernel")),
        ),
    ],
)
def test_runs_have_the_same_numbers_with_probes(
    make_config, problem, cases, probes, tmp_path
):
    """Compiled as in use: with fewer optimizations, other code rounds otherwise."""
    fields = {"cases": cases, "num_tasks": 2, "dropout_rate": 0.0}
    without = runner.run(
        make_config(**fields), tmp_path / "without", problem.make_problem
    )
    config = make_config(
        **fields,
        **{"probe_every": 1, "probe_measures": probes},
        **{"probe_examples": 8, "probe_updates": 3},
    )
    probed = runner.run(config, tmp_path / "probed", problem.make_problem)
    for name in without.data_vars:
        if name not in ("steps_per_second", "lanes_per_block"):
            np.testing.assert_array_equal(without[name], probed[name], name)
    new = probed.data_vars.keys() - without.data_vars.keys()
    for name in new:
        assert probed[name].notnull().any(), name
        assert probed[name].attrs["description"], name
    assert len(new) >= 14
    np.testing.assert_allclose(probed.aged_minus_fresh.isel(task=0), 0, atol=1e-5)
