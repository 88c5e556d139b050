"""Checkpoints that are damaged, unfinished, or taken up by a longer run."""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import tiny_digits
import xarray as xr

from experiments import permuted_mnist
from experiments.run import runner, storage
from experiments.run.cases import CompiledCase
from experiments.run.runner import CaseProgress
from experiments.run.storage import Checkpointer, CheckpointError

MAKE_PROBLEM = permuted_mnist.make_problem
TIMES = ["steps_per_second"]
CASES = ("backprop", "continual_backprop")


def tree_of(number):
    """A tree whose numbers do not compress, so that a flipped bit changes a value."""
    rng = np.random.default_rng(number)
    return {
        "state": {"0": rng.normal(size=(3, 40)).astype("f4"), "1": np.array(number)},
        "progress": {"metrics": {"loss": rng.normal(size=(3, number))}},
    }


def restore(folder, case="case"):
    checkpointer = Checkpointer(folder, case)
    try:
        return checkpointer.restore()
    finally:
        checkpointer.close()


def assert_is(tree, number):
    jax.tree.map(np.testing.assert_array_equal, tree, tree_of(number))


def flip_a_bit(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder in which four checkpoints were saved one after the other."""
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpointer = Checkpointer(folder, "case")
    for number in (1, 2, 3, 4):
        checkpointer.save(number, tree_of(number))
    checkpointer.close()
    return folder


def test_two_checkpoints_are_kept_and_the_last_is_restored(saved):
    names = {path.name for path in (saved / "checkpoints" / "case").iterdir()}
    assert names == {"3", "4"}
    assert_is(restore(saved), 4)


def test_no_checkpoint_is_none(tmp_path):
    assert restore(tmp_path) is None


def test_no_flipped_bit_goes_unnoticed(saved, tmp_path, capsys):
    """One bit in each file of the last checkpoint, the list of checksums included."""
    rng = random.Random(0)
    step = saved / "checkpoints" / "case" / "4"
    names = [path.relative_to(saved) for path in step.rglob("*") if path.is_file()]
    assert len(names) >= 8
    for index, name in enumerate(names):
        folder = tmp_path / str(index)
        shutil.copytree(saved, folder)
        flip_a_bit(folder / name, rng)
        assert_is(restore(folder), 3)
        printed = capsys.readouterr()
        message = printed.out + printed.err
        assert "'case' after 4 tasks is damaged" in message
        assert "continuing from the one after 3 tasks" in message
        if name.name != "SHA256SUMS":
            assert name.name in message
        # The damaged one is gone, so that it can be written again.
        checkpointer = Checkpointer(folder, "case")
        checkpointer.save(4, tree_of(4))
        checkpointer.close()
        assert_is(restore(folder), 4)


def test_a_newline_that_became_another_line_break_is_noticed(saved, tmp_path, capsys):
    """Python takes the one bit off, a vertical tab, for the end of a line, too."""
    shutil.copytree(saved, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "case" / "4" / "SHA256SUMS"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0b")
    assert_is(restore(tmp_path / "run"), 3)
    assert "damaged" in capsys.readouterr().err


def test_hidden_files_of_a_file_system_are_no_damage(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    for folder in ("4", "4/default"):
        path = tmp_path / "run" / "checkpoints" / "case" / folder / ".nfs000000001"
        path.write_text("a file that was deleted while it was open")
    assert_is(restore(tmp_path / "run"), 4)


@pytest.mark.parametrize("name", ["default/_METADATA", "default/manifest.ocdbt"])
def test_a_file_that_is_missing_or_too_short_is_damage(saved, tmp_path, name, capsys):
    shutil.copytree(saved, tmp_path / "short")
    path = tmp_path / "short" / "checkpoints" / "case" / "4" / name
    path.write_bytes(path.read_bytes()[:-5])
    shutil.copytree(saved, tmp_path / "missing")
    (tmp_path / "missing" / "checkpoints" / "case" / "4" / name).unlink()
    for folder in ("short", "missing"):
        assert_is(restore(tmp_path / folder), 3)
        assert name in capsys.readouterr().err


def test_two_damaged_checkpoints_are_an_error_in_one_sentence(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    for step in ("3", "4"):
        step = folder / "checkpoints" / "case" / step
        flip_a_bit(step / "default" / "_METADATA", random.Random(1))
    for _ in range(2):  # Nothing is deleted, so the second try says the same.
        with pytest.raises(CheckpointError, match="'case'.*are damaged") as error:
            restore(folder)
    assert "--overwrite" in str(error.value)


def test_a_checkpoint_without_checksums_was_never_finished(saved, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    (folder / "checkpoints" / "case" / "4" / "SHA256SUMS").unlink()
    assert_is(restore(folder), 3)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("b"),
        lambda state: state.update(a=np.ones((2, 4), np.float32)),
        lambda state: state.update(b=np.ones(2, int)),
    ],
    ids=["number", "shape", "dtype"],
)
def test_the_state_of_another_version_is_refused(change):
    """All but the number of lanes, which are padded to the number of devices."""
    like = jax.eval_shape(
        lambda: {
            "a": jnp.zeros((4, 3)),
            "b": jnp.zeros(4),
            "key": jax.random.split(jax.random.key(0), 4),
        }
    )
    own = {
        "a": np.ones((2, 3), np.float32),
        "b": np.ones(2, np.float32),
        "key": np.ones((2, 2), np.uint32),
    }
    restored = storage.from_dict(storage.to_dict(own), like, "case")
    jax.tree.map(np.testing.assert_array_equal, restored, own)
    change(own)
    with pytest.raises(CheckpointError, match="'case'.*another version.*--overwrite"):
        storage.from_dict(storage.to_dict(own), like, "case")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of five tasks from start to end, and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    config = tiny_digits(num_tasks=5, checkpoint_every=1)
    return runner.run(config, folder, MAKE_PROBLEM), folder


@pytest.mark.parametrize("case", CASES)
def test_a_run_with_a_damaged_checkpoint_ends_with_the_same_numbers(
    whole, tmp_path, case, capsys
):
    dataset, folder = whole
    shutil.copytree(folder, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / case / "5"
    (data,) = (step / "default" / "d").iterdir()
    flip_a_bit(data, random.Random(2))
    again = runner.run(
        tiny_digits(num_tasks=5, checkpoint_every=1), tmp_path / "run", MAKE_PROBLEM
    )
    assert f"{case!r} after 5 tasks is damaged" in capsys.readouterr().err
    xr.testing.assert_identical(again.drop_vars(TIMES), dataset.drop_vars(TIMES))
    assert (step / "SHA256SUMS").is_file()


def test_a_checkpoint_costs_the_same_after_many_tasks(tmp_path, monkeypatch):
    save, sizes = Checkpointer.save, []

    def counted(self, tasks_done, *trees):
        leaves = jax.tree.leaves(trees)
        sizes.append((len(leaves), sum(leaf.nbytes for leaf in leaves)))
        save(self, tasks_done, *trees)

    monkeypatch.setattr(Checkpointer, "save", counted)
    runner.run(
        tiny_digits(num_tasks=9, checkpoint_every=3), tmp_path / "run", MAKE_PROBLEM
    )
    assert len(sizes) == 6
    assert len(set(sizes[:3])) == len(set(sizes[3:])) == 1


def records_of(folder, case):
    folder = folder / "checkpoints" / case
    return [folder / name for name in ("records", "records.copy")]


@pytest.mark.parametrize("damage", ["one", "last of both", "first of both"])
def test_damaged_records_are_taken_from_the_copy_or_the_checkpoint_before(
    whole, tmp_path, damage, capsys
):
    dataset, folder = whole
    shutil.copytree(folder, tmp_path / "run")
    config = tiny_digits(num_tasks=5, checkpoint_every=1)
    paths = records_of(tmp_path / "run", "backprop")
    for path in paths[:1] if damage == "one" else paths:
        data = bytearray(path.read_bytes())
        data[-5 if damage == "last of both" else 5] ^= 64
        path.write_bytes(data)
    if damage == "first of both":
        with pytest.raises(CheckpointError, match="All checkpoints of case 'backprop'"):
            runner.run(config, tmp_path / "run", MAKE_PROBLEM)
        return
    again = runner.run(config, tmp_path / "run", MAKE_PROBLEM)
    said = {
        "one": f"{paths[0]} was damaged and has been restored from its copy",
        "last of both": "after 5 tasks is damaged (records); continuing from the one "
        "after 4 tasks",
    }
    assert said[damage] in capsys.readouterr().err
    xr.testing.assert_identical(again.drop_vars(TIMES), dataset.drop_vars(TIMES))
    for path, other in zip(paths, records_of(folder, "backprop"), strict=True):
        assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    "stage",
    [
        *(
            pytest.param(stage, marks=pytest.mark.slow)
            for stage in ("first copy", "not listed")
        ),
        "both copies",
    ],
)
def test_a_kill_between_the_records_and_their_checkpoint_loses_no_more(
    whole, tmp_path, stage
):
    """The second case has recorded its fifth task; the checkpoint is unfinished."""
    dataset, folder = whole
    shutil.copytree(folder, tmp_path / "run")
    case = tmp_path / "run" / "checkpoints" / CASES[1]
    end = json.loads((case / "4" / "records.json").read_text())["bytes"]
    if stage == "first copy":
        first, copy = records_of(tmp_path / "run", CASES[1])
        first.write_bytes(first.read_bytes()[: end + 100])
        copy.write_bytes(copy.read_bytes()[:end])
    if stage == "not listed":
        (case / "5" / "SHA256SUMS").unlink()
    else:
        shutil.rmtree(case / "5")
    config = tiny_digits(num_tasks=5, checkpoint_every=1)
    with pytest.MonkeyPatch.context() as patch:
        run_task, tasks = CompiledCase.run_task, []

        def counted(self, state, task):
            tasks.append(task)
            return run_task(self, state, task)

        patch.setattr(CompiledCase, "run_task", counted)
        again = runner.run(config, tmp_path / "run", MAKE_PROBLEM)
    assert tasks == [4]
    xr.testing.assert_identical(again.drop_vars(TIMES), dataset.drop_vars(TIMES))


@pytest.mark.slow
def test_a_run_of_checkpoints_that_hold_all_metrics_goes_on(whole, tmp_path):
    """Those of version 0.2.0 until November 2026, without a record of the code."""
    dataset, _ = whole
    folder = tmp_path / "run"
    runner.run(tiny_digits(num_tasks=3, checkpoint_every=1), folder, MAKE_PROBLEM)
    for case in CASES:
        checkpointer = Checkpointer(folder, case)
        saved = checkpointer.restore()
        checkpointer.close()
        shutil.rmtree(folder / "checkpoints" / case)
        progress = CaseProgress.from_tree(saved["progress"], saved.pop("records"))
        saved["progress"]["metrics"] = progress.arrays()
        checkpointer = Checkpointer(folder, case)
        checkpointer.save(3, saved)
        checkpointer.close()
    (folder / "code.json").unlink()
    longer = runner.run(
        tiny_digits(num_tasks=5, checkpoint_every=1), folder, MAKE_PROBLEM
    )
    xr.testing.assert_equal(longer.drop_vars(TIMES), dataset.drop_vars(TIMES))
    first, second = json.loads(longer.attrs["code"])
    assert first["sources"] == "unknown"
    assert [second] == json.loads(dataset.attrs["code"])
    for case in CASES:
        assert restore(folder, case)["records"][0]["loss"].shape == (2, 4)


def test_a_longer_run_goes_on_where_a_finished_one_ended(whole, tmp_path, monkeypatch):
    dataset, _ = whole
    short = tiny_digits(num_tasks=3, checkpoint_every=100)
    runner.run(short, tmp_path / "run", MAKE_PROBLEM)
    run_task, tasks = CompiledCase.run_task, []

    def counted(self, state, task):
        tasks.append(task)
        return run_task(self, state, task)

    monkeypatch.setattr(CompiledCase, "run_task", counted)
    config = tiny_digits(num_tasks=5, checkpoint_every=1)
    longer = runner.run(config, tmp_path / "run", MAKE_PROBLEM)
    assert tasks == [3, 4] * len(CASES)
    xr.testing.assert_equal(longer.drop_vars(TIMES), dataset.drop_vars(TIMES))
    with pytest.raises(ValueError, match="longer, not shorter"):
        runner.run(short, tmp_path / "run", MAKE_PROBLEM)


@pytest.mark.parametrize(
    "said",
    [
        "INTERNAL: Error writing 'a/b': No space left on device [os_error_code='28'] "
        "[tensorstore_spec='{...}']",
        "INTERNAL: Failed to write to file, No space left on device "
        "[os_error_code='28'].",
    ],
)
def test_the_reason_of_a_failed_write_is_the_systems(said, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError(said)

    checkpointer = Checkpointer(tmp_path, "case")
    monkeypatch.setattr(storage.ocp.CheckpointManager, "save", fail)
    with pytest.raises(CheckpointError, match="case: No space left on device. Once it"):
        checkpointer.save(1, tree_of(1))
