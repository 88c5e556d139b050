"""Programs lowered for machines that are not here: each branch for a platform.

Lowering writes down what XLA would compile there. A branch that cannot be built for a
platform shows, and so does one of another platform that is taken.
"""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
import tiny
from tiny_runs import (
    one_lane,
    tiny_bits,
    tiny_digits,
    tiny_labels,
    tiny_pairs,
    tiny_warm_start,
)

import cbp_jax
from cbp_jax import _resets, metrics, networks
from experiments import (
    changing_labels,
    continual_imagenet,
    permuted_mnist,
    slowly_changing_regression,
    warm_start,
)
from experiments.run.config import complete, make_cases

PARAMS = tiny.make_params()
FEATURES = tiny.at(tiny.make_features(), 0)
KEYS = jax.random.split(tiny.KEY)
# What each platform's own library calls a decomposition by Householder reflections, and
# one into eigenvalues.
QR = {"cpu": "lapack_sgeqrf_ffi", "cuda": "cusolver_geqrf_ffi", "tpu": "Qr"}
EIGH = {"cpu": "lapack_ssyevd_ffi", "cuda": "cusolver_syevd_ffi", "tpu": "Eigh"}


def lower(function, *arguments, platforms=("cpu", "cuda", "tpu")):
    """Returns the program of a function for each platform, as text."""
    traced = jax.jit(function).trace(*arguments)
    return {
        platform: traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in platforms
    }


def calls(program):
    """Names of the functions of other libraries that a program calls."""
    return set(re.findall(r"custom_call @([\w.$]+)", program))


def update_by(initializer, **options):
    """A whole update; the key and the rate are a lane's own."""

    def update(key, rate, params):
        tx = cbp_jax.continual_backprop(
            optax.adam(0.1),
            tiny.UNITS,
            replacement_rate=rate,
            max_per_step=2,
            initializer=initializer,
            key=key,
            **options,
        )
        return tx.update(params, tx.init(params), params, features=FEATURES)

    return update


def test_magnitudes_are_summed_by_products_on_a_cpu_alone():
    programs = lower(update_by(None), KEYS[0], jnp.float32(0.1), PARAMS)
    products = {name: text.count("dot_general") for name, text in programs.items()}
    assert products.pop("cpu") > 0
    assert products == {"cuda": 0, "tpu": 0}
    assert not any(map(calls, programs.values()))


def test_lanes_draw_orthogonal_kernels_by_the_library_of_their_platform():
    update = update_by(jax.nn.initializers.orthogonal())
    lanes = jax.vmap(update, in_axes=(0, 0, None))
    programs = lower(lanes, KEYS, jnp.ones(2), PARAMS)
    for platform, program in programs.items():
        others = {name for other, name in QR.items() if other != platform}
        assert QR[platform] in calls(program)
        assert not others & calls(program)
    # All lanes at once, but on a CPU one after the other.
    at_once = {
        platform: f"2x{max(tiny.SHAPES['dense_0'])}" in _operands(program, QR[platform])
        for platform, program in programs.items()
    }
    assert at_once == {"cpu": False, "cuda": True, "tpu": True}


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({}, {"cpu", "tpu"}),  # Draws by "auto".
        ({"draw": "when_due"}, {"cpu", "cuda", "tpu"}),
        ({"draw": "always"}, set()),
        # A whole kernel is too much to draw every time.
        ({"initializer": tiny.rows_initializer}, {"cpu", "cuda", "tpu"}),
        ({"small": 10}, {"cpu", "cuda", "tpu"}),
    ],
)
def test_a_conditional_is_only_where_it_saves_time(options, where, monkeypatch):
    monkeypatch.setattr(_resets, "_SMALL", options.get("small", 1000))
    options = {"initializer": None} | options
    options.pop("small", None)
    update = update_by(**options)
    programs = lower(jax.vmap(update, in_axes=(0, 0, None)), KEYS, jnp.ones(2), PARAMS)
    # What is chosen by platform is a case as well, but of a constant.
    case = r'(%\w+) = stablehlo.convert .*<i1>\) -> .*\n.* = "stablehlo.case"\(\1\)'
    found = {name for name, text in programs.items() if re.search(case, text)}
    assert found == where


def _operands(program, name):
    """The types of the operands of the first call of a function."""
    return re.search(rf"custom_call @{name}\b.*: \((.*?)\) ->", program)[1]


def test_ranks_of_lanes_are_found_by_the_library_of_their_platform():
    def ranks(features):
        return [
            (metrics.effective_rank(features, method), metrics.stable_rank(features))
            for method in metrics.METHODS
        ]

    programs = lower(jax.vmap(ranks), jnp.ones((2, 8, 6)))
    for platform, program in programs.items():
        others = {name for other, name in EIGH.items() if other != platform}
        assert EIGH[platform] in calls(program)
        assert not others & calls(program)


def test_ranks_on_a_tpu_need_no_library():
    """Its own decompositions of wide layers take minutes to compile."""

    def rank(features):
        return metrics.effective_rank(features, "gram")

    (program,) = lower(rank, jnp.ones((400, 300)), platforms=("tpu",)).values()
    assert not calls(program)
    assert len(program) < 100_000


@pytest.mark.parametrize(
    ("name", "used_by"),
    [
        ("xla", {"cpu", "cuda", "tpu"}),
        ("patches", set()),
        ("auto", {"cuda", "tpu"}),
    ],
)
def test_convolutions_are_computed_as_told_or_by_platform(name, used_by):
    network = networks.ConvNet(
        conv_channels=(2,), conv_sizes=(3,), dense_units=(), convolution=name
    )
    images = jnp.ones((2, 6, 6, 3))

    def gradient(key):
        params = network.init(key, images)
        return jax.grad(lambda params: network.apply(params, images)[0].sum())(params)

    programs = lower(gradient, KEYS[0])
    assert used_by == {
        platform
        for platform, program in programs.items()
        if "stablehlo.convolution" in program
    }


@pytest.mark.parametrize(
    ("program", "make_config"),
    [
        (permuted_mnist, tiny_digits),
        (slowly_changing_regression, tiny_bits),
        (continual_imagenet, tiny_pairs),
        pytest.param(changing_labels, tiny_labels, marks=pytest.mark.slow),
        pytest.param(warm_start, tiny_warm_start, marks=pytest.mark.slow),
    ],
)
def test_a_task_of_each_problem_can_be_compiled_for_accelerators(program, make_config):
    """Streams, updates of lanes, tests and measures, ranks among them."""
    cases = {"one": {"method": "continual_backprop"}}
    config = make_cases(complete(make_config(cases=cases, rank_every=1)))["one"]
    problem, (settings, _) = program.make_problem(config), one_lane(config)

    def run_task(key, data):
        state = problem.learner.init(settings, key)
        return problem.run_task(settings, state, key, jnp.int32(0), data)

    lanes = jax.jit(jax.vmap(run_task, in_axes=(0, None)))
    lowered = lanes.trace(KEYS, problem.data).lower(lowering_platforms=("cuda", "tpu"))
    assert calls(lowered.as_text()) == {EIGH["cuda"], EIGH["tpu"]}
