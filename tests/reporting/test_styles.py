"""How methods look: alike in every figure, apart for every reader."""

import itertools

from matplotlib import colors
import numpy as np
import pytest

import configs.methods
from experiments.reporting import styles

METHODS = [name for names in styles.FAMILIES.values() for name in names]

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


def test_every_method_that_a_config_runs_is_in_a_family():
    cases = (
        configs.methods.paper_methods(adam_step_size=0.1)
        | configs.methods.newer_methods(adam_step_size=0.1)
        | configs.methods.batch_methods(batch_size=10, step_size=0.1)
    )
    assert cases.keys() <= set(METHODS)


@pytest.mark.parametrize("sight", SIGHT)
def test_colors_and_markers_of_a_panel_can_be_told_apart(sight):
    references = styles.FAMILIES[styles.REFERENCES]
    for members in styles.FAMILIES.values():
        panel = {name: styles.method_style(name) for name in (*references, *members)}
        assert len({style.marker for style in panel.values()}) == len(panel)
        for one, other in itertools.combinations(panel.values(), 2):
            distance = np.linalg.norm(lab(one.color, sight) - lab(other.color, sight))
            assert distance > 10, (one, other)
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
