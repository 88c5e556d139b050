"""Groups of hidden units, and where they are in a params tree.

Params can be any pytree of arrays. The path of a leaf is its keys joined by `/`: the
flax params `{"dense_0": {"kernel": ...}}` have the leaf `dense_0/kernel`. The path of a
subtree with a single leaf (such as an `nnx.Param`) also names that leaf.

A `UnitGroup` names leaves. `resolve_units` finds them and checks their shapes, and a
`UnitAxes` stores which axes of a leaf index the units. All of this is static: it runs
when a function is traced and costs nothing at run time.

Shapes: N units of a group, S stack axes, P positions of a flattened map, K largest
number of units reset in one update.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.tree_util import KeyEntry, KeyPath
from jax.typing import DTypeLike

from cbp_jax._numbers import is_known_zero
from cbp_jax._types import Initializer, PyTree, Rate
from cbp_jax._xla import sum_magnitudes

Paths = str | Sequence[str] | None


class UnitGroup(NamedTuple):
    """A group of hidden units: the leaves of a params tree that belong to them.

    Each field of paths takes one path, a sequence of paths, or None for no leaf. With
    the default layout, the last axis of `incoming`, `bias`, `norm_scale`, `norm_bias`
    and `slope` indexes the N units. The second-to-last axis of `outgoing` indexes them
    times the P positions of a spatial map that was flattened in between (channel
    fastest).

    Kernels with two axes belong to dense layers, and those with four to two-dimensional
    convolutions. Declare the axes of other kernels. In layout "io" they are, in this
    order, `stack_axes`, `spatial_axes`, inputs and outputs. An `incoming` kernel has
    `input_axes` inputs and `unit_axes` outputs; an `outgoing` kernel has `unit_axes`
    inputs and `output_axes` outputs::

      # A transformer's MLP, layers stacked by nn.scan: [L, D, F], [L, F] and [L, F, D].
      UnitGroup("mlp", "layers/up/kernel", "layers/up/bias", "layers/down/kernel",
                stack_axes=1)
      # Values of attention, each number of a head a unit: [D, H, K], [H, K], [H, K, D].
      UnitGroup("value", "attention/value/kernel", "attention/value/bias",
                "attention/out/kernel", unit_axes=2)

    Attributes:
      name: the group's key in `features`.
      incoming: kernels into the units, `[..., fan_in, N]`; several if branches are
        added, as at the end of a residual block.
      bias: biases of the units, `[N]`, set to 0 at a reset.
      outgoing: kernels that read the units, `[..., P * N, outputs]`. Name every
        consumer: for units that feed a branch and a shortcut, name both.
      outgoing_bias: biases of the consumers, `[outputs]`, in the order of `outgoing`.
        Only `transfer_mean` uses them.
      norm_scale: scales of a normalization of the units, `[N]`, set to 1 at a reset.
      norm_bias: shifts of a normalization of the units, `[N]`, set to 0 at a reset.
      replacement_rate: the group's own rate or schedule in `continual_backprop`; None
        uses that of the transform.
      initializer: the group's own initializer of new incoming weights; None uses that
        of the transform.
      layout: "io" for kernels `[..., in, out]` (flax, Haiku), "oi" for `[out, in, ...]`
        (Equinox). With "oi", spatial axes are the last ones, and the channel is the
        slowest index of a flattened map.
      statistics: leaves or subtrees of the network's other state, such as running
        means, with the N units as the last axis of each leaf. Their paths start with
        the collection: `batch_stats/norm_0`. Only `cbp_jax.reset_statistics` uses them.
      stack_axes: number of leading axes S, of every leaf and of the features, that
        stack layers or experts: `[*S, batch, ..., N]`. Each slice has N units with
        their own utilities and ages, and its own number of units to reset.
      unit_axes: number of axes that together index the units: the last ones of
        `incoming`, `bias` and features, and those of `outgoing` before the outputs.
      spatial_axes: number of window axes of all kernels that are not dense; None means
        2 for kernels with four axes.
      input_axes: number of axes that make up the inputs of `incoming`.
      output_axes: number of axes that make up the outputs of `outgoing`, one number
        for all leaves or one for each.
      norm_scale_value: what `norm_scale` is set to at a reset: 1, or 0 for units that
        end a residual branch and are initially silent.
      frozen: whether to measure the group but never reset it. A `replacement_rate` of 0
        does the same.
      slope: slopes that the units' activation learns, `[N]`, set to `slope_value` at a
        reset; see `cbp_jax.layers.prelu`.
      slope_value: the slope of a new unit.
    """

    name: str
    incoming: Paths
    bias: Paths = None
    outgoing: Paths = None
    outgoing_bias: Paths = None
    norm_scale: Paths = None
    norm_bias: Paths = None
    replacement_rate: Rate | None = None
    initializer: Initializer | None = None
    layout: str = "io"
    statistics: Paths = None
    stack_axes: int = 0
    unit_axes: int = 1
    spatial_axes: int | None = None
    input_axes: int = 1
    output_axes: int | Sequence[int] = 1
    norm_scale_value: float = 1.0
    frozen: bool = False
    slope: Paths = None
    slope_value: float = 0.0


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
      kernel: name of the weight leaf in each layer (`"w"` in Haiku).
      bias: name of the bias leaf in each layer; None for layers without one.
      layout: see `UnitGroup`.

    Returns:
      One `UnitGroup` for every layer but the last, named after the layer's path.

    Raises:
      ValueError: there are fewer than two layers, or a layer is named twice.
    """
    names = tuple(names)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"sequential_units got {names}, expected at least two different layer "
            "paths. List all layers in forward order, the head last."
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
    """Returns the groups; layer names are passed to `sequential_units`.

    A group whose own replacement rate is known to be 0 becomes frozen.

    Raises:
      ValueError: there are no groups, or both groups and names.
    """
    given = (units,) if isinstance(units, str | UnitGroup) else tuple(units)
    if not given:
        raise ValueError("units is empty. Pass at least one UnitGroup.")
    names = [group for group in given if isinstance(group, str)]
    if len(names) == len(given):
        return sequential_units(names)
    groups = [group for group in given if isinstance(group, UnitGroup)]
    if len(groups) < len(given):
        raise ValueError(
            f"units must be only UnitGroups, or only names, got {given}. Pass "
            "UnitGroups, or the names of a chain's layers, the head last."
        )
    return tuple(
        group._replace(frozen=True) if is_known_zero(group.replacement_rate) else group
        for group in groups
    )


def freeze(units: Sequence[UnitGroup | str], never: bool) -> list[UnitGroup]:
    """Returns the groups, all frozen if their units are never reset."""
    return [group._replace(frozen=group.frozen or never) for group in as_groups(units)]


# Of more units, a mask costs a GPU less traffic than comparing indices: XLA fuses the
# comparison with more of the update, whose operands are then read more often.
_WIDE = 512

LAYOUTS = ("io", "oi")
_VECTORS = ("bias", "norm_scale", "norm_bias", "slope")
_FIELDS = ("incoming", "outgoing", "outgoing_bias", *_VECTORS)


class UnitMask(NamedTuple):
    """Some units of a group."""

    mask: jax.Array  # bool [*S, N].
    # int32 scalar, the one unit in the mask, N for none; None if there may be several.
    alone: jax.Array | None = None


class UnitAxes(NamedTuple):
    """Where the units of a group are in one leaf; all fields are static.

    Axes are not negative, and those of one kind are adjacent and in ascending order.
    """

    leaf: int  # Index among the leaves of the flattened params.
    num_axes: int  # Number of axes of the leaf.
    units: tuple[int, ...]  # Axes that index units, times positions.
    sizes: tuple[int, ...]  # Sizes of these axes.
    stack: int = 0  # Number of stack axes, the first ones.
    positions: int = 1  # P
    layout: str = "io"  # As in `UnitGroup`.
    inputs: tuple[int, ...] = ()  # Axes of an incoming kernel's inputs.
    outputs: tuple[int, ...] = ()  # Axes of an outgoing kernel's outputs.
    value: float | None = None  # What a reset sets the entries to; None draws them.

    def spread(self, per_unit: jax.Array) -> jax.Array:
        """Places per-unit values [*S, N] along the axes, to broadcast to the leaf."""
        if self.positions > 1 and self.layout == "io":
            per_unit = jnp.tile(per_unit, (1,) * self.stack + (self.positions,))
        elif self.positions > 1:
            per_unit = jnp.repeat(per_unit, self.positions, axis=-1)
        before = self.units[0] - self.stack
        after = self.num_axes - self.units[-1] - 1
        return per_unit.reshape(
            *per_unit.shape[: self.stack], *(1,) * before, *self.sizes, *(1,) * after
        )

    @property
    def row_axis(self) -> int | None:
        """The axis along which a unit is one row, or None if its entries are more."""
        is_row = len(self.units) == 1 and self.positions == 1
        return self.units[0] if is_row else None

    def spread_mask(self, units: UnitMask, shape: Sequence[int]) -> jax.Array:
        """Marks the entries of units, bool; it broadcasts to the leaf, of `shape`."""
        is_wide = units.mask.size > _WIDE
        if units.alone is None or self.row_axis is None or is_wide:
            return self.spread(units.mask)
        # This is computed wherever it is needed, and no mask is kept in memory.
        rows = lax.broadcasted_iota(jnp.int32, shape, self.row_axis)
        return rows == units.alone

    def sum_magnitude(self, leaf: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Sums |leaf| over all axes but the stack and unit axes: [*S, P, N].

        No gradient flows through the sum.
        """
        others = tuple(
            axis for axis in range(self.stack, leaf.ndim) if axis not in self.units
        )
        magnitudes = jnp.abs(lax.stop_gradient(leaf)).astype(dtype)
        total = sum_magnitudes(magnitudes, others)
        stack = total.shape[: self.stack]
        if self.layout == "io":
            return total.reshape(*stack, self.positions, -1)
        return total.reshape(*stack, -1, self.positions).swapaxes(-1, -2)

    def kernel_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape `[*window, fan_in, N]` of a slice of an incoming kernel."""
        window = [
            size
            for axis, size in enumerate(shape)
            if axis >= self.stack and axis not in (*self.inputs, *self.units)
        ]
        fan_in = [shape[axis] for axis in self.inputs]
        return (*window, math.prod(fan_in), math.prod(self.sizes))

    def lay_out(self, columns: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Rearranges `[*window, fan_in, K]` to a slice's axes, with one unit axis."""
        inputs = [shape[axis] for axis in self.inputs]
        number = columns.shape[-1]
        if self.layout == "io":
            return columns.reshape(*columns.shape[:-2], *inputs, number)
        columns = jnp.moveaxis(columns, (-1, -2), (0, 1))
        return columns.reshape(number, *inputs, *columns.shape[2:])

    def put(self, columns: jax.Array, slots: jax.Array | None) -> jax.Array:
        """Puts the columns from `lay_out` at their units.

        Args:
          columns: columns of K units, with one unit axis.
          slots: which column each unit takes, int32 [N]; None if there is only one.

        Returns:
          An array that broadcasts to a slice of the leaf.
        """
        axis = self.units[0] - self.stack
        sizes = (1,) * len(self.sizes)
        if slots is not None:
            columns, sizes = jnp.take(columns, slots, axis=axis), self.sizes
        if len(sizes) == 1:
            return columns
        return columns.reshape(
            *columns.shape[:axis], *sizes, *columns.shape[axis + 1 :]
        )


class ResolvedGroup(NamedTuple):
    """A `UnitGroup` found in the params: leaf indices and sizes, all static."""

    group: UnitGroup
    num_units: int
    stack: tuple[int, ...]  # S
    sizes: tuple[int, ...]  # Sizes of the unit axes; their product is N.
    incoming: tuple[UnitAxes, ...]
    outgoing: tuple[UnitAxes, ...]
    outgoing_bias: tuple[int, ...]
    vectors: tuple[UnitAxes, ...]  # Leaves of `_VECTORS`, one number for each unit.

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.group.name

    @property
    def positions(self) -> int:
        """P, the number of positions that a consumer of the group flattens, or 1."""
        return max(axes.positions for axes in self.outgoing)

    @property
    def all_axes(self) -> tuple[UnitAxes, ...]:
        """All leaves with entries to reset, in the order of the reset."""
        return (*self.incoming, *self.vectors, *self.outgoing)

    def values(
        self, fresh: Sequence[jax.Array]
    ) -> tuple[jax.Array | float | None, ...]:
        """Returns the values that a reset writes to `all_axes`.

        Args:
          fresh: new weights of each incoming leaf.
        """
        fixed = (axes.value for axes in (*self.vectors, *self.outgoing))
        return (*fresh, *fixed)


def resolve_units(
    units: Sequence[UnitGroup | str], params: PyTree
) -> tuple[ResolvedGroup, ...]:
    """Finds every group's leaves in `params` and checks their shapes.

    Args:
      units: the groups, in the order in which they are reset, or layer names.
      params: any pytree of arrays (or of `jax.ShapeDtypeStruct`).

    Returns:
      One `ResolvedGroup` per group, in the same order.

    Raises:
      ValueError: there are no groups, a name or an incoming leaf is used twice, a
        layout is unknown, a path is not in `params`, axes are not declared, or shapes
        do not match. The message names the group, the leaf and the shapes.
    """
    units = as_groups(units)
    leaves = Leaves(params)
    resolved = tuple(_Resolution(group, leaves).resolve() for group in units)
    _check_unique("name", [group.name for group in units])
    _check_unique(
        "incoming leaf",
        [leaves.names[axes.leaf] for group in resolved for axes in group.incoming],
    )
    return resolved


# Flax wraps the params of a network in a collection with this name.
COLLECTION = "params/"


def path_string(path: KeyPath) -> str:
    """Joins the keys of a pytree path with `/`: `dense_0/kernel`."""
    return "/".join(key_string(key) for key in path)


def key_string(key: KeyEntry) -> str:
    """Returns one key of a pytree path as text."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


class LeafPath(NamedTuple):
    """The path of a leaf in a pytree."""

    name: str  # `norm/var`: what the leaf is called.
    keys: str  # `norm/var/value`: all keys, including that of a wrapper of an array.

    @property
    def last_key(self) -> str:
        """The last key of the name: `var`."""
        return self.name.rpartition("/")[2]

    @property
    def layer(self) -> str:
        """All keys of the name but the last: `norm`."""
        return self.name.rpartition("/")[0]

    def is_under(self, path: str) -> bool:
        """Whether a path is that of the leaf, or of a subtree that contains it."""
        return self.keys == path or self.keys.startswith(f"{path}/")


def leaf_paths(tree: PyTree) -> list[LeafPath]:
    """Returns the path of each leaf.

    An nnx variable, and a linen box with an array and its sharding, have the array as
    attribute `value`. If they contain no other leaf, `value` is not part of the name.
    """
    with_paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    keys = [tuple(key_string(key) for key in path) for path, _ in with_paths]
    paths = []
    for index, path in enumerate(keys):
        wrapper = path[:-1]
        neighbors = keys[max(index - 1, 0) : index] + keys[index + 1 : index + 2]
        is_alone = all(other[: len(wrapper)] != wrapper for other in neighbors)
        is_wrapped = path[-1:] == ("value",) and bool(wrapper) and is_alone
        name = wrapper if is_wrapped else path
        paths.append(LeafPath("/".join(name), "/".join(path)))
    return paths


class Leaves:
    """The leaves of a params tree, by path, with or without the prefix `params/`."""

    def __init__(self, params: PyTree):
        self.paths = leaf_paths(params)
        self.names = [path.name for path in self.paths]
        self.shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]

    def find(self, paths: Paths, group: str, field: str) -> list[int]:
        """Returns the leaf index of each path; raises ValueError if there is none."""
        if paths is None:
            return []
        paths = (paths,) if isinstance(paths, str) else tuple(paths)
        return [self._find_one(path, group, field) for path in paths]

    def _find_one(self, path: str, group: str, field: str) -> int:
        matches = self._matches(path)
        if not matches:
            matches = self._matches(COLLECTION + path)
        if not matches:
            matches = self._matches(path.removeprefix(COLLECTION))
        if len(matches) == 1:
            return matches[0]
        problem = "is not in the params" if not matches else "names several leaves"
        raise ValueError(
            f"Unit group {group!r}: {field} path {path!r} {problem}. The leaves are "
            f"{self.names}. Give the path of one leaf, its keys joined by '/'."
        )

    def _matches(self, path: str) -> list[int]:
        return [index for index, leaf in enumerate(self.paths) if leaf.is_under(path)]


class _Resolution:
    """One group and the leaves that its paths name."""

    def __init__(self, group: UnitGroup, leaves: Leaves):
        self.group = group
        self.leaves = leaves
        if group.layout not in LAYOUTS:
            raise self.error(
                f"layout must be one of {list(LAYOUTS)}, got {group.layout!r}."
            )
        self.found = {
            field: leaves.find(getattr(group, field), group.name, field)
            for field in _FIELDS
        }
        for field in ("incoming", "outgoing"):
            if not self.found[field]:
                raise ValueError(
                    f"Unit group {group.name!r} has no {field} leaf. Give the path of "
                    f"the kernel that {'feeds' if field == 'incoming' else 'reads'} "
                    "its units."
                )

    def resolve(self) -> ResolvedGroup:
        incoming = tuple(self.incoming(leaf) for leaf in self.found["incoming"])
        first = incoming[0]
        self.sizes = first.sizes
        self.num_units = math.prod(first.sizes)
        self.stack = self.leaves.shapes[first.leaf][: first.stack]
        for axes in incoming:
            self.check_stack(axes.leaf, "incoming")
            if axes.sizes != self.sizes:
                raise self.mismatch(
                    axes.leaf, "incoming", "has another number of units"
                )
        values = {
            "norm_scale": self.group.norm_scale_value,
            "slope": self.group.slope_value,
        }
        vectors = tuple(
            self.vector(leaf, field, values.get(field, 0.0))
            for field in _VECTORS
            for leaf in self.found[field]
        )
        outgoing = self.all_outgoing()
        return ResolvedGroup(
            group=self.group,
            num_units=self.num_units,
            stack=self.stack,
            sizes=self.sizes,
            incoming=incoming,
            outgoing=outgoing,
            outgoing_bias=self.outgoing_bias(outgoing),
            vectors=vectors,
        )

    def error(self, problem: str) -> ValueError:
        return ValueError(f"Unit group {self.group.name!r}: {problem}")

    def mismatch(self, leaf: int, field: str, wanted: str) -> ValueError:
        first = self.found["incoming"][0]
        return ValueError(
            f"Unit group {self.group.name!r} has {self.num_units} units, from "
            f"{self.leaves.names[first]!r} with shape {self.leaves.shapes[first]}, but "
            f"{field} leaf {self.leaves.names[leaf]!r} has shape "
            f"{self.leaves.shapes[leaf]}, which {wanted}."
        )

    def check_stack(self, leaf: int, field: str) -> None:
        if self.leaves.shapes[leaf][: len(self.stack)] != self.stack:
            raise self.mismatch(leaf, field, f"does not start with {self.stack}")

    def window(self, leaf: int, field: str, num_axes: int) -> int:
        """Returns the number of a kernel's window axes; raises if there are others."""
        group, shape = self.group, self.leaves.shapes[leaf]
        extra = len(shape) - num_axes
        if extra == 0 or extra == group.spatial_axes:
            return extra
        if group.spatial_axes is None and extra == 2 and num_axes == 2:
            return extra
        if len(shape) < 2:
            raise self.error(
                f"{field} leaf {self.leaves.names[leaf]!r} has shape {shape}, expected "
                "two or more axes. Give the path of a kernel."
            )
        raise self.error(
            f"{field} leaf {self.leaves.names[leaf]!r} has shape {shape}, but "
            f"{num_axes} axes are declared. Declare the others: stack_axes for stacked "
            "layers or experts, unit_axes=2 for heads, spatial_axes for a convolution, "
            "input_axes or output_axes; see UnitGroup."
        )

    def incoming(self, leaf: int) -> UnitAxes:
        group = self.group
        stack, inputs, units = group.stack_axes, group.input_axes, group.unit_axes
        window = self.window(leaf, "incoming", stack + inputs + units)
        shape = self.leaves.shapes[leaf]
        if group.layout == "io":
            window_axes, input_axes, unit_axes = _split(stack, window, inputs, units)
        else:
            unit_axes, input_axes, window_axes = _split(stack, units, inputs, window)
        del window_axes
        return UnitAxes(
            leaf,
            len(shape),
            unit_axes,
            tuple(shape[axis] for axis in unit_axes),
            stack,
            layout=group.layout,
            inputs=input_axes,
        )

    def vector(self, leaf: int, field: str, value: float) -> UnitAxes:
        self.check_stack(leaf, field)
        stack = len(self.stack)
        shape = self.leaves.shapes[leaf][stack:]
        num_axes = stack + len(shape)
        if shape == self.sizes:
            (unit_axes,) = _split(stack, len(shape))
            return UnitAxes(leaf, num_axes, unit_axes, self.sizes, stack, value=value)
        if math.prod(shape) != self.num_units or self.num_units not in shape:
            raise self.mismatch(leaf, field, "does not have one number per unit")
        axis = stack + shape.index(self.num_units)
        return UnitAxes(leaf, num_axes, (axis,), (self.num_units,), stack, value=value)

    def all_outgoing(self) -> tuple[UnitAxes, ...]:
        found, group = self.found["outgoing"], self.group
        given = group.output_axes
        outputs = (given,) * len(found) if isinstance(given, int) else tuple(given)
        if len(outputs) != len(found):
            raise self.error(
                f"output_axes must be one number, or one for each of the {len(found)} "
                f"outgoing leaves, got {given}."
            )
        all_axes = tuple(
            self.outgoing(leaf, number)
            for leaf, number in zip(found, outputs, strict=True)
        )
        if len({axes.positions for axes in all_axes} - {1}) > 1:
            raise self.mismatch(
                all_axes[-1].leaf, "outgoing", "flattens another number of positions"
            )
        return all_axes

    def outgoing(self, leaf: int, outputs: int) -> UnitAxes:
        self.check_stack(leaf, "outgoing")
        shape, stack = self.leaves.shapes[leaf], len(self.stack)
        units = len(self.sizes)
        if len(shape) == stack + 1 + outputs:
            units = 1  # Heads may be merged before they are read.
        window = self.window(leaf, "outgoing", stack + units + outputs)
        if self.group.layout == "io":
            _, unit_axes, output_axes = _split(stack, window, units, outputs)
        else:
            output_axes, unit_axes, _ = _split(stack, outputs, units, window)
        sizes = tuple(shape[axis] for axis in unit_axes)
        size = math.prod(sizes)
        if size == 0 or size % self.num_units:
            raise self.mismatch(
                leaf, "outgoing", f"reads {size} inputs, not a multiple of the units"
            )
        if units > 1 and sizes != self.sizes:
            raise self.mismatch(leaf, "outgoing", f"reads units of shape {sizes}")
        positions = size // self.num_units
        return UnitAxes(
            leaf,
            len(shape),
            unit_axes,
            sizes,
            stack,
            positions,
            self.group.layout,
            outputs=output_axes,
            value=0.0,
        )

    def outgoing_bias(self, outgoing: Sequence[UnitAxes]) -> tuple[int, ...]:
        found = self.found["outgoing_bias"]
        if found and len(found) != len(outgoing):
            raise ValueError(
                f"Unit group {self.group.name!r} has {len(outgoing)} outgoing leaves, "
                f"but {len(found)} of outgoing_bias. Give one for each outgoing leaf."
            )
        for leaf, axes in zip(found, outgoing, strict=False):
            self.check_stack(leaf, "outgoing_bias")
            shape = self.leaves.shapes[axes.leaf]
            outputs = math.prod(shape[axis] for axis in axes.outputs)
            if math.prod(self.leaves.shapes[leaf][len(self.stack) :]) != outputs:
                raise self.mismatch(
                    leaf, "outgoing_bias", f"does not match the {outputs} outputs"
                )
        return tuple(found)


def _split(first: int, *numbers: int) -> list[tuple[int, ...]]:
    """Splits the axes, starting with `first`, into runs of the given lengths."""
    runs = []
    for number in numbers:
        runs.append(tuple(range(first, first + number)))
        first += number
    return runs


def _check_unique(what: str, values: list[str]) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(
            f"Several unit groups have the {what} {repeated}. Give each its own {what}."
        )
