"""Writes recognised cells as LSTM, GRU and RNN nodes, and the glue between their axes and the graph's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ...graph import Graph, Node
from .cells import Cell


def names_of(graph: Graph) -> Iterator[str]:
    """Every name that a graph and the bodies inside it give or read."""
    yield from (spec.name for spec in (*graph.inputs, *graph.outputs))
    yield from graph.constants
    for node in graph.nodes:
        yield from node.inputs
        yield from node.outputs
    for body in graph.subgraphs():
        yield from names_of(body)


class Writer:
    """Collects new nodes and constants under names that nothing else has."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._shared: dict[tuple[Any, ...], str] = {}
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}

    def fresh(self, stem: str) -> str:
        """A name like ``stem`` that is free."""
        name, count = stem, 1
        while name in self._taken:
            count += 1
            name = f"{stem}.{count}"
        self._taken.add(name)
        return name

    def constant(self, value: np.ndarray, stem: str) -> str:
        """A constant; equal ones are one, so that equal weights are known to be."""
        value = np.array(value, order="C")
        key = (value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).digest())
        if key not in self._shared:
            name = self._shared[key] = self.fresh(stem)
            self.constants[name] = value
        return self._shared[key]

    def numbers(self, *values: int) -> str:
        """A constant list of integers."""
        return self.constant(np.array(values, np.int64), "numbers." + "_".join(map(str, values)))

    def add(self, op: str, inputs: Sequence[str], stem: str, output: str = "", **attributes: Any) -> str:
        """A node with one output: ``output``, or a new name."""
        output = output or self.fresh(f"{stem}.{op}")
        self.nodes.append(Node(op, tuple(inputs), (output,), attributes, output))
        return output

    def unsqueezed(self, x: str, *axes: int, output: str = "") -> str:
        """x with new axes."""
        return self.add("Unsqueeze", (x, self.numbers(*axes)), x, output)

    def squeezed(self, x: str, *axes: int, output: str = "") -> str:
        """x without axes."""
        return self.add("Squeeze", (x, self.numbers(*axes)), x, output)

    def transposed(self, x: str, perm: Sequence[int], output: str = "") -> str:
        """x with its axes in another order; x itself if that is the order they have and no name is asked for."""
        if tuple(perm) == tuple(range(len(perm))):
            return self.add("Identity", (x,), x, output) if output else x
        return self.add("Transpose", (x,), x, output, perm=tuple(perm))

    def joined(self, xs: Sequence[str], axis: int) -> str:
        """Tensors side by side."""
        return xs[0] if len(xs) == 1 else self.add("Concat", xs, xs[0], axis=axis)

    def cell(
        self,
        cell: Cell,
        W: np.ndarray,
        x: str,
        states: Sequence[str],
        wanted: Sequence[bool],
        dtype: np.dtype[Any],
        label: str,
        direction: str = "forward",
    ) -> list[str]:
        """The node of a cell over x[T,B,I], from initial ``states`` [1,B,H] ('' for zeros).

        Gives the names of Y[T,1,B,H], Y_h and Y_c [1,B,H], '' for those not ``wanted``.
        """
        weights = [
            self.constant(array[None].astype(dtype), f"{label}.{name}")
            for name, array in (("W", W), ("R", cell.R), ("B", cell.B))
        ]
        inputs = [x, *weights, "", *states]
        if cell.P is not None:
            inputs.append(self.constant(cell.P[None].astype(dtype), f"{label}.P"))
        while inputs[-1] == "":
            inputs.pop()
        names = ("Y", "Y_h", "Y_c")[: 3 if cell.op == "LSTM" else 2]
        outputs = [self.fresh(f"{label}.{name}") if want else "" for name, want in zip(names, wanted, strict=False)]
        attributes = cell.attributes()
        if direction != "forward":
            attributes["direction"] = direction
        self.nodes.append(Node(cell.op, tuple(inputs), tuple(outputs), attributes, label))
        return [*outputs, *[""] * (3 - len(outputs))]

    def as_state(self, name: str, shape: Sequence[int]) -> str | None:
        """A tensor of a form that states have, as [1,B,H]; None for another form."""
        if len(shape) == 3 and shape[0] == 1:
            return name
        if len(shape) == 3 and shape[1] == 1:
            return self.transposed(name, (1, 0, 2))
        if len(shape) == 2:
            return self.unsqueezed(name, 0)
        return self.unsqueezed(name, 0, 1) if len(shape) == 1 else None

    def from_state(self, name: str, shape: Sequence[int], output: str) -> None:
        """The tensor ``output`` of one of those forms, from [1,B,H]."""
        if len(shape) == 3:
            self.transposed(name, (0, 1, 2) if shape[0] == 1 else (1, 0, 2), output)
        else:
            self.squeezed(name, *((0,) if len(shape) == 2 else (0, 1)), output=output)

    def from_sequence(self, name: str, shape: Sequence[int], output: str) -> None:
        """The tensor ``output``, a state's form at each step [T,…], from Y[T,1,B,H]."""
        if len(shape) == 3:
            self.transposed(name, (0, 1, 2, 3) if shape[0] == 1 else (0, 2, 1, 3), output)
        else:
            self.squeezed(name, *((1,) if len(shape) == 2 else (1, 2)), output=output)


def is_state_form(shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape can be the state of a cell: [H], [B,H], [1,B,H] or [B,1,H]."""
    return len(shape) in (1, 2) or (len(shape) == 3 and 1 in shape[:2])
