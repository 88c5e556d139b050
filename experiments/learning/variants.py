"""Variants: what comparisons train, with names, published settings and values to try.

Each method is a variant of its own name, from its declaration. L2, Adam, normalizations
and activations are fields that work with every method. To give a setting of them a name
in comparisons and a look in figures, declare it here.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from experiments.learning.methods import METHODS
from experiments.reporting import styles


class Variant(NamedTuple):
    """A method as comparisons run it.

    Attributes:
      family: of `experiments.reporting.styles.FAMILIES`, in which figures show it.
      fields: of its config, with published values; `method` among them.
      sweep: the values to try, by hyperparameter; where it is empty, step sizes, which
        belong to the problem.
      on_batches: whether it is compared on mini-batches, whose size belongs to the
        problem.
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
      name: what comparisons call it and figures draw.
      family: see `Variant`.
      values: to try, by hyperparameter; without any, those of its method.
      on_batches: see `Variant`.
      **fields: in which it differs from a problem's config; `method` is "backprop" if
        none is given.

    Raises:
      ValueError: a name that is taken, or an unknown family.
    """
    if name in variants():
        raise ValueError(f"There is already a variant {name!r}; choose another name.")
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
