"""The Python of the README runs as it stands."""

import pathlib
import re

import jax
import numpy as np
import pytest

README = pathlib.Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_example_runs_and_makes_one_update(block):
    names = {}
    exec(BLOCKS[block], names)
    assert np.isfinite(names["loss"])
    for unit_state in names["state"].units.values():
        np.testing.assert_array_equal(unit_state.age, 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(names["params"]))


def test_readme_shows_both_examples():
    assert len(BLOCKS) == 2
