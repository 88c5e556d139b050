"""Eigenvalues of the loss's Hessian. Shapes: P params in all, M examples.

Only products of the Hessian with a vector are computed, each for about twice the cost
of a gradient.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from cbp_jax._numbers import as_float
from cbp_jax._types import LossFn, PyTree
from cbp_jax.metrics._loss import scalar_loss
from cbp_jax.metrics._params import as_vector
from cbp_jax.metrics._ranks import symmetric_eigenvalues

_HIGHEST = lax.Precision.HIGHEST


def hessian_eigenvalues(
    loss_fn: LossFn,
    params: PyTree,
    inputs: PyTree,
    targets: PyTree,
    *,
    order: int = 100,
    key: jax.Array | None = None,
) -> jax.Array:
    r"""Eigenvalues of the Hessian of a loss by the Lanczos method.

    From a random unit vector :math:`v_1`, each step computes

    .. math::
      \alpha_k = v_k^\top H v_k, \qquad
      \beta_k v_{k + 1} = (I - V_k V_k^\top) H v_k, \qquad V_k = [v_1, \dots, v_k],

    twice orthogonalized against all earlier vectors. The results are the eigenvalues of
    the tridiagonal matrix with diagonal :math:`\alpha` and off-diagonals :math:`\beta`.
    The largest and the smallest are found first. If the vectors span an invariant
    subspace, the method goes on with a random vector, so that it also finds an
    eigenvalue that occurs several times. With `order` at least P it finds all P.

    It keeps `order` vectors of P numbers. Matrix products inside the loss have the
    highest precision.

    Args:
      loss_fn: maps params, inputs and targets to a scalar loss, which must be twice
        differentiable.
      params: any pytree of arrays. Half precision is converted to float32; leaves that
        are not floating-point are constants.
      inputs: what `loss_fn` takes, usually [M, ...].
      targets: what `loss_fn` takes.
      order: number of steps, at least 1. At most P are taken.
      key: PRNG key of the random vectors; None for the same ones in each call.

    Returns:
      [min(order, P)] in ascending order, float32 or float64; NaN if the loss is.

    Raises:
      ValueError: `order` is below 1, or the loss is not a scalar.

    References:
      Golub and Van Loan, Matrix Computations, 4th edition, sections 10.1 and 10.3.
    """
    if order < 1:
        raise ValueError(f"order is {order}, expected at least 1. Pass order=100.")
    vector, product = _hessian(loss_fn, params, inputs, targets)
    order = min(order, vector.size)
    keys = jax.random.split(_key(key), order + 1)
    dtype = vector.dtype

    def orthogonalize(vector: jax.Array, basis: jax.Array) -> jax.Array:
        for _ in range(2):
            shares = jnp.matmul(basis, vector, precision=_HIGHEST)
            vector = vector - jnp.matmul(shares, basis, precision=_HIGHEST)
        return vector

    def step(
        carry: tuple[jax.Array, jax.Array, jax.Array],
        index_and_key: tuple[jax.Array, jax.Array],
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        basis, vector, largest = carry
        index, key = index_and_key
        basis = lax.dynamic_update_index_in_dim(basis, vector, index, 0)
        image = product(vector)
        alpha = jnp.vdot(vector, image, precision=_HIGHEST)
        largest = jnp.maximum(largest, jnp.linalg.norm(image))
        rest = orthogonalize(image, basis)
        beta = jnp.linalg.norm(rest)
        # Of an invariant subspace only rounding is left, which has no direction.
        is_left = beta > 10 * jnp.finfo(dtype).eps * largest
        other = orthogonalize(jax.random.normal(key, vector.shape, dtype), basis)
        rest = jnp.where(is_left, rest, other)
        beta = jnp.where(is_left, beta, 0)
        return (basis, _normalize(rest), largest), (alpha, beta)

    first = _normalize(jax.random.normal(keys[-1], vector.shape, dtype))
    carry = (jnp.zeros((order, vector.size), dtype), first, jnp.zeros((), dtype))
    _, (alpha, beta) = lax.scan(step, carry, (jnp.arange(order), keys[:-1]))
    off_diagonal = jnp.diag(beta[:-1], 1)
    return symmetric_eigenvalues(jnp.diag(alpha) + off_diagonal + off_diagonal.T)


def hessian_rank(
    loss_fn: LossFn,
    params: PyTree,
    inputs: PyTree,
    targets: PyTree,
    *,
    bound: jax.Array | float = 0.1,
    order: int = 100,
    key: jax.Array | None = None,
) -> jax.Array:
    """Number of eigenvalues of the Hessian whose magnitude is above a bound.

    It counts those that `hessian_eigenvalues` finds. By interlacing, there are at least
    as many, and at most `order` are counted. Source: the epsilon-rank of Prakash et
    al., 2025 (arXiv:2509.22335), who measure it at the start of a task on 2,000
    examples.

    Args:
      loss_fn: maps params, inputs and targets to a scalar loss.
      params: any pytree of arrays; see `hessian_eigenvalues`.
      inputs: what `loss_fn` takes, usually [M, ...].
      targets: what `loss_fn` takes.
      bound: smallest magnitude, exclusive, in the units of the loss per squared weight.
      order: number of Lanczos steps, at least 1.
      key: PRNG key of the random vectors; None for the same ones in each call.

    Returns:
      Scalar, a whole number as float32 or float64; NaN if the loss is.

    Raises:
      ValueError: `order` is below 1, or the loss is not a scalar.
    """
    values = hessian_eigenvalues(loss_fn, params, inputs, targets, order=order, key=key)
    count = jnp.sum(jnp.abs(values) > bound).astype(values.dtype)
    return jnp.where(jnp.any(jnp.isnan(values)), jnp.nan, count)


def sharpness(
    loss_fn: LossFn,
    params: PyTree,
    inputs: PyTree,
    targets: PyTree,
    *,
    num_iterations: int = 100,
    key: jax.Array | None = None,
) -> jax.Array:
    r"""Largest eigenvalue of the Hessian of a loss by power iteration.

    The iteration :math:`v \leftarrow H v / \|H v\|` finds the eigenvalue
    :math:`\lambda` of the largest magnitude. If it is negative, a second one with
    :math:`H - \lambda I` finds the largest; otherwise the first one goes on. The result
    is :math:`v^\top H v`, which approaches the eigenvalue from below. It needs the
    memory of two vectors of P numbers; `hessian_eigenvalues` needs fewer products with
    the Hessian but more memory.

    Args:
      loss_fn: maps params, inputs and targets to a scalar loss, which must be twice
        differentiable.
      params: any pytree of arrays; see `hessian_eigenvalues`.
      inputs: what `loss_fn` takes, usually [M, ...].
      targets: what `loss_fn` takes.
      num_iterations: products with the Hessian in each of the two iterations, at least
        1.
      key: PRNG key of the first vector; None for the same one in each call.

    Returns:
      Scalar in the units of the loss per squared weight, float32 or float64.

    Raises:
      ValueError: `num_iterations` is below 1, or the loss is not a scalar.
    """
    if num_iterations < 1:
        raise ValueError(
            f"num_iterations is {num_iterations}, expected at least 1. Pass "
            "num_iterations=100."
        )
    vector, product = _hessian(loss_fn, params, inputs, targets)
    start = _normalize(jax.random.normal(_key(key), vector.shape, vector.dtype))

    def iterate(
        carry: tuple[jax.Array, jax.Array], _: None
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        shift, vector = carry

        def step(
            _: jax.Array, state: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            vector, _ = state
            image = product(vector)
            value = jnp.vdot(vector, image, precision=_HIGHEST)
            return _normalize(image - shift * vector), value

        state = vector, jnp.zeros_like(shift)
        vector, value = lax.fori_loop(0, num_iterations, step, state)
        is_negative = value < 0
        shift = jnp.where(is_negative, value, 0)
        return (shift, jnp.where(is_negative, start, vector)), value

    carry = jnp.zeros((), vector.dtype), start
    _, values = lax.scan(iterate, carry, length=2)
    return values[1]


def _hessian(
    loss_fn: LossFn, params: PyTree, inputs: PyTree, targets: PyTree
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """Returns the params as a vector [P], and the product of the Hessian with one."""
    vector, rebuild = as_vector(params)

    def loss_of(vector: jax.Array) -> jax.Array:
        return as_float(scalar_loss(loss_fn, rebuild(vector), inputs, targets))

    with jax.default_matmul_precision("highest"):
        _, product = jax.linearize(jax.grad(loss_of), vector)
    return vector, product


def _key(key: jax.Array | None) -> jax.Array:
    return jax.random.key(0) if key is None else key


def _normalize(vector: jax.Array) -> jax.Array:
    length = jnp.linalg.norm(vector)
    return vector / jnp.where(length > 0, length, 1)
