"""The shape of the project: which room may import which."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("cbp_jax", "configs", "experiments")

# What each room may import of the project, beside itself.
ROOMS = ("discovery", "layers", "metrics", "networks", "optimizers", "resets", "rules")
LIBRARY = {"cbp_jax", *(f"cbp_jax.{room}" for room in ROOMS)}
MAY_IMPORT = {
    "cbp_jax": LIBRARY,
    "cbp_jax.discovery": {"cbp_jax", "cbp_jax.resets"},
    "cbp_jax.layers": {"cbp_jax", "cbp_jax.resets"},
    "cbp_jax.metrics": set(),
    "cbp_jax.networks": {"cbp_jax", "cbp_jax.layers", "cbp_jax.resets"},
    "cbp_jax.optimizers": {"cbp_jax", "cbp_jax.resets"},
    "cbp_jax.resets": {"cbp_jax"},
    "cbp_jax.rules": {"cbp_jax", "cbp_jax.resets"},
    "experiments.reporting": set(),
    "experiments.learning": LIBRARY | {"experiments.reporting"},
    "experiments.streams": LIBRARY | {"experiments.learning"},
    "experiments.engine": LIBRARY | {"experiments.learning", "experiments.reporting"},
    "experiments.timing": LIBRARY
    | {f"experiments.{room}" for room in ("engine", "learning", "reporting")},
    "experiments.examples": LIBRARY
    | {f"experiments.{room}" for room in ("reporting", "timing")},
    "experiments": LIBRARY
    | {
        f"experiments.{room}"
        for room in ("timing", "engine", "streams", "learning", "reporting")
    },
    "configs": {"experiments.learning"},
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def is_package(module):
    return SOURCES[module].name == "__init__.py"


def room(module):
    """The folder of a module; one without an entry above is part of the one around."""
    if not is_package(module):
        module = module.rpartition(".")[0]
    while module not in MAY_IMPORT:
        module = module.rpartition(".")[0]
    return module


def imports_of(module):
    """The modules of this project that a module imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            submodules = {f"{node.module}.{name.name}" for name in node.names}
            known = submodules & SOURCES.keys()
            found |= known or {node.module}
    return {name for name in found if name.partition(".")[0] in PACKAGES}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_lead_down_the_house(module):
    home = room(module)
    for other in imports_of(module):
        assert other in SOURCES, f"{module} imports {other}, which does not exist"
        assert room(other) == home or room(other) in MAY_IMPORT[home], (
            f"{module} imports {other}: {home} may import {sorted(MAY_IMPORT[home])}"
        )


def test_no_module_imports_itself_through_others():
    graph = {module: imports_of(module) - {module} for module in SOURCES}
    while graph:
        free = [module for module, needs in graph.items() if not needs & graph.keys()]
        assert free, f"an import cycle among {sorted(graph)}"
        for module in free:
            del graph[module]


def test_no_problem_or_command_imports_another():
    commands = {name for name in SOURCES if room(name) == "experiments"}
    for name in commands - {"experiments"}:
        assert not imports_of(name) & commands, name


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "experiments/README.md"])
def test_documents_name_files_that_exist(document):
    paths = re.findall(r"`(\w+/[\w/]+(?:\.py|/))`", (ROOT / document).read_text())
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]
