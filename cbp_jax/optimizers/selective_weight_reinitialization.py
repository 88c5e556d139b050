"""Selective weight reinitialization: now and then the least useful weights go."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cbp_jax.averages import at_least_float32
from cbp_jax.checks import check_choice, check_range
from cbp_jax.optimizers.norm_projection import leaf_paths
from cbp_jax.resets.batching import cond_any_lane
from cbp_jax.resets.units import Initializer, PyTree

_DRAW, _ROUND = range(2)


class ReinitializationState(NamedTuple):
    """State of `selective_weight_reinitialization`."""

    count: jax.Array  # int32 scalar, updates so far.
    rng_key: jax.Array  # Typed key, folded with the count where numbers are drawn.


def selective_weight_reinitialization(
    fraction: float | jax.Array,
    *,
    reinitialize_every: int | jax.Array,
    initializers: Initializer | Mapping[str, Initializer | None],
    utility: str = "magnitude",
    selection: str = "fraction",
    reset_to: str = "sample",
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    r"""Redraws the least useful weights of every tensor, every F updates.

    The utility of a weight is :math:`|w|` or :math:`|w g|`, with the weight after the
    update and the gradient g that led to it. Of n weights of a tensor the
    :math:`f n` of lowest utility are drawn from their initial distribution, where a
    fraction is rounded up with the probability of what is left over. The last link of
    a chain::

      swr = cbp_jax.optimizers.selective_weight_reinitialization(
          0.01, reinitialize_every=1000, initializers=kaiming_uniform("relu"), key=key
      )
      tx = optax.chain(optax.sgd(1e-2), swr)

    Biases and shifts, of which each is a tensor as well, go to 0, scales of
    normalizations to 1. What other links know of a weight, such as its moments, stays
    as it is, which is also what the authors' code does: a redrawn weight inherits the
    momentum of the old one.

    Args:
      fraction: f in [0, 1]; with `selection="threshold"` any number that is not
        negative. 0 leaves the updates as they are, bit for bit. May be traced.
      reinitialize_every: F; the best published runs have 512 to 8192. May be traced.
      initializers: distribution of all kernels, or that of each kernel by its path,
        `{"dense_0/kernel": ..., "head/kernel": ...}`. A leaf of fewer than two axes may
        have one too; None leaves a leaf alone.
      utility: `"magnitude"` for :math:`|w|`, `"gradient"` for :math:`|w g|`. The update
        of the latter needs the gradient, `tx.update(grads, state, params, grad=grads)`,
        because earlier links of the chain have turned it into something else.
      selection: `"fraction"`, or `"threshold"` for all weights whose utility is at most
        f times the mean of their tensor.
      reset_to: `"sample"`, or `"mean"` for the mean of the distribution, taken to be 0
        for all leaves but scales.
      key: typed PRNG key.

    Returns:
      An optax transformation of state `ReinitializationState`. Its update needs the
      params; in between two reinitializations it costs next to nothing.

    Raises:
      ValueError: an unknown option, `reinitialize_every` below 1, a `fraction` out of
        its range, a kernel without initializer, a path that is not in the params, or
        an update without params or gradient.

    References:
      Hernandez-Garcia et al., `Reinitializing weights vs units for maintaining
      plasticity in neural networks <https://arxiv.org/abs/2508.00212>`_, 2025. Its code
      can also average utilities over time; the published runs do not.
    """
    check_choice("utility", utility, ("magnitude", "gradient"))
    check_choice("selection", selection, ("fraction", "threshold"))
    check_choice("reset_to", reset_to, ("sample", "mean"))
    check_range("reinitialize_every", reinitialize_every, 1, float("inf"))
    highest = 1.0 if selection == "fraction" else float("inf")
    check_range("fraction", fraction, 0, highest)

    def init(params: PyTree) -> ReinitializationState:
        _find_initializers(initializers, reset_to, params)
        return ReinitializationState(jnp.zeros((), jnp.int32), jnp.copy(key))

    def update(
        updates: PyTree,
        state: ReinitializationState,
        params: PyTree | None = None,
        *,
        grad: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ReinitializationState]:
        del extra_args
        if params is None or (utility == "gradient" and grad is None):
            missing = "params" if params is None else "gradient"
            raise ValueError(
                f"selective_weight_reinitialization needs the {missing}: call "
                "update(updates, state, params, grad=grads)."
            )
        draws = _find_initializers(initializers, reset_to, params)
        count = optax.safe_increment(state.count)
        period = jnp.asarray(reinitialize_every).astype(jnp.int32)
        share = jnp.asarray(fraction, float)
        is_due = (count % period == 0) & (share > 0)

        def work(operand: Any) -> list[jax.Array]:
            is_due, share, step_key, updates, params, grads = operand
            leaves = []
            for index, (update, param) in enumerate(zip(updates, params, strict=True)):
                draw = draws[index]
                if draw is None or not param.size:
                    leaves.append(update)
                    continue
                leaf_key = jax.random.fold_in(step_key, index)
                score = _score(update, param, grads[index] if grads else None)
                round_key = jax.random.fold_in(leaf_key, _ROUND)
                if selection == "fraction":
                    is_chosen = _lowest(score, share, round_key)
                else:
                    is_chosen = score <= share.astype(score.dtype) * jnp.mean(score)
                draw_key = jax.random.fold_in(leaf_key, _DRAW)
                fresh = draw(draw_key, param.shape, param.dtype)
                moved = (fresh - param).astype(update.dtype)
                leaves.append(jnp.where(is_chosen & is_due, moved, update))
            return leaves

        def skip(operand: Any) -> list[jax.Array]:
            return operand[3]

        treedef = jax.tree.structure(params)
        grads = jax.tree.leaves(grad) if utility == "gradient" else []
        operand = (
            is_due,
            share,
            jax.random.fold_in(state.rng_key, count),
            jax.tree.leaves(updates),
            jax.tree.leaves(params),
            grads,
        )
        updates = treedef.unflatten(cond_any_lane(is_due, work, skip, operand))
        return updates, ReinitializationState(count, state.rng_key)

    return optax.GradientTransformationExtraArgs(init, update)


def _find_initializers(
    initializers: Initializer | Mapping[str, Initializer | None],
    reset_to: str,
    params: PyTree,
) -> list[Initializer | None]:
    """Returns the initializer of each leaf, None for one that is left alone."""
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    if not isinstance(initializers, Mapping):
        kernels = [
            path for path, leaf in zip(paths, leaves, strict=True) if _is_kernel(leaf)
        ]
        initializers = dict.fromkeys(kernels, initializers)
    # Without leaves they are the placeholder of `optax.tree.map_params`.
    unknown = initializers.keys() - set(paths) if paths else ()
    if unknown:
        raise ValueError(
            f"initializers has paths {sorted(unknown)}, which are not in the params. "
            f"Use some of {paths}."
        )

    def find(path: str, leaf: jax.Array) -> Initializer | None:
        is_scale = path.rpartition("/")[2] == "scale"
        mean = jax.nn.initializers.ones if is_scale else jax.nn.initializers.zeros
        if path not in initializers:
            if _is_kernel(leaf):
                raise ValueError(
                    f"initializers lacks {path!r}: give its initializer, or None to "
                    "leave it alone."
                )
            return mean
        own = initializers[path]
        return mean if own is not None and reset_to == "mean" else own

    return [find(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]


def _is_kernel(leaf: jax.Array) -> bool:
    return leaf.ndim >= 2


def _score(update: jax.Array, param: jax.Array, grad: jax.Array | None) -> jax.Array:
    """Returns the utility of each weight, of at least float32."""
    dtype = at_least_float32(param.dtype)
    score = jnp.abs(param.astype(dtype) + update.astype(dtype))
    return score if grad is None else score * jnp.abs(grad.astype(dtype))


def _lowest(score: jax.Array, share: jax.Array, key: jax.Array) -> jax.Array:
    """Marks the share of lowest score, among equals the lowest index."""
    exact = share * score.size
    whole = jnp.floor(exact)
    number = whole + (jax.random.uniform(key, (), exact.dtype) < exact - whole)
    order = jnp.argsort(score.ravel())
    ranks = jnp.zeros(score.size, jnp.int32)
    ranks = ranks.at[order].set(jnp.arange(score.size, dtype=jnp.int32))
    return (ranks < number.astype(jnp.int32)).reshape(score.shape)
