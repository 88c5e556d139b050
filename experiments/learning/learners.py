"""From a config to a learner: network, loss and optimizer, the same for every problem.

Shapes: B batch.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import cbp_jax
from cbp_jax.networks import MLP
from experiments.learning.checks import check_choice
from experiments.learning.methods import METHODS, Ingredients
from experiments.learning.replacement_log import ReplacementLog, empty_log, record

# Purposes of the random numbers derived from a lane's key. They are the same for every
# method, so that two methods with one seed see the same data and initial weights.
INITIALIZATION, STREAM, REPLACEMENT, NOISE = range(4)


class LearnerState(NamedTuple):
    """What a learner carries from step to step."""

    params: Any
    optimizer_state: Any
    noise_key: jax.Array  # Typed key of all noise but the optimizer's.
    num_updates: jax.Array  # int32 scalar
    num_resets: dict[str, jax.Array]  # int32 scalars, units of a layer reset so far.
    log: ReplacementLog | None  # Of the task, where it is switched on.


class Learner(NamedTuple):
    """Pure functions of one learner; `settings` holds its hyper-parameters.

    Attributes:
      init: `(settings, lane_key) -> LearnerState`.
      step: `(settings, state, inputs, targets) -> (state, outputs, loss)` makes one
        update on a batch, inputs `[B, ...]`; outputs `[B, num_outputs]` and the loss, a
        scalar mean over the batch, are from before the update.
      probe: `(settings, state, inputs, targets) -> (grads, updates)`, trees like the
        params: what `step` would do, without doing it.
      features: `(params, inputs) -> dict` of the hidden activations by layer,
        `[B, ..., units]`.
      unit_ages: `state -> list` of the updates since birth of the units of each hidden
        layer, `[units]`.
      layers: names of the layers in forward order, the head last.
      layer_sizes: for each layer `num_weights`, and `num_units` (0 for the head).
    """

    init: Callable[..., LearnerState]
    step: Callable[..., tuple[LearnerState, jax.Array, jax.Array]]
    probe: Callable[..., tuple[Any, Any]]
    features: Callable[[Any, jax.Array], dict[str, jax.Array]]
    unit_ages: Callable[[LearnerState], list[jax.Array]]
    layers: tuple[str, ...]
    layer_sizes: dict[str, list[int]]


def cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of logits `[B, classes]` and labels int `[B]`, in nats."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))


def make_learner(
    config: Any,
    network: Any,
    input_shape: tuple[int, ...],
    loss_fn: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    *,
    updates_per_task: int,
) -> Learner:
    """Builds the learner that a case's config describes.

    Args:
      config: the case's config; `method`, `optimizer` and what they name.
      network: module with the interface of `cbp_jax.networks.MLP`.
      input_shape: shape of one input, without the batch.
      loss_fn: maps outputs `[B, num_outputs]` and targets to a scalar.
      updates_per_task: told to methods that act when a task ends.

    Returns:
      The learner.

    Raises:
      ValueError: unknown method or optimizer, or a method without units to work on.
    """
    check_choice("method", config.method, METHODS)
    check_choice("optimizer", config.optimizer, OPTIMIZERS)
    units = network.units()
    method = METHODS[config.method]
    if method.resets_units and not units:
        raise ValueError(
            "A network without hidden layers has no units to replace: set "
            "config.hidden_layers to at least 1, or config.method to 'backprop'."
        )
    layers = (*(group.name for group in units), "head")
    max_replaced = _max_replaced(config)
    inputs_like = jnp.zeros((1, *input_shape))
    has_log = config.replacement_log > 0 and method.resets_units

    def init_params(key: jax.Array) -> Any:
        return network.init(key, inputs_like)["params"]

    def make_optimizer(
        settings: SimpleNamespace, key: jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        base = OPTIMIZERS[config.optimizer](settings, units)
        if not _is_off(settings.weight_decay):
            base = optax.chain(optax.add_decayed_weights(settings.weight_decay), base)
        if not _is_off(settings.noise_scale):
            noise_key = jax.random.fold_in(key, NOISE)
            noise = cbp_jax.optimizers.perturb(settings.noise_scale, key=noise_key)
            base = optax.chain(base, noise)
        return method.build(
            Ingredients(
                settings=settings,
                base=base,
                network=network,
                init_params=init_params,
                max_replaced=max_replaced,
                updates_per_task=updates_per_task,
                key=key,
            )
        )

    def init(settings: SimpleNamespace, lane_key: jax.Array) -> LearnerState:
        key = jax.random.fold_in(lane_key, INITIALIZATION)
        params = init_params(key)
        key = jax.random.fold_in(lane_key, REPLACEMENT)
        return LearnerState(
            params=params,
            optimizer_state=make_optimizer(settings, key).init(params),
            noise_key=jax.random.fold_in(lane_key, NOISE),
            num_updates=jnp.zeros((), jnp.int32),
            num_resets={name: jnp.zeros((), jnp.int32) for name in layers[:-1]},
            log=empty_log(config.replacement_log) if has_log else None,
        )

    def compute_update(
        settings: SimpleNamespace,
        state: LearnerState,
        inputs: jax.Array,
        targets: jax.Array,
    ) -> tuple[Any, Any, Any, jax.Array, jax.Array]:
        dropout = {}
        if not _is_off(settings.dropout_rate):
            key = jax.random.fold_in(state.noise_key, state.num_updates)
            dropout = {"dropout_rate": settings.dropout_rate, "dropout_key": key}

        def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, dict]]:
            outputs, features = network.apply({"params": params}, inputs, **dropout)
            return loss_fn(outputs, targets), (outputs, features)

        (loss, (outputs, features)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params
        )
        # The key only matters to init; the state carries it from there.
        optimizer = make_optimizer(settings, jax.random.key(0))
        updates, optimizer_state = optimizer.update(
            grads, state.optimizer_state, state.params, features=features
        )
        return grads, updates, optimizer_state, outputs, loss

    def step(
        settings: SimpleNamespace,
        state: LearnerState,
        inputs: jax.Array,
        targets: jax.Array,
    ) -> tuple[LearnerState, jax.Array, jax.Array]:
        _, updates, optimizer_state, outputs, loss = compute_update(
            settings, state, inputs, targets
        )
        num_resets, log = state.num_resets, state.log
        if method.resets_units:
            num_resets = _add_resets(num_resets, optimizer_state)
        if log is not None:
            states = state.optimizer_state, optimizer_state
            log = record(log, layers[:-1], settings, *states)
        new_state = LearnerState(
            params=optax.apply_updates(state.params, updates),
            optimizer_state=optimizer_state,
            noise_key=state.noise_key,
            num_updates=state.num_updates + 1,
            num_resets=num_resets,
            log=log,
        )
        return new_state, outputs, loss

    def probe(
        settings: SimpleNamespace,
        state: LearnerState,
        inputs: jax.Array,
        targets: jax.Array,
    ) -> tuple[Any, Any]:
        grads, updates, *_ = compute_update(settings, state, inputs, targets)
        return grads, updates

    def unit_ages(state: LearnerState) -> list[jax.Array]:
        if method.resets_units:
            states = state.optimizer_state.units
            return [states[layer].age for layer in layers[:-1]]
        return [
            jnp.full(units, state.num_updates)
            for units in layer_sizes["num_units"][:-1]
        ]

    def features(params: Any, inputs: jax.Array) -> dict[str, jax.Array]:
        return network.apply({"params": params}, inputs)[1]

    params = jax.eval_shape(init_params, jax.random.key(0))
    kernels = [params[layer]["kernel"] for layer in layers]
    layer_sizes = {
        "num_weights": [kernel.size for kernel in kernels],
        "num_units": [*(kernel.shape[-1] for kernel in kernels[:-1]), 0],
    }
    return Learner(init, step, probe, features, unit_ages, layers, layer_sizes)


def make_mlp(config: Any, num_outputs: int) -> MLP:
    """Builds the MLP of `hidden_layers` layers of `hidden_units` units.

    Raises:
      ValueError: unknown activation, or a size that cannot be; no layers at all are a
        linear model.
    """
    if config.hidden_layers < 0 or config.hidden_units < 1:
        raise ValueError(
            "hidden_layers must be at least 0 and hidden_units at least 1, got "
            f"{config.hidden_layers} and {config.hidden_units}."
        )
    cbp_jax.networks.activation_function(config.activation)
    widths = (config.hidden_units,) * config.hidden_layers
    return MLP(widths, num_outputs, config.activation)


def _sgd(
    settings: SimpleNamespace, units: Sequence[cbp_jax.UnitGroup]
) -> optax.GradientTransformation:
    del units
    momentum = None if _is_off(settings.momentum) else settings.momentum
    return optax.sgd(settings.step_size, momentum=momentum)


def _adam(
    settings: SimpleNamespace, units: Sequence[cbp_jax.UnitGroup]
) -> optax.GradientTransformation:
    betas = {"b1": settings.b1, "b2": settings.b2}
    if not units:
        return optax.adam(settings.step_size, **betas)
    return cbp_jax.optimizers.adam_with_unit_counts(settings.step_size, units, **betas)


OPTIMIZERS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"sgd": _sgd, "adam": _adam}
)


def _add_resets(
    num_resets: Mapping[str, jax.Array], state: cbp_jax.UnitResetState
) -> dict[str, jax.Array]:
    """Adds the units of each hidden layer that the last update reset."""
    return {
        name: number
        + jnp.sum(state.replaced[name] < state.units[name].age.size, dtype=jnp.int32)
        for name, number in num_resets.items()
    }


def _max_replaced(config: Any) -> int:
    """Bounds the units of a layer replaced in one step, over all rates of a sweep."""
    if "replacement_rate" not in config:
        return 1
    rates = (*config.sweep.get("replacement_rate", ()), config.replacement_rate)
    return max(1, math.ceil(max(rates) * config.hidden_units))


def _is_off(value: Any) -> bool:
    """Whether a hyper-parameter is 0 in every lane, so its code can be left out."""
    return isinstance(value, (int, float)) and value == 0
