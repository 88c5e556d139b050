"""Eigenvalues by loops, which ranks are found by on a TPU, on whatever runs the tests.

LAPACK in float64 is what they are compared with.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbp_jax import metrics
from cbp_jax.metrics import _ranks
from cbp_jax.metrics._tridiagonal import eigenvalues_by_loops


def features(kind, samples=40, units=24):
    random = np.random.default_rng(0)
    values = random.normal(size=(samples, units))
    if kind == "relu":
        values = np.maximum(values + random.normal(size=units), 0)
    elif kind == "rank 3":
        values = values[:, :3] @ random.normal(size=(3, units))
    elif kind == "dead":  # Among them the first and the last unit.
        values[:, ::2] = values[:, -3:] = 0
    return values.astype(np.float32)


eigenvalues = jax.jit(jax.vmap(eigenvalues_by_loops))


def test_eigenvalues_are_those_of_lapack():
    kinds = ("normal", "relu", "rank 3", "dead")
    grams = [features(kind).T.astype(float) @ features(kind) for kind in kinds]
    found = eigenvalues(jnp.asarray(np.stack(grams), np.float32))
    for kind, gram, values in zip(kinds, grams, found, strict=True):
        exact = np.linalg.eigvalsh(gram)
        np.testing.assert_allclose(
            values, exact, rtol=0, atol=2e-6 * exact[-1], err_msg=kind
        )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_smallest_matrices_have_theirs(size):
    matrix = np.array([[2, 1, 0], [1, 3, -1], [0, -1, 4]], np.float32)[:size, :size]
    np.testing.assert_allclose(
        jax.jit(eigenvalues_by_loops)(matrix), np.linalg.eigvalsh(matrix), rtol=1e-5
    )


def test_zeros_have_zeros_and_nan_has_nan_in_its_lane_alone():
    matrices = np.zeros((2, 4, 4), np.float32)
    matrices[1, 2, 2] = np.nan
    found = np.asarray(eigenvalues(matrices))
    np.testing.assert_array_equal(found[0], 0)
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("kind", ["relu", "rank 3", "dead"])
def test_ranks_are_those_of_the_other_platforms(kind, monkeypatch):
    measures = (metrics.effective_rank, metrics.stable_rank, metrics.approximate_rank)

    def ranks(values):
        return [measure(values, method="gram") for measure in measures]

    wanted = jax.jit(ranks)(features(kind))
    monkeypatch.setattr(_ranks, "symmetric_eigenvalues", eigenvalues_by_loops)
    found = jax.jit(lambda values: ranks(values))(features(kind))
    np.testing.assert_allclose(found, wanted, rtol=5e-3)
