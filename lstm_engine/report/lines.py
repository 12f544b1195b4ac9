"""Readings and predictions as lines of text: CSV numbers or JSON, one line a step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import InputError, listed

if TYPE_CHECKING:
    from ..graph import TensorSpec
    from ..stream import Stream

FORMATS: Final = ("csv", "json")
_MOST_SHOWN: Final = 40  # characters of a bad field


class Lines:
    """How a stream's steps are written: feed() reads a line, line() writes a step's result.

    CSV holds the numbers of all required inputs one after another, in the model's order, rows of a batch likewise.
    JSON holds the one input's array (flat or nested), or an object {name: array}. Results look like what came in;
    numbers are the shortest that read back as the same float, and JSON has null for what is not finite.
    """

    def __init__(self, stream: Stream, form: str) -> None:
        self.inputs = stream.inputs
        self.lean = stream.batch == 1
        self._read: Callable[[bytes], dict[str, Any]] = self._from_csv if form == "csv" else self._from_json
        self.line: Callable[[Any], str] = _as_csv if form == "csv" else self._as_json

    def feed(self, line: bytes) -> Any:
        """A line as what Stream.step() takes. Raises InputError for one that does not fit."""
        feeds = self._read(line)
        names = [spec.name for spec in self.inputs]
        # The array by itself is what a step takes quickest.
        return feeds[names[0]] if len(names) == 1 and [*feeds] == names else feeds

    def _from_csv(self, line: bytes) -> dict[str, Any]:
        specs = [spec for spec in self.inputs if not spec.optional]
        fields = _text(line).split(",")
        wanted = [_size(spec) for spec in specs]
        if wanted.count(None) > 1:
            raise InputError(
                "several inputs leave their sizes open, so a line of numbers says too little: --format json"
            )
        known = sum(size or 0 for size in wanted)
        counts = [len(fields) - known if size is None else size for size in wanted]
        if (len(fields) != known and None not in wanted) or min(counts, default=0) < 0:
            parts = ", ".join(
                f"{'any number' if size is None else size} of '{spec.name}'"
                for spec, size in zip(specs, wanted, strict=True)
            )
            hint = "; is it JSON? (--format json)" if fields[0].lstrip().startswith(("[", "{")) else ""
            raise InputError(f"expected {known} numbers ({parts}), got {len(fields)}{hint}")
        feeds, at = {}, 0
        for spec, size in zip(specs, counts, strict=True):
            number = int if spec.dtype.kind in "iub" else float
            values = [_number(number, fields[i], i) for i in range(at, at + size)]
            feeds[spec.name] = _shaped(spec, values)
            at += size
        return feeds

    def _from_json(self, line: bytes) -> dict[str, Any]:
        try:
            value = json.loads(_text(line))
        except (ValueError, RecursionError) as fault:
            raise InputError(f"not JSON ({fault})") from fault
        if not isinstance(value, Mapping):
            if len(self.inputs) != 1:
                raise InputError(f"expected an object with {', '.join(spec.name for spec in self.inputs)}")
            value = {self.inputs[0].name: value}
        specs = {spec.name: spec for spec in self.inputs}
        return {name: _shaped(specs[name], entry) if name in specs else entry for name, entry in value.items()}

    def _as_json(self, result: Any) -> str:
        if isinstance(result, Mapping):
            return json.dumps({name: self._plain(array) for name, array in result.items()}, separators=(",", ":"))
        return json.dumps(self._plain(result), separators=(",", ":"))

    def _plain(self, array: np.ndarray) -> Any:
        """Nested lists, without the batch axis where there is one row."""
        if self.lean and array.ndim and array.shape[0] == 1:
            array = array[0]
        return _nested(array)


def _as_csv(result: Any) -> str:
    if not isinstance(result, Mapping):
        return ",".join(map(str, _numbers(result)))
    return ",".join(str(number) for array in result.values() for number in _numbers(array))


def _numbers(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).astype(np.uint8 if array.dtype.kind == "b" else array.dtype, copy=False)


def _nested(array: np.ndarray) -> Any:
    if array.ndim:
        return [_nested(part) for part in array]
    if array.dtype.kind != "f":
        return array.item()
    # By way of text: a float32 is shortest as itself, not as the float64 that it becomes in Python.
    return float(str(array[()])) if math.isfinite(array) else None


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as fault:
        raise InputError(f"not UTF-8 ({fault.reason} at byte {fault.start})") from fault


def _number(kind: Callable[[str], float], field: str, index: int) -> float:
    """A number of a CSV line. Python's own digit separator, the underscore, is none of CSV's."""
    try:
        if "_" in field:
            raise ValueError
        return kind(field)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise InputError(f"field {index + 1}: expected {wanted}, got {field.strip()[:_MOST_SHOWN]!r}") from None


def _shaped(spec: TensorSpec, values: Any) -> Any:
    """Values in the shape of a step's input, if there are as many; else as they are, for the stream to refuse."""
    from ..feeds import converted

    array = converted(spec, values)
    sizes = [size if isinstance(size, int) else -1 for size in spec.shape or ()]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 0:
        return array.reshape(sizes) if array.size == known else array
    return array.reshape(sizes) if sizes.count(-1) == 1 and known and array.size % known == 0 else array


def _size(spec: TensorSpec) -> int | None:
    """How many numbers a step's input holds; None where a size is open."""
    sizes = spec.shape or ()
    return (
        math.prod(size for size in sizes if isinstance(size, int)) if all(isinstance(s, int) for s in sizes) else None
    )


def bad_line(number: int, fault: InputError) -> str:
    """What to say of a line that cannot be used, on one line."""
    return listed(f"line {number}", [" ".join(str(fault).split())])


__all__: Sequence[str] = ["FORMATS", "Lines", "bad_line"]
