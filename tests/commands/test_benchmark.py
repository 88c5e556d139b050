"""The command that times training."""

import csv
import pathlib
import re
import subprocess
import sys
import types

import jax
from ml_collections import ConfigDict
import numpy as np
from programs import run_program
import pytest
from tiny_runs import tiny_digits

from configs import benchmark as presets
from experiments import benchmark
from experiments.learning.checks import ConfigError
from experiments.streams import datasets
from experiments.timing import compiled_programs, programs, torch_loop
from experiments.timing.devices import DEVICES
from experiments.timing.projections import Assumptions
from experiments.timing.table import COLUMNS, Timing

ROOT = pathlib.Path(__file__).parents[2]


def group_of(network, lanes=2, parts=()):
    fields = {"problem": "permuted_mnist", "network": network, "parts": parts}
    group = ConfigDict(fields | {"steps": 20})
    group.config = tiny_digits(num_seeds=lanes)
    return group


@pytest.mark.slow
def test_a_config_has_a_line_for_each_case(tmp_path):
    result = run_program(
        "benchmark",
        "permuted_mnist",
        "--config=configs/pmnist.py:smoke",
        "--config.hidden_layers=1",
        *("--steps=20", "--rounds=2"),
        f"--csv={tmp_path / 'found.csv'}",
    )
    assert result.returncode == 0, result.stderr
    lines = {
        line.split()[1]: line
        for line in result.stdout.splitlines()
        if line.startswith("| ")
    }
    assert {"backprop", "continual_backprop", "floor"} <= lines.keys()
    assert re.search(r"\| [\d.e+]+ +\| 1 \(1 to 1\) +\| 2 ", lines["backprop"])


@pytest.mark.slow
def test_a_preset_writes_a_table_and_a_file(tmp_path):
    path = tmp_path / "found.csv"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.benchmark", "--preset=smoke"),
            *("--only=1 x 4", "--rounds=1", f"--csv={path}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == tuple(COLUMNS)
    assert {row["method"] for row in read} == {
        "backprop",
        "continual_backprop",
        "floor",
    }
    for row in read:
        assert (row["problem"], row["network"]) == ("permuted_mnist", "1 x 4")
        assert (row["lanes"], row["rounds"], row["status"]) == ("2", "1", "ok")
        for column in ("us_per_lane_step", "bandwidth_share", "memory_bytes"):
            assert float(row[column]) > 0
        assert row["method"] in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist", "--config=configs/pmnist.py"), "such as permuted_mnist"),
        (("permuted_mnist", "--config=configs/pmnist.py", "--reference=l2"), "'l2'"),
        (
            ("permuted_mnist", "--config=configs/pmnist.py", "--cases=backprop,l9"),
            "--cases: the config has no case 'l9'",
        ),
        (
            (
                *("permuted_mnist", "--config=configs/pmnist.py"),
                "--cases=continual_backprop",
            ),
            "must be one of the config's cases ['continual_backprop'], got 'backprop'",
        ),
        (("--cases=backprop",), "pass --config=FILE[:PRESET]"),
    ],
)
def test_bad_arguments_are_named_with_the_choices(arguments, message, tmp_path):
    path = tmp_path / "found.csv"
    result = run_program("benchmark", *arguments, f"--csv={path}")
    assert result.returncode != 0
    assert message in result.stdout + result.stderr


def test_without_pytorch_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(torch_loop.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install torch"):
        torch_loop.check_installed()


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_groups_of_a_preset_differ(preset):
    groups = presets.get_config(preset).groups
    for group in groups:
        assert (ROOT / "experiments" / f"{group.problem}.py").exists()
        assert {"backprop", "continual_backprop"} == set(group.config.cases)
    assert len({benchmark.title(group) for group in groups}) == len(groups)


def test_an_unknown_preset_is_named_with_the_choices():
    with pytest.raises(ValueError, match="'gpu'.*'accelerator'"):
        presets.get_config("gpu")


def test_groups_are_chosen_by_a_part_of_their_names():
    groups = [group_of("1 x 5"), group_of("1 x 5", lanes=3), group_of("2 x 5")]
    assert benchmark.choose(groups, "") == groups
    assert benchmark.choose(groups, "1 x 5") == groups[:2]
    assert benchmark.choose(groups, "permuted_mnist, 1 x 5, 3 lanes") == groups[1:2]
    with pytest.raises(ConfigError, match="'3 x 5'.*permuted_mnist, 2 x 5, 2 lanes"):
        benchmark.choose(groups, "3 x 5")


def test_made_up_images_read_as_mnist(tmp_path):
    benchmark.write_images(tmp_path)
    images = datasets.load("mnist", str(tmp_path)).images
    assert images.shape == (60_000, 28, 28, 1)


class MadeUpProgram:
    compile_seconds, memory_bytes = 7.0, 9

    def __init__(self, updates):
        self.updates = updates

    def __call__(self):
        pass


def test_times_become_those_of_an_update_of_a_lane_and_shares(monkeypatch):
    """2 lanes x 5 updates in 2 s, of which 1.5 s are updates; measures take 1 s.

    In a run a task has 40 updates: 16 s for both lanes, and the 1 s. The floor moves
    its weights at a quarter of the machine's bandwidth.
    """

    for name, updates in (("task", 10), ("updates", 20), ("measures", 0), ("floor", 8)):
        made_up = MadeUpProgram(updates)
        monkeypatch.setattr(
            programs, f"{name}_program", lambda *arguments, found=made_up: found
        )
    monkeypatch.setattr(programs, "bandwidth_program", lambda: None)
    monkeypatch.setattr(programs, "weight_bytes", lambda case: 100)
    monkeypatch.setattr(programs, "BANDWIDTH_BYTES", 3200)
    seconds = {"task": 2.0, "data": 3.0, "measures": 1.0}

    def take_turns(built, **options):
        del options
        return {
            name: np.full(
                3, 8.0 if "floor" in name or name == "bandwidth" else seconds[name[1]]
            )
            for name in built
        }

    monkeypatch.setattr(benchmark, "take_turns", take_turns)
    timings = benchmark.time_group(
        group_of("1 x 5", parts=("data", "measures")), reference="backprop", rounds=3
    )
    assert timings.keys() == {"backprop", "continual_backprop", "floor"}
    found = timings["continual_backprop"]
    np.testing.assert_allclose(found.seconds, [0.2] * 3)
    assert found.data_share == pytest.approx(0.25)
    assert found.measures_share == pytest.approx(1 / 17)
    assert (found.lanes, found.compile_seconds, found.memory_bytes) == (2, 7.0, 9)
    np.testing.assert_allclose(timings["floor"].seconds, [1.0] * 3)
    assert timings["floor"].bandwidth_share == pytest.approx(0.25)
    assert np.isnan(timings["floor"].data_share)


LOOP = """
%body (state: (s32[], f32[2])) -> (s32[], f32[2]) {
  %state = (s32[], f32[2]{0}) parameter(0)
  %index = s32[] get-tuple-element(%state), index=0
  %x = f32[2]{0} get-tuple-element(%state), index=1
  %y = f32[2]{0} negate(%x)
  ROOT %next = (s32[], f32[2]{0}) tuple(%index, %y)
}

ENTRY %main (first: (s32[], f32[2])) -> (s32[], f32[2]) {
  %first = (s32[], f32[2]{0}) parameter(0)
  ROOT %loop = (s32[], f32[2]{0}) while(%first), condition=%none, body=%body, TRIPS
}
""".replace("TRIPS", 'backend_config={"known_trip_count":{"n":"5"}}')


def test_on_a_known_accelerator_times_are_compared_with_the_projected_ones(
    monkeypatch, capsys, tmp_path
):
    """Two lanes need one launch of 1 µs for an update, but take 3 µs each."""
    program = MadeUpProgram(10)
    program.compiled = types.SimpleNamespace(as_text=lambda: LOOP)
    for name in ("task_program", "floor_program"):
        monkeypatch.setattr(programs, name, lambda *arguments: program)
    monkeypatch.setattr(programs, "bandwidth_program", lambda: None)
    monkeypatch.setattr(benchmark, "of_kind", lambda kind: DEVICES["h100"])
    monkeypatch.setattr(
        benchmark,
        "take_turns",
        lambda built, **options: dict.fromkeys(built, np.full(3, 30e-6)),
    )
    benchmark.run_groups(
        [group_of("1 x 5")],
        tmp_path / "found.csv",
        minutes=1,
        reference="backprop",
        rounds=3,
        assumptions=Assumptions(launch_seconds=1e-6),
    )
    with (tmp_path / "found.csv").open(newline="") as file:
        ratios = [float(row["ratio_to_projection"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(ratios, [3e-6 / 0.5e-6] * 3)
    printed = capsys.readouterr().out
    assert "to projection" in printed
    assert "Projections assume 1 µs for a launch" in printed


def test_tasks_compiled_for_an_accelerator_are_counted_and_projected(
    monkeypatch, capsys, tmp_path
):
    """This machine's devices stand in: an H100 runs nothing but launches of 1 ms."""
    monkeypatch.setattr(
        benchmark.ahead_of_time, "describe", lambda device, number: jax.devices()
    )
    path, folder = tmp_path / "found.csv", tmp_path / "programs"
    group = group_of("1 x 5")
    benchmark.compile_groups(
        [group],
        "h100",
        Assumptions(launch_seconds=1e-3, conditional_seconds=0),
        path=path,
        programs_folder=folder,
    )
    with path.open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"backprop", "continual_backprop"}
    updates = group.config.num_tasks * group.config.examples_per_task
    for name, row in rows.items():
        text = (
            folder / f"h100, permuted_mnist, 1 x 5, 2 lanes, {name}.txt"
        ).read_text()
        counts = compiled_programs.count(text, group.config.examples_per_task)
        assert float(row["kernels"]) == pytest.approx(counts.kernels)
        kernels = counts.kernels + counts.most_in_branches
        assert float(row["update_seconds"]) == pytest.approx(1e-3 * kernels, rel=1e-5)
        assert float(row["run_seconds"]) == pytest.approx(
            updates * float(row["update_seconds"]), rel=1e-5
        )
        assert (row["bound"], row["device"], row["lanes"]) == (
            "launches",
            "1 x h100",
            "2",
        )
    # Of backprop: 385 weights and biases, the key and what counts updates.
    params = 4 * (64 * 5 + 5 + 5 * 10 + 10)
    least = float(rows["backprop"]["least_bytes"])
    assert 2 * 3 * params <= least <= 2 * (3 * params + 50)
    printed = capsys.readouterr().out
    assert "| continual_backprop" in printed
    assert "Compiled for 1 x H100 with JAX" in printed
    assert "1000 µs for a launch" in printed


def test_lanes_that_do_not_fit_are_taken_in_blocks(monkeypatch):
    """Ten lanes on two devices, of which each has room for two at once."""
    asked = []

    def compile_task(case, device, devices, block=0):
        asked.append(block)
        return types.SimpleNamespace(lanes_that_fit=2)

    monkeypatch.setattr(benchmark.ahead_of_time, "compile_task", compile_task)
    case = types.SimpleNamespace(
        num_lanes=10, config=types.SimpleNamespace(lanes_per_block=0)
    )
    benchmark.ahead_of_time.compile_to_fit(case, DEVICES["h100"], range(2))
    assert asked == [0, 2]
    case.config.lanes_per_block = 3
    benchmark.ahead_of_time.compile_to_fit(case, DEVICES["h100"], range(2))
    assert asked[2:] == [3]


def test_what_does_not_fit_is_left_out_and_says_so():
    def fail(error):
        raise error

    exhausted = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore")
    built, failed = benchmark.build(
        {
            ("first", "task"): lambda: fail(MemoryError("needs 9 bytes")),
            ("good", "task"): lambda: lambda: None,
            ("second", "data"): lambda: lambda: fail(exhausted),
        }
    )
    assert set(built) == {("good", "task")}
    assert failed == {
        ("first", "task"): "out of memory: needs 9 bytes",
        ("second", "data"): "out of memory: RESOURCE_EXHAUSTED: 9 GB",
    }
    bad = jax.errors.JaxRuntimeError("INTERNAL")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        benchmark.build({("bad", "task"): lambda: fail(bad)})


@pytest.fixture
def run_groups(monkeypatch, tmp_path, capsys):
    """Runs five groups, of which each takes a minute and the second has no memory.

    Returns the lines of the CSV file before each group, and what is printed.
    """

    def run(minutes, interrupted=None):
        now, lines = [0.0], []
        path = tmp_path / "found.csv"

        def time_group(group, **options):
            del options
            now[0] += 60
            lines.append(len(path.read_text().splitlines()))
            if len(lines) == 2:
                raise ConfigError("needs more of memory")
            if len(lines) == interrupted:
                raise KeyboardInterrupt
            return {"backprop": Timing(group.config.num_seeds, np.ones(3))}

        monkeypatch.setattr(benchmark, "time_group", time_group)
        monkeypatch.setattr(benchmark.time, "monotonic", lambda: now[0])
        groups = [group_of(f"{number} x 5") for number in range(1, 6)]
        benchmark.run_groups(groups, path, minutes, reference="backprop")
        return lines, capsys.readouterr().out

    return run


def test_what_is_done_is_in_the_file_and_no_group_begins_without_time(run_groups):
    lines, printed = run_groups(3.5)
    assert lines == [0, 2, 2, 3]
    assert "2 x 5, 2 lanes: needs more of memory" in printed
    assert "5 x 5, 2 lanes: no time left" in printed
    assert len(re.findall(r"\| backprop ", printed)) == 3


def test_what_is_done_is_shown_after_an_interrupt(run_groups):
    lines, printed = run_groups(60, interrupted=4)
    assert lines == [0, 2, 2, 3]
    assert len(re.findall(r"\| backprop ", printed)) == 2
