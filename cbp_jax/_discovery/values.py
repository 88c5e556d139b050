"""What is known of a value while a network is traced, and what the trace has found.

A source is one product with a kernel whose outputs are units; a group of units is a set
of sources that later turn out to be one, as the ends of residual branches do.

Shapes: N units of a source.
"""

from collections.abc import Iterable, Sequence
import math
from typing import NamedTuple

from jax.extend import core
import numpy as np


class ProgramPoint(NamedTuple):
    """A variable of a traced program: the calls that lead to it, and itself."""

    calls: tuple[int, ...] | None  # None where the inside cannot be evaluated.
    variable: core.Var


class Origin(NamedTuple):
    """The computed value whose entries were only moved since."""

    place: ProgramPoint
    units: np.ndarray  # Labels there.


class Entries(NamedTuple):
    """Which entries of a leaf a value is made of."""

    leaf: int
    coordinates: tuple[np.ndarray, ...]  # Labels for each axis of the leaf.
    is_shifted: bool = False  # Whether something was added to them.


class Value(NamedTuple):
    """What is known of a value; see `labels` for the form of labels."""

    shape: tuple[int, ...]
    is_data: bool = False  # Whether it depends on the network's input.
    units: np.ndarray | None = None  # Labels: the unit that an entry belongs to.
    entries: tuple[Entries, ...] = ()
    mixed: frozenset[int] = frozenset()  # Sources whose units went in all together.
    lost: frozenset[int] = frozenset()  # Leaves that went in and were not followed.
    origin: Origin | None = None


class Read(NamedTuple):
    """A product of a kernel with units, or with anything else."""

    leaf: int
    source: int | None  # Whose units are read; None for no unit.
    new_source: int  # Which the product makes.
    axis: int  # Of the leaf, which indexes units times positions.
    positions: int
    layouts: frozenset[str]  # Those that fit the order of units and positions.
    origin: Origin | None  # Of what is read.


class Vector(NamedTuple):
    """A param that is added to units or multiplied with them, one entry for each."""

    leaf: int
    source: int
    axes: tuple[int, ...]  # Of the leaf, which together index the units.
    is_added: bool


class Source(NamedTuple):
    """Units that a product with a kernel makes."""

    leaf: int
    axes: tuple[int, ...]  # Of the leaf, which together index the units.
    size: int  # N


class Record:
    """Collects what a trace finds. Labels of units are numbered over all sources."""

    def __init__(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]):
        self.names, self.shapes = list(names), list(shapes)
        self.sources: list[Source] = []
        self.reads: list[Read] = []
        self.vectors: list[Vector] = []
        self.returned: set[int] = set()  # Sources that reach the outputs.
        self.leaks: dict[int, list[str]] = {}  # Why a source is no group.
        self.puzzles: dict[int, str] = {}  # Why a leaf could not be followed.
        self.crossings: list[tuple[int, int]] = []  # Source mixed into another.
        self._starts: list[int] = []
        self._leader: list[int] = []

    def new_source(self, leaf: int, axes: Sequence[int]) -> int:
        """Adds a source; products with the same entries make the same units."""
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
        """Returns the sources that labels name."""
        if units is None:
            return set()
        return set(self._source_of(np.unique(units[units >= 0])).tolist())

    def unit_index(self, units: np.ndarray) -> np.ndarray:
        """Turns labels into indices of units within their source, -1 for none."""
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
        """Says that sources are one group, unit by unit."""
        leaders = sorted(self.group_of(source) for source in sources)
        for leader in leaders[1:]:
            self._leader[leader] = leaders[0]

    def leak(self, sources: Iterable[int], reason: str) -> None:
        """Says why sources are no group that can be named."""
        for source in sources:
            reasons = self.leaks.setdefault(source, [])
            if reason not in reasons:
                reasons.append(reason)

    def puzzle(self, entries: Iterable[Entries], reason: str) -> None:
        """Says why leaves cannot be followed."""
        for each in entries:
            self.puzzles.setdefault(each.leaf, reason)
