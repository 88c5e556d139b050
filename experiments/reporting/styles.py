"""Styles of methods in figures: the same color, dashes and marker in every figure.

Members of a family differ in color and marker, and families in their dashes, so that
lines can be distinguished by color-blind readers, in print without color, and when
methods of several families share a panel. Backprop is gray, continual backprop black. A
family can have any number of members: after seven, the colors repeat with new dashes
and markers.

The family of a method is set where it is declared, in experiments/learning.

Source of the colors: Okabe and Ito, "Color Universal Design", 2008, except for their
yellow, which is too pale for a line; wine from Paul Tol's "muted" replaces it.
"""

from collections.abc import Iterable, Iterator, Mapping
import itertools
import re
from typing import Any, NamedTuple
import zlib

REFERENCES = "references"
PAPER = "methods of the paper"
REGULARIZERS = "regularizers"
RESETS = "resets of units and weights"
LAYERS = "layers"
LOSSES = "added losses"
OPTIMIZERS = "optimizers"
EVENTS = "events"
CONTROLS = "controls"
OTHERS = "others"

Dashes = str | tuple[float, tuple[float, ...]]  # As matplotlib's `linestyle`.

# Dashes of the first members of each family, in points: on, off, on, off ...
_DASHES: dict[str, Dashes] = {
    REFERENCES: "-",
    PAPER: "-",
    REGULARIZERS: (0, (5, 2)),
    RESETS: (0, (6, 1.5, 1.2, 1.5)),
    LAYERS: (0, (1.5, 1.2)),
    EVENTS: (0, (6, 1.2, 1.2, 1.2, 1.2, 1.2)),
    LOSSES: (0, (8, 1.5, 3, 1.5)),
    OPTIMIZERS: (0, (3, 1)),
    CONTROLS: (0, (1.5, 3)),
    OTHERS: (0, (10, 3)),
}
FAMILIES = tuple(_DASHES)
"""The families in the order of legends; all panels show the references."""

_BLUE, _VERMILION, _GREEN = "#0072B2", "#D55E00", "#009E73"
_PURPLE, _ORANGE, _SKY, _WINE = "#CC79A7", "#E69F00", "#56B4E9", "#882255"
_COLORS = (_BLUE, _VERMILION, _GREEN, _PURPLE, _ORANGE, _SKY, _WINE)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MORE_MARKERS = ("*", "<", ">", "p", "h")
_GRAY, _BLACK = "#707070", "#000000"


# Words in names that are not written in lower case.
_WRITTEN = {
    **{"adam": "Adam", "crelu": "CReLU", "fire": "FIRE", "l2": "L2", "redo": "ReDo"},
    **{"cpr": "CPR", "regrama": "ReGraMa"},
    **{"rms": "RMS", "snr": "SNR", "swr": "SWR", "upgd": "UPGD"},
    **{"adamo": "AdamO", "dash": "DASH"},
    **{"infer": "InFeR", "l1": "L1", "parseval": "Parseval"},
    **{"wasserstein": "Wasserstein", "adalin": "AdaLin"},
    **{"aid": "AID", "muon": "Muon", "pgd": "PGD", "prelu": "PReLU"},
    **{"adamw": "AdamW", "rmsprop": "RMSProp"},
}
# Words that belong together; what is written has no underscores.
_WRITTEN_TOGETHER = {
    "ada_upgd": "AdaUPGD",
    "adam_rel": "Adam-Rel",
    "c_chain": "C-CHAIN",
    "continual_backprop_adam": "continual backprop with Adam",
    "l2_er": "L2-ER",
    "self_normalized": "self-normalized",
    "smooth_leaky": "smooth-leaky",
}


class MethodStyle(NamedTuple):
    """How a method is drawn."""

    family: str  # One of `FAMILIES`.
    color: str
    dashes: Dashes
    marker: Any  # As matplotlib's `marker`.

    def line(self) -> dict[str, Any]:
        """Returns the arguments of matplotlib's `plot`, except the marker."""
        return {"color": self.color, "linestyle": self.dashes}


_STYLES: dict[str, MethodStyle] = {}


def add_method(name: str, family: str) -> None:
    """Gives a method the next style of its family; styles never run out.

    Args:
      name: name of the method; a known method keeps its style.
      family: one of `FAMILIES`.

    Raises:
      ValueError: the family is unknown.
    """
    if family not in FAMILIES:
        raise ValueError(
            f"{name!r} is declared in the family {family!r}; choose one of "
            f"{list(FAMILIES)}, from experiments/reporting/styles.py."
        )
    number = len(members(family))
    if family == OTHERS:
        number += len(_COLORS)  # The first styles are for undeclared names.
    _STYLES.setdefault(name, _nth_style(family, number))


def members(family: str) -> list[str]:
    """Returns the methods of a family in order of declaration."""
    return [name for name, style in _STYLES.items() if style.family == family]


def _nth_style(family: str, number: int) -> MethodStyle:
    """Returns a style that is unique to a family and number."""
    if family == REFERENCES and number < 2:
        color, marker = ((_GRAY, "<"), (_BLACK, ">"))[number]
        return MethodStyle(family, color, _DASHES[family], marker)
    turn, place = divmod(number, len(_COLORS))
    if family == REFERENCES:
        turn += 1  # The paper's methods have the solid lines in the first colors.
    if turn == 0:
        return MethodStyle(family, _COLORS[place], _DASHES[family], _MARKERS[place])
    # Dots of a length that is not in the first dashes, one more in each turn.
    dashes = _DASHES[family]
    first = dashes[1] if isinstance(dashes, tuple) else (9, 1)
    # A star or polygon with a number of points that is unique in the family.
    marker = (4 + number, 1, 0)
    if family == REFERENCES:
        first, marker = (12, 1), (4 + number, 0, 0)
    return MethodStyle(family, _COLORS[place], (0, first + (0.7, 1) * turn), marker)


def _free_styles() -> Iterator[MethodStyle]:
    """Yields styles for lines without a declared method, without end."""
    for turn in itertools.count():
        for family in FAMILIES[1:]:
            for place in range(len(_COLORS)):
                yield _nth_style(family, turn * len(_COLORS) + place)


def method_style(name: str) -> MethodStyle:
    """Returns the style of a method, the same in every figure.

    Args:
      name: name of a method or a case. A case that begins with the name of a method and
        an underscore, such as `backprop_100`, has the style of this method (the longest
        that fits). Any other name has a style of the family "others", determined by its
        letters. Names may share one; see `distinct_styles`.
    """
    method = _method_of(name)
    if method is not None:
        return _STYLES[method]
    return _nth_style(OTHERS, zlib.crc32(name.encode()) % len(_COLORS))


def position(name: str) -> int:
    """Returns the position of a method in legends: by family, undeclared ones last."""
    order = [method for family in FAMILIES for method in members(family)]
    method = _method_of(name)
    return len(order) if method is None else order.index(method)


def _method_of(case: str) -> str | None:
    """Returns the declared method whose style a case has."""
    words = case.split("_")
    begins = ("_".join(words[:end]) for end in range(len(words), 0, -1))
    return next((name for name in begins if name in _STYLES), None)


def distinct_styles(cases: Mapping[str, str]) -> dict[str, MethodStyle]:
    """Returns distinct styles for the lines of one panel.

    Args:
      cases: the name of the method or case of each line, by label.

    Returns:
      The styles by label. The first line of each declared method has its style; all
      others have unused styles.
    """
    owners: dict[tuple[str, Dashes], str] = {}
    for label, case in cases.items():
        if _method_of(case) is not None:
            owners.setdefault(_look(method_style(case)), label)
    free = (style for style in _free_styles() if _look(style) not in owners)
    styles = {}
    for label, case in cases.items():
        style = method_style(case)
        is_owner = owners.get(_look(style)) == label
        styles[label] = style if is_owner else next(free)._replace(family=style.family)
    return styles


def distinct_points(cases: Iterable[str]) -> dict[str, tuple[str, Any]]:
    """Returns colors and markers of points, which unlike lines have no dashes.

    Args:
      cases: names of methods or cases.

    Returns:
      A color and a marker for each name. The first case of each color keeps its own.
      The others have a color that no case has, or, if there is none, a marker that no
      case of their color has, as long as there are any.
    """
    own = {case: method_style(case) for case in cases}
    free = [color for color in _COLORS if color not in {s.color for s in own.values()}]
    points: dict[str, tuple[str, Any]] = {}
    for case, style in own.items():
        color, marker = style.color, style.marker
        if any(color == taken for taken, _ in points.values()):
            color = free.pop(0) if free else color
        markers = (marker, *_MARKERS, *_MORE_MARKERS)
        unused = (one for one in markers if (color, one) not in points.values())
        points[case] = color, next(unused, marker)
    return points


def in_words(name: str) -> str:
    """Writes the name of a method, case or hyperparameter for people."""
    for together, written in _WRITTEN_TOGETHER.items():
        name = re.sub(rf"(?<![^_]){together}(?![^_])", written, name)
    return " ".join(_WRITTEN.get(word, word) for word in name.split("_"))


def _look(style: MethodStyle) -> tuple[str, Dashes]:
    return style.color, style.dashes
