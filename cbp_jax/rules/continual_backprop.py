"""Continual backprop as an optax gradient transformation.

Shapes: N units of a group, K units of a group replaced at most in one step.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import optax

from cbp_jax import utility
from cbp_jax.averages import at_least_float32
from cbp_jax.resets.resolution import resolve_units
from cbp_jax.resets.transform import UnitResetState, reset_by_rule
from cbp_jax.resets.units import Initializer, UnitGroup, as_groups
from cbp_jax.rules.continual_backprop_settings import Rate, Settings
from cbp_jax.rules.low_utility import low_utility, warn_of_nan

_UTILITIES = (  # Known to be finite wherever their measurements are.
    utility.contribution,
    utility.mean_corrected_contribution,
    utility.adaptation,
    utility.overall,
    utility.weight_magnitude,
    utility.activation_over_input,
    utility.random,
)

ContinualBackpropState = UnitResetState
"""State of `continual_backprop` and `replace_units`; its groups hold `UnitState`."""


def continual_backprop(
    base_optimizer: optax.GradientTransformation,
    units: Sequence[UnitGroup],
    *,
    replacement_rate: Rate = 1e-4,
    decay_rate: float | jax.Array = 0.99,
    maturity_threshold: int | float | jax.Array = 100,
    utility_fn: utility.UtilityFn = utility.overall,
    initializer: Initializer | None = None,
    key: jax.Array,
    budget: str = "accumulate",
    count: str = "eligible",
    max_per_step: int | None = None,
    bias_correction: bool = True,
    moments: str = "zero",
    keep_state: Sequence[str] = (),
    transfer_mean: bool = False,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Base optimizer, followed by the replacement of mature units of low utility.

    At each update, after the base optimizer's step, every unit `i` ages by one and its
    utility is averaged, with :math:`h` the activations from before the step, weights
    :math:`w` from after it, and :math:`a_i` the age,

    .. math::
      f_i &\leftarrow \eta f_i + (1 - \eta) h_i, \quad
        \hat f_i = f_i / (1 - \eta^{a_i}) \\
      u_i &\leftarrow \eta u_i + (1 - \eta) y_i(h, \hat f, w), \quad
        \hat u_i = u_i / (1 - \eta^{a_i})

    where :math:`y` is `utility_fn`. Units with :math:`a_i > m` are eligible. On average
    `replacement_rate` x eligible units of the group with the lowest :math:`\hat u` are
    replaced: incoming weights are drawn afresh, biases and outgoing weights become 0,
    and so do utility, mean activation and age. All groups are measured first, then
    rewritten in order.

    The returned updates are those of the base optimizer, except on reset entries, where
    they lead to the new value. Nothing that scales updates may be chained after it.
    Build the transformation inside a vmapped function if every lane is to have its own
    `key` or hyper-parameters; all numbers may be traced arrays.

    Example::

      units = cbp_jax.sequential_units(("dense_0", "dense_1", "head"))
      tx = cbp_jax.continual_backprop(optax.sgd(3e-3), units, key=jax.random.key(0))
      state = tx.init(params)
      updates, state = tx.update(grads, state, params, features=features)
      params = optax.apply_updates(params, updates)

    Args:
      base_optimizer: an optax transformation that moves the params at every call, see
        `reset_by_rule`. The update passes it `features`, `unit_ages` (see
        `cbp_jax.optimizers.adam_with_unit_counts`) and all other extra arguments, as
        far as it takes them. A `value_fn`, the loss that a line search calls, is given
        the first two only if it names them.
      units: groups of hidden units, or the names of a chain's layers, see
        `UnitGroup` and `sequential_units`.
      replacement_rate: fraction of eligible units replaced per update, in [0, 1]. 0 is
        the base optimizer, bit for bit. Or a schedule, a function of the updates so
        far, int32, as those of optax.
      decay_rate: :math:`\eta`, of both running averages, in [0, 1).
      maturity_threshold: :math:`m`, in updates; infinity replaces nobody.
      utility_fn: instantaneous utility, see `cbp_jax.utility`. A unit whose utility is
        not finite is not replaced at this update; if it has been NaN since the unit was
        born, so is the average in the state.
      initializer: `jax.nn.initializers`-style function of fresh incoming weights; give
        the one that the network was initialized with. It draws a whole kernel
        `[..., fan_in, N]`, of which a reborn unit takes its column, unless it is marked
        by `cbp_jax.initializers.unit_by_unit`. None is `kaiming_uniform("relu")`.
      key: PRNG key of fresh weights and random utilities, typed or of
        `jax.random.PRNGKey`. Under `vmap` it must be of "threefry2x32", JAX's default,
        if a lane is to be what it is alone: for batched keys of "rbg" and "unsafe_rbg"
        JAX draws all numbers by the first lane's key, so that the same seed gives other
        ones beside other seeds. `jax.random.key(seed, impl="threefry2x32")` is right
        whatever `JAX_DEFAULT_PRNG_IMPL` says.
      budget: "accumulate" carries the fraction of a unit that is due over to the next
        step, "bernoulli" replaces one more unit with that probability. Whole units that
        are due but cannot be replaced, because fewer are eligible or because of
        `max_per_step`, are forgotten.
      count: "eligible" makes rate x eligible units due in a step, "all" rate x N as
        soon as any unit of the group is eligible.
      max_per_step: static bound K on the units of a group replaced in one step; None is
        max(1, ceil(rate x N)), which never binds. Needed where the rate is traced, or a
        schedule.
      bias_correction: rank by the age-corrected utility; False ranks by :math:`u`
        itself, which makes units that have just matured look bad unless the maturity
        threshold is long against 1 / (1 - decay_rate): there is a warning below three
        times that.
      moments: "zero" resets the base optimizer's moments of reborn units, to what its
        `init` gives; "keep" leaves them. Arrays of the base state that are not shaped
        like a param (step counts, Adafactor's factors, Shampoo's matrices) are always
        left. A global step count then makes Adam's first steps of a reborn unit too
        long: `cbp_jax.optimizers.adam_with_unit_counts` does not have this fault. A
        base with L-BFGS starts anew as a whole. Line searches forget the loss of the
        params from before a reset in either case.
      keep_state: names of fields of the base state not to reset although they are
        shaped like the params, for example `("init_params",)` of `optax.contrib.dog`.
      transfer_mean: add a replaced unit's mean activation times its outgoing weights to
        its consumers' biases (`UnitGroup.outgoing_bias`). Not in the paper.
      axis_name: name of the axis of `jax.shard_map` or `jax.pmap` over which a batch is
        split while the params are the same everywhere: mean activations and utilities
        are averaged over it, so that all replicas reset the same units. The gradients
        must have been averaged. Under `jax.jit` sharded arrays need nothing.

    Returns:
      An `optax.GradientTransformationExtraArgs` of state `ContinualBackpropState`. Its
      update needs `params` and the keyword `features`: a mapping from each group's name
      to the activations of this step's batch, `[batch, ..., N]`; other entries are
      ignored. Inside `optax.MultiSteps` ages count optimizer updates, and utilities see
      the features of the last mini-batch.

    Raises:
      ValueError: an option out of range or unknown, when built; a group that does not
        fit the params, a base optimizer that `reset_by_rule` refuses, or a field of
        `keep_state` that its state does not have, at `init`; missing params or
        features, or features or utilities of a wrong shape, at `update`.

    Warns:
      UserWarning: averages are ranked that have hardly begun, see `bias_correction`,
        when built; a `utility_fn` of one's own gives NaN for made-up units, of which
        some are never active or have no weights, at `init`.

    References:
      Dohare et al., `Loss of plasticity in deep continual learning
      <https://doi.org/10.1038/s41586-024-07711-7>`_, Nature 632, 2024, Algorithm 1;
      preprint `arXiv:2306.13812 <https://arxiv.org/abs/2306.13812>`_.
    """
    units = as_groups(units)
    settings = Settings(
        replacement_rate=replacement_rate,
        decay_rate=decay_rate,
        maturity_threshold=maturity_threshold,
        utility_fn=utility_fn,
        budget=budget,
        count=count,
        max_per_step=max_per_step,
        bias_correction=bias_correction,
        axis_name=axis_name,
    )
    settings.check(units)
    transformation = reset_by_rule(
        base_optimizer,
        units,
        functools.partial(low_utility, settings),
        initializer=initializer,
        key=key,
        moments=moments,
        keep_state=keep_state,
        transfer_mean=transfer_mean,
        frozen=settings.never_replaces,
    )

    def init(params: Any) -> ContinualBackpropState:
        leaves = jax.tree.leaves(params)
        if leaves and utility_fn not in _UTILITIES:
            for group in resolve_units(units, params):
                if settings.never_replaces(group.group):
                    continue
                dtype = at_least_float32(leaves[group.incoming[0].leaf].dtype)
                warn_of_nan(
                    utility_fn, group.name, group.num_units, group.positions, dtype
                )
        return transformation.init(params)

    return optax.GradientTransformationExtraArgs(init, transformation.update)


def replace_units(
    units: Sequence[UnitGroup], **options: Any
) -> optax.GradientTransformationExtraArgs:
    """The same algorithm as the last link of an `optax.chain`.

    Example::

      tx = optax.chain(optax.adam(1e-3), cbp_jax.replace_units(units, key=key))
      updates, state = tx.update(grads, state, params, features=features)

    The links before it cannot be reached from here, so no moments are reset. A line
    search among them hands all extra arguments on to its loss: give that a parameter
    `features`, or make the chain the base of `continual_backprop`, which needs none.

    Args:
      units: as for `continual_backprop`.
      **options: as for `continual_backprop`.

    Returns:
      As `continual_backprop`.
    """
    return continual_backprop(optax.identity(), units, **options)
