"""Projects the time of an update on an accelerator from its compiled program.

Nothing here is measured. Kernels run one after the other; each takes as long as its
launch or as moving its bytes, whichever is longer. A conditional waits for the host to
read which branch to run. On a TPU there are no launches: an operation takes the cycles
that the compiler estimates. Arithmetic, which can limit batches and convolutions, is
not counted.
"""

from typing import NamedTuple

from experiments.timing.compiled_programs import Kernel, Work
from experiments.timing.devices import Device


class Assumptions(NamedTuple):
    """Assumptions that a projection needs besides the compiled program.

    Attributes:
      launch_seconds: time of a kernel launch on a GPU, if launches are consecutive.
      conditional_seconds: time of a conditional on a GPU.
      bandwidth_share: fraction of the device's bandwidth that kernels reach, in (0, 1].
      branch_share: fraction of conditionals that take the longer branch, in [0, 1]; the
        others take the shorter one.
    """

    launch_seconds: float = 3e-6
    conditional_seconds: float = 15e-6
    bandwidth_share: float = 0.8
    branch_share: float = 1.0

    def __str__(self) -> str:
        """Describes the assumptions."""
        return (
            f"{1e6 * self.launch_seconds:g} µs for a launch and "
            f"{1e6 * self.conditional_seconds:g} µs for a conditional on a GPU, "
            f"{100 * self.bandwidth_share:g} % of the bandwidth, and the longer branch "
            f"in {100 * self.branch_share:g} % of the conditionals"
        )


ASSUMED = Assumptions()
"""The default assumptions."""


class Projection(NamedTuple):
    """The projected time of an update of all lanes.

    Attributes:
      launches: seconds in kernels that are limited by their launch; on a TPU, in
        operations that are limited by their cycles.
      bandwidth: seconds in kernels that are limited by memory.
      conditionals: seconds of waiting for the host.
    """

    launches: float
    bandwidth: float
    conditionals: float

    @property
    def seconds(self) -> float:
        """The total time."""
        return sum(self)

    @property
    def bound(self) -> str:
        """The field that takes most of the time."""
        return max(self._fields, key=lambda field: getattr(self, field))


def project(work: Work, device: Device, assumptions: Assumptions) -> Projection:
    """Projects the time of an update.

    Args:
      work: work of an update; see `compiled_programs.update_work`.
      device: the accelerator that runs it.
      assumptions: the assumptions.
    """
    total = [0.0, 0.0, 0.0]

    def add(work: Work, share: float) -> None:
        for kernel in work.kernels:
            fixed, moving = _seconds(kernel, device, assumptions)
            total[moving > fixed] += share * kernel.times * max(fixed, moving)
        for conditional in work.conditionals:
            if device.platform == "cuda":
                waiting = conditional.times * assumptions.conditional_seconds
                total[2] += share * waiting
            ordered = sorted(conditional.branches, key=lambda branch: duration(branch))
            add(ordered[-1], share * assumptions.branch_share)
            add(ordered[0], share * (1 - assumptions.branch_share))

    def duration(work: Work) -> float:
        return sum(
            kernel.times * max(_seconds(kernel, device, assumptions))
            for kernel in work.kernels
        ) + sum(max(map(duration, one.branches)) for one in work.conditionals)

    add(work, 1.0)
    return Projection(*total)


def _seconds(
    kernel: Kernel, device: Device, assumptions: Assumptions
) -> tuple[float, float]:
    """Returns the least seconds of a kernel, and the seconds to move its bytes."""
    fixed = assumptions.launch_seconds
    if device.platform == "tpu":
        fixed = kernel.cycles / device.clock
    bandwidth = assumptions.bandwidth_share * device.bandwidth
    return fixed, kernel.bytes_moved / bandwidth
