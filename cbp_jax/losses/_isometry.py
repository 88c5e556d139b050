"""Dynamical isometry: the singular values of each kernel are kept near 1."""

from collections.abc import Sequence

import jax

from cbp_jax._types import PyTree
from cbp_jax.losses._kernels import distance_from_identity, kernel_matrices
from cbp_jax.losses._sums import add_up


def isometry(
    params: PyTree, *, layout: str = "io", exclude: Sequence[str] = ()
) -> jax.Array:
    r"""Distance of each kernel from one whose singular values are all 1.

    .. math::
      \sum_W \begin{cases}
        \| W^\top W - I \|_F^2 & \text{if } \text{out} \ge \text{in} \\
        \| W W^\top - I \|_F^2 & \text{otherwise}
      \end{cases}

    over kernels W as matrices `[out, in]`. It is the sum of :math:`(\sigma^2 - 1)^2`
    over all singular values. A convolution is one matrix whose inputs include the
    positions of its window; the choice is ours. `cbp_jax.optimizers.adamo` takes the
    gradient of this loss outside Adam's moments.

    Args:
      params: any pytree. A kernel is a leaf with two or more axes that is not a bias or
        scale.
      layout: "io" for kernels `[..., in, out]` (flax, Haiku), "oi" for `[out, in, ...]`
        (Equinox).
      exclude: paths of layers or leaves to leave out, such as `"head"`.

    Returns:
      Scalar, 0 without kernels.

    Raises:
      ValueError: the layout is unknown, or a path is not in the params.

    References:
      Rosseau, Müller and Nowé, `Preserving plasticity in continual learning via
      dynamical isometry <https://arxiv.org/abs/2606.09762>`_, 2026.
    """

    def distance(matrix: jax.Array) -> jax.Array:
        fan_out, fan_in = matrix.shape
        return distance_from_identity(matrix.T if fan_out >= fan_in else matrix, 1)

    return add_up(
        [distance(matrix) for matrix in kernel_matrices(params, layout, exclude)]
    )
