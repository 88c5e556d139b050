"""Follows units and params through the jaxpr of a network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core
import numpy as np

from cbp_jax._discovery import elementwise, products
from cbp_jax._discovery import labels as labels_lib
from cbp_jax._discovery.values import Entries, Origin, ProgramPoint, Record, Value

Handler = Callable[[Record, dict[str, Any], Sequence[Value], Value], Value]
HANDLERS: Mapping[str, Handler] = {
    **elementwise.HANDLERS,
    "conv_general_dilated": products.convolution,
    "dot_general": products.dot_general,
    "gather": products.gather,
}
"""Handlers by name of the primitive; those that only move entries are in `MOVES`."""

# Calls of one program inside another, by name of the primitive: the argument that
# contains the program, and whether inner values are available without changing the
# call.
CALLS = {
    "checkpoint": ("jaxpr", True),
    "closed_call": ("call_jaxpr", True),
    "core_call": ("call_jaxpr", True),
    "custom_jvp_call": ("call_jaxpr", False),
    "custom_vjp_call": ("call_jaxpr", False),
    "jit": ("jaxpr", True),
    "pjit": ("jaxpr", True),
    "remat2": ("jaxpr", True),
}


def called(equation: core.JaxprEqn) -> tuple[core.Jaxpr, Sequence[jax.Array]] | None:
    """Returns the program that an equation calls, and its constants; None for none."""
    name = equation.primitive.name
    if name not in CALLS:
        return None
    inner = equation.params[CALLS[name][0]]
    if isinstance(inner, core.ClosedJaxpr):
        return inner.jaxpr, inner.consts
    return inner, ()


def can_look_inside(equation: core.JaxprEqn) -> bool:
    """Whether values inside a call are available without changing the call."""
    return CALLS[equation.primitive.name][1]


def trace(closed: core.ClosedJaxpr, names: Sequence[str], num_params: int) -> Record:
    """Follows the params through a program, whose first arguments they are.

    Args:
      closed: the program of `apply(params, example)`.
      names: paths of the leaves of the params.
      num_params: number of these leaves.

    Returns:
      What the trace found.
    """
    shapes = [tuple(variable.aval.shape) for variable in closed.jaxpr.invars]
    record = Record(names, shapes[:num_params])
    arguments = [
        _param(leaf, shape) if leaf < num_params else Value(shape, is_data=True)
        for leaf, shape in enumerate(shapes)
    ]
    constants = [Value(np.shape(each)) for each in closed.consts]
    is_used = [True] * len(closed.jaxpr.outvars)
    for value in _follow(record, closed.jaxpr, constants, arguments, (), is_used):
        record.returned |= record.sources_in(value.units) | value.mixed
        reason = "the network returns it, or something computed from it alone"
        record.puzzle(value.entries, reason)
    return record


def _param(leaf: int, shape: tuple[int, ...]) -> Value:
    ndim = len(shape)
    coordinates = tuple(
        labels_lib.along(axis, ndim, np.arange(size)) for axis, size in enumerate(shape)
    )
    return Value(shape, entries=(Entries(leaf, coordinates),))


def _follow(
    record: Record,
    jaxpr: core.Jaxpr,
    constants: Sequence[Value],
    arguments: Sequence[Value],
    calls: tuple[int, ...] | None,
    is_used: Sequence[bool],
) -> list[Value]:
    """Follows the equations of a program that lead to used results.

    Returns what is known about its results.
    """
    known: dict[core.Var, Value] = {}
    known.update(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def value_of(atom: core.Var | core.Literal) -> Value:
        if isinstance(atom, core.Literal):
            return Value(tuple(np.shape(atom.val)))
        return known.get(atom, Value(_shape(atom)))

    needed = _needed(jaxpr, is_used)
    for index, equation in enumerate(jaxpr.eqns):
        if not needed.intersection(equation.outvars):
            continue
        operands = [value_of(atom) for atom in equation.invars]
        inner = called(equation)
        if inner is None:
            results = _follow_one(record, equation, operands)
        else:
            results = _follow(
                record,
                inner[0],
                [Value(np.shape(each)) for each in inner[1]],
                operands,
                (*calls, index)
                if calls is not None and can_look_inside(equation)
                else None,
                [variable in needed for variable in equation.outvars],
            )
        for variable, value in zip(equation.outvars, results, strict=True):
            is_hidden = value.origin and value.origin.place.calls is None
            if value.units is not None and (is_hidden or value.origin is None):
                origin = Origin(ProgramPoint(calls, variable), value.units)
                value = value._replace(origin=origin)
            known[variable] = value
    return [value_of(atom) for atom in jaxpr.outvars]


def _shape(variable: core.Var) -> tuple[int, ...]:
    return tuple(variable.aval.shape)  # pyrefly: ignore[missing-attribute]


def _needed(jaxpr: core.Jaxpr, is_used: Sequence[bool]) -> set[core.Var]:
    """Returns the variables that lead to used results.

    A network may update statistics that its caller drops.
    """
    outputs = zip(jaxpr.outvars, is_used, strict=True)
    needed = {atom for atom, used in outputs if used and isinstance(atom, core.Var)}
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            needed |= {atom for atom in equation.invars if isinstance(atom, core.Var)}
    return needed


def _follow_one(
    record: Record, equation: core.JaxprEqn, operands: Sequence[Value]
) -> list[Value]:
    is_data = any(operand.is_data for operand in operands)
    mixed = frozenset().union(*(operand.mixed for operand in operands))
    blank = [
        Value(_shape(variable), is_data=is_data, mixed=mixed)
        for variable in equation.outvars
    ]
    results = _results(record, equation, operands, blank)
    params = [operand for operand in operands if not operand.is_data]
    lost = frozenset().union(*(operand.lost for operand in params))
    if is_data:
        touched = [*operands, *results] if lost else []
        names = [record.names[leaf] for leaf in sorted(lost)]
        for value in touched:
            sources = record.sources_in(value.units) | value.mixed
            record.leak(
                sources,
                f"its units meet {names}, which infer_units could not follow",
            )
        return results
    given = {each.leaf for operand in params for each in operand.entries}
    return [
        value._replace(lost=lost | given - {each.leaf for each in value.entries})
        for value in results
    ]


def _results(
    record: Record,
    equation: core.JaxprEqn,
    operands: Sequence[Value],
    blank: Sequence[Value],
) -> list[Value]:
    """Applies the handler of a primitive; records the reason if there is none."""
    name, params = equation.primitive.name, equation.params
    if name in labels_lib.MOVES:
        moved = operands[: len(blank)]
        return [
            _moved(name, params, operand, new)
            for operand, new in zip(moved, blank, strict=True)
        ]
    if name == "concatenate":
        return [_concatenated(record, params["dimension"], operands, blank[0])]
    if name == "stack":
        layers = [_layer(params["axis"], operand) for operand in operands]
        return [_concatenated(record, params["axis"], layers, blank[0])]
    if name == "split":
        return _split(params, operands[0], blank)
    if name in HANDLERS:
        return [HANDLERS[name](record, params, operands, new) for new in blank]
    reason = f"{name}, inside which infer_units cannot look"
    if not list(core.jaxprs_in_params(params)):
        reason = f"{name}, which infer_units does not support"
    for operand in operands:
        record.puzzle(operand.entries, f"it goes into {reason}")
        sources = record.sources_in(operand.units) | operand.mixed
        record.leak(sources, f"its units go into {reason}")
    return list(blank)


def _moved(name: str, params: dict[str, Any], operand: Value, new: Value) -> Value:
    move = labels_lib.Move(params, operand.shape, new.shape)

    def follow(labels: np.ndarray) -> np.ndarray:
        return labels_lib.MOVES[name](labels, move)

    return new._replace(
        units=None if operand.units is None else follow(operand.units),
        entries=tuple(
            each._replace(coordinates=tuple(follow(at) for at in each.coordinates))
            for each in operand.entries
        ),
        origin=operand.origin,
    )


def _layer(axis: int, operand: Value) -> Value:
    """Inserts an axis of size 1."""
    shape = (*operand.shape[:axis], 1, *operand.shape[axis:])
    others = [each for each in range(len(shape)) if each != axis]
    place = {"broadcast_dimensions": others}
    new = operand._replace(shape=shape)
    return _moved("broadcast_in_dim", place, operand, new)


def _split(
    params: dict[str, Any], operand: Value, blank: Sequence[Value]
) -> list[Value]:
    axis, results, start = params["axis"], [], 0
    for size, new in zip(params["sizes"], blank, strict=True):
        starts = [0] * len(new.shape)
        starts[axis] = start
        limits = [low + length for low, length in zip(starts, new.shape, strict=True)]
        cut = {"start_indices": starts, "limit_indices": limits, "strides": None}
        results.append(_moved("slice", cut, operand, new))
        start += size
    return results


def _concatenated(
    record: Record, axis: int, operands: Sequence[Value], new: Value
) -> Value:
    shapes = [operand.shape for operand in operands]
    none = np.full((1,) * len(new.shape), -1)

    def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
        return labels_lib.concatenate(parts, shapes, axis)

    if any(operand.units is not None for operand in operands):
        parts = [none if each.units is None else each.units for each in operands]
        new = new._replace(units=joined(parts))
        origins = {id(operand.origin): operand.origin for operand in operands}
        if len(origins) == 1:
            new = new._replace(origin=operands[0].origin)
    leaves = {entry.leaf: entry for each in operands for entry in each.entries}
    entries = []
    for leaf, example in leaves.items():
        parts = [
            next((entry for entry in each.entries if entry.leaf == leaf), None)
            for each in operands
        ]
        coordinates = tuple(
            joined([none if part is None else part.coordinates[at] for part in parts])
            for at in range(len(example.coordinates))
        )
        entries.append(Entries(leaf, coordinates))
    if new.units is not None:
        elementwise.attach(record, new.units, entries, is_added=True)
        return new
    return new._replace(entries=tuple(entries))
