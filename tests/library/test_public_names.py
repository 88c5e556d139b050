"""The library's public names and their signatures, and the old names still known."""

import importlib
import inspect
import pathlib
import pkgutil
import sys

from golden_numbers import Golden
import optax
import pytest
import tiny

import cbp_jax

PUBLIC = Golden(
    "public_names",
    __file__,
    "Users' code breaks where a public name or argument goes: keep the old one as an "
    "alias that warns. If public names or signatures changed",
)
# Old names of modules, which warn when they are imported.
OLD_MODULES = {"cbp_jax.recipes"}


def public_modules():
    found = pkgutil.walk_packages(cbp_jax.__path__, "cbp_jax.")
    names = (module.name for module in found)
    public = {name for name in names if "._" not in name}
    return ["cbp_jax", *sorted(public - OLD_MODULES)]


def describe(value):
    """What a change of must be meant: arguments and defaults, fields, methods."""
    if inspect.ismodule(value):
        return "module"
    if inspect.isclass(value):
        methods = {
            name: function
            for name, function in vars(value).items()
            if inspect.isfunction(function) and not name.startswith("_")
        }
        own = [f"{name}{arguments(method)}" for name, method in methods.items()]
        return "; ".join([f"class{arguments(value)}", *sorted(own)])
    if inspect.isfunction(inspect.unwrap(value)):
        return arguments(value)
    if hasattr(value, "keys"):
        return f"keys {', '.join(sorted(value))}"
    return repr(value) if isinstance(value, str) else "type alias"


def arguments(function):
    """The arguments and their defaults, without the annotations."""
    kept = []
    for name, each in inspect.signature(function).parameters.items():
        default = each.default
        if default is not each.empty:
            default = Plain(default)
        if name not in ("parent", "name") or "parent" not in dir(function):
            kept.append(each.replace(annotation=each.empty, default=default))
    return str(inspect.Signature(kept))


class Plain:
    """A default, whose text is the same in every version and at every address."""

    def __init__(self, value):
        is_plain = value is None or isinstance(value, str | int | float | tuple)
        name = getattr(value, "__name__", type(value).__name__)
        self.text = repr(value) if is_plain else name

    def __repr__(self):
        return self.text


@pytest.mark.parametrize("module", public_modules())
def test_public_names_and_signatures_are_those_written(module):
    found = importlib.import_module(module)
    assert found.__all__ == sorted(set(found.__all__), key=found.__all__.index)
    PUBLIC.check(
        module, {name: describe(getattr(found, name)) for name in found.__all__}
    )


def test_all_modules_written_are_there():
    PUBLIC.check_names(public_modules())


def test_the_library_is_typed():
    assert (pathlib.Path(cbp_jax.__file__).parent / "py.typed").exists()


OLD_NAMES = {
    ("cbp_jax", "recipes"): ("cbp_jax.variants", None),
    ("cbp_jax.utility", "UnitMeasurements"): ("cbp_jax", "Measurements"),
    ("cbp_jax.layers", "CONVOLUTIONS"): ("cbp_jax.networks", "CONVOLUTIONS"),
    ("cbp_jax.layers", "convolution_named"): ("cbp_jax.networks", "convolution_named"),
    ("cbp_jax.layers", "max_pool"): ("cbp_jax.networks", "max_pool"),
    ("cbp_jax.layers", "patches_convolution"): (
        "cbp_jax.networks",
        "patches_convolution",
    ),
}


@pytest.mark.parametrize(("module", "name"), OLD_NAMES)
def test_an_old_name_gives_the_new_one_and_warns(module, name):
    new_module, new_name = OLD_NAMES[module, name]
    new = importlib.import_module(new_module)
    full_name = f"{new_module}.{new_name}" if new_name else new_module
    with pytest.warns(DeprecationWarning, match=f"{module}.{name} is now {full_name}"):
        old = getattr(importlib.import_module(module), name)
    assert old is (getattr(new, new_name) if new_name else new)


def test_an_old_module_has_the_new_names_and_warns(monkeypatch):
    monkeypatch.delitem(sys.modules, "cbp_jax.recipes", raising=False)
    with pytest.warns(DeprecationWarning, match="is now cbp_jax.variants") as caught:
        recipes = importlib.import_module("cbp_jax.recipes")
    assert len(caught) == 1
    vars(cbp_jax).pop("recipes")  # The import has put it there.
    for name in cbp_jax.variants.__all__:
        assert getattr(recipes, name) is getattr(cbp_jax.variants, name)


def test_old_values_of_an_argument_warn():
    options = {"key": tiny.FAST_KEY}
    with pytest.warns(DeprecationWarning, match='moments="zero" is now') as caught:
        cbp_jax.continual_backprop(
            optax.sgd(0.1), tiny.UNITS, moments="zero", **options
        )
    assert caught[0].filename == __file__


def test_a_private_module_is_no_function():
    """`import cbp_jax.optimizers.fire as m` must not give what is called `fire`."""
    with pytest.raises(ModuleNotFoundError, match="fire"):
        importlib.import_module("cbp_jax.optimizers.fire")
