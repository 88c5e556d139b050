"""Where groups of hidden units live in a params tree.

Works on any pytree of arrays. A leaf is named by its path, the keys joined by `/`: the
flax params `{"dense_0": {"kernel": ...}}` hold the leaf `dense_0/kernel`. A path that
leads to a subtree with a single leaf (an `nnx.Param`, say) names that leaf.

Shapes: N units of a group, P positions of a flattened map, K replaced at once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

PyTree = Any
Paths = str | Sequence[str] | None
Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


class UnitGroup(NamedTuple):
    """A group of hidden units: the leaves of a params tree that belong to them.

    Each field of paths takes one path, a sequence of paths, or None for no leaf. With
    the default layout the last axis of `incoming`, `bias`, `norm_scale` and `norm_bias`
    indexes the N units, and the second-last axis of `outgoing` indexes them, times the
    P positions of a spatial map that was flattened in between (channel fastest).

    Kernels of two axes are those of dense layers, and of four those of two-dimensional
    convolutions. What the axes of other kernels are must be declared: those of a kernel
    in layout "io" are, in this order, `stack_axes`, `spatial_axes`, `input_axes` and
    outputs. Of `incoming` the outputs are the `unit_axes`; of `outgoing` the inputs
    are, and there are `output_axes` outputs::

      # A transformer's MLP, layers stacked by nn.scan: [L, D, F], [L, F] and [L, F, D].
      UnitGroup("mlp", "layers/up/kernel", "layers/up/bias", "layers/down/kernel",
                stack_axes=1)
      # Values of attention, each number of a head a unit: [D, H, K], [H, K], [H, K, D].
      UnitGroup("value", "attention/value/kernel", "attention/value/bias",
                "attention/out/kernel", unit_axes=2)

    Attributes:
      name: the group's key in `features`.
      incoming: kernels into the units, `[..., fan_in, N]`. Several where branches are
        added up, as at the end of a residual block.
      bias: biases of the units, `[N]`, set to 0 at a reset.
      outgoing: kernels that read the units, `[..., P * N, outputs]`: one for each
        consumer, so a unit that feeds a branch and a shortcut names both.
      outgoing_bias: biases of the consumers, `[outputs]`, in the order of `outgoing`.
        Only `transfer_mean` uses them.
      norm_scale: scales of a normalization of the units, `[N]`, set to 1 at a reset.
      norm_bias: shifts of a normalization of the units, `[N]`, set to 0 at a reset.
      replacement_rate: the group's own rate or schedule; 0 freezes the group, None
        takes the transform's.
      initializer: the group's own initializer of fresh incoming weights; None takes the
        transform's.
      layout: "io" for kernels `[..., in, out]` (flax, Haiku), "oi" for `[out, in, ...]`
        (Equinox), where a flattened map has the channel as its slowest index. Spatial
        axes are the last ones in layout "oi".
      statistics: leaves or subtrees of the network's state that is no param, such as
        running means, with the N units as the last axis of each leaf; paths in that
        state, its collection first: `batch_stats/norm_0`. Only
        `cbp_jax.reset_statistics` uses them.
      stack_axes: number of leading axes, of every leaf and of the features, that stack
        layers or experts. Each slice has N units of its own, with utilities, ages and a
        number to be reset of their own; S stands for these axes: `[*S, batch, ..., N]`.
      unit_axes: number of axes that index the units together: of `incoming` and `bias`
        the last ones, of `outgoing` those before the outputs, of features the last.
      spatial_axes: number of axes of a convolution's window, of all kernels but dense
        ones; None is 2 for kernels of four axes.
      input_axes: number of axes that make up the inputs of `incoming`.
      output_axes: number of axes that make up the outputs of `outgoing`, one for all
        or one for each.
      norm_scale_value: what `norm_scale` is set to at a reset: 1, or 0 for units that
        end a residual branch and are born silent.
    """

    name: str
    incoming: Paths
    bias: Paths = None
    outgoing: Paths = None
    outgoing_bias: Paths = None
    norm_scale: Paths = None
    norm_bias: Paths = None
    replacement_rate: float | jax.Array | Callable[..., jax.Array] | None = None
    initializer: Initializer | None = None
    layout: str = "io"
    statistics: Paths = None
    stack_axes: int = 0
    unit_axes: int = 1
    spatial_axes: int | None = None
    input_axes: int = 1
    output_axes: int | Sequence[int] = 1
    norm_scale_value: float = 1.0


def sequential_units(
    names: Sequence[str],
    *,
    kernel: str = "kernel",
    bias: str | None = "bias",
    layout: str = "io",
) -> tuple[UnitGroup, ...]:
    """Builds the groups of a plain chain of layers, each feeding the next.

    Args:
      names: paths of the layers in forward order, `"a/b"` for nested ones. The last is
        the head, whose outputs are not hidden units.
      kernel: name of the weight leaf inside each layer (`"w"` in Haiku).
      bias: name of the bias leaf inside each layer, None for layers without one.
      layout: see `UnitGroup`.

    Returns:
      One `UnitGroup` for every layer but the last, named by the layer's path.

    Raises:
      ValueError: fewer than two layers, or a layer named twice.
    """
    names = tuple(names)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            "sequential_units needs at least two different layer paths, the last one "
            f"being the head; got {names}."
        )
    return tuple(
        UnitGroup(
            name=layer,
            incoming=f"{layer}/{kernel}",
            bias=bias and f"{layer}/{bias}",
            outgoing=f"{consumer}/{kernel}",
            outgoing_bias=bias and f"{consumer}/{bias}",
            layout=layout,
        )
        for layer, consumer in zip(names[:-1], names[1:], strict=True)
    )


def as_groups(units: Sequence[UnitGroup | str]) -> tuple[UnitGroup, ...]:
    """Returns the groups; plain names of layers are those of `sequential_units`.

    Raises:
      ValueError: no groups, or names among groups.
    """
    units = (units,) if isinstance(units, str | UnitGroup) else tuple(units)
    if not units:
        raise ValueError("units is empty; name at least one UnitGroup.")
    if all(isinstance(group, str) for group in units):
        return sequential_units(units)
    if not all(isinstance(group, UnitGroup) for group in units):
        raise ValueError(
            "units must be UnitGroups, or the names of a chain's layers, the head "
            f"last; got {units}."
        )
    return units
