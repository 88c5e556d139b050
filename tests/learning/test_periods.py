"""Methods that act every so many updates, in a loop that knows when they do."""

import re

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import tiny_digits

from experiments import permuted_mnist
from experiments.learning.learner import scan_updates
from experiments.learning.methods import METHODS
from experiments.run.config import complete, lane_hyperparameters, make_cases, make_grid

PERIOD = 4
EXAMPLES = (
    jax.random.uniform(jax.random.key(1), (12, 1, 64)),
    jnp.arange(12)[:, None] % 10,
)
# They act at the ends of tasks, or at every update that their period divides.
PERIODIC = [
    name for name, method in METHODS.items() if method.period or method.sees_tasks
]
STRONG = {"redo_threshold": 0.9, "hare_decay": 0.5}
# Without any active unit there is no rank to raise.
MILD = {"l2_er": {"step_size": 0.01, "er_step_size": 0.1}}
STRONG |= {"regrama_threshold": 0.9, "cpr_rate": 0.5, "wasserstein_strength": 100.0}
QUICK = ("fire", "redo")
# By a truth value; the choice of a platform is by a constant.
CONDITIONAL = re.compile(
    r"convert \S+ : \(tensor<i1>\) -> tensor<i32>\s+\S+ = \"stablehlo\.case\""
)


def make_learner(method, period=PERIOD, **fields):
    case = {"method": method, **METHODS[method].fields} | MILD.get(method, {}) | fields
    if METHODS[method].period:
        case |= {METHODS[method].period: period}
    config = complete(tiny_digits(cases={"one": case}, step_size=0.1))
    config.examples_per_task = config.measured_examples = PERIOD
    strong = {name: value for name, value in STRONG.items() if name in config}
    config.cases.one.update(strong)
    config = make_cases(complete(config))["one"]
    lane = jax.tree.map(lambda leaf: leaf[0], make_grid(config).lanes)
    hyperparameters = lane_hyperparameters(config, lane)
    learner = permuted_mnist.make_problem(config).learner
    return learner, hyperparameters, learner.init(hyperparameters, jax.random.key(0))


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in PERIODIC
    ],
)
def test_a_loop_of_periods_is_a_loop_of_updates(method):
    learner, hyperparameters, start = make_learner(method)
    assert learner.period == PERIOD

    def update(state, batch, acts):
        state, _, loss = learner.step(hyperparameters, state, *batch, acts)
        return state, loss

    def plain(state):
        return lax.scan(
            lambda state, batch: update(state, batch, None), state, EXAMPLES
        )

    def by_periods(state):
        return scan_updates(learner, update, state, EXAMPLES)

    def never(state):
        return lax.scan(
            lambda state, batch: update(state, batch, False), state, EXAMPLES
        )

    compare = jax.jit(lambda state: [run(state) for run in (plain, by_periods, never)])
    (expected, losses), found, (_, without) = compare(start)
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7),
        _numbers(found),
        _numbers((expected, losses)),
    )
    # Before the first act both are alike, and then they are not.
    np.testing.assert_allclose(without[:PERIOD], losses[:PERIOD], rtol=1e-6)
    assert np.abs(np.asarray(without[PERIOD:] - losses[PERIOD:])).max() > 1e-5


def _numbers(tree):
    return jax.tree.map(
        lambda leaf: (
            jax.random.key_data(leaf)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else leaf
        ),
        tree,
    )


@pytest.mark.parametrize("method", PERIODIC)
def test_updates_between_acts_have_no_conditional(method):
    learner, hyperparameters, state = make_learner(method)

    def conditionals(acts):
        def step(state):
            batch = jax.tree.map(lambda leaf: leaf[0], EXAMPLES)
            return learner.step(hyperparameters, state, *batch, acts)

        return len(CONDITIONAL.findall(jax.jit(step).lower(state).as_text()))

    # Adam-Rel selects a number.
    assert (conditionals(None) == 0) == (method == "adam_rel")
    assert conditionals(False) == 0


def test_periods_that_do_not_divide_a_task_have_common_divisors_with_it():
    for period, expected in ((3, None), (6, 2), (8, 4)):
        learner, *_ = make_learner("redo", period=period)
        assert learner.period == expected, period


def test_periods_that_differ_by_lane_have_common_divisors():
    learner, *_ = make_learner("redo", sweep={"redo_every": (6, 8)})
    assert learner.period == 2


def test_methods_that_act_at_any_update_have_none():
    learner, *_ = make_learner("continual_backprop")
    assert learner.period is None
