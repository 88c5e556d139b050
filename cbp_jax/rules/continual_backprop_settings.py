"""The options of continual backprop, checked."""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple
import warnings

import jax
import numpy as np

from cbp_jax.checks import check_choice, check_range, is_known, is_traced
from cbp_jax.resets.units import UnitGroup
from cbp_jax.utility import UtilityFn

# After so many times 1 / (1 - decay) updates an average has all but 5 % of its weight.
_SHORT = 3

Rate = float | jax.Array | Callable[[jax.Array], jax.Array]


class Settings(NamedTuple):
    """The options of `continual_backprop` that decide who is replaced by what."""

    replacement_rate: Rate
    decay_rate: float | jax.Array
    maturity_threshold: int | float | jax.Array
    utility_fn: UtilityFn
    budget: str
    count: str
    max_per_step: int | None
    bias_correction: bool
    axis_name: Any

    @property
    def utility_decay(self) -> float | jax.Array:
        """Decay of the utilities' running average: 0 if it has no memory."""
        is_memoryless = getattr(self.utility_fn, "memoryless", False)
        return 0.0 if is_memoryless else self.decay_rate

    def rate_of(self, group: UnitGroup) -> Rate:
        """Returns the group's own replacement rate, or the common one."""
        own = group.replacement_rate
        return self.replacement_rate if own is None else own

    def never_replaces(self, group: UnitGroup) -> bool:
        """Whether it is known in advance that no unit is ever replaced."""
        rate, maturity = self.rate_of(group), self.maturity_threshold
        is_off = not callable(rate) and is_known(rate, lambda rate: rate == 0)
        return is_off or is_known(maturity, np.isposinf)

    def bound(self, group: UnitGroup, num_units: int) -> int:
        """Returns K, the most units of the group that are replaced in one step."""
        if self.max_per_step is not None:
            return min(self.max_per_step, num_units)
        return max(1, math.ceil(float(self.rate_of(group)) * num_units))

    @property
    def ranks_too_early(self) -> bool:
        """Whether it is known that averages are ranked that have hardly begun."""
        if self.bias_correction or is_traced(self.maturity_threshold):
            return False
        if is_traced(self.utility_decay):
            return False
        memory = 1 / (1 - np.asarray(self.utility_decay, float))
        maturity = np.asarray(self.maturity_threshold, float)
        # 0 asks for no protection, and without memory there is nothing to correct.
        return bool(
            np.any((maturity > 0) & (maturity < _SHORT * memory) & (memory > 1))
        )

    def check(self, units: Sequence[UnitGroup]) -> None:
        """Raises ValueError for an option out of range or unknown."""
        if not callable(self.replacement_rate):
            check_range("replacement_rate", self.replacement_rate, 0, 1)
        check_range("decay_rate", self.decay_rate, 0, 1, open_end=True)
        check_range("maturity_threshold", self.maturity_threshold, 0, math.inf)
        check_choice("budget", self.budget, ("accumulate", "bernoulli"))
        check_choice("count", self.count, ("eligible", "all"))
        if self.max_per_step is not None and self.max_per_step < 1:
            raise ValueError(
                f"max_per_step must be at least 1, got {self.max_per_step}."
            )
        for group in units:
            rate = self.rate_of(group)
            kind = "a schedule" if callable(rate) else "traced"
            if not callable(rate):
                name = f"replacement_rate of unit group {group.name!r}"
                check_range(name, rate, 0, 1)
            if self.max_per_step is None and (callable(rate) or is_traced(rate)):
                raise ValueError(
                    f"The replacement_rate of unit group {group.name!r} is {kind}, so "
                    "the number of units replaced in a step has no static bound. Pass "
                    "max_per_step: 1, or ceil(largest rate x units)."
                )
        if self.ranks_too_early and not all(map(self.never_replaces, units)):
            warnings.warn(
                f"maturity_threshold is {self.maturity_threshold} and decay_rate "
                f"{self.decay_rate}, without bias_correction: the utilities of units "
                "that have just matured are still near 0, so that mostly newborn units "
                "are replaced. Pass bias_correction=True, or a maturity_threshold of "
                f"at least {_SHORT} / (1 - decay_rate).",
                stacklevel=3,
            )
