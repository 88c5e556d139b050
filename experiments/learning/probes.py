"""Probes of a learner before a task: costlier measures, taken in chosen tasks only.

A probe trains and measures copies, so a run has the same numbers with and without it.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from cbp_jax import metrics
from experiments.learning.checks import ConfigError, check_choice, check_positive
from experiments.learning.learner import Learner, LearnerState
from experiments.learning.measures import outputs_of_layers, stack_layers
from experiments.learning.problem import Measured

_HESSIAN_ORDER = 100  # Steps of the Lanczos method.
_HESSIAN_BOUND = 0.1  # Smallest magnitude of an eigenvalue that counts for the rank.
_KERNEL_EXAMPLES = 32  # At most.

UPDATE_PLASTICITY = "update_plasticity"
"""The measure that is taken at every update, because it is of the updates."""

Start = Callable[[LearnerState], LearnerState]


def check_probes(config: Any, examples: str, num_examples: int) -> None:
    """Raises ConfigError if the fields of the probes do not fit the problem.

    Args:
      config: the case's config.
      examples: what a probe can take examples from, in words.
      num_examples: their number.
    """
    if config.probe_every == 0:
        return
    check_positive(config, "probe_updates", "probe_examples")
    for name in config.probe_measures:
        check_choice("probe_measures", name, (*_MEASURES, UPDATE_PLASTICITY))
    if config.probe_examples > num_examples:
        raise ConfigError(
            f"config.probe_examples is {config.probe_examples}, but {examples} are "
            f"{num_examples}: set it to at most that."
        )
    is_one_batch = config.probe_examples < 2 * config.batch_size
    if "readiness" in config.probe_measures and is_one_batch:
        raise ConfigError(
            f"config.probe_examples is {config.probe_examples}, but readiness compares "
            f"at least two batches of config.batch_size, {config.batch_size}: set it "
            f"to at least {2 * config.batch_size}."
        )
    if "hessian" in config.probe_measures and (
        config.normalization == "online" or config.get("conv_channels")
    ):
        raise ConfigError(
            "config.probe_measures contains 'hessian', but convolutional networks and "
            "online normalization have gradients of their own without derivatives: "
            "leave 'hessian' out."
        )


def probe(
    config: Any,
    learner: Learner,
    hyperparameters: SimpleNamespace,
    lane_key: jax.Array,
    state: LearnerState,
    inputs: jax.Array,
    targets: jax.Array,
    task: jax.Array,
    start: Start = lambda state: state,
) -> dict[str, Measured]:
    """Measures copies of a learner on the first examples of the next task.

    All losses are those of training without dropout and without an added loss; random
    activations draw the same numbers each time. Statistics of normalizations are
    constants: those of the state or, for a fresh learner, the initial ones.

    Args:
      config: a config with `probe_every` (tasks from one probe to the next, at least
        1), `probe_measures` (names of groups, see `Returns`) and `probe_updates`.
      learner: the learner.
      hyperparameters: its hyperparameters.
      lane_key: the key from which it was initialized.
      state: its state before the task.
      inputs: `[M, ...]`.
      targets: `[M]`.
      task: int32 scalar.
      start: what a task does to a state before its first update.

    Returns:
      Float32 numbers, which are measured in tasks 0, `probe_every` and so on. For the
      group `aged_against_fresh`, the params as the task starts from them and the lane's
      initial params make `probe_updates` updates of Adam with step size 1e-3 on all
      examples: `aged_area`, `fresh_area`, `aged_minus_fresh` and `aged_updates` of
      `cbp_jax.metrics.aged_against_fresh`. For `readiness`, `readiness`,
      `gradient_strength` and `gradient_reliability`, on as many batches of
      `config.batch_size` as there are. For `hessian`, `hessian_rank` and `sharpness`,
      the number above 0.1 and the largest of the eigenvalues that 100 Lanczos steps
      find. For `tangent_kernel`, `tangent_kernel_rank` (effective) and
      `tangent_kernel_condition`, on up to 32 examples. For `layers`, one number for
      each layer, before `start`: `always_on_units`, `duplicate_units`,
      `gradient_dormant_units` (of the incoming weights' gradients) and
      `participation_ratio` of hidden layers, `spectral_norm` and
      `distance_from_initialization` of all.
    """

    def measured() -> dict[str, Measured]:
        probed = _Probed(config, learner, hyperparameters, lane_key, start)
        found: dict[str, Measured] = {}
        for name, measure in _MEASURES.items():
            if name in config.probe_measures:
                found |= measure(probed, state, inputs, targets)
        return found

    shapes = jax.eval_shape(measured)

    def not_measured() -> dict[str, Measured]:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return lax.cond(task % config.probe_every == 0, measured, not_measured)


def plasticity_of_update(
    config: Any,
    learner: Learner,
    hyperparameters: SimpleNamespace,
    before: LearnerState,
    after: LearnerState,
    inputs: jax.Array,
    targets: jax.Array,
    loss: jax.Array,
) -> dict[str, jax.Array]:
    """Measures how much an update has improved the loss of its own batch.

    Args:
      config: the case's config.
      learner: the learner.
      hyperparameters: its hyperparameters.
      before: its state before the update.
      after: its state after it.
      inputs: of the batch.
      targets: of the batch.
      loss: of the batch, before the update.

    Returns:
      `update_plasticity`, a float32 scalar, if the config's probes take it.
    """
    if config.probe_every == 0 or UPDATE_PLASTICITY not in config.probe_measures:
        return {}
    new_loss = learner.loss(hyperparameters, before, after.params, inputs, targets)
    return {UPDATE_PLASTICITY: metrics.update_plasticity(loss, new_loss)}


class _Probed:
    """A learner, as the measures of a probe need it."""

    def __init__(
        self,
        config: Any,
        learner: Learner,
        hyperparameters: SimpleNamespace,
        lane_key: jax.Array,
        start: Start,
    ):
        self.config = config
        self.learner = learner
        self.start = start
        self.initial = learner.init(hyperparameters, lane_key)
        self._hyperparameters = SimpleNamespace(
            **{**vars(hyperparameters), "dropout_rate": 0.0}
        )

    def loss_of(self, state: LearnerState) -> Callable[..., jax.Array]:
        """Returns `(params, inputs, targets) -> loss`, with a state's statistics."""

        def loss(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
            arguments = self._hyperparameters, state, params, inputs, targets
            return self.learner.loss(*arguments)

        return loss


def _aged_against_fresh(
    probed: _Probed, state: LearnerState, inputs: jax.Array, targets: jax.Array
) -> dict[str, Measured]:
    aged, fresh = probed.start(state), probed.start(probed.initial)

    def loss(both: tuple[Any, Any], inputs: jax.Array, targets: jax.Array) -> jax.Array:
        # Adam leaves alone what has no gradient.
        params, network_state = both[0], lax.stop_gradient(both[1])
        loss_of = probed.loss_of(aged._replace(network_state=network_state))
        return loss_of(params, inputs, targets)

    found = metrics.aged_against_fresh(
        loss,
        (aged.params, aged.network_state),
        (fresh.params, fresh.network_state),
        inputs,
        targets,
        num_updates=probed.config.probe_updates,
    )
    return _scalars(
        aged_area=found.aged_area,
        fresh_area=found.fresh_area,
        aged_minus_fresh=found.difference,
        aged_updates=found.aged_updates,
    )


def _readiness(
    probed: _Probed, state: LearnerState, inputs: jax.Array, targets: jax.Array
) -> dict[str, Measured]:
    state, size = probed.start(state), probed.config.batch_size
    number = len(inputs) // size * size
    found = metrics.readiness(
        probed.loss_of(state),
        state.params,
        inputs[:number],
        targets[:number],
        batch_size=size,
    )
    return _scalars(
        readiness=found.readiness,
        gradient_strength=found.strength,
        gradient_reliability=found.reliability,
    )


def _layers(
    probed: _Probed, state: LearnerState, inputs: jax.Array, targets: jax.Array
) -> dict[str, Measured]:
    learner, config = probed.learner, probed.config
    names = learner.layers
    features = learner.features(state, inputs)
    hidden = [features[name] for name in names[:-1]]
    grads = jax.grad(probed.loss_of(state))(state.params, inputs, targets)
    of_hidden = {
        "always_on_units": [metrics.always_on_units(layer) for layer in hidden],
        "duplicate_units": [metrics.duplicate_units(layer) for layer in hidden],
        "gradient_dormant_units": [
            metrics.gradient_dormant_units(grads[name]["kernel"]) for name in names[:-1]
        ],
        "participation_ratio": [
            metrics.participation_ratio(layer, method=config.rank_method)
            for layer in outputs_of_layers(learner, features)
        ],
    }
    of_all = {
        "spectral_norm": [
            metrics.spectral_norm(state.params[name]["kernel"]) for name in names
        ],
        "distance_from_initialization": [
            metrics.distance_from_initialization(
                state.params[name], probed.initial.params[name]
            )
            for name in names
        ],
    }
    found = {
        name: stack_layers([*numbers, None]) for name, numbers in of_hidden.items()
    }
    return found | {name: stack_layers(numbers) for name, numbers in of_all.items()}


def _hessian(
    probed: _Probed, state: LearnerState, inputs: jax.Array, targets: jax.Array
) -> dict[str, Measured]:
    state = probed.start(state)
    values = metrics.hessian_eigenvalues(
        probed.loss_of(state), state.params, inputs, targets, order=_HESSIAN_ORDER
    )
    return _scalars(
        hessian_rank=jnp.sum(jnp.abs(values) > _HESSIAN_BOUND), sharpness=values[-1]
    )


def _tangent_kernel(
    probed: _Probed, state: LearnerState, inputs: jax.Array, targets: jax.Array
) -> dict[str, Measured]:
    del targets
    state = probed.start(state)

    def apply(params: Any, inputs: jax.Array) -> jax.Array:
        return probed.learner.outputs(state._replace(params=params), inputs)

    kernel = metrics.tangent_kernel(apply, state.params, inputs[:_KERNEL_EXAMPLES])
    return _scalars(
        tangent_kernel_rank=metrics.effective_rank(kernel),
        tangent_kernel_condition=metrics.condition_number(kernel),
    )


_MEASURES = {
    "aged_against_fresh": _aged_against_fresh,
    "readiness": _readiness,
    "layers": _layers,
    "hessian": _hessian,
    "tangent_kernel": _tangent_kernel,
}


def _scalars(**numbers: jax.Array) -> dict[str, Measured]:
    return {
        name: Measured(jnp.asarray(number, jnp.float32), jnp.ones((), bool))
        for name, number in numbers.items()
    }
