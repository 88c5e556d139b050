"""What the benchmark times: problems, sizes of networks, numbers of lanes.

    python -m experiments.benchmark --preset=cpu

| preset      | machine | minutes | what                                             |
|-------------|---------|---------|--------------------------------------------------|
| cpu         | 2 cores | 9       | all problems, 1 to 1,000 lanes                   |
| accelerator | 1 GPU   | 5       | networks of 3 x 100 units with 1 to 4,096 lanes  |
| smoke       | any     | 1       | tiny networks, to see that the benchmark runs    |

Groups are timed in order, the most informative first. Each is one network with one
number of lanes, and times the cases of its config against each other.
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import imagenet, pmnist, scr

_METHODS = {
    "backprop": {"method": "backprop"},
    "continual_backprop": {"method": "continual_backprop"},
}


def get_config(preset: str = "cpu") -> ConfigDict:
    """Returns the config of a preset.

    Raises:
      ValueError: unknown preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"Unknown preset {preset!r}; choose from {list(PRESETS)}.")
    return ConfigDict({"groups": _PRESETS[preset]})


def _group(
    problem: str,
    network: str,
    config: ConfigDict,
    lanes: int,
    steps: int,
    parts: Sequence[str] = (),
    **overrides: Any,
) -> ConfigDict:
    """Describes one network with one number of lanes.

    A task also draws its stream and measures two examples, which takes about as long as
    four updates, so `steps` should be much larger.

    Args:
      problem: name of the program.
      network: its name in the tables.
      config: config of a run of the problem.
      lanes: number of learners.
      steps: updates per learner in a timed task; with epochs, the closest possible
        number.
      parts: "data", "measures" or both, to time their shares.
      **overrides: fields of the config.
    """
    config = ConfigDict(config.to_dict())
    config.update(overrides)
    config.cases = _METHODS
    config.sweep = dict.fromkeys(config.sweep, ())
    config.num_seeds = lanes
    # Shorter than a timed task, so that units are replaced while it is timed.
    config.maturity_threshold = 5
    return ConfigDict(
        {
            "problem": problem,
            "network": network,
            "steps": steps,
            "parts": parts,
            "config": config,
        }
    )


def _mnist(units: int, lanes: int, steps: int, **more: Any) -> ConfigDict:
    """Draws images one by one, so that a short task need not shuffle all of them."""
    config = pmnist.get_config("paper" if units == 2000 else "small")
    more = {"hidden_units": units, "sampling": "with_replacement"} | more
    layers = more.get("hidden_layers", config.hidden_layers)
    network = f"{layers} x {units:,}"
    return _group("permuted_mnist", network, config, lanes, steps, **more)


def _bits(lanes: int, steps: int, **more: Any) -> ConfigDict:
    config = scr.get_config("default")
    problem = "slowly_changing_regression"
    return _group(problem, "1 x 5", config, lanes, steps, **more)


def _textures(lanes: int, steps: int, **more: Any) -> ConfigDict:
    """The small network of the default preset."""
    config = imagenet.get_config("default")
    return _group("continual_imagenet", "2 conv + 1", config, lanes, steps, **more)


def _images(lanes: int, steps: int, **more: Any) -> ConfigDict:
    """The paper's network and batches, on textures of the paper's size."""
    config = imagenet.get_config("paper")
    more = {"dataset": "textures", "train_per_class": 100, "test_per_class": 50} | more
    return _group("continual_imagenet", "3 conv + 2", config, lanes, steps, **more)


_Groups = Sequence[ConfigDict]
_PARTS = ("data", "measures")

_CPU: _Groups = (
    _mnist(100, lanes=10, steps=500, parts=_PARTS),
    # Computing ranks of its large matrices would take too long.
    _mnist(2000, lanes=2, steps=40, parts=("data",)),
    _bits(lanes=100, steps=1000, parts=_PARTS),
    _images(lanes=1, steps=10),
    _bits(lanes=1000, steps=1000),
    _mnist(100, lanes=1, steps=2000),
    _mnist(100, lanes=100, steps=200),
    _bits(lanes=1, steps=20_000),
    _textures(lanes=10, steps=100, parts=_PARTS),
    _mnist(2000, lanes=1, steps=40),
    _mnist(100, lanes=1000, steps=100),
    _mnist(100, lanes=30, steps=500),
    _bits(lanes=10, steps=5000),
    _bits(lanes=30, steps=2000),
    _textures(lanes=1, steps=100),
    _images(lanes=10, steps=2),
    _mnist(2000, lanes=10, steps=40),
)
_ACCELERATOR: _Groups = (
    _mnist(2000, lanes=30, steps=100, parts=("data",)),
    _mnist(100, lanes=256, steps=500, parts=_PARTS),
    _mnist(100, lanes=1, steps=1000),
    _bits(lanes=1000, steps=1000, parts=_PARTS),
    _mnist(2000, lanes=1, steps=500),
    _mnist(2000, lanes=64, steps=100),
    _mnist(100, lanes=4096, steps=100),
    _images(lanes=30, steps=20),
    _mnist(100, lanes=64, steps=500),
    _bits(lanes=10_000, steps=500),
    _images(lanes=1, steps=20),
    _mnist(2000, lanes=8, steps=200),
    _mnist(100, lanes=8, steps=500),
    _mnist(100, lanes=1024, steps=200),
)
_SMOKE: _Groups = (
    _mnist(4, lanes=2, steps=12, hidden_layers=1),
    _bits(lanes=3, steps=20, parts=_PARTS, measured_examples=20),
    _textures(
        *(1, 8),
        train_per_class=4,
        test_per_class=3,
        texture_pixels=12,
        batch_size=4,
        conv_channels=(2, 3),
        hidden_units=4,
    ),
)

_PRESETS = {"cpu": _CPU, "accelerator": _ACCELERATOR, "smoke": _SMOKE}
PRESETS = tuple(_PRESETS)
