"""Every method as a case, with published settings, values to try, or a search.

The cases, their values and their ranges are declared with the methods, in
experiments/learning/methods.py and experiments/learning/variants.py. Step sizes depend
on the problem; those of mini-batches and of Adam, which also suit the other optimizers,
differ from that of SGD on single examples and are arguments.
"""

from typing import Any

from experiments.learning.hyperparameters import HYPERPARAMETERS
from experiments.learning.methods import METHODS
from experiments.learning.variants import Variant, variants
from experiments.reporting.styles import PAPER, REFERENCES

Cases = dict[str, dict[str, Any]]


def paper_methods(*, adam_step_size: float) -> Cases:
    """Returns the methods that the paper compares, for a stream of single examples."""
    return {
        name: _case(variant, adam_step_size)
        for name, variant in variants().items()
        if variant.family in (REFERENCES, PAPER) and not variant.on_batches
    }


def batch_methods(*, batch_size: int, step_size: float) -> Cases:
    """Returns batch normalization, and backprop on the same mini-batches."""
    batch = {"batch_size": batch_size, "step_size": step_size}
    return {
        name: dict(variant.fields) | batch
        for name, variant in variants().items()
        if variant.on_batches
    }


def newer_methods(*, adam_step_size: float) -> Cases:
    """Returns the methods of other papers, and the controls."""
    return {
        name: _case(variant, adam_step_size)
        for name, variant in variants().items()
        if variant.family not in (REFERENCES, PAPER) and not variant.on_batches
    }


def with_values_to_try(
    cases: Cases, *, step_sizes: tuple[float, ...], adam_step_sizes: tuple[float, ...]
) -> Cases:
    """Gives each case a sweep of the values from which its setting is chosen.

    They are the values that its method declares or, if it declares none, the given step
    sizes: pass three, so that all methods have the same number of trials.
    """
    known = variants()

    def sweep(name: str, case: dict[str, Any]) -> dict[str, tuple[float, ...]]:
        if name in known and known[name].sweep:
            return dict(known[name].sweep)
        like_adam = _steps_like_adam(case)
        return {"step_size": adam_step_sizes if like_adam else step_sizes}

    return {name: case | {"sweep": sweep(name, case)} for name, case in cases.items()}


def with_search(
    cases: Cases,
    *,
    step_sizes: tuple[float, float],
    adam_step_sizes: tuple[float, float],
) -> Cases:
    """Gives each case a search of its step size and of what else is usually tuned.

    That is every hyperparameter with a usual range that its method declares, that the
    case itself sets, or that comparisons try values of.

    Args:
      cases: the cases.
      step_sizes: lowest and highest step size of SGD on this problem.
      adam_step_sizes: those of Adam, which also suit the other optimizers.
    """
    known = variants()

    def search(name: str, case: dict[str, Any]) -> dict[str, tuple[float, ...]]:
        own = METHODS[case["method"]].hyperparameters
        tried = known[name].sweep if name in known else ()
        usual = {
            field: HYPERPARAMETERS[field].usual_search
            for field in (*own, *case, *tried)
            if field in HYPERPARAMETERS and HYPERPARAMETERS[field].usual_search
        }
        ends = adam_step_sizes if _steps_like_adam(case) else step_sizes
        return usual | {"step_size": ends}

    return {name: case | {"search": search(name, case)} for name, case in cases.items()}


def _case(variant: Variant, adam_step_size: float) -> dict[str, Any]:
    case = dict(variant.fields)
    if _steps_like_adam(case):
        case["step_size"] = adam_step_size
    return case


def _steps_like_adam(case: dict[str, Any]) -> bool:
    """Whether its steps are about as long as its step size, unlike those of SGD."""
    return (
        case.get("optimizer", "sgd") != "sgd" or METHODS[case["method"]].steps_like_adam
    )
