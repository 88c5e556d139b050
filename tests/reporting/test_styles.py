"""How methods look: alike in every figure, apart for every reader."""

import itertools

from matplotlib import colors, pyplot
import numpy as np
import pytest

from experiments.learning.variants import variants
from experiments.reporting import styles

METHODS = [*variants()]

# What people without one kind of cones see, for linear RGB. Source: Machado, Oliveira
# and Fernandes, "A physiologically-based model for simulation of color vision
# deficiency", IEEE TVCG 15(6), 2009, table 1, severity 1.0.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def lab(color, sight):
    """CIELAB of a color as someone sees it, white point D65."""
    rgb = np.array(colors.to_rgb(color))
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    seen = np.clip(SIGHT[sight] @ linear, 0, 1)
    to_xyz = np.array(
        [
            [0.4124, 0.3576, 0.1805],
            [0.2126, 0.7152, 0.0722],
            [0.0193, 0.1192, 0.9505],
        ]
    )
    ratio = to_xyz @ seen / to_xyz.sum(axis=1)
    x, y, z = np.where(
        ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * 841 / 108 + 4 / 29
    )
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_every_method_has_a_look_of_its_own():
    assert len(set(METHODS)) == len(METHODS) >= 30
    looks = [(style.color, style.dashes) for style in map(styles.method_style, METHODS)]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize("sight", SIGHT)
def test_colors_and_markers_of_a_panel_can_be_told_apart(sight):
    references = styles.members(styles.REFERENCES)
    for family in styles.FAMILIES:
        members = styles.members(family)
        panel = {name: styles.method_style(name) for name in (*references, *members)}
        assert len({style.marker for style in panel.values()}) == len(panel)
        for one, other in itertools.combinations(panel.values(), 2):
            distance = np.linalg.norm(lab(one.color, sight) - lab(other.color, sight))
            assert distance > 10 or one.dashes != other.dashes, (one, other)
        for style in panel.values():
            assert lab(style.color, sight)[0] < 80, f"{style} is too pale on white"


def test_a_case_is_drawn_as_the_longest_method_that_its_name_begins_with():
    assert styles.method_style("l2_init_0.1") == styles.method_style("l2_init")
    assert styles.method_style("l2_strong") == styles.method_style("l2")
    assert styles.method_style("backprop_100") == styles.method_style("backprop")
    other = styles.method_style("l2x")
    assert other.family == styles.OTHERS
    assert other == styles.method_style("l2x")
    assert other not in map(styles.method_style, METHODS)


def test_legends_begin_with_the_references_and_end_with_others():
    names = ["mine", "redo", "l2_init", "continual_backprop", "l2", "backprop_100"]
    assert sorted(names, key=styles.position) == [
        *("backprop_100", "continual_backprop", "l2", "l2_init", "redo", "mine")
    ]


def test_lines_of_a_panel_keep_their_look_where_they_can():
    cases = {"10": "backprop", "100": "backprop", "L2": "l2", "1000": "backprop"}
    found = styles.distinct_styles(cases)
    assert list(found) == list(cases)
    assert found["10"] == styles.method_style("backprop")
    assert found["L2"] == styles.method_style("l2")
    assert len({(style.color, style.dashes) for style in found.values()}) == 4
    assert found["1000"].family == styles.REFERENCES
    many = styles.distinct_styles({str(number): "backprop" for number in range(100)})
    assert len(many) == 100


@pytest.fixture
def declared(monkeypatch):
    """Lets a test declare methods, which are forgotten after it."""
    monkeypatch.setattr(styles, "_STYLES", dict(styles._STYLES))


def test_looks_never_run_out(declared):
    for number in range(50):
        for family in styles.FAMILIES:
            styles.add_method(f"{family} {number}", family)
    looks = {
        (style.color, str(style.dashes))
        for family in styles.FAMILIES
        for style in map(styles.method_style, styles.members(family))
    }
    assert len(looks) == len(METHODS) + 50 * len(styles.FAMILIES)
    for family in styles.FAMILIES:
        panel = {*styles.members(styles.REFERENCES), *styles.members(family)}
        markers = {styles.method_style(name).marker for name in panel}
        assert len(markers) == len(panel)
    figure, axis = pyplot.subplots()
    style = styles.method_style("controls 49")
    axis.plot([0, 1], [0, 1], marker=style.marker, **style.line())
    figure.canvas.draw()
    pyplot.close(figure)


def test_a_new_method_leaves_the_looks_of_others_as_they_are(declared):
    before = {name: styles.method_style(name) for name in METHODS}
    styles.add_method("mine", styles.EVENTS)
    assert {name: styles.method_style(name) for name in METHODS} == before
    assert styles.method_style("mine_0.1").family == styles.EVENTS
    assert styles.position("hare_and_tortoise") < styles.position("mine")
    assert styles.position("mine") < styles.position("head_reset")


def test_an_unknown_family_is_named_with_the_choices():
    with pytest.raises(ValueError, match=r"'mine'.*'evnts'; choose one of .*'events'"):
        styles.add_method("mine", "evnts")


def test_points_have_distinct_colors_as_long_as_there_are_any():
    first = [styles.members(family)[:1] for family in styles.FAMILIES]
    alike = [*itertools.chain(*first)]
    found = styles.distinct_points(["backprop", *alike[-3:]])
    assert len({color for color, _ in found.values()}) == 4
    style = styles.method_style("backprop")
    assert found["backprop"] == (style.color, style.marker)


def test_points_of_one_color_have_distinct_markers():
    found = styles.distinct_points(METHODS)
    assert list(found) == METHODS
    assert len(set(found.values())) == len(METHODS)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("self_normalized_resets", "self-normalized resets"),
        ("continual_backprop_adam", "continual backprop with Adam"),
        ("continual_backprop", "continual backprop"),
        ("smooth_leaky_slope", "smooth-leaky slope"),
        ("randomized_smooth_leaky", "randomized smooth-leaky"),
        ("ada_upgd", "AdaUPGD"),
        ("adam_relative", "Adam relative"),
        ("l2_init", "L2 init"),
    ],
)
def test_names_are_written_for_people(name, written):
    assert styles.in_words(name) == written
