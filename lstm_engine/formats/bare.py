"""What readers of bare weights share: names grouped by module, one graph builder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from ..errors import ModelFormatError
from ..graph import Graph, Node, TensorSpec

#: The operator forms these readers write are those of this set.
OPSET: Final = 21


class Sketch:
    """Nodes and constants of a graph under construction; each method adds an operator and returns its output."""

    def __init__(self, origin: str):
        self.origin = origin
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, name: str, value: np.ndarray) -> str:
        """Name of a constant."""
        self.constants[name] = value
        return name

    def numbers(self, name: str, values: Sequence[int]) -> str:
        """Name of an int64 vector."""
        return self.constant(name, np.array(values, np.int64))

    def add(self, op: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        """Output of a new node that has one."""
        self.nodes.append(Node(op, tuple(inputs), (output,), attributes, output))
        return output

    def transpose(self, x: str, perm: Sequence[int], output: str) -> str:
        """``x`` with its axes in another order."""
        return self.add("Transpose", (x,), output, perm=tuple(perm))

    def squeeze(self, x: str, axis: int, output: str) -> str:
        """``x`` without an axis of size 1."""
        return self.add("Squeeze", (x, self.numbers(f"{output}.axes", [axis])), output)

    def reshape(self, x: str, shape: Sequence[int], output: str) -> str:
        """``x`` in another shape; 0 keeps a size."""
        return self.add("Reshape", (x, self.numbers(f"{output}.shape", shape)), output)

    def cut(self, x: str, start: int, end: int, axis: int, output: str, step: int = 1) -> str:
        """``x[start:end:step]`` along ``axis``."""
        bounds = {"starts": start, "ends": end, "axes": axis, "steps": step}
        names = [self.numbers(f"{output}.{part}", [value]) for part, value in bounds.items()]
        return self.add("Slice", (x, *names), output)

    def graph(self, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> Graph:
        """The finished graph."""
        return Graph.build(self.nodes, inputs, outputs, self.constants, OPSET, {}, self.origin)


def common_float(arrays: Iterable[tuple[str, np.ndarray]], origin: str) -> np.dtype[Any]:
    """The float type that holds all weights. Raises ModelFormatError naming those that are no floats."""
    arrays = list(arrays)
    wrong = [f"'{key}' is {value.dtype}" for key, value in arrays if value.dtype.kind != "f"]
    if wrong:
        raise ModelFormatError(f"{origin}: weights must be floats: {', '.join(wrong[:20])}")
    return np.result_type(*(value.dtype for _, value in arrays))


def named(keys: Iterable[str], most: int = 20) -> str:
    """Keys as messages list them."""
    keys = list(keys)
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(f"'{key}'" for key in keys[:most]) + more


def refuse_keywords(origin: str, kind: str, **keywords: Any) -> None:
    """Raise TypeError for keywords that were given although ``kind`` has no use for them."""
    given = [name for name, value in keywords.items() if value is not None]
    if given:
        raise TypeError(f"{origin}: {', '.join(given)} has no meaning for {kind}")


def chosen_module(found: Sequence[str], prefix: str | None, origin: str, kind: str) -> str:
    """The one prefix to read: the only one, or the one asked for (with or without its last separator)."""
    if prefix is None:
        if len(found) == 1:
            return found[0]
        raise ModelFormatError(f"{origin}: holds several {kind}: {named(found)}; choose one with prefix=")
    matches = [name for name in found if name == prefix or name.rstrip("./_") == prefix]
    if not matches:
        raise ModelFormatError(f"{origin}: has no {kind} with the prefix {prefix!r}; found: {named(found) or 'none'}")
    return matches[0]
