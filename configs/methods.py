"""Every method as a case, with its published settings.

The hyper-parameters that a case does not set have the published values of
experiments/learning/methods/. Step sizes belong to the problem: those of Adam and of
mini-batches, which need others than SGD on single examples, are given.
"""

from typing import Any

Cases = dict[str, dict[str, Any]]


def paper_methods(*, adam_step_size: float) -> Cases:
    """Returns the methods that the paper compares, for a stream of single examples.

    Source: Dohare et al., "Loss of plasticity in deep continual learning", Nature 2024,
    and its released configs; the decays of online normalization are its authors'.
    """
    adam = {"optimizer": "adam", "step_size": adam_step_size}
    return {
        "backprop": {"method": "backprop"},
        "l2": {"method": "backprop", "weight_decay": 1e-4},
        "shrink_and_perturb": {
            "method": "backprop",
            "weight_decay": 1e-4,
            "noise_scale": 1e-5,
        },
        "dropout": {"method": "backprop", "dropout_rate": 0.1},
        "online_norm": {"method": "backprop", "normalization": "online"},
        "adam": {"method": "backprop"} | adam,
        "continual_backprop": {"method": "continual_backprop"},
        "continual_backprop_adam": {"method": "continual_backprop"} | adam,
    }


def batch_methods(*, batch_size: int, step_size: float) -> Cases:
    """Returns batch normalization, and backprop on the same mini-batches beside it."""
    batch = {"method": "backprop", "batch_size": batch_size, "step_size": step_size}
    return {
        "backprop_batches": batch,
        "batch_norm": batch | {"normalization": "batch"},
    }


def newer_methods(*, adam_step_size: float) -> Cases:
    """Returns the methods of others, and the controls."""
    adam = {"optimizer": "adam", "step_size": adam_step_size}
    names = (
        *("l2_init", "spectral_regularization", "weight_clipping"),
        *("upgd", "upgd_nonprotecting"),
        *("redo", "self_normalized_resets", "selective_weight_reinitialization"),
        *("shrink_and_perturb_events", "fire", "hare_and_tortoise"),
        *("head_reset", "full_reset"),
        *("random_replacement", "inverted_replacement"),
    )
    return {name: {"method": name} for name in names} | {
        "layer_norm": {"method": "backprop", "normalization": "layer"},
        "rms_norm": {"method": "backprop", "normalization": "rms"},
        "normalize_and_project": {
            "method": "normalize_and_project",
            "normalization": "layer",
        },
        "crelu": {"method": "backprop", "activation": "crelu"},
        "deep_fourier": {"method": "backprop", "activation": "sin_cos"},
        "adam_equal_betas": {"method": "backprop", "b1": 0.99, "b2": 0.99} | adam,
        "optimizer_reset": {"method": "optimizer_reset"} | adam,
    }


def with_strengths(
    cases: Cases, strengths: dict[str, dict[str, tuple[float, ...]]]
) -> Cases:
    """Gives each case that has any the sweep of the values to try it with."""
    return {name: cases[name] | {"sweep": values} for name, values in strengths.items()}


def chosen(
    strengths: dict[str, dict[str, tuple[float, ...]]], **values: float
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Keeps one value of each case's only sweep.

    Args:
      strengths: for each case the values of one hyper-parameter.
      **values: for each case the one to keep, which must be among them.

    Raises:
      ValueError: a value that was not tried.
    """
    kept = {}
    for case, value in values.items():
        ((name, tried),) = strengths[case].items()
        if value not in tried:
            raise ValueError(f"{case}: {name} {value} is not among {tried}.")
        kept[case] = {name: (value,)}
    return kept
