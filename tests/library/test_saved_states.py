"""A state that was saved and read goes on as if it had not been."""

import functools
import io

import jax
import optax
from orbax import checkpoint
import pytest
import tiny

import cbp_jax

NUM_STEPS, SAVED = 8, 5
PARAMS = tiny.make_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)
FEATURES = tiny.make_features(NUM_STEPS)
TX = cbp_jax.continual_backprop(
    cbp_jax.optimizers.adam_with_unit_counts(0.1, tiny.UNITS),
    tiny.UNITS,
    replacement_rate=0.1,
    maturity_threshold=1,
    key=tiny.KEY,
)


@functools.cache
def history():
    return tiny.loop(TX, PARAMS, GRADS, FEATURES)


def by_orbax(tree, like, folder):
    with checkpoint.StandardCheckpointer() as saver:
        saver.save(folder / "state", tree)
        saver.wait_until_finished()
        return saver.restore(folder / "state", like)


def by_equinox(tree, like, folder):
    del folder
    equinox = pytest.importorskip("equinox")
    file = io.BytesIO()
    equinox.tree_serialise_leaves(file, tree)
    file.seek(0)
    return equinox.tree_deserialise_leaves(file, like)


@pytest.mark.parametrize("save", [by_orbax, by_equinox])
def test_a_saved_state_goes_on_as_if_it_had_not_been_saved(save, tmp_path):
    saved = history()[SAVED - 1]
    read = save(saved, (PARAMS, TX.init(PARAMS)), tmp_path)
    assert jax.tree.structure(read) == jax.tree.structure(saved)
    tiny.assert_equal(read, saved)
    (params, state), wanted = read, history()[-1]

    @jax.jit
    def step(params, state, grads, features):
        updates, state = TX.update(grads, state, params, features=features)
        return optax.apply_updates(params, updates), state

    for index in range(SAVED, NUM_STEPS):
        params, state = step(
            params, state, tiny.at(GRADS, index), tiny.at(FEATURES, index)
        )
    tiny.assert_equal((params, state), wanted)
    before = int(saved[1].num_replaced["dense_0"])
    assert int(state.num_replaced["dense_0"]) > before > 0
