"""Whether a machine computes what it should, before it is timed."""

from collections.abc import Callable, Sequence
import json
import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import xarray as xr

import cbp_jax
from experiments.learning.keys import make_key
from experiments.learning.problem import Problem
from experiments.reporting import run_results
from experiments.run import command_line, runner

# A short task: rounding errors alone. A whole one: by its end they have grown into
# other networks, so that seeds may differ, and their mean by less.
_SHORT_LOSS = 1e-3  # Relative, of each lane.
_LANE_ACCURACY, _MEAN_ACCURACY = 0.03, 0.01
_TRACE_ERROR = 1e-8


class Check(NamedTuple):
    """What was checked."""

    name: str
    status: str  # "passed", "FAILED" or "skipped"
    detail: str

    @property
    def line(self) -> str:
        """All in one line."""
        return f"{self.status}: {self.name}: {self.detail}"


def compare_with_cpu(
    config: ConfigDict,
    make_problem: Callable[[Any], Problem],
    command: Sequence[str],
    root: pathlib.Path,
    folder: pathlib.Path,
) -> list[Check]:
    """Runs a config here, all lanes at once, and on a CPU, one after the other.

    Args:
      config: of the run; its cases named `..._short` must agree to rounding, the others
        in accuracy.
      make_problem: builds a problem from the config of a case.
      command: what runs the same config after `python`, without its run folder.
      root: folder to run the command in.
      folder: an empty one for both runs.

    Returns:
      One check for each case.
    """
    there, here = folder / "there", folder / "here"
    reference = subprocess.Popen(
        [sys.executable, *command, f"--workdir={there}"],
        cwd=root,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    together = ConfigDict(config.to_dict())
    together.lanes_per_block = config.num_seeds
    command_line.quiet_logs()  # Of what Orbax does.
    try:
        # An accelerator may shorten the factors of a product; here it must not.
        with jax.default_matmul_precision("highest"):
            actual = runner.run(together, here, make_problem)
    except BaseException:
        reference.kill()
        raise
    finally:
        output, _ = reference.communicate()
    if reference.returncode:
        detail = f"the run on a CPU failed: {output.strip().splitlines()[-1:]}"
        return [Check("the default run", "FAILED", detail)]
    wanted = run_results.load(there)
    return [
        _compare(str(case), actual.sel(case=case), wanted.sel(case=case))
        for case in wanted.case.values
    ]


def _compare(case: str, actual: xr.Dataset, wanted: xr.Dataset) -> Check:
    # The maximum of an array of NumPy is NaN if any entry is, and then nothing passes.
    if case.endswith("_short"):
        error = np.max(np.abs(actual.loss.values / wanted.loss.values - 1))
        detail = f"loss of each lane as on a CPU within {error:.1e} of its value"
        passed = error <= _SHORT_LOSS
    else:
        difference = actual.accuracy.values - wanted.accuracy.values
        lanes, mean = np.max(np.abs(difference)), np.abs(np.mean(difference))
        accuracy = np.mean(actual.accuracy.values)
        detail = (
            f"accuracy {100 * accuracy:.2f} %, as on a CPU within {100 * mean:.2f} "
            f"points, in each lane within {100 * lanes:.2f}"
        )
        passed = lanes <= _LANE_ACCURACY and mean <= _MEAN_ACCURACY
    return Check(f"the default run, {case}", "passed" if passed else "FAILED", detail)


def replay_trace(path: pathlib.Path) -> Check:
    """Replays continual backprop by the authors' code, in float64.

    Args:
      path: of the trace of an MLP of ReLUs with SGD, cross-entropy and the overall
        utility; it is part of a checkout's tests, not of the package.

    Returns:
      Passed if at every step the same units are replaced and the params end up the
      same; skipped if there is no such file.
    """
    name = f"the trace {path.name}"
    if not path.exists():
        return Check(name, "skipped", f"{path} is not here, only in a checkout")
    with np.load(path) as file:
        arrays = dict(file)
    trace = json.loads(str(arrays["config"]))
    with jax.enable_x64(True):
        params, replaced = _replay(trace, arrays)
    layers = range(len(trace["sizes"]) - 1)
    error = 0.0
    for layer in layers:
        for leaf, letter in (("kernel", "w"), ("bias", "b")):
            wanted = arrays[f"{letter}{layer}"][-1]
            error = max(error, np.abs(params[str(layer)][leaf] - wanted).max())
    same, number = True, 0
    for layer in layers[:-1]:
        wanted = arrays[f"replaced{layer}"]  # [steps, units]
        units = np.arange(wanted.shape[1])
        actual = (replaced[str(layer)][:, :, None] == units).any(axis=1)
        same &= bool((actual == wanted).all())
        number += int(wanted.sum())
    detail = (
        f"{number} replacements {'the same' if same else 'NOT the same'}, params "
        f"within {error:.1e}"
    )
    passed = same and error <= _TRACE_ERROR
    return Check(name, "passed" if passed else "FAILED", detail)


def _replay(trace: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """Returns the params at the end and the units replaced, [steps, K] by layer."""
    names = [str(layer) for layer in range(len(trace["sizes"]) - 1)]

    def fresh(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """The weights that the trace has in place of random ones."""
        del key
        bound = arrays["bound0"] * np.sqrt(trace["sizes"][0] / shape[0])
        column = bound * jnp.cos(jnp.arange(1, shape[0] + 1, dtype=dtype))
        return jnp.broadcast_to(column[:, None], shape).astype(dtype)

    tx = cbp_jax.continual_backprop(
        optax.sgd(trace["step_size"]),
        cbp_jax.sequential_units(names),
        replacement_rate=trace["replacement_rate"],
        decay_rate=trace["decay_rate"],
        maturity_threshold=trace["maturity_threshold"],
        utility_fn=cbp_jax.utility.overall,
        initializer=fresh,
        key=make_key(0),
    )

    def loss_of(params: Any, inputs: jax.Array, target: jax.Array) -> Any:
        hidden, features = inputs, {}
        for name in names:
            hidden = jnp.dot(hidden, params[name]["kernel"], precision="highest")
            hidden += params[name]["bias"]
            if name != names[-1]:
                features[name] = hidden = jax.nn.relu(hidden)
        losses = optax.softmax_cross_entropy_with_integer_labels(hidden, target)
        return jnp.mean(losses), features

    def step(carry: Any, batch: Any) -> Any:
        params, state = carry
        grads, features = jax.grad(loss_of, has_aux=True)(params, *batch)
        updates, state = tx.update(grads, state, params, features=features)
        return (optax.apply_updates(params, updates), state), state.replaced

    params = {
        name: {
            "kernel": jnp.asarray(arrays[f"w{name}_init"], jnp.float64),
            "bias": jnp.asarray(arrays[f"b{name}_init"], jnp.float64),
        }
        for name in names
    }
    batches = jnp.asarray(arrays["x"]), jnp.asarray(arrays["y"])
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, batches))
    (params, _), replaced = jax.device_get(run((params, tx.init(params))))
    return params, replaced
