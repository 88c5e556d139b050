"""Weight clipping: keeps each weight within a multiple of its initial range."""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cbp_jax._numbers import at_least_float32, check_params, check_range, lead_to
from cbp_jax._trees import are_named, is_kernel
from cbp_jax._types import PyTree
from cbp_jax._units import LeafPath, leaf_paths

Bounds = Callable[[str, tuple[int, ...]], float]


def uniform_fan_in_bound(path: str, kernel_shape: tuple[int, ...]) -> float:
    """Returns the bound of PyTorch's default initialization, `1 / sqrt(fan_in)`.

    Args:
      path: path of the leaf; not used.
      kernel_shape: shape of the leaf's kernel; see `clip_weights`.

    Returns:
      The bound of a kernel `[..., fan_in, fan_out]` and of its bias; infinity for
      leaves without a kernel, such as the scale of a normalization.
    """
    del path
    if len(kernel_shape) < 2:
        return math.inf
    return 1 / math.sqrt(math.prod(kernel_shape[:-1]))


def clip_weights(
    kappa: float | jax.Array,
    *,
    bounds: Bounds | None = None,
    exclude: Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    r"""Clips every weight and bias to a multiple of its initial bound.

    .. math:: \theta \leftarrow \operatorname{clip}(\theta, -\kappa s, \kappa s)

    after every update, where :math:`s` is the bound of the leaf's initial distribution.
    Put it last in a chain::

      tx = optax.chain(optax.sgd(1e-2), cbp_jax.optimizers.clip_weights(2.0))

    The default bounds are those of the authors' code: :math:`1 / \sqrt{\text{fan-in}}`
    for a kernel, and the same for its bias. If weights are initialized by
    `cbp_jax.initializers.kaiming_uniform`, pass :math:`\text{gain}
    \sqrt{3 / \text{fan-in}}`::

      def bounds(path, kernel_shape):
          gain = 1.0 if path.startswith("head") else math.sqrt(2)
          return gain * math.sqrt(3) * uniform_fan_in_bound(path, kernel_shape)

    Scales and shifts of a normalization have no kernel and do not change. (The authors'
    code applies the bound of the preceding kernel.)

    Args:
      kappa: :math:`\kappa`, published 1 to 5. An update that clips nothing passes
        through bit for bit; infinity never clips.
      bounds: function of a leaf's path and the shape of its kernel that returns
        :math:`s`, or infinity to leave the leaf alone; None for `uniform_fan_in_bound`.
        The kernel of a bias is the only kernel in the same layer. A bias or scale
        without one passes its own shape, `[N]`.
      exclude: paths of layers or leaves to leave alone, such as `"head"` or
        `"head/kernel"`.

    Returns:
      An optax transformation without state. Its update needs the params.

    Raises:
      ValueError: `kappa` is negative, a path of `exclude` is not in the params, or the
        update gets no params.

    References:
      Elsayed et al., `Weight clipping for deep continual and reinforcement learning
      <https://arxiv.org/abs/2407.01704>`_, 2024.
    """
    check_range("kappa", kappa, 0, math.inf)
    bounds = uniform_fan_in_bound if bounds is None else bounds
    exclude = tuple(exclude)

    def init(params: PyTree) -> optax.EmptyState:
        are_named(params, exclude, "exclude")
        return optax.EmptyState()

    def update(
        updates: PyTree,
        state: optax.EmptyState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, optax.EmptyState]:
        del extra_args
        check_params("clip_weights", params)

        def clip(
            update: jax.Array, param: jax.Array, bound: float, is_excluded: bool
        ) -> jax.Array:
            if is_excluded or bound == math.inf:
                return update
            dtype = at_least_float32(param.dtype)
            new = param.astype(dtype) + update.astype(dtype)
            limit = jnp.asarray(kappa, dtype) * bound
            clipped = jnp.clip(new, -limit, limit)
            return lead_to(clipped, jnp.abs(new) > limit, update, param)

        updates = jax.tree.map(
            clip,
            updates,
            params,
            _bounds_of_leaves(params, bounds),
            are_named(params, exclude, "exclude"),
        )
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


def _bounds_of_leaves(params: PyTree, bounds: Bounds) -> PyTree:
    paths = leaf_paths(params)
    leaves, treedef = jax.tree.flatten(params)
    kernels: dict[str, list[tuple[int, ...]]] = {}
    for path, leaf in zip(paths, leaves, strict=True):
        if is_kernel(path, leaf):
            kernels.setdefault(path.layer, []).append(leaf.shape)

    def bound(path: LeafPath, leaf: jax.Array) -> float:
        if is_kernel(path, leaf):
            return bounds(path.name, leaf.shape)
        own_kernels = kernels.get(path.layer, [])
        own_shape = leaf.shape if leaf.ndim < 2 else (leaf.size,)
        return bounds(path.name, own_kernels[0] if len(own_kernels) == 1 else own_shape)

    return treedef.unflatten(
        [bound(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
    )
