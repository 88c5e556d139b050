"""Counts the kernels, conditionals and bytes of a compiled program, from its HLO text.

XLA prints a program after all its passes. Each instruction outside a fusion is then one
piece of work of the device: a kernel that a GPU launches, or an operation of a TPU.
Instructions that only rename memory do not count. `count` counts for one update:

* A fusion is one kernel, whatever it contains. So is a call of another library, though
  it may launch several.
* The body of a loop counts as often as the loop runs. This number is in the loop's
  `known_trip_count`, or in its condition, `i < N`, where JAX counts from 0. A GPU does
  not evaluate the condition of a loop with a known trip count.
* Conditionals are counted separately from the kernels in their branches, of which one
  runs.
* A kernel moves its operands and its results, each once. For an operand that it only
  slices or gathers from, it moves the part that it reads; for one that it updates in
  place, the update. Caches are ignored, as if the working set were larger than these.
  Data that a TPU keeps in its vector memory are not counted.
"""

from collections.abc import Mapping
import math
import re
from typing import NamedTuple


class Kernel(NamedTuple):
    """A piece of work of the device.

    Attributes:
      name: name of the instruction.
      times: how often it runs.
      bytes_moved: bytes between the device's main memory and its cores, each time.
      cycles: cycles that the compiler estimates, each time; 0 without an estimate.
    """

    name: str
    times: float
    bytes_moved: int
    cycles: int


class Conditional(NamedTuple):
    """A conditional, which runs one of its branches.

    Attributes:
      name: name of the instruction.
      times: how often it is reached.
      branches: work of each branch, over all `times`.
    """

    name: str
    times: float
    branches: tuple["Work", ...]


class Work(NamedTuple):
    """The work of a program or a part of it.

    Attributes:
      kernels: kernels outside the branches of conditionals.
      conditionals: conditionals outside the branches of others.
      unknown_loops: number of loops with an unknown trip count, counted as one trip.
    """

    kernels: tuple[Kernel, ...] = ()
    conditionals: tuple[Conditional, ...] = ()
    unknown_loops: int = 0


class Counts(NamedTuple):
    """Work of one update of all lanes, on average if updates differ.

    Attributes:
      kernels: kernels outside conditionals.
      conditionals: conditionals reached, including nested ones in the branches with the
        most kernels.
      least_in_branches: kernels in the branches of all conditionals, if each takes the
        branch with the fewest.
      most_in_branches: the same, if each takes the branch with the most.
      bytes_moved: bytes moved outside conditionals.
      most_bytes_in_branches: bytes moved in branches, if each takes the branch with the
        most.
      cycles: estimated cycles outside conditionals, 0 without an estimate.
      most_cycles_in_branches: estimated cycles in branches, if each takes the branch
        with the most.
      unknown_loops: see `Work`.
    """

    kernels: float
    conditionals: float
    least_in_branches: float
    most_in_branches: float
    bytes_moved: float
    most_bytes_in_branches: float
    cycles: float
    most_cycles_in_branches: float
    unknown_loops: int


class HloError(ValueError):
    """The text is not that of a compiled program, or that program does not train."""


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool


_Computation = Mapping[str, _Instruction]


class Program(NamedTuple):
    """A parsed compiled program: instructions by name, by computation."""

    computations: Mapping[str, _Computation]
    entry: str


def count(text: str, updates: int) -> Counts:
    """Counts the work of an update in the compiled program of a task.

    The updates are the outermost loops of the program that run as often as there are
    updates, alone or with a loop inside them.

    Args:
      text: text of the program, from `jax.stages.Compiled.as_text`.
      updates: number of updates of each lane in the loop.

    Raises:
      HloError: the text is not that of a program, or there is no such loop.
    """
    return summarize(update_work(text, updates))


def update_work(text: str, updates: int) -> Work:
    """Returns the work of an update; see `count`."""
    program = read(text)
    entry = program.computations[program.entry]
    trips = {
        name: _trips(program, one)
        for name, one in entry.items()
        if one.opcode == "while"
    }
    # Loops over blocks of lanes run several times as often. Measures may also have
    # loops, over examples.
    names = [name for name, number in trips.items() if number % updates == 0]
    if not names:
        # XLA may unroll a loop once, and another loop may have the remaining updates.
        names = [name for name, number in trips.items() if number > updates / 4]
    loops = {name: entry[name] for name in names}
    if not loops:
        raise HloError(
            f"The program has no loop of {updates} updates: pass the compiled task of "
            "a run."
        )
    return _work_of(program, loops, 1 / updates)


def whole_work(text: str) -> Work:
    """Returns the work of the whole program."""
    program = read(text)
    return _work_of(program, program.computations[program.entry], 1)


def summarize(work: Work) -> Counts:
    """Adds up kernels, bytes and cycles."""

    def most(work: Work, value: str | None) -> float:
        total = sum(
            kernel.times * (1 if value is None else getattr(kernel, value))
            for kernel in work.kernels
        )
        return total + sum(
            max(most(branch, value) for branch in conditional.branches)
            for conditional in work.conditionals
        )

    def least(work: Work) -> float:
        return sum(kernel.times for kernel in work.kernels) + sum(
            min(least(branch) for branch in conditional.branches)
            for conditional in work.conditionals
        )

    def conditionals(work: Work) -> float:
        return sum(
            conditional.times
            + conditionals(
                max(conditional.branches, key=lambda branch: most(branch, None))
            )
            for conditional in work.conditionals
        )

    outside = work._replace(conditionals=())
    kernels, moved = most(outside, None), most(outside, "bytes_moved")
    cycles = most(outside, "cycles")
    return Counts(
        kernels=kernels,
        conditionals=conditionals(work),
        least_in_branches=least(work) - kernels,
        most_in_branches=most(work, None) - kernels,
        bytes_moved=moved,
        most_bytes_in_branches=most(work, "bytes_moved") - moved,
        cycles=cycles,
        most_cycles_in_branches=most(work, "cycles") - cycles,
        unknown_loops=work.unknown_loops,
    )


_COLLECTIVES = (
    *("all-gather", "all-reduce", "all-to-all", "collective-broadcast"),
    *("collective-permute", "ragged-all-to-all", "reduce-scatter"),
    *("partition-id", "replica-id", "recv", "send"),
)


def collectives(text: str) -> list[str]:
    """Returns the instructions that synchronize or identify devices.

    Args:
      text: text of a compiled program.

    Returns:
      The opcode of each.
    """
    return [
        instruction.opcode
        for instructions in read(text).computations.values()
        for instruction in instructions.values()
        if instruction.opcode.removesuffix("-start") in _COLLECTIVES
    ]


# Instructions without work: names for existing memory, and control.
_FREE = frozenset(
    {
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
        *("after-all", "add-dependency", "opt-barrier", "domain"),
        *("partition-id", "replica-id", "get-dimension-size"),
    }
)
_FREE_CALLS = frozenset({"AllocateBuffer", "AssumeGatherIndicesInBound"})


def _work_of(program: Program, computation: _Computation, times: float) -> Work:
    """Returns the work of a computation that runs `times` times."""
    kernels: list[Kernel] = []
    conditionals: list[Conditional] = []
    unknown_loops = 0
    for instruction in computation.values():
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            continue
        if opcode == "conditional":
            branches = tuple(
                _work_of(program, program.computations[name], times)
                for name in _branches(instruction)
            )
            conditionals.append(Conditional(instruction.name, times, branches))
            unknown_loops += sum(branch.unknown_loops for branch in branches)
            continue
        inner, trips = None, 1
        if opcode == "while":
            inner = _called(instruction, "body")
            known = _trip_count(program, instruction)
            trips = 1 if known is None else known
            unknown_loops += known is None
        elif opcode == "call":
            inner = _called(instruction, "to_apply")
        elif opcode == "async-start":
            inner = _called(instruction, "calls")
        if inner is not None:
            work = _work_of(program, program.computations[inner], times * trips)
            kernels += work.kernels
            conditionals += work.conditionals
            unknown_loops += work.unknown_loops
        elif not (opcode == "custom-call" and _target(instruction) in _FREE_CALLS):
            moved = _bytes_moved(program, computation, instruction)
            kernels.append(Kernel(instruction.name, times, moved, _cycles(instruction)))
    return Work(tuple(kernels), tuple(conditionals), unknown_loops)


def _branches(instruction: _Instruction) -> list[str]:
    """Returns the names of the branches of a conditional."""
    listed = re.search(r"\bbranch_computations=\{([^}]*)\}", instruction.attributes)
    if listed:
        return re.findall(r"%([\w.-]+)", listed[1])
    return [_called(instruction, f"{name}_computation") for name in ("true", "false")]


def _called(instruction: _Instruction, attribute: str) -> str:
    """Returns the name of the computation that an instruction calls."""
    found = re.search(rf"\b{attribute}=%?([\w.-]+)", instruction.attributes)
    if not found:
        raise HloError(f"{instruction.opcode} {instruction.name} has no {attribute}=.")
    return found[1]


def _target(instruction: _Instruction) -> str:
    found = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    return found[1] if found else ""


def _cycles(instruction: _Instruction) -> int:
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    return int(found[1]) if found else 0


def _trips(program: Program, loop: _Instruction) -> int:
    """Returns how often a loop, or the most frequent loop inside it, runs."""
    body = program.computations[_called(loop, "body")]
    inner = [_trips(program, one) for one in body.values() if one.opcode == "while"]
    return (_trip_count(program, loop) or 1) * max([1, *inner])


def _trip_count(program: Program, loop: _Instruction) -> int | None:
    """Returns how often a loop runs; None if unknown."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
        return int(known[1])
    condition = program.computations[_called(loop, "condition")]
    test = _root(condition)
    bounds = [
        condition[name].operands[0]
        for name in test.operands
        if name in condition and condition[name].opcode == "constant"
    ]
    is_comparison = test.opcode == "compare" and "direction=LT" in test.attributes
    return int(bounds[0]) if is_comparison and len(bounds) == 1 else None


def _root(computation: _Computation) -> _Instruction:
    return next(one for one in computation.values() if one.is_root)


_SLICES = frozenset({"dynamic-slice", "gather", "slice"})
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # The operand that is written.


def _bytes_moved(
    program: Program, computation: _Computation, instruction: _Instruction
) -> int:
    """Returns the bytes that a kernel reads and writes, by the rules of this module."""
    opcode = instruction.opcode
    if opcode.endswith("-start"):  # Its result contains its operand as well.
        return _bytes_of(instruction.shape)
    operands = [_bytes_of(computation[name].shape) for name in instruction.operands]
    if opcode in _SLICES:
        return 2 * _bytes_of(instruction.shape)
    if opcode in _UPDATES:
        return 2 * operands[_UPDATES[opcode]]
    if opcode != "fusion":
        return sum(operands) + _bytes_of(instruction.shape)
    inside = program.computations[_called(instruction, "calls")]
    numbers = {
        int(one.operands[0]): one.name
        for one in inside.values()
        if one.opcode == "parameter"
    }
    read = sum(
        min(whole, _bytes_read(inside, numbers[number]))
        for number, whole in enumerate(operands)
    )
    return read + min(
        _bytes_of(instruction.shape), _bytes_written(inside, _root(inside))
    )


def _bytes_read(inside: _Computation, name: str) -> float:
    """Returns the bytes that a fusion reads of a value; infinity for all of it."""
    total = 0.0
    for user in inside.values():
        if name not in user.operands:
            continue
        position = user.operands.index(name)
        if user.opcode == "bitcast":
            total += _bytes_read(inside, user.name)
        elif user.opcode in _SLICES and position == 0:
            total += _bytes_of(user.shape)
        elif not (user.opcode in _UPDATES and position == 0):
            return math.inf
    return total


def _bytes_written(inside: _Computation, root: _Instruction) -> float:
    """Returns the bytes that a fusion writes; infinity for its whole result."""
    if root.opcode == "tuple":
        return sum(
            min(_bytes_of(inside[name].shape), _bytes_written(inside, inside[name]))
            for name in root.operands
        )
    if root.opcode == "bitcast":
        return _bytes_written(inside, inside[root.operands[0]])
    if root.opcode in _UPDATES:
        return _bytes_of(inside[root.operands[_UPDATES[root.opcode]]].shape)
    return math.inf


_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\](?:\{([^}]*)\})?")


def _bytes_of(shape: str) -> int:
    """Returns the bytes of an array, or of all arrays of a tuple, in main memory.

    A TPU pads the last two axes to whole tiles.
    """
    total = 0
    for kind, sizes, layout in _ARRAY.findall(shape):
        if re.search(r"S\([1-9]\d*\)", layout):  # Another memory.
            continue
        axes = [int(size) for size in sizes.split(",") if size]
        order, _, tiling = layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", tiling)
        if tile:
            minor_first = [axes[int(axis)] for axis in order.split(",") if axis] or [1]
            lengths = [int(length) for length in reversed(tile[1].split(","))]
            for position, length in enumerate(lengths[: len(minor_first)]):
                padded = math.ceil(minor_first[position] / length) * length
                minor_first[position] = padded
            axes = minor_first
        digits = re.search(r"\d+", kind)
        bits = _BITS[kind] if kind in _BITS else int(digits[0]) if digits else 0
        total += math.ceil(math.prod(axes) * bits / 8)
    return total


_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_BEGINNING = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")


def read(text: str) -> Program:
    """Parses the HLO text of a program.

    Raises:
      HloError: the text is not HLO.
    """
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, inside = None, None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            inside = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif line == "}":
            inside = None
        elif inside is not None and (beginning := _BEGINNING.match(line)):
            name = beginning[2]
            inside[name] = _instruction(
                name, line[beginning.end() :], bool(beginning[1])
            )
    if entry is None:
        raise HloError(
            f"{text[:60]!r} is not the HLO text of a compiled program: pass that of "
            "`jax.stages.Compiled.as_text`."
        )
    return Program(computations, entry)


def _instruction(name: str, text: str, is_root: bool) -> _Instruction:
    """Parses what follows the name and the equals sign of an instruction."""
    shape, text = _up_to_end(text) if text.startswith("(") else text.split(" ", 1)
    opcode, _, text = text.strip().partition("(")
    operands, attributes = _up_to_end("(" + text)
    if opcode in ("constant", "parameter"):
        named = (operands[1:-1],)
    else:
        named = tuple(re.findall(r"%([\w.-]+)", operands))
    return _Instruction(name, shape, opcode, named, attributes, is_root)


def _up_to_end(text: str) -> tuple[str, str]:
    """Splits text after the parenthesis that closes its first one."""
    depth = 0
    for parenthesis in re.finditer(r"[()]", text):
        depth += 1 if parenthesis[0] == "(" else -1
        if depth == 0:
            return text[: parenthesis.end()], text[parenthesis.end() :]
    raise HloError(f"A parenthesis does not close in {text[:60]!r}.")
