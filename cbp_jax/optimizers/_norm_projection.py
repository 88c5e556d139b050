"""The projection of normalize and project: kernels keep their initial norm."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cbp_jax._numbers import at_least_float32, check_params, lead_to
from cbp_jax._trees import are_kernels, are_named
from cbp_jax._types import PyTree


class ProjectNormsState(NamedTuple):
    """State of `project_norms`."""

    # Like the params: the initial Frobenius norm of each leaf, a scalar in at least
    # float32; 0 for leaves that are not projected.
    norms: PyTree


def project_norms(
    *, exclude: Sequence[str] = ()
) -> optax.GradientTransformationExtraArgs:
    r"""Scales every kernel back to its initial Frobenius norm after every update.

    .. math:: W \leftarrow \frac{\|W_0\|_F}{\|W\|_F} W

    Put it last in a chain::

      tx = optax.chain(optax.adam(1e-3), cbp_jax.optimizers.project_norms())

    This is half of normalize and project (NaP). The other half is the network's: put a
    normalization before each nonlinearity, which makes the preceding layer invariant to
    the scale of its weights, and no biases before a normalization. The norm then only
    determines how far a step rotates the weights, and a growing norm acts like a
    decaying learning rate.

    A kernel is a leaf with two or more axes that is not a bias or scale. Biases, scales
    and shifts do not change. The paper lets the latter two drift, pulls them toward
    their initial values (`l2_init` under `optax.masked`), or projects them together. A
    kernel whose norm is 0, now or at initialization, does not change either.

    Args:
      exclude: paths of layers or leaves to leave alone, such as `"head"` or
        `"head/kernel"`. No normalization follows the output layer, so its norm is the
        scale of the outputs: exclude it to let them grow.

    Returns:
      An optax transformation with state `ProjectNormsState`. Its update needs the
      params.

    Raises:
      ValueError: a path of `exclude` is not in the params, or the update gets no
        params.

    References:
      Lyle et al., `Normalization and effective learning rates in reinforcement learning
      <https://arxiv.org/abs/2407.01800>`_, 2024.
    """
    exclude = tuple(exclude)

    def are_projected(params: PyTree) -> PyTree:
        return jax.tree.map(
            lambda is_kernel, is_excluded: is_kernel and not is_excluded,
            are_kernels(params),
            are_named(params, exclude, "exclude"),
        )

    def init(params: PyTree) -> ProjectNormsState:
        def norm(param: jax.Array, is_projected: bool) -> jax.Array:
            dtype = at_least_float32(param.dtype)
            if not is_projected:
                return jnp.zeros((), dtype)
            return jnp.linalg.norm(param.astype(dtype).ravel())

        return ProjectNormsState(jax.tree.map(norm, params, are_projected(params)))

    def update(
        updates: PyTree,
        state: ProjectNormsState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ProjectNormsState]:
        del extra_args
        check_params("project_norms", params)

        def project(
            update: jax.Array,
            param: jax.Array,
            initial_norm: jax.Array,
            is_projected: bool,
        ) -> jax.Array:
            if not is_projected:
                return update
            dtype = initial_norm.dtype
            new = param.astype(dtype) + update.astype(dtype)
            norm = jnp.linalg.norm(new.ravel())
            has_norm = (norm > 0) & (initial_norm > 0)
            scale = initial_norm / jnp.where(has_norm, norm, 1)
            return lead_to(scale * new, has_norm, update, param)

        updates = jax.tree.map(
            project, updates, params, state.norms, are_projected(params)
        )
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)
