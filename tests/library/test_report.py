"""The report on all hidden layers of a network."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_networks as nets

import cbp_jax
from cbp_jax import metrics
from cbp_jax.metrics import report

X = nets.inputs(40, 3)


@functools.cache
def spoiled():
    """Two dead units of five, two that are always on and alike, large weights."""
    params = {name: np.asarray(leaf).copy() for name, leaf in nets.CHAIN.items()}
    params["a"][:, 3] = params["a"][:, 2]
    params["a_bias"][:] = [-100, -100, 100, 100, 0]
    params["b"] *= 100
    return params, report(nets.chain, params, X)


def test_each_layer_has_the_measures_of_its_features_and_weights():
    params, (layers, _) = spoiled()
    first, second = layers
    hidden = np.maximum(X @ params["a"] + params["a_bias"], 0)
    assert first[:3] == ("a", 5, 40)
    assert first.dead_units == pytest.approx(2 / 5)
    assert first.always_on_units == pytest.approx(2 / 5)
    assert first.duplicate_units == pytest.approx(2 / 5)
    for name, measure in (
        ("dormant_units", metrics.tau_dormant_units),
        ("effective_rank", metrics.effective_rank),
        ("stable_rank", metrics.stable_rank),
    ):
        assert getattr(first, name) == pytest.approx(float(measure(hidden)), rel=1e-4)
    assert first.weight_magnitude == pytest.approx(np.abs(params["a"]).mean())
    norm = np.linalg.norm(params["b"], ord=2)
    assert second.spectral_norm == pytest.approx(norm, rel=1e-5)
    assert second.spectral_norm > 10


def test_the_table_is_aligned_and_says_what_is_unusual():
    text = str(spoiled()[1])
    header, rule, first, second, *rest = text.splitlines()
    assert len(header) == len(rule) == len(first) == len(second) <= 120
    assert first.split()[:4] == ["a", "5", "40", "40.0"]
    assert header.index("dead %") + len("dead %") == first.index("40.0") + 4
    assert "a: 40 % of its units are dead: they are 0 on all samples." in rest
    assert any("b: its largest singular value" in line for line in rest)
    assert "head: not measured because its outputs are the network's." in rest
    few = str(report(nets.chain, nets.CHAIN, X[:4]))
    assert "a: its 4 samples are fewer than its 5 units" in few


def test_a_healthy_network_has_nothing_unusual_and_a_diverged_one_says_so():
    params = nets.CHAIN | {
        "a": nets.inputs(8, 5),
        "a_bias": jnp.zeros(5),
        "b": jnp.full((5, 4), jnp.nan),
    }
    result = report(nets.chain, params, nets.inputs(40, 8, seed=2))
    assert [layer.unusual for layer in result.layers] == [
        (),
        ("its activations or weights are not finite.",),
    ]
    assert "Nothing unusual." in str(result._replace(layers=result.layers[:1]))


def test_convolutions_of_the_other_layout_are_measured_by_position():
    params = nets.POOLED_CHANNELS_FIRST
    images = nets.IMAGES.transpose(0, 3, 1, 2)
    conv, dense = report(nets.pooled_channels_first, params, images).layers
    assert conv[:3] == ("conv", 4, 2 * 2 * 2)
    assert dense[:3] == ("dense", 5, 2)
    kernel = np.asarray(params["conv"]).reshape(4, -1)
    assert conv.spectral_norm == pytest.approx(np.linalg.norm(kernel, ord=2), rel=1e-5)


def test_what_cannot_be_followed_is_left_out_and_named():
    result = report(nets.transformer, nets.TRANSFORMER, nets.TOKENS)
    assert [layer.name for layer in result.layers] == ["up"]
    assert "attention/query" in result.left_out
    assert "attention/query: not measured because its units are" in str(result)


def test_features_of_ones_own_need_units_of_the_same_names():
    units = cbp_jax.sequential_units(("a", "head"), kernel="kernel")
    params = {name: {"kernel": nets.CHAIN[name]} for name in ("a", "head")}
    params["head"]["kernel"] = jnp.ones((5, 2))
    units = [group._replace(bias=None, outgoing_bias=None) for group in units]
    features = {"a": jnp.eye(5, dtype=jnp.bfloat16).repeat(2, axis=0)}
    (layer,) = report(None, params, X, units=units, features=features).layers
    assert (layer.num_samples, layer.effective_rank) == (10, pytest.approx(5))
    with pytest.raises(ValueError, match=r"features has \['b'\], expected .*\['a'\]"):
        report(None, params, X, units=units, features={"b": features["a"]})
    with pytest.raises(ValueError, match=r"\['a'\] but no units, expected"):
        report(None, params, X, features=features)
    with pytest.raises(
        ValueError, match=r"shape \(10, 4\), expected \[samples, ..., 5\]"
    ):
        report(None, params, X, units=units, features={"a": features["a"][:, :4]})


def test_a_report_needs_values():
    with pytest.raises(ValueError, match="called inside jit, .* Call it outside"):
        jax.jit(lambda params: report(nets.chain, params, X).layers)(nets.CHAIN)


def test_a_module_is_no_params():
    params = nets.CHAIN | {"activation": jax.nn.relu}
    with pytest.raises(
        ValueError, match="params has .* at 'activation', expected only"
    ):
        report(nets.chain, params, X)


def nnx_network():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(3, 5, rngs=rngs)
            self.head = nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.hidden(x)))

    graph, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)
    return lambda params, x: nnx.merge(graph, params)(x), params, "hidden"


def haiku_network():
    hk = pytest.importorskip("haiku")
    network = hk.without_apply_rng(
        hk.transform(lambda x: hk.nets.MLP([5, 2], name="mlp")(x))
    )
    return network.apply, network.init(jax.random.key(0), X), "mlp/~/linear_0"


def equinox_network():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(3, 2, 5, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return (
        lambda params, x: jax.vmap(eqx.combine(params, static))(x),
        params,
        "layers/0",
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", [nnx_network, haiku_network, equinox_network])
def test_networks_of_any_library(make):
    apply, params, name = make()
    (layer,) = report(apply, params, X).layers
    assert layer[:3] == (name, 5, 40)
    leaves = [leaf for leaf in jax.tree.leaves(params) if 3 in leaf.shape]
    assert layer.weight_magnitude == pytest.approx(float(np.abs(leaves[0]).mean()))
