"""Direct measures of plasticity: closed forms, NumPy, and what must not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from cbp_jax import metrics


def quadratic(params, inputs, targets):
    """Half the squared distance to the targets, times the inputs as curvature."""
    return 0.5 * inputs * jnp.sum((params["w"] - targets) ** 2)


TARGETS = jnp.array([1.0, -1.0])
AGED = {"w": jnp.array([5.0, -1.0])}
FRESH = {"w": jnp.array([1.0, 1.0])}
CURVATURE, STEP_SIZE, UPDATES = 2.0, 0.1, 6


@jax.jit
def probe(aged, fresh):
    return metrics.aged_against_fresh(
        quadratic,
        aged,
        fresh,
        CURVATURE,
        TARGETS,
        num_updates=UPDATES,
        optimizer=optax.sgd(STEP_SIZE),
        threshold=1.0,
    )


def exact_losses(params):
    """Each update of SGD shrinks the distance by one minus step size x curvature."""
    shrinkage = (1 - STEP_SIZE * CURVATURE) ** np.arange(UPDATES + 1)
    distance = np.sum((np.asarray(params["w"], float) - np.asarray(TARGETS)) ** 2)
    return 0.5 * CURVATURE * distance * shrinkage**2


def test_a_probe_of_a_quadratic_loss_has_its_curves_areas_and_updates():
    result = probe(AGED, FRESH)
    aged, fresh = exact_losses(AGED), exact_losses(FRESH)
    np.testing.assert_allclose(result.aged_losses, aged, rtol=1e-5)
    np.testing.assert_allclose(result.fresh_losses, fresh, rtol=1e-5)
    areas = [np.sum(losses) - (losses[0] + losses[-1]) / 2 for losses in (aged, fresh)]
    np.testing.assert_allclose(result.aged_area, areas[0], rtol=1e-5)
    np.testing.assert_allclose(result.difference, areas[0] - areas[1], rtol=1e-5)
    # 4 x 0.8^(2 u) is at most 1 from the fourth update on; 16 x is not by the sixth.
    assert (result.fresh_updates, result.aged_updates) == (4, UPDATES + 1)


def test_a_probe_of_lanes_is_that_of_each():
    lanes = {"w": jnp.stack([AGED["w"], FRESH["w"], 2 * FRESH["w"]])}
    result = jax.jit(jax.vmap(probe, (0, None)))(lanes, FRESH)
    for lane in range(3):
        wanted = probe(tiny.at(lanes, lane), FRESH)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5),
            tiny.at(result, lane),
            wanted,
        )


def test_a_probe_trains_with_a_new_adam_and_leaves_the_params_alone():
    params = {"w": np.array([3.0, 0.5], np.float32)}
    before = {"w": params["w"].copy()}
    result = metrics.aged_against_fresh(
        quadratic, params, FRESH, CURVATURE, TARGETS, num_updates=2
    )
    np.testing.assert_array_equal(params["w"], before["w"])
    # Adam's first two steps along a gradient of one sign are of the step size.
    moved = before["w"] - np.array([1e-3, 1e-3])
    losses = [exact_losses({"w": w})[0] for w in (before["w"], moved)]
    np.testing.assert_allclose(result.aged_losses[:2], losses, rtol=1e-6)
    # By default, half the first loss of the fresh params is to be reached: never here.
    assert result.fresh_updates == 3


def test_a_probe_of_bfloat16_trains_in_bfloat16():
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), AGED)
    result = probe(narrow, FRESH)
    assert result.aged_losses.dtype == jnp.float32
    np.testing.assert_allclose(result.aged_losses, exact_losses(AGED), rtol=0.05)


@pytest.mark.parametrize(
    ("fresh", "message"),
    [
        ({"v": FRESH["w"]}, "fresh_params has the structure .*'v'.*same network"),
        ({"w": jnp.ones(3)}, r"fresh_params has leaves of shapes \[\(3,\)\]"),
    ],
)
def test_fresh_params_of_another_network_are_refused(fresh, message):
    with pytest.raises(ValueError, match=message):
        metrics.aged_against_fresh(quadratic, AGED, fresh, CURVATURE, TARGETS)
    with pytest.raises(ValueError, match="num_updates is 0, expected"):
        metrics.aged_against_fresh(
            quadratic, AGED, FRESH, CURVATURE, TARGETS, num_updates=0
        )


def test_a_loss_for_each_example_is_refused():
    def per_example(params, inputs, targets):
        return (inputs @ params["w"] - targets) ** 2

    arguments = per_example, AGED, INPUTS, LABELS
    message = r"loss_fn returned an array of shape \({},\); .* Return the mean"
    for measure in (metrics.sharpness, metrics.hessian_rank):
        with pytest.raises(ValueError, match=message.format(12)):
            measure(*arguments)
    with pytest.raises(ValueError, match=message.format(4)):
        metrics.readiness(*arguments, batch_size=4)
    with pytest.raises(ValueError, match=message.format(12)):
        metrics.aged_against_fresh(per_example, AGED, FRESH, INPUTS, LABELS)


def test_update_plasticity_is_the_share_of_the_loss_that_is_gone():
    before = jnp.array([2.0, 2.0, 2.0, 0.0], jnp.bfloat16)
    after = jnp.array([0.5, 3.0, 0.0, 0.0], jnp.bfloat16)
    result = jax.jit(jax.vmap(metrics.update_plasticity))(before, after)
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, [0.75, 0, 1, 1])
    # Below the bound, a loss counts as 1e-8.
    np.testing.assert_allclose(metrics.update_plasticity(1e-9, 2e-9), 0.8, rtol=1e-6)


def squared_error(params, inputs, targets):
    return jnp.mean((inputs @ params["w"] - targets) ** 2)


INPUTS = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
LABELS = INPUTS @ np.array([1.0, -2.0], np.float32) + 1


def test_readiness_is_strength_times_reliability():
    weights = np.array([0.5, 0.5], np.float32)
    residual = INPUTS @ weights - LABELS
    per_example = 2 * residual[:, None] * INPUTS
    batches = per_example.reshape(3, 4, 2).mean(axis=1)
    square = np.sum(per_example.mean(axis=0) ** 2)
    strength = square / np.mean(residual**2)
    reliability = square / np.mean(np.sum(batches**2, axis=1))

    @jax.jit
    @jax.vmap
    def measure(params):
        return metrics.readiness(squared_error, params, INPUTS, LABELS, batch_size=4)

    optimum = np.linalg.lstsq(INPUTS, LABELS)[0]
    result = measure({"w": jnp.stack([weights, optimum])})
    np.testing.assert_allclose(result.strength[0], strength, rtol=1e-5)
    np.testing.assert_allclose(result.reliability[0], reliability, rtol=1e-5)
    np.testing.assert_allclose(result.readiness[0], strength * reliability, rtol=1e-5)
    np.testing.assert_allclose(result.readiness[1], 0, atol=1e-6)
    assert measure({"w": jnp.zeros((1, 2), jnp.bfloat16)}).strength.dtype == jnp.float32


def test_readiness_without_a_gradient_is_zero_and_batches_must_be_whole():
    exact = {"w": jnp.zeros(2)}
    measure = functools.partial(metrics.readiness, squared_error, exact, INPUTS)
    assert measure(np.zeros(12, np.float32), batch_size=6) == (0, 0, 0)
    with pytest.raises(ValueError, match=r"batch_size is 5 for .* \[12\] examples"):
        measure(LABELS, batch_size=5)
    with pytest.raises(ValueError, match=r"\[11, 12\] examples, .* as many inputs"):
        measure(LABELS[:11], batch_size=1)


def test_tasks_are_compared_with_learners_from_scratch():
    accuracy, scratch = np.array([0.8, 0.6, 0.3]), np.array([0.8, 0.8, 0.6])
    result = metrics.task_plasticity(accuracy, scratch)
    np.testing.assert_allclose(result.difference, [0, -0.2, -0.3], atol=1e-6)
    np.testing.assert_allclose(result.ratio, [1, 0.75, 0.5], rtol=1e-6)
    np.testing.assert_allclose(result.forward_transfer, [0, -1, -0.75], atol=1e-6)
    assert result.intransigence == pytest.approx(0.5 / 3)
    empty = metrics.task_plasticity(np.array([0.5, 0.5]), np.array([0.0, 1.0]))
    np.testing.assert_array_equal(empty.ratio, [np.nan, 0.5])
    np.testing.assert_array_equal(empty.forward_transfer, [0.5, np.nan])
    with pytest.raises(ValueError, match=r"shape \(3,\) and .* \(2,\), expected"):
        metrics.task_plasticity(accuracy, scratch[:2])


def test_forgetting_is_from_the_best_accuracy_since_a_task_was_trained_on():
    accuracies = np.array(
        [[0.9, 0.3, 0.1], [0.95, 0.7, 0.2], [0.5, 0.6, 0.8]], np.float32
    )
    result = jax.jit(jax.vmap(metrics.forgetting))(accuracies[None])
    np.testing.assert_allclose(result.forgetting, (0.45 + 0.1) / 2, rtol=1e-6)
    np.testing.assert_allclose(result.backward_transfer, (-0.4 - 0.1) / 2, rtol=1e-6)
    np.testing.assert_allclose(result.forward_transfer, (0.3 + 0.2) / 2, rtol=1e-6)
    chance = metrics.forgetting(accuracies, 0.1)
    assert chance.forward_transfer == pytest.approx(0.15)
    # Task 1 was no better before it was trained on than it looks in row 0.
    accuracies[0, 1] = 1
    assert metrics.forgetting(accuracies).forgetting == pytest.approx(0.275)
    with pytest.raises(ValueError, match=r"shape \(2, 3\), expected \[tasks, tasks\]"):
        metrics.forgetting(accuracies[:2])


def test_churn_is_the_distance_of_outputs_and_the_share_of_other_decisions():
    outputs = jnp.array([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]], jnp.bfloat16)
    new = jnp.array([[3.0, -3.0], [2.0, 0.0], [0.0, 0.0]], jnp.bfloat16)
    distance, decisions = jax.jit(jax.vmap(metrics.churn))(outputs[None], new[None])
    np.testing.assert_allclose(distance, 5 / 3, rtol=1e-6)
    np.testing.assert_allclose(decisions, 1 / 3, rtol=1e-6)
    assert metrics.churn(jnp.ones(4), jnp.zeros(4)) == (1, 0)
    with pytest.raises(ValueError, match=r"\(3, 2\) and new_outputs \(2, 2\)"):
        metrics.churn(outputs, new[:2])
