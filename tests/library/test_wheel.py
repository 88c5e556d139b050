"""The library alone: what its wheel holds, and that it needs no more than it says."""

import pathlib
import re
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def run(*command, **options):
    finished = subprocess.run(command, capture_output=True, text=True, **options)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the source, since a build leaves files beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("cbp_jax", "configs", "experiments", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.npz", "*.png")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", str(folder), str(source))
    (path,) = folder.glob("*.whl")
    return path


def test_a_wheel_holds_the_library_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cbp_jax"}
    sources = {
        path.relative_to(ROOT).as_posix() for path in ROOT.glob("cbp_jax/**/*.py")
    }
    assert sources == {name for name in names if name.endswith(".py")}


def test_the_wheel_alone_runs_the_readme_in_a_fresh_environment(wheel, tmp_path):
    """Also with nothing installed that the library does not name."""
    pip = (sys.executable, "-m", "pip")
    probe = ("download", "--no-deps", "--retries=0", f"--dest={tmp_path}", "optax")
    if subprocess.run([*pip, *probe], capture_output=True).returncode:
        pytest.skip("no package registry can be reached")
    venv.create(tmp_path / "fresh", symlinks=True)
    python = tmp_path / "fresh" / "bin" / "python"
    run(*pip, "--python", str(python), "install", str(wheel))
    example = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    check = "\nprint(sum(map(int, state.num_replaced.values())))\n"
    printed = run(str(python), "-c", example + check, cwd=tmp_path)
    assert int(printed.splitlines()[-1]) > 0
    absent = "import importlib.util as u; print(u.find_spec('{}'))"
    for package in ("experiments", "configs", "tensorflow_datasets", "ml_collections"):
        assert run(str(python), "-c", absent.format(package), cwd=tmp_path) == "None\n"
