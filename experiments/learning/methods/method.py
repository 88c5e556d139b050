"""What a method is: what it takes, and how its update is built."""

from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import jax
import optax

from cbp_jax.optimizers import every
from experiments.learning.hyperparameters import Hyperparameter


class Ingredients(NamedTuple):
    """What a method is built from, for one learner."""

    hyperparameters: SimpleNamespace  # Numbers by name, traced where lanes may differ.
    base: optax.GradientTransformation  # The optimizer with L2 before, noise behind.
    network: Any
    init_params: Callable[[jax.Array], Any]  # From a key.
    weight_bounds: Callable[[str, tuple[int, ...]], float]  # See `clip_weights`.
    noise: str  # Its distribution, see `cbp_jax.optimizers.perturb`.
    max_replaced: int  # Most units of a layer that a rate can replace in one update.
    updates_per_task: int
    key: jax.Array

    def at_task_ends(self) -> Callable[[jax.Array], jax.Array]:
        """Returns the schedule of the last updates of all tasks."""
        return every(self.updates_per_task)


class Method(NamedTuple):
    """A method and what it takes.

    Attributes:
      build: from the ingredients to an optax transformation.
      hyperparameters: its own, by the name of their config field. With those that have
        an off value there, the method is the base optimizer, bit for bit; one without
        any off value is never off.
      resets_units: whether its state is a `cbp_jax.UnitResetState`, which the log and
        the measures of ages and resets read.
      sees_tasks: whether it is told when a task ends, as its definition wants.
      resets_network: whether it draws the whole network afresh at the end of a task, so
        that statistics of normalizations are born again, too.
      replaces_optimizer: whether it is an optimizer itself, and takes nothing but the
        step size from the config's.
      evaluated_params: from its state to the params to evaluate, where these are not
        the ones in training.
      normalizations: those that it is defined with; empty for any or none.
      source: where it was published.
    """

    build: Callable[[Ingredients], optax.GradientTransformation]
    hyperparameters: Mapping[str, Hyperparameter] = MappingProxyType({})
    resets_units: bool = False
    sees_tasks: bool = False
    resets_network: bool = False
    replaces_optimizer: bool = False
    evaluated_params: Callable[[Any], Any] | None = None
    normalizations: tuple[str, ...] = ()
    source: str = ""
