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
      left_out: a dict from the path of each kernel that feeds no group to the reason.
    """

    left_out: dict[str, str]

    def __new__(cls, groups: Sequence[UnitGroup], left_out: dict[str, str]) -> Self:
        """Creates the tuple."""
        made = super().__new__(cls, groups)
        made.left_out = dict(left_out)
        return made

    def __getnewargs__(self) -> tuple[tuple[UnitGroup, ...], dict[str, str]]:
        """Returns what copy and pickle need."""
        return tuple(self), self.left_out

    def __str__(self) -> str:
        """Lists the paths of every group, and the kernels that were left out."""
        return "\n".join([*map(_text, self), *_lines(self.left_out)])


def infer_units(
    apply: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    example: PyTree,
    *,
    leave: Sequence[str] = (),
) -> InferredUnits:
    """Finds the groups of hidden units of a network by tracing it.

    Provisional: its arguments and results, and which networks it supports, may still
    change.

    It follows every unit from the kernel that produces it, through biases, activations,
    normalizations, pooling, reshapes and additions, to the kernels that read it. It
    supports dense layers, convolutions and look-up tables, chains and residual
    branches, and kernels `[in, out]` (flax, Haiku) or `[out, in]` (Equinox). Units that
    are added together, as at the end of a residual block, form one group.

    It does not look inside `lax.scan`, `while_loop`, `cond` and `shard_map`, and leaves
    out what `UnitGroup` cannot express, such as attention heads. It does not name
    `statistics`, which are not params; add those with `_replace`.

    The network is only traced: nothing is computed. Use `check_units` to verify the
    result.

    Args:
      apply: maps params and an example to the network's outputs, any pytree. It must
        not return activations; if your network does, select the outputs:
        `lambda params, inputs: network.apply({"params": params}, inputs)[0]`.
      params: what the optimizer will update, any pytree of arrays or of
        `jax.ShapeDtypeStruct`.
      example: inputs with a batch axis, likewise any pytree.
      leave: paths of kernels that may feed no group; `*` matches any characters, as in
        `("*/attention/*",)`.

    Returns:
      The groups in forward order, each named by the path of the layer that feeds it.
      `print` them, edit them with `_replace`, and pass them to `continual_backprop`.
      `left_out` has the kernels in `leave` and those that produce the network's
      outputs.

    Raises:
      ValueError: a kernel feeds no group, does not produce the network's outputs, and
        is not in `leave`; or there are no groups. The message gives the reason for each
        kernel.
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
            "infer_units cannot name the unit groups of some kernels:\n"
            + "\n".join(_lines(unexpected))
            + f"\nTo leave them alone, pass leave={tuple(unexpected)}, where * matches "
            "any characters. Or write their groups yourself; see cbp_jax.UnitGroup. "
            "Groups found:\n" + ("\n".join(map(_text, found)) or "none")
        )
    if not found:
        raise ValueError(
            "infer_units found no hidden units:\n" + "\n".join(_lines(found.left_out))
        )
    return found


class Traced(NamedTuple):
    """A network as a program, and what was found in it."""

    closed: core.ClosedJaxpr  # Takes the flattened params and example.
    record: Record
    out_tree: PyTreeDef  # Structure of the outputs.


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
    """Returns one sentence for each reason, which lists its kernels."""
    paths: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        paths.setdefault(reason, []).append(path)
    return [
        f"{', '.join(each)}: left out because {reason}."
        for reason, each in paths.items()
    ]


_LAYOUTS = ("io", "oi")
# How the path of a learned slope ends, which is a factor like a normalization's scale.
_SLOPE = "slope"


def named_groups(
    record: Record,
) -> tuple[list[UnitGroup], dict[str, str], dict[str, str]]:
    """Names all groups of a trace.

    Args:
      record: what the trace found.

    Returns:
      The groups in forward order, and two dicts from kernels to the reason why they
      have no group: those that produce the network's outputs, and all others.
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
    """Unites units that the same entries of a kernel read into one group."""
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
    """Finds problems that only show once the groups are complete."""
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
            reason = f"{name}, which reads its units, is tied: it is used along "
            record.leak([read.source], f"{reason}different axes")


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
        """Returns why the group cannot be named; None if it can."""
        leaks = [each for source in self.sources for each in self._leaks(source)]
        if leaks:
            return leaks[0]
        if self.record.returned & set(self.sources):
            return (
                "its units also reach the outputs without a kernel; if apply returns "
                "activations, take them out"
            )
        if not self.reads:
            return "no kernel reads its units"
        for vector in self.vectors:
            if not vector.is_added and not self._is_vector(vector):
                name = self.record.names[vector.leaf]
                return f"{name} has several entries per unit"
        if self.layout() is None:
            return self._misfits()
        positions = {read.positions for read in self.reads} - {1}
        if len(positions) > 1:
            return f"kernels read it flattened, with {sorted(positions)} positions"
        return None

    def layout(self) -> str | None:
        """Returns the layout that fits all kernels; None if there is none."""
        for layout in _LAYOUTS:
            if self._fits(layout):
                return layout
        return None

    def named(self, names: dict[int, str]) -> UnitGroup:
        """Returns the group, which must not have a problem."""
        record = self.record
        factors = [each for each in self.vectors if not each.is_added]
        slopes = [each for each in factors if record.names[each.leaf].endswith(_SLOPE)]
        scales = [each for each in factors if each not in slopes]
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
            slope=self._paths(each.leaf for each in slopes),
            layout=self.layout() or _LAYOUTS[0],
            spatial_axes=self._spatial_axes(),
        )

    def _spatial_axes(self) -> int | None:
        """Returns the number of window axes of the kernels; None if it is 0 or 2."""
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
        """Returns the kernels whose units are not along the axes of a layout."""
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
        """Describes which kernels do not fit a layout."""
        misfits = min((self._misfit_kernels(layout) for layout in _LAYOUTS), key=len)
        record = self.record
        kernels = [f"{record.names[leaf]} {record.shapes[leaf]}" for leaf in misfits]
        return (
            "UnitGroup cannot express along which axes, or flattened in which order, "
            f"its units are in {', '.join(kernels)}"
        )

    def _outgoing_biases(self, reads: Sequence[Read]) -> list[int]:
        """Returns the bias of each consumer, in order; empty if any has none."""
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
    """Whether a leaf has one number for each of `size` units."""
    return math.prod(record.shapes[vector.leaf]) == size


def _modules(record: Record, vectors: Iterable[Vector]) -> set[str]:
    """Returns the paths of the modules that own the vectors."""
    return {_parent(record.names[each.leaf]) for each in vectors} - {""}


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _layer_names(record: Record) -> dict[int, str]:
    """Names each kernel by its layer, or by its own path if its layer has several."""
    kernels = sorted({source.leaf for source in record.sources})
    parents = [_parent(record.names[leaf]) for leaf in kernels]
    return {
        leaf: parent if parent and parents.count(parent) == 1 else record.names[leaf]
        for leaf, parent in zip(kernels, parents, strict=True)
    }
