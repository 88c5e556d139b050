"""FIRE: at events, kernels become their nearest scaled orthogonal matrices."""

from collections.abc import Sequence
import math

import jax
from jax import lax
import jax.numpy as jnp
import optax

from cbp_jax._numbers import at_least_float32, check_range
from cbp_jax._trees import are_kernels, are_named
from cbp_jax._types import PyTree
from cbp_jax.optimizers._events import EventState, Schedule, act_at


def fire(
    schedule: Schedule,
    *,
    num_iterations: int | jax.Array = 10,
    exclude: Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    r"""Frobenius-isometry reinitialization: orthogonalizes every kernel at events.

    Among all matrices with orthonormal rows or columns, the nearest to W is its polar
    factor U V', where W = U S V' is the singular value decomposition. After each update
    of the schedule, a kernel with `fan_in` inputs and `fan_out` outputs becomes

    .. math:: W \leftarrow \sqrt{\text{fan-out} / \text{fan-in}} \; U V^\top.

    Newton-Schulz iterations approximate the factor:

    .. math::
      X_0 = W / \|W\|_F, \qquad
      X_{k + 1} = \tfrac{3}{2} X_k - \tfrac{1}{2} X_k X_k^\top X_k.

    Each iteration multiplies a small singular value by 3/2, so 10 iterations do not
    bring a singular value below about 1/50 of the Frobenius norm up to 1. A convolution
    `[height, width, fan_in, fan_out]` is one matrix per position of its window, and its
    scale is divided by the number of positions. Put it last in a chain::

      tx = optax.chain(optax.adam(1e-3), fire(every(10_000), exclude=("head",)))

    Biases and scales do not change. The authors start a new optimizer after each event;
    see `reset_optimizer_at`. In a vision transformer, their code orthogonalizes only
    the query and key kernels. In deep Q-learning, it orthogonalizes the convolutions
    and reinitializes the other layers (`reset_params_at`). Everywhere else it
    orthogonalizes all kernels, including the output layer. A kernel (or a position of
    it) that is all 0 stays 0, whereas their code divides by 0.

    Args:
      schedule: which updates are events; see `cbp_jax.optimizers.every`. Without events
        the updates do not change, bit for bit.
      num_iterations: number of iterations, at least 1; published: 10, and 5 for a
        language model. May be traced.
      exclude: paths of layers or leaves to leave alone, such as `"head"` or
        `"head/kernel"`.

    Returns:
      An optax transformation with state `EventState`. Its update needs the params.

    Raises:
      ValueError: `num_iterations` is below 1, a path of `exclude` is not in the params,
        or the update gets no params.

    References:
      Han et al., `FIRE: Frobenius-isometry reinitialization for balancing the
      stability-plasticity tradeoff <https://arxiv.org/abs/2602.08040>`_, 2026.
    """
    check_range("num_iterations", num_iterations, 1, math.inf)
    exclude = tuple(exclude)

    def act(params: PyTree, key: None) -> PyTree:
        del key

        def replace(param: jax.Array, is_kernel: bool, is_excluded: bool) -> jax.Array:
            if is_excluded or not is_kernel or not param.size:
                return param
            return orthogonalize(param, num_iterations)

        is_excluded = are_named(params, exclude, "exclude")
        return jax.tree.map(replace, params, are_kernels(params), is_excluded)

    events = act_at(schedule, act)

    def init(params: PyTree) -> EventState:
        are_named(params, exclude, "exclude")
        return events.init(params)

    return optax.GradientTransformationExtraArgs(init, events.update)


def orthogonalize(kernel: jax.Array, num_iterations: int | jax.Array) -> jax.Array:
    """Returns the scaled orthogonal matrix near a kernel; see `fire`.

    Args:
      kernel: `[..., fan_in, fan_out]`; leading axes are positions of a convolution.
      num_iterations: number of Newton-Schulz iterations.

    Returns:
      An array of the kernel's shape, in at least float32.
    """
    *window, fan_in, fan_out = kernel.shape
    kernel = kernel.astype(at_least_float32(kernel.dtype))
    norms = jnp.linalg.norm(kernel, axis=(-2, -1), keepdims=True)
    start = kernel / jnp.where(norms > 0, norms, 1)
    # The smaller of the two Gram matrices of X.
    product = "...ki,...kj->...ij" if fan_in >= fan_out else "...ik,...jk->...ij"

    def iterate(_: jax.Array, x: jax.Array) -> jax.Array:
        gram = jnp.einsum(product, x, x, precision=lax.Precision.HIGHEST)
        pair = (x, gram) if fan_in >= fan_out else (gram, x)
        return 1.5 * x - 0.5 * jnp.matmul(*pair, precision=lax.Precision.HIGHEST)

    factor = lax.fori_loop(0, num_iterations, iterate, start)
    return math.sqrt(fan_out / fan_in) / math.prod(window) * factor
