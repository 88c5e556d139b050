"""The methods that a case can use, and the hyperparameters that can differ by lane.

Each method is one declaration, `method`: its hyperparameters with published values,
ranges, off values and values to try; its family in figures; and the function that puts
it around, before or after the optimizer. Configs, sweeps, lanes, checks, comparisons
and figures all read it. L2, online shrink and perturb, dropout and Adam are fields of
the optimizer; normalizations and activations are fields of the network. They work with
every method, and experiments/learning/variants.py gives them names in comparisons.
"""

from collections.abc import Callable, Mapping
import functools
import inspect
import math
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import cbp_jax
from cbp_jax import layers, optimizers
from experiments.learning.checks import ConfigError
from experiments.reporting import scales, styles


class Range(NamedTuple):
    """The allowed values of a hyperparameter."""

    low: float
    high: float
    includes_high: bool

    def __str__(self) -> str:
        """Writes the range, with a square bracket for an included end."""
        return f"[{self.low:g}, {self.high:g}{']' if self.includes_high else ')'}"

    def check(self, name: str, value: float) -> None:
        """Raises ConfigError unless a value, rounded to float32, is in the range."""
        try:
            with np.errstate(over="ignore"):
                rounded = np.float32(float(value))
        except (OverflowError, TypeError, ValueError) as error:
            raise ConfigError(
                f"config.{name} must be a number in {self}, got {value!r}."
            ) from error
        below = rounded <= self.high if self.includes_high else rounded < self.high
        if not (self.low <= rounded and below):
            is_exact = math.isnan(value) or float(rounded) == value
            as_float32 = "" if is_exact else f", which is {rounded} in float32"
            raise ConfigError(
                f"config.{name} must be in {self}, got {value}{as_float32}."
            )


FINITE = Range(0, math.inf, includes_high=False)
AT_LEAST_ONE = Range(1, math.inf, includes_high=False)
NOT_NEGATIVE = Range(0, math.inf, includes_high=True)
FRACTION = Range(0, 1, includes_high=True)
DECAY = Range(0, 1, includes_high=False)


class Hyperparameter(NamedTuple):
    """A number that a method, an optimizer or a normalization takes.

    Attributes:
      default: the published or usual value, which is the library's default if it has
        one.
      range: its allowed values.
      off: the value at which it has no effect, or None. If all lanes have this value,
        no code is compiled for it.
      meaning: its description, with its unit.
      values: the values that comparisons try; empty for only the default.
      scale: the scale on which searches spread their trials, one of
        `experiments.reporting.scales.SCALES`.
      search: the lowest and the highest value of the usual search, or the values to
        choose from; empty for those of `values`.
    """

    default: float
    range: Range
    off: float | None
    meaning: str
    values: tuple[float, ...] = ()
    scale: str = scales.LOG
    search: tuple[float, ...] = ()

    @property
    def usual_search(self) -> tuple[float, ...]:
        """The range of the usual search, or the values to choose from; or empty."""
        if self.search or not self.values or self.scale == scales.CHOICE:
            return self.search or self.values
        ends = min(self.values), max(self.values)
        can_search = ends[0] < ends[1] and scales.is_on(self.scale, ends)
        return ends if can_search else ()

    def check(self, name: str) -> None:
        """Raises ConfigError if any of its values is out of range."""
        for value in (self.default, self.off, *self.values):
            if value is not None:
                self.range.check(name, value)
        if self.scale not in scales.SCALES:
            raise ConfigError(
                f"The scale of {name!r} is {self.scale!r}: choose one of "
                f"{list(scales.SCALES)}."
            )
        if self.usual_search:
            self.check_search(f"search.{name}", self.usual_search)

    def check_search(self, path: str, ends: Any) -> None:
        """Raises ConfigError unless it can be searched in a range.

        Args:
          path: the field of the config that holds the range.
          ends: the lowest and the highest value; for a choice, the values.
        """
        is_choice = self.scale == scales.CHOICE
        if not isinstance(ends, list | tuple) or (not is_choice and len(ends) != 2):
            form = "(VALUE, VALUE, ...)" if is_choice else "(LOW, HIGH)"
            raise ConfigError(
                f"config.{path} is {ends!r}, which is no "
                f"{'choice of values' if is_choice else 'range'}: write {form}."
            )
        for value in ends:
            self.range.check(path, value)
        if is_choice:
            if len(set(ends)) < len(ends):
                raise ConfigError(
                    f"config.{path} contains a value twice: {ends}. Remove the "
                    "duplicate."
                )
            return
        if not ends[0] < ends[1]:
            raise ConfigError(
                f"config.{path} is {ends}, but its first value must be lower than its "
                "second: write (LOW, HIGH)."
            )
        if not scales.is_on(self.scale, ends):
            raise ConfigError(
                f"config.{path} is {ends}, which does not fit on the scale "
                f"{self.scale!r}: write a range of finite values above 0."
            )


Hyperparameters = Mapping[str, Hyperparameter]


def _default(function: Callable[..., Any], parameter: str) -> float:
    """Returns the default of a parameter of a function."""
    return inspect.signature(function).parameters[parameter].default


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
    acts: (
        bool | None
    )  # Whether the method acts at this update, if known; see `Learner`.
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


class Method(NamedTuple):
    """A method and its properties.

    Attributes:
      build: maps the ingredients to an optax transformation.
      hyperparameters: the method's hyperparameters, by config field. If all that have
        an off value are off in all lanes, `build` is not called, and the learner uses
        the base optimizer. A method without off values is never off.
      family: its group in figures, one of `experiments.reporting.styles.FAMILIES`.
      fields: other config fields that comparisons set for it, in addition to the first
        of `normalizations`.
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
      evaluated_params: maps its state to the params to evaluate; None for the params in
        training.
      normalizations: the normalizations that it requires; empty for any or none.
      source: where it was published.
    """

    build: Callable[[Ingredients], optax.GradientTransformation]
    hyperparameters: Hyperparameters = MappingProxyType({})
    family: str = styles.OTHERS
    fields: Mapping[str, Any] = MappingProxyType({})
    resets_units: bool = False
    sees_tasks: bool = False
    period: str | None = None
    resets_network: bool = False
    replaces_optimizer: bool = False
    evaluated_params: Callable[[Any], Any] | None = None
    normalizations: tuple[str, ...] = ()
    source: str = ""


_METHODS: dict[str, Method] = {}
METHODS: Mapping[str, Method] = MappingProxyType(_METHODS)
"""All methods, by their name in `config.method`."""

_HYPERPARAMETERS: dict[str, Hyperparameter] = {}
HYPERPARAMETERS: Hyperparameters = MappingProxyType(_HYPERPARAMETERS)
"""All config fields that may differ between the lanes of one program."""


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

    def enter(build: Callable[[Ingredients], optax.GradientTransformation]) -> Any:
        declared = Method(build, **fields)
        if name in _METHODS:
            raise ValueError(f"A method {name!r} already exists; choose another name.")
        _add_hyperparameters(declared.hyperparameters)
        styles.add_method(name, declared.family)
        _METHODS[name] = declared
        return build

    return enter


def _add_hyperparameters(hyperparameters: Hyperparameters) -> None:
    for name, hyperparameter in hyperparameters.items():
        if _HYPERPARAMETERS.get(name, hyperparameter) != hyperparameter:
            raise ValueError(
                f"The hyperparameter {name!r} is declared twice, as "
                f"{_HYPERPARAMETERS[name]} and as {hyperparameter}; prefix its name "
                "with that of its method."
            )
        hyperparameter.check(name)
    _HYPERPARAMETERS.update(hyperparameters)


OPTIMIZER_HYPERPARAMETERS: Hyperparameters = MappingProxyType(
    {
        "step_size": Hyperparameter(
            *(0.01, FINITE, None, "step size"), search=(1e-4, 0.1)
        ),
        "momentum": Hyperparameter(0.0, DECAY, 0.0, "momentum of SGD"),
        "b1": Hyperparameter(
            _default(optax.adam, "b1"), DECAY, None, "decay of Adam's first moments"
        ),
        "b2": Hyperparameter(
            _default(optax.adam, "b2"), DECAY, None, "decay of Adam's second moments"
        ),
        "weight_decay": Hyperparameter(
            *(0.0, FINITE, 0.0, "L2 on all parameters, added to the gradient"),
            search=(1e-6, 1e-2),
        ),
        "noise_scale": Hyperparameter(
            *(0.0, FINITE, 0.0),
            "standard deviation of noise on all parameters per update",
            search=(1e-7, 1e-3),
        ),
        "dropout_rate": Hyperparameter(
            *(0.0, DECAY, 0.0, "fraction of hidden activations dropped"),
            search=(1e-3, 0.3),
        ),
    }
)
"""Hyperparameters of all methods; see `optimizer_hyperparameters`."""

_OF_ONE_OPTIMIZER = {"momentum": "sgd", "b1": "adam", "b2": "adam"}
_OF_ANY_UPDATE = ("step_size", "dropout_rate")

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
_add_hyperparameters(OPTIMIZER_HYPERPARAMETERS)
for _group in _NORMALIZATION_HYPERPARAMETERS.values():
    _add_hyperparameters(_group)


# Methods that act on every gradient or update: before or after the optimizer.


@method("backprop", family=styles.REFERENCES)
def _backprop(given: Ingredients) -> optax.GradientTransformation:
    return given.base


@method(
    "l2_init",
    family=styles.REGULARIZERS,
    hyperparameters={
        "l2_init_strength": Hyperparameter(
            1e-3, FINITE, 0.0, "L2 toward the initial parameters", (1e-2, 1e-3, 1e-4)
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
            search=(0.9, 0.99999),
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


def optimizer_hyperparameters(
    optimizer: str | None, fields: Mapping[str, Any]
) -> dict[str, Hyperparameter]:
    """Returns the hyperparameters that a learner takes because of its optimizer.

    Args:
      optimizer: its name, or None for a method that is itself an optimizer.
      fields: fields of its config; a linear model has no dropout.
    """
    is_linear = not (fields["hidden_layers"] or fields.get("conv_channels"))
    return {
        name: hyperparameter
        for name, hyperparameter in OPTIMIZER_HYPERPARAMETERS.items()
        if (
            name in _OF_ANY_UPDATE
            or (optimizer and _OF_ONE_OPTIMIZER.get(name, optimizer) == optimizer)
        )
        and not (is_linear and name == "dropout_rate")
    }


def hyperparameters_of(fields: Mapping[str, Any]) -> dict[str, Hyperparameter]:
    """Returns the hyperparameters that a case takes.

    Args:
      fields: fields of its config, including `method`, `optimizer`, `normalization` and
        the numbers of layers. Unknown names have no hyperparameters; the learner's
        checks report them.
    """
    method = METHODS.get(fields["method"])
    replaces_optimizer = method is not None and method.replaces_optimizer
    found = optimizer_hyperparameters(
        None if replaces_optimizer else fields["optimizer"], fields
    )
    found |= _NORMALIZATION_HYPERPARAMETERS.get(fields["normalization"], {})
    if method is not None:
        found |= method.hyperparameters
    return found
