"""The methods that a config can name: what they declare, and what they do to a run."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny_runs import one_lane, tiny_digits

from configs import methods as method_configs
from configs import pmnist
from experiments import permuted_mnist
from experiments.learning import base_optimizers, hyperparameters, methods
from experiments.learning.added_loss import AddedLoss
from experiments.learning.base_optimizers import OPTIMIZERS
from experiments.learning.hyperparameters import HYPERPARAMETERS
from experiments.learning.methods import METHODS
from experiments.learning.networks import make_mlp
from experiments.reporting import styles
from experiments.run.config import complete, make_cases

IMAGES = jax.random.uniform(jax.random.key(1), (60, 1, 64))
LABELS = jnp.arange(60)[:, None] % 10


def make(method, **overrides):
    overrides = {"normalization": (METHODS[method].normalizations or ("none",))[0]} | (
        overrides
    )
    config = tiny_digits(cases={method: {"method": method} | overrides}, step_size=0.1)
    return make_cases(complete(config))[method]


def train(config, num_updates=60):
    """Returns the first state and all params, `[updates, ...]`, of the first lane."""
    learner = permuted_mnist.make_problem(config).learner
    hyperparameters, key = one_lane(config)

    @jax.jit
    def run(key, images, labels):
        def step(state, example):
            state, _, _ = learner.step(hyperparameters, state, *example)
            return state, state

        first = learner.init(hyperparameters, key)
        return first, jax.lax.scan(step, first, (images, labels))[1]

    return run(key, IMAGES[:num_updates], LABELS[:num_updates])


@functools.cache
def backprop():
    return train(make("backprop"))[1].params


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_defaults_and_off_values_are_in_range(name):
    parameter = HYPERPARAMETERS[name]
    parameter.range.check(name, parameter.default)
    if parameter.off is not None and not math.isinf(parameter.off):
        parameter.range.check(name, parameter.off)
    assert parameter.meaning


def test_no_two_methods_share_a_hyperparameter_that_means_something_else():
    for method in METHODS.values():
        for name, parameter in method.hyperparameters.items():
            assert HYPERPARAMETERS[name] == parameter
            for optimizer in OPTIMIZERS.values():
                assert name not in optimizer.hyperparameters


HAVE_OFF = [
    name
    for name, method in METHODS.items()
    if any(one.off is not None for one in method.hyperparameters.values())
]


@pytest.mark.parametrize("name", HAVE_OFF)
def test_off_is_backprop_bit_for_bit(name):
    off = {
        name: parameter.off
        for name, parameter in METHODS[name].hyperparameters.items()
        if parameter.off is not None
    }
    _, states = train(make(name, **off))
    tiny.assert_equal(states.params, backprop())


@pytest.fixture
def declared():
    """Lets a test declare methods, which are forgotten after it."""
    tables = (
        *(methods._METHODS, base_optimizers._OPTIMIZERS),
        *(hyperparameters._DECLARED, styles._STYLES),
    )
    kept = [dict(table) for table in tables]
    yield
    for table, before in zip(tables, kept, strict=True):
        table.clear()
        table.update(before)


def declare_half_steps():
    """Declares a method that halves all updates, and sees to no off value itself."""
    number = methods.Hyperparameter(0.5, methods.FRACTION, 1.0, "factor", (0.5, 0.25))

    @methods.method(
        "half_steps",
        family=styles.REGULARIZERS,
        hyperparameters={"step_factor": number},
    )
    def build(given):
        factor = given.hyperparameters.step_factor
        assert isinstance(factor, jax.Array), "built though it is off"
        return given.then(optax.scale(factor))


def test_one_declaration_makes_a_method_a_case_a_look_and_a_sweep(declared):
    declare_half_steps()
    sizes = {"step_sizes": (0.1,), "adam_step_sizes": (0.01,)}
    cases = method_configs.newer_methods(adam_step_size=0.01)
    swept = method_configs.with_values_to_try(cases, **sizes)
    assert swept["half_steps"] == {
        "method": "half_steps",
        "sweep": {"step_factor": (0.5, 0.25)},
    }
    assert styles.method_style("half_steps").family == styles.REGULARIZERS
    halved = train(make("half_steps", step_size=0.1))[1].params
    plain = train(make("backprop", step_size=0.05))[1].params
    tiny.assert_close(halved, plain)
    off = train(make("half_steps", step_factor=1.0))[1]
    tiny.assert_equal(off.params, backprop())


def test_one_declaration_adds_a_loss(declared):
    """A stranger's: half the squared params, which is what `weight_decay` adds."""
    number = methods.Hyperparameter(0.1, methods.FINITE, 0.0, "strength", (0.2, 0.1))

    @methods.method(
        "squares",
        family=styles.LOSSES,
        hyperparameters={"squares_strength": number},
        adds_loss=True,
    )
    def build(given):
        def loss(seen, memory):
            assert memory is None
            squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(seen.params)]
            return given.hyperparameters.squares_strength / 2 * sum(squares)

        return AddedLoss(loss)

    added = train(make("squares"))[1].params
    tiny.assert_close(added, train(make("backprop", weight_decay=0.1))[1].params)
    off = train(make("squares", squares_strength=0.0))[1].params
    tiny.assert_equal(off, backprop())


def test_a_method_that_is_off_has_the_state_of_the_optimizer_alone():
    off = make("continual_backprop", replacement_rate=0.0)
    plain, off, swept = (
        permuted_mnist.make_problem(config).learner.init(*one_lane(config))
        for config in (
            make("backprop"),
            off,
            make("continual_backprop", sweep={"replacement_rate": (0.0, 0.1)}),
        )
    )
    assert jax.tree.structure(off) == jax.tree.structure(plain)
    assert jax.tree.structure(off) != jax.tree.structure(swept)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"family": "regularisers"}, "choose one of .*'regularizers'"),
        (
            {"hyperparameters": {"decay_rate": HYPERPARAMETERS["redo_every"]}},
            "'decay_rate' is declared twice",
        ),
        (
            {"hyperparameters": {"rate": HYPERPARAMETERS["shrink"]._replace(off=2.0)}},
            r"config.rate must be in \[0, 1\], got 2.0",
        ),
        ({"name": "redo"}, "A method 'redo' already exists; choose another name"),
    ],
)
def test_a_wrong_declaration_says_what_to_write(fields, message, declared):
    name = {"name": "mine"} | fields
    with pytest.raises(ValueError, match=message):
        methods.method(name.pop("name"), **name)(lambda given: given.base)
    assert "mine" not in METHODS
    assert "rate" not in HYPERPARAMETERS


def test_methods_without_an_off_value_are_known():
    assert set(METHODS) - set(HAVE_OFF) == {
        "backprop",
        "normalize_and_project",
        *("upgd", "upgd_nonprotecting", "ada_upgd", "adam_rel"),
        *("fire", "head_reset", "full_reset", "optimizer_reset"),
    }


# A task is 40 updates long here.
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("head_reset", {"head"}),
        ("full_reset", {"dense_0", "head"}),
        ("fire", {"dense_0", "head"}),
        ("shrink_and_perturb_events", {"dense_0", "head"}),
        ("dash", {"dense_0", "head"}),
    ],
)
def test_events_come_at_the_end_of_a_task_and_at_no_other_update(name, changes):
    _, states = train(make(name))
    plain = backprop()
    for layer in ("dense_0", "head"):
        kernels, wanted = states.params[layer]["kernel"], plain[layer]["kernel"]
        # Two programs: XLA may round a sum of products in one of them only.
        np.testing.assert_allclose(kernels[:39], wanted[:39], rtol=1e-5, atol=1e-6)
        has_changed = np.abs(kernels[39] - wanted[39]).max() > 0.01
        assert has_changed == (layer in changes)
    assert METHODS[name].sees_tasks


def test_a_full_reset_draws_a_network_like_the_first_and_forgets_its_statistics():
    config = make("full_reset", normalization="online")
    first, states = train(config)
    at_end = tiny.at(states, 39)
    tiny.assert_equal(at_end.network_state, first.network_state)
    kernel = at_end.params["dense_0"]["kernel"]
    assert not np.array_equal(kernel, first.params["dense_0"]["kernel"])
    bound = math.sqrt(2 * 3 / 64)
    assert 0.9 * bound < np.abs(kernel).max() <= bound
    assert not np.array_equal(
        tiny.at(states, 38).network_state["batch_stats"]["norm_0"]["mean"], np.zeros(5)
    )


def test_the_optimizer_is_born_again_with_a_task():
    config = make("optimizer_reset", optimizer="adam", step_size=0.01)
    _, states = train(config)
    adam = states.optimizer_state.base_state[0]
    np.testing.assert_array_equal(adam.count[38:41], [39, 0, 1])
    np.testing.assert_array_equal(adam.mu["head"]["kernel"][39], 0)
    assert np.abs(adam.mu["head"]["kernel"][38]).max() > 0


def test_statistics_of_a_replaced_unit_are_newborn():
    config = make(
        "continual_backprop",
        normalization="online",
        replacement_rate=0.02,
        maturity_threshold=5,
    )
    _, states = train(config)
    replaced = np.asarray(states.optimizer_state.replaced["dense_0"])[:, 0]
    (updates,) = np.nonzero(replaced < 5)
    assert len(updates) >= 4
    for update in updates:
        unit = replaced[update]
        for name, value in (("mean", 0), ("var", 1)):
            statistics = states.network_state["batch_stats"]["norm_0"][name]
            assert statistics[update, unit] == value
            others = np.delete(statistics[update], unit)
            assert (others != value).any()
        for name in ("u", "v"):
            sums = states.network_state["backward_stats"]["norm_0"][name]
            assert sums[update, unit] == 0
        assert states.params["norm_0"]["scale"][update, unit] == 1


def test_the_decays_of_online_normalization_reach_it():
    slow, fast = (
        train(make("backprop", normalization="online", online_norm_forward_decay=decay))
        for decay in (0.999, 0.9)
    )
    variances = [
        states.network_state["batch_stats"]["norm_0"]["var"][0]
        for _, states in (slow, fast)
    ]
    mean_steps = [
        states.network_state["batch_stats"]["norm_0"]["mean"][0]
        for _, states in (slow, fast)
    ]
    # The first example meets mean 0 and variance 1 in both.
    np.testing.assert_allclose(mean_steps[1], 100 * mean_steps[0], rtol=1e-3)
    squares = np.square(mean_steps[1] / 0.1)
    np.testing.assert_allclose(variances[1], 0.9 + 0.09 * squares, rtol=1e-5)


def test_hare_and_tortoise_predicts_with_the_tortoise():
    config = make("hare_and_tortoise", hare_decay=0.5, hare_every=1000)
    learner = permuted_mnist.make_problem(config).learner
    _, states = train(config)
    state = tiny.at(states, 20)
    (_, event), network = state.optimizer_state, make_mlp(config, 10)
    wanted, _ = network.apply({"params": event.slow}, IMAGES[0])
    np.testing.assert_array_equal(learner.predict(state, IMAGES[0]), wanted)
    hare, _ = network.apply({"params": state.params}, IMAGES[0])
    assert np.abs(np.asarray(hare - wanted)).max() > 1e-3


def test_an_optimizer_of_its_own_takes_no_field_of_the_other():
    for overrides, message in (
        ({"optimizer": "adam"}, "config.optimizer is 'adam': set it to 'sgd'"),
        ({"momentum": 0.5}, r"take config.momentum, which is 0.5: set it to 0"),
        (
            {"sweep": {"weight_decay": (0.0, 0.1)}},
            r"take config.weight_decay, which is 0.1",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            permuted_mnist.make_problem(make("upgd", **overrides))


def test_normalize_and_project_wants_a_normalization():
    config = make("normalize_and_project", normalization="none")
    with pytest.raises(ValueError, match=r"'none': .* one of \['layer', 'rms'\]"):
        permuted_mnist.make_problem(config)


def test_adam_rel_wants_an_optimizer_with_the_moments_of_adam():
    with pytest.raises(ValueError, match=r"optimizer 'sgd': .* one of \['adam', 'ad"):
        permuted_mnist.make_problem(make("adam_rel", optimizer="sgd"))


def test_norms_of_kernels_stay_where_they_began():
    first, states = train(make("normalize_and_project"))
    for layer in ("dense_0", "head"):
        norms = np.linalg.norm(states.params[layer]["kernel"], axis=(1, 2))
        wanted = np.linalg.norm(first.params[layer]["kernel"])
        np.testing.assert_allclose(norms, wanted, rtol=1e-5)


def test_a_config_has_the_hyperparameters_of_its_cases_and_no_others():
    default = complete(pmnist.get_config())
    assert "replacement_rate" in default
    for name in ("redo_threshold", "shrink", "online_norm_forward_decay"):
        assert name not in default
        assert name not in default.sweep
    everything = complete(pmnist.get_config("methods"))
    assert set(HYPERPARAMETERS) == set(everything.sweep)
    assert (
        everything.redo_threshold
        == METHODS["redo"].hyperparameters["redo_threshold"].default
    )


def test_every_method_and_normalization_is_a_case_of_the_preset():
    config = pmnist.get_config("methods")
    cases = config.cases.values()
    assert {case.method for case in cases} == set(METHODS)
    assert {case.get("normalization", "none") for case in cases} == {
        *("none", "online", "batch", "layer", "rms")
    }
    assert len(config.cases) == len(method_configs.paper_methods(adam_step_size=1)) + (
        len(method_configs.batch_methods(batch_size=2, step_size=1))
        + len(method_configs.newer_methods(adam_step_size=1))
    )


def test_options_of_an_activation_reach_training_and_evaluation():
    config = make("backprop", activation="aid", aid_p=0.7)
    hyperparameters, key = one_lane(config)
    learner = permuted_mnist.make_problem(config).learner
    state = learner.init(hyperparameters, key)
    network = make_mlp(config, 10).clone(activation_options={"p": 0.7})
    wanted, features = network.apply({"params": state.params}, IMAGES[0])
    np.testing.assert_allclose(learner.predict(state, IMAGES[0]), wanted, rtol=1e-6)
    tiny.assert_close(learner.features(state, IMAGES[0]), features)
    images = jnp.tile(IMAGES[0], (500, 1))

    @jax.jit
    def training_outputs(state):
        return learner.step(hyperparameters, state, images, jnp.zeros(500, int))[1]

    outputs = training_outputs(state)
    # Masks differ between examples, and their mean is the evaluation.
    assert np.std(outputs, axis=0).min() > 0.01
    np.testing.assert_allclose(np.mean(outputs, axis=0), wanted[0], atol=0.15)
    later = state._replace(num_updates=state.num_updates + 1)
    assert not np.array_equal(outputs, training_outputs(later))


def test_mini_batches_average_their_gradients():
    config = make("backprop", batch_size=4)
    problem = permuted_mnist.make_problem(config)
    assert problem.updates_per_task == 10
    hyperparameters, key = one_lane(config)
    state = problem.learner.init(hyperparameters, key)
    images, labels = IMAGES[:4, 0], LABELS[:4, 0]
    after, _, _ = problem.learner.step(hyperparameters, state, images, labels)
    network = make_mlp(config, 10)

    def loss(params):
        logits, _ = network.apply({"params": params}, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    wanted = jax.tree.map(
        lambda param, grad: param - 0.1 * grad,
        state.params,
        jax.grad(loss)(state.params),
    )
    tiny.assert_close(after.params, wanted)
    with pytest.raises(ValueError, match="batch_size must divide .* 7"):
        permuted_mnist.make_problem(make("backprop", batch_size=7))
