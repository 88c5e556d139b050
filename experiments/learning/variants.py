"""Variants: what comparisons train, with names, published settings and values to try.

Each method is a variant of the same name, from its declaration. L2, Adam,
normalizations and activations are fields that work with every method. Declare a setting
of them here to give it a name in comparisons and a style in figures.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from experiments.learning.methods import METHODS
from experiments.reporting import styles


class Variant(NamedTuple):
    """A method as comparisons run it.

    Attributes:
      family: its group in figures, one of `experiments.reporting.styles.FAMILIES`.
      fields: config fields with published values, including `method`.
      sweep: the values to try, by hyperparameter. If empty, comparisons try the
        problem's step sizes.
      on_batches: whether it is compared on mini-batches, of the problem's size.
    """

    family: str
    fields: Mapping[str, Any]
    sweep: Mapping[str, tuple[float, ...]] = MappingProxyType({})
    on_batches: bool = False


_DECLARED: dict[str, Variant] = {}


def variants() -> dict[str, Variant]:
    """Returns all variants by name: the methods, then those declared here."""
    return {name: _of_method(name) for name in METHODS} | _DECLARED


def declare_variant(
    name: str,
    family: str,
    values: Mapping[str, tuple[float, ...]] = MappingProxyType({}),
    *,
    on_batches: bool = False,
    **fields: Any,
) -> None:
    """Declares a variant of a method.

    Args:
      name: its name in comparisons and figures.
      family: see `Variant`.
      values: the values to try, by hyperparameter; if empty, those of its method.
      on_batches: see `Variant`.
      **fields: the config fields that differ from a problem's config; `method` is
        "backprop" by default.

    Raises:
      ValueError: the name is taken, or the family is unknown.
    """
    if name in variants():
        raise ValueError(f"A variant {name!r} already exists; choose another name.")
    fields = {"method": "backprop"} | fields
    sweep = values or _of_method(fields["method"]).sweep
    styles.add_method(name, family)
    _DECLARED[name] = Variant(family, fields, sweep, on_batches)


def _of_method(name: str) -> Variant:
    method = METHODS[name]
    fields = {"method": name} | dict(method.fields)
    if method.normalizations:
        fields["normalization"] = method.normalizations[0]
    sweep = {
        field: hyperparameter.values
        for field, hyperparameter in method.hyperparameters.items()
        if hyperparameter.values
    }
    return Variant(method.family, fields, sweep)


# Source: Dohare et al., "Loss of plasticity in deep continual learning", Nature 2024,
# and its released configs; the decays of online normalization are its authors'.
declare_variant(
    *("l2", styles.PAPER, {"weight_decay": (1e-3, 1e-4, 1e-5)}), weight_decay=1e-4
)
declare_variant(
    *("shrink_and_perturb", styles.PAPER, {"noise_scale": (1e-4, 1e-5, 1e-6)}),
    weight_decay=1e-4,
    noise_scale=1e-5,
)
declare_variant(
    *("dropout", styles.PAPER, {"dropout_rate": (0.1, 0.03, 0.01)}), dropout_rate=0.1
)
declare_variant("online_norm", styles.PAPER, normalization="online")
declare_variant("adam", styles.PAPER, optimizer="adam")
declare_variant(
    "continual_backprop_adam",
    styles.PAPER,
    method="continual_backprop",
    optimizer="adam",
)

declare_variant(
    "adam_equal_betas", styles.REGULARIZERS, optimizer="adam", b1=0.99, b2=0.99
)
declare_variant("layer_norm", styles.LAYERS, normalization="layer")
declare_variant("rms_norm", styles.LAYERS, normalization="rms")
declare_variant("crelu", styles.LAYERS, activation="crelu")
declare_variant("deep_fourier", styles.LAYERS, activation="sin_cos")
declare_variant("batch_norm", styles.LAYERS, normalization="batch", on_batches=True)
declare_variant("backprop_batches", styles.LAYERS, on_batches=True)

# Activations, and layer normalization with L2.
declare_variant(
    *("layer_norm_l2", styles.LAYERS, {"weight_decay": (1e-3, 1e-4, 1e-5)}),
    normalization="layer",
    weight_decay=1e-4,
)
declare_variant("aid", styles.LAYERS, {"aid_p": (0.99, 0.95, 0.9)}, activation="aid")
declare_variant(
    *("smooth_leaky", styles.LAYERS, {"smooth_leaky_slope": (0.3, 0.1, 0.03)}),
    activation="smooth_leaky",
)
declare_variant(
    *("randomized_smooth_leaky", styles.LAYERS), activation="randomized_smooth_leaky"
)
declare_variant("prelu", styles.LAYERS, activation="prelu")
declare_variant("adalin_tanh", styles.LAYERS, activation="adalin_tanh")

# Optimizers other than SGD and Adam.
declare_variant(
    "adamw",
    styles.OPTIMIZERS,
    {"decoupled_decay": (1e-1, 1e-2, 1e-3)},
    optimizer="adamw",
    decoupled_decay=1e-2,
)
declare_variant("rmsprop", styles.OPTIMIZERS, optimizer="rmsprop")
declare_variant("muon", styles.OPTIMIZERS, optimizer="muon")
