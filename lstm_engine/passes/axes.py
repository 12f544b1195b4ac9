"""Which axis is time, which is batch: how the axes of all tensors of a specialised graph hang together.

Every axis is a sequence of atoms, major first; axes of length 1 have none. Reshape regroups atoms,
Transpose reorders axes, elementwise operators make atoms of their operands the same. An LSTM says of its
input's axes which atoms are time (T) and batch (B). From there, each tensor has one place in memory:
rows [T][B][width], whatever order its file gives the axes; operators that only regroup or reorder axes
then move nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Final, TypeAlias

import numpy as np

from ..graph import Graph, Node
from .shapes import Specialised

Axis: TypeAlias = tuple[int, ...]
Axes: TypeAlias = tuple[Axis, ...]


@dataclass(frozen=True)
class RowForm:
    """Where the axes of a tensor lie in memory: [T if timed][B if batched][width atoms, major first]."""

    timed: bool
    batched: bool
    width: tuple[int, ...]


@dataclass(frozen=True)
class Roles:
    """The atoms that are time and batch in one graph at one set of shapes, and the axes of every tensor."""

    axes: Mapping[str, Axes]
    sizes: Mapping[int, int]
    time: Axis
    batch: Axis

    def form(self, name: str) -> RowForm:
        """The row form of a tensor."""
        return self.form_of(self.axes[name])

    def form_of(self, axes: Axes) -> RowForm:
        """The row form of axes: batch counts only as a whole, else its atoms are width."""
        atoms = [atom for axis in axes for atom in axis]
        timed = bool(self.time) and all(atom in atoms for atom in self.time)
        batched = bool(self.batch) and all(atom in atoms for atom in self.batch)
        taken = (self.time if timed else ()) + (self.batch if batched else ())
        return RowForm(timed, batched, tuple(atom for atom in atoms if atom not in taken))

    def axis_of(self, name: str, role: Axis) -> int | None:
        """Index of the axis of a tensor that is exactly the role's atoms; None where there is none."""
        return next((index for index, axis in enumerate(self.axes[name]) if role and axis == role), None)

    def size(self, atoms: tuple[int, ...]) -> int:
        """Number of elements along atoms."""
        return prod(self.sizes[atom] for atom in atoms)


class _Atoms:
    """Atoms that may turn out to be the same as another, or as several smaller ones."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._means: dict[int, Axis] = {}

    def new(self, size: int) -> Axis:
        if size == 1:
            return ()
        self.sizes.append(size)
        return (len(self.sizes) - 1,)

    def resolve(self, atoms: Axis) -> Axis:
        found: list[int] = []
        waiting = list(reversed(atoms))
        while waiting:
            atom = waiting.pop()
            if atom in self._means:
                waiting.extend(reversed(self._means[atom]))
            else:
                found.append(atom)
        return tuple(found)

    def unite(self, left: Axis, right: Axis) -> bool:
        """Make two runs of atoms of the same total size one; False where no common division exists."""
        one, other = list(reversed(self.resolve(left))), list(reversed(self.resolve(right)))
        while one and other:
            a, b = one.pop(), other.pop()
            if a == b:
                continue
            if self.sizes[a] == self.sizes[b]:
                self._means[max(a, b)] = (min(a, b),)
            elif self.sizes[a] > self.sizes[b]:
                if not self._split_tail(a, b, one):
                    return False
            elif not self._split_tail(b, a, other):
                return False
            one = list(reversed(self.resolve(tuple(reversed(one)))))
            other = list(reversed(self.resolve(tuple(reversed(other)))))
        return not one and not other

    def _split_tail(self, large: int, small: int, rest: list[int]) -> bool:
        """Let ``large`` be ``small`` (in its minor place, at the end) and a new atom before it… major first."""
        if self.sizes[large] % self.sizes[small]:
            return False
        tail = self.new(self.sizes[large] // self.sizes[small])
        self._means[large] = (small, *tail)
        rest.extend(reversed(tail))
        return True


class _Tracer:
    def __init__(self, graph: Graph, known: Specialised) -> None:
        self.graph = graph
        self.known = known
        self.atoms = _Atoms()
        self.axes: dict[str, Axes] = {}
        for name in (*(spec.name for spec in graph.inputs), *graph.constants):
            self.fresh(name)

    def fresh(self, name: str) -> Axes:
        self.axes[name] = tuple(self.atoms.new(size) for size in self.known.shapes[name])
        return self.axes[name]

    def trace(self) -> None:
        for node in self.graph.nodes:
            rule = _RULES.get(node.op)
            outputs = [name for name in node.outputs if name]
            if rule is not None and all(name in self.known.shapes for name in outputs):
                rule(self, node)
            for name in outputs:
                if name not in self.axes:
                    self.fresh(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.known.shapes[name]

    def constant(self, name: str) -> list[int] | None:
        value = self.known.values.get(name)
        return None if value is None else [int(x) for x in np.ravel(value)]


def _same(tracer: _Tracer, node: Node) -> None:
    """Elementwise: axes aligned from the right; axes of the same length are the same axis."""
    shape = tracer.shape(node.output(0))
    result: list[Axis | None] = [None] * len(shape)
    for name in node.inputs:
        if not name:
            continue
        axes = tracer.axes[name]
        offset = len(shape) - len(axes)
        for index, axis in enumerate(axes):
            if tracer.shape(name)[index] != shape[offset + index]:
                continue
            held = result[offset + index]
            if held is None:
                result[offset + index] = axis
            else:
                tracer.atoms.unite(held, axis)
    tracer.axes[node.output(0)] = tuple(
        tracer.atoms.new(size) if axis is None else axis for axis, size in zip(result, shape, strict=True)
    )


def _regroup(tracer: _Tracer, node: Node) -> None:
    """Reshape, Squeeze, Unsqueeze, Flatten: the same atoms in the same order, grouped anew."""
    atoms = tuple(atom for axis in tracer.axes[node.input(0)] for atom in axis)
    if prod(tracer.shape(node.input(0))) == 0:
        return
    axes = tracer.fresh(node.output(0))
    tracer.atoms.unite(atoms, tuple(atom for axis in axes for atom in axis))


def _transpose(tracer: _Tracer, node: Node) -> None:
    axes = tracer.axes[node.input(0)]
    order = node.attributes.get("perm") or tuple(reversed(range(len(axes))))
    tracer.axes[node.output(0)] = tuple(axes[index] for index in order)


def _along(tracer: _Tracer, node: Node) -> None:
    """Slice, Split, Concat, softmax…: axes whose length stays are kept, the others are new."""
    first = tracer.axes[node.input(0)]
    for name in filter(None, node.outputs):
        shape = tracer.shape(name)
        if len(shape) == len(first):
            tracer.axes[name] = tuple(
                axis if size == before else tracer.atoms.new(size)
                for axis, size, before in zip(first, shape, tracer.shape(node.input(0)), strict=True)
            )


def _concat(tracer: _Tracer, node: Node) -> None:
    rank = len(tracer.shape(node.output(0)))
    along = int(node.attributes["axis"]) % rank
    first = tracer.axes[node.input(0)]
    for name in node.inputs[1:]:
        for index, (one, other) in enumerate(zip(first, tracer.axes[name], strict=True)):
            if index != along:
                tracer.atoms.unite(one, other)
    made = tracer.atoms.new(tracer.shape(node.output(0))[along])
    tracer.axes[node.output(0)] = (*first[:along], made, *first[along + 1 :])


def _gather(tracer: _Tracer, node: Node) -> None:
    data, indices = tracer.axes[node.input(0)], tracer.axes[node.input(1)]
    axis = int(node.attributes.get("axis", 0)) % max(len(data), 1)
    tracer.axes[node.output(0)] = (*data[:axis], *indices, *data[axis + 1 :])


def _expand(tracer: _Tracer, node: Node) -> None:
    shape, before = tracer.shape(node.output(0)), tracer.shape(node.input(0))
    axes = tracer.axes[node.input(0)]
    offset = len(shape) - len(before)
    tracer.axes[node.output(0)] = tuple(
        axes[index - offset] if index >= offset and before[index - offset] == size else tracer.atoms.new(size)
        for index, size in enumerate(shape)
    )


def _matmul(tracer: _Tracer, node: Node) -> None:
    left, right = tracer.axes[node.input(0)], tracer.axes[node.input(1)]
    if len(right) == 2 and len(left) >= 2:
        tracer.axes[node.output(0)] = (*left[:-1], right[1])


def _gemm(tracer: _Tracer, node: Node) -> None:
    left, right = tracer.axes[node.input(0)], tracer.axes[node.input(1)]
    rows = left[1] if node.attributes.get("transA", 0) else left[0]
    columns = right[0] if node.attributes.get("transB", 0) else right[1]
    tracer.axes[node.output(0)] = (rows, columns)


def _recurrent(tracer: _Tracer, node: Node) -> None:
    """X[T,B,I] (layout 0) or [B,T,I]; Y, Y_h, Y_c share its time and batch axes, initial states its batch axis."""
    batch_first = bool(node.attributes.get("layout", 0))
    x = tracer.axes[node.input(0)]
    time, batch = (x[1], x[0]) if batch_first else (x[0], x[1])
    for name in filter(None, (node.input(5), node.input(6))):
        tracer.atoms.unite(batch, tracer.axes[name][0 if batch_first else 1])
    if node.input(4):
        tracer.atoms.unite(batch, tracer.axes[node.input(4)][0])
    if node.output(0):
        *_, width = (tracer.atoms.new(size) for size in tracer.shape(node.output(0)))
        directions = tracer.atoms.new(tracer.shape(node.output(0))[2 if batch_first else 1])
        outer = (batch, time, directions) if batch_first else (time, directions, batch)
        tracer.axes[node.output(0)] = (*outer, width)
    for name in filter(None, node.outputs[1:]):
        shape = tracer.shape(name)
        directions, width = tracer.atoms.new(shape[1 if batch_first else 0]), tracer.atoms.new(shape[2])
        tracer.axes[name] = (batch, directions, width) if batch_first else (directions, batch, width)


#: Operators whose output element depends on the operands' elements at the same place alone.
ELEMENTWISE: Final = frozenset({
    "Abs", "Add", "And", "Cast", "Ceil", "Celu", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu",
    "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum",
    "Swish", "Tanh", "ThresholdedRelu", "Where", "Xor",
})  # fmt: skip
_RULES: Final[dict[str, Callable[[_Tracer, Node], None]]] = {
    **dict.fromkeys(sorted(ELEMENTWISE), _same),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten"), _regroup),
    **dict.fromkeys(("Slice", "Split", "Pad", "Softmax", "LogSoftmax", "Clip", "Dropout", "CumSum"), _along),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    "LayerNormalization": _along,
    "ReverseSequence": _along,
    "Transpose": _transpose,
    "Concat": _concat,
    "Gather": _gather,
    "Expand": _expand,
    "MatMul": _matmul,
    "Dense": _matmul,
    "Gemm": _gemm,
}


def assign_roles(graph: Graph, known: Specialised) -> Roles:
    """Trace the axes of a graph specialised to concrete shapes and find its time and batch.

    The first recurrent node with a time axis of its own decides; without one, the first axis of the first
    input that has several is the batch.
    """
    tracer = _Tracer(graph, known)
    tracer.trace()
    resolve = tracer.atoms.resolve
    axes = {name: tuple(resolve(axis) for axis in each) for name, each in tracer.axes.items()}
    time: Axis = ()
    batch: Axis | None = None
    for node in graph.nodes:
        if node.op not in ("LSTM", "GRU", "RNN"):
            continue
        x = axes[node.input(0)]
        first, second = (x[1], x[0]) if node.attributes.get("layout", 0) else (x[0], x[1])
        if batch is None:
            batch = second
        if len(first) == 1:
            time, batch = first, second
            break
    if batch is None:
        several = [axes[spec.name] for spec in graph.inputs if len(known.shapes[spec.name]) > 1]
        batch = several[0][0] if several else ()
    sizes = dict(enumerate(tracer.atoms.sizes))
    return Roles(axes, sizes, time, batch)
