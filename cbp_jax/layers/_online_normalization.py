"""Online normalization: batch normalization for a stream of single examples.

The backward pass has state of its own. Since reverse-mode differentiation cannot write
variables, the increments of that state are returned as its gradient. Add them yourself,
or use `value_and_grad_with_state`.

Shapes: B batch, N units (channels, if there are positions `...`).
"""

import functools
from typing import NamedTuple

from flax import linen as nn
from flax.linen.dtypes import promote_dtype
import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cbp_jax._numbers import at_least_float32, check_choice, check_range
from cbp_jax._types import PyTree
from cbp_jax.layers._gradients_with_state import BACKWARD_STATS, FORWARD_STATS

GUARDS = ("layer_scaling", "clip", "none")

_CLIP = 5.0  # Bound of the guard "clip", as in the authors' code.


class OnlineNormalizationState(NamedTuple):
    """State of online normalization; all fields have the same floating dtype."""

    mean: jax.Array  # [N], estimated mean of the inputs, initially 0.
    var: jax.Array  # [N], estimated variance of the inputs, initially 1.
    u: jax.Array  # [N], sum of the gradients passed back, initially 0.
    v: jax.Array  # [N], sum of gradients times outputs, initially 0.


def init_online_normalization(
    num_units: int, dtype: DTypeLike = jnp.float32
) -> OnlineNormalizationState:
    """Returns the initial state of `num_units` units, in a floating dtype."""
    # Each field has its own array, so that the state can be donated.
    return OnlineNormalizationState(
        mean=jnp.zeros(num_units, dtype),
        var=jnp.ones(num_units, dtype),
        u=jnp.zeros(num_units, dtype),
        v=jnp.zeros(num_units, dtype),
    )


def online_normalization(
    inputs: jax.Array,
    state: OnlineNormalizationState,
    *,
    forward_decay: float | jax.Array = 0.999,
    backward_decay: float | jax.Array = 0.99,
    epsilon: float | jax.Array = 1e-5,
) -> tuple[jax.Array, OnlineNormalizationState]:
    r"""Normalizes each unit by running estimates from the preceding examples.

    In order, each example :math:`x` of the batch is normalized, and then updates the
    estimates:

    .. math::
      y &= (x - \mu) / \sqrt{\sigma^2 + \epsilon} \\
      \sigma^2 &\leftarrow \alpha_f \sigma^2 + (1 - \alpha_f) \mathrm{var}(x)
        + \alpha_f (1 - \alpha_f) (\mathrm{mean}(x) - \mu)^2 \\
      \mu &\leftarrow \mu + (1 - \alpha_f) (\mathrm{mean}(x) - \mu)

    with the old :math:`\mu` on the right. Mean and var are over the positions of the
    example (without positions, they are :math:`x` and 0). The gradient is not the
    derivative of these equations. It is controlled so that, in the long run, the
    gradients passed back are orthogonal to the outputs and to 1. For each example in
    the same order, with the :math:`\sigma^2` that normalized it,

    .. math::
      d &= \partial L / \partial y - (1 - \alpha_b) v y, \quad
        v \leftarrow v + \mathrm{mean}(d y) \\
      \partial x &= d / \sqrt{\sigma^2 + \epsilon} - (1 - \alpha_b) u, \quad
        u \leftarrow u + \mathrm{mean}(\partial x)

    The gradients with respect to `state.u` and `state.v` are the increments to add to
    them. Those with respect to the rest of the state and the decays are 0::

      def loss_of(params, state):
        outputs, state = online_normalization(layer(params, inputs), state)
        return loss(outputs), state

      (_, state), (grads, increments) = jax.value_and_grad(
          loss_of, argnums=(0, 1), has_aux=True)(params, state)
      state = state._replace(u=state.u + increments.u, v=state.v + increments.v)

    They scale with the loss: a loss averaged over the batch gives each example 1 / B of
    its gradient. There is no forward-mode derivative.

    Args:
      inputs: `[B, ..., N]`, floating; examples in chronological order.
      state: state of N units, at least float32; everything is computed in its dtype.
      forward_decay: :math:`\alpha_f`, in [0, 1). May be traced.
      backward_decay: :math:`\alpha_b`, in [0, 1]; 1 turns the control off. May be
        traced.
      epsilon: added to the variance. May be traced.

    Returns:
      Outputs `[B, ..., N]` of the inputs' dtype, and the state with the new mean and
      variance; `u` and `v` do not change.

    Raises:
      ValueError: the inputs are not `[B, ..., N]` of a floating dtype, or a decay is
        out of range.

    References:
      Chiley et al., `Online normalization for training neural networks
      <https://arxiv.org/abs/1905.05894>`_, NeurIPS 2019. Where the paper leaves a
      choice open (order of updates, batches, positions), this follows the authors'
      code, https://github.com/Cerebras/online-normalization.
    """
    check_range("forward_decay", forward_decay, 0, 1, open_end=True)
    check_range("backward_decay", backward_decay, 0, 1)
    _check_inputs(inputs, state.mean.shape[-1])
    dtype = state.mean.dtype
    numbers = [
        jnp.asarray(number, dtype)
        for number in (forward_decay, backward_decay, epsilon)
    ]
    outputs, mean, var = _normalize(inputs.astype(dtype), state, *numbers)
    new_state = lax.stop_gradient(state._replace(mean=mean, var=var))
    return outputs.astype(inputs.dtype), new_state


class OnlineNorm(nn.Module):
    """Online normalization with a learned scale and shift, and a guard.

    The params are `scale` and `bias`, `[N]`. The state is `mean` and `var` in the
    collection `FORWARD_STATS`, which training must make mutable, and `u` and `v` in
    `BACKWARD_STATS`, to which training adds their gradient; see
    `value_and_grad_with_state`.

    The mean and variance are estimates from past examples. If the inputs change
    suddenly, the outputs are large until the estimates catch up. The guard bounds them
    and is applied last: "layer_scaling", the paper's, divides each example by its root
    mean square; "clip", the later default of the authors' code, clips to [-5, 5];
    "none" does nothing.

    Attributes:
      use_running_average: for evaluation: normalize all examples by the current state,
        do not update it, and use ordinary derivatives.
      forward_decay: see `online_normalization`. May be traced if the module is built
        inside the traced function.
      backward_decay: likewise.
      epsilon: added to the variance, and to the mean square of the guard.
      guard: one of `GUARDS`.
      param_dtype: dtype of scale and bias.
    """

    use_running_average: bool = False
    forward_decay: float | jax.Array = 0.999
    backward_decay: float | jax.Array = 0.99
    epsilon: float = 1e-5
    guard: str = "layer_scaling"
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Normalizes inputs `[B, ..., N]`; see `online_normalization` for errors."""
        check_choice("guard", self.guard, GUARDS)
        num_units = inputs.shape[-1]
        _check_inputs(inputs, num_units)
        over_units = functools.partial(
            jnp.expand_dims, axis=tuple(range(inputs.ndim - 1))
        )
        initial = init_online_normalization(num_units, at_least_float32(inputs.dtype))
        mean = self.variable(FORWARD_STATS, "mean", lambda: initial.mean)
        var = self.variable(FORWARD_STATS, "var", lambda: initial.var)
        if self.use_running_average and not self.is_initializing():
            deviation = inputs.astype(mean.value.dtype) - over_units(mean.value)
            outputs = deviation * over_units(lax.rsqrt(var.value + self.epsilon))
            outputs = outputs.astype(inputs.dtype)
        else:
            u = self.variable(BACKWARD_STATS, "u", lambda: initial.u)
            v = self.variable(BACKWARD_STATS, "v", lambda: initial.v)
            outputs, state = online_normalization(
                inputs,
                OnlineNormalizationState(mean.value, var.value, u.value, v.value),
                forward_decay=self.forward_decay,
                backward_decay=self.backward_decay,
                epsilon=self.epsilon,
            )
            if not self.is_initializing():
                mean.value, var.value = state.mean, state.var
        scale = self.param(
            "scale", nn.initializers.ones, (num_units,), self.param_dtype
        )
        bias = self.param("bias", nn.initializers.zeros, (num_units,), self.param_dtype)
        outputs, scale, bias = promote_dtype(outputs, scale, bias)
        outputs = outputs * over_units(scale) + over_units(bias)
        if self.guard == "layer_scaling":
            return layer_scaling(outputs, self.epsilon)
        if self.guard == "clip":
            return jnp.clip(outputs, -_CLIP, _CLIP)
        return outputs


def layer_scaling(inputs: jax.Array, epsilon: float | jax.Array = 1e-5) -> jax.Array:
    """Divides each example by the root mean square over its positions and units.

    Args:
      inputs: `[B, ..., N]`, floating.
      epsilon: added to the mean square.

    Returns:
      An array like `inputs`.

    Source: Chiley et al., Online normalization for training neural networks, NeurIPS
    2019.
    """
    wide = inputs.astype(at_least_float32(inputs.dtype))
    axes = tuple(range(1, inputs.ndim))
    mean_square = jnp.mean(jnp.square(wide), axis=axes, keepdims=True)
    return (wide * lax.rsqrt(mean_square + epsilon)).astype(inputs.dtype)


def _check_inputs(inputs: jax.Array, num_units: int) -> None:
    if inputs.ndim < 2 or inputs.shape[-1] != num_units:
        raise ValueError(
            f"Online normalization of {num_units} units got inputs of shape "
            f"{inputs.shape}, expected [batch, ..., {num_units}] with examples in "
            "chronological order. Give a single example a batch axis: inputs[None]."
        )
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(
            f"Online normalization got inputs of dtype {inputs.dtype}, expected a "
            "floating dtype. Use inputs.astype(jnp.float32)."
        )


@jax.custom_vjp
def _normalize(
    inputs: jax.Array,
    state: OnlineNormalizationState,
    forward_decay: jax.Array,
    backward_decay: jax.Array,
    epsilon: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns outputs [B, ..., N], the new mean and the new variance, [N]."""
    numbers = forward_decay, backward_decay, epsilon
    return _forward(inputs, state, *numbers)[0]


def _forward(
    inputs: jax.Array,
    state: OnlineNormalizationState,
    forward_decay: jax.Array,
    backward_decay: jax.Array,
    epsilon: jax.Array,
) -> tuple[PyTree, PyTree]:
    rate = 1 - forward_decay
    positions = tuple(range(inputs.ndim - 2))  # Of one example.
    over_positions = functools.partial(jnp.expand_dims, axis=positions)

    def see(statistics: PyTree, example: jax.Array) -> tuple[PyTree, PyTree]:
        mean, var = statistics
        deviation = example - over_positions(mean)
        scale = jnp.sqrt(var + epsilon)
        own = jnp.mean(deviation, axis=positions)
        spread = jnp.var(example, axis=positions)
        var = forward_decay * var + forward_decay * rate * jnp.square(own)
        return (mean + rate * own, var + rate * spread), (
            deviation / over_positions(scale),
            scale,
        )

    statistics, (outputs, scales) = lax.scan(see, (state.mean, state.var), inputs)
    residuals = outputs, scales, state, backward_decay
    return (outputs, *statistics), residuals


def _backward(residuals: PyTree, cotangents: PyTree) -> tuple[PyTree, ...]:
    outputs, scales, state, backward_decay = residuals
    rate = 1 - backward_decay
    positions = tuple(range(outputs.ndim - 2))
    over_positions = functools.partial(jnp.expand_dims, axis=positions)

    def control(sums: PyTree, example: PyTree) -> tuple[PyTree, PyTree]:
        u, v = sums
        output, scale, gradient = example
        gradient = gradient - over_positions(rate * v) * output
        along_output = jnp.mean(gradient * output, axis=positions)
        sent_back = gradient / over_positions(scale) - over_positions(rate * u)
        own = jnp.mean(sent_back, axis=positions)
        return (u + own, v + along_output), (sent_back, own, along_output)

    _, (sent_back, own, along_output) = lax.scan(
        control, (state.u, state.v), (outputs, scales, cotangents[0])
    )
    increments = OnlineNormalizationState(
        mean=jnp.zeros_like(state.mean),
        var=jnp.zeros_like(state.var),
        u=jnp.sum(own, axis=0),
        v=jnp.sum(along_output, axis=0),
    )
    return sent_back, increments, None, None, None


_normalize.defvjp(_forward, _backward)
