"""Proves by forward passes that groups of units are named rightly.

Shapes: N units of a group, P positions of a flattened map.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cbp_jax.discovery.comparing import close, difference
from cbp_jax.discovery.features import with_features
from cbp_jax.discovery.reordering import neighbors_exchanged, reorder, spread_mask
from cbp_jax.discovery.suggesting import suggestion
from cbp_jax.resets.leaves import leaf_paths
from cbp_jax.resets.places import Place
from cbp_jax.resets.resolution import ResolvedGroup, resolve_units
from cbp_jax.resets.units import PyTree, UnitGroup

FeaturesFn = Callable[[PyTree, Any], Mapping[str, jax.Array]]

ALONE = "no unit changes another"
TOGETHER = "units change one another, as those of one normalization do"


def check_units(
    apply: Callable[[PyTree, Any], Any],
    params: PyTree,
    units: Sequence[UnitGroup],
    example: Any,
    *,
    features: FeaturesFn | None = None,
    seed: int = 0,
) -> dict[str, str]:
    """Proves by forward passes that groups of units are named rightly.

    For each group, at params that are the given ones times and plus some noise (so that
    biases of 0 and scales of 1 are seen, too), it is checked that

    * each incoming and each outgoing kernel changes the outputs;
    * with the outgoing weights at 0, nothing that is redrawn at a reset changes the
      outputs: no consumer is forgotten, no incoming leaf serves anything else;
    * putting the units into another order, in all leaves that are named, does not
      change the outputs: every leaf belongs to these units, unit by unit, and to
      nothing else. A missing bias, a tied weight, and a map that is flattened in
      another order are found so;
    * the features follow that order, and are what the outgoing kernel reads (where
      there is one, and `with_features` can follow the group).

    It compares up to rounding: changes below the square root of the dtype's epsilon,
    relative to the largest output, are taken for none.

    Args:
      apply: maps params and an example to the network's outputs, any pytree, without
        activations and without dropout; see `infer_units`. Normalizations that use
        running statistics need those of a newborn network, equal for all units.
      params: the network's params, any pytree of arrays.
      units: the groups, found by `infer_units` or written by hand.
      example: inputs, any pytree; random numbers show more than zeros.
      features: maps params and an example to what `update` is to get as features; None
        checks no features. Those of `with_features` need no check.
      seed: of the noise and of fresh weights.

    Returns:
      For each group's name "no unit changes another"; or "units change one another, as
      those of one normalization do", where a reborn unit is silent only up to that.

    Raises:
      ValueError: something is not as it must be. The message names the group, what was
        seen, and what to correct.
    """
    groups = resolve_units(units, params)
    names = {group.name for group in groups}
    check = _Checker(apply, params, example, features, seed, names)
    seen = {group.name: check.group(group) for group in groups}
    if features is not None:
        check.read_features(units)
    return seen


class _Checker:
    """One network at one point, and its forward pass, compiled once."""

    def __init__(
        self,
        apply: Callable[[PyTree, Any], Any],
        params: PyTree,
        example: Any,
        features: FeaturesFn | None,
        seed: int,
        names: set[str],
    ):
        leaves, treedef = jax.tree.flatten(params)
        self.names = [path.name for path in leaf_paths(params)]
        self.apply, self.example, self.treedef = apply, example, treedef
        self.random = np.random.default_rng(seed)
        self.leaves = [self._noisy(leaf) for leaf in leaves]

        def forward(leaves: Sequence[jax.Array]) -> tuple[list[jax.Array], Any]:
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
                f"features gives no feature for {sorted(missing)}, only for "
                f"{list(self.features)}; it must map each group's name to an array."
            )
        if not self.outputs:
            raise ValueError("check_units needs an apply with floating outputs.")
        if not all(np.isfinite(each).all() for each in self.outputs):
            raise ValueError(
                "check_units got outputs that are not finite, of params near the given "
                "ones; pass params of a moderate size, and an example such as random "
                "numbers of variance 1."
            )

    def group(self, group: ResolvedGroup) -> str:
        """Checks one group."""
        everyone = np.ones(group.num_units, bool)
        for field in ("incoming", "outgoing"):
            for place in getattr(group, field):
                if not self._change(self._redrawn(self.leaves, [place], everyone)):
                    raise self._error(
                        group,
                        f"redrawing its {field} leaf {self.names[place.leaf]!r} does "
                        "not change the outputs",
                        "Is it used by apply? Name the kernel that is",
                    )
        self._check_silence(group, everyone)
        self._check_order(group)
        every_other = np.arange(group.num_units) % 2 == 0
        return TOGETHER if self._leak(group, every_other) else ALONE

    def read_features(self, units: Sequence[UnitGroup]) -> None:
        """Checks that features are what an outgoing kernel reads, if there is one."""
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
        """Whether the trace finds the one value that the group's consumer reads."""
        if not isinstance(group.outgoing, str) and len(group.outgoing) > 1:
            return False
        try:
            jax.eval_shape(with_features(self.apply, (group,)), params, self.example)
        except ValueError:
            return False
        return True

    def _check_silence(self, group: ResolvedGroup, everyone: np.ndarray) -> None:
        leak = self._leak(group, everyone)
        if not leak:
            return
        upstream = (*group.incoming, *group.vectors)
        guilty = [place for place in upstream if self._leak(group, everyone, [place])]
        names = [self.names[place.leaf] for place in guilty]
        cure = (
            "Name all kernels that read these units in `outgoing`: those of a branch "
            "and of a shortcut; where apply returns activations, take them out"
        )
        if len(guilty) < len(upstream):
            cure = (
                "These leaves serve something else as well, such as a tied weight or a "
                "parameter of another group; leave the group out, or name the leaves "
                "that are its own"
            )
        raise self._error(
            group,
            f"with its outgoing weights at 0, redrawing {names} still changes the "
            f"outputs by up to {leak:.3g} of the largest",
            cure,
        )

    def _check_order(self, group: ResolvedGroup) -> None:
        if group.num_units < 2:
            return
        order = np.roll(np.arange(group.num_units), 1)
        outputs, features = self.forward(reorder(self.leaves, group.places, order))
        change = difference(outputs, self.outputs)
        if change:  # Group normalization allows to exchange neighbors only.
            order = neighbors_exchanged(group.num_units)
            outputs, features = self.forward(reorder(self.leaves, group.places, order))
            change = difference(outputs, self.outputs)
        if change:
            names = list(dict.fromkeys(self.names[at.leaf] for at in group.places))
            shapes = [np.shape(leaf) for leaf in self.leaves]
            hint = suggestion(
                group, self.names, shapes, lambda places: not self._moved(places, order)
            )
            cure = (
                f"{hint}Every leaf with an entry for each of these units must be "
                "named, and no other: look for a bias or a normalization that is "
                "missing, a leaf of other units, a kernel that is used twice (tied), "
                "dropout, or running statistics that differ from unit to unit"
            )
            raise self._error(
                group,
                f"reordering its units in {names} changes the outputs by up to "
                f"{change:.3g} of the largest, and must not",
                cure,
            )
        if group.name in self.features:
            self._check_feature(group, features[group.name], order)

    def _moved(self, places: Sequence[Place], order: np.ndarray) -> float:
        """Returns what another order of the units changes."""
        return self._change(reorder(self.leaves, places, order))

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
                "are put into another order",
                "Pass the activations of this group, with the unit as the last axis",
            )

    def _leak(
        self,
        group: ResolvedGroup,
        mask: np.ndarray,
        redrawn: Sequence[Place] | None = None,
    ) -> float:
        """Returns what some units change whose outgoing weights are 0."""
        silent = list(self.leaves)
        for place in group.outgoing:
            leaf = silent[place.leaf]
            silent[place.leaf] = np.where(spread_mask(place, mask, leaf), 0, leaf)
        upstream = (*group.incoming, *group.vectors) if redrawn is None else redrawn
        moved = self._redrawn(silent, upstream, mask)
        for place in group.outgoing:  # A kernel may feed the units that it reads.
            leaf = moved[place.leaf]
            moved[place.leaf] = np.where(spread_mask(place, mask, leaf), 0, leaf)
        return difference(self.forward(moved)[0], self.forward(silent)[0])

    def _redrawn(
        self, leaves: Sequence[Any], places: Sequence[Place], mask: np.ndarray
    ) -> list[Any]:
        leaves = list(leaves)
        for place in places:
            leaf = leaves[place.leaf]
            fresh = self._noisy(
                np.zeros_like(leaf), np.std(self.leaves[place.leaf].astype(float))
            )
            leaves[place.leaf] = np.where(spread_mask(place, mask, leaf), fresh, leaf)
        return leaves

    def _change(self, leaves: Sequence[Any]) -> float:
        return difference(self.forward(leaves)[0], self.outputs)

    def _noisy(self, leaf: Any, size: float | None = None) -> np.ndarray:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        leaf = np.asarray(leaf)
        if size is None:
            size = 0.3 * np.sqrt(np.mean(np.square(leaf.astype(float)))) or 0.1
        noise = self.random.normal(size=leaf.shape) * (size or 0.1)
        return (leaf + noise).astype(leaf.dtype)

    def _error(self, group: ResolvedGroup, seen: str, cure: str) -> ValueError:
        return ValueError(
            f"Unit group {group.name!r}: {seen}. {cure}; see cbp_jax.UnitGroup."
        )
