"""Tasks compiled for accelerators that are not here.

What needs a compiler for them skips without it: `pip install -e '.[compile]'`.
"""

import importlib

import jax
import pytest
from tiny_runs import tiny_bits, tiny_digits, tiny_pairs

from configs import pmnist
from experiments.run.cases import Case, CompiledCase, lower_task
from experiments.run.config import complete, make_cases, make_grid
from experiments.run.machine import bytes_needed
from experiments.timing import ahead_of_time, compiled_programs
from experiments.timing.compiled_programs import summarize
from experiments.timing.devices import DEVICES

PROBLEMS = {
    "permuted_mnist": tiny_digits,
    "slowly_changing_regression": tiny_bits,
    "continual_imagenet": tiny_pairs,
}
METHODS = sorted(pmnist.get_config("methods").cases)


def tiny_cases(problem, **overrides):
    """Cases without the checks of this machine's memory."""
    module = importlib.import_module(f"experiments.{problem}")
    config = complete(PROBLEMS[problem](**overrides))
    return [
        Case(name, case, make_grid(case), module.make_problem(case))
        for name, case in make_cases(config).items()
    ]


def compiled_for(name, case, number=1):
    device = DEVICES[name]
    try:
        devices = ahead_of_time.describe(device, number)
    except ImportError as error:
        pytest.skip(str(error))
    return ahead_of_time.compile_task(case, device, devices)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("h100", r"pip install 'jax\[cuda13-local\]==[0-9.]+' nvidia-cuda-nvcc"),
        ("v5e", r"pip install 'jax\[tpu\]==[0-9.]+'"),
    ],
)
def test_missing_compilers_are_named_with_the_remedy(name, remedy, monkeypatch):
    monkeypatch.setattr(ahead_of_time.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=f"not installed for jaxlib.*{remedy}$"):
        ahead_of_time.check_installed(DEVICES[name])


def test_a_compiler_of_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(ahead_of_time.importlib.util, "find_spec", lambda name: name)
    versions = {"jaxlib": "0.10.2", "jax-cuda13-plugin": "0.11.0"}
    monkeypatch.setattr(ahead_of_time.metadata, "version", versions.get)
    with pytest.raises(ImportError, match=r"install 'jax\[cuda13-local\]==0.10.2'$"):
        ahead_of_time.check_installed(DEVICES["h100"])
    versions["jax-cuda13-plugin"] = "0.10.2"
    ahead_of_time.check_installed(DEVICES["h100"])


def test_a_task_is_compiled_from_shapes_alone_as_a_run_compiles_it():
    """Three lanes on what this process has: the same work and the same memory."""
    case = tiny_cases("permuted_mnist", num_seeds=3)[0]
    block = -(-3 // len(jax.devices()))
    a_run = CompiledCase(case, block)
    programs = (
        a_run.compile_task(jax.eval_shape(lambda: a_run.start(None))),
        lower_task(case, jax.devices(), block).compile(),
    )
    run, alone = (
        (compiled_programs.update_work(program.as_text(), 40), bytes_needed(program))
        for program in programs
    )
    assert run == alone
    assert summarize(run[0]).kernels > 5


@pytest.mark.slow
@pytest.mark.parametrize("device", ["h100", "v5e"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_tasks_of_each_problem_compile(problem, device):
    """Stream, updates, tests and measures, ranks among them, on one device."""
    for case in tiny_cases(problem, rank_every=1):
        task = compiled_for(device, case)
        counts = summarize(task.work)
        assert counts.kernels > 5
        assert (counts.unknown_loops, task.collectives) == (0, [])
        assert counts.cycles > 0 or device == "h100"
        assert task.lanes_that_fit > 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_compiles_for_a_gpu(name):
    config = pmnist.get_config("methods")
    fields = {"rank_every": 0, "measured_examples": 2}
    (case,) = tiny_cases("permuted_mnist", cases={name: config.cases[name]}, **fields)
    counts = summarize(compiled_for("h100", case).work)
    # Muon iterates five times on each matrix.
    assert 5 < counts.kernels < (200 if name == "muon" else 60)
    assert counts.unknown_loops == 0


NARROW = {
    "hidden_layers": 3,
    "hidden_units": 100,
    "num_seeds": 12,
    "rank_every": 0,
    "measured_examples": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "most"), [("sgd", 31), ("adam", 33)])
def test_an_update_of_continual_backprop_takes_few_kernels(optimizer, most):
    """One above the present number, for other versions of XLA."""
    cases = {"continual_backprop": {"method": "continual_backprop"}}
    (case,) = tiny_cases("permuted_mnist", cases=cases, optimizer=optimizer, **NARROW)
    counts = summarize(compiled_for("h100", case).work)
    assert counts.kernels <= most
    assert counts.conditionals == 0


@pytest.mark.slow
def test_continual_backprop_takes_half_as_many_cycles_again_on_a_tpu():
    cases = {name: {"method": name} for name in ("backprop", "continual_backprop")}
    backprop, continual_backprop = (
        summarize(compiled_for("v5e", case).work).cycles
        for case in tiny_cases("permuted_mnist", cases=cases, **NARROW)
    )
    assert 1 < continual_backprop / backprop <= 1.5


@pytest.mark.slow
@pytest.mark.parametrize(("device", "number"), [("h100", 8), ("v5e", 4)])
def test_devices_that_share_lanes_never_wait_for_one_another(device, number):
    """Ten lanes, so that devices are filled up; what is counted is one device's."""
    for case in tiny_cases("permuted_mnist", num_seeds=10):
        assert compiled_for(device, case, number).collectives == []
