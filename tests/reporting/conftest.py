"""Closes what the tests of figures leave open."""

from collections.abc import Iterator

from matplotlib import pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    """Tests that look at a figure keep it from being written and closed."""
    yield
    plt.close("all")
