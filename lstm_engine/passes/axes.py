"""Which axis is time, which is batch: how the axes of all tensors of a specialised graph hang together.

Every axis is a sequence of atoms, major first; axes of length 1 have none. Reshape regroups atoms,
Transpose reorders axes, elementwise operators make atoms of their operands the same. An LSTM says of its
input's axes which atoms are time (T) and batch (B). From there, each tensor has one place in memory:
rows [T][B][width], whatever order its file gives the axes; operators that only regroup or reorder axes
then move nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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

    def aligned(self, name: str, result: str, but: int | None = None) -> bool:
        """Whether a tensor's axes, counted from the last, are those of ``result`` or of length 1.

        ``but``: an axis of ``result`` that need not be.
        """
        pairs = zip(reversed(self.axes[name]), reversed([*enumerate(self.axes[result])]), strict=False)
        return all(own in ((), other) or index == but for own, (index, other) in pairs)

    def size(self, atoms: tuple[int, ...]) -> int:
        """Number of elements along atoms."""
        return prod(self.sizes[atom] for atom in atoms)


class _Atoms:
    """Atoms that may turn out to be the same as another, or as several smaller ones.

    No tensor ever has an atom twice: a sum of a square and its transpose, say, does not make rows and columns one.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._means: dict[int, Axis] = {}
        self._holders: list[set[str]] = []  # of each atom the tensors that have it

    def new(self, size: int) -> Axis:
        if size == 1:
            return ()
        self.sizes.append(size)
        self._holders.append(set())
        return (len(self.sizes) - 1,)

    def hold(self, tensor: str, axes: Axes) -> Axes:
        """The axes of a new tensor; one with an atom that an earlier axis has already is made an axis of its own."""
        held: list[Axis] = []
        seen: set[int] = set()
        for axis in map(self.resolve, axes):
            if not seen.isdisjoint(axis) or len(set(axis)) < len(axis):
                axis = self.new(prod(self.sizes[atom] for atom in axis))
            seen.update(axis)
            held.append(axis)
        for atom in seen:
            self._holders[atom].add(tensor)
        return tuple(held)

    def _apart(self, a: int, b: int) -> bool:
        """Whether some tensor has both."""
        return not self._holders[a].isdisjoint(self._holders[b])

    def _share(self, kept: int, gone: int) -> None:
        """What held ``gone`` holds ``kept`` from now on."""
        small, large = sorted((self._holders[kept], self._holders[gone]), key=len)
        large |= small
        self._holders[kept] = large

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
        """Make two runs of atoms of the same total size one; False where they have no common division or lie apart."""
        one, other = list(reversed(self.resolve(left))), list(reversed(self.resolve(right)))
        while one and other:
            a, b = one.pop(), other.pop()
            if a == b:
                continue
            if self._apart(a, b):
                return False
            if self.sizes[a] == self.sizes[b]:
                self._means[max(a, b)] = (min(a, b),)
                self._share(min(a, b), max(a, b))
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
        for atom in tail:
            self._holders[atom] = set(self._holders[large])
        self._share(small, large)
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
        self.axes[name] = self.atoms.hold(name, tuple(self.atoms.new(size) for size in self.known.shapes[name]))
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
                self.axes[name] = self.atoms.hold(name, self.axes[name])

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
    """x[..., M, K]·y[..., K, N]: the axes before the matrices are those of whichever operand is not repeated."""
    names = node.input(0), node.input(3 if node.op == "QLinearMatMul" else 1)
    left, right = (tracer.axes[name] for name in names)
    shape = tracer.shape(node.output(0))
    if min(len(left), len(right)) < 2:
        return
    wanted: list[Axis] = []
    for place, size in zip(range(-len(shape), -2), shape, strict=False):
        held = [
            axes[place]
            for name, axes in zip(names, (left, right), strict=True)
            if -place <= len(axes) and tracer.shape(name)[place] == size
        ]
        if len(held) == 2:
            tracer.atoms.unite(*held)
        wanted.append(held[0])
    made: list[Axis] = []
    for axis, size in zip((*wanted, left[-2], right[-1]), shape, strict=True):  # no atom twice, as in x·xᵀ
        taken = {atom for each in made for atom in tracer.atoms.resolve(each)}
        made.append(tracer.atoms.new(size) if taken & set(tracer.atoms.resolve(axis)) else axis)
    tracer.axes[node.output(0)] = tuple(made)


def _gemm(tracer: _Tracer, node: Node) -> None:
    left, right = tracer.axes[node.input(0)], tracer.axes[node.input(1)]
    rows = left[1] if node.attributes.get("transA", 0) else left[0]
    columns = right[0] if node.attributes.get("transB", 0) else right[1]
    tracer.axes[node.output(0)] = (rows, columns)


def _spatial(tracer: _Tracer, node: Node) -> None:
    """Convolution and pooling of x[N,C,...]: rows stay rows, and so does a spatial axis that keeps its length."""
    batch, channels, *spatial = tracer.axes[node.input(0)]
    before = tracer.shape(node.input(0))
    for name in filter(None, node.outputs):
        shape = tracer.shape(name)
        mixed = node.op.startswith(("Conv", "QLinearConv"))
        made = tracer.atoms.new(shape[1]) if mixed else channels
        kept = (a if n == m else tracer.atoms.new(n) for a, n, m in zip(spatial, shape[2:], before[2:], strict=True))
        tracer.axes[name] = (batch, made, *kept)


def _causal(tracer: _Tracer, node: Node) -> None:
    """Windows of x[N,C,...] that end at the present step: the result has x's steps, and the context its rows."""
    along = int(node.attributes["axis"])
    context = tracer.axes[node.input(1)]
    for axis, (one, other) in enumerate(zip(tracer.axes[node.input(0)], context, strict=True)):
        if axis != along:
            tracer.atoms.unite(one, other)
    shape, before = tracer.shape(node.output(0)), tracer.shape(node.input(0))
    tracer.axes[node.output(0)] = tuple(
        tracer.atoms.new(m) if m != n or (node.op.endswith("Conv") and axis == 1) else kept
        for axis, (kept, m, n) in enumerate(zip(tracer.axes[node.input(0)], shape, before, strict=True))
    )
    if node.output(1):
        tracer.axes[node.output(1)] = context


def _one_hot(tracer: _Tracer, node: Node) -> None:
    """The axes of the indices, and a new one."""
    indices, shape = tracer.axes[node.input(0)], tracer.shape(node.output(0))
    along = int(node.attributes.get("axis", -1)) % len(shape)
    tracer.axes[node.output(0)] = (*indices[:along], tracer.atoms.new(shape[along]), *indices[along:])


def _reduce(tracer: _Tracer, node: Node) -> None:
    """Axes that are not reduced stay."""
    before = tracer.axes[node.input(0)]
    gone = _reduced(tracer, node, len(before))
    for name in filter(None, node.outputs):
        if len(tracer.shape(name)) == len(before):
            tracer.axes[name] = tuple(() if k in gone else axis for k, axis in enumerate(before))
        else:
            tracer.axes[name] = tuple(axis for k, axis in enumerate(before) if k not in gone)


def _reduced(tracer: _Tracer, node: Node, rank: int) -> set[int]:
    if node.op in ("ArgMax", "ArgMin"):
        return {int(node.attributes.get("axis", 0)) % rank}
    given = tracer.constant(node.input(1)) if node.input(1) else None
    if not given:
        return set() if node.attributes.get("noop_with_empty_axes", 0) else set(range(rank))
    return {axis % rank for axis in given}


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
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Cast", "Ceil", "Celu", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor",
    "Gelu",
    "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "QLinearAdd", "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QLinearWhere",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt",
    "Sub", "Sum",
    "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
})  # fmt: skip
_RULES: Final[dict[str, Callable[[_Tracer, Node], None]]] = {
    **dict.fromkeys(sorted(ELEMENTWISE), _same),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten"), _regroup),
    **dict.fromkeys(("Slice", "Split", "Pad", "Tile", "Softmax", "LogSoftmax", "Clip", "Dropout", "CumSum"), _along),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"), _spatial),
    **dict.fromkeys(("ConvInteger", "QLinearConv"), _spatial),
    **dict.fromkeys(("GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"), _spatial),
    **dict.fromkeys(("CausalConv", "CausalQLinearConv", "CausalMaxPool", "CausalAveragePool"), _causal),
    **dict.fromkeys(
        ("ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"), _reduce
    ),
    **dict.fromkeys(("ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin"), _reduce),
    **dict.fromkeys(("ScatterElements", "ScatterND", "TopK", "Hardmax", "Trilu", "GatherElements"), _along),
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization", "RMSNormalization", "LRN"), _along),
    **dict.fromkeys(("LpNormalization", "MeanVarianceNormalization", "BatchNormalization", "CumProd"), _along),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Resize"), _along),
    "CausalCumSum": _causal,
    "LayerNormalization": _along,
    "ReverseSequence": _along,
    "Transpose": _transpose,
    "Concat": _concat,
    "Gather": _gather,
    "OneHot": _one_hot,
    "Expand": _expand,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Dense": _matmul,
    "Gemm": _gemm,
}


def assign_roles(graph: Graph, known: Specialised) -> Roles:
    """Trace the axes of a graph specialised to concrete shapes and find its time and batch.

    The first node that runs along an axis of its own decides, one that an input's open axis is before others, a
    recurrent one before a window that looks back, and one that runs forward before others; without any, the first axis
    of the first input that has several is the batch.
    """
    tracer = _Tracer(graph, known)
    tracer.trace()
    resolve = tracer.atoms.resolve
    axes = {name: tuple(resolve(axis) for axis in each) for name, each in tracer.axes.items()}
    runs = [*running_axes(graph, axes)]
    open_ = {
        axis
        for spec in graph.inputs
        for axis, size in zip(axes[spec.name], spec.shape or (), strict=False)
        if not isinstance(size, int)
    }
    own = [run for run in runs if len(run[0]) == 1]
    time, batch = next((run for run in own if run[0] in open_), next(iter(own or runs), ((), None)))
    if len(time) != 1:
        time = ()
    if batch is None:
        several = [axes[spec.name] for spec in graph.inputs if len(known.shapes[spec.name]) > 1]
        batch = several[0][0] if several else ()
    ports = [axes[spec.name] for spec in (*graph.inputs, *graph.outputs)]
    time = time if all(_is_an_axis(time, each) for each in ports) else ()
    batch = batch if all(_are_axes(batch, each) for each in ports) else ()
    sizes = dict(enumerate(tracer.atoms.sizes))
    return Roles(axes, sizes, time, batch)


def running_axes(graph: Graph, axes: Mapping[str, Axes]) -> Iterator[tuple[Axis, Axis | None]]:
    """The axes that nodes run along, and their batch axes: first the recurrent ones', those that run forward."""
    recurrent = [node for node in graph.nodes if node.op in ("LSTM", "GRU", "RNN")]
    for node in sorted(recurrent, key=lambda node: node.attributes.get("direction", "forward") != "forward"):
        x = axes[node.input(0)]
        yield (x[1], x[0]) if node.attributes.get("layout", 0) else (x[0], x[1])
    for node in graph.nodes:
        if node.op.startswith("Causal"):
            x = axes[node.input(0)]
            yield x[int(node.attributes["axis"])], x[0]


def _is_an_axis(role: Axis, axes: Axes) -> bool:
    """Whether a role is one axis of a tensor, or none of it at all."""
    return role in axes or all(role_atom not in axis for axis in axes for role_atom in role)


def _are_axes(role: Axis, axes: Axes) -> bool:
    """Whether a role is whole axes of a tensor, in order, or not wholly in it."""
    touched = [axis for axis in axes if not set(role).isdisjoint(axis)]
    return [atom for axis in touched for atom in axis] == [*role] or not set(role) <= {a for axis in axes for a in axis}
