"""The activations of unit groups, from any network, without changes to its code.

Shapes: B batch, P positions of a flattened map, N units of a group.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
from jax.extend import core
import jax.numpy as jnp
from jax.tree_util import KeyPath
import numpy as np

from cbp_jax._discovery import labels as labels_lib
from cbp_jax._discovery.inference import Traced, trace_network
from cbp_jax._discovery.tracing import called, can_look_inside
from cbp_jax._discovery.values import Origin, ProgramPoint, Record
from cbp_jax._types import PyTree
from cbp_jax._units import ResolvedGroup, UnitGroup, path_string, resolve_units

Features = dict[str, jax.Array]


def with_features(
    apply: Callable[[PyTree, PyTree], PyTree], units: Sequence[UnitGroup]
) -> Callable[[PyTree, PyTree], tuple[PyTree, Features]]:
    """Makes a network also return the activations of its units.

    Provisional: its arguments and results may still change.

    The network is traced. The activations are the values that the kernels in
    `UnitGroup.outgoing` read: after the nonlinearity, after pooling, before a map is
    flattened, and after dropout if `apply` uses it. If several kernels read a group at
    different depths, as in a residual stream, the last of them counts.

    It works under `jit`, `grad`, `vmap` and `jax.checkpoint`, and costs nothing under
    `jit`::

      forward = cbp_jax.with_features(apply, units)

      def loss_fn(params):
          logits, features = forward(params, images)
          return loss(logits, labels), features

    Args:
      apply: maps params and inputs to any pytree of outputs.
      units: the groups, found by `infer_units` or written by hand.

    Returns:
      A function that maps params and inputs to the outputs of `apply` and the features,
      a dict from each group's name to an array `[B, ..., N]`. It raises ValueError if a
      group's units cannot be followed to a kernel that reads them.
    """
    units = tuple(units)

    def forward(params: PyTree, inputs: PyTree) -> tuple[PyTree, Features]:
        traced = trace_network(apply, params, inputs)
        groups = resolve_units(units, params)
        origins = {
            group.name: _origin(group, traced.record, traced.record.names)
            for group in groups
        }
        jaxpr, constants = traced.closed.jaxpr, traced.closed.consts
        outputs, found = _evaluate(
            jaxpr,
            constants,
            jax.tree.leaves((params, inputs)),
            {origin.place for origin in origins.values()},
            (),
        )
        features = {
            group.name: _units_last(
                group, found[origins[group.name].place], origins[group.name], traced
            )
            for group in groups
        }
        return jax.tree.unflatten(traced.out_tree, outputs), features

    return forward


def _origin(group: ResolvedGroup, record: Record, names: Sequence[str]) -> Origin:
    """Returns the value that the last kernel of a group reads."""
    incoming = {axes.leaf for axes in group.incoming}
    own = {
        record.group_of(index)
        for index, source in enumerate(record.sources)
        if source.leaf in incoming
    }
    outgoing = {axes.leaf: axes.positions for axes in group.outgoing}
    origins = [
        read.origin
        for read in record.reads
        if read.leaf in outgoing
        and read.source is not None
        and record.group_of(read.source) in own
        and read.origin is not None
        and read.origin.place.calls is not None
        and outgoing[read.leaf] == read.positions == group.positions
    ]
    if not origins:
        fed = [names[axes.leaf] for axes in group.incoming]
        read_by = [names[leaf] for leaf in outgoing]
        why = [reason for source in own for reason in record.leaks.get(source, [])]
        raise ValueError(
            f"Unit group {group.name!r}: found no value that {fed} produce and "
            f"{read_by} read{', because ' + why[0] if why else ''}. Correct the paths, "
            "or collect this group's activations yourself."
        )
    return origins[-1]


def _units_last(
    group: ResolvedGroup, value: jax.Array, origin: Origin, traced: Traced
) -> jax.Array:
    """Rearranges a value to [B, ..., N]."""
    num_units = group.num_units
    index = traced.record.unit_index(origin.units)
    axes = labels_lib.varying(index)
    if num_units == 1:
        axes = {axis for axis, size in enumerate(value.shape) if size == 1} or axes
    axis = max(axes, default=0)
    value = jnp.moveaxis(value, axis, -1)
    every = np.arange(value.shape[-1])
    along = np.broadcast_to(labels_lib.on_axes(index, (axis,)), every.shape)
    if value.ndim > 1 and (len(axes) == 1 or num_units == 1):
        if np.array_equal(along, every % num_units):
            split = value.reshape(*value.shape[:-1], -1, num_units)
            return value if value.shape[-1] == num_units else split
        if np.array_equal(along, every // (every.size // num_units)):
            split = value.reshape(*value.shape[:-1], num_units, -1)
            return jnp.moveaxis(split, -1, -2)
    raise ValueError(
        f"Unit group {group.name!r}: its activations have shape {value.shape}, which "
        f"with_features cannot rearrange to [batch, ..., {num_units}]. Give the inputs "
        "a batch axis, or collect this group's activations yourself."
    )


def _evaluate(
    jaxpr: core.Jaxpr,
    constants: Sequence[jax.Array],
    arguments: Sequence[jax.Array],
    wanted: set[ProgramPoint],
    calls: tuple[int, ...],
) -> tuple[list[jax.Array], dict[ProgramPoint, jax.Array]]:
    """Evaluates a program; returns its results and the wanted inner values."""
    known: dict[core.Var, jax.Array] = {}
    known.update(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))
    found: dict[ProgramPoint, jax.Array] = {}

    def value_of(atom: core.Var | core.Literal) -> jax.Array:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for index, equation in enumerate(jaxpr.eqns):
        inside = (*calls, index)
        hidden = {
            each for each in wanted if (each.calls or ())[: len(inside)] == inside
        }
        operands = [value_of(atom) for atom in equation.invars]
        if hidden:
            results, more = _call(equation, operands, hidden, inside)
            found |= more
        else:
            results = _evaluate_one(jaxpr, equation, operands)
        known.update(zip(equation.outvars, results, strict=True))
    found |= {
        each: known[each.variable] for each in wanted if each.calls == tuple(calls)
    }
    return [value_of(atom) for atom in jaxpr.outvars], found


def _call(
    equation: core.JaxprEqn,
    operands: Sequence[jax.Array],
    wanted: set[ProgramPoint],
    calls: tuple[int, ...],
) -> tuple[list[jax.Array], dict[ProgramPoint, jax.Array]]:
    """Evaluates the program that an equation calls, as part of this one."""
    inner = called(equation)
    assert inner is not None and can_look_inside(equation)
    jaxpr, constants = inner
    places = sorted(wanted, key=lambda place: (place.calls, str(place.variable)))

    def run(*arguments: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        results, found = _evaluate(jaxpr, constants, arguments, wanted, calls)
        return results, [found[place] for place in places]

    if "policy" in equation.params:
        options = {name: equation.params[name] for name in ("policy", "prevent_cse")}
        run = jax.checkpoint(run, **options)
    results, values = run(*operands)
    return results, dict(zip(places, values, strict=True))


def _evaluate_one(
    jaxpr: core.Jaxpr, equation: core.JaxprEqn, operands: Sequence[jax.Array]
) -> list[jax.Array]:
    """Evaluates one equation as a program of its own."""
    inputs = {
        atom: operand
        for atom, operand in zip(equation.invars, operands, strict=True)
        if not isinstance(atom, core.Literal)
    }
    outputs = [
        variable
        for variable in equation.outvars
        if not isinstance(variable, core.DropVar)
    ]
    program = jaxpr.replace(
        constvars=(), invars=list(inputs), outvars=outputs, eqns=[equation]
    )
    results = iter(core.jaxpr_as_fun(core.ClosedJaxpr(program, ()))(*inputs.values()))
    # No equation reads dropped values.
    return [  # pyrefly: ignore[bad-return]
        None if isinstance(variable, core.DropVar) else next(results)
        for variable in equation.outvars
    ]


def collect_features(
    captured: PyTree, paths: Mapping[str, str] | Sequence[str]
) -> dict[str, jax.Array]:
    """Selects features from the intermediates that flax captured in a forward pass.

    Provisional: its arguments and results may still change.

    * linen, `self.sow("intermediates", "hidden", nn.relu(...))` and
      `outputs, state = network.apply(variables, inputs, mutable=["intermediates"])`:
      pass `state["intermediates"]` and the paths of the sown values. You get what you
      sow, so sow after the nonlinearity.
    * linen, `network.apply(..., capture_intermediates=True, mutable=...)`: this
      captures the output of each submodule under its path. A `Dense` ends before the
      nonlinearity, so name a submodule that ends with one.
    * nnx, `outputs, captured = nnx.capture(model, nnx.Intermediate)(inputs)`, with
      `self.sow(nnx.Intermediate, "hidden", nnx.relu(...))` in the model, or with
      `method_outputs=nnx.Intermediate` for the outputs of all methods: pass `captured`.

    `cbp_jax.with_features` needs none of this, and also works for Equinox, Haiku and
    plain functions.

    Args:
      captured: any pytree of arrays with string paths.
      paths: a dict from each group's name to the path of its activations, with keys
        joined by `/`; or the names alone, if they are the paths.

    Returns:
      A dict from each group's name to its activations, as `update` expects.

    Raises:
      ValueError: nothing was captured under a path, or several arrays were.
    """
    if not isinstance(paths, Mapping):
        paths = {name: name for name in paths}
    leaves, _ = jax.tree_util.tree_flatten_with_path(captured)
    arrays = {_without_wrapper(path): leaf for path, leaf in leaves}
    return {name: _find(arrays, path, name) for name, path in paths.items()}


def _find(arrays: Mapping[str, jax.Array], path: str, name: str) -> jax.Array:
    # A module's own output takes precedence over those of its submodules.
    for prefix in (path, f"{path}/__call__"):
        inside = [key for key in arrays if key.startswith(f"{prefix}/")]
        own = [key for key in inside if _is_wrapping(key.removeprefix(f"{prefix}/"))]
        found = [prefix] if prefix in arrays else own
        if len(found) == 1:
            return arrays[found[0]]
        if found:
            raise ValueError(
                f"Feature {name!r}: several arrays were captured under {path!r}: "
                f"{found}. Expected one; a module captures one array per call. Name "
                "one of them, or sow each under its own name."
            )
    raise ValueError(
        f"Feature {name!r}: nothing was captured under {path!r}, only under "
        f"{list(arrays)}. Sow it there, or give one of these paths."
    )


def _without_wrapper(path: KeyPath) -> str:
    """Returns a path without the attribute `value` of an nnx variable.

    What a network sowed under the name `value` keeps its name.
    """
    wrapper = jax.tree_util.GetAttrKey("value")
    return path_string(tuple(key for key in path if key != wrapper))


def _is_wrapping(rest: str) -> bool:
    """Whether keys only index the tuple around an array."""
    return all(key.isdigit() for key in rest.split("/"))
