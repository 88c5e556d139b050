"""The same update in plain PyTorch, if that is installed."""

import importlib.util
import itertools
import math
from typing import Any

import jax
import numpy as np

from experiments.learning.checks import ConfigError
from experiments.run.cases import Case
from experiments.timing.programs import NUM_BATCHES, make_batches, param_shapes


def check_installed() -> None:
    """Raises ImportError, with the remedy, if PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise ImportError(
            "--against=torch times PyTorch, which is not installed: run `pip install "
            "torch`, or omit the flag."
        )


class TorchLoop:
    """A usual PyTorch loop on random batches: forward, backward and SGD of one learner.

    It runs on the GPU if JAX has one, otherwise on all cores.

    Args:
      case: the case whose network is used.
      steps: updates in a call.

    Raises:
      ConfigError: the activation is not supported.
    """

    compile_seconds = memory_bytes = math.nan

    def __init__(self, case: Case, steps: int):
        import torch

        config, names = case.config, case.problem.learner.layers
        use_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
        self._torch = torch
        self._device = torch.device("cuda" if use_gpu else "cpu")
        shapes = param_shapes(case)
        kernels = [shapes[name]["kernel"].shape for name in names]
        self._network = _network(torch, config, kernels).to(self._device)
        inputs, targets = make_batches(case, 1, NUM_BATCHES, config.batch_size)
        inputs, targets = inputs[0], targets[0]
        if len(kernels[0]) == 4:
            inputs = np.moveaxis(inputs, -1, 2).copy()  # Channels first.
        elif inputs.ndim > 3:
            # A linear model takes flat images.
            inputs = inputs.reshape(*inputs.shape[:2], -1)
        is_number = kernels[-1][-1] == 1
        self._loss = torch.nn.MSELoss() if is_number else torch.nn.CrossEntropyLoss()
        dtype = torch.float32 if is_number else torch.int64
        targets = targets[..., None] if is_number else targets
        self._inputs = torch.tensor(inputs).to(self._device)
        self._targets = torch.tensor(targets, dtype=dtype).to(self._device)
        self._optimizer = torch.optim.SGD(
            self._network.parameters(), config.step_size, config.momentum
        )
        self.updates = steps

    def __call__(self) -> None:
        """Makes the updates."""
        for index in range(self.updates):
            chosen = index % NUM_BATCHES
            self._optimizer.zero_grad()
            outputs = self._network(self._inputs[chosen])
            self._loss(outputs, self._targets[chosen]).backward()
            self._optimizer.step()
        if self._device.type == "cuda":
            self._torch.cuda.synchronize()


def _network(torch: Any, config: Any, kernels: list[tuple[int, ...]]) -> Any:
    """Builds the layers of kernels [..., in, out], convolutions before dense ones."""
    nn = torch.nn
    activations = {
        **{"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh},
        **{"sigmoid": nn.Sigmoid, "elu": nn.ELU, "swish": nn.SiLU},
        "linear": nn.Identity,
    }
    if config.activation not in activations:
        raise ConfigError(
            f"--against=torch supports the activations {list(activations)}, got "
            f"{config.activation!r}."
        )
    found = []
    for kernel, following in itertools.zip_longest(kernels, kernels[1:]):
        if len(kernel) == 4:
            height, width, before, after = kernel
            found += [nn.Conv2d(before, after, (height, width))]
            found += [activations[config.activation](), nn.MaxPool2d(2)]
            if len(following) == 2:
                found.append(nn.Flatten())
            continue
        found.append(nn.Linear(*kernel))
        if following is not None:
            found.append(activations[config.activation]())
    return nn.Sequential(*found)
