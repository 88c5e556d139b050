"""Every workaround of XLA, with the version that needs it and when it can go.

* `cond_any_lane`: under `jax.vmap` a `lax.cond` runs both branches, in JAX 0.10 and
  0.11. `test_a_vmapped_cond_would_always_run_the_work` fails once it does not.
* `sum_magnitudes`: jaxlib 0.10 and 0.11 add up slowly on a CPU. That is speed only:
  compare with `jnp.sum` in its place by `python -m experiments.benchmark`.
* `replace_rows`: jaxlib 0.10 makes a select of a select, a pass over memory, also where
  a few entries change. That is speed only.
* `first_minima`, `computed_once`, `next_key_if`: jaxlib 0.10 makes more kernels for a
  GPU of what is plainly written. That is speed only: compile for a GPU, and count.
* `one_by_one_on_cpu`: jaxlib 0.10 can hang in batched LAPACK calls on a CPU, 0.11.2
  does not. It can go with the support of 0.10.
* `in_auto_mode`: on a mesh of explicit axes every operation would have to name its
  shardings. JAX lets XLA choose them in this way in all versions.
* `round_to_dtype`: XLA may keep the float32 value of a bfloat16 sum. `test_events.py`
  compares bfloat16 params bit for bit.

`cbp_jax.networks` has a convolution by patches and a max-pooling that are faster than
XLA's on a CPU, and describes them.
"""

from collections.abc import Callable, Mapping, Sequence
import math

import jax
from jax import lax
from jax.custom_batching import custom_vmap, sequential_vmap
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np

from cbp_jax._types import PyTree


def cond_any_lane(
    predicate: jax.Array | bool,
    work: Callable[[PyTree], PyTree],
    skip: Callable[[PyTree], PyTree],
    operand: PyTree,
    *,
    always_on_gpu: bool = False,
) -> PyTree:
    """Returns `work(operand)` if the predicate is true in any lane, or `skip(operand)`.

    Under `vmap`, `lax.cond` becomes a select and always runs both branches. Here all
    lanes do the work if one needs it, and otherwise none does.

    Args:
      predicate: bool scalar, batched or not. A Python bool chooses the branch when
        compiling.
      work: the expensive branch. It must return the same as `skip` for lanes whose
        predicate is false. Neither function may close over traced arrays.
      skip: the cheap branch.
      operand: pytree of arrays, the functions' only argument.
      always_on_gpu: a GPU does the work every time, without a conditional, which takes
        it as long as several kernels. A TPU decides fast.

    Returns:
      A pytree of arrays, of the same structure, shapes and dtypes from both functions.
    """
    if isinstance(predicate, bool):
        return (work if predicate else skip)(operand)

    def choose(predicate: jax.Array, operand: PyTree) -> PyTree:
        return lax.cond(predicate, *_varying_alike(work, skip, operand), operand)

    def always(predicate: jax.Array, operand: PyTree) -> PyTree:
        del predicate
        return work(operand)

    @custom_vmap
    def conditional(predicate: jax.Array, operand: PyTree) -> PyTree:
        if not always_on_gpu:
            return choose(predicate, operand)
        return lax.platform_dependent(
            predicate, operand, cuda=always, rocm=always, default=choose
        )

    @conditional.def_vmap
    def _(
        lanes: int, is_batched: PyTree, predicate: jax.Array, operand: PyTree
    ) -> tuple[PyTree, PyTree]:
        predicate_is_batched, operand_is_batched = is_batched
        operand = jax.tree.map(
            lambda leaf, batched: (
                leaf if batched else jnp.broadcast_to(leaf, (lanes, *leaf.shape))
            ),
            operand,
            operand_is_batched,
        )
        if predicate_is_batched:
            predicate = jnp.any(predicate)
        lanes_work, lanes_skip = jax.vmap(work), jax.vmap(skip)
        out = cond_any_lane(
            predicate, lanes_work, lanes_skip, operand, always_on_gpu=always_on_gpu
        )
        return out, jax.tree.map(lambda _: True, out)

    return conditional(predicate, operand)


def _varying_alike(
    work: Callable[[PyTree], PyTree], skip: Callable[[PyTree], PyTree], operand: PyTree
) -> tuple[Callable[[PyTree], PyTree], Callable[[PyTree], PyTree]]:
    """Makes results of branches inside `shard_map` vary over the same mesh axes.

    A constant in one branch is the same on all devices. A conditional does not accept
    it if the other branch returns a value that varies from device to device.
    """
    if not any(_varying_axes(leaf) for leaf in jax.tree.leaves(operand)):
        return work, skip
    axes = [
        _varying_axes(left) | _varying_axes(right)
        for left, right in zip(
            jax.tree.leaves(jax.eval_shape(work, operand)),
            jax.tree.leaves(jax.eval_shape(skip, operand)),
            strict=True,
        )
    ]

    def varying(function: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
        def cast(operand: PyTree) -> PyTree:
            leaves, treedef = jax.tree.flatten(function(operand))
            for index, leaf in enumerate(leaves):
                missing = tuple(sorted(axes[index] - _varying_axes(leaf)))
                if missing:
                    leaves[index] = lax.pcast(leaf, missing, to="varying")
            return treedef.unflatten(leaves)

        return cast

    return varying(work), varying(skip)


def _varying_axes(leaf: jax.Array | jax.ShapeDtypeStruct) -> frozenset[str]:
    """Returns the mesh axes of a `shard_map` over which an array varies."""
    described = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    manual = getattr(described, "manual_axis_type", None)  # Elsewhere `vma`.
    varying = getattr(described, "vma", None) if manual is None else manual.varying
    return varying or frozenset()


# XLA for CPUs calls a library for sums, and first writes all addends to memory. It
# fuses a sum that it does not recognize with the operations before it, but this is fast
# only over a few entries. So groups of neighbors are added first: as many as the first
# of these numbers that divides the axis, or two along the last axis, where neighbors
# are adjacent in memory.
_NEIGHBORS = (8, 4, 5, 10, 6, 7, 9, 3, 2)
# For lanes with leaves of up to this many entries, the library is never used. A single
# learner needs it: its leaf may be sharded, and XLA must recognize a sum over shards.
_SMALL_LEAF = 1024


def sum_magnitudes(magnitudes: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sums nonnegative numbers over some axes.

    This is `jnp.sum` up to rounding, in an order that is fast on the current platform.
    It has no derivative: stop gradients first.

    Args:
      magnitudes: nonnegative floating numbers of any shape.
      axes: axes to sum over, not negative.

    Returns:
      The sums, without these axes, in the same dtype.
    """

    def add(magnitudes: jax.Array) -> jax.Array:
        return jnp.sum(magnitudes, axes)

    def multiply(magnitudes: jax.Array) -> jax.Array:
        (axis,) = axes
        if axis == 0:
            magnitudes = _add_neighbors(magnitudes, axis)
        ones = jnp.ones(magnitudes.shape[axis], magnitudes.dtype)
        contracted = ((axis,), (0,)), ((), ())
        return lax.dot_general(magnitudes, ones, contracted, lax.Precision.HIGHEST)

    @custom_vmap
    def total(magnitudes: jax.Array) -> jax.Array:
        if magnitudes.ndim != 2 or len(axes) != 1:
            return add(magnitudes)
        return lax.platform_dependent(magnitudes, cpu=multiply, default=add)

    @total.def_vmap
    def _(
        lanes: int, is_batched: list[bool], magnitudes: jax.Array
    ) -> tuple[jax.Array, bool]:
        del lanes, is_batched  # The only argument is batched.
        inner = tuple(axis + 1 for axis in axes)
        if math.prod(magnitudes.shape[1:]) <= _SMALL_LEAF:
            return _add_unrecognized(magnitudes, inner), True
        if len(inner) != 1:
            return jnp.sum(magnitudes, inner), True
        sums = lax.platform_dependent(
            magnitudes,
            cpu=lambda leaf: jnp.sum(_add_neighbors(leaf, *inner), inner),
            default=lambda leaf: jnp.sum(leaf, inner),
        )
        return sums, True

    return total(magnitudes)


def _add_neighbors(magnitudes: jax.Array, axis: int) -> jax.Array:
    """Adds up groups of neighbors along an axis.

    There are no fewer groups than shards that the axis may have: no group may have to
    be added up over shards.
    """
    most_shards = jax.device_count() if _may_be_sharded() else 1
    shape = magnitudes.shape
    numbers = (2,) if axis == magnitudes.ndim - 1 else _NEIGHBORS
    for number in numbers:
        groups = shape[axis] // number, number
        if shape[axis] % number == 0 and groups[0] >= most_shards:
            magnitudes = magnitudes.reshape(*shape[:axis], *groups, *shape[axis + 1 :])
            return _add_unrecognized(magnitudes, (axis + 1,))
    return magnitudes


def _may_be_sharded() -> bool:
    """Whether XLA may have sharded an array; inside `jax.shard_map` it does not."""
    is_manual = jax.sharding.get_abstract_mesh().are_all_axes_manual
    return jax.device_count() > 1 and not is_manual


def _add_unrecognized(magnitudes: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sums nonnegative numbers in a way that XLA does not recognize as a sum."""
    zero = np.zeros((), magnitudes.dtype)
    return lax.reduce(
        magnitudes, zero, lambda left, right: jnp.abs(left) + jnp.abs(right), axes
    )


def first_minima(arrays: Sequence[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
    """Finds the minimum of each array along its last axis, and where it comes first.

    XLA for GPUs makes a kernel of each `jnp.argmin`; one reduction of several arrays is
    one kernel, to which it adds the sums over the same axis.

    Args:
      arrays: floating `[..., N]`, without NaN.

    Returns:
      For each array its minima `[...]` and their indices, int32.
    """

    def smaller(old: tuple, new: tuple) -> tuple:
        kept = []
        for place in range(0, len(old), 2):
            (value, index), (other, at) = old[place : place + 2], new[place : place + 2]
            is_other = (other < value) | ((other == value) & (at < index))
            kept += [
                lax.select(is_other, other, value),
                lax.select(is_other, at, index),
            ]
        return tuple(kept)

    kinds = [(array.shape, array.dtype) for array in arrays]
    found = {}
    for kind in dict.fromkeys(kinds):
        alike = [n for n in range(len(arrays)) if kinds[n] == kind]
        shape, dtype = kind
        axis = len(shape) - 1
        indices = lax.broadcasted_iota(jnp.int32, shape, axis)
        operands = [operand for n in alike for operand in (arrays[n], indices)]
        ends = [np.asarray(np.inf, dtype), np.asarray(shape[axis], np.int32)]
        out = lax.reduce(operands, ends * len(alike), smaller, (axis,))
        found |= dict(zip(alike, zip(out[::2], out[1::2], strict=True), strict=True))
    return [found[n] for n in range(len(arrays))]


def replace_rows(
    array: jax.Array, new: jax.Array, mask: jax.Array, rows: Mapping[int, jax.Array]
) -> jax.Array:
    """Takes the entries of a mask from another array: `jnp.where(mask, new, array)`.

    The mask covers at most one row along each of some axes. A CPU rewrites these in
    place, instead of passing over the whole array; of lanes or shards it would make
    loops, and a GPU kernels of their own.

    Args:
      array: any array.
      new: of the same shape and dtype.
      mask: bool, broadcasts to it.
      rows: by axis the index of the row in the mask, int32 scalar, or one past the last
        for none.
    """

    def select(array: jax.Array, new: jax.Array, *others: jax.Array) -> jax.Array:
        return jnp.where(others[0], new, array)

    def rewrite(array: jax.Array, new: jax.Array, *others: jax.Array) -> jax.Array:
        _, *indices = others
        for axis, index in zip(rows, indices, strict=True):
            # Unsigned, since a negative index would have to be looked for.
            place = jnp.minimum(index, array.shape[axis] - 1).astype(jnp.uint32)
            old_row, new_row = (
                lax.dynamic_index_in_dim(each, place, axis) for each in (array, new)
            )
            row = jnp.where(index < array.shape[axis], new_row, old_row)
            array = lax.dynamic_update_index_in_dim(array, row, place, axis)
        return array

    @custom_vmap
    def replace(*arguments: jax.Array) -> jax.Array:
        if _may_be_sharded():
            return select(*arguments)
        return lax.platform_dependent(*arguments, cpu=rewrite, default=select)

    @replace.def_vmap
    def _(
        lanes: int, is_batched: list[bool], *arguments: jax.Array
    ) -> tuple[jax.Array, bool]:
        axes = [0 if batched else None for batched in is_batched]
        return jax.vmap(select, axes, axis_size=lanes)(*arguments), True

    replace_differentiably = jax.custom_jvp(replace)

    @replace_differentiably.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
        array, new, *others = primals

        def select_from(array: jax.Array, new: jax.Array) -> jax.Array:
            return select(array, new, *others)

        return jax.jvp(select_from, (array, new), tangents[:2])

    return replace_differentiably(array, new, mask, *rows.values())


def computed_once(array: jax.Array) -> jax.Array:
    """Returns the array, which XLA then does not compute anew wherever it is used.

    XLA for GPUs likes to fuse what leads to a small array into all that reads it, be it
    a power for each weight. If a loop carries what it leads from, that is copied then,
    because it is still read when its next value is written.
    """
    return lax.optimization_barrier(array)


def next_key_if(is_due: jax.Array, next_key: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the next key where it is due, else the key itself, typed scalars.

    XLA for GPUs would derive the next key as it selects. Since that mixes the words of
    the old one, it could not write to the same place, and a loop would copy the key.
    """
    words = [computed_once(word) for word in jax.random.key_data(next_key)]
    bits = jnp.where(is_due, jnp.stack(words), jax.random.key_data(key))
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(key))


def one_by_one_on_cpu(
    decompose: Callable[[jax.Array], jax.Array],
    on_tpu: Callable[[jax.Array], jax.Array] | None = None,
) -> Callable[[jax.Array], jax.Array]:
    """Keeps a CPU from decomposing several matrices in one call under `vmap`.

    JAX 0.10 splits such a call among the threads that make it. If these all wait for
    parts that no thread is left to compute, the program deadlocks, as it did with 375
    matrices on each of two CPU devices. JAX 0.11.2 no longer splits it. No setting of
    XLA that we tried helps: with one thread, or without multi-threaded Eigen, such
    calls deadlock as often; with 16 threads on two cores they do not, but other
    programs are slower.

    Derivatives are those of `decompose`; they still take a batch in one call.

    Args:
      decompose: of a matrix.
      on_tpu: what does the same on a TPU, None for `decompose`.
    """
    # The lambda hides arguments that are not arrays.
    on_cpu = sequential_vmap(lambda matrix: decompose(matrix))

    @jax.custom_jvp
    def values(matrix: jax.Array) -> jax.Array:
        return lax.platform_dependent(
            matrix, cpu=on_cpu, tpu=on_tpu or decompose, default=decompose
        )

    @values.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(decompose, primals, tangents)

    return values


def in_auto_mode(
    function: Callable[..., PyTree], like: PyTree
) -> Callable[..., PyTree]:
    """Lets XLA choose the shardings inside a function of arrays.

    Args:
      function: function of pytrees of arrays.
      like: pytree of arrays with the structure and shardings of its output.

    Returns:
      The new function, or the function itself if no mesh has explicit axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit not in mesh.axis_types:
        return function
    shardings = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, like)
    return jax.sharding.auto_axes(function, out_sharding=shardings)


def round_to_dtype(array: jax.Array) -> jax.Array:
    """Rounds an array to its own dtype, because XLA may keep more bits.

    It may keep the float32 value in which a bfloat16 sum was computed.
    """
    info = jnp.finfo(array.dtype)
    if info.bits >= 32:
        return array
    return lax.reduce_precision(array, info.nexp, info.nmant)
