"""Every method as a case, with its published settings.

The hyperparameters that a case does not set have the published values of
experiments/learning/methods.py. Step sizes belong to the problem: those of Adam and of
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


Strengths = dict[str, dict[str, tuple[float, ...]]]


def strengths(
    *, step_sizes: tuple[float, ...], adam_step_sizes: tuple[float, ...]
) -> Strengths:
    """Returns three values of one hyperparameter for each method, to choose from.

    They are the published ones, or around these. A method without a strength of its own
    is tried with three step sizes, so that all have the same number of trials.
    """
    steps, adam_steps = {"step_size": step_sizes}, {"step_size": adam_step_sizes}
    rates = {"replacement_rate": (1e-3, 1e-4, 1e-5)}
    upgd = {"upgd_noise_scale": (1e-1, 1e-2, 1e-3)}
    without_strength = (
        *("backprop", "online_norm", "layer_norm", "rms_norm", "crelu"),
        *("deep_fourier", "normalize_and_project"),
        *("fire", "head_reset", "full_reset"),
    )
    return dict.fromkeys(without_strength, steps) | {
        "l2": {"weight_decay": (1e-3, 1e-4, 1e-5)},
        "shrink_and_perturb": {"noise_scale": (1e-4, 1e-5, 1e-6)},
        "dropout": {"dropout_rate": (0.1, 0.03, 0.01)},
        "adam": adam_steps,
        "adam_equal_betas": adam_steps,
        "optimizer_reset": adam_steps,
        "continual_backprop": rates,
        "continual_backprop_adam": rates,
        "random_replacement": rates,
        "inverted_replacement": rates,
        "l2_init": {"l2_init_strength": (1e-2, 1e-3, 1e-4)},
        "spectral_regularization": {"spectral_strength": (1e-2, 1e-3, 1e-4)},
        "weight_clipping": {"clipping_kappa": (3.0, 2.0, 1.0)},
        "upgd": upgd,
        "upgd_nonprotecting": upgd,
        "redo": {"redo_threshold": (0.1, 0.025, 0.01)},
        "self_normalized_resets": {"snr_rejection_rate": (0.05, 0.02, 0.01)},
        "selective_weight_reinitialization": {"swr_fraction": (0.4, 0.2, 0.05)},
        "shrink_and_perturb_events": {"shrink": (0.9, 0.6, 0.4)},
        "hare_and_tortoise": {"hare_decay": (0.9999, 0.999, 0.99)},
    }


def with_strengths(cases: Cases, values: Strengths) -> Cases:
    """Gives each case the sweep of the values to try it with.

    Raises:
      KeyError: a case without values.
    """
    return {name: case | {"sweep": values[name]} for name, case in cases.items()}
