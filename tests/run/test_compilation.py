"""Where compiled programs are kept."""

import pathlib

import jax
import pytest

from experiments.run import machine

FIELD = "jax_compilation_cache_dir"


@pytest.fixture
def restored():
    """Gives the settings back to the other tests."""
    fields = (FIELD, "jax_persistent_cache_min_compile_time_secs")
    before = {field: getattr(jax.config, field) for field in fields}
    yield
    for field, value in before.items():
        jax.config.update(field, value)


def test_programs_are_kept_beside_the_run_folder(restored, tmp_path, monkeypatch):
    places = set()
    for name in ("x86_64", "arm64"):
        monkeypatch.setattr(machine.platform, "machine", lambda name=name: name)
        jax.config.update(FIELD, None)
        machine.keep_compiled_programs(tmp_path / "runs" / "one")
        places.add(pathlib.Path(getattr(jax.config, FIELD)))
    assert len(places) == 2  # Another processor may not run what one has compiled.
    folders = {place.parent for place in places}
    assert folders == {tmp_path / "runs" / machine.COMPILED_FOLDER}
    assert not (tmp_path / "runs").exists()


def test_the_least_time_that_jax_is_told_stays(restored, tmp_path, monkeypatch):
    seconds = "jax_persistent_cache_min_compile_time_secs"
    monkeypatch.setenv(seconds.upper(), "7")
    jax.config.update(seconds, 7.0)
    jax.config.update(FIELD, None)
    machine.keep_compiled_programs(tmp_path / "runs" / "one")
    assert getattr(jax.config, seconds) == 7


def test_what_jax_is_told_goes_first(restored, tmp_path):
    jax.config.update(FIELD, str(tmp_path / "mine"))
    machine.keep_compiled_programs(tmp_path / "runs" / "one")
    assert getattr(jax.config, FIELD) == str(tmp_path / "mine")
