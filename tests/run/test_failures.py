"""The real program: killed, out of disk space, and in two processes."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
import xarray as xr

from experiments.reporting import run_results

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
TINY = (
    "--config=configs/pmnist.py:smoke",
    "--config.hidden_units=5",
    "--config.hidden_layers=1",
    "--config.num_tasks=6",
    "--config.num_seeds=3",
    "--config.checkpoint_every=1",
)
TIMES = ["steps_per_second"]


def start(folder, *arguments, devices=2):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "experiments.permuted_mnist", *TINY),
            *(f"--workdir={folder}", *arguments),
        ],
        cwd=ROOT,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        | {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
        | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out + err


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run, whose compiled programs all others use."""
    folder = tmp_path_factory.mktemp("failures") / "whole"
    status, printed = finish(start(folder))
    assert status == 0, printed
    return folder


def last_checkpoint(folder):
    """Tasks done at the last whole checkpoints of all cases, 0 before any."""
    done = {}
    # Folders that come and go while a run starts begin with a dot.
    for checksums in folder.glob("checkpoints/[!.]*/*/SHA256SUMS"):
        case, tasks = checksums.parts[-3:-1]
        done[case] = max(done.get(case, 0), int(tasks))
    return sum(done.values())


def assert_same_results(folder, other):
    one, two = (run_results.load(run).drop_vars(TIMES) for run in (folder, other))
    xr.testing.assert_identical(one, two.assign_attrs(device=one.device))


def test_a_run_killed_again_and_again_ends_with_the_same_results(whole):
    """SIGKILL at three different checkpoints of the twelve tasks."""
    folder = whole.parent / "killed"
    killed = 0
    for wanted in (2, 5, 8):
        process = start(folder)
        while process.poll() is None:
            if last_checkpoint(folder) >= wanted:
                process.send_signal(signal.SIGKILL)
                killed += 1
                break
            os.sched_yield()
        process.communicate(timeout=300)
    assert killed >= 2
    status, printed = finish(start(folder))
    assert status == 0, printed
    assert_same_results(whole, folder)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_two_processes_of_two_devices_equal_one_process(whole):
    folder = whole.parent / "distributed"
    address = f"--address=localhost:{free_port()}"
    processes = [
        start(
            folder,
            *(
                "--distributed",
                address,
                "--num_processes=2",
                f"--process_index={index}",
            ),
        )
        for index in range(2)
    ]
    (status, printed), (other_status, other_printed) = map(finish, processes)
    assert (status, other_status) == (0, 0), printed + other_printed
    assert "| backprop" in printed
    assert "| backprop" not in other_printed
    assert_same_results(whole, folder)


def mount(folder, options):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")


@pytest.fixture
def small_disk(whole):
    folder = whole.parent / "small_disk"
    mount(folder, "size=8m")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(whole, small_disk):
    folder = small_disk / "run"
    ballast = small_disk / "ballast"
    process = start(folder)
    while process.poll() is None and not last_checkpoint(folder):
        os.sched_yield()
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    status, printed = finish(process)
    assert status == 1, printed
    (message,) = (line for line in printed.splitlines() if "Cannot write" in line)
    assert message.startswith("CheckpointError: Cannot write a checkpoint to ")
    assert "No space left on device. Once it can be written, the same" in message
    assert "continues from the intact one after" in message
    assert "Traceback" not in printed, printed
    ballast.unlink()
    status, printed = finish(start(folder))
    assert status == 0, printed
    assert_same_results(whole, folder)


def test_a_read_only_folder_is_an_error_at_once(whole):
    folder = whole.parent / "read_only"
    mount(folder, "ro")
    try:
        began = time.monotonic()
        status, printed = finish(start(folder / "run"))
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    assert status == 1
    assert "Read-only file system" in printed
    assert "Traceback" not in printed
    assert "step/s" not in printed, f"trained for {time.monotonic() - began:.0f} s"
