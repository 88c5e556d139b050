"""Every transformation of `cbp_jax.optimizers`: how it is built, and when it is off."""

from collections.abc import Callable
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

import cbp_jax
from cbp_jax import optimizers

NUM_STEPS = 3  # With an event after the second.
# Sums and a power of two: programs that XLA fuses differently round them alike.
BASE = optax.sgd(0.125, momentum=1.0)
UNITS = (cbp_jax.UnitGroup("dense_0", "dense_0/kernel", "dense_0/bias", "head/kernel"),)

ADAM = optimizers.adam_with_unit_counts(0.125, UNITS, 0.5, 0.75)


def make_params(dtype=np.float32):
    """One hidden layer and few leaves, which compile fast."""
    params = tiny.make_params(dtype)
    return {
        "dense_0": params["dense_0"],
        "head": {"kernel": params["dense_1"]["kernel"]},
    }


PARAMS = make_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)


def init_fn(key):
    """All weights are equal, because one number compiles faster than many."""
    weight = jax.random.normal(key)
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, weight), PARAMS)


def halve(params, key):
    del key
    return jax.tree.map(lambda leaf: leaf / 2, params)


def before(link, **options):
    return optax.chain(link(**options), BASE)


def behind(link, **options):
    return optax.chain(BASE, link(**options))


def around(wrapper, **options):
    return wrapper(BASE, **options)


def around_adam(wrapper, **options):
    return wrapper(ADAM, **options)


def instead(optimizer, **options):
    return optimizer(**options)


class Case(NamedTuple):
    """One transformation: where it stands, and how strong it is."""

    function: Callable[..., Any]
    place: Callable[..., Any]
    numbers: dict[str, Any]  # Hyper-parameters, which lanes differ in.
    off: dict[str, Any]  # With these it is its base.
    fixed: dict[str, Any] = {}
    base: optax.GradientTransformation = BASE


EVENT = {"schedule": optimizers.at(2)}
NEVER = {"schedule": optimizers.at()}
FRESH = {"init_fn": init_fn}
CASES = {
    case.function.__name__: case
    for case in (
        Case(optimizers.l2_init, before, {"strength": 0.3}, {"strength": 0.0}),
        Case(optimizers.l1_init, before, {"strength": 0.3}, {"strength": 0.0}),
        Case(optimizers.wasserstein_init, before, {"strength": 2.0}, {"strength": 0.0}),
        Case(
            optimizers.parseval,
            before,
            {"strength": 1e-4, "gain": 1.5},
            {"strength": 0.0},
            {"num_groups": 1},
        ),
        Case(optimizers.isometry, behind, {"strength": -0.01}, {"strength": 0.0}),
        Case(
            optimizers.spectral_regularization,
            before,
            {"strength": 0.3, "exponent": 2.0},
            {"strength": 0.0},
        ),
        Case(optimizers.clip_weights, behind, {"kappa": 0.5}, {"kappa": np.inf}),
        Case(optimizers.project_norms, behind, {}, {"exclude": ("dense_0", "head")}),
        Case(
            optimizers.shrink_and_perturb,
            around,
            {"weight_decay": 0.2, "noise_scale": 0.1},
            {"weight_decay": 0.0, "noise_scale": 0.0},
        ),
        Case(
            optimizers.upgd,
            instead,
            {"noise_scale": 0.5, "decay_rate": 0.9, "weight_decay": 0.2},
            {"noise_scale": 0.0, "weight_decay": 0.0, "protecting": False},
            {"learning_rate": 0.1},
            optax.sgd(0.1),
        ),
        Case(
            optimizers.ada_upgd,
            instead,
            {"noise_scale": 0.5, "decay_rate": 0.9, "weight_decay": 0.2},
            {"noise_scale": 0.0, "weight_decay": 0.0, "protecting": False},
            {"learning_rate": 0.125, "b1": 0.5, "b2": 0.75},
            optimizers.adam_with_unit_counts(0.25, UNITS, 0.5, 0.75, 1e-5),
        ),
        Case(
            optimizers.pgd,
            instead,
            {"noise_scale": 0.5},
            {"noise_scale": 0.0},
            {"learning_rate": 0.125},
            optax.sgd(0.125),
        ),
        Case(
            optimizers.adamw_with_unit_counts,
            instead,
            {"weight_decay": 0.5, "b1": 0.5, "b2": 0.75},
            {"weight_decay": 0.0},
            {"learning_rate": 0.125, "units": UNITS},
            ADAM,
        ),
        Case(optimizers.act_at, behind, {}, NEVER, {"act": halve, **EVENT}),
        Case(optimizers.fire, behind, {"num_iterations": 4}, NEVER, EVENT),
        Case(
            optimizers.hare_and_tortoise, behind, {"decay": 0.6}, {"decay": 0.0}, EVENT
        ),
        Case(
            optimizers.dash,
            around,
            {"smoothing": 0.4, "lowest": 0.2},
            {"lowest": 1.0},
            EVENT,
        ),
        Case(optimizers.reset_params_at, behind, {}, NEVER, EVENT | FRESH),
        Case(optimizers.reset_optimizer_at, around, {}, NEVER, EVENT),
        Case(optimizers.reset_adam_count_at, around_adam, {}, NEVER, EVENT, ADAM),
        Case(
            optimizers.shrink_and_perturb_at_events,
            behind,
            {"shrink": 0.4, "perturb": 0.2},
            {"shrink": 1.0, "perturb": 0.0},
            EVENT | FRESH,
        ),
        Case(
            optimizers.selective_weight_reinitialization,
            behind,
            {"fraction": 0.4},
            {"fraction": 0.0},
            EVENT | FRESH,
        ),
    )
}


def as_arrays(numbers):
    return {name: jnp.asarray(number) for name, number in numbers.items()}


def options_of(case, numbers, key):
    options = case.fixed | numbers
    if "key" in inspect.signature(case.function).parameters:
        options |= {"key": key}
    return options


def make(name, numbers=None, key=tiny.KEY):
    case = CASES[name]
    numbers = case.numbers if numbers is None else numbers
    return case.place(case.function, **options_of(case, numbers, key))
