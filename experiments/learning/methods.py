"""The methods that a case can use, and the hyperparameters that can differ by lane.

Each method is one declaration, `method`: its hyperparameters with published values,
ranges, off values and values to try; its family in figures; and the function that puts
it around, before or after the optimizer. Configs, sweeps, lanes, checks, comparisons
and figures all read it. Optimizers are declared in base_optimizers.py; L2, online
shrink and perturb and dropout are fields of them; normalizations and activations are
fields of the network. They work with every method, and variants.py gives them names in
comparisons.
"""

from collections.abc import Callable, Mapping
import functools
import math
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import cbp_jax
from cbp_jax import layers, losses, optimizers
from experiments.learning.added_loss import AddedLoss, Seen
from experiments.learning.base_optimizers import optimizer_hyperparameters
from experiments.learning.hyperparameters import (
    AT_LEAST_ONE,
    DECAY,
    FINITE,
    FRACTION,
    NOT_NEGATIVE,
    Hyperparameter,
    Hyperparameters,
    Range,
    declare_hyperparameters,
)
from experiments.learning.hyperparameters import default_of as _default
from experiments.learning.networks import feature_matrices, with_hyperparameters
from experiments.reporting import scales, styles


class Ingredients(NamedTuple):
    """What a method is built from, for one learner."""

    hyperparameters: SimpleNamespace  # Numbers by name, traced if lanes may differ.
    base: optax.GradientTransformation  # L2, optimizer, noise.
    network: Any
    init_params: Callable[[jax.Array], Any]  # From a key.
    weight_bounds: Callable[[str, tuple[int, ...]], float]  # See `clip_weights`.
    noise: str  # Its distribution; see `cbp_jax.optimizers.perturb`.
    widest_layer: int  # Number of units of the widest hidden layer.
    largest: Callable[[str], float]  # Largest value of a hyperparameter in any lane.
    updates_per_task: int
    acts: bool | None  # Whether the method acts now, if known; see `Learner`.
    key: jax.Array

    def at_task_ends(self) -> optimizers.Schedule:
        """Returns the schedule that is true at the last update of each task."""
        return self.every(self.updates_per_task)

    def every(self, period: int | jax.Array) -> optimizers.Schedule:
        """Returns the schedule that is true at every `period`-th update."""
        if self.acts is not None:
            return lambda count: self.acts
        return optimizers.every(period)

    def then(
        self, link: optax.GradientTransformation
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optimizer followed by another transformation."""
        return optax.chain(self.base, link)

    def evaluate(
        self, params: Any, network_state: Any, inputs: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the outputs and features of the network as in evaluation.

        Args:
          params: its params.
          network_state: the statistics of its normalizations, `{}` for none.
          inputs: `[B, ...]`.
        """
        network = with_hyperparameters(self.network, self.hyperparameters)
        return network.apply({"params": params, **network_state}, inputs)


class Method(NamedTuple):
    """A method and its properties.

    Attributes:
      build: maps the ingredients to an optax transformation, or to an `AddedLoss`.
      hyperparameters: the method's hyperparameters, by config field. If all that have
        an off value are off in all lanes, `build` is not called, and the learner uses
        the base optimizer. A method without off values is never off.
      family: its group in figures, one of `experiments.reporting.styles.FAMILIES`.
      fields: other config fields that comparisons set for it, in addition to the first
        of `normalizations`.
      adds_loss: whether `build` returns an `AddedLoss`, which the learner trains with
        the base optimizer.
      sees_features: whether it needs hidden activations, which a linear model lacks.
      resets_units: whether its state is a `cbp_jax.UnitResetState`, which the log and
        the measures of ages and resets read.
      sees_tasks: whether it knows when a task ends, as its definition requires.
      period: the hyperparameter that is the number of updates from one act of the
        method to the next, if it does nothing in between; None for others. Methods
        that see tasks act at their ends.
      resets_network: whether it reinitializes the whole network at the end of a task,
        so that the statistics of normalizations must be reset as well.
      replaces_optimizer: whether it is itself an optimizer, which takes only the step
        size from the config's optimizer.
      steps_like_adam: whether its steps are about as long as the step size, whatever
        the gradient, so that comparisons try Adam's step sizes.
      evaluated_params: maps its state to the params to evaluate; None for the params in
        training.
      normalizations: the normalizations that it requires; empty for any or none.
      optimizers: the optimizers that it works with; empty for all.
      source: where it was published.
    """

    build: Callable[[Ingredients], Any]
    hyperparameters: Hyperparameters = MappingProxyType({})
    family: str = styles.OTHERS
    fields: Mapping[str, Any] = MappingProxyType({})
    adds_loss: bool = False
    sees_features: bool = False
    resets_units: bool = False
    sees_tasks: bool = False
    period: str | None = None
    resets_network: bool = False
    replaces_optimizer: bool = False
    steps_like_adam: bool = False
    evaluated_params: Callable[[Any], Any] | None = None
    normalizations: tuple[str, ...] = ()
    optimizers: tuple[str, ...] = ()
    source: str = ""


_METHODS: dict[str, Method] = {}
METHODS: Mapping[str, Method] = MappingProxyType(_METHODS)
"""All methods, by their name in `config.method`."""


def method(name: str, **fields: Any) -> Callable[[Any], Any]:
    """Declares a method, which the decorated function builds.

    Args:
      name: its name in `config.method`, comparisons and figures.
      **fields: fields of `Method`, except `build`.

    Returns:
      A decorator that returns the function unchanged.

    Raises:
      ValueError: a method of this name exists, a hyperparameter is already declared
        differently, the family is unknown, or a number is out of range.
    """

    def enter(build: Callable[[Ingredients], Any]) -> Any:
        declared = Method(build, **fields)
        if name in _METHODS:
            raise ValueError(f"A method {name!r} already exists; choose another name.")
        declare_hyperparameters(declared.hyperparameters)
        styles.add_method(name, declared.family)
        _METHODS[name] = declared
        return build

    return enter


_NORMALIZATION_HYPERPARAMETERS: Mapping[str, Hyperparameters] = {
    "online": {
        "online_norm_forward_decay": Hyperparameter(
            _default(layers.OnlineNorm, "forward_decay"),
            *(DECAY, None, "decay of online normalization's mean and variance"),
        ),
        "online_norm_backward_decay": Hyperparameter(
            _default(layers.OnlineNorm, "backward_decay"),
            *(DECAY, None, "decay of online normalization's gradient control"),
        ),
    }
}
_SHARPNESS = Hyperparameter(
    _default(layers.smooth_leaky, "sharpness"),
    *(FINITE, None, "how fast a smooth-leaky activation bends, per unit of its input"),
)
_ACTIVATION_HYPERPARAMETERS: Mapping[str, Hyperparameters] = {
    "aid": {
        "aid_p": Hyperparameter(
            _default(layers.aid, "p"),
            *(FRACTION, None, "probability that AID passes a positive input"),
            scale=scales.LOG_COMPLEMENT,
            search=(0.7, 0.999),
        ),
    },
    "smooth_leaky": {
        "smooth_leaky_slope": Hyperparameter(
            _default(layers.smooth_leaky, "slope"),
            *(FINITE, None, "slope far below 0"),
            scale=scales.LINEAR,
            search=(0.01, 0.99),
        ),
        "smooth_leaky_sharpness": _SHARPNESS,
    },
    "randomized_smooth_leaky": {
        "smooth_leaky_low": Hyperparameter(
            _default(layers.randomized_smooth_leaky, "low"),
            *(FINITE, None, "smallest random slope far below 0"),
        ),
        "smooth_leaky_high": Hyperparameter(
            _default(layers.randomized_smooth_leaky, "high"),
            *(FINITE, None, "largest random slope far below 0"),
        ),
        "smooth_leaky_sharpness": _SHARPNESS,
    },
}
for _group in (
    *_NORMALIZATION_HYPERPARAMETERS.values(),
    *_ACTIVATION_HYPERPARAMETERS.values(),
):
    declare_hyperparameters(_group)


# Methods that act on every gradient or update: before or after the optimizer.


@method("backprop", family=styles.REFERENCES)
def _backprop(given: Ingredients) -> optax.GradientTransformation:
    return given.base


@method(
    "l2_init",
    family=styles.REGULARIZERS,
    hyperparameters={
        "l2_init_strength": Hyperparameter(
            1e-3,
            FINITE,
            0.0,
            "L2 toward the initial parameters",
            (1e-2, 1e-3, 1e-4),
            search=(1e-4, 1e-1),
        )
    },
    source="Kumar et al. 2023",
)
def _l2_init(given: Ingredients) -> optax.GradientTransformation:
    penalty = optimizers.l2_init(given.hyperparameters.l2_init_strength)
    return optax.chain(penalty, given.base)


@method(
    "spectral_regularization",
    family=styles.REGULARIZERS,
    hyperparameters={
        "spectral_strength": Hyperparameter(
            1e-3,
            FINITE,
            0.0,
            "penalty on the distance of spectral norms from 1",
            (1e-2, 1e-3, 1e-4),
            search=(1e-4, 1e-1),
        ),
        "spectral_exponent": Hyperparameter(
            _default(optimizers.spectral_regularization, "exponent"),
            *(AT_LEAST_ONE, None, "power of a spectral norm in the penalty"),
        ),
    },
    source="Lewandowski et al. 2024",
)
def _spectral_regularization(given: Ingredients) -> optax.GradientTransformation:
    penalty = optimizers.spectral_regularization(
        given.hyperparameters.spectral_strength,
        exponent=given.hyperparameters.spectral_exponent,
        key=given.key,
    )
    return optax.chain(penalty, given.base)


@method(
    "weight_clipping",
    family=styles.REGULARIZERS,
    hyperparameters={
        "clipping_kappa": Hyperparameter(
            2.0,
            NOT_NEGATIVE,
            math.inf,
            "multiple of the initial bound",
            (3.0, 2.0, 1.0),
        )
    },
    source="Elsayed et al. 2024",
)
def _weight_clipping(given: Ingredients) -> optax.GradientTransformation:
    kappa = given.hyperparameters.clipping_kappa
    return given.then(optimizers.clip_weights(kappa, bounds=given.weight_bounds))


@method(
    "normalize_and_project",
    family=styles.REGULARIZERS,
    normalizations=("layer", "rms"),
    source="Lyle et al. 2024",
)
def _normalize_and_project(given: Ingredients) -> optax.GradientTransformation:
    return given.then(optimizers.project_norms())


_UPGD = {
    "family": styles.REGULARIZERS,
    "replaces_optimizer": True,
    "source": "Elsayed and Mahmood 2024",
    "hyperparameters": {
        "upgd_decay_rate": Hyperparameter(
            _default(optimizers.upgd, "decay_rate"),
            *(DECAY, None, "decay of the utilities' average"),
            scale=scales.LOG_COMPLEMENT,
            search=(0.9, 0.9999),
        ),
        "upgd_noise_scale": Hyperparameter(
            1e-3,
            FINITE,
            None,
            "standard deviation of the noise on the gradient",
            (1e-1, 1e-2, 1e-3),
            search=(1e-4, 1e-1),
        ),
        "upgd_weight_decay": Hyperparameter(
            _default(optimizers.upgd, "weight_decay"),
            *(FINITE, None, "shrinkage of the params, times the step size"),
            search=(1e-4, 1e-1),
        ),
    },
}


@method("upgd", **_UPGD)
def _upgd(given: Ingredients, protecting: bool = True) -> optax.GradientTransformation:
    return optimizers.upgd(
        given.hyperparameters.step_size,
        decay_rate=given.hyperparameters.upgd_decay_rate,
        noise_scale=given.hyperparameters.upgd_noise_scale,
        weight_decay=given.hyperparameters.upgd_weight_decay,
        protecting=protecting,
        key=given.key,
        noise=given.noise,
    )


method("upgd_nonprotecting", **_UPGD)(functools.partial(_upgd, protecting=False))


# Rivals of UPGD by its authors.


@method(
    "ada_upgd",
    family=styles.REGULARIZERS,
    replaces_optimizer=True,
    steps_like_adam=True,
    source="Elsayed and Mahmood 2024",
    hyperparameters={
        "ada_upgd_decay_rate": Hyperparameter(
            _default(optimizers.ada_upgd, "decay_rate"),
            *(DECAY, None, "decay of the utilities' average"),
            scale=scales.LOG_COMPLEMENT,
            search=(0.9, 0.9999),
        ),
        "ada_upgd_noise_scale": Hyperparameter(
            _default(optimizers.ada_upgd, "noise_scale"),
            *(FINITE, None, "standard deviation of the noise on Adam's direction"),
            values=(1e-1, 1e-2, 1e-3),
            search=(1e-4, 1e-1),
        ),
        "ada_upgd_weight_decay": Hyperparameter(
            _default(optimizers.ada_upgd, "weight_decay"),
            *(FINITE, None, "shrinkage of the params, times the step size"),
            search=(1e-4, 1e-1),
        ),
    },
)
def _ada_upgd(given: Ingredients) -> optax.GradientTransformation:
    return optimizers.ada_upgd(
        given.hyperparameters.step_size,
        decay_rate=given.hyperparameters.ada_upgd_decay_rate,
        noise_scale=given.hyperparameters.ada_upgd_noise_scale,
        weight_decay=given.hyperparameters.ada_upgd_weight_decay,
        key=given.key,
        noise=given.noise,
    )


@method(
    "pgd",
    family=styles.REGULARIZERS,
    replaces_optimizer=True,
    source="Elsayed and Mahmood 2024",
    hyperparameters={
        "pgd_noise_scale": Hyperparameter(
            *(1e-3, FINITE, 0.0, "standard deviation of the noise on the gradient"),
            values=(1e-1, 1e-2, 1e-3),
            search=(1e-4, 1e-1),
        ),
    },
)
def _pgd(given: Ingredients) -> optax.GradientTransformation:
    return optimizers.pgd(
        given.hyperparameters.step_size,
        noise_scale=given.hyperparameters.pgd_noise_scale,
        key=given.key,
        noise=given.noise,
    )


# Methods that reset hidden units: all go through `cbp_jax.reset_by_rule`.

_REPLACEMENT = {
    "resets_units": True,
    "hyperparameters": {
        "replacement_rate": Hyperparameter(
            _default(cbp_jax.continual_backprop, "replacement_rate"),
            *(FRACTION, 0.0, "fraction of eligible units replaced per update"),
            values=(1e-3, 1e-4, 1e-5),
            search=(1e-6, 1e-2),
        ),
        "decay_rate": Hyperparameter(
            _default(cbp_jax.continual_backprop, "decay_rate"),
            *(DECAY, None, "decay of the utilities' average"),
        ),
        "maturity_threshold": Hyperparameter(
            _default(cbp_jax.continual_backprop, "maturity_threshold"),
            *(NOT_NEGATIVE, None, "updates before a unit can be replaced"),
        ),
    },
}


@method(
    "continual_backprop",
    family=styles.REFERENCES,
    source="Dohare et al. 2024",
    **_REPLACEMENT,
)
def _continual_backprop(
    given: Ingredients, utility_fn: Any = cbp_jax.utility.overall
) -> optax.GradientTransformation:
    max_rate = given.largest("replacement_rate")
    return cbp_jax.continual_backprop(
        given.base,
        given.network.units(),
        replacement_rate=given.hyperparameters.replacement_rate,
        decay_rate=given.hyperparameters.decay_rate,
        maturity_threshold=given.hyperparameters.maturity_threshold,
        utility_fn=utility_fn,
        # Static, since array shapes depend on it: the bound for the largest rate.
        max_per_step=max(1, math.ceil(max_rate * given.widest_layer)),
        initializer=given.network.initializer(),
        key=given.key,
    )


for _name, _utility_fn in (
    ("random_replacement", cbp_jax.utility.random),
    ("inverted_replacement", cbp_jax.utility.inverted(cbp_jax.utility.overall)),
):
    method(_name, family=styles.CONTROLS, source="control", **_REPLACEMENT)(
        functools.partial(_continual_backprop, utility_fn=_utility_fn)
    )


@method(
    "redo",
    family=styles.RESETS,
    hyperparameters={
        "redo_threshold": Hyperparameter(
            _default(cbp_jax.redo, "threshold"),
            Range(-1, math.inf, includes_high=False),
            *(-1.0, "fraction of the layer's mean |h| up to which a unit is dormant"),
            values=(0.1, 0.025, 0.01),
        ),
        "redo_every": Hyperparameter(
            _default(cbp_jax.redo, "reset_every"),
            *(AT_LEAST_ONE, None, "updates between two resets"),
            scale=scales.CHOICE,
            search=(100, 300, 1000, 3000),
        ),
    },
    period="redo_every",
    resets_units=True,
    source="Sokar et al. 2023",
)
def _redo(given: Ingredients) -> optax.GradientTransformation:
    return cbp_jax.redo(
        given.base,
        given.network.units(),
        threshold=given.hyperparameters.redo_threshold,
        reset_every=given.hyperparameters.redo_every,
        is_check=given.acts,
        over_interval=True,
        initializer=given.network.initializer(),
        key=given.key,
    )


@method(
    "self_normalized_resets",
    family=styles.RESETS,
    hyperparameters={
        "snr_rejection_rate": Hyperparameter(
            _default(cbp_jax.self_normalized_resets, "rejection_rate"),
            *(DECAY, 0.0, "fraction of silences that count as too long"),
            values=(0.05, 0.02, 0.01),
        ),
        "snr_first_threshold": Hyperparameter(
            _default(cbp_jax.self_normalized_resets, "first_threshold"),
            *(FINITE, None, "updates of silence allowed without history"),
        ),
        "snr_lowest_threshold": Hyperparameter(
            _default(cbp_jax.self_normalized_resets, "lowest_threshold"),
            *(FINITE, None, "updates of silence always allowed"),
        ),
    },
    resets_units=True,
    source="Farias and Jozefiak 2025",
)
def _self_normalized_resets(given: Ingredients) -> optax.GradientTransformation:
    return cbp_jax.self_normalized_resets(
        given.base,
        given.network.units(),
        rejection_rate=given.hyperparameters.snr_rejection_rate,
        first_threshold=given.hyperparameters.snr_first_threshold,
        lowest_threshold=given.hyperparameters.snr_lowest_threshold,
        initializer=given.network.initializer(),
        key=given.key,
    )


# Methods that act at events: at the end of tasks, or every so many updates.


@method(
    "shrink_and_perturb_events",
    family=styles.EVENTS,
    hyperparameters={
        "shrink": Hyperparameter(
            _default(optimizers.shrink_and_perturb_at_events, "shrink"),
            *(FRACTION, 1.0, "factor on all parameters when a task ends"),
            values=(0.9, 0.6, 0.4),
            scale=scales.LINEAR,
            search=(0.1, 1.0),
        ),
        "perturb": Hyperparameter(
            _default(optimizers.shrink_and_perturb_at_events, "perturb"),
            *(FRACTION, 0.0, "factor on a new network added when a task ends"),
            search=(1e-3, 0.5),
        ),
    },
    sees_tasks=True,
    source="Ash and Adams 2020",
)
def _shrink_and_perturb(given: Ingredients) -> optax.GradientTransformation:
    return given.then(
        optimizers.shrink_and_perturb_at_events(
            given.at_task_ends(),
            given.init_params,
            shrink=given.hyperparameters.shrink,
            perturb=given.hyperparameters.perturb,
            key=given.key,
        )
    )


@method(
    "selective_weight_reinitialization",
    family=styles.RESETS,
    hyperparameters={
        "swr_fraction": Hyperparameter(
            0.2,
            FRACTION,
            0.0,
            "fraction of each tensor's weights redrawn",
            (0.4, 0.2, 0.05),
            search=(0.01, 0.5),
        ),
        "swr_every": Hyperparameter(
            *(2000, AT_LEAST_ONE, None, "updates between two reinitializations"),
            scale=scales.CHOICE,
            search=(200, 500, 1000, 2000),
        ),
    },
    period="swr_every",
    source="Hernandez-Garcia et al. 2025",
)
def _selective_weight_reinitialization(
    given: Ingredients,
) -> optax.GradientTransformation:
    return given.then(
        optimizers.selective_weight_reinitialization(
            given.every(given.hyperparameters.swr_every),
            given.init_params,
            fraction=given.hyperparameters.swr_fraction,
            key=given.key,
        )
    )


@method("fire", family=styles.EVENTS, sees_tasks=True, source="Han et al. 2026")
def _fire(given: Ingredients) -> optax.GradientTransformation:
    return given.then(optimizers.fire(given.at_task_ends()))


@method(
    "hare_and_tortoise",
    family=styles.EVENTS,
    hyperparameters={
        "hare_decay": Hyperparameter(
            _default(optimizers.hare_and_tortoise, "decay"),
            *(FRACTION, 0.0, "decay of the slow average of the parameters"),
            values=(0.9999, 0.999, 0.99),
            scale=scales.LOG_COMPLEMENT,
            search=(0.5, 0.99999),
        ),
        "hare_every": Hyperparameter(
            *(1000, AT_LEAST_ONE, None, "updates between two returns to the average"),
            scale=scales.CHOICE,
            search=(100, 300, 1000, 3000),
        ),
    },
    period="hare_every",
    evaluated_params=optimizers.slow_params,
    source="Lee et al. 2024",
)
def _hare_and_tortoise(given: Ingredients) -> optax.GradientTransformation:
    every = given.every(given.hyperparameters.hare_every)
    decay = given.hyperparameters.hare_decay
    return given.then(optimizers.hare_and_tortoise(every, decay=decay))


@method("head_reset", family=styles.CONTROLS, sees_tasks=True, source="control")
def _head_reset(given: Ingredients) -> optax.GradientTransformation:
    return given.then(
        optimizers.reset_params_at(
            given.at_task_ends(), given.init_params, layers="head", key=given.key
        )
    )


@method(
    "full_reset",
    family=styles.CONTROLS,
    sees_tasks=True,
    resets_network=True,
    source="control",
)
def _full_reset(given: Ingredients) -> optax.GradientTransformation:
    reset = optimizers.reset_params_at(
        given.at_task_ends(), given.init_params, key=given.key
    )
    return optimizers.reset_optimizer_at(given.then(reset), given.at_task_ends())


@method(
    "optimizer_reset",
    family=styles.CONTROLS,
    fields={"optimizer": "adam"},  # SGD has no state to reset.
    sees_tasks=True,
    source="control",
)
def _optimizer_reset(given: Ingredients) -> optax.GradientTransformation:
    return optimizers.reset_optimizer_at(given.base, given.at_task_ends())


@method(
    "adam_rel",
    family=styles.EVENTS,
    fields={"optimizer": "adam"},
    sees_tasks=True,
    optimizers=("adam", "adamw", "muon"),
    source="Ellis et al. 2024",
)
def _adam_rel(given: Ingredients) -> optax.GradientTransformation:
    return optimizers.reset_adam_count_at(given.base, given.at_task_ends())


# Methods that reset hidden units by the gradients of their incoming weights.


method(
    "continual_backprop_gradient",
    family=styles.RESETS,
    source="utility of Liu et al. 2025",
    **_REPLACEMENT,
)(functools.partial(_continual_backprop, utility_fn=cbp_jax.utility.gradient))


@method(
    "regrama",
    family=styles.RESETS,
    hyperparameters={
        "regrama_threshold": Hyperparameter(
            _default(cbp_jax.regrama, "threshold"),
            Range(-1, math.inf, includes_high=False),
            *(-1.0, "fraction of the layer's mean |gradient| up to which to reset"),
            values=(0.25, 0.1, 0.01),
        ),
        "regrama_every": Hyperparameter(
            _default(cbp_jax.regrama, "reset_every"),
            *(AT_LEAST_ONE, None, "updates between two resets"),
            scale=scales.CHOICE,
            search=(100, 300, 1000, 3000),
        ),
    },
    period="regrama_every",
    resets_units=True,
    source="Liu et al. 2025",
)
def _regrama(given: Ingredients) -> optax.GradientTransformation:
    return cbp_jax.regrama(
        given.base,
        given.network.units(),
        threshold=given.hyperparameters.regrama_threshold,
        reset_every=given.hyperparameters.regrama_every,
        is_check=given.acts,
        over_interval=True,
        initializer=given.network.initializer(),
        key=given.key,
    )


@method(
    "cpr",
    family=styles.RESETS,
    hyperparameters={
        "cpr_rate": Hyperparameter(
            _default(cbp_jax.cpr, "replacement_rate"),
            *(DECAY, 0.0, "largest fraction of a unit reset at once"),
            values=(0.05, 0.015, 0.005),
            search=(1e-3, 0.3),
        ),
        "cpr_sharpness": Hyperparameter(
            _default(cbp_jax.cpr, "sharpness"),
            *(FINITE, None, "how fast resets fade above the layer's mean |gradient|"),
        ),
        "cpr_decay_rate": Hyperparameter(
            _default(cbp_jax.cpr, "decay_rate"),
            *(DECAY, None, "decay of the average of the relative |gradient|"),
        ),
        "cpr_every": Hyperparameter(
            _default(cbp_jax.cpr, "reset_every"),
            *(AT_LEAST_ONE, None, "updates between two partial resets"),
        ),
    },
    period="cpr_every",
    resets_units=True,
    source="McCutcheon et al. 2026",
)
def _cpr(given: Ingredients) -> optax.GradientTransformation:
    return cbp_jax.cpr(
        given.base,
        given.network.units(),
        replacement_rate=given.hyperparameters.cpr_rate,
        sharpness=given.hyperparameters.cpr_sharpness,
        decay_rate=given.hyperparameters.cpr_decay_rate,
        reset_every=given.hyperparameters.cpr_every,
        is_check=given.acts,
        initializer=given.network.initializer(),
        key=given.key,
    )


# Losses that are added to the task's, see experiments/learning/added_loss.py, and
# penalties on the parameters.


@method(
    "l2_er",
    family=styles.LOSSES,
    hyperparameters={
        "er_step_size": Hyperparameter(
            1e-3,
            FINITE,
            0.0,
            "step size of the steps that increase the effective rank",
            (1e-2, 1e-3, 1e-4),
        ),
        "er_every": Hyperparameter(
            100, AT_LEAST_ONE, None, "mini-batches per step, whose features it takes"
        ),
    },
    fields={"weight_decay": 1e-4},
    period="er_every",
    adds_loss=True,
    sees_features=True,
    source="Prakash et al. 2026",
)
def _l2_er(given: Ingredients) -> AddedLoss:
    every = given.hyperparameters.er_every
    # Static, since it is the size of an array; a lane may use less of it.
    num_slots = math.ceil(given.largest("er_every"))

    def init(params: Any, network_state: Any, inputs: jax.Array) -> jax.Array:
        del params, network_state
        return jnp.zeros((num_slots, *inputs.shape), inputs.dtype)

    def remember(seen: Seen, stored: jax.Array) -> jax.Array:
        return stored.at[seen.num_updates % jnp.int32(every)].set(seen.inputs)

    def loss(seen: Seen, stored: jax.Array) -> jax.Array:
        inputs = stored.reshape(-1, *stored.shape[2:])
        _, features = given.evaluate(seen.params, seen.network_state, inputs)
        matrices = feature_matrices(given.network, features).values()
        # The authors leave out convolutions, whose positions would be many samples.
        dense = [layer for layer in matrices if len(layer) == len(inputs)]

        def used(layer: jax.Array) -> jax.Array:
            """Returns the layer with 0 in unused rows: singular values are the same."""
            num_rows = len(layer) // num_slots * every
            return jnp.where(jnp.arange(len(layer))[:, None] < num_rows, layer, 0)

        layers_used = [used(layer) for layer in dense or matrices]
        return losses.negative_effective_rank(layers_used)

    return AddedLoss(
        loss,
        init,
        remember,
        schedule=given.every(every),
        step_size=given.hyperparameters.er_step_size,
    )


@method(
    "feature_norm",
    family=styles.LOSSES,
    hyperparameters={
        "feature_norm_strength": Hyperparameter(
            1e-3,
            FINITE,
            0.0,
            "penalty on the squared norm of the features",
            (1e-2, 1e-3, 1e-4),
            search=(1e-5, 1e-1),
        )
    },
    adds_loss=True,
    sees_features=True,
    source="Lyle et al. 2024",
)
def _feature_norm(given: Ingredients) -> AddedLoss:
    def loss(seen: Seen, memory: None) -> jax.Array:
        del memory
        strength = given.hyperparameters.feature_norm_strength
        return strength * losses.feature_norm(seen.features)

    return AddedLoss(loss)


class ChurnMemory(NamedTuple):
    """What C-CHAIN remembers."""

    params: Any  # From before the last update.
    inputs: jax.Array  # [2, B, ...], of the last two updates, by turns.
    task_loss: jax.Array  # Running mean, scalar.
    churn: jax.Array  # Running mean, scalar.


@method(
    "c_chain",
    family=styles.LOSSES,
    hyperparameters={
        "chain_share": Hyperparameter(
            0.1, FINITE, 0.0, "churn as a share of the task's loss", (1.0, 0.1, 0.01)
        ),
        "chain_decay": Hyperparameter(
            0.99, DECAY, None, "decay of the running means of both losses"
        ),
    },
    adds_loss=True,
    source="Tang et al. 2025",
)
def _c_chain(given: Ingredients) -> AddedLoss:
    def init(params: Any, network_state: Any, inputs: jax.Array) -> ChurnMemory:
        del network_state
        return ChurnMemory(
            params=jax.tree.map(jnp.copy, params),
            inputs=jnp.zeros((2, *inputs.shape), inputs.dtype),
            task_loss=jnp.zeros(()),
            churn=jnp.zeros(()),
        )

    def churn(seen: Seen, memory: ChurnMemory) -> jax.Array:
        # Of two updates ago: the last update was made for the last inputs.
        inputs = memory.inputs[seen.num_updates % 2]
        outputs, earlier = (
            given.evaluate(params, seen.network_state, inputs)[0]
            for params in (seen.params, memory.params)
        )
        has_classes = jnp.issubdtype(seen.targets.dtype, jnp.integer)
        kind = "cross_entropy" if has_classes else "squared_error"
        has_inputs = seen.num_updates >= 2
        return jnp.where(has_inputs, losses.churn(outputs, earlier, kind=kind), 0)

    def loss(seen: Seen, memory: ChurnMemory) -> jax.Array:
        share = given.hyperparameters.chain_share
        strength = share * memory.task_loss / (memory.churn + 1e-8)
        return jnp.where(memory.churn > 0, strength, 0) * churn(seen, memory)

    def remember(seen: Seen, memory: ChurnMemory) -> ChurnMemory:
        decay = given.hyperparameters.chain_decay
        is_measured = seen.num_updates >= 2

        def average(mean: jax.Array, value: jax.Array) -> jax.Array:
            # Both means lack the same factor in the first updates.
            return jnp.where(is_measured, decay * mean + (1 - decay) * value, mean)

        return ChurnMemory(
            params=seen.params,
            inputs=memory.inputs.at[seen.num_updates % 2].set(seen.inputs),
            task_loss=average(memory.task_loss, jnp.abs(seen.task_loss)),
            churn=average(memory.churn, churn(seen, memory)),
        )

    return AddedLoss(loss, init, remember)


class InferMemory(NamedTuple):
    """What InFeR remembers, and its heads."""

    initial_params: Any
    initial_network_state: Any
    initial_heads: jax.Array  # [features, heads]
    heads: jax.Array  # [features, heads]


@method(
    "infer",
    family=styles.LOSSES,
    hyperparameters={
        "infer_strength": Hyperparameter(
            0.1,
            FINITE,
            0.0,
            "penalty on changes of random functions of the features",
            (0.1, 0.01, 0.001),
            search=(1e-4, 1.0),
        ),
        "infer_scale": Hyperparameter(
            _default(losses.infer, "scale"),
            *(FINITE, None, "factor on the initial values of these functions"),
        ),
    },
    # SGD diverges at the published strength and scale.
    fields={"optimizer": "adam"},
    adds_loss=True,
    sees_features=True,
    source="Lyle et al. 2022",
)
def _infer(given: Ingredients) -> AddedLoss:
    def last_layer(features: Any) -> jax.Array:
        name = given.network.units()[-1].name
        return feature_matrices(given.network, features)[name]

    def init(params: Any, network_state: Any, inputs: jax.Array) -> InferMemory:
        _, features = given.evaluate(params, network_state, inputs)
        heads = losses.infer_heads(given.key, last_layer(features).shape[-1])
        copied = jax.tree.map(jnp.copy, (params, network_state, heads))
        return InferMemory(*copied, heads)

    def loss_of_heads(heads: jax.Array, seen: Seen, memory: InferMemory) -> jax.Array:
        _, initial_features = given.evaluate(
            memory.initial_params, memory.initial_network_state, seen.inputs
        )
        return given.hyperparameters.infer_strength * losses.infer(
            last_layer(seen.features),
            last_layer(initial_features),
            heads,
            memory.initial_heads,
            scale=given.hyperparameters.infer_scale,
        )

    def loss(seen: Seen, memory: InferMemory) -> jax.Array:
        return loss_of_heads(memory.heads, seen, memory)

    def remember(seen: Seen, memory: InferMemory) -> InferMemory:
        grads = jax.grad(loss_of_heads)(memory.heads, seen, memory)
        heads = memory.heads - given.hyperparameters.step_size * grads
        return memory._replace(heads=heads)

    return AddedLoss(loss, init, remember)


@method(
    "parseval",
    family=styles.REGULARIZERS,
    hyperparameters={
        "parseval_strength": Hyperparameter(
            1e-3,
            FINITE,
            0.0,
            "penalty on the distance of hidden layers from orthogonal rows",
            (1e-3, 1e-4, 1e-5),
            search=(1e-5, 1e-2),
        )
    },
    source="Chung et al. 2024",
)
def _parseval(given: Ingredients) -> optax.GradientTransformation:
    strength = given.hyperparameters.parseval_strength
    penalty = optimizers.parseval(strength, exclude=("head",))
    return optax.chain(penalty, given.base)


@method(
    "adamo",
    family=styles.REGULARIZERS,
    hyperparameters={
        "isometry_strength": Hyperparameter(
            _default(optimizers.adamo, "strength"),
            FINITE,
            0.0,
            "pull toward isometry outside Adam's moments, times the step size",
            (1e-2, 1e-3, 1e-4),
            search=(1e-5, 1e-1),
        )
    },
    fields={"optimizer": "adam"},
    source="Rosseau et al. 2026",
)
def _adamo(given: Ingredients) -> optax.GradientTransformation:
    step_size = given.hyperparameters.step_size
    strength = given.hyperparameters.isometry_strength
    return given.then(optimizers.isometry(-step_size * strength))


@method(
    "wasserstein_init",
    family=styles.REGULARIZERS,
    hyperparameters={
        "wasserstein_strength": Hyperparameter(
            1e-3,
            FINITE,
            0.0,
            "penalty on the distance of each tensor's entries from the initial ones",
            (1e-2, 1e-3, 1e-4),
            search=(1e-5, 1e-1),
        ),
        "wasserstein_every": Hyperparameter(
            *(100, AT_LEAST_ONE, None, "updates between two rankings of the entries")
        ),
    },
    period="wasserstein_every",
    source="Lewandowski et al. 2023",
)
def _wasserstein_init(given: Ingredients) -> optax.GradientTransformation:
    strength = given.hyperparameters.wasserstein_strength
    every = given.every(given.hyperparameters.wasserstein_every)
    return optax.chain(optimizers.wasserstein_init(strength, every), given.base)


@method(
    "l1_init",
    family=styles.REGULARIZERS,
    hyperparameters={
        "l1_init_strength": Hyperparameter(
            1e-4,
            FINITE,
            0.0,
            "L1 toward the initial parameters",
            (1e-3, 1e-4, 1e-5),
            search=(1e-6, 1e-2),
        )
    },
    source="Kumar et al. 2023",
)
def _l1_init(given: Ingredients) -> optax.GradientTransformation:
    penalty = optimizers.l1_init(given.hyperparameters.l1_init_strength)
    return optax.chain(penalty, given.base)


@method(
    "dash",
    family=styles.EVENTS,
    hyperparameters={
        "dash_lowest": Hyperparameter(
            _default(optimizers.dash, "lowest"),
            FRACTION,
            1.0,
            "lowest factor on a unit's weights when a task ends",
            (0.3, 0.1, 0.05),
            search=(0.05, 0.9),
        ),
        "dash_smoothing": Hyperparameter(
            _default(optimizers.dash, "smoothing"),
            *(FRACTION, None, "weight of a gradient in their running average"),
        ),
    },
    sees_tasks=True,
    source="Shin et al. 2024",
)
def _dash(given: Ingredients) -> optax.GradientTransformation:
    return optimizers.dash(
        given.base,
        given.at_task_ends(),
        smoothing=given.hyperparameters.dash_smoothing,
        lowest=given.hyperparameters.dash_lowest,
    )


def hyperparameters_of(fields: Mapping[str, Any]) -> dict[str, Hyperparameter]:
    """Returns the hyperparameters that a case takes.

    Args:
      fields: fields of its config, including `method`, `optimizer`, `normalization`,
        `activation` and the numbers of layers. Unknown names have no hyperparameters;
        the learner's checks report them.
    """
    method = METHODS.get(fields["method"])
    replaces_optimizer = method is not None and method.replaces_optimizer
    found = optimizer_hyperparameters(
        None if replaces_optimizer else fields["optimizer"], fields
    )
    found |= _NORMALIZATION_HYPERPARAMETERS.get(fields["normalization"], {})
    found |= _ACTIVATION_HYPERPARAMETERS.get(fields["activation"], {})
    if method is not None:
        found |= method.hyperparameters
    return found
