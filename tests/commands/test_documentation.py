"""What the documentation shows runs, and its links lead somewhere."""

import importlib.util
import json
import pathlib
import re
import runpy
import shlex
import sys

from absl import app, flags
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
import tiny

from experiments.examples import side_by_side
from experiments.learning.methods import METHODS

ROOT = pathlib.Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
}
BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(page, language):
    """The blocks of a language; one with a title is a file, which is shown only."""
    return [
        text
        for its, title, text in BLOCK.findall(PAGES[page])
        if its == language and "title=" not in title
    ]


# Pages that run experiments have tests of their own.
PYTHON = [
    page
    for page in PAGES
    if (blocks := blocks_of(page, "python"))
    and not any("from experiments" in block for block in blocks)
]


def run(page, blocks):
    """Runs Python blocks of a page one after the other; returns the names of each.

    A block may use names of those before it. One that imports a library that is not
    installed is left out.
    """
    names, after = {}, []
    for index, block in enumerate(blocks):
        try:
            exec(compile(block, f"{page}, Python block {index}", "exec"), names)
        except ModuleNotFoundError as error:
            if error.name not in ("equinox", "haiku"):
                raise
        after.append(dict(names))
    return after


def test_the_readme_runs_and_replaces_as_many_units_as_it_says():
    after = run("README.md", blocks_of("README.md", "python"))
    (stated,) = re.findall(r"'dense_0': Array\((\d+)", PAGES["README.md"])
    assert [*after[0]["state"].num_replaced.values()] == 2 * [int(stated)]


@pytest.mark.slow
def test_python_blocks_run():
    """All in one test, so that pages share what is compiled."""
    assert "docs/guide.md" in PYTHON
    after = {
        page: run(page, blocks_of(page, "python"))
        for page in PYTHON
        if page != "README.md"
    }
    for page, all_names in after.items():
        losses = [names["loss"] for names in all_names if "loss" in names]
        assert np.isfinite(losses).all(), page
    # Of 64 units 1 % of those never replaced are due in each of 99 updates.
    (with_dropout,) = [
        names for names in after["docs/guide.md"] if "rng_state" in names
    ][:1]
    assert with_dropout["state"].num_replaced["hidden"] == int(64 * (1 - 0.99**99))


# Of the section on rules of one's own.
OWN_RULES = blocks_of("docs/guide.md", "python")[-3:]


@pytest.mark.slow
def test_the_rule_resets_one_mature_unit_of_the_smallest_outgoing_weights():
    names, in_part, by_slopes = run("docs/guide.md", OWN_RULES)
    params = tiny.make_params()
    tx, features = names["tx"], tiny.at(tiny.make_features(), 0)
    state = tx.init(params)

    @jax.jit
    def train(params, state):
        def step(carry, _):
            params, state = carry
            grads = jax.tree.map(jnp.zeros_like, params)
            updates, state = tx.update(grads, state, params, features=features)
            return (optax.apply_updates(params, updates), state), state.replaced

        return jax.lax.scan(step, (params, state), length=1000)

    (new, state), replaced = train(params, state)
    for name, width, consumer in (("dense_0", 6, "dense_1"), ("dense_1", 5, "head")):
        outgoing = np.abs(params[consumer]["kernel"]).mean(axis=1)
        np.testing.assert_array_equal(replaced[name][:-1], width)
        assert replaced[name][-1, 0] == np.argmin(outgoing)
        assert sorted(state.units[name].age)[:2] == [0, 1000]
    unit = replaced["dense_1"][-1, 0]
    np.testing.assert_array_equal(new["head"]["kernel"][unit], 0)
    check_partial_resets(in_part["tx"])
    check_feature_gradients(by_slopes)


def check_partial_resets(tx):
    """At the 1,000th update, units of a tenth of the mean gradient go half way."""
    params, features = tiny.make_params(), tiny.at(tiny.make_features(), 0)
    grads = jax.tree.map(jnp.ones_like, params)
    grads["dense_0"]["kernel"] = grads["dense_0"]["kernel"].at[:, 2].set(0.01)
    state = tx.init(params)
    base, _ = optax.adam(1e-3).update(grads, state.base_state, params)
    state = state._replace(count=jnp.int32(999))
    updates, _ = jax.jit(tx.update)(grads, state, params, features=features)
    old, new = optax.apply_updates(params, base), optax.apply_updates(params, updates)
    has_moved = np.abs(new["dense_0"]["kernel"] - old["dense_0"]["kernel"]) > 1e-6
    np.testing.assert_array_equal(has_moved, [[unit == 2 for unit in range(6)]] * 4)
    outgoing = new["dense_1"]["kernel"] / old["dense_1"]["kernel"]
    halves = np.where(np.arange(6) == 2, 0.5, 1)[:, None]
    np.testing.assert_allclose(outgoing, np.broadcast_to(halves, (6, 5)), rtol=1e-4)


def check_feature_gradients(names):
    """A unit that nothing reads has no gradient, whatever its own weights get."""
    params, images = tiny.make_params(), jnp.ones((3, 4))
    params["head"]["kernel"] = params["head"]["kernel"].at[3].set(0)
    state = names["regrama"].init(params)._replace(count=jnp.int32(999))
    _, state, loss = names["step"](params, state, images, jnp.arange(3))
    assert np.isfinite(loss)
    assert state.num_replaced["dense_1"] == 1
    assert state.replaced["dense_1"][0] == 3


def run_notebook(**parameters):
    """Runs the code cells, with other values of what the cell of parameters sets."""
    notebook = json.loads((ROOT / "docs/plasticity.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names = {}
    with matplotlib.rc_context():
        matplotlib.use("Agg")
        for cell in cells:
            exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", ()):
                assert parameters.keys() <= names.keys()
                names |= parameters
    return names


@pytest.mark.slow
def test_the_notebook_runs_with_tiny_settings():
    names = run_notebook(SEEDS=2, TASKS=2, EXAMPLES=20, WIDTH=4)
    for scores in names["results"].values():
        for score in scores:
            assert score.shape == (2, 2)
            assert ((score >= 0) & (score <= 1)).all()
    assert len(names["panels"][0].lines) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("_full_optimization")
def test_the_notebook_shows_that_backprop_loses_plasticity():
    names = run_notebook()
    last = {name: accuracy[:, -1] for name, (accuracy, _) in names["results"].items()}
    # 60 and 85 % on the last task, means over 5 seeds.
    assert (last["continual_backprop"] > 0.8).all()
    assert last["continual_backprop"].mean() - last["backprop"].mean() > 0.1


LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def headings(text):
    """Anchors of headings, as GitHub and Python-Markdown both make them."""
    text = re.sub(BLOCK, "", text)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        yield re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def public_names(text):
    """Anchors of an API page: what it shows, and the public names of modules."""
    for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE):
        yield name
        parent, _, last = name.rpartition(".")
        found = getattr(importlib.import_module(parent), last)
        for member in getattr(found, "__all__", ()):
            yield f"{name}.{member}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(BLOCK, "", PAGES[page])
    for match in LINK.finditer(text):
        target = match[1] or match[2]
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert path.exists(), f"{page} links to {target}, which does not exist"
        if anchor:
            linked = path.read_text()
            anchors = {*headings(linked), *public_names(linked)}
            assert anchor in anchors, f"{page} links to {target}, which has no {anchor}"


def test_api_pages_show_all_public_names():
    shown = set()
    for page, text in PAGES.items():
        if page.startswith("docs/api/"):
            shown |= {*public_names(text)}
    modules = json.loads((ROOT / "tests/golden/public_names.json").read_text())
    assert "cbp_jax" in modules
    for module in modules:
        for name in importlib.import_module(module).__all__:
            full = f"{module}.{name}"
            assert full in shown or full in modules, f"no page of docs/api shows {full}"


def test_the_page_of_methods_has_all_methods_and_their_defaults():
    text = " ".join(PAGES["docs/methods.md"].split())
    for name, method in METHODS.items():
        assert f"`{name}`" in text, f"docs/methods.md lacks the method {name}"
        for field, hyperparameter in method.hyperparameters.items():
            stated = re.findall(rf"`{field}` ([\d.e-]*\d)", text)
            assert stated, f"docs/methods.md lacks the default of {field}"
            assert float(stated[0]) == hyperparameter.default, field


COMMAND = re.compile(r"python -m (experiments\.[\w.]+)((?:[^\n\\]|\\\n)*)")


def commands_of(page):
    """Command lines of shell blocks, and those that stand inside a sentence."""
    code = blocks_of(page, "bash")
    code += re.findall(r"`(python -m [^`]+)`", re.sub(BLOCK, "", PAGES[page]))
    for one in code:
        for match in COMMAND.finditer(one):
            yield match[1], *shlex.split(match[2].replace("\\\n", " "), comments=True)


# The commands of a page that makes files need these.
MAKES_FILES = re.compile(r"^```python title=", re.MULTILINE)
COMMANDS = sorted(
    {
        command
        for page, text in PAGES.items()
        if not MAKES_FILES.search(text)
        for command in commands_of(page)
    }
)


class Parsed(Exception):
    """Raised in place of running a program."""


@pytest.fixture
def parse(monkeypatch):
    """Parses the flags of a program as its command line does, and runs nothing."""

    def stop(main, argv=None, flags_parser=flags.FLAGS):
        raise Parsed(flags_parser(sys.argv))

    def parse(program, arguments):
        before = {*flags.FLAGS}
        monkeypatch.setattr(app, "run", stop)
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        try:
            with pytest.raises(Parsed) as parsed:
                # Examples find their units when they are imported, which takes long.
                if program.startswith("experiments.examples."):
                    side_by_side.run(None, "", steps=1, seeds=1, rate=0.1, maturity=1)
                path = importlib.util.find_spec(program).origin
                runpy.run_path(path, run_name="__main__")
            return parsed.value.args[0]
        finally:
            for name in {*flags.FLAGS} - before:
                delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()

    monkeypatch.chdir(ROOT)
    return parse


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_have_flags_that_their_programs_know(command, parse):
    program, *arguments = command
    assert importlib.util.find_spec(program)
    parse(program, arguments)


def test_an_unknown_flag_is_found(parse):
    with pytest.raises(flags.Error, match="runz"):
        parse("experiments.results", ["RUN", "--runz=1"])


def test_there_are_commands_of_all_programs():
    programs = {program for program, *_ in COMMANDS}
    assert {"permuted_mnist", "slowly_changing_regression", "continual_imagenet"} < {
        program.partition(".")[2] for program in programs
    }
