"""The Python of the README runs as it stands."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

README = pathlib.Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


# Examples that end with an update, and the one of a rule.
UPDATES, RULE = (0, 1, 2), 3


@pytest.mark.parametrize("block", UPDATES)
def test_example_runs_and_makes_one_update(block):
    names = {}
    exec(BLOCKS[block], names)
    assert np.isfinite(names["loss"])
    for unit_state in names["state"].units.values():
        np.testing.assert_array_equal(unit_state.age, 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(names["params"]))


def test_the_rule_resets_one_mature_unit_of_the_smallest_outgoing_weights():
    names = {}
    exec(BLOCKS[RULE], names)
    params = tiny.make_params()
    tx, features = names["tx"], tiny.at(tiny.make_features(), 0)
    state = tx.init(params)

    @jax.jit
    def train(params, state):
        def step(carry, _):
            params, state = carry
            grads = jax.tree.map(jnp.zeros_like, params)
            updates, state = tx.update(grads, state, params, features=features)
            return (optax.apply_updates(params, updates), state), state.replaced

        return jax.lax.scan(step, (params, state), length=1000)

    (new, state), replaced = train(params, state)
    for name, width, consumer in (("dense_0", 6, "dense_1"), ("dense_1", 5, "head")):
        outgoing = np.abs(params[consumer]["kernel"]).mean(axis=1)
        np.testing.assert_array_equal(replaced[name][:-1], width)
        assert replaced[name][-1, 0] == np.argmin(outgoing)
        assert sorted(state.units[name].age)[:2] == [0, 1000]
    unit = replaced["dense_1"][-1, 0]
    np.testing.assert_array_equal(new["head"]["kernel"][unit], 0)


def test_readme_shows_all_examples():
    assert len(BLOCKS) == 4
