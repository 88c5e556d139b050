"""The kernels of any params tree as matrices, for losses of weight matrices."""

from collections.abc import Sequence

import jax
from jax import lax
import jax.numpy as jnp

from cbp_jax._numbers import as_float, check_choice
from cbp_jax._trees import are_kernels, are_named
from cbp_jax._types import PyTree

_LAYOUTS = ("io", "oi")


def kernel_matrices(
    params: PyTree, layout: str, exclude: Sequence[str]
) -> list[jax.Array]:
    """Returns each kernel as a matrix `[out, in]` with one row per unit.

    Args:
      params: any pytree.
      layout: "io" for kernels `[..., in, out]`, "oi" for `[out, in, ...]`.
      exclude: paths of layers or leaves to leave out.

    Returns:
      The matrices, in float32 or float64. The positions of a convolution's window count
      as inputs.

    Raises:
      ValueError: the layout is unknown, or a path is not in the params.
    """
    check_choice("layout", layout, _LAYOUTS)
    matrices = []
    for leaf, is_kernel, is_excluded in zip(
        jax.tree.leaves(params),
        jax.tree.leaves(are_kernels(params)),
        jax.tree.leaves(are_named(params, tuple(exclude), "exclude")),
        strict=True,
    ):
        if is_kernel and not is_excluded:
            axis = -1 if layout == "io" else 0
            units_first = jnp.moveaxis(as_float(leaf), axis, 0)
            matrices.append(units_first.reshape(leaf.shape[axis], -1))
    return matrices


def distance_from_identity(rows: jax.Array, scale: float | jax.Array) -> jax.Array:
    """Returns `||R R' - scale I||^2`, squared Frobenius, of rows `[..., rows, M]`."""
    # By default, accelerators round the factors of a float32 product to fewer bits.
    gram = jnp.einsum("...im,...jm->...ij", rows, rows, precision=lax.Precision.HIGHEST)
    identity = jnp.broadcast_to(jnp.eye(rows.shape[-2], dtype=rows.dtype), gram.shape)
    return jnp.sum(jnp.square(gram - jnp.asarray(scale, rows.dtype) * identity))
