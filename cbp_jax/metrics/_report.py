"""A table of measures for each hidden layer of anyone's network. Shapes: N units."""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cbp_jax._discovery.features import with_features
from cbp_jax._discovery.inference import infer_units
from cbp_jax._numbers import as_float, is_traced
from cbp_jax._types import PyTree
from cbp_jax._units import ResolvedGroup, UnitGroup, leaf_paths, resolve_units
from cbp_jax.metrics import _activity, _ranks, _weights


class LayerReport(NamedTuple):
    """Measures of one hidden layer, or of units that several layers share."""

    name: str
    num_units: int  # N
    num_samples: int  # Examples, times the positions of a map.
    dead_units: float  # Fraction, as are the next three.
    dormant_units: float  # By `tau_dormant_units`, with tau 0.1.
    always_on_units: float
    duplicate_units: float
    effective_rank: float  # In units, as is the next.
    stable_rank: float
    weight_magnitude: float  # Mean |w| of the incoming weights.
    spectral_norm: float  # The largest of the incoming kernels.
    unusual: tuple[str, ...]  # Sentences.


class Report(NamedTuple):
    """Result of `report`; `str` makes a table of it."""

    layers: tuple[LayerReport, ...]  # In forward order.
    left_out: Mapping[str, str]  # From each kernel that was not measured to the reason.

    def __str__(self) -> str:
        """Returns an aligned table, what is unusual, and what was left out."""
        rows = [_HEADER, *map(_cells, self.layers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if index == 0 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        notes = [
            f"{layer.name}: {sentence}"
            for layer in self.layers
            for sentence in layer.unusual
        ]
        lines += ["", *(notes or ["Nothing unusual."])]
        lines += [
            f"{path}: not measured because {reason}."
            for path, reason in self.left_out.items()
        ]
        return "\n".join(lines)


def report(
    apply: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    inputs: PyTree,
    *,
    units: Sequence[UnitGroup] | None = None,
    features: Mapping[str, jax.Array] | None = None,
) -> Report:
    """Measures all hidden layers of a network on some inputs, for printing.

    `print(cbp_jax.metrics.report(apply, params, inputs))` prints one row for each
    hidden layer: dead, dormant, always-on and duplicate units, ranks of the features,
    and the size of the incoming weights. Below, it says what is unusual. It works for
    any network that `cbp_jax.infer_units` can trace and for the params of any
    checkpoint, and leaves out what cannot be followed, such as attention heads.

    It returns Python numbers; in a training loop, or for many learners at once, use the
    functions of this module.

    Provisional, like `cbp_jax.infer_units`: its arguments and results may still change.

    Args:
      apply: maps params and inputs to the network's outputs, any pytree. It must not
        return activations; see `cbp_jax.infer_units`.
      params: any pytree of arrays.
      inputs: a batch of inputs, any pytree of arrays. For ranks, pass more samples than
        a layer has units.
      units: the groups of units to measure; None for those that `cbp_jax.infer_units`
        finds.
      features: activations [..., N] by name of group, for networks that
        `cbp_jax.with_features` cannot follow, such as those from
        `cbp_jax.collect_features`; it needs `units`.

    Returns:
      A `Report`, whose text is the table.

    Raises:
      ValueError: params or inputs are traced or not arrays, no hidden units are found,
        or `features` do not match `units`.
    """
    if any(map(is_traced, jax.tree.leaves((params, inputs, features)))):
        raise ValueError(
            "report was called inside jit, vmap or grad, and expects arrays with known "
            "values. Call it outside, or use the other functions of cbp_jax.metrics."
        )
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        if not isinstance(leaf, bool | int | float) and not hasattr(leaf, "dtype"):
            raise ValueError(
                f"params has {leaf!r} at {path.name!r}, expected only arrays. Pass the "
                "arrays alone, of Equinox those from equinox.partition, and join them "
                "with the rest in apply."
            )
    left_out: Mapping[str, str] = {}
    if units is None:
        if features is not None:
            raise ValueError(
                f"report got features of {sorted(features)} but no units, expected the "
                "group of each. Pass units=cbp_jax.sequential_units(...) as well."
            )
        units = infer_units(apply, params, inputs, leave=("*",))
        left_out = units.left_out
    groups = resolve_units(units, params)
    names = [group.name for group in groups]
    if features is not None and not set(names) <= features.keys():
        raise ValueError(
            f"features has {sorted(features)}, expected the names of all units, "
            f"{names}. Name each array as its group."
        )

    @jax.jit
    def measure(
        params: PyTree, inputs: PyTree, features: Mapping[str, jax.Array] | None
    ) -> list[tuple[dict[str, jax.Array], jax.Array]]:
        if features is None:
            _, features = with_features(apply, units)(params, inputs)
        leaves = jax.tree.leaves(params)
        return [_measure(group, features[group.name], leaves) for group in groups]

    layers = []
    for group, measured in zip(groups, measure(params, inputs, features), strict=True):
        numbers, num_samples = measured
        row = LayerReport(
            name=group.name,
            num_units=group.num_units,
            num_samples=int(num_samples),
            unusual=(),
            **{name: float(number) for name, number in numbers.items()},
        )
        layers.append(row._replace(unusual=_unusual(row)))
    return Report(tuple(layers), left_out)


def _measure(
    group: ResolvedGroup, features: jax.Array, leaves: Sequence[jax.Array]
) -> tuple[dict[str, jax.Array], jax.Array]:
    units = features.shape[features.ndim - len(group.sizes) :]
    if units != group.sizes and features.shape[-1] % group.num_units:
        raise ValueError(
            f"Unit group {group.name!r}: its features have shape {features.shape}, "
            f"expected [samples, ..., {group.num_units}]. Pass the "
            "activations of its units."
        )
    outputs = as_float(features).reshape(-1, group.num_units)
    kernels = [
        jnp.moveaxis(
            jnp.asarray(leaves[axes.leaf]),
            axes.units,
            tuple(range(-len(axes.units), 0)),
        ).reshape(-1, group.num_units)
        for axes in group.incoming
    ]
    numbers = {
        "dead_units": _activity.dead_units(outputs),
        "dormant_units": _activity.tau_dormant_units(outputs),
        "always_on_units": _activity.always_on_units(outputs),
        "duplicate_units": _activity.duplicate_units(outputs),
        "effective_rank": _ranks.effective_rank(outputs),
        "stable_rank": _ranks.stable_rank(outputs),
        "weight_magnitude": _weights.weight_magnitude(kernels),
        "spectral_norm": jnp.stack([_weights.spectral_norm(k) for k in kernels]).max(),
    }
    return numbers, jnp.asarray(len(outputs))


# What is unusual: the least fraction, and a sentence about that fraction of the units.
_UNUSUAL_UNITS = {
    "dead_units": (0.1, "dead: they are 0 on all samples."),
    "dormant_units": (0.25, "dormant: their mean |h| is at most 0.1 of the layer's."),
    "always_on_units": (
        0.5,
        "always on: they are positive on at least 90 % of the samples. After a sigmoid "
        "this is normal.",
    ),
    "duplicate_units": (
        0.25,
        "duplicates: the cosine with another unit is above 0.95.",
    ),
}
# Below this share of the largest possible one, a rank is low.
_LOW_RANK = 0.1
# A kernel of fresh weights of variance 2 / fan_in has at most about 3.
_LARGE_SPECTRAL_NORM = 10.0


def _unusual(row: LayerReport) -> tuple[str, ...]:
    numbers = [each for each in row if isinstance(each, float)]
    if not all(map(math.isfinite, numbers)):
        return ("its activations or weights are not finite.",)
    found = [
        f"{100 * getattr(row, name):.0f} % of its units are {sentence}"
        for name, (least, sentence) in _UNUSUAL_UNITS.items()
        if getattr(row, name) >= least
    ]
    most = min(row.num_units, row.num_samples)
    if row.effective_rank < _LOW_RANK * most:
        found.append(
            f"its effective rank, {row.effective_rank:.1f}, is low: {most} is possible."
        )
    if row.num_samples < row.num_units:
        found.append(
            f"its {row.num_samples} samples are fewer than its {row.num_units} units "
            "and limit the ranks. Pass more inputs."
        )
    if row.spectral_norm > _LARGE_SPECTRAL_NORM:
        found.append(
            f"its largest singular value of incoming weights, {row.spectral_norm:.1f}, "
            "is large."
        )
    return tuple(found)


_HEADER = (
    *("layer", "units", "samples", "dead %", "dormant %", "always on %"),
    *("duplicate %", "effective rank", "stable rank", "mean |w|", "spectral norm"),
)


def _cells(row: LayerReport) -> list[str]:
    fractions = row[3:7]
    return [
        *map(str, row[:3]),
        *(f"{100 * fraction:.1f}" for fraction in fractions),
        f"{row.effective_rank:.1f}",
        f"{row.stable_rank:.0f}",
        f"{row.weight_magnitude:.4f}",
        f"{row.spectral_norm:.2f}",
    ]
