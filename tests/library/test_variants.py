"""The published variants of continual backprop."""

import warnings

import jax
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax import utility, variants

ALL = {
    "preprint": variants.PREPRINT,
    "nature": variants.NATURE,
    "released_mlp": variants.RELEASED_MLP,
    "released_conv": variants.RELEASED_CONV,
}
PARAMS = tiny.make_params()
FEATURES = tiny.at(tiny.make_features(), 0)


def make(variant, **options):
    options = dict(variant) | {"initializer": tiny.rows_initializer} | options
    return cbp_jax.continual_backprop(
        optax.sgd(0.0), tiny.UNITS[:1], key=tiny.FAST_KEY, **options
    )


@pytest.mark.parametrize("name", ALL)
def test_a_variant_builds_a_transform(name):
    tx = make(ALL[name])
    state = jax.eval_shape(tx.init, PARAMS)
    updates, _ = jax.eval_shape(
        lambda state: tx.update(PARAMS, state, PARAMS, features=FEATURES), state
    )
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)


def test_variants_name_the_same_arguments_and_cannot_be_changed():
    assert len({frozenset(variant) for variant in ALL.values()}) == 1
    with pytest.raises(TypeError):
        variants.NATURE["replacement_rate"] = 1.0
    assert (variants.NATURE | {"replacement_rate": 1e-6})["replacement_rate"] == 1e-6
    assert variants.NATURE["replacement_rate"] == 1e-5


def test_the_papers_numbers():
    numbers = {
        name: (
            variant["replacement_rate"],
            variant["decay_rate"],
            variant["maturity_threshold"],
            variant["utility_fn"],
        )
        for name, variant in ALL.items()
    }
    assert numbers == {
        "preprint": (1e-6, 0.99, 100, utility.overall),
        "nature": (1e-5, 0.99, 1000, utility.contribution),
        "released_mlp": (1e-4, 0.99, 100, utility.overall),
        "released_conv": (3e-4, 0.99, 100, utility.overall),
    }


@pytest.fixture(scope="module")
def outcomes():
    """Which units each variant replaces at rate 0.6, and the units owed afterwards.

    Units 0 to 3 are eligible, the others too young. Unit 1 has the lowest running
    average, because it is young too; corrected for age it is better than units 2 and 3.
    """
    found = {}
    for name, variant in ALL.items():
        with warnings.catch_warnings():  # Of a low maturity without a correction.
            warnings.simplefilter("ignore", UserWarning)
            tx = make(variant, replacement_rate=0.6, maturity_threshold=1)
        state = tiny.with_units(
            tx.init(PARAMS),
            "dense_0",
            age=[2000, 2, 2000, 2000, 0, 0],
            utility=[9.0, 6.0 * (1 - 0.99**2), 1.0, 2.0, 0.0, 0.0],
        )
        _, state = tiny.still_step(tx)(PARAMS, state, FEATURES)
        reborn = np.flatnonzero(tiny.mask_of(state.replaced["dense_0"], 6))
        budget = int(state.units["dense_0"].budget) / 2**30
        found[name] = (reborn.tolist(), pytest.approx(budget, abs=1e-6))
    return found


def test_the_preprint_corrects_for_age_and_carries_the_fraction(outcomes):
    # 2.4 units are due.
    assert outcomes["preprint"] == ([2, 3], 0.4)


def test_nature_does_not_correct_for_age_and_replaces_one_unit_at_most(outcomes):
    assert outcomes["nature"] == ([1], 0.4)


def test_the_released_mlp_draws_the_fraction(outcomes):
    reborn, budget = outcomes["released_mlp"]
    assert reborn in ([2, 3], [1, 2, 3])
    assert budget == 0


def test_the_released_convolutions_count_all_units(outcomes):
    # 3.6 units are due.
    assert outcomes["released_conv"] == ([1, 2, 3], 0.6)
