"""The pages for a first method, a first problem and Python, followed to the letter."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from experiments.reporting import run_results

ROOT = pathlib.Path(__file__).parents[2]
COPIED = (
    *("cbp_jax", "configs", "docs", "experiments", "tests"),
    *("pyproject.toml", "README.md", "CONTRIBUTING.md"),
)
# Of runs and tests of pages, to make them short.
TINY = (
    *("--config.num_tasks=2", "--config.examples_per_task=20"),
    *("--config.measured_examples=20", "--config.num_seeds=6"),
    *("--config.hidden_units=3", "--config.hidden_layers=1", "--config.rank_every=0"),
)


class Page:
    """A page, and a copy of the project in which it is followed."""

    def __init__(self, name, folder):
        self.text = text = (ROOT / "docs" / name).read_text()
        self.commands = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        self._files = re.findall(r'```python title="(.*?)"\n(.*?)```', text, re.DOTALL)
        self.folder = folder
        for path in COPIED:
            copy = shutil.copy if (ROOT / path).is_file() else shutil.copytree
            copy(ROOT / path, folder / path)

    def write_files(self):
        """Writes or prolongs the files that the page shows."""
        for path, block in self._files:
            file = self.folder / path
            before = file.read_text() + "\n\n" if file.exists() else ""
            file.write_text(before + block)
        return [path for path, _ in self._files]

    def run(self, command, *more):
        """Runs a command of the page in the copy, with more arguments."""
        first, *rest = shlex.split(command.replace("\\\n", " "))
        environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(self.folder)}
        while "=" in first:
            name, _, value = first.partition("=")
            environment[name] = value
            first, *rest = rest
        assert first == "python"
        done = subprocess.run(
            [sys.executable, *rest, *more],
            cwd=self.folder,
            env=environment | {"PATH": "", "HOME": str(self.folder)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def check_style(page, paths):
    """What the pages show is formatted and checked as the project is."""
    for arguments in (("format", "--check"), ("check",)):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, *paths],
            cwd=page.folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_page_of_a_method(tmp_path):
    page = Page("your_first_method.md", tmp_path)
    check_style(page, page.write_files())
    _, run, compare, test, record, describe = page.commands
    assert "l1_strength" in page.run(run, *TINY)
    dataset = run_results.load(tmp_path / "runs" / "l1")
    assert list(dataset.case.values) == ["backprop", "l1"]
    assert dataset.accuracy.sel(case="l1").notnull().any()
    assert "| l1" in page.run(compare)
    assert " passed" in page.run(test, "-n", "0", "-p", "no:cacheprovider")
    page.run(record)
    assert '"methods: l1"' in (tmp_path / "tests/golden/runs.json").read_text()
    methods = tmp_path / "docs" / "methods.md"
    (section,) = re.findall(r"```markdown\n(.*?)```", page.text, re.DOTALL)
    methods.write_text(
        methods.read_text().replace("### L2 init", f"{section}\n### L2 init")
    )
    check, _ = describe.splitlines()
    assert " passed" in page.run(check, "-n", "0", "-p", "no:cacheprovider")


@pytest.mark.slow
def test_the_page_of_a_problem(tmp_path):
    page = Page("your_first_problem.md", tmp_path)
    *paths, script, _ = page.write_files()
    assert script == "run.py"
    check_style(page, paths)
    _, smoke, default, test = page.commands
    assert "| continual_backprop" in page.run(smoke)
    assert "| continual_backprop" in page.run(default, *TINY)
    assert (
        len((tmp_path / "experiments/turning_planes.py").read_text().split("\n")) < 32
    )
    dataset = run_results.load(tmp_path / "runs/turning_planes/smoke")
    assert (dataset.accuracy > 0.5).all()
    assert "<xarray.DataArray 'accuracy'" in page.run("python run.py")
    # The layout of all other files is tested where they are.
    assert " passed" in page.run(test, "-p", "no:cacheprovider", "-k", "turning_planes")


@pytest.mark.slow
def test_the_page_of_runs_from_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "from_python.md").read_text()
    run, hook = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(run, names)
    assert names["dataset"].sizes["task"] == 2
    capsys.readouterr()
    exec(hook, names)
    lines = [line for line in capsys.readouterr().out.splitlines() if ", task " in line]
    assert [line.rpartition(":")[0] for line in lines] == [
        f"{case}, task 2, step size {size}"
        for case in ("backprop", "continual_backprop")
        for size in ("0.01", "0.03")
    ]
    dataset = run_results.load(tmp_path / "runs/from_python")
    last = dataset.accuracy.sel(task=2, case="backprop", step_size=0.03).mean().item()
    assert f"{last:.3f}" in lines[1]
