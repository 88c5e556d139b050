"""Builds learners from configs: network, loss, optimizer and method, for all problems.

Shapes: B batch.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

from flax.core import pop
import jax
from jax import lax
import jax.numpy as jnp
import optax

import cbp_jax
from cbp_jax.layers import value_and_grad_with_state
from experiments.learning import networks
from experiments.learning.checks import ConfigError, check_choice
from experiments.learning.keys import INITIALIZATION, NOISE, REPLACEMENT, make_key
from experiments.learning.methods import METHODS, Ingredients, Method
from experiments.learning.replacement_log import ReplacementLog, empty_log, record


class LearnerState(NamedTuple):
    """The state that a learner carries from step to step."""

    params: Any
    network_state: Any  # Statistics of normalizations by collection, {} for none.
    optimizer_state: Any
    noise_key: jax.Array  # Typed key of all noise except the optimizer's.
    num_updates: jax.Array  # int32 scalar
    log: ReplacementLog | None  # Log of the current task; None if it is disabled.


class Learner(NamedTuple):
    """Pure functions of one learner, which take its hyperparameters as an argument.

    Attributes:
      init: `(hyperparameters, lane_key) -> LearnerState`.
      step: `(hyperparameters, state, inputs, targets, acts=None) -> (state, outputs,
        loss)` makes one update on a batch, inputs `[B, ...]`. The outputs `[B,
        num_outputs]` and the loss, a scalar mean over the batch, are from before the
        update. `acts` says whether this is one of the updates at which the method
        acts; None finds out at each update, by a conditional.
      period: the number of updates from one at which the method acts to the next, of
        which each task has a whole number; None if it may act at any.
      preview: `(hyperparameters, state, inputs, targets) -> (grads, updates)`, trees
        like the params: those of `step`, without applying them.
      predict: `(state, inputs) -> outputs` `[B, num_outputs]` for evaluation: no
        dropout, running statistics, and averaged params if the method evaluates these.
      outputs: `(state, inputs) -> outputs`: as `predict`, but with the params in
        training.
      features: `(state, inputs) -> dict` of the hidden activations by layer,
        `[B, ..., units]`, with the params in training.
      loss: `(hyperparameters, state, params, inputs, targets) -> loss`, the loss of
        other params in training, with the dropout masks and the statistics of the
        state.
      unit_ages: `state -> list` of the units' ages in each hidden layer, `[units]`, in
        updates since the last reset.
      units_reset: `state -> list` of the number of units reset in each hidden layer
        since `init`, int32 scalars.
      layers: names of the layers in forward order, the head last.
      layer_sizes: for each layer `num_weights`, `num_units` and `num_features`; see
        `networks.layer_sizes`.
    """

    init: Callable[..., LearnerState]
    step: Callable[..., tuple[LearnerState, jax.Array, jax.Array]]
    period: int | None
    preview: Callable[..., tuple[Any, Any]]
    predict: Callable[[LearnerState, jax.Array], jax.Array]
    outputs: Callable[[LearnerState, jax.Array], jax.Array]
    features: Callable[[LearnerState, jax.Array], dict[str, jax.Array]]
    loss: Callable[..., jax.Array]
    unit_ages: Callable[[LearnerState], list[jax.Array]]
    units_reset: Callable[[LearnerState], list[jax.Array]]
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
      config: the case's config, with `method`, `optimizer` and their hyperparameters.
      network: module with the interface of `cbp_jax.networks.MLP`.
      input_shape: shape of one input, without the batch.
      loss_fn: maps outputs `[B, num_outputs]` and targets to a scalar.
      updates_per_task: updates per task, for methods that act when a task ends.

    Returns:
      The learner.

    Raises:
      ValueError: the method or optimizer is unknown, the method needs units and the
        network has none, or the method is incompatible with another field.
    """
    units = network.units()
    _check(config, network)
    method = compiled_method(config)
    layers = (*(group.name for group in units), "head")
    inputs_like = jnp.zeros((1, *input_shape))
    has_log = config.replacement_log > 0 and method.resets_units

    def init_network(key: jax.Array) -> tuple[Any, Any]:
        network_state, params = pop(network.init(key, inputs_like), "params")
        return params, network_state

    params, _ = jax.eval_shape(init_network, make_key(0))
    layer_sizes = networks.layer_sizes(params, layers, config.activation)

    def make_optimizer(
        hyperparameters: SimpleNamespace, key: jax.Array, acts: bool | None = None
    ) -> optax.GradientTransformationExtraArgs:
        noise_key = jax.random.fold_in(key, NOISE)
        ingredients = Ingredients(
            hyperparameters=hyperparameters,
            base=_make_base_optimizer(config, hyperparameters, units, noise_key),
            network=network,
            init_params=lambda key: init_network(key)[0],
            weight_bounds=networks.weight_bounds(network),
            noise=config.noise,
            widest_layer=max(layer_sizes["num_units"]),
            largest=lambda name: max((*config.sweep.get(name, ()), config[name])),
            updates_per_task=updates_per_task,
            acts=acts,
            key=key,
        )
        return optax.with_extra_args_support(method.build(ingredients))

    def new_log(state: cbp_jax.UnitResetState) -> ReplacementLog:
        has_utility = all(hasattr(unit, "utility") for unit in state.units.values())
        return empty_log(config.replacement_log, has_utility=has_utility)

    def init(hyperparameters: SimpleNamespace, lane_key: jax.Array) -> LearnerState:
        key = jax.random.fold_in(lane_key, INITIALIZATION)
        params, network_state = init_network(key)
        key = jax.random.fold_in(lane_key, REPLACEMENT)
        optimizer_state = make_optimizer(hyperparameters, key).init(params)
        return LearnerState(
            params=params,
            network_state=network_state,
            optimizer_state=optimizer_state,
            noise_key=jax.random.fold_in(lane_key, NOISE),
            num_updates=jnp.zeros((), jnp.int32),
            log=new_log(optimizer_state) if has_log else None,
        )

    def loss_function(
        hyperparameters: SimpleNamespace,
        state: LearnerState,
        inputs: jax.Array,
        targets: jax.Array,
    ) -> Callable[[Any, Any], Any]:
        """Returns the loss of params and statistics in training, with its outputs."""
        trained = networks.with_hyperparameters(network, hyperparameters)
        dropout = {}
        if not _is_off(hyperparameters.dropout_rate):
            key = jax.random.fold_in(state.noise_key, state.num_updates)
            dropout = {"dropout_rate": hyperparameters.dropout_rate, "dropout_key": key}

        def loss_of(params: Any, network_state: Any) -> Any:
            (outputs, features), network_state = trained.apply(
                {"params": params, **network_state},
                inputs,
                train=True,
                mutable=list(network_state),
                **dropout,
            )
            return loss_fn(outputs, targets), (network_state, (outputs, features))

        return loss_of

    def compute_update(
        hyperparameters: SimpleNamespace,
        state: LearnerState,
        inputs: jax.Array,
        targets: jax.Array,
        acts: bool | None,
    ) -> tuple[Any, Any, LearnerState, jax.Array, jax.Array]:
        """Returns gradients, updates, new state (with old params), outputs and loss."""
        loss_of = loss_function(hyperparameters, state, inputs, targets)
        with jax.named_scope("gradient"):
            (loss, (outputs, features)), grads, network_state = (
                value_and_grad_with_state(loss_of)(state.params, state.network_state)
            )
        # Only init uses the key; from then on it is in the state.
        optimizer = make_optimizer(hyperparameters, make_key(0), acts)
        with jax.named_scope("optimizer"):
            updates, optimizer_state = optimizer.update(
                grads, state.optimizer_state, state.params, features=features
            )
        num_updates = state.num_updates + 1
        if method.resets_units:
            network_state = cbp_jax.reset_statistics(
                network_state, units, optimizer_state.replaced
            )
        if method.resets_network:
            is_new = num_updates % updates_per_task == 0
            _, initial = init_network(make_key(0))
            network_state = jax.tree.map(
                lambda new, old: jnp.where(is_new, new, old), initial, network_state
            )
        state = state._replace(
            network_state=network_state,
            optimizer_state=optimizer_state,
            num_updates=num_updates,
        )
        return grads, updates, state, outputs, loss

    def step(
        hyperparameters: SimpleNamespace,
        state: LearnerState,
        inputs: jax.Array,
        targets: jax.Array,
        acts: bool | None = None,
    ) -> tuple[LearnerState, jax.Array, jax.Array]:
        _, updates, new_state, outputs, loss = compute_update(
            hyperparameters, state, inputs, targets, acts
        )
        log = state.log
        if log is not None:
            states = state.optimizer_state, new_state.optimizer_state
            with jax.named_scope("log"):
                log = record(log, layers[:-1], hyperparameters, *states)
        with jax.named_scope("apply"):
            params = optax.apply_updates(state.params, updates)
        new_state = new_state._replace(params=params, log=log)
        return new_state, outputs, loss

    def preview(
        hyperparameters: SimpleNamespace,
        state: LearnerState,
        inputs: jax.Array,
        targets: jax.Array,
    ) -> tuple[Any, Any]:
        grads, updates, *_ = compute_update(
            hyperparameters, state, inputs, targets, acts=None
        )
        return grads, updates

    def apply(params: Any, state: LearnerState, inputs: jax.Array) -> Any:
        return network.apply({"params": params, **state.network_state}, inputs)

    def predict(state: LearnerState, inputs: jax.Array) -> jax.Array:
        params = state.params
        if method.evaluated_params is not None:
            params = method.evaluated_params(state.optimizer_state)
        return apply(params, state, inputs)[0]

    def outputs(state: LearnerState, inputs: jax.Array) -> jax.Array:
        return apply(state.params, state, inputs)[0]

    def features(state: LearnerState, inputs: jax.Array) -> dict[str, jax.Array]:
        return apply(state.params, state, inputs)[1]

    def loss(
        hyperparameters: SimpleNamespace,
        state: LearnerState,
        params: Any,
        inputs: jax.Array,
        targets: jax.Array,
    ) -> jax.Array:
        loss_of = loss_function(hyperparameters, state, inputs, targets)
        return loss_of(params, state.network_state)[0]

    def unit_ages(state: LearnerState) -> list[jax.Array]:
        if method.resets_units:
            states = state.optimizer_state.units
            return [states[layer].age for layer in layers[:-1]]
        return [
            jnp.full(units, state.num_updates)
            for units in layer_sizes["num_units"][:-1]
        ]

    def units_reset(state: LearnerState) -> list[jax.Array]:
        if method.resets_units:
            return [state.optimizer_state.num_replaced[layer] for layer in layers[:-1]]
        return [jnp.zeros((), jnp.int32)] * len(layers[:-1])

    return Learner(
        *(init, step, _period(config, method, updates_per_task)),
        *(preview, predict, outputs, features, loss),
        *(unit_ages, units_reset, layers, layer_sizes),
    )


def compiled_method(config: Any) -> Method:
    """Returns the method of a case, or backprop if it is off in all lanes.

    The config decides this, so that no code is traced or compiled for a method that has
    no effect.

    Args:
      config: the case's config, with a known `method`.
    """
    method = METHODS[config.method]
    switches = {
        name: hyperparameter.off
        for name, hyperparameter in method.hyperparameters.items()
        if hyperparameter.off is not None
    }
    is_off = switches and all(
        config[name] == off and not config.sweep.get(name)
        for name, off in switches.items()
    )
    return METHODS["backprop"] if is_off else method


def _period(config: Any, method: Method, updates_per_task: int) -> int | None:
    """Returns the learner's period; see `Learner`."""
    if method.sees_tasks:
        return updates_per_task
    if method.period is None or config.sweep.get(method.period):
        return None
    period = int(config[method.period])
    return None if updates_per_task % period else period


def scan_updates(
    learner: Learner,
    update: Callable[[LearnerState, Any, bool | None], tuple[LearnerState, Any]],
    state: LearnerState,
    batches: Any,
) -> tuple[LearnerState, Any]:
    """Makes the updates of a whole number of periods, as `lax.scan` does.

    If the method acts only at the end of each period, the other updates are compiled
    without it: a conditional in each would keep XLA from fusing them.

    Args:
      learner: the learner.
      update: `(state, batch, acts) -> (state, output)`; see `Learner`.
      state: its state.
      batches: pytree of arrays `[N, ...]`.

    Returns:
      The last state, and the outputs `[N, ...]`.
    """
    num_updates = len(jax.tree.leaves(batches)[0])
    period = learner.period
    if period is None or period < 2 or num_updates % period:
        return lax.scan(lambda state, batch: update(state, batch, None), state, batches)

    def run_period(state: LearnerState, batches: Any) -> tuple[LearnerState, Any]:
        state, outputs = lax.scan(
            lambda state, batch: update(state, batch, False),
            state,
            jax.tree.map(lambda leaf: leaf[:-1], batches),
        )
        last = jax.tree.map(lambda leaf: leaf[-1], batches)
        state, output = update(state, last, True)
        return state, jax.tree.map(
            lambda some, one: jnp.concatenate([some, one[None]]), outputs, output
        )

    periods = jax.tree.map(
        lambda leaf: leaf.reshape(-1, period, *leaf.shape[1:]), batches
    )
    state, outputs = lax.scan(run_period, state, periods)
    return state, jax.tree.map(
        lambda leaf: leaf.reshape(num_updates, *leaf.shape[2:]), outputs
    )


def clear_head(state: LearnerState, *, with_optimizer_state: bool) -> LearnerState:
    """Sets the head's weights and biases to 0.

    Args:
      state: state of the learner.
      with_optimizer_state: also clear the optimizer's state of the head, in every tree
        like the params: momentum, Adam's moments or averages.

    Returns:
      The new state.
    """
    like_params = jax.tree.structure(state.params)

    def is_like_params(node: Any) -> bool:
        return jax.tree.structure(node) == like_params

    def clear(node: Any) -> Any:
        if not is_like_params(node):
            return node
        return {**node, "head": jax.tree.map(jnp.zeros_like, node["head"])}

    state = state._replace(params=clear(state.params))
    if with_optimizer_state:
        state = state._replace(
            optimizer_state=jax.tree.map(
                clear, state.optimizer_state, is_leaf=is_like_params
            )
        )
    return state


def _make_base_optimizer(
    config: Any,
    hyperparameters: SimpleNamespace,
    units: Sequence[cbp_jax.UnitGroup],
    noise_key: jax.Array,
) -> optax.GradientTransformation:
    """Builds an optimizer, with L2 and noise if any lane uses them.

    Args:
      config: a config with `optimizer`, a key of `_OPTIMIZERS`, and `noise`; see
        `perturb`.
      hyperparameters: the learner's hyperparameters.
      units: unit groups of its network.
      noise_key: typed key of the noise.
    """
    base = _OPTIMIZERS[config.optimizer](hyperparameters, units)
    if not _is_off(hyperparameters.weight_decay):
        base = optax.chain(
            optax.add_decayed_weights(hyperparameters.weight_decay), base
        )
    if not _is_off(hyperparameters.noise_scale):
        noise = cbp_jax.optimizers.perturb(
            hyperparameters.noise_scale, key=noise_key, noise=config.noise
        )
        base = optax.chain(base, noise)
    return base


def _sgd(
    hyperparameters: SimpleNamespace, units: Sequence[cbp_jax.UnitGroup]
) -> optax.GradientTransformation:
    del units
    momentum = None if _is_off(hyperparameters.momentum) else hyperparameters.momentum
    return optax.sgd(hyperparameters.step_size, momentum=momentum)


def _adam(
    hyperparameters: SimpleNamespace, units: Sequence[cbp_jax.UnitGroup]
) -> optax.GradientTransformation:
    betas = {"b1": hyperparameters.b1, "b2": hyperparameters.b2}
    if not units:
        return optax.adam(hyperparameters.step_size, **betas)
    return cbp_jax.optimizers.adam_with_unit_counts(
        hyperparameters.step_size, units, **betas
    )


_OPTIMIZERS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"sgd": _sgd, "adam": _adam}
)


def _is_off(value: Any) -> bool:
    """Whether a hyperparameter is 0 in every lane, so that its code can be omitted."""
    return isinstance(value, (int, float)) and value == 0


def _check(config: Any, network: Any) -> None:
    """Raises ValueError for unknown or incompatible fields."""
    check_choice("method", config.method, METHODS)
    check_choice("optimizer", config.optimizer, _OPTIMIZERS)
    check_choice("noise", config.noise, cbp_jax.optimizers.NOISES)
    method = METHODS[config.method]
    if method.resets_units and not network.units():
        raise ConfigError(
            f"config.method {config.method!r} needs hidden units, but the network has "
            "none: set config.hidden_layers to at least 1, or config.method to "
            "'backprop'."
        )
    if method.replaces_optimizer:
        _check_plain(config, config.method)
    if method.normalizations and config.normalization not in method.normalizations:
        raise ConfigError(
            f"config.method {config.method!r} requires a normalization before each "
            f"activation, but config.normalization is {config.normalization!r}: set it "
            f"to one of {list(method.normalizations)}."
        )


def _check_plain(config: Any, method: str) -> None:
    """Raises ConfigError if a method would ignore a field of the base optimizer."""
    if config.optimizer != "sgd":
        raise ConfigError(
            f"config.method {method!r} is itself an optimizer, but config.optimizer is "
            f"{config.optimizer!r}: set it to 'sgd'."
        )
    for name in ("momentum", "weight_decay", "noise_scale"):
        values = (config[name], *config.sweep.get(name, ()))
        if any(value != 0 for value in values):
            raise ConfigError(
                f"config.method {method!r} is itself an optimizer and does not take "
                f"config.{name}, which is {max(values)}: set it to 0."
            )
