"""An update does the same with and without jit, on device and host arrays."""

import chex
import numpy as np
import optax
import tiny

import cbp_jax


class UpdateTest(chex.TestCase):
    @chex.variants(with_jit=True, without_device=True)
    def test_the_units_of_the_smallest_weights_are_replaced(self):
        params, features = tiny.make_params(), tiny.at(tiny.make_features(), 0)
        tx = cbp_jax.continual_backprop(
            optax.sgd(0.1),
            tiny.UNITS,
            replacement_rate=0.5,
            maturity_threshold=0,
            utility_fn=cbp_jax.utility.weight_magnitude,
            key=tiny.KEY,
        )
        update = self.variant(
            lambda grads, state, params, features: tx.update(
                grads, state, params, features=features
            )
        )
        _, state = update(params, tx.init(params), params, features)
        for name, consumer in (("dense_0", "dense_1"), ("dense_1", "head")):
            outgoing = np.abs(params[consumer]["kernel"]).mean(axis=1)
            number = len(outgoing) // 2
            found = np.sort(state.replaced[name])[:number]
            np.testing.assert_array_equal(found, np.sort(outgoing.argsort()[:number]))
