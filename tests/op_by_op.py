"""Evaluates a function one operation at a time, mostly by NumPy.

To compile a program for each of many cases would take most of the time of the tests.
Here next to nothing is compiled. As nothing is fused, results also round nearly alike
on all machines.
"""

import math

import jax
from jax import dtypes
from jax.extend.core import Jaxpr, Literal
import jax.numpy as jnp
import numpy as np

# Primitives that only call a program, and where its parameters have it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "shard_map": "jaxpr",  # Over one device.
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
}
_BITS = 512
# What is as simple in NumPy, by element or with parameters. All other primitives are
# compiled, once for each shape.
_BY_ELEMENT = {
    **{name: getattr(np, name) for name in ("abs", "floor", "sign", "sqrt", "square")},
    **{
        name: getattr(np, name)
        for name in ("exp", "expm1", "log", "log1p", "sin", "cos")
    },
    **{"add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply},
    **{"neg": np.negative, "max": np.maximum, "min": np.minimum},
    **{"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal},
    **{"gt": np.greater, "ge": np.greater_equal, "is_finite": np.isfinite},
    **{"and": np.bitwise_and, "or": np.bitwise_or, "not": np.invert},
    **{"copy": np.asarray, "stop_gradient": np.asarray},
    "select_n": lambda which, *cases: np.choose(which.astype(int), cases),
}
_BY_NUMPY = {
    "convert_element_type": lambda x, new_dtype, **_: x.astype(new_dtype),
    "bitcast_convert_type": lambda x, new_dtype: x.view(new_dtype),
    "integer_pow": lambda x, y: x**y,
    "reshape": lambda x, new_sizes, **_: x.reshape(new_sizes),
    "squeeze": lambda x, dimensions: x.squeeze(dimensions),
    "transpose": lambda x, permutation: x.transpose(permutation),
    "concatenate": lambda *parts, dimension: np.concatenate(parts, dimension),
    "argmax": lambda x, axes, index_dtype: x.argmax(*axes).astype(index_dtype),
    "reduce_sum": lambda x, axes, **_: x.sum(axes, x.dtype),
    "reduce_max": lambda x, axes, **_: x.max(axes),
    "reduce_min": lambda x, axes, **_: x.min(axes),
    "reduce_and": lambda x, axes, **_: x.all(axes),
    "reduce_or": lambda x, axes, **_: x.any(axes),
}


def _by_numpy(function):
    _BY_NUMPY[function.__name__[1:]] = function


@_by_numpy
def _div(x, y, **_):
    # NumPy rounds quotients of integers down, XLA toward 0.
    return np.divide(x, y) if x.dtype.kind == "f" else None


@_by_numpy
def _broadcast_in_dim(x, shape, broadcast_dimensions, **_):
    sizes = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, x.shape, strict=True):
        sizes[axis] = size
    return np.broadcast_to(x.reshape(sizes), shape)


@_by_numpy
def _slice(x, start_indices, limit_indices, strides):
    strides = strides or (1,) * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, strides))]


@_by_numpy
def _pad(x, value, padding_config):
    if min(min(config) for config in padding_config) < 0:
        return None  # Cut off.
    places, shape = [], []
    for size, (before, after, between) in zip(x.shape, padding_config, strict=True):
        inner = size + max(0, size - 1) * between
        places.append(slice(before, before + inner, between + 1))
        shape.append(before + inner + after)
    padded = np.full(shape, value)
    padded[tuple(places)] = x
    return padded


@_by_numpy
def _shift_right_logical(x, y):
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    return (x.view(unsigned) >> y.view(unsigned)).view(x.dtype)


@_by_numpy
def _dot_general(x, y, dimension_numbers, **_):
    (x_summed, y_summed), (x_batch, y_batch) = dimension_numbers
    x_axes, y_axes = list(range(x.ndim)), list(range(x.ndim, x.ndim + y.ndim))
    for one, other in zip((*x_summed, *x_batch), (*y_summed, *y_batch), strict=True):
        y_axes[other] = x_axes[one]
    batch = [x_axes[axis] for axis in x_batch]
    shared = {*batch, *(x_axes[axis] for axis in x_summed)}
    kept = [axis for axis in (*x_axes, *y_axes) if axis not in shared]
    return np.einsum(x, x_axes, y, y_axes, [*batch, *kept])


@_by_numpy
def _iota(dtype, shape, dimension, **_):
    sizes = [-1 if axis == dimension else 1 for axis in range(len(shape))]
    return np.broadcast_to(np.arange(shape[dimension]).reshape(sizes), shape).astype(
        dtype
    )


def op_by_op(function):
    """Returns the same function of pytrees of arrays, evaluated one by one.

    It is traced at the first call; later calls must be of the same shapes.
    """
    traced = []

    def evaluated(*arguments):
        if not traced:
            traced.extend(jax.make_jaxpr(function, return_shape=True)(*arguments))
        program, shapes = traced
        with np.errstate(all="ignore"):
            results = _run(program, jax.tree.leaves(arguments))
        return jax.tree.unflatten(
            jax.tree.structure(shapes), [jnp.asarray(leaf) for leaf in results]
        )

    return evaluated


def _run(program, inputs):
    jaxpr, consts = program, ()
    if not isinstance(program, Jaxpr):
        jaxpr, consts = program.jaxpr, program.consts
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= zip(jaxpr.invars, inputs, strict=True)

    def read(variable):
        if isinstance(variable, Literal):
            return np.asarray(variable.val, variable.aval.dtype)
        return values[variable]

    for equation in jaxpr.eqns:
        results = _apply(equation, [read(variable) for variable in equation.invars])
        for variable, result in zip(equation.outvars, results, strict=True):
            wanted = variable.aval
            assert (result.shape, result.dtype) == (wanted.shape, wanted.dtype)
        values |= zip(equation.outvars, results, strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _apply(equation, inputs):
    primitive, params = equation.primitive, equation.params
    if primitive.name in _CALLS:
        return _run(params[_CALLS[primitive.name]], inputs)
    if primitive.name == "cond":
        return _run(params["branches"][int(inputs[0])], inputs[1:])
    if primitive.name == "scan":
        return _scan(params, inputs)
    if primitive.name in ("random_bits", "random_fold_in", "random_split"):
        return [_random(primitive, params, *inputs)]
    if not any(map(_is_key, equation.invars)):
        inputs = list(map(np.asarray, inputs))
        if primitive.name in _BY_ELEMENT:
            return [_BY_ELEMENT[primitive.name](*inputs)]
        if primitive.name in _BY_NUMPY:
            output = _BY_NUMPY[primitive.name](*inputs, **params)
            if output is not None:
                return [output]
        inputs = list(map(jnp.asarray, inputs))
    outputs = primitive.bind(*inputs, **params)
    return outputs if primitive.multiple_results else [outputs]


def _random(primitive, params, keys, *numbers):
    """Takes one key after the other, and bits from the first of many of its bits.

    Both are what JAX's default generator gives; so few programs are needed.
    """
    impl, data = jax.random.key_impl(keys), np.asarray(jax.random.key_data(keys))
    shape = np.broadcast_shapes(keys.shape, *(np.shape(one) for one in numbers))
    data = np.broadcast_to(data, (*shape, data.shape[-1])).reshape(-1, data.shape[-1])
    numbers = [np.broadcast_to(one, shape).ravel() for one in numbers]
    drawn = params.get("shape", ())
    if primitive.name == "random_bits":
        params = params | {"shape": (_BITS * math.ceil(math.prod(drawn) / _BITS),)}
    results = [
        primitive.bind(jax.random.wrap_key_data(one, impl=impl), *rest, **params)
        for one, *rest in zip(data, *numbers, strict=True)
    ]
    if primitive.name == "random_bits":
        bits = [np.asarray(result)[: math.prod(drawn)] for result in results]
        return np.reshape(bits, (*shape, *drawn))
    results = [jax.random.key_data(key) for key in results]
    results = np.reshape(results, (*shape, *drawn, data.shape[-1]))
    return jax.random.wrap_key_data(results, impl=impl)


def _is_key(variable):
    return dtypes.issubdtype(variable.aval.dtype, dtypes.extended)


def _scan(params, inputs):
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, carry = inputs[:num_consts], inputs[num_consts : num_consts + num_carry]
    stacks = inputs[num_consts + num_carry :]
    order = range(params["length"])
    rows = {}
    for index in reversed(order) if params["reverse"] else order:
        entries = [stack[index] for stack in stacks]
        results = _run(params["jaxpr"], [*consts, *carry, *entries])
        carry, rows[index] = results[:num_carry], results[num_carry:]
    columns = zip(*(rows[index] for index in order), strict=True)
    return [*carry, *map(_stack, columns)]


def _stack(rows):
    has_keys = dtypes.issubdtype(rows[0].dtype, dtypes.extended)
    return jnp.stack(rows) if has_keys else np.stack(rows)
