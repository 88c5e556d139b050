"""The empirical neural tangent kernel. Shapes: n examples, P params in all."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from cbp_jax._numbers import as_float
from cbp_jax._types import PyTree
from cbp_jax.metrics._params import as_vector


def tangent_kernel(
    apply: Callable[[PyTree, PyTree], PyTree], params: PyTree, inputs: PyTree
) -> jax.Array:
    r"""The empirical tangent kernel of a network, summed over its outputs.

    .. math::
      K_{ij} = \sum_o \nabla_\theta f_o(x_i)^\top \nabla_\theta f_o(x_j),

    which is :math:`J J^\top` for a network with one output. To first order, K says how
    a gradient step on one example changes the outputs on the others. Its rank is the
    number of examples that can be fitted independently::

      kernel = cbp_jax.metrics.tangent_kernel(apply, params, inputs)
      rank = cbp_jax.metrics.effective_rank(kernel)
      condition = cbp_jax.metrics.condition_number(kernel)

    Some 32 examples are enough to compare checkpoints. It keeps n gradients at a time,
    n P numbers. Source: Jacot et al., Neural tangent kernel, 2018.

    Args:
      apply: maps params and inputs to the outputs, any pytree of arrays. It must return
        outputs only, and those of an example must not depend on the other examples, as
        they would with batch normalization in training mode.
      params: any pytree of arrays. Half precision is converted to float32; leaves that
        are not floating-point are constants.
      inputs: n examples, any pytree of arrays [n, ...].

    Returns:
      [n, n] symmetric, float32 or float64.

    Raises:
      ValueError: the inputs do not all have the same number of examples.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"inputs has arrays of shapes {shapes}, expected [examples, ...] with one "
            "number of examples. Give all inputs a batch axis."
        )
    vector, rebuild = as_vector(params)

    def outputs_of(vector: jax.Array, example: PyTree) -> jax.Array:
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], example)
        outputs = jax.tree.leaves(apply(rebuild(vector), batch))
        return jnp.concatenate([as_float(each).reshape(-1) for each in outputs])

    def gradient(vector: jax.Array, example: PyTree, index: jax.Array) -> jax.Array:
        return jax.grad(lambda vector: outputs_of(vector, example)[index])(vector)

    def add(kernel: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        grads = jax.vmap(gradient, (None, 0, None))(vector, inputs, index)  # [n, P]
        return kernel + jnp.matmul(grads, grads.T), None

    first = jax.tree.map(lambda leaf: leaf[0], inputs)
    num_outputs = jax.eval_shape(outputs_of, vector, first).size
    kernel = jnp.zeros(2 * shapes[0][:1], vector.dtype)
    with jax.default_matmul_precision("highest"):
        return lax.scan(add, kernel, jnp.arange(num_outputs))[0]
