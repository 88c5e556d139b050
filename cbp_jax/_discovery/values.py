"""What is known about a value during a trace, and what the trace has found.

A source is a product with a kernel whose outputs are units. A group of units is a set
of sources that later turn out to be the same units, like the ends of residual branches.

Shapes: N units of a source.
"""

from collections.abc import Iterable, Sequence
import math
from typing import NamedTuple

from jax.extend import core
import numpy as np


class ProgramPoint(NamedTuple):
    """A variable of a traced program, and the calls that lead to it."""

    calls: tuple[int, ...] | None  # None if the inside cannot be evaluated.
    variable: core.Var


class Origin(NamedTuple):
    """The last computed value, whose entries have only been moved since then."""

    place: ProgramPoint
    units: np.ndarray  # Labels there.


class Entries(NamedTuple):
    """Which entries of a leaf a value consists of."""

    leaf: int
    coordinates: tuple[np.ndarray, ...]  # Labels for each axis of the leaf.
    is_shifted: bool = False  # Whether something was added to them.


class Value(NamedTuple):
    """What is known about a value; see `labels` for the form of labels."""

    shape: tuple[int, ...]
    is_data: bool = False  # Whether it depends on the network's input.
    units: np.ndarray | None = None  # Labels: the unit that an entry belongs to.
    entries: tuple[Entries, ...] = ()
    mixed: frozenset[int] = frozenset()  # Sources whose units are all in each entry.
    lost: frozenset[int] = frozenset()  # Leaves it depends on that were not followed.
    origin: Origin | None = None


class Read(NamedTuple):
    """A product of a kernel with units, or with anything else."""

    leaf: int
    source: int | None  # Source of the units that are read; None for no unit.
    new_source: int  # Source that the product creates.
    axis: int  # Axis of the leaf that indexes units times positions.
    positions: int
    layouts: frozenset[str]  # Layouts that fit the order of units and positions.
    origin: Origin | None  # Origin of the value that is read.


class Vector(NamedTuple):
    """A param that is added to units or multiplies them, with one entry per unit."""

    leaf: int
    source: int
    axes: tuple[int, ...]  # Axes of the leaf that together index the units.
    is_added: bool


class Source(NamedTuple):
    """Units that a product with a kernel creates."""

    leaf: int
    axes: tuple[int, ...]  # Axes of the leaf that together index the units.
    size: int  # N


class Record:
    """Collects what a trace finds. Unit labels are unique across all sources."""

    def __init__(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]):
        self.names, self.shapes = list(names), list(shapes)
        self.sources: list[Source] = []
        self.reads: list[Read] = []
        self.vectors: list[Vector] = []
        self.returned: set[int] = set()  # Sources that reach the outputs.
        self.leaks: dict[int, list[str]] = {}  # Why a source cannot form a group.
        self.puzzles: dict[int, str] = {}  # Why a leaf could not be followed.
        self.crossings: list[tuple[int, int]] = []  # Source, and one it is mixed into.
        self._starts: list[int] = []
        self._leader: list[int] = []

    def new_source(self, leaf: int, axes: Sequence[int]) -> int:
        """Adds a source; products with the same entries create the same units."""
        size = math.prod(self.shapes[leaf][axis] for axis in axes)
        source = Source(leaf, tuple(axes), size)
        start = self._starts[-1] + self.sources[-1].size if self.sources else 0
        index = len(self.sources)
        self._starts.append(start)
        self._leader.append(index)
        if source in self.sources:
            self.unite(self.sources.index(source), index)
        self.sources.append(source)
        return index

    def labels_of(self, source: int) -> np.ndarray:
        """Returns the labels [N] of the units of a source."""
        return self._starts[source] + np.arange(self.sources[source].size)

    def sources_in(self, units: np.ndarray | None) -> set[int]:
        """Returns the sources that the labels belong to."""
        if units is None:
            return set()
        return set(self._source_of(np.unique(units[units >= 0])).tolist())

    def unit_index(self, units: np.ndarray) -> np.ndarray:
        """Turns labels into unit indices within their source; -1 for no label."""
        starts = np.asarray(self._starts)[self._source_of(units)]
        return np.where(units < 0, -1, units - starts)

    def _source_of(self, units: np.ndarray) -> np.ndarray:
        return np.maximum(np.searchsorted(self._starts, units, side="right") - 1, 0)

    def group_of(self, source: int) -> int:
        """Returns the first source of the group that a source belongs to."""
        while self._leader[source] != source:
            source = self._leader[source]
        return source

    def unite(self, *sources: int) -> None:
        """Records that sources are one group, unit by unit."""
        leaders = sorted(self.group_of(source) for source in sources)
        for leader in leaders[1:]:
            self._leader[leader] = leaders[0]

    def leak(self, sources: Iterable[int], reason: str) -> None:
        """Records why sources do not form a group that can be named."""
        for source in sources:
            reasons = self.leaks.setdefault(source, [])
            if reason not in reasons:
                reasons.append(reason)

    def puzzle(self, entries: Iterable[Entries], reason: str) -> None:
        """Records why leaves cannot be followed."""
        for each in entries:
            self.puzzles.setdefault(each.leaf, reason)
