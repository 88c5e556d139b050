"""What a run folder lets in, keeps and deletes."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest
from tiny_runs import tiny_digits

from experiments.run import provenance
from experiments.run.folder import LOCK_FILE, RunFolderError, hold_lock, open_folder

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = provenance.to_json(tiny_digits())
WRITTEN = (
    "results.nc",
    "code.json",
    "replacements.csv",
    "checkpoints/backprop/records",
    "checkpoints/backprop/records.copy",
    "checkpoints/backprop/.records.copy",
    "checkpoints/backprop/4/records.json",
    "checkpoints/backprop/4/SHA256SUMS",
    "checkpoints/backprop/4/default/d/c4337be8e3da",
    "checkpoints/backprop/6.orbax-checkpoint-tmp/default/manifest.ocdbt",
    "checkpoints/backprop/8.orbax-checkpoint-tmp-17900000/default/manifest.ocdbt",
    "figures/learning.png",
    "figures/survival.png",
    "tensorboard/backprop, step_size 0.1/events.out.tfevents.1790000000.host",
    "profile/backprop/plugins/profile/2026_11_30_12_00_00/perfetto_trace.json.gz",
)


def write(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def open_and_close(folder, overwrite=False, config=CONFIG):
    with open_folder(folder, config, overwrite):
        pass


@pytest.fixture
def run(tmp_path):
    """A folder with one of everything that a run writes."""
    folder = tmp_path / "run"
    open_and_close(folder)
    write(folder, *WRITTEN)
    return folder


def refused(folder, match, **options):
    before = files(folder)
    with pytest.raises(RunFolderError, match=match) as error:
        open_and_close(folder, **options)
    assert files(folder) == before
    return str(error.value)


def test_overwrite_leaves_nothing_of_the_run_before(run):
    with open_folder(run, CONFIG, overwrite=True):
        assert set(files(run)) == {"config.json", LOCK_FILE}
    assert files(run) == {"config.json": CONFIG.encode()}


def test_without_overwrite_all_is_kept(run):
    before = files(run)
    open_and_close(run)
    assert files(run) == before


@pytest.mark.parametrize(
    "name",
    [
        "weights.npz",
        "results.nc.backup",
        "figures/mine.png",
        "checkpoints/weights.npz",
        "checkpoints/backprop/best/weights.npz",
        "checkpoints/backprop/4_kept/default/data",
        "checkpoints/2026_best/weights.npz",
        "tensorboard/notes.txt",
        "profile/notes.txt",
        "nested/config.json",
    ],
)
def test_overwrite_refuses_what_no_run_has_written(run, name):
    write(run, name)
    refused(run, rf"no run wrote: {name}\. Nothing was", overwrite=True)


@pytest.mark.parametrize("kind", ["file", "folder", "run"])
def test_overwrite_never_follows_a_link(run, tmp_path, kind):
    elsewhere = tmp_path / "elsewhere"
    folder = run
    if kind == "run":
        run.rename(elsewhere)
        folder.symlink_to(elsewhere)
    elif kind == "folder":
        write(elsewhere, "4/default/data")
        (run / "checkpoints" / "linked").symlink_to(elsewhere)
    else:
        write(tmp_path, "elsewhere")
        (run / "results.nc").unlink()
        (run / "results.nc").symlink_to(elsewhere)
    before = files(tmp_path)
    message = refused(
        folder,
        "is a symbolic link" if kind == "run" else "no run wrote",
        overwrite=True,
    )
    assert (f"--workdir={elsewhere}" in message) == (kind == "run")
    assert files(tmp_path) == before


def test_a_folder_whose_deletion_was_interrupted_is_still_ours(run, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_and_close(run, overwrite=True)
    open_and_close(run, overwrite=True)
    assert files(run) == {"config.json": CONFIG.encode()}


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    write(tmp_path, "notes")
    with pytest.raises(RunFolderError, match="notes is a file; pass another"):
        open_and_close(tmp_path / "notes")


def test_a_run_that_came_and_went_between_two_looks_is_seen(tmp_path, monkeypatch):
    other = provenance.to_json(tiny_digits(step_size=0.5))

    @contextlib.contextmanager
    def after_another_run(folder):
        (folder / "config.json").write_text(other)
        with hold_lock(folder):
            yield

    monkeypatch.setattr("experiments.run.folder.hold_lock", after_another_run)
    with pytest.raises(RunFolderError, match=r"step_size: 0\.5 -> 0\.03"):
        open_and_close(tmp_path)
    assert (tmp_path / "config.json").read_text() == other


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"model_type": "bert", "hidden_size": 768}', "not the config of a run"),
        ("[1, 2]", "not the config of a run"),
        (CONFIG[: len(CONFIG) // 2], "is damaged, or is not the config"),
        ("\x00\x01", "is damaged, or is not the config"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_config_that_no_run_has_written_keeps_the_folder_safe(
    tmp_path, text, match, overwrite
):
    write(tmp_path, "model.safetensors", "checkpoints/backprop/4/data")
    (tmp_path / "config.json").write_text(text)
    message = refused(tmp_path, match, overwrite=overwrite)
    assert "config.json" in message
    assert "--workdir" in message


def test_a_run_killed_before_it_wrote_its_config_is_begun_anew(tmp_path):
    write(tmp_path, LOCK_FILE, ".config.json", "code.json")
    open_and_close(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["cbp_jax"]


def test_a_second_run_is_told_who_holds_the_folder(run):
    holder = f"process {os.getpid()} on host {socket.gethostname()}"
    with open_folder(run, CONFIG, overwrite=False):
        for overwrite in (False, True):
            with pytest.raises(RunFolderError, match=f"in use by {holder}"):
                open_and_close(run, overwrite=overwrite)
        assert (run / LOCK_FILE).exists()
        assert set(WRITTEN) < set(files(run))
    assert not (run / LOCK_FILE).exists()
    open_and_close(run)


@pytest.mark.slow
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    code = (
        "import os, pathlib, sys; from experiments.run.folder import hold_lock\n"
        "with hold_lock(pathlib.Path(sys.argv[1])): os._exit(9)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT).returncode == 9
    left = (tmp_path / LOCK_FILE).read_text()
    assert left.startswith("process ")
    with hold_lock(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / LOCK_FILE).read_text()


@pytest.mark.parametrize(
    "code",
    # 524 is ENOTSUPP of the Linux kernel, which NFS without its lock daemon returns.
    [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EACCES, 524],
)
def test_without_locks_of_files_a_lock_file_that_is_left_is_a_lock(
    tmp_path, monkeypatch, code
):
    def no_locks(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    open_and_close(tmp_path)
    with open_folder(tmp_path, CONFIG, overwrite=False):
        message = refused(tmp_path, f"in use by process {os.getpid()} on host")
    assert f"Delete {tmp_path / LOCK_FILE} if that process is gone" in message
    open_and_close(tmp_path)
    # Another process has created the file and not written its name yet.
    (tmp_path / LOCK_FILE).touch()
    refused(tmp_path, "in use by another process, or was when")


def test_a_run_can_be_made_longer_but_not_shorter(tmp_path):
    open_and_close(tmp_path)
    longer = tiny_digits(num_tasks=9)
    open_and_close(tmp_path, config=provenance.to_json(longer))
    assert json.loads((tmp_path / "config.json").read_text())["num_tasks"] == 9
    message = refused(tmp_path, "num_tasks: 9 -> 2")
    assert "longer, not shorter" in message
