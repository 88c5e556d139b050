"""Names the groups of hidden units of any network by tracing it."""

from collections.abc import Callable, Iterable, Sequence
import fnmatch
import math
from typing import NamedTuple, Self

import jax
from jax.extend import core
from jax.tree_util import PyTreeDef

from cbp_jax._discovery.tracing import trace
from cbp_jax._discovery.values import Read, Record, Vector
from cbp_jax._types import PyTree
from cbp_jax._units import UnitGroup, leaf_paths


class InferredUnits(tuple[UnitGroup, ...]):
    """A tuple of unit groups, in forward order, that prints readably.

    Attributes:
      left_out: for the path of each kernel that feeds no group, why.
    """

    left_out: dict[str, str]

    def __new__(cls, groups: Sequence[UnitGroup], left_out: dict[str, str]) -> Self:
        """Makes the tuple."""
        made = super().__new__(cls, groups)
        made.left_out = dict(left_out)
        return made

    def __getnewargs__(self) -> tuple[tuple[UnitGroup, ...], dict[str, str]]:
        """Copies and pickles both."""
        return tuple(self), self.left_out

    def __str__(self) -> str:
        """Lists the paths of every group, and what was left out."""
        return "\n".join([*map(_text, self), *_lines(self.left_out)])


def infer_units(
    apply: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    example: PyTree,
    *,
    leave: Sequence[str] = (),
) -> InferredUnits:
    """Finds the groups of hidden units of a network by tracing it.

    Provisional: its arguments and results may still change, and so may which networks
    it can follow.

    It follows every unit from the kernel that makes it, through biases, activations,
    normalizations, pooling, reshapes and additions, to the kernels that read it: of
    dense layers, convolutions and look-up tables, in chains and residual branches, with
    `[in, out]` kernels (flax, Haiku) or `[out, in]` ones (Equinox). Where units meet,
    as at the end of a residual block, they are one group.

    It does not look into `lax.scan`, `while_loop`, `cond` and `shard_map`, and leaves
    alone what `UnitGroup` cannot name, such as the heads of attention. It names no
    `statistics`, which are no params; add those with `_replace`.

    Nothing is computed: the network is traced only. `check_units` proves the result.

    Args:
      apply: maps params and an example to the network's outputs, any pytree. It must
        not return activations; if your network does, take the outputs out:
        `lambda params, inputs: network.apply({"params": params}, inputs)[0]`.
      params: what the optimizer will update, any pytree of arrays or of
        `jax.ShapeDtypeStruct`.
      example: inputs, any pytree likewise, with a batch axis.
      leave: paths of kernels that may feed no group, with `*` for any characters, such
        as `("*/attention/*",)`.

    Returns:
      The groups in forward order, named by the path of the layer that feeds them, to
      `print`, to edit with `_replace`, and to give to `continual_backprop`. The kernels
      of `leave` and those whose outputs are the network's are in `left_out`.

    Raises:
      ValueError: a kernel feeds no group, is not the network's last, and not in
        `leave`; or there are no groups. The message has the reason for each kernel.
    """
    record = trace_network(apply, params, example).record
    groups, heads, problems = named_groups(record)
    found = InferredUnits(groups, heads | problems)
    unexpected = {
        path: reason
        for path, reason in problems.items()
        if not any(fnmatch.fnmatchcase(path, pattern) for pattern in leave)
    }
    if unexpected:
        raise ValueError(
            "Some kernels feed no group of units that infer_units can name:\n"
            + "\n".join(_lines(unexpected))
            + f"\nIf they are to stay as they are, pass leave={tuple(unexpected)}, "
            "where * stands for any characters; or write their groups yourself, see "
            "cbp_jax.UnitGroup. Groups found:\n"
            + ("\n".join(map(_text, found)) or "none")
        )
    if not found:
        raise ValueError(
            "infer_units found no hidden units:\n" + "\n".join(_lines(found.left_out))
        )
    return found


class Traced(NamedTuple):
    """A network as a program, and what was found in it."""

    closed: core.ClosedJaxpr  # Of the flattened params and example.
    record: Record
    out_tree: PyTreeDef  # Of the outputs.


def trace_network(
    apply: Callable[[PyTree, PyTree], PyTree], params: PyTree, example: PyTree
) -> Traced:
    """Traces `apply(params, example)` and follows units and params through it."""
    names = [path.name for path in leaf_paths(params)]
    closed, outputs = jax.make_jaxpr(apply, return_shape=True)(params, example)
    record = trace(closed, names, len(names))
    return Traced(closed, record, jax.tree.structure(outputs))


def _text(group: UnitGroup) -> str:
    defaults = UnitGroup._field_defaults | {"layout": None}
    lines = [f"{group.name}:"]
    for field, value in group._asdict().items():
        if field == "name" or value == defaults.get(field):
            continue
        several = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        lines.append(f"  {field}: {several}")
    return "\n".join(lines)


def _lines(reasons: dict[str, str]) -> list[str]:
    """Returns a sentence for each reason, which names all its kernels."""
    paths: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        paths.setdefault(reason, []).append(path)
    return [
        f"{', '.join(each)}: left out, since {reason}."
        for reason, each in paths.items()
    ]


_LAYOUTS = ("io", "oi")


def named_groups(
    record: Record,
) -> tuple[list[UnitGroup], dict[str, str], dict[str, str]]:
    """Names all groups of a trace.

    Args:
      record: what the trace has found.

    Returns:
      The groups in forward order; for each kernel whose outputs are the network's, that
      it is one; for each other kernel without a group, why.
    """
    _unite_readers(record)
    _spread_leaks(record)
    members: dict[int, list[int]] = {}
    for source in range(len(record.sources)):
        members.setdefault(record.group_of(source), []).append(source)
    groups, heads, problems = [], {}, {}
    names = _layer_names(record)
    for sources in members.values():
        found = _Found(record, sources)
        if found.is_head():
            reason = "its outputs are the network's"
            heads |= dict.fromkeys(found.incoming_names(), reason)
        elif reason := found.problem():
            problems |= dict.fromkeys(found.incoming_names(), reason)
        else:
            groups.append(found.named(names))
    for leaf, shape in enumerate(record.shapes):
        is_used = any(source.leaf == leaf for source in record.sources)
        is_used |= any(vector.leaf == leaf for vector in record.vectors)
        if len(shape) > 1 and leaf in record.puzzles:
            problems[record.names[leaf]] = record.puzzles[leaf]
        elif len(shape) > 1 and not is_used:
            problems[record.names[leaf]] = "no product with an activation was found"
    return groups, heads, problems


def _unite_readers(record: Record) -> None:
    """Makes one group of units that the same entries of a kernel read."""
    for leaf in {read.leaf for read in record.reads}:
        reads = [read for read in record.reads if read.leaf == leaf]
        sources = {read.source for read in reads if read.source is not None}
        ways = {(read.source is None, read.axis, read.positions) for read in reads}
        if len(ways) > 1:
            reason = f"{record.names[leaf]} is used twice, and reads something else too"
            record.leak(sources, reason)
        elif sources:
            record.unite(*sources)


def _spread_leaks(record: Record) -> None:
    """Finds what only the groups as a whole can tell."""
    for mixed, source in record.crossings:
        if record.group_of(mixed) != record.group_of(source):
            reason = (
                "its units are weighted by others, or others by them, as in attention"
            )
            record.leak((mixed, source), reason)
    for leaf in {vector.leaf for vector in record.vectors}:
        owners = [vector.source for vector in record.vectors if vector.leaf == leaf]
        if len({record.group_of(source) for source in owners}) > 1:
            record.leak(owners, f"{record.names[leaf]} belongs to other units as well")
    roles: dict[int, set[tuple[int, ...]]] = {}
    for source in record.sources:
        roles.setdefault(source.leaf, set()).add(source.axes)
    for index, source in enumerate(record.sources):
        if len(roles[source.leaf]) > 1:
            name = record.names[source.leaf]
            record.leak([index], f"{name} is tied: it is used along different axes")
        if source.leaf in record.puzzles:
            record.leak([index], record.puzzles[source.leaf])
    for read in record.reads:
        if read.source is not None and len(roles[read.leaf]) > 1:
            name = record.names[read.leaf]
            reason = f"{name}, which reads its units, is tied: it is used along other "
            record.leak([read.source], f"{reason}axes, too")


class _Found:
    """The sources of one group."""

    def __init__(self, record: Record, sources: Sequence[int]):
        self.record = record
        self.sources = list(sources)
        self.size = record.sources[sources[0]].size
        self.reads = [read for read in record.reads if read.source in set(sources)]
        self.vectors = [each for each in record.vectors if each.source in set(sources)]

    def incoming(self) -> list[tuple[int, tuple[int, ...]]]:
        """Returns leaves, and their axes that index the units, in forward order."""
        kernels = [self.record.sources[source][:2] for source in self.sources]
        tables = [
            (vector.leaf, vector.axes)
            for vector in self.vectors
            if vector.is_added and not self._is_vector(vector)
        ]
        return list(dict.fromkeys((*kernels, *tables)))

    def incoming_names(self) -> list[str]:
        """Returns the paths of all kernels that feed the group."""
        return [self.record.names[leaf] for leaf, _ in self.incoming()]

    def is_head(self) -> bool:
        """Whether its units are outputs of the network and nothing reads them."""
        return not self.reads and bool(self.record.returned & set(self.sources))

    def problem(self) -> str | None:
        """Returns why the group cannot be named, None if it can."""
        leaks = [each for source in self.sources for each in self._leaks(source)]
        if leaks:
            return leaks[0]
        if self.record.returned & set(self.sources):
            return (
                "its units reach the outputs without a kernel as well; if apply "
                "returns activations, take them out"
            )
        if not self.reads:
            return "no kernel reads its units"
        for vector in self.vectors:
            if not vector.is_added and not self._is_vector(vector):
                name = self.record.names[vector.leaf]
                return f"{name} has several entries for each of its units"
        if self.layout() is None:
            return self._misfits()
        positions = {read.positions for read in self.reads} - {1}
        if len(positions) > 1:
            return f"kernels read it flattened from {sorted(positions)} positions"
        return None

    def layout(self) -> str | None:
        """Returns the layout that fits all kernels, None if there is none."""
        for layout in _LAYOUTS:
            if self._fits(layout):
                return layout
        return None

    def named(self, names: dict[int, str]) -> UnitGroup:
        """Returns the group; there must be no problem."""
        record = self.record
        scales = [each for each in self.vectors if not each.is_added]
        norms = _modules(record, scales)
        shifts, biases = [], []
        for each in self.vectors:
            if each.is_added and self._is_vector(each):
                is_shift = _parent(record.names[each.leaf]) in norms
                (shifts if is_shift else biases).append(each)
        outgoing = {read.leaf: read for read in self.reads}
        return UnitGroup(
            name=names[record.sources[self.sources[0]].leaf],
            incoming=self._paths(leaf for leaf, _ in self.incoming()),
            bias=self._paths(each.leaf for each in biases),
            outgoing=self._paths(outgoing),
            outgoing_bias=self._paths(self._outgoing_biases(list(outgoing.values()))),
            norm_scale=self._paths(each.leaf for each in scales),
            norm_bias=self._paths(each.leaf for each in shifts),
            layout=self.layout() or _LAYOUTS[0],
            spatial_axes=self._spatial_axes(),
        )

    def _spatial_axes(self) -> int | None:
        """Returns the axes of the windows of convolutions but two-dimensional ones."""
        leaves = [leaf for leaf, _ in self.incoming()] + [
            read.leaf for read in self.reads
        ]
        numbers = {len(self.record.shapes[leaf]) - 2 for leaf in leaves} - {0}
        return None if numbers <= {2} else max(numbers)

    def _leaks(self, source: int) -> list[str]:
        return self.record.leaks.get(source, [])

    def _is_vector(self, vector: Vector) -> bool:
        return _holds(self.record, vector, self.size)

    def _fits(self, layout: str) -> bool:
        return not self._misfit_kernels(layout)

    def _misfit_kernels(self, layout: str) -> list[int]:
        """Returns the kernels whose units lie along other axes than a layout's."""
        shapes, misfits = self.record.shapes, []
        for leaf, axes in self.incoming():
            ndim = len(shapes[leaf])
            if ndim < 2 or axes != (ndim - 1 if layout == "io" else 0,):
                misfits.append(leaf)
        for read in self.reads:
            axis = len(shapes[read.leaf]) - 2 if layout == "io" else 1
            if read.axis != axis or layout not in read.layouts:
                misfits.append(read.leaf)
        return list(dict.fromkeys(misfits))

    def _misfits(self) -> str:
        """Says which kernels keep the group from having a layout."""
        misfits = min((self._misfit_kernels(layout) for layout in _LAYOUTS), key=len)
        record = self.record
        kernels = [f"{record.names[leaf]} {record.shapes[leaf]}" for leaf in misfits]
        return (
            "its units lie along other axes, or flattened in another order, than "
            f"UnitGroup can say, in {', '.join(kernels)}"
        )

    def _outgoing_biases(self, reads: Sequence[Read]) -> list[int]:
        """Returns the bias of each consumer, in order; nothing if one has none."""
        record, found = self.record, []
        norms = _modules(record, (each for each in record.vectors if not each.is_added))
        for read in reads:
            biases = [
                each.leaf
                for each in record.vectors
                if each.source == read.new_source
                and each.is_added
                and _holds(record, each, record.sources[read.new_source].size)
                and _parent(record.names[each.leaf]) not in norms
            ]
            if len(biases) != 1:
                return []
            found += biases
        return found

    def _paths(self, leaves: Iterable[int]) -> str | tuple[str, ...] | None:
        paths = tuple(dict.fromkeys(self.record.names[leaf] for leaf in leaves))
        if len(paths) < 2:
            return paths[0] if paths else None
        return paths


def _holds(record: Record, vector: Vector, size: int) -> bool:
    """Whether a leaf holds one number for each of so many units."""
    return math.prod(record.shapes[vector.leaf]) == size


def _modules(record: Record, vectors: Iterable[Vector]) -> set[str]:
    """Returns the paths of the modules that vectors belong to."""
    return {_parent(record.names[each.leaf]) for each in vectors} - {""}


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _layer_names(record: Record) -> dict[int, str]:
    """Names each kernel by its layer, or by itself where a layer has several."""
    kernels = sorted({source.leaf for source in record.sources})
    parents = [_parent(record.names[leaf]) for leaf in kernels]
    return {
        leaf: parent if parent and parents.count(parent) == 1 else record.names[leaf]
        for leaf, parent in zip(kernels, parents, strict=True)
    }
