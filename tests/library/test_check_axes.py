"""Groups of stacked layers and of heads are checked by forward passes."""

import jax
import jax.numpy as jnp
import pytest
from tiny_networks import draw, inputs, relu

from cbp_jax import UnitGroup, check_units
from cbp_jax._discovery.checking import ALONE

X = inputs(4, 3)


def scanned(params, x):
    """Layers stacked as nn.scan stacks them, between an embedding and a head."""

    def layer(stream, params):
        hidden = relu(stream @ params["up"] + params["up_bias"])
        return stream + hidden @ params["down"], hidden

    layers = {name: params[name] for name in ("up", "up_bias", "down")}
    stream, hidden = jax.lax.scan(layer, x @ params["stem"], layers)
    return stream @ params["head"], {"mlp": hidden}


SCANNED = draw(stem=(3, 6), up=(2, 6, 5), up_bias=(2, 5), down=(2, 5, 6), head=(6, 2))
MLPS = UnitGroup("mlp", "up", "up_bias", "down", stack_axes=1)


def heads(params, x):
    """What heads pass on, as attention does, without its weights."""
    value = jnp.einsum("bd,dhk->bhk", x, params["value"]) + params["value_bias"]
    mixed = jnp.tanh(jnp.einsum("bhk,hkd->bd", value, params["out"]))
    return mixed @ params["head"], {"value": value}


HEADS = draw(value=(3, 2, 3), value_bias=(2, 3), out=(2, 3, 4), head=(4, 2))
VALUES = UnitGroup("value", "value", "value_bias", "out", unit_axes=2)


@pytest.mark.parametrize(
    ("network", "params", "group"),
    [(scanned, SCANNED, MLPS), (heads, HEADS, VALUES)],
    ids=["stack", "heads"],
)
def test_stacks_and_heads_are_checked_slice_by_slice_and_number_by_number(
    network, params, group
):
    def apply(params, x):
        return network(params, x)[0]

    def features(params, x):
        return network(params, x)[1]

    seen = check_units(apply, params, (group,), X, features=features)
    assert seen == {group.name: ALONE}
    with pytest.raises(ValueError, match="It would be right|reordering its units"):
        check_units(apply, params, (group._replace(bias=None),), X)

    def turned(params, x):
        return {group.name: jnp.flip(features(params, x)[group.name], axis=-1)}

    with pytest.raises(ValueError, match="does not follow"):
        check_units(apply, params, (group,), X, features=turned)
