"""Parseval regularization: each layer's weight vectors are kept orthogonal."""

from collections.abc import Sequence

import jax

from cbp_jax._types import PyTree
from cbp_jax.losses._kernels import distance_from_identity, kernel_matrices
from cbp_jax.losses._sums import add_up


def parseval(
    params: PyTree,
    *,
    gain: float | jax.Array = 2**0.5,
    reference_width: float | None = 64,
    num_groups: int = 1,
    layout: str = "io",
    exclude: Sequence[str] = (),
) -> jax.Array:
    r"""Distance of each kernel from a matrix with orthogonal rows of one length.

    .. math::
      \sum_W \Big(\frac{w}{n_W}\Big)^2
      \big\| W W^\top - g^2 I \big\|_F^2

    over kernels W as matrices `[out, in]`, with :math:`n_W` outputs and gain g. A
    convolution is one matrix whose inputs include the positions of its window. The
    paper writes the sum without the factor :math:`(w / n_W)^2`, which the authors' code
    has, because its strength was tuned at width w = 64. If a layer has more outputs
    than inputs, its rows cannot all be orthogonal, and the distance stays above 0.

    The paper regularizes hidden layers only, so exclude the output layer. It
    initializes them with orthogonal matrices of the same gain,
    `jax.nn.initializers.orthogonal(gain)`. To let each unit choose its scale, the paper
    puts a learned gain and a bias behind each layer; such vectors are not kernels, and
    this loss leaves them alone.

    Args:
      params: any pytree. A kernel is a leaf with two or more axes that is not a bias or
        scale.
      gain: g; the default is the authors', :math:`\sqrt 2`.
      reference_width: w; None omits the factor.
      num_groups: number of groups of consecutive units; only units of the same group
        must be orthogonal. Every kernel's outputs must be divisible by it.
      layout: "io" for kernels `[..., in, out]` (flax, Haiku), "oi" for `[out, in, ...]`
        (Equinox).
      exclude: paths of layers or leaves to leave out, such as `"head"`.

    Returns:
      Scalar, 0 without kernels. The published strengths are 1e-3 and 1e-4.

    Raises:
      ValueError: the layout is unknown, a path is not in the params, or a number of
        outputs is not divisible by `num_groups`.

    References:
      Chung et al., `Parseval regularization for continual reinforcement learning
      <https://arxiv.org/abs/2412.07224>`_, 2024.
    """
    terms = []
    for matrix in kernel_matrices(params, layout, exclude):
        width, fan_in = matrix.shape
        if width % num_groups:
            raise ValueError(
                f"A kernel has {width} outputs, which num_groups = {num_groups} does "
                "not divide. Choose a divisor, or exclude the layer."
            )
        groups = matrix.reshape(num_groups, width // num_groups, fan_in)
        factor = 1 if reference_width is None else (reference_width / width) ** 2
        terms.append(factor * distance_from_identity(groups, gain**2))
    return add_up(terms)
