"""Builds learners from configs: network, loss, optimizer and method, for all problems.

Shapes: B batch.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from types import SimpleNamespace
from typing import Any, NamedTuple

from flax.core import FrozenDict, pop
import jax
from jax import lax
import jax.numpy as jnp
import optax

import cbp_jax
from cbp_jax.layers import value_and_grad_with_state
from cbp_jax.networks import ACTIVATION_LAYERS
from experiments.learning import networks
from experiments.learning.added_loss import AddedLoss, Seen
from experiments.learning.base_optimizers import OPTIMIZERS
from experiments.learning.checks import ConfigError, check_choice
from experiments.learning.hyperparameters import is_off
from experiments.learning.keys import INITIALIZATION, NOISE, REPLACEMENT, make_key
from experiments.learning.methods import METHODS, Ingredients, Method
from experiments.learning.replacement_log import ReplacementLog, empty_log, record

# Turns the key of dropout, which folds in small numbers, into that of activations.
_ACTIVATION = 2**31


class LearnerState(NamedTuple):
    """The state that a learner carries from step to step."""

    params: Any
    network_state: Any  # Statistics of normalizations by collection, {} for none.
    optimizer_state: Any
    noise_key: jax.Array  # Typed key of all noise except the optimizer's.
    num_updates: jax.Array  # int32 scalar
    log: ReplacementLog | None  # Log of the current task; None if it is disabled.
    # Options of the activation, {} for none: evaluation needs the lane's own.
    activation_options: Any
    memory: Any = None  # What an added loss remembers; None without one.


class Learner(NamedTuple):
    """Pure functions of one learner, which take its hyperparameters as an argument.

    Attributes:
      init: `(hyperparameters, lane_key) -> LearnerState`.
      step: `(hyperparameters, state, inputs, targets, acts=None) -> (state, outputs,
        loss)` makes one update on a batch, inputs `[B, ...]`. The outputs `[B,
        num_outputs]` and the loss, a scalar mean over the batch, are from before the
        update. `acts` says whether this is one of the updates at which the method
        acts; None finds out at each update, by a conditional.
      period: P, if the method can act only at every P-th update, and each task has a
        multiple of P; None if it may act at any.
      preview: `(hyperparameters, state, inputs, targets) -> (grads, updates)`, trees
        like the params: those of `step`, without applying them. They include the
        gradient of an added loss, but neither the steps of its own nor what a method
        does when a task ends. The number of inputs may differ from that of a batch.
      predict: `(state, inputs) -> outputs` `[B, num_outputs]` for evaluation: no
        dropout, running statistics, and averaged params if the method evaluates these.
      features: `(state, inputs) -> dict` of the hidden activations by layer,
        `[B, ..., units]`: as `predict`, but with the params in training.
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
    activation = ACTIVATION_LAYERS.get(config.activation)
    has_random_activation = activation is not None and activation.is_random
    has_log = config.replacement_log > 0 and method.resets_units

    def init_network(key: jax.Array) -> tuple[Any, Any]:
        network_state, params = pop(network.init(key, inputs_like), "params")
        return params, network_state

    params, _ = jax.eval_shape(init_network, make_key(0))
    layer_sizes = networks.layer_sizes(params, layers, config.activation)

    def make_ingredients(
        hyperparameters: SimpleNamespace, key: jax.Array, acts: bool | None = None
    ) -> Ingredients:
        noise_key = jax.random.fold_in(key, NOISE)
        return Ingredients(
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

    def make_optimizer(
        ingredients: Ingredients,
    ) -> optax.GradientTransformationExtraArgs:
        build = ingredients.base if method.adds_loss else method.build(ingredients)
        return optax.with_extra_args_support(build)

    def make_added_loss(ingredients: Ingredients) -> AddedLoss | None:
        return method.build(ingredients) if method.adds_loss else None

    def new_log(state: cbp_jax.UnitResetState) -> ReplacementLog:
        has_utility = all(hasattr(unit, "utility") for unit in state.units.values())
        return empty_log(config.replacement_log, has_utility=has_utility)

    def init(hyperparameters: SimpleNamespace, lane_key: jax.Array) -> LearnerState:
        key = jax.random.fold_in(lane_key, INITIALIZATION)
        params, network_state = init_network(key)
        key = jax.random.fold_in(lane_key, REPLACEMENT)
        ingredients = make_ingredients(hyperparameters, key)
        optimizer_state = make_optimizer(ingredients).init(params)
        added, memory = make_added_loss(ingredients), None
        if added is not None:
            batch_like = jnp.zeros((config.batch_size, *input_shape))
            memory = added.init(params, network_state, batch_like)
        return LearnerState(
            params=params,
            network_state=network_state,
            optimizer_state=optimizer_state,
            noise_key=jax.random.fold_in(lane_key, NOISE),
            num_updates=jnp.zeros((), jnp.int32),
            log=new_log(optimizer_state) if has_log else None,
            activation_options=jax.tree.map(
                jnp.asarray, networks.activation_options(network, hyperparameters)
            ),
            memory=memory,
        )

    def compute_update(
        hyperparameters: SimpleNamespace,
        state: LearnerState,
        inputs: jax.Array,
        targets: jax.Array,
        acts: bool | None,
    ) -> tuple[Any, Any, LearnerState, Seen, AddedLoss | None]:
        """Returns gradients, updates, new state (with old params), and what was seen.

        The last is the added loss, which still has to remember and to step.
        """
        trained = networks.with_hyperparameters(network, hyperparameters)
        key, random = jax.random.fold_in(state.noise_key, state.num_updates), {}
        if not is_off(hyperparameters.dropout_rate):
            random = {"dropout_rate": hyperparameters.dropout_rate, "dropout_key": key}
        if has_random_activation:
            random["activation_key"] = jax.random.fold_in(key, _ACTIVATION)
        # Only init uses the key; from then on it is in the state.
        ingredients = make_ingredients(hyperparameters, make_key(0), acts)
        added = make_added_loss(ingredients)

        def loss_of(params: Any, network_state: Any) -> Any:
            (outputs, features), network_state = trained.apply(
                {"params": params, **network_state},
                inputs,
                train=True,
                mutable=list(network_state),
                **random,
            )
            loss = loss_fn(outputs, targets)
            seen = Seen(
                *(params, state.network_state, inputs, targets, outputs, features),
                *(loss, state.num_updates),
            )
            if added is not None and added.schedule is None:
                loss = loss + added.loss(seen, state.memory)
            return loss, (network_state, seen)

        with jax.named_scope("gradient"):
            (_, seen), grads, network_state = value_and_grad_with_state(loss_of)(
                state.params, state.network_state
            )
        optimizer = make_optimizer(ingredients)
        with jax.named_scope("optimizer"):
            updates, optimizer_state = optimizer.update(
                grads, state.optimizer_state, state.params, features=seen.features
            )
        num_updates = state.num_updates + 1
        if method.resets_units:
            network_state = cbp_jax.reset_statistics(
                network_state, units, optimizer_state.replaced
            )
        if method.resets_network:
            is_new = num_updates % updates_per_task == 0 if acts is None else acts
            _, initial = init_network(make_key(0))
            network_state = jax.tree.map(
                lambda new, old: jnp.where(is_new, new, old), initial, network_state
            )
        state = state._replace(
            network_state=network_state,
            optimizer_state=optimizer_state,
            num_updates=num_updates,
        )
        return grads, updates, state, seen, added

    def own_step(
        added: AddedLoss, seen: Seen, state: LearnerState, updates: Any
    ) -> Any:
        """Returns updates that include a step of an added loss, if one is due.

        Args:
          added: a loss with a schedule.
          seen: what it saw of this update.
          state: the state after it, with the params from before it.
          updates: like the params.
        """

        def descend(params: Any, key: None) -> Any:
            del key

            def loss_of(params: Any) -> jax.Array:
                outputs, features = apply(params, state, seen.inputs)
                after = seen._replace(
                    params=params,
                    network_state=state.network_state,
                    outputs=outputs,
                    features=features,
                    task_loss=loss_fn(outputs, seen.targets),
                )
                return added.loss(after, state.memory)

            return jax.tree.map(
                lambda param, grad: param - added.step_size * grad,
                params,
                jax.grad(loss_of)(params),
            )

        step = cbp_jax.optimizers.act_at(added.schedule, descend)
        count = cbp_jax.optimizers.EventState(seen.num_updates, None)
        return step.update(updates, count, seen.params)[0]

    def step(
        hyperparameters: SimpleNamespace,
        state: LearnerState,
        inputs: jax.Array,
        targets: jax.Array,
        acts: bool | None = None,
    ) -> tuple[LearnerState, jax.Array, jax.Array]:
        _, updates, new_state, seen, added = compute_update(
            hyperparameters, state, inputs, targets, acts
        )
        if added is not None:
            with jax.named_scope("added_loss"):
                memory = added.remember(seen, state.memory)
                new_state = new_state._replace(memory=memory)
                if added.schedule is not None:
                    updates = own_step(added, seen, new_state, updates)
        log = state.log
        if log is not None:
            states = state.optimizer_state, new_state.optimizer_state
            with jax.named_scope("log"):
                log = record(log, layers[:-1], hyperparameters, *states)
        with jax.named_scope("apply"):
            params = optax.apply_updates(state.params, updates)
        new_state = new_state._replace(params=params, log=log)
        return new_state, seen.outputs, seen.task_loss

    def preview(
        hyperparameters: SimpleNamespace,
        state: LearnerState,
        inputs: jax.Array,
        targets: jax.Array,
    ) -> tuple[Any, Any]:
        grads, updates, *_ = compute_update(
            hyperparameters,
            state,
            inputs,
            targets,
            acts=False if method.sees_tasks else None,
        )
        return grads, updates

    def apply(params: Any, state: LearnerState, inputs: jax.Array) -> Any:
        evaluated = network.clone(
            activation_options=FrozenDict(state.activation_options)
        )
        return evaluated.apply({"params": params, **state.network_state}, inputs)

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
        *(init, step, _period(config, method, updates_per_task)),
        *(preview, predict, features),
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
    has_no_effect = switches and all(
        config[name] == off and not config.sweep.get(name)
        for name, off in switches.items()
    )
    return METHODS["backprop"] if has_no_effect else method


def _period(config: Any, method: Method, updates_per_task: int) -> int | None:
    """Returns the learner's period; see `Learner`."""
    if method.sees_tasks:
        return updates_per_task
    if method.period is None:
        return None
    in_lanes = config.sweep.get(method.period) or (config[method.period],)
    period = math.gcd(updates_per_task, *map(int, in_lanes))
    return period if period > 1 else None


def scan_updates(
    learner: Learner,
    update: Callable[[LearnerState, Any, bool | None], tuple[LearnerState, Any]],
    state: LearnerState,
    batches: Any,
) -> tuple[LearnerState, Any]:
    """Makes the updates of a whole number of periods, as `lax.scan` does.

    The updates at which the method cannot act are compiled without it: a conditional in
    each would keep XLA from fusing them.

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
    if period is None or num_updates % period:
        return lax.scan(lambda state, batch: update(state, batch, None), state, batches)

    def run_period(state: LearnerState, batches: Any) -> tuple[LearnerState, Any]:
        state, outputs = lax.scan(
            lambda state, batch: update(state, batch, False),
            state,
            jax.tree.map(lambda leaf: leaf[:-1], batches),
        )
        last = jax.tree.map(lambda leaf: leaf[-1], batches)
        state, output = update(state, last, None)
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
    """Sets the head's weights and biases to 0, also in what an added loss remembers.

    Args:
      state: state of the learner.
      with_optimizer_state: also clear the optimizer's state of the head, in every tree
        like the params: momentum, Adam's moments or averages.

    Returns:
      The new state.
    """

    def is_like_params(node: Any) -> bool:
        # Some leaves may be masked, as in Muon's state.
        return isinstance(node, Mapping) and node.keys() == state.params.keys()

    def clear(node: Any) -> Any:
        if not is_like_params(node):
            return node
        return {**node, "head": jax.tree.map(jnp.zeros_like, node["head"])}

    def clear_all(tree: Any) -> Any:
        return jax.tree.map(clear, tree, is_leaf=is_like_params)

    state = state._replace(params=clear(state.params), memory=clear_all(state.memory))
    if with_optimizer_state:
        state = state._replace(optimizer_state=clear_all(state.optimizer_state))
    return state


def _make_base_optimizer(
    config: Any,
    hyperparameters: SimpleNamespace,
    units: Sequence[cbp_jax.UnitGroup],
    noise_key: jax.Array,
) -> optax.GradientTransformation:
    """Builds an optimizer, with L2 and noise if any lane uses them.

    Args:
      config: a config with `optimizer`, a key of `OPTIMIZERS`, and `noise`; see
        `perturb`.
      hyperparameters: the learner's hyperparameters.
      units: unit groups of its network.
      noise_key: typed key of the noise.
    """
    base = OPTIMIZERS[config.optimizer].build(hyperparameters, units)
    if not is_off(hyperparameters.weight_decay):
        base = optax.chain(
            optax.add_decayed_weights(hyperparameters.weight_decay), base
        )
    if not is_off(hyperparameters.noise_scale):
        noise = cbp_jax.optimizers.perturb(
            hyperparameters.noise_scale, key=noise_key, noise=config.noise
        )
        base = optax.chain(base, noise)
    return base


def _check(config: Any, network: Any) -> None:
    """Raises ValueError for unknown or incompatible fields."""
    check_choice("method", config.method, METHODS)
    check_choice("optimizer", config.optimizer, OPTIMIZERS)
    check_choice("noise", config.noise, cbp_jax.optimizers.NOISES)
    method = METHODS[config.method]
    if (method.resets_units or method.sees_features) and not network.units():
        raise ConfigError(
            f"config.method {config.method!r} needs hidden units, but the network has "
            "none: set config.hidden_layers to at least 1, or config.method to "
            "'backprop'."
        )
    if method.replaces_optimizer:
        _check_plain(config, config.method)
    if method.optimizers and config.optimizer not in method.optimizers:
        raise ConfigError(
            f"config.method {config.method!r} does not work with config.optimizer "
            f"{config.optimizer!r}: set it to one of {list(method.optimizers)}."
        )
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
