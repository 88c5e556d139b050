"""Examples in the docstrings of public names can be traced as they are written."""

import ast
import importlib
import inspect
import math
import re
import textwrap

import flax
import jax
import jax.numpy as jnp
import optax
import pytest
from test_public_names import public_modules
import tiny

import cbp_jax
from cbp_jax import layers, networks

# Indented lines after a line that ends in `::` and is not the directive of a formula.
_BLOCK = re.compile(r"^(?!.*\.\. ).*::\n\n((?:[ \t]+\S.*\n|\n)+)", re.MULTILINE)


PUBLIC = {
    name: getattr(module, name)
    for module in map(importlib.import_module, public_modules())
    for name in module.__all__
}


def examples():
    """Yields the examples of each public object, by its name."""
    for name, value in PUBLIC.items():
        text = inspect.getdoc(value) if callable(value) else ""
        for block in _BLOCK.findall(f"{text}\n"):
            yield pytest.param(_code(block), id=name)


def _code(block):
    """The lines that are indented as much as the first, or more."""
    first = len(block) - len(block.lstrip(" "))
    lines = block.splitlines()
    for number, line in enumerate(lines):
        if line.strip() and len(line) - len(line.lstrip(" ")) < first:
            lines = lines[:number]
            break
    return textwrap.dedent("\n".join(lines))


EXAMPLES = list(examples())


def test_examples_are_found():
    names = {example.id for example in EXAMPLES}
    assert {
        "continual_backprop",
        "upgd",
        "TrainState",
        "value_and_grad_with_state",
    } <= names
    assert len(names) > 15


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_runs_on_a_small_network(code):
    """With the names that the examples take for granted; nothing is compiled."""
    units = (*tiny.UNITS[:1], tiny.UNITS[1]._replace(statistics="norm"))
    network = networks.MLP((6, 5), 3)
    inputs = jnp.ones((2, 4))

    def run(params, key):
        names = {
            **{"cbp_jax": cbp_jax, "flax": flax, "jax": jax, "math": math},
            **{"optax": optax, **PUBLIC},
            **{"params": params, "grads": params, "key": key, "units": units},
            **{"inputs": inputs, "images": inputs, "labels": jnp.zeros(2, jnp.int32)},
            "network": network,
            "model": network,
            "features": tiny.at(tiny.make_features(), 0),
            "apply": lambda params, x: network.apply({"params": params}, x)[0],
            "layer": lambda params, inputs: inputs @ params["dense_0"]["kernel"],
            "loss": lambda outputs, labels=0: jnp.mean(outputs**2),
            "statistics": {"norm": {"mean": jnp.ones(5)}},
            "tx": cbp_jax.continual_backprop(optax.sgd(0.1), units, key=key),
        }
        if "online_normalization(" in code:
            names["state"] = layers.init_online_normalization(6)
        for statement in ast.parse(code).body:
            uses_state = "state" in ast.unparse(statement)
            if "state" not in names and uses_state:
                names["state"] = names["tx"].init(params)
            exec(compile(ast.Module([statement], []), "example", "exec"), names)
        if "updates" not in names and "tx =" in code:
            names["tx"].update(params, names["tx"].init(params), params)
        if "forward" in names:
            names["loss_fn"](params)

    jax.eval_shape(run, tiny.make_params(), tiny.KEY)
