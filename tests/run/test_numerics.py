"""What changes numbers beside the config is fixed, or recorded and refused."""

import contextlib
import json

import jax
import numpy as np
import pytest
from tiny_runs import tiny_digits

from experiments import permuted_mnist
from experiments.learning.keys import make_key
from experiments.run import provenance, runner, storage
from experiments.run.folder import RunFolderError, open_folder
from experiments.run.storage import CheckpointError
from experiments.streams import (
    drifting_bits,
    linear_threshold,
    permuted_images,
    textures,
)


@contextlib.contextmanager
def seed_offset(number):
    jax.config.update("jax_random_seed_offset", number)
    try:
        yield
    finally:
        jax.config.update("jax_random_seed_offset", 0)


def open_and_close(folder):
    with open_folder(folder, provenance.to_json(tiny_digits()), overwrite=False):
        pass


def forget_record(folder):
    """Makes a run folder one of a version that did not record the settings."""
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    del fields["numerics"]
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            lambda: jax.enable_x64(True),
            r"jax_enable_x64: False -> True, .* set JAX_ENABLE_X64=False to continue",
        ),
        (
            lambda: jax.threefry_partitionable(False),
            "jax_threefry_partitionable: True -> False, .*_PARTITIONABLE=True to",
        ),
        (
            lambda: jax.default_matmul_precision("highest"),
            "None -> highest, .* unset JAX_DEFAULT_MATMUL_PRECISION to continue",
        ),
        (lambda: seed_offset(3), "0 -> 3, .* set JAX_RANDOM_SEED_OFFSET=0 to continue"),
    ],
)
def test_settings_that_change_numbers_are_refused_on_resume(tmp_path, setting, message):
    open_and_close(tmp_path / "run")
    with setting():
        with pytest.raises(RunFolderError, match=message):
            open_and_close(tmp_path / "run")
        open_and_close(tmp_path / "other")
        open_and_close(tmp_path / "other")
    with pytest.raises(RunFolderError, match="which changes all numbers"):
        open_and_close(tmp_path / "other")


def test_a_run_without_a_record_goes_on_where_nothing_is_set(tmp_path):
    open_and_close(tmp_path)
    forget_record(tmp_path)
    with (
        jax.enable_x64(True),
        pytest.raises(RunFolderError, match=r"x64: \(not recorded\) -> True, .*=False"),
    ):
        open_and_close(tmp_path)
    open_and_close(tmp_path)
    recorded = json.loads((tmp_path / "config.json").read_text())["numerics"]
    assert recorded["jax_enable_x64"] is False


@pytest.mark.slow
def test_a_seed_is_one_stream_whatever_the_default_generator(tmp_path):
    """Alone, begun where JAX's generator is another, it is what it is beside another.

    Under rbg all lanes would draw by the key of the first.
    """
    fields = {
        "cases": {"one": {"method": "continual_backprop"}},
        "replacement_rate": 0.1,
        "maturity_threshold": 2,
    }
    make_problem = permuted_mnist.make_problem
    both = runner.run(tiny_digits(**fields), tmp_path / "both", make_problem)
    fields |= {"first_seed": 1, "num_seeds": 1}
    with jax.default_prng_impl("rbg"):
        begun = tiny_digits(num_tasks=1, **fields)
        runner.run(begun, tmp_path / "alone", make_problem)
    alone = runner.run(tiny_digits(**fields), tmp_path / "alone", make_problem)
    np.testing.assert_allclose(alone.loss, both.loss.sel(seed=[1]), rtol=1e-5)
    assert json.loads(alone.attrs["numerics"])["prng_impl"] == "threefry2x32"


@pytest.mark.slow
def test_streams_draw_the_same_in_64_bits():
    draw_images = permuted_images.SAMPLING["with_replacement"]

    def draw():
        key = make_key(np.uint32(3))
        return jax.tree.leaves(
            [
                draw_images(key, 100, 64),
                textures.draw_texture(key),
                linear_threshold.draw_network(key, 7, 5, 0.7),
                drifting_bits.DRIFTS["all"](key, 2, 15),
                drifting_bits._draw_small(key, 9, 5),
            ]
        )

    narrow = draw()
    with jax.enable_x64(True):
        wide = draw()
    for one, other in zip(narrow, wide, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (np.zeros((2, 4), np.uint32), "rbg.*JAX_DEFAULT_PRNG_IMPL.*that setting, pass"),
        (np.zeros((2, 3), np.uint32), "another version"),
    ],
)
def test_a_checkpoint_with_other_keys_says_so(held, message):
    like = {"key": jax.eval_shape(lambda: jax.random.split(make_key(0)))}
    with pytest.raises(CheckpointError, match=f"'case'.*{message}.*--overwrite"):
        storage.from_dict({"0": held}, like, "case")


def test_a_checkpoint_in_other_bits_says_so():
    wide, narrow = np.zeros((2, 5), np.float64), np.zeros((2, 5), np.float32)
    with pytest.raises(CheckpointError, match="64-bit.*Set JAX_ENABLE_X64=True"):
        storage.from_dict({"0": wide}, {"params": narrow}, "case")
    with (
        jax.enable_x64(True),
        pytest.raises(CheckpointError, match="32-bit.*Set JAX_ENABLE_X64=False"),
    ):
        storage.from_dict({"0": narrow}, {"params": wide}, "case")
