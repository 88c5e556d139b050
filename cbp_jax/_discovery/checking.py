"""Checks by forward passes that unit groups name the right leaves.

Shapes: N units of a group, P positions of a flattened map.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import math

import jax
import jax.numpy as jnp
import numpy as np

from cbp_jax._discovery.features import with_features
from cbp_jax._types import PyTree
from cbp_jax._units import ResolvedGroup, UnitAxes, UnitGroup, leaf_paths, resolve_units

FeaturesFn = Callable[[PyTree, PyTree], Mapping[str, jax.Array]]

ALONE = "no unit changes another"
TOGETHER = "units change one another, as those of one normalization do"


def check_units(
    apply: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    units: Sequence[UnitGroup],
    example: PyTree,
    *,
    features: FeaturesFn | None = None,
    seed: int = 0,
) -> dict[str, str]:
    """Checks by forward passes that unit groups name the right leaves.

    Provisional: its arguments and results may still change.

    It adds noise to the params, so that biases of 0 and scales of 1 matter too, and
    checks for each group that

    * each incoming and each outgoing kernel changes the outputs;
    * with the outgoing weights at 0, nothing that a reset redraws changes the outputs:
      no consumer is missing, and no incoming leaf is used elsewhere;
    * reordering the units in all named leaves does not change the outputs: every leaf
      belongs to these units, unit by unit, and to nothing else. This finds a missing
      bias, a tied weight, and a map that is flattened in another order;
    * the features follow that order, and are what the outgoing kernel reads (if there
      is only one, and `with_features` can follow the group).

    Comparisons are up to rounding: changes below the square root of the dtype's
    epsilon, relative to the largest output, count as none.

    Args:
      apply: maps params and an example to the network's outputs, any pytree, without
        activations and without dropout; see `infer_units`. Normalizations that use
        running statistics need their initial values, which are equal for all units.
      params: the network's params, any pytree of arrays.
      units: the groups, found by `infer_units` or written by hand.
      example: inputs, any pytree; random numbers reveal more than zeros.
      features: maps params and an example to the features that you will pass to
        `update`; None checks no features. Those of `with_features` need no check.
      seed: seed of the noise and of new weights.

    Returns:
      A dict from each group's name to "no unit changes another", or to "units change
      one another, as those of one normalization do"; in that case a reset unit still
      affects the others through the normalization.

    Raises:
      ValueError: a check fails. The message names the group, what was found, and what
        to correct.
    """
    groups = resolve_units(units, params)
    names = {group.name for group in groups}
    check = _Checker(apply, params, example, features, seed, names)
    seen = {group.name: check.group(group) for group in groups}
    if features is not None:
        check.read_features(units)
    return seen


class _Checker:
    """One network with fixed params, and its compiled forward pass."""

    def __init__(
        self,
        apply: Callable[[PyTree, PyTree], PyTree],
        params: PyTree,
        example: PyTree,
        features: FeaturesFn | None,
        seed: int,
        names: set[str],
    ):
        leaves, treedef = jax.tree.flatten(params)
        self.names = [path.name for path in leaf_paths(params)]
        self.apply, self.example, self.treedef = apply, example, treedef
        self.random = np.random.default_rng(seed)
        self.leaves = [self._noisy(leaf) for leaf in leaves]

        def forward(leaves: Sequence[jax.Array]) -> tuple[list[jax.Array], PyTree]:
            params = treedef.unflatten(leaves)
            outputs = jax.tree.leaves(apply(params, example))
            found = {} if features is None else dict(features(params, example))
            floating = [each for each in outputs if jnp.issubdtype(each, jnp.inexact)]
            return floating, found

        self.forward = jax.jit(forward)
        self.outputs, self.features = self.forward(self.leaves)
        missing = {} if features is None else names - set(self.features)
        if missing:
            raise ValueError(
                f"features returned no array for {sorted(missing)}, only for "
                f"{list(self.features)}. Return a dict from each group's name to its "
                "activations."
            )
        if not self.outputs:
            raise ValueError(
                "check_units got no floating outputs from apply. Pass a function that "
                "returns some, such as logits."
            )
        if not all(np.isfinite(each).all() for each in self.outputs):
            raise ValueError(
                "check_units got outputs that are not finite, from params near the "
                "given ones. Pass params of moderate size, and an example such as "
                "random numbers of variance 1."
            )

    def group(self, group: ResolvedGroup) -> str:
        """Checks one group."""
        all_units = np.ones(group.num_units, bool)
        for field in ("incoming", "outgoing"):
            for axes in getattr(group, field):
                if not self._change(self._redrawn(self.leaves, [axes], all_units)):
                    raise self._error(
                        group,
                        f"redrawing its {field} leaf {self.names[axes.leaf]!r} does "
                        "not change the outputs",
                        "Name a kernel that apply uses",
                    )
        self._check_silence(group, all_units)
        self._check_order(group)
        every_other = np.arange(group.num_units) % 2 == 0
        return TOGETHER if self._leak(group, every_other) else ALONE

    def read_features(self, units: Sequence[UnitGroup]) -> None:
        """Checks that features are what the outgoing kernel reads, if there is one."""
        params = self.treedef.unflatten(self.leaves)
        followed = [each for each in units if self._can_follow(each, params)]
        forward = jax.jit(with_features(self.apply, followed))
        read = forward(params, self.example)[1] if followed else {}
        for name, wanted in read.items():
            given = self.features[name]
            if not close([jnp.reshape(given, (-1,))], [jnp.reshape(wanted, (-1,))]):
                raise ValueError(
                    f"Feature {name!r} of shape {given.shape} is not what the group's "
                    f"outgoing kernel reads, of shape {wanted.shape}. Pass the "
                    "activations after the nonlinearity (and after pooling), as "
                    "cbp_jax.with_features gives them."
                )

    def _can_follow(self, group: UnitGroup, params: PyTree) -> bool:
        """Whether the trace finds the value that the group's only consumer reads."""
        outgoing = group.outgoing or ()
        if not isinstance(outgoing, str) and len(outgoing) > 1:
            return False
        try:
            jax.eval_shape(with_features(self.apply, (group,)), params, self.example)
        except ValueError:
            return False
        return True

    def _check_silence(self, group: ResolvedGroup, all_units: np.ndarray) -> None:
        leak = self._leak(group, all_units)
        if not leak:
            return
        upstream = (*group.incoming, *group.vectors)
        offending = [axes for axes in upstream if self._leak(group, all_units, [axes])]
        names = [self.names[axes.leaf] for axes in offending]
        remedy = (
            "Name all kernels that read these units in `outgoing`, including those of "
            "a branch and of a shortcut. If apply returns activations, take them out"
        )
        if len(offending) < len(upstream):
            remedy = (
                "These leaves are also used elsewhere, like a tied weight or a "
                "parameter of another group. Leave the group out, or name only leaves "
                "of its own"
            )
        raise self._error(
            group,
            f"with its outgoing weights at 0, redrawing {names} still changes the "
            f"outputs by up to {leak:.3g} times the largest output",
            remedy,
        )

    def _check_order(self, group: ResolvedGroup) -> None:
        if group.num_units < 2:
            return
        order = np.roll(np.arange(group.num_units), 1)
        outputs, features = self.forward(reorder(self.leaves, group.all_axes, order))
        change = difference(outputs, self.outputs)
        if change:  # With group normalization, only neighbors can be swapped.
            order = neighbors_exchanged(group.num_units)
            outputs, features = self.forward(
                reorder(self.leaves, group.all_axes, order)
            )
            change = difference(outputs, self.outputs)
        if change:
            names = list(dict.fromkeys(self.names[at.leaf] for at in group.all_axes))
            shapes = [np.shape(leaf) for leaf in self.leaves]
            hint = suggestion(
                group,
                self.names,
                shapes,
                lambda all_axes: not self._moved(all_axes, order),
            )
            remedy = (
                f"{hint}Name every leaf with an entry for each of these units, and no "
                "others. Look for a missing bias or normalization, a leaf of other "
                "units, a kernel that is used twice (tied), dropout, or running "
                "statistics that differ between units"
            )
            raise self._error(
                group,
                f"reordering its units in {names} changes the outputs by up to "
                f"{change:.3g} times the largest output, but must not",
                remedy,
            )
        if group.name in self.features:
            self._check_feature(group, features[group.name], order)

    def _moved(self, all_axes: Sequence[UnitAxes], order: np.ndarray) -> float:
        """Returns how much reordering the units changes the outputs."""
        return self._change(reorder(self.leaves, all_axes, order))

    def _check_feature(
        self, group: ResolvedGroup, moved: jax.Array, order: np.ndarray
    ) -> None:
        feature = self.features[group.name]
        shape, units = feature.shape, len(group.sizes)
        first = shape[: len(group.stack)]
        if (first, shape[-units:]) != (group.stack, group.sizes) or feature.ndim < 2:
            raise self._error(
                group,
                f"its feature has shape {shape}",
                "Pass the activations as "
                f"{[*group.stack, 'batch', '...', *group.sizes]}",
            )
        feature, moved = (
            each.reshape(*shape[:-units], group.num_units) for each in (feature, moved)
        )
        if not close([moved], [feature[..., order]]):
            raise self._error(
                group,
                f"its feature of shape {feature.shape} does not follow when its units "
                "are reordered",
                "Pass the activations of this group, with the units as the last axis",
            )

    def _leak(
        self,
        group: ResolvedGroup,
        mask: np.ndarray,
        redrawn: Sequence[UnitAxes] | None = None,
    ) -> float:
        """Returns how much redrawn units with outgoing weights of 0 change outputs."""
        silent = list(self.leaves)
        for axes in group.outgoing:
            leaf = silent[axes.leaf]
            silent[axes.leaf] = np.where(spread_mask(axes, mask, leaf), 0, leaf)
        upstream = (*group.incoming, *group.vectors) if redrawn is None else redrawn
        moved = self._redrawn(silent, upstream, mask)
        for axes in group.outgoing:  # A kernel may feed the units it reads.
            leaf = moved[axes.leaf]
            moved[axes.leaf] = np.where(spread_mask(axes, mask, leaf), 0, leaf)
        return difference(self.forward(moved)[0], self.forward(silent)[0])

    def _redrawn(
        self,
        leaves: Sequence[np.ndarray],
        all_axes: Sequence[UnitAxes],
        mask: np.ndarray,
    ) -> list[np.ndarray]:
        leaves = list(leaves)
        for axes in all_axes:
            leaf = leaves[axes.leaf]
            fresh = self._noisy(
                np.zeros_like(leaf), np.std(self.leaves[axes.leaf].astype(float))
            )
            leaves[axes.leaf] = np.where(spread_mask(axes, mask, leaf), fresh, leaf)
        return leaves

    def _change(self, leaves: Sequence[np.ndarray]) -> float:
        return difference(self.forward(leaves)[0], self.outputs)

    def _noisy(
        self, leaf: np.ndarray, size: float | np.floating | None = None
    ) -> np.ndarray:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        leaf = np.asarray(leaf)
        if size is None:
            size = 0.3 * np.sqrt(np.mean(np.square(leaf.astype(float)))) or 0.1
        noise = self.random.normal(size=leaf.shape) * (size or 0.1)
        return (leaf + noise).astype(leaf.dtype)

    def _error(self, group: ResolvedGroup, seen: str, remedy: str) -> ValueError:
        return ValueError(
            f"Unit group {group.name!r}: {seen}. {remedy}; see cbp_jax.UnitGroup."
        )


def spread_mask(axes: UnitAxes, mask: np.ndarray, leaf: np.ndarray) -> np.ndarray:
    """Places a mask [N] along a leaf's unit axes, to broadcast over the leaf."""
    stack = np.shape(leaf)[: axes.stack]
    whole = np.broadcast_to(mask, (*stack, mask.size))
    return np.asarray(axes.spread(whole))  # pyrefly: ignore[bad-argument-type]


def reorder(
    leaves: Sequence[np.ndarray], all_axes: Sequence[UnitAxes], order: np.ndarray
) -> list[np.ndarray]:
    """Reorders units in the given leaves.

    Args:
      leaves: leaves of the params.
      all_axes: where the units are.
      order: for each unit, the index of the unit whose entries it takes, int [N].

    Returns:
      New leaves.
    """
    leaves = list(leaves)
    for axes in all_axes:
        leaf = np.asarray(leaves[axes.leaf])
        one_slice = axes._replace(stack=0)
        numbers = np.arange(order.size)
        units = np.asarray(one_slice.spread(numbers)).reshape(-1)  # pyrefly: ignore[bad-argument-type]
        # The entries of each unit, position by position: [N, P].
        entries = np.argsort(units, kind="stable").reshape(order.size, -1)
        taken = np.empty(units.size, int)
        taken[entries] = entries[order]
        first, last = axes.units[0], axes.units[-1]
        flat = leaf.reshape(*leaf.shape[:first], -1, *leaf.shape[last + 1 :])
        leaves[axes.leaf] = np.take(flat, taken, axis=first).reshape(leaf.shape)
    return leaves


def neighbors_exchanged(num_units: int) -> np.ndarray:
    """Returns an order that moves every unit, most of them by one place only."""
    order = np.arange(num_units)
    pairs = order[: num_units - num_units % 2].reshape(-1, 2)
    pairs[:] = pairs[:, ::-1].copy()
    if num_units % 2:
        order[-3:] = np.roll(np.arange(num_units)[-3:], 1)
    return order


# Axes of (inputs, outputs) in a plain kernel of each layout.
_KERNEL_AXES = {"io": (-2, -1), "oi": (1, 0)}


def suggestion(
    group: ResolvedGroup,
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    is_right: Callable[[Sequence[UnitAxes]], bool],
) -> str:
    """Returns a sentence about how to correct a group, or an empty string.

    Args:
      group: the incorrect group.
      names: paths of all leaves.
      shapes: shapes of all leaves.
      is_right: whether a group with these leaves would be correct.
    """
    for axes, field in _missing(group, shapes):
        if is_right((*group.all_axes, axes)):
            return f"It would be right with {names[axes.leaf]!r} as {field}. "
    for axes in group.all_axes:
        if is_right([each for each in group.all_axes if each != axes]):
            return f"It would be right without {names[axes.leaf]!r}. "
    other = {"io": "oi", "oi": "io"}
    flattened = [
        axes._replace(layout=other[axes.layout]) if axes.positions > 1 else axes
        for axes in group.all_axes
    ]
    if group.positions > 1 and is_right(flattened):
        return (
            f"Its {group.positions} positions are flattened in an order that layout "
            f"{group.group.layout!r} does not support: before flattening, units must "
            "be the last axis with 'io', and the first after the batch with 'oi'. "
            "Transpose before you flatten. "
        )
    return ""


def _missing(
    group: ResolvedGroup, shapes: Sequence[tuple[int, ...]]
) -> Iterator[tuple[UnitAxes, str]]:
    """Yields leaves that could be missing from the group, and the field of each."""
    layout, num_units = group.group.layout, group.num_units
    in_axis, out_axis = _KERNEL_AXES[layout]
    named = {axes.leaf for axes in group.all_axes}
    if group.stack or len(group.sizes) > 1:
        return
    for leaf, shape in enumerate(shapes):
        if leaf in named:
            continue

        def at(axis: int, leaf: int = leaf, shape: tuple[int, ...] = shape) -> UnitAxes:
            return UnitAxes(leaf, len(shape), (axis,), (shape[axis],), layout=layout)

        if math.prod(shape) == num_units and num_units in shape:
            yield at(shape.index(num_units)), "bias, norm_scale, norm_bias or slope"
            continue
        if len(shape) < 2:
            continue
        outputs, inputs = out_axis % len(shape), in_axis % len(shape)
        if shape[outputs] == num_units:
            yield at(outputs), "incoming"
        if shape[inputs] and shape[inputs] % num_units == 0:
            positions = shape[inputs] // num_units
            yield at(inputs)._replace(positions=positions), "outgoing"


def difference(outputs: Sequence[jax.Array], wanted: Sequence[jax.Array]) -> float:
    """Returns the largest difference relative to the largest output; 0 if rounding."""
    worst = 0.0
    for one, other in zip(outputs, wanted, strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        largest = np.max(np.abs(other), initial=0) or 1.0
        worst = max(worst, float(np.max(np.abs(one - other), initial=0) / largest))
    epsilon = max(float(jnp.finfo(each.dtype).eps) for each in wanted)
    return worst if not worst <= np.sqrt(epsilon) else 0.0


def close(some: Sequence[jax.Array], wanted: Sequence[jax.Array]) -> bool:
    """Whether arrays have the same shapes and values, up to rounding."""
    shapes = [jnp.shape(each) for each in wanted]
    return shapes == [jnp.shape(each) for each in some] and not difference(some, wanted)
