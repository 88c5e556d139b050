"""Golden numbers: what the code computed when they were written, in JSON.

They tell whether a change that is meant to leave all numbers as they are does so. Each
file of `tests/golden` holds named entries, each entry named arrays. An array of many
numbers is kept as a few of them and sums. Integers must be equal, floats to within
rounding: 1e-4 of the number, or 1e-5 of the largest of its array.
"""

import json
import os
import pathlib

import jax
import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parent / "golden"
_ROOT = FOLDER.parents[1]
_RENEW = "UPDATE_GOLDEN"
# Arrays of more numbers are summed up.
_MANY = 12
_MOST_SHOWN = 8
_CHANGED = (
    "A change that only moves, renames or speeds up code must not get here: find out "
    "what it changed. If the algorithm, its random numbers or this test changed"
)


class Golden:
    """One file of golden numbers.

    Args:
      name: of the file, without its ending.
      test: path of the tests that check it, for the message of a failure.
      meaning: what a difference tells, for that message as well.
      folder: where the file is.
    """

    def __init__(self, name, test, meaning=_CHANGED, folder=FOLDER):
        self._path = pathlib.Path(folder) / f"{name}.json"
        self._test = os.path.relpath(test, _ROOT)
        self._meaning = meaning

    def check(self, entry, found):
        """Fails if a tree of arrays and strings is not as written.

        Where the file is to be renewed, what differs is written instead.
        """
        found, written = _summary(found), self._read()
        if entry in written:
            differences = list(_differences(found, written[entry]))
        else:
            differences = ["  there is no such entry"]
        if not differences:
            return
        if os.environ.get(_RENEW):
            self._write(written | {entry: found})
            return
        left = len(differences) - _MOST_SHOWN
        if left > 0:
            differences = [*differences[:_MOST_SHOWN], f"  ... and {left} more"]
        self._fail(f"Entry {entry!r}", differences)

    def check_names(self, entries):
        """Fails if the file holds entries that no test checks, or removes them."""
        written = self._read()
        unknown = sorted(written.keys() - set(entries))
        if unknown and os.environ.get(_RENEW):
            self._write({name: written[name] for name in written if name in entries})
        elif unknown:
            self._fail("Entries", [f"  no test checks {unknown}"])

    def _fail(self, what, lines):
        where = os.path.relpath(self._path, _ROOT)
        advice = (
            f"{self._meaning} on purpose, renew the file, look at its diff, and say "
            "why in the commit message:\n"
            f"    {_RENEW}=1 python -m pytest -m '' {self._test}"
        )
        pytest.fail("\n".join([f"{what} of {where}:", *lines, advice]))

    def _read(self):
        return json.loads(self._path.read_text()) if self._path.exists() else {}

    def _write(self, entries):
        if os.environ.get("PYTEST_XDIST_WORKER"):
            pytest.fail(f"{_RENEW} is set: run pytest without -n, or with -n 0.")
        blocks = []
        for entry, arrays in sorted(entries.items()):
            lines = [
                f"    {json.dumps(name)}: {json.dumps(numbers)}"
                for name, numbers in arrays.items()
            ]
            blocks.append(f"  {json.dumps(entry)}: {{\n" + ",\n".join(lines) + "\n  }")
        self._path.parent.mkdir(exist_ok=True)
        self._path.write_text("{\n" + ",\n".join(blocks) + "\n}\n")


def _summary(tree):
    """Maps the path of each array to its numbers, or to some of them and their sums."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): _numbers(leaf)
        for path, leaf in leaves
    }


def _numbers(leaf):
    if isinstance(leaf, str):
        return leaf
    array = np.asarray(leaf)
    if array.size <= _MANY:
        return _as_json(array)
    flat, place = array.ravel(), np.arange(1, array.size + 1)
    some = {"shape": list(array.shape), "some": _as_json(flat[:: array.size // 3])}
    # The last number of each tells one order from another.
    if array.dtype.kind in "biu":
        whole = flat.astype(np.int64)
        sums = whole.sum(), (whole**2).sum(), (whole * place).sum()
        names = "sum", "sum of squares", "sum of number x place"
    else:
        wide = flat.astype(np.float64)
        sums = wide.mean(), np.sqrt((wide**2).mean()), (wide * place / len(flat)).mean()
        names = "mean", "root mean square", "mean of number x place / size"
    return some | dict(zip(names, map(_as_json, sums), strict=True))


def _as_json(numbers):
    """NaN becomes null; floats keep the digits that float32 has."""
    if isinstance(numbers, np.ndarray):
        if numbers.ndim:
            return [_as_json(number) for number in numbers]
        numbers = numbers[()]
    if isinstance(numbers, np.bool_ | np.integer):
        return int(numbers)
    return None if np.isnan(numbers) else float(f"{numbers:.8g}")


def _differences(found, wanted):
    """Yields a line for each number that differs."""
    for name in wanted.keys() - found.keys():
        yield f"  {name} is missing"
    for name in found.keys() - wanted.keys():
        yield f"  {name} is new"
    for name in [name for name in wanted if name in found]:
        yield from _compare(name, dict(_flat(found[name])), dict(_flat(wanted[name])))


def _flat(value, place=""):
    """Yields where each number of an array is, and the number."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(part, f"{place} {name}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _flat(part, f"{place}[{index}]")
    else:
        yield place, value


def _compare(name, found, wanted):
    if found.keys() != wanted.keys():
        yield f"  {name} has another shape: {found}, expected {wanted}"
        return
    floats = [number for number in wanted.values() if isinstance(number, float)]
    rounding = 1e-5 * max(map(abs, floats), default=0.0)
    for place, number in wanted.items():
        if isinstance(number, float) and isinstance(found[place], float):
            is_equal = abs(found[place] - number) <= rounding + 1e-4 * abs(number)
        else:
            is_equal = found[place] == number
        if not is_equal:
            yield f"  {name}{place} is {found[place]}, expected {number}"
