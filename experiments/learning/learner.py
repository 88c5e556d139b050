"""From a config to a learner: network, loss, optimizer and method, for every problem.

Shapes: B batch.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

from flax.core import pop
import jax
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
    """What a learner carries from step to step."""

    params: Any
    network_state: Any  # Statistics of normalizations by collection, {} for none.
    optimizer_state: Any
    noise_key: jax.Array  # Typed key of all noise but the optimizer's.
    num_updates: jax.Array  # int32 scalar
    log: ReplacementLog | None  # Of the task, where it is switched on.


class Learner(NamedTuple):
    """Pure functions of one learner; `hyperparameters` holds its numbers.

    Attributes:
      init: `(hyperparameters, lane_key) -> LearnerState`.
      step: `(hyperparameters, state, inputs, targets) -> (state, outputs, loss)` makes
        one update on a batch, inputs `[B, ...]`; outputs `[B, num_outputs]` and the
        loss, a scalar mean over the batch, are from before the update.
      preview: `(hyperparameters, state, inputs, targets) -> (grads, updates)`, trees
        like the params: what `step` would do, without doing it.
      predict: `(state, inputs) -> outputs` `[B, num_outputs]` of the finished network:
        no dropout, running statistics, and the average of the params where the method
        keeps one to be evaluated.
      features: `(state, inputs) -> dict` of the hidden activations by layer,
        `[B, ..., units]`, of the params in training, otherwise as `predict`.
      unit_ages: `state -> list` of the updates since birth of the units of each hidden
        layer, `[units]`.
      units_reset: `state -> list` of how many units of each hidden layer were reset
        since `init`, int32 scalars.
      layers: names of the layers in forward order, the head last.
      layer_sizes: for each layer `num_weights`, `num_units` and `num_features`, the
        entries of its activation at each position (0 for the head).
    """

    init: Callable[..., LearnerState]
    step: Callable[..., tuple[LearnerState, jax.Array, jax.Array]]
    preview: Callable[..., tuple[Any, Any]]
    predict: Callable[[LearnerState, jax.Array], jax.Array]
    features: Callable[[LearnerState, jax.Array], dict[str, jax.Array]]
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
      config: the case's config; `method`, `optimizer` and what they name.
      network: module with the interface of `cbp_jax.networks.MLP`.
      input_shape: shape of one input, without the batch.
      loss_fn: maps outputs `[B, num_outputs]` and targets to a scalar.
      updates_per_task: told to methods that act when a task ends.

    Returns:
      The learner.

    Raises:
      ValueError: unknown method or optimizer, a method without units to work on, or one
        that does not go with another field.
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
        hyperparameters: SimpleNamespace, key: jax.Array
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

    def compute_update(
        hyperparameters: SimpleNamespace,
        state: LearnerState,
        inputs: jax.Array,
        targets: jax.Array,
    ) -> tuple[Any, Any, LearnerState, jax.Array, jax.Array]:
        """Returns gradients, updates, the state after them but for params, and more."""
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

        with jax.named_scope("gradient"):
            (loss, (outputs, features)), grads, network_state = (
                value_and_grad_with_state(loss_of)(state.params, state.network_state)
            )
        # The key only matters to init; the state carries it from there.
        optimizer = make_optimizer(hyperparameters, make_key(0))
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
            _, newborn = init_network(make_key(0))
            network_state = jax.tree.map(
                lambda new, old: jnp.where(is_new, new, old), newborn, network_state
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
    ) -> tuple[LearnerState, jax.Array, jax.Array]:
        _, updates, new_state, outputs, loss = compute_update(
            hyperparameters, state, inputs, targets
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
        grads, updates, *_ = compute_update(hyperparameters, state, inputs, targets)
        return grads, updates

    def apply(params: Any, state: LearnerState, inputs: jax.Array) -> Any:
        return network.apply({"params": params, **state.network_state}, inputs)

    def predict(state: LearnerState, inputs: jax.Array) -> jax.Array:
        params = state.params
        if method.evaluated_params is not None:
            params = method.evaluated_params(state.optimizer_state)
        return apply(params, state, inputs)[0]

    def features(state: LearnerState, inputs: jax.Array) -> dict[str, jax.Array]:
        return apply(state.params, state, inputs)[1]

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
        *(init, step, preview, predict, features),
        *(unit_ages, units_reset, layers, layer_sizes),
    )


def compiled_method(config: Any) -> Method:
    """Returns the method of a case, or backprop where all lanes have it switched off.

    The config decides, so that nothing is traced or compiled for a method that does
    nothing, as for a hyperparameter that is off.

    Args:
      config: the case's config, whose `method` is known.
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


def clear_head(state: LearnerState, *, with_optimizer_state: bool) -> LearnerState:
    """Sets the head's weights and biases to 0.

    Args:
      state: of the learner.
      with_optimizer_state: also what the optimizer keeps of the head: every tree in its
        state that is like the params, be it momentum, Adam's moments or an average.

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
    """Builds an optimizer with L2 and noise where a lane may have any.

    Args:
      config: `optimizer`, a key of `_OPTIMIZERS`, and `noise`, see `perturb`.
      hyperparameters: the learner's hyperparameters.
      units: of its network.
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
    """Whether a hyperparameter is 0 in every lane, so its code can be left out."""
    return isinstance(value, (int, float)) and value == 0


def _check(config: Any, network: Any) -> None:
    """Raises ValueError for fields that do not go together."""
    check_choice("method", config.method, METHODS)
    check_choice("optimizer", config.optimizer, _OPTIMIZERS)
    check_choice("noise", config.noise, cbp_jax.optimizers.NOISES)
    method = METHODS[config.method]
    if method.resets_units and not network.units():
        raise ConfigError(
            "A network without hidden layers has no units to replace: set "
            "config.hidden_layers to at least 1, or config.method to 'backprop'."
        )
    if method.replaces_optimizer:
        _check_plain(config, config.method)
    if method.normalizations and config.normalization not in method.normalizations:
        raise ConfigError(
            f"config.method {config.method!r} is defined with a normalization before "
            f"each activation: set config.normalization to one of "
            f"{list(method.normalizations)}, got {config.normalization!r}."
        )


def _check_plain(config: Any, method: str) -> None:
    """Raises ConfigError if a method would ignore a field of the base optimizer."""
    if config.optimizer != "sgd":
        raise ConfigError(
            f"config.method {method!r} is an optimizer itself: set config.optimizer to "
            f"'sgd', got {config.optimizer!r}."
        )
    for name in ("momentum", "weight_decay", "noise_scale"):
        values = (config[name], *config.sweep.get(name, ()))
        if any(value != 0 for value in values):
            raise ConfigError(
                f"config.method {method!r} is an optimizer itself and takes no "
                f"config.{name}: set it to 0, got {max(values)}."
            )
