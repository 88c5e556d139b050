"""The output of `--help`: a program's flags, and the fields of the chosen config."""

from collections.abc import Mapping, Sequence
import textwrap
from types import MappingProxyType
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments.learning.hyperparameters import HYPERPARAMETERS

HELP_FLAGS = ("--help", "-help", "-h", "--h", "-?", "--helpshort")

_WIDTH = 88

FIELDS: Mapping[str, str] = MappingProxyType(
    {
        # Lanes.
        "cases": "what is compared: overrides of other fields, by name of the case",
        "sweep": "values of hyperparameters to train in parallel, in all cases",
        "search": "ranges of hyperparameters to search, in all cases",
        "num_trials": "points of a search; all are trained in parallel",
        "num_seeds": "seeds of each case and setting",
        "first_seed": "the smallest seed",
        "lanes_per_block": "lanes vmapped together on a device; 0 for automatic",
        "timed_task": "overrides of the short task timed to choose lanes_per_block",
        # Learner.
        "method": "a name in experiments/learning/methods.py",
        "optimizer": "a name in experiments/learning/base_optimizers.py",
        "noise": "distribution of noise_scale: normal or signs",
        "batch_size": "examples per update",
        "hidden_layers": "number of dense hidden layers; 0 for a linear model",
        "hidden_units": "units per dense hidden layer, or a tuple of each layer's",
        "activation": "a name in cbp_jax.networks.ACTIVATIONS or ACTIVATION_LAYERS",
        "normalization": "none, or a name in cbp_jax.layers.NORMALIZATIONS",
        "conv_channels": "channels of each convolution",
        "conv_sizes": "height and width of each convolution's kernel",
        "convolution": "auto, or a name in cbp_jax.networks.CONVOLUTIONS",
        # Stream.
        "num_tasks": "number of tasks; a finished run can be made longer",
        "examples_per_task": "number of examples in a task",
        "dataset": "a name in experiments/streams",
        "data_dir": "folder of the data set; '' for that of TensorFlow Datasets",
        "sampling": "without_replacement or with_replacement",
        "change_fraction": "share of pixels, images or classes that a task changes",
        "transition": "examples over which a task fades in",
        "recurrent": "number of tasks that recur; 0 for tasks that are always new",
        "labels": "random or permuted",
        "num_images": "training images of a seed; 0 for all but the test images",
        "num_test_images": "test images of a seed",
        "texture_classes": "number of classes of textures",
        "num_bits": "bits of an input, including a constant one",
        "slow_bits": "bits that change only every drift_every examples",
        "drift": "'one' slow bit flips, or 'all' are redrawn",
        "drift_every": "examples between changes of the slow bits",
        "target_units": "hidden units of the target network",
        "target_beta": "fraction of the bits that makes a unit of the target fire",
        "num_classes": "number of classes from which pairs are drawn; 0 for all",
        "train_per_class": "training images per class",
        "test_per_class": "test images per class",
        "texture_pixels": "height and width of textures",
        "num_epochs": "passes over the training images of a task",
        "shares": "fraction of the training images that each phase has",
        "phase_tasks": "number of tasks in each phase but the last",
        "start": "warm, or cold to begin each phase with the initial weights",
        "reset_head_optimizer_state": "also reset the optimizer state of the head",
        # Measures and output.
        "measured_examples": "first examples of a task, used to measure features",
        "rank_every": "tasks between measurements of the ranks; 0 for never",
        "rank_method": "gram or svd; see cbp_jax.metrics.singular_values",
        "probe_every": "tasks from one probe of plasticity to the next; 0 for never",
        "probe_measures": "what a probe measures: aged_against_fresh, readiness, "
        "layers, hessian, tangent_kernel, update_plasticity",
        "probe_examples": "first examples of a task, used by a probe",
        "probe_updates": "updates of the copies that a probe trains",
        "replacement_log": "replacements logged per lane and task; 0 for no log",
        "test_every_epoch": "measure test accuracy after each epoch",
        "tasks_per_bin": "tasks per bin of the table and the figure",
        "tensorboard": "write TensorBoard event files",
        "wandb": "log to Weights & Biases",
        "checkpoint_every": "tasks between checkpoints",
        "checkpoint_seconds": "also save if a task ends this long after the last save",
        "preset": "the preset of the config",
    }
)
"""Descriptions of the config fields that are not hyperparameters."""


def help_text(about: str, module: str, config: ConfigDict | None) -> str:
    """Writes the help of a program.

    Args:
      about: the docstring of the program.
      module: the module whose flags are shown.
      config: the chosen config, or None.
    """
    own = flags.FLAGS.flags_by_module_dict().get(module, ())
    rows = [
        (f"--{flag.name}", _default_of(flag), " ".join((flag.help or "").split()))
        for flag in own
    ]
    parts = [about.strip(), "Flags:\n" + _table(rows)]
    if config is None:
        parts.append("Add --config=FILE[:PRESET] to list the fields of a config.")
    else:
        parts.append(
            "Fields of the config; set them for all cases with --config.FIELD=VALUE, "
            "or for one with\n--config.cases.NAME.FIELD=VALUE:\n"
            + _table(_fields(config))
        )
    parts.append(
        "To continue a stopped run, repeat its command. To make a finished run longer, "
        "repeat\nit with a larger --config.num_tasks. --helpfull lists all flags."
    )
    return "\n\n".join(parts)


def meaning(field: str) -> str:
    """Returns the description of a config field; "" if it has none."""
    if field in HYPERPARAMETERS:
        hyperparameter = HYPERPARAMETERS[field]
        off = "" if hyperparameter.off is None else f"; {hyperparameter.off:g} is off"
        return f"{hyperparameter.meaning}, in {hyperparameter.range}{off}"
    return FIELDS.get(field, "")


def _fields(config: ConfigDict) -> list[tuple[str, str, str]]:
    values = config.to_dict() | {
        "cases": ", ".join(config.cases),
        **{
            kind: {name: one for name, one in config[kind].items() if one}
            for kind in ("sweep", "search")
        },
    }
    return [(name, str(value), meaning(name)) for name, value in values.items()]


def _default_of(flag: Any) -> str:
    return "" if flag.default in (None, [], False) else str(flag.default)


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Lays out names, values and meanings; long values get separate lines."""
    name_width = max((len(name) for name, *_ in rows), default=0)
    value_width = min(20, max((len(value) for _, value, _ in rows), default=0))
    indent = " " * (name_width + value_width + 6)
    lines = []
    for name, value, text in rows:
        begin = f"  {name:<{name_width}}  "
        if len(value) > value_width:
            indented = " " * len(begin)
            lines += textwrap.wrap(
                value, _WIDTH, initial_indent=begin, subsequent_indent=indented
            )
            begin, value = indented, ""
        begin += f"{value:<{value_width}}  "
        # A field without a description is still listed.
        lines += textwrap.wrap(
            text or "-", _WIDTH, initial_indent=begin, subsequent_indent=indent
        )
    return "\n".join(lines)
