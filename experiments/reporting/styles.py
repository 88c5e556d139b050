"""How methods look in figures: one color, line and marker for each, in every figure.

Members of a family differ in color and marker, families in their dashes, so that lines
can be told apart by color-blind readers, in print without color, and when methods of
several families share a panel. Backprop is gray, continual backprop black.

Source of the colors: Okabe and Ito, "Color Universal Design", 2008, but for their
yellow, which is too pale for a line; in its place the wine of Paul Tol's "muted".
"""

from collections.abc import Mapping
import itertools
from typing import Any, NamedTuple
import zlib

REFERENCES = "references"
OTHERS = "others"

FAMILIES = {
    REFERENCES: ("backprop", "continual_backprop"),
    "methods of the paper": (
        *("l2", "shrink_and_perturb", "dropout", "online_norm", "adam"),
        "continual_backprop_adam",
    ),
    "regularizers and optimizers": (
        *("l2_init", "spectral_regularization", "weight_clipping"),
        *("normalize_and_project", "upgd", "upgd_nonprotecting", "adam_equal_betas"),
    ),
    "resets of units and weights": (
        *("redo", "self_normalized_resets", "selective_weight_reinitialization"),
    ),
    "layers": (
        *("layer_norm", "rms_norm", "crelu", "deep_fourier"),
        *("batch_norm", "backprop_batches"),  # These two on mini-batches.
    ),
    "events": ("shrink_and_perturb_events", "fire", "hare_and_tortoise"),
    "controls": (
        *("random_replacement", "inverted_replacement", "head_reset", "full_reset"),
        "optimizer_reset",
    ),
    OTHERS: (),
}
"""Methods by what they do, at most seven in a family; the references are in all."""

_BLUE, _VERMILION, _GREEN = "#0072B2", "#D55E00", "#009E73"
_PURPLE, _ORANGE, _SKY, _WINE = "#CC79A7", "#E69F00", "#56B4E9", "#882255"
_COLORS = (_BLUE, _VERMILION, _GREEN, _PURPLE, _ORANGE, _SKY, _WINE)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Of each family, in points: on, off, on, off ...
_DASHES: dict[str, Any] = dict(
    zip(
        FAMILIES,
        (
            *("-", "-", (0, (5, 2)), (0, (6, 1.5, 1.2, 1.5)), (0, (1.5, 1.2))),
            *((0, (6, 1.2, 1.2, 1.2, 1.2, 1.2)), (0, (1.5, 3)), (0, (10, 3))),
        ),
        strict=True,
    )
)


# Words of names that are not written in lower case.
_WRITTEN = {
    **{"adam": "Adam", "crelu": "CReLU", "fire": "FIRE", "l2": "L2", "redo": "ReDo"},
    **{"rms": "RMS", "snr": "SNR", "swr": "SWR", "upgd": "UPGD"},
}


class MethodStyle(NamedTuple):
    """How a method is drawn."""

    family: str  # A key of `FAMILIES`.
    color: str
    dashes: Any  # As matplotlib's `linestyle`.
    marker: str

    def line(self) -> dict[str, Any]:
        """Returns the arguments of matplotlib's `plot`, but for the marker."""
        return {"color": self.color, "linestyle": self.dashes}


def _all_styles() -> dict[str, MethodStyle]:
    styles = {
        name: MethodStyle(family, color, _DASHES[family], marker)
        for family, names in FAMILIES.items()
        for name, color, marker in zip(names, _COLORS, _MARKERS, strict=False)
    }
    gray = {"backprop": ("#707070", "<"), "continual_backprop": ("#000000", ">")}
    return styles | {
        name: styles[name]._replace(color=color, marker=marker)
        for name, (color, marker) in gray.items()
    }


_STYLES = _all_styles()
_FREE = [
    MethodStyle(OTHERS, color, dashes, marker)
    for dashes in dict.fromkeys(_DASHES.values())
    for color, marker in zip(_COLORS, _MARKERS, strict=True)
]


def method_style(name: str) -> MethodStyle:
    """Returns how a method is drawn, the same in every figure.

    Args:
      name: of a method or a case. A case that begins with the name of a method and an
        underscore, `backprop_100` say, is drawn as this method, the longest that fits.
        Any other name has a style of the family "others", which follows from its
        letters; names may share one, see `distinct_styles`.
    """
    words = name.split("_")
    for end in range(len(words), 0, -1):
        style = _STYLES.get("_".join(words[:end]))
        if style is not None:
            return style
    letters = zlib.crc32(name.encode())
    return _FREE[letters % len(_COLORS)]._replace(dashes=_DASHES[OTHERS])


def position(name: str) -> int:
    """Returns where a method stands in legends: as in `FAMILIES`, others behind."""
    style = method_style(name)
    looks = [_look(one) for one in _STYLES.values()]
    return looks.index(_look(style)) if style.family != OTHERS else len(looks)


def distinct_styles(cases: Mapping[str, str]) -> dict[str, MethodStyle]:
    """Returns styles for the lines of one panel, no two of them alike.

    Args:
      cases: for the label of each line the name of its method or case.

    Returns:
      For each label the style of its method. A line of another method, or of one that
      a line before it shows, has a style that is free; these repeat once all are used.
    """
    owners: dict[tuple[str, Any], str] = {}
    for label, case in cases.items():
        style = method_style(case)
        if style.family != OTHERS:
            owners.setdefault(_look(style), label)
    free = itertools.cycle(
        [style for style in _FREE if _look(style) not in owners] or _FREE
    )
    styles = {}
    for label, case in cases.items():
        style = method_style(case)
        is_owner = owners.get(_look(style)) == label
        styles[label] = style if is_owner else next(free)._replace(family=style.family)
    return styles


def in_words(name: str) -> str:
    """Writes the name of a method, case or hyperparameter for people."""
    return " ".join(_WRITTEN.get(word, word) for word in name.split("_"))


def _look(style: MethodStyle) -> tuple[str, Any]:
    return style.color, style.dashes
