"""Checkpoints on file systems without locks, known before training."""

import os
import pathlib
import shutil
import subprocess
import sys

import orbax.checkpoint as ocp
import pytest
from tiny_runs import tiny_digits

from experiments import permuted_mnist
from experiments.run import runner, storage
from experiments.run.cases import CompiledCase
from experiments.run.storage import CheckpointError, writable_checkpoints

ROOT = pathlib.Path(__file__).parents[2]

# What a process sees whose file system has no locks, its native code included.
NO_LOCKS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>

int flock(int file, int operation) { errno = 524; return -1; }

static int without_locks(const char *name, int file, int command, void *argument) {
  if (command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK ||
      command == F_OFD_SETLKW) {
    errno = 524;
    return -1;
  }
  int (*real)(int, int, ...) = dlsym(RTLD_NEXT, name);
  return real(file, command, argument);
}

#define WITHOUT_LOCKS(name)                         \
  int name(int file, int command, ...) {            \
    va_list arguments;                              \
    va_start(arguments, command);                   \
    void *argument = va_arg(arguments, void *);     \
    va_end(arguments);                              \
    return without_locks(#name, file, command, argument); \
  }
WITHOUT_LOCKS(fcntl)
WITHOUT_LOCKS(fcntl64)
"""

SAVE_AND_RESTORE = """
import pathlib, sys
import numpy as np
from experiments.run.storage import Checkpointer
from experiments.run.folder import open_folder
from experiments.run.storage import writable_checkpoints

folder = pathlib.Path(sys.argv[1])
with open_folder(folder, '{"cbp_jax": "0"}', False), writable_checkpoints(folder):
    checkpointer = Checkpointer(folder, "case")
    for tasks in (1, 2, 3):
        checkpointer.save(tasks, {"state": np.full(5, tasks)})
    print(checkpointer.restore())
    checkpointer.close()
"""


def locking():
    """How TensorStore locks the files that Orbax writes."""
    context = ocp.type_handlers.get_ts_context.__globals__["get_ts_context"]
    return context(use_ocdbt=True).spec.to_json().get("file_io_locking")


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("gcc"), reason="needs Linux and gcc"
)
def test_checkpoints_are_written_where_there_are_no_locks(tmp_path):
    (tmp_path / "no_locks.c").write_text(NO_LOCKS)
    library = tmp_path / "no_locks.so"
    command = ["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "no_locks.c"]
    subprocess.run([*map(str, command), "-ldl"], check=True)
    finished = subprocess.run(
        [sys.executable, "-c", SAVE_AND_RESTORE, str(tmp_path / "run")],
        cwd=ROOT,
        env=os.environ | {"LD_PRELOAD": str(library), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert "array([3, 3, 3, 3, 3])" in finished.stdout
    left = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in left if "lock" in name and "no_locks" not in name]


def test_where_there_are_locks_orbax_keeps_its_own(tmp_path):
    with writable_checkpoints(tmp_path):
        assert locking() is None
    assert not list(tmp_path.rglob("*trial*"))


def test_a_lock_file_that_a_killed_process_left_is_no_obstacle(tmp_path, monkeypatch):
    def no_locks(folder):
        raise ValueError("No locks available [os_error_code='37']")

    monkeypatch.setattr(storage, "_write_file", no_locks)
    half = tmp_path / "checkpoints" / ".trial" / "1.orbax-checkpoint-tmp" / "default"
    half.mkdir(parents=True)
    (half / "manifest.ocdbt.__lock").touch()
    with writable_checkpoints(tmp_path):
        assert locking() == {"mode": "lockfile"}
    assert locking() is None
    assert not list(tmp_path.rglob("*trial*"))


def test_a_folder_that_takes_no_checkpoints_is_an_error_before_training(
    tmp_path, monkeypatch
):
    def no_locks(*args, **kwargs):
        raise ValueError("INTERNAL: No locks available [os_error_code='37']")

    monkeypatch.setattr(storage, "_write_file", no_locks)
    monkeypatch.setattr(storage.ocp.CheckpointManager, "save", no_locks)
    monkeypatch.setattr(CompiledCase, "run_task", lambda *_: pytest.fail("trained"))
    with pytest.raises(CheckpointError, match="No locks available. Nothing was trai"):
        runner.run(tiny_digits(), tmp_path / "run", permuted_mnist.make_problem)
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {
        "checkpoints",
        "code.json",
        "config.json",
    }
