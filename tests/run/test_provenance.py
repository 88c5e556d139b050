"""Which code has computed a run: recorded, refused if changed, named in results."""

import json
import shutil
import subprocess

import pytest
from tiny_runs import tiny_digits

from experiments import permuted_mnist
from experiments.reporting import run_results
from experiments.run import provenance, runner
from experiments.run.folder import RunFolderError, open_folder

MAKE_PROBLEM = permuted_mnist.make_problem


def code_of(**files):
    files = {f"cbp_jax/{name}.py": content for name, content in files.items()}
    return provenance.current_code(MAKE_PROBLEM) | {
        "sources": json.dumps(files),
        "files": files,
    }


def test_the_sources_are_those_that_compute_numbers():
    code = provenance.current_code(MAKE_PROBLEM)
    for name in (
        *("cbp_jax/__init__.py", "cbp_jax/_resets.py"),
        *("experiments/learning/methods.py", "experiments/run/lanes.py"),
        *("experiments/streams/permuted_images.py", "experiments/permuted_mnist.py"),
    ):
        assert name in code["files"]
    for name in code["files"]:
        assert "reporting" not in name or name.endswith("/scales.py")
        assert "storage" not in name
    assert code == provenance.current_code(MAKE_PROBLEM)


def test_an_edited_file_changes_the_sources_and_is_named(tmp_path, monkeypatch):
    copy = tmp_path / "experiments"
    shutil.copytree(provenance._EXPERIMENTS, copy)
    monkeypatch.setattr(provenance, "_EXPERIMENTS", copy)
    before = provenance.current_code(MAKE_PROBLEM)
    assert (before["commit"], before["dirty"]) == (None, None)  # It is no checkout.
    path = copy / "learning" / "learner.py"
    path.write_text(path.read_text() + "\n# Edited.\n")
    (copy / "run" / "runner.py").write_text("")  # It computes nothing.
    after = provenance.current_code(MAKE_PROBLEM)
    *_, changed = provenance.code_differences(before, after)
    assert changed == "changed: experiments/learning/learner.py"
    assert not provenance.code_differences(before, before)


def test_a_problem_without_a_file_has_the_sources_of_the_rest():
    code = provenance.current_code(eval("lambda config: None"))
    assert set(provenance.current_code(MAKE_PROBLEM)["files"]) - set(code["files"]) == {
        "experiments/permuted_mnist.py"
    }


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_commit_and_whether_files_differ_from_it(tmp_path):
    def git(*arguments):
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *author, *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "One")
    (tmp_path / "notes").write_text("not of the code")
    commit = git("rev-parse", "HEAD")
    assert provenance._git_state(tmp_path) == (commit, False)
    (tmp_path / "code.py").write_text("2")
    assert provenance._git_state(tmp_path) == (commit, True)
    # An environment inside the checkout of something else is not of that commit.
    (tmp_path / "site-packages").mkdir()
    assert provenance._git_state(tmp_path / "site-packages") == (None, None)


@pytest.mark.slow
def test_other_code_is_refused_unless_it_is_allowed(tmp_path, monkeypatch):
    config, folder = tiny_digits(num_tasks=1), tmp_path / "run"
    old, new = code_of(a="1", b="1"), code_of(a="1", b="2", c="1")
    codes = [old]
    monkeypatch.setattr(provenance, "current_code", lambda _: codes[0])
    dataset = runner.run(config, folder, MAKE_PROBLEM)
    assert len(json.loads(dataset.attrs["code"])) == 1
    assert not run_results.remarks(dataset)

    codes[0] = new
    written = (folder / "code.json").read_bytes()
    with pytest.raises(RunFolderError, match="run of other code") as error:
        runner.run(config, folder, MAKE_PROBLEM)
    for part in (
        *(old["sources"][:12], new["sources"][:12], "cbp_jax/b.py, cbp_jax/c.py"),
        *("--allow_changed_code", "--overwrite", "--workdir"),
    ):
        assert part in str(error.value)
    assert (folder / "code.json").read_bytes() == written

    for _ in range(2):  # It is noted once.
        dataset = runner.run(config, folder, MAKE_PROBLEM, allow_changed_code=True)
        found = json.loads(dataset.attrs["code"])
        assert [one["sources"] for one in found] == [old["sources"], new["sources"]]
        assert "files" not in found[0]
    (remark,) = run_results.remarks(run_results.load(folder))
    assert remark.startswith("The code changed during this run: cbp_jax ")
    runner.run(config, folder, MAKE_PROBLEM)  # It goes on as it has gone on.

    dataset = runner.run(config, folder, MAKE_PROBLEM, overwrite=True)
    assert [one["sources"] for one in json.loads(dataset.attrs["code"])] == [
        new["sources"]
    ]


def test_another_version_is_allowed_with_changed_code_but_no_other_config(tmp_path):
    code, folder = code_of(a="1"), tmp_path / "run"
    with open_folder(folder, '{"cbp_jax": "0.1.0", "x": 1}', False):
        pass
    other = '{"cbp_jax": "0.2.0", "x": 1}'
    with (
        pytest.raises(RunFolderError, match=r"cbp_jax: 0\.1\.0 -> 0\.2\.0"),
        open_folder(folder, other, False, code),
    ):
        pass
    with open_folder(folder, other, False, code, allow_changed_code=True):
        first, second = provenance.read_codes(folder)
    assert (first["cbp_jax"], first["sources"]) == ("0.1.0", "unknown")
    assert second == code
    with (
        pytest.raises(RunFolderError, match="x: 1 -> 2"),
        open_folder(folder, other.replace("1}", "2}"), False, code, True),
    ):
        pass


def test_a_damaged_record_of_the_code_is_named(tmp_path):
    code, folder = code_of(a="1"), tmp_path / "run"
    with open_folder(folder, '{"cbp_jax": "0.2.0"}', False, code):
        pass
    for content in ("[{", '{"a": 1}', "[1]"):
        (folder / "code.json").write_text(content)
        with (
            pytest.raises(RunFolderError, match=r"code\.json is damaged: .*delete it"),
            open_folder(folder, '{"cbp_jax": "0.2.0"}', False, code),
        ):
            pass
