"""Refuses base optimizers that do not work with unit resets, before training starts.

To find out what a base does, we run it on params with a single entry per leaf. This
takes a moment, so we only do it if its program could fail one of the checks.
"""

from collections.abc import Callable, Sequence
import inspect
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun
import jax.numpy as jnp
import numpy as np
import optax

from cbp_jax._numbers import is_traced
from cbp_jax._trees import owners_of, starts_anew
from cbp_jax._types import PyTree

_NUM_UPDATES = 100
_NUM_UPDATES_REBORN = 5
# Adam's steps after a reset are 3 to 5 times its longest. An optimizer that divides by
# a moment of 0 takes steps a million times too long.
_TOO_LONG = 10
# Step size schedules reach 0 at single updates.
_TOO_OFTEN = 0.3

_AROUND = (
    "Wrap continual backprop instead: "
    "optax.{name}(continual_backprop(base_optimizer, ...), {})."
)
_MULTI_STEPS = (
    "Remove it, and wrap continual backprop in optax.MultiSteps: "
    "optax.MultiSteps(continual_backprop(base_optimizer, ...), k)."
)


def accepted(
    base_optimizer: optax.GradientTransformation, names: Sequence[str]
) -> list[str]:
    """Returns the names of the keyword arguments that a base's update accepts."""
    try:
        parameters = inspect.signature(base_optimizer.update).parameters
    except (TypeError, ValueError):
        return list(names)
    kinds = {parameter.kind for parameter in parameters.values()}
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds
    return [name for name in names if takes_any or name in parameters]


def tolerant(
    function: Callable[..., PyTree], names: Sequence[str]
) -> Callable[..., PyTree]:
    """Makes a function, such as a loss, ignore keyword arguments with these names.

    optax's line searches pass all extra arguments of the update to the loss, and refuse
    those that are not in its signature.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return function
    ignored = [name for name in names if name not in signature.parameters]

    def without(*args: Any, **kwargs: Any) -> PyTree:
        kept = {name: value for name, value in kwargs.items() if name not in ignored}
        return function(*args, **kept)

    parameters = list(signature.parameters.values())
    any_keyword = [p for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in ignored
    ]
    without.__signature__ = signature.replace(  # pyrefly: ignore[missing-attribute]
        parameters=[p for p in parameters if p not in any_keyword] + added + any_keyword
    )
    return without


class _Trial(NamedTuple):
    """A base optimizer on params with one entry per leaf."""

    params: PyTree
    state: PyTree  # As returned by `init`.
    program: ClosedJaxpr  # The update: leaves (updates, state, params) -> (both).
    has_clock: bool  # Whether it may depend on the number of the update alone.
    divides_by_state: bool  # Whether it may divide by state without this gradient.


def check_base(
    base_optimizer: optax.GradientTransformation,
    base_state: PyTree,
    params: PyTree,
    moments: str,
    keep_state: Sequence[str],
) -> None:
    """Raises ValueError for a base optimizer that does not work with unit resets.

    Args:
      base_optimizer: the transformation.
      base_state: its state for the params.
      params: the params; only shapes and dtypes matter.
      moments: what happens to the moments of reset units; see `continual_backprop`.
      keep_state: see `continual_backprop`.

    Raises:
      ValueError: it does not change the params at every call, so that ages would not
        count updates, or it divides by a moment that is 0 in a reset unit. There is no
        trial run if the base has traced arrays or integers (a traced step size counts
        as one half), or if its update needs more arguments.
    """
    _check_kinds(base_state)
    trial = _trial_of(base_optimizer, params)
    if trial is None:
        return
    try:
        lengths, state = _run(trial, trial.state, range(_NUM_UPDATES))
    except Exception:  # Its arrays only fit its own params.
        return
    if trial.has_clock:
        moved = np.flatnonzero(lengths > 0)
        if moved.size and np.mean(lengths[moved[0] : moved[-1]] == 0) > _TOO_OFTEN:
            raise ValueError(
                "The base optimizer does not change the params at every call: in a "
                f"trial, {moved.size} of {_NUM_UPDATES} updates were not 0. But units "
                "age and are replaced at every call. " + _MULTI_STEPS
            )
    if moments == "reset" and trial.divides_by_state and not starts_anew(base_state):
        _check_first_steps(base_optimizer, trial, state, lengths.max(), keep_state)


def _check_kinds(base_state: PyTree) -> None:
    """Raises ValueError for transformations that are recognized by their state."""

    def reason(node: PyTree) -> tuple[str, str] | None:
        if isinstance(node, optax.MultiStepsState):
            return "optax.MultiSteps", _AROUND.format("k", name="MultiSteps")
        if isinstance(node, optax.ApplyEvery):
            return "optax.apply_every", _MULTI_STEPS
        if isinstance(node, optax.ConditionallyMaskState):
            around = _AROUND.format("should_transform_fn", name="conditionally_mask")
            return "optax.conditionally_mask", around
        if isinstance(node, optax.contrib.SAMState) and node.cache is not None:
            return "optax.contrib.sam", (
                "Pass opaque_mode=True to sam and a grad_fn to the update, so that "
                "each call is one update."
            )
        return None

    def is_refused(node: PyTree) -> bool:
        return reason(node) is not None

    for node in jax.tree.leaves(base_state, is_leaf=is_refused):
        found = reason(node)
        if found is not None:
            name, remedy = found
            raise ValueError(
                f"The base optimizer contains {name}, so units would age and be "
                f"replaced at every mini-batch instead of every update. {remedy}"
            )


def _check_first_steps(
    base_optimizer: optax.GradientTransformation,
    trial: _Trial,
    state: PyTree,
    longest: float,
    keep_state: Sequence[str],
) -> None:
    """Raises ValueError if steps after a reset of moments are far too long."""

    def overshoot(keep: Sequence[str]) -> float:
        owners = owners_of(base_optimizer, state, trial.params, keep)
        after_reset = jax.tree.map(
            lambda owner, old, new: new if owner >= 0 else old,
            owners,
            state,
            trial.state,
        )
        steps = range(_NUM_UPDATES, _NUM_UPDATES + _NUM_UPDATES_REBORN)
        lengths, _ = _run(trial, after_reset, steps)
        return np.nan_to_num(lengths.max(), nan=np.inf) / longest

    if not 0 < longest < np.inf:
        return
    factor = overshoot(keep_state)
    if factor <= _TOO_LONG:
        return
    owners = owners_of(base_optimizer, state, trial.params, keep_state)
    fields = _fields(owners, trial.params)
    enough = [n for n in sorted(fields) if overshoot((*keep_state, n)) <= _TOO_LONG]
    keep = f"keep_state=({enough[0]!r},), or " if enough else ""
    raise ValueError(
        "The base optimizer divides by a moment that is 0 in a reset unit: in a trial, "
        f"its steps after a reset were {factor:.0e} times as long as any before. Pass "
        f'{keep}moments="keep", so that reset units keep that moment.'
    )


def _fields(owners: PyTree, params: PyTree) -> set[str]:
    """Returns the names of the state's fields that are shaped like the params."""
    of_params = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    fields = set()
    for path, owner in jax.tree_util.tree_leaves_with_path(owners):
        if owner >= 0:
            own = path[: len(path) - len(of_params[owner])]
            names = [key.name for key in own if hasattr(key, "name")]
            fields.update(names[-1:])
    return fields


def _trial_of(
    base_optimizer: optax.GradientTransformation, params: PyTree
) -> _Trial | None:
    """Returns a trial; None if it is not needed or not possible."""
    try:
        tiny = jax.tree.map(
            lambda leaf: np.ones((1,) * jnp.ndim(leaf), jnp.result_type(leaf)), params
        )
        with jax.ensure_compile_time_eval():
            state = jax.eval_shape(base_optimizer.init, tiny)
            program = jax.make_jaxpr(base_optimizer.update)(tiny, state, tiny)
            num = len(jax.tree.leaves(tiny))
            of_state = [
                _Origin(moments=leaf.ndim > 0, gate=leaf.dtype == bool)
                for leaf in jax.tree.leaves(state)
            ]
            grads, of_params = [_Origin(grads=True)] * num, [_Origin()] * num
            has_clock, divides_by_state = _look_through(
                program.jaxpr, [*grads, *of_state, *of_params]
            )
            if not has_clock and not divides_by_state:
                return None
            state = jax.tree.map(_known, base_optimizer.init(tiny))
            program = ClosedJaxpr(program.jaxpr, list(map(_known, program.consts)))
    except Exception:  # Its update needs more arguments, or its params more entries.
        return None
    return _Trial(tiny, state, program, has_clock, divides_by_state)


def _run(
    trial: _Trial, state: PyTree, steps: Sequence[int]
) -> tuple[np.ndarray, PyTree]:
    """Returns the largest entry of each update [T], and the state after the last."""
    update = jaxpr_as_fun(trial.program)

    def step(
        params: list[jax.Array], state: list[jax.Array], grads: list[jax.Array]
    ) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
        out = update(*grads, *state, *params)
        updates, state = out[: len(params)], out[len(params) :]
        longest = jnp.max(jnp.stack([jnp.max(jnp.abs(u)) for u in updates]))
        return longest, optax.apply_updates(params, updates), state

    # Optimizing this tiny program would take longer than running it.
    step = jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})
    params = jax.tree.leaves(trial.params)
    leaves, treedef = jax.tree.flatten(state)
    lengths = []
    with jax.ensure_compile_time_eval(), jax.debug_nans(False), jax.debug_infs(False):
        for index in steps:
            rng = np.random.default_rng(index)
            grads = [rng.normal(size=leaf.shape).astype(leaf.dtype) for leaf in params]
            longest, params, leaves = step(params, leaves, grads)
            lengths.append(float(longest))
    return np.asarray(lengths), treedef.unflatten(leaves)


def _is_bool(variable: Var) -> bool:
    return variable.aval.dtype == bool  # pyrefly: ignore[missing-attribute]


def _known(value: jax.Array) -> jax.Array | np.ndarray:
    """Returns a value, or one half for a number that is traced."""
    if not is_traced(value):
        return value
    if jnp.ndim(value) or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError("No trial without this value.")
    return np.asarray(0.5, value.dtype)


_LOOPS = {"cond", "while", "scan"}
# Operations between a bool and the product that it enters.
_CASTS = {"convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "mul"}
_DIVISIONS = {"div": 1, "rsqrt": 0, "integer_pow": 0, "pow": 0}


class _Origin(NamedTuple):
    """What a value in a program depends on."""

    grads: bool = False
    moments: bool = False
    gate: bool = False  # A bool that depends on no gradient, or its cast to a number.


def _look_through(jaxpr: Jaxpr, inputs: Sequence[_Origin]) -> tuple[bool, bool]:
    """Whether a program may depend on a clock, and may divide by moments alone.

    It may depend on a clock if it has loops or remainders, or if a gate selects or
    multiplies gradients.
    """
    found = {"clock": False, "divides": False}

    def follow(jaxpr: Jaxpr, inputs: Sequence[_Origin]) -> list[_Origin]:
        origins = dict(zip(jaxpr.invars, inputs, strict=True))

        def origin(variable: Var | Literal) -> _Origin:
            is_literal = isinstance(variable, Literal)
            return _Origin() if is_literal else origins.get(variable, _Origin())

        for equation in jaxpr.eqns:
            name, operands = equation.primitive.name, equation.invars
            given = [origin(operand) for operand in operands]
            merged = _Origin(*map(any, zip(_Origin(), *given, strict=True)))
            outputs = [
                merged._replace(
                    gate=not merged.grads
                    and (_is_bool(out) or (merged.gate and name in _CASTS))
                )
                for out in equation.outvars
            ]
            inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            inner = getattr(inner, "jaxpr", inner)
            if name in _LOOPS:
                found["clock"] = found["divides"] = True
            elif isinstance(inner, Jaxpr) and len(inner.invars) == len(operands):
                outputs = follow(inner, given)
            elif name == "rem" or (name == "mul" and merged.gate and merged.grads):
                found["clock"] = True
            elif name == "select_n" and given[0].gate:
                found["clock"] |= merged.grads
            elif name in _DIVISIONS:
                divisor = given[_DIVISIONS[name]]
                found["divides"] |= divisor.moments and not divisor.grads
            origins.update(zip(equation.outvars, outputs, strict=True))
        return [origin(variable) for variable in jaxpr.outvars]

    follow(jaxpr, inputs)
    return found["clock"], found["divides"]
