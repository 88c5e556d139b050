"""Resets a base optimizer's state at the entries of reborn units."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cbp_jax.resets.leaves import key_string, path_string
from cbp_jax.resets.resolution import ResolvedGroup
from cbp_jax.resets.units import PyTree

_LINE_SEARCHES = (
    optax.ScaleByBacktrackingLinesearchState,
    optax.ScaleByZoomLinesearchState,
)


def reset_moments(
    base_optimizer: optax.GradientTransformation,
    base_state: PyTree,
    new_params: PyTree,
    groups: Sequence[ResolvedGroup],
    masks: Mapping[str, jax.Array],
    keep: Sequence[str] = (),
) -> PyTree:
    """Gives reborn units the optimizer state that they would have been born with.

    Every array of the state that belongs to a param and has its shape takes, at the
    entries of replaced units, the value that `base_optimizer.init(new_params)` puts
    there: 0 for momentum and Adam's moments, Adagrad's initial accumulator, the new
    weight itself for a second copy of the params such as the `z` of schedule-free SGD.

    L-BFGS approximates one Hessian of all params, of a loss that a reset changes. A
    state with L-BFGS in it therefore starts anew as a whole when any unit is replaced.

    Args:
      base_optimizer: the transformation that the state belongs to.
      base_state: its state.
      new_params: the params after the reset.
      groups: the resolved unit groups.
      masks: for each group's name which units were replaced, bool [*S, N].
      keep: names of fields of the state that are left as they are.

    Returns:
      A state like `base_state`.

    Raises:
      ValueError: optax cannot tell which arrays of the state belong to params.
    """
    if starts_anew(base_state):
        is_reset = _any(masks)
        return jax.tree.map(
            lambda old, fresh: jnp.where(is_reset, fresh, old),
            base_state,
            base_optimizer.init(new_params),
        )
    owners = owners_of(base_optimizer, base_state, new_params, keep)
    places = [(place, masks[group.name]) for group in groups for place in group.places]
    param_shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(new_params)]

    def reset(owner: int, leaf: jax.Array, fresh: jax.Array) -> jax.Array:
        if owner < 0 or jnp.shape(leaf) != param_shapes[owner]:
            return leaf
        for place, mask in places:
            if place.leaf == owner:
                leaf = jnp.where(place.spread(mask), fresh.astype(leaf.dtype), leaf)
        return leaf

    return jax.tree.map(reset, owners, base_state, base_optimizer.init(new_params))


def forget_loss(base_state: PyTree, masks: Mapping[str, jax.Array]) -> PyTree:
    """Lets line searches forget the loss and gradient of params that were reset.

    `optax.value_and_grad_from_state` takes them for those of the present params.

    Args:
      base_state: a base optimizer's state.
      masks: for each group's name which units were replaced, bool [*S, N].

    Returns:
      A state in which the loss of line searches is infinity, as before their first
      update, if any unit was replaced.
    """

    def forget(node: Any) -> Any:
        if not isinstance(node, _LINE_SEARCHES):
            return node
        unknown = jnp.full_like(node.value, jnp.inf)
        return node._replace(value=jnp.where(_any(masks), unknown, node.value))

    return jax.tree.map(
        forget, base_state, is_leaf=lambda node: isinstance(node, _LINE_SEARCHES)
    )


def check_resettable(
    base_optimizer: optax.GradientTransformation,
    params: PyTree,
    keep: Sequence[str],
) -> None:
    """Raises ValueError when a state is initialized and cannot be reset later.

    Either that of `reset_moments`, or for names to keep that the state does not have.
    """
    base_state = jax.eval_shape(base_optimizer.init, params)
    if starts_anew(base_state):
        if keep:
            raise ValueError(
                f"keep_state is {tuple(keep)}, but a base optimizer with L-BFGS starts "
                'anew as a whole. Leave keep_state out, or pass moments="keep".'
            )
        return
    owners = owners_of(base_optimizer, base_state, params, ())
    of_params = [
        path_string(path).split("/")
        for path, owner in jax.tree_util.tree_leaves_with_path(owners)
        if owner >= 0
    ]
    unknown = sorted(set(keep) - {name for path in of_params for name in path})
    if unknown:
        paths = ["/".join(path) for path in of_params]
        raise ValueError(
            f"keep_state names {unknown}, which the base optimizer's state does not "
            f"have among the arrays that belong to params: {paths}."
        )


def owners_of(
    base_optimizer: optax.GradientTransformation,
    base_state: PyTree,
    params: PyTree,
    keep: Sequence[str],
) -> PyTree:
    """Replaces each array of the state by the index of its param, -1 for no param."""
    treedef = jax.tree.structure(params)
    indices = treedef.unflatten(range(treedef.num_leaves))
    try:
        owners = optax.tree.map_params(
            base_optimizer,
            lambda leaf, index: leaf if _is_masked(leaf) else index,
            base_state,
            indices,
            transform_non_params=lambda _: -1,
            is_leaf=_is_masked,
        )
    except Exception as error:
        if not _has(_LINE_SEARCHES, base_state):
            raise ValueError(
                "optax.tree.map_params cannot tell which arrays of the base "
                "optimizer's state belong to params, so the moments of replaced units "
                'cannot be reset. Pass moments="keep" to leave the state as it is.'
            ) from error
        # Their `init` fails in map_params, which gives it no params.
        owners = _owners_by_structure(base_state, params, indices)
    param_paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]

    def keep_named(path: Sequence[Any], owner: int) -> int:
        # The params' own names do not count: a layer may be called `mu`.
        own = len(path) - len(param_paths[owner]) if owner >= 0 else len(path)
        fields = {key_string(key) for key in path[:own]}
        return owner if fields.isdisjoint(keep) else -1

    return jax.tree_util.tree_map_with_path(keep_named, owners)


def _owners_by_structure(base_state: PyTree, params: PyTree, indices: PyTree) -> PyTree:
    """Takes subtrees of the structure and the shapes of the params for theirs."""
    treedef, shapes = jax.tree.structure(params), jax.tree.map(jnp.shape, params)

    def is_like_params(node: Any) -> bool:
        return jax.tree.structure(node) == treedef and (
            jax.tree.map(jnp.shape, node) == shapes
        )

    return jax.tree.map(
        lambda node: indices if is_like_params(node) else -1,
        base_state,
        is_leaf=is_like_params,
    )


def starts_anew(base_state: PyTree) -> bool:
    """Whether `reset_moments` lets a state start anew as a whole, for L-BFGS in it."""
    return _has(optax.ScaleByLBFGSState, base_state)


def _has(kinds: Any, state: PyTree) -> bool:
    """Whether a node of any of these types is in a state."""

    def is_one(node: Any) -> bool:
        return isinstance(node, kinds)

    return any(map(is_one, jax.tree.leaves(state, is_leaf=is_one)))


def _any(masks: Mapping[str, jax.Array]) -> jax.Array:
    return functools.reduce(
        jnp.logical_or, map(jnp.any, masks.values()), jnp.zeros((), bool)
    )


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)
