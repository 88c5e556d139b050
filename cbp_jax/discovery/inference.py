"""Names the groups of hidden units of any network by tracing it."""

from collections.abc import Callable, Sequence
import fnmatch
from typing import Any, NamedTuple

import jax

from cbp_jax.discovery.naming import named_groups
from cbp_jax.discovery.tracing import trace
from cbp_jax.discovery.values import Record
from cbp_jax.resets.leaves import leaf_paths
from cbp_jax.resets.units import PyTree, UnitGroup


class InferredUnits(tuple[UnitGroup, ...]):
    """A tuple of unit groups, in forward order, that prints readably.

    Attributes:
      left_out: for the path of each kernel that feeds no group, why.
    """

    left_out: dict[str, str]

    def __new__(cls, groups: Sequence[UnitGroup], left_out: dict[str, str]) -> Any:
        """Makes the tuple."""
        made = super().__new__(cls, groups)
        made.left_out = dict(left_out)
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Copies and pickles both."""
        return tuple(self), self.left_out

    def __str__(self) -> str:
        """Lists the paths of every group, and what was left out."""
        return "\n".join([*map(_text, self), *_lines(self.left_out)])


def infer_units(
    apply: Callable[[PyTree, Any], Any],
    params: PyTree,
    example: Any,
    *,
    leave: Sequence[str] = (),
) -> InferredUnits:
    """Finds the groups of hidden units of a network by tracing it.

    It follows every unit from the kernel that makes it, through biases, activations,
    normalizations, pooling, reshapes and additions, to the kernels that read it: of
    dense layers, convolutions and look-up tables, in chains and residual branches, with
    `[in, out]` kernels (flax, Haiku) or `[out, in]` ones (Equinox). Where units meet,
    as at the end of a residual block, they are one group.

    It does not look into `lax.scan`, `while_loop`, `cond` and `shard_map`, and leaves
    alone what `UnitGroup` cannot name, such as the heads of attention. It names no
    `statistics`, which are no params; add those with `_replace`.

    Nothing is computed: the network is traced only. `check_units` proves the result.

    Args:
      apply: maps params and an example to the network's outputs, any pytree. It must
        not return activations; if your network does, take the outputs out:
        `lambda params, inputs: network.apply({"params": params}, inputs)[0]`.
      params: what the optimizer will update, any pytree of arrays or of
        `jax.ShapeDtypeStruct`.
      example: inputs, any pytree likewise, with a batch axis.
      leave: paths of kernels that may feed no group, with `*` for any characters, such
        as `("*/attention/*",)`.

    Returns:
      The groups in forward order, named by the path of the layer that feeds them, to
      `print`, to edit with `_replace`, and to give to `continual_backprop`. The kernels
      of `leave` and those whose outputs are the network's are in `left_out`.

    Raises:
      ValueError: a kernel feeds no group, is not the network's last, and not in
        `leave`; or there are no groups. The message has the reason for each kernel.
    """
    record = trace_network(apply, params, example).record
    groups, heads, problems = named_groups(record)
    found = InferredUnits(groups, heads | problems)
    unexpected = {
        path: reason
        for path, reason in problems.items()
        if not any(fnmatch.fnmatchcase(path, pattern) for pattern in leave)
    }
    if unexpected:
        raise ValueError(
            "Some kernels feed no group of units that infer_units can name:\n"
            + "\n".join(_lines(unexpected))
            + f"\nIf they are to stay as they are, pass leave={tuple(unexpected)}, "
            "where * stands for any characters; or write their groups yourself, see "
            "cbp_jax.UnitGroup. Groups found:\n"
            + ("\n".join(map(_text, found)) or "none")
        )
    if not found:
        raise ValueError(
            "infer_units found no hidden units:\n" + "\n".join(_lines(found.left_out))
        )
    return found


class Traced(NamedTuple):
    """A network as a program, and what was found in it."""

    closed: Any  # A `ClosedJaxpr` of the flattened params and example.
    record: Record
    out_tree: Any  # Of the outputs.


def trace_network(
    apply: Callable[[PyTree, Any], Any], params: PyTree, example: Any
) -> Traced:
    """Traces `apply(params, example)` and follows units and params through it."""
    names = [path.name for path in leaf_paths(params)]
    closed, outputs = jax.make_jaxpr(apply, return_shape=True)(params, example)
    record = trace(closed, names, len(names))
    return Traced(closed, record, jax.tree.structure(outputs))


def _text(group: UnitGroup) -> str:
    defaults = UnitGroup._field_defaults | {"layout": None}
    lines = [f"{group.name}:"]
    for field, value in group._asdict().items():
        if field == "name" or value == defaults.get(field):
            continue
        several = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        lines.append(f"  {field}: {several}")
    return "\n".join(lines)


def _lines(reasons: dict[str, str]) -> list[str]:
    """Returns a sentence for each reason, which names all its kernels."""
    paths: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        paths.setdefault(reason, []).append(path)
    return [
        f"{', '.join(each)}: left out, since {reason}."
        for reason, each in paths.items()
    ]
