"""Split batches and sharded params give what one device gives."""

import functools

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest
import tiny

import cbp_jax

pytestmark = pytest.mark.slow

NUM_STEPS = 20
WIDTHS = (8, 16, 16, 4)
LAYERS = ("dense_0", "dense_1", "head")
RULES = {
    "continual_backprop": functools.partial(
        cbp_jax.continual_backprop, replacement_rate=5e-2, maturity_threshold=3
    ),
    "redo": functools.partial(cbp_jax.redo, threshold=0.4, reset_every=4),
    "regrama": functools.partial(cbp_jax.regrama, threshold=0.4, reset_every=4),
    "cpr": functools.partial(
        cbp_jax.cpr,
        replacement_rate=1.0,
        reset_every=4,
        moments="reset",
        biases="reset",
    ),
    "self_normalized_resets": functools.partial(
        cbp_jax.self_normalized_resets,
        rejection_rate=0.3,
        first_threshold=0,
        lowest_threshold=0,
        refresh_every=2,
    ),
}


def make(name, **options):
    # Momentum, not Adam, which turns rounding near 0 into steps of full length.
    base = optax.sgd(0.05, momentum=0.9)
    return RULES[name](
        base,
        LAYERS,
        initializer=tiny.rows_initializer,
        key=tiny.FAST_KEY,
        **options,
    )


def draw(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


PARAMS = {
    name: {
        "kernel": draw(*WIDTHS[index : index + 2], seed=index) / 3,
        "bias": jnp.full(WIDTHS[index + 1], -0.6),
    }
    for index, name in enumerate(LAYERS)
}
DATA = draw(NUM_STEPS, 8, WIDTHS[0]), draw(NUM_STEPS, 8, WIDTHS[-1], seed=1)


def apply(params, inputs, whole=lambda leaf: leaf):
    features = {}
    for name in LAYERS[:-1]:
        layer = jax.tree.map(whole, params[name])
        inputs = jax.nn.relu(inputs @ layer["kernel"] + layer["bias"])
        features[name] = inputs
    head = jax.tree.map(whole, params["head"])
    return inputs @ head["kernel"] + head["bias"], features


def train(tx, params, inputs, targets, *, combine=lambda grads: grads, **options):
    """Params and state after all updates; each is a gradient step on a batch."""

    def loss(params, inputs, targets):
        outputs, features = apply(params, inputs, **options)
        return jnp.mean((outputs - targets) ** 2), features

    def step(carry, batch):
        params, state = carry
        grads, features = jax.grad(loss, has_aux=True)(params, *batch)
        updates, state = tx.update(combine(grads), state, params, features=features)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), (inputs, targets))[0]


@functools.cache
def on_one_device(name):
    params, state = jax.jit(functools.partial(train, make(name)))(PARAMS, *DATA)
    assert min(int(number) for number in state.num_replaced.values()) > 1
    return jax.device_get((params, state))


def check(actual, name):
    params, state = jax.device_get(actual)
    wanted_params, wanted = on_one_device(name)
    tiny.assert_equal(state.replaced, wanted.replaced)
    tiny.assert_equal(state.num_replaced, wanted.num_replaced)
    # Sums over devices are rounded otherwise, and the steps are large.
    chex.assert_trees_all_close(params, wanted_params, rtol=5e-5, atol=1e-6)
    tiny.assert_close(state.units, wanted.units)


def mesh_of(*sizes, names=("batch", "model"), kind=AxisType.Auto):
    return jax.make_mesh(sizes, names[: len(sizes)], axis_types=(kind,) * len(sizes))


@pytest.mark.parametrize("is_checked", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_replicas_of_a_split_batch_stay_alike(name, is_checked):
    split = P(None, "batch")

    # Where shard_map knows what differs between devices, it adds up the gradients.
    def combine(grads):
        if not is_checked:
            return jax.lax.pmean(grads, "batch")
        return jax.tree.map(lambda leaf: leaf / 4, grads)

    run = jax.shard_map(
        functools.partial(train, make(name, axis_name="batch"), combine=combine),
        mesh=mesh_of(4),
        in_specs=(P(), split, split),
        out_specs=P(),
        check_vma=is_checked,
    )
    check(jax.jit(run)(PARAMS, *DATA), name)


def test_replicas_of_pmap_stay_alike():
    inputs, targets = (
        leaf.reshape(NUM_STEPS, 4, 2, -1).swapaxes(0, 1) for leaf in DATA
    )
    run = functools.partial(
        train,
        make("continual_backprop", axis_name="batch"),
        combine=functools.partial(jax.lax.pmean, axis_name="batch"),
    )
    out = jax.pmap(run, axis_name="batch", in_axes=(None, 0, 0))(
        PARAMS, inputs, targets
    )
    for device in range(4):
        check(tiny.at(jax.device_get(out), device), "continual_backprop")


def test_learners_of_several_devices_may_differ():
    """Each device trains on its own part of the batch; nothing is averaged."""
    split = P(None, "batch")

    def varying(tree):
        return jax.lax.pcast(tree, "batch", to="varying")

    def one(params, inputs, targets):
        tx = make("continual_backprop")
        # The zeros of a new state are alike on all devices until told otherwise.
        tx = tx._replace(
            init=lambda params, init=tx.init: jax.tree.map(
                lambda leaf: leaf + varying(jnp.zeros((), leaf.dtype)), init(params)
            )
        )
        params, state = train(tx, varying(params), inputs, targets)
        return jax.tree.map(lambda leaf: leaf[None], (params, state.replaced))

    run = jax.shard_map(
        one, mesh=mesh_of(4), in_specs=(P(), split, split), out_specs=P("batch")
    )
    params, replaced = jax.jit(run)(PARAMS, *DATA)
    tx = make("continual_backprop")
    solo = jax.jit(functools.partial(train, tx))
    for device in range(4):
        part = slice(2 * device, 2 * device + 2)
        wanted, state = solo(PARAMS, *(leaf[:, part] for leaf in DATA))
        tiny.assert_equal(tiny.at(replaced, device), state.replaced)
        tiny.assert_close(tiny.at(params, device), wanted)


# Kernels of at most 1,024 entries, split along inputs, along units and along both.
SPECS = {
    "fully_sharded": ((P("batch", None), P("batch")),) * 3,
    "tensor_parallel": (
        (P(None, "model"), P("model")),
        (P("model", None), P()),
        (P(), P()),
    ),
    "both": (
        (P("batch", "model"), P("model")),
        (P("model", "batch"), P("batch")),
        (P("batch", None), P()),
    ),
}


def place(mesh, layout, batch):
    shardings = {
        name: {"kernel": NamedSharding(mesh, kernel), "bias": NamedSharding(mesh, bias)}
        for name, (kernel, bias) in zip(LAYERS, SPECS[layout], strict=True)
    }
    data = jax.device_put(DATA, NamedSharding(mesh, batch))
    return jax.device_put(PARAMS, shardings), *data


@pytest.mark.parametrize("layout", SPECS)
def test_sharded_params_under_jit(layout):
    arguments = place(mesh_of(2, 2), layout, P(None, "batch"))
    run = jax.jit(functools.partial(train, make("continual_backprop")))
    check(run(*arguments), "continual_backprop")


@pytest.mark.parametrize("layout", ["fully_sharded", "both"])
def test_an_explicit_mesh(layout):
    mesh = mesh_of(2, 2, kind=AxisType.Explicit)
    with jax.set_mesh(mesh):
        run = functools.partial(
            train,
            make("continual_backprop"),
            whole=lambda leaf: jax.sharding.reshard(leaf, P()),
        )
        params, state = jax.jit(run)(*place(mesh, layout, P(None, "batch")))
    wanted = SPECS[layout][0][0]
    assert params["dense_0"]["kernel"].sharding.spec == wanted
    check((params, state), "continual_backprop")
