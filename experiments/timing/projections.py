"""The time that an update would take on an accelerator, by what it does there.

Nothing here is measured. A kernel takes as long as its launch or as the bytes that it
moves, whichever is longer, and kernels follow one another; a conditional waits for the
host to read which branch to run. On a TPU nothing is launched: an operation takes the
cycles that the compiler estimates. Arithmetic does not count, which batches and
convolutions can be bound by.
"""

from typing import NamedTuple

from experiments.timing.compiled_programs import Kernel, Work
from experiments.timing.devices import Device


class Assumptions(NamedTuple):
    """What the compiled program does not tell.

    Attributes:
      launch_seconds: of a kernel on a GPU, one after the other.
      conditional_seconds: of a conditional on a GPU.
      bandwidth_share: of the device's bandwidth that kernels reach, in (0, 1].
      branch_share: of the conditionals that take the longer branch, in [0, 1]; the
        others take the shorter one.
    """

    launch_seconds: float = 3e-6
    conditional_seconds: float = 15e-6
    bandwidth_share: float = 0.8
    branch_share: float = 1.0

    def __str__(self) -> str:
        """Says what is assumed."""
        return (
            f"{1e6 * self.launch_seconds:g} µs for a launch and "
            f"{1e6 * self.conditional_seconds:g} µs for a conditional on a GPU, "
            f"{100 * self.bandwidth_share:g} % of the bandwidth, and the longer branch "
            f"in {100 * self.branch_share:g} % of the conditionals"
        )


ASSUMED = Assumptions()
"""What is assumed unless told otherwise."""


class Projection(NamedTuple):
    """What an update of all lanes would take.

    Attributes:
      launches: seconds in kernels that take as long as their launch; of a TPU, as long
        as the compiler estimates.
      bandwidth: seconds in kernels that wait for memory.
      conditionals: seconds in waiting for the host.
    """

    launches: float
    bandwidth: float
    conditionals: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self)

    @property
    def bound(self) -> str:
        """What most of the time goes to."""
        return max(self._fields, key=lambda field: getattr(self, field))


def project(work: Work, device: Device, assumptions: Assumptions) -> Projection:
    """Projects the time of an update.

    Args:
      work: of an update, see `compiled_programs.update_work`.
      device: which runs it.
      assumptions: about it.
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
    """Returns the seconds that a kernel takes at least, and those of its bytes."""
    fixed = assumptions.launch_seconds
    if device.platform == "tpu":
        fixed = kernel.cycles / device.clock
    bandwidth = assumptions.bandwidth_share * device.bandwidth
    return fixed, kernel.bytes_moved / bandwidth
