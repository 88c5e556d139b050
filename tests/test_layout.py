"""The layout of the project: which package may import which, and what is private."""

import ast
import importlib
import pathlib
import re
import types

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("cbp_jax", "configs", "experiments")

# Each line may import the lines below it, and inside a package its modules one another.
LAYERS = (
    ("experiments",),  # The problems and the commands.
    ("configs",),
    ("experiments.examples",),
    ("experiments.timing",),
    ("experiments.run",),
    ("experiments.streams",),
    ("experiments.learning",),
    ("experiments.reporting",),
    ("cbp_jax",),
    ("cbp_jax.recipes", "cbp_jax.networks", "cbp_jax.training"),
    ("cbp_jax.layers", "cbp_jax.metrics", "cbp_jax.optimizers", "cbp_jax.variants"),
    ("cbp_jax.losses",),
    ("cbp_jax._discovery",),
    (
        "cbp_jax._continual_backprop",
        "cbp_jax._cpr",
        "cbp_jax._redo",
        "cbp_jax._regrama",
        "cbp_jax._self_normalized_resets",
    ),
    ("cbp_jax._dormancy", "cbp_jax._gradient_scores"),
    ("cbp_jax.utility",),
    ("cbp_jax._resets",),
    ("cbp_jax._bases",),
    ("cbp_jax._trees",),
    ("cbp_jax._units",),
    ("cbp_jax._numbers", "cbp_jax._xla", "cbp_jax.initializers"),
    ("cbp_jax._types",),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}

# Reports are made of labeled numbers, whatever made these.
NO_LIBRARY = ("experiments.reporting",)
# Old names, which are looked up where they have moved to only when asked for.
UPWARD = {("cbp_jax.layers", "cbp_jax.networks")}
# Private and old names of the library that experiments still use.
STILL_USED = {}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


def package_of(module):
    """The entry of `LAYERS` of a module, or of the package that it is in."""
    while module not in LEVELS:
        module = module.rpartition(".")[0]
    return module


def imports_of(module):
    """The modules of this project that a module imports, wherever it does."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            submodules = {f"{node.module}.{name.name}" for name in node.names}
            known = submodules & SOURCES.keys()
            found |= known or {node.module}
    found = {name for name in found if name.partition(".")[0] in PACKAGES}
    return {other for other in found if (module, other) not in UPWARD}


def test_every_package_is_in_the_layers():
    for name in [name for name, path in SOURCES.items() if path.stem == "__init__"]:
        assert name in PACKAGES or package_of(name) not in PACKAGES, (
            f"add {name} to LAYERS, above what it imports"
        )


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_one_way(module):
    own = package_of(module)
    for other in imports_of(module):
        assert other in SOURCES, f"{module} imports {other}, which does not exist"
        its = package_of(other)
        assert its == own or LEVELS[its] > LEVELS[own], (
            f"{module} imports {other}, but {its} is not below {own} in LAYERS"
        )
        assert own not in NO_LIBRARY or its == own, f"{module} imports {other}"


def test_no_module_imports_itself_through_others():
    graph = {module: imports_of(module) - {module} for module in SOURCES}
    while graph:
        free = [module for module, needs in graph.items() if not needs & graph.keys()]
        assert free, f"an import cycle among {sorted(graph)}"
        for module in free:
            del graph[module]


def test_no_problem_or_command_imports_another():
    commands = {name for name in SOURCES if package_of(name) == "experiments"}
    for name in commands - {"experiments"}:
        assert not imports_of(name) & commands, name


def test_whatever_draws_methods_knows_their_looks():
    """Looks are declared with the methods, of which reports know nothing."""
    drawing = {"experiments.reporting.plots", "experiments.reporting.comparison_output"}
    for module in SOURCES:
        needs = imports_of(module)
        if needs & drawing and package_of(module) != "experiments.reporting":
            assert "experiments.learning.variants" in needs, module


def library_names(module):
    """What a module uses of the library: each name with the module that has it."""
    bound = {}
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.partition(".")[0] == "cbp_jax":
                    bound[name.asname or "cbp_jax"] = (
                        name.name if name.asname else "cbp_jax"
                    )
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("cbp_jax"):
            for name in node.names:
                yield node.module, name.name
                path = f"{node.module}.{name.name}"
                if path in SOURCES:
                    bound[name.asname or name.name] = path

    def path_of(node):
        if isinstance(node, ast.Name):
            return bound.get(node.id)
        if isinstance(node, ast.Attribute):
            path = f"{path_of(node.value)}.{node.attr}"
            return path if path in SOURCES else None
        return None

    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Attribute) and path_of(node.value):
            yield path_of(node.value), node.attr


@pytest.mark.parametrize(
    "module", [name for name in SOURCES if not name.startswith("cbp_jax")]
)
def test_experiments_use_public_names_of_the_library(module):
    for home, name in library_names(module):
        if (module, f"{home}.{name}") in STILL_USED:
            continue
        assert "._" not in home, f"{module} uses {home}.{name}, which is private"
        found = importlib.import_module(home)
        is_module = isinstance(getattr(found, name, None), types.ModuleType)
        is_public = is_module or name in (*found.__all__, "__file__", "__version__")
        assert is_public and not re.match("_[^_]", name), (
            f"{module} uses {home}.{name}, which is not among its public names, __all__"
        )


@pytest.mark.parametrize(
    "document", ["CONTRIBUTING.md", "docs/guide.md", "docs/benchmark.md"]
)
def test_documents_name_files_that_exist(document):
    paths = re.findall(r"`(\w+/[\w/]+(?:\.py|/))`", (ROOT / document).read_text())
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]
