"""Single steps of cells that were written out become recurrent nodes of one step."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ...graph import Graph, Node
from .affine import NotAffineError, affine
from .agreement import agrees
from .cells import Cell, Gates, gru_forms, lstm_forms, rnn_forms, weighted
from .cuts import CutTrace
from .elements import Elements, Ids, Kind, TooManyError
from .surroundings import followed
from .trace import FUNCTIONS, MOVES, Trace
from .writing import is_state_form

#: Operators of a projection of x.
LINEAR: Final = MOVES | {"Add", "Gemm", "MatMul", "Sum"}
#: Operators that end a gate or begin the sum it is applied to.
GATES: Final = frozenset(FUNCTIONS) | {"Clip", "Min", "Max", "Sub", "Div"}


@dataclass(frozen=True)
class Piece:
    """A tensor, or what is at one place of an axis of it, which then has one ``length`` whatever is fed."""

    name: str
    shape: tuple[int, ...]
    axis: int = -1
    place: int = 0
    length: int = 0


@dataclass(frozen=True, eq=False)
class Step:
    """A written-out step and the tensors it reads and makes. ``h_old`` is '' for a state of zeros."""

    cell: Cell
    x: tuple[Piece, ...]  # side by side
    h_old: str
    c_old: str
    h_new: str
    c_new: str
    inner: frozenset[str]  # tensors that nothing else reads
    shapes: dict[str, tuple[int, ...]]
    dtype: np.dtype[Any]


def find_steps(graph: Graph) -> list[list[Step]]:
    """The steps written out in a graph, each before those that go on from it, and in all the ways it can be read."""
    anchors = list(_anchors(graph))
    if not anchors:
        return []
    traces = [CutTrace(graph.nodes, around, Elements()) for around in followed(graph)]
    finder = _Finder(graph, traces)
    try:
        for op, name in anchors:
            finder.look_at(op, name)
    except TooManyError:
        pass  # what was found until then is good
    return finder.found


def _anchors(graph: Graph) -> Iterator[tuple[str, str]]:
    """Tensors that may be new states: what makes them, and what its operands come from, allow it."""
    producers = graph.producers()
    weights = [
        (graph.constants[name].shape, graph.constants[name].flat[:16].tobytes())  # enough to tell most apart
        for node in graph.nodes
        if node.op in ("MatMul", "Gemm")
        for name in node.inputs[:2]
        if name in graph.constants
    ]
    if not weights:
        return
    repeated = len(set(weights)) < len(weights)

    blended = {name for node in graph.nodes if node.op in ("Mul", "Sub") for name in node.inputs}  # gates, not states

    def makers(node: Node) -> list[str]:
        return [_origin(name, producers) for name in node.inputs]

    for node in graph.nodes:
        name = node.output(0)
        if not name or node.domain:
            continue
        if node.op == "Mul" and any(op in GATES for op in makers(node)):
            yield "LSTM", name
        elif node.op in ("Add", "Sub") and "Mul" in makers(node):
            yield "GRU", name
        elif repeated and node.op in FUNCTIONS and name not in blended and set(makers(node)) & {"Add", "Gemm", "Sum"}:
            yield "RNN", name


def _origin(name: str, producers: dict[str, Node]) -> str:
    """The operator that a tensor's elements come from."""
    while name in producers and (producers[name].op in MOVES or producers[name].op == "Cast"):
        name = producers[name].input(0)
    return producers[name].op if name in producers else ""


class _Finder:
    def __init__(self, graph: Graph, traces: Sequence[CutTrace]) -> None:
        self.graph = graph
        self.traces = traces
        self.found: list[list[Step]] = []  # the ways to read each
        self.partner: dict[str, str] = {}  # h' by c' of the steps found
        self.places = {name: k for k, node in enumerate(graph.nodes) for name in node.outputs if name}
        self.readers: dict[str, list[Node]] = graph.consumers()
        self.outputs = {spec.name for spec in graph.outputs}
        self.sources = {spec.name for spec in graph.inputs}

    def look_at(self, op: str, name: str) -> None:
        """Find the step whose new hidden state a tensor is."""
        readings = [list(self._steps(trace, op, name)) for trace in self.traces]
        steps = [
            one
            for one, *others in zip(*readings, strict=False)
            if all(_same(one, other) for other in others) and agrees(self.traces[0], one.cell, one.dtype)
        ]
        if not steps:
            return
        self.found.append(steps)
        if op == "RNN":
            return  # it may still turn out to be a gate
        for trace in self.traces:
            for new in filter(None, (steps[0].h_new, steps[0].c_new)):
                trace.leaf(new)
        if steps[0].c_new:
            self.partner[steps[0].c_new] = steps[0].h_new

    def _steps(self, trace: Trace, op: str, name: str) -> Iterator[Step]:
        """The step that makes a tensor, if one does; of an RNN all ways to read it, since any layer looks like one."""
        ids = trace.ids(name)
        shape = trace.around.shape(name)
        if (
            ids is None
            or not ids.size
            or shape is None
            or not is_state_form(shape)
            or trace.around.known[name].dtype.kind != "f"
        ):
            return
        rows = ids.reshape(-1, shape[-1])
        forms = {"LSTM": lstm_forms, "GRU": gru_forms, "RNN": rnn_forms}[op](trace.table, rows)
        for gates in forms:
            for h_old in self._old_states(trace, gates):
                cell = weighted(trace.table, gates, h_old)
                step = None if cell is None else self._named(trace, name, cell)
                if step is not None:
                    yield step
                    if op != "RNN":
                        return

    # --- which of its inputs is the state ----------------------------------------------------------------------------

    def _old_states(self, trace: Trace, gates: Gates) -> list[Ids | None]:
        """What may be h: told by the form, else by what goes with the old cell state. Empty where it is not told."""
        if gates.op == "GRU":
            return [gates.h_old]
        candidates = self._candidates(trace, gates)
        if gates.op == "RNN":
            return [*candidates.values(), None]
        assert gates.c_old is not None
        c_name = trace.holder(gates.c_old)
        if c_name is None:
            return []
        if c_name in self.partner:
            return [ids for name, ids in candidates.items() if name == self.partner[c_name]]
        if trace.value(c_name) is not None:
            return [None]
        if len(candidates) == 1:
            return list(candidates.values())
        roots = {name: self._root(trace, name) for name in (*candidates, c_name)}
        siblings = [name for name in candidates if roots[name] == roots[c_name]]
        kin = siblings or [name for name in candidates if self._descends(trace, name, roots[c_name])]
        return [candidates[kin[0]]] if len(kin) == 1 and roots[kin[0]] in (roots[c_name], *self.sources) else []

    def _candidates(self, trace: Trace, gates: Gates) -> dict[str, Ids]:
        """Tensors of H elements a row that the gates multiply with matrices."""
        H = gates.h_new.shape[1]
        try:
            form = affine(trace.table, np.concatenate(gates.inputs, axis=1), matrices=False)
        except NotAffineError:
            return {}
        found = {}
        for basis, _ in form.products:
            for columns in (slice(0, H), slice(basis.shape[1] - H, basis.shape[1])) if basis.shape[1] >= H else ():
                name = trace.holder(basis[:, columns])
                if name is not None and not trace.table.all_are(basis[:, columns], Kind.CONSTANT):
                    found[name] = basis[:, columns]
        return found

    def _descends(self, trace: Trace, name: str, root: str) -> bool:
        """Whether a tensor comes from a graph input that could be a state as ``root`` is one: of its shape."""
        seen = {name}
        waiting = [name]
        while waiting:
            name = waiting.pop()
            if name in self.sources and trace.around.shape(name) == trace.around.shape(root):
                return True
            more = set(trace.producers[name].inputs) - seen if name in trace.producers else set()
            seen |= more
            waiting.extend(more)
        return False

    def _root(self, trace: Trace, name: str) -> str:
        while name in trace.producers and trace.producers[name].op in MOVES:
            name = trace.producers[name].input(0)
        return name

    # --- names -------------------------------------------------------------------------------------------------------

    def _named(self, trace: Trace, h_new: str, cell: Cell) -> Step | None:
        """The step with the names of its tensors, if they exist and nothing reads what is within."""
        x = tuple(_held(trace, cell.x))
        names = [piece.name for piece in x if piece is not None]
        h_old = "" if cell.h_old is None else trace.holder(cell.h_old)
        c_old, c_new = ("" if ids is None else trace.holder(ids) for ids in (cell.c_old, cell.c_new))
        if not x or len(names) < len(x) or h_old is None or c_old is None or c_new is None:
            return None
        old, new = [tuple(filter(None, states)) for states in ((h_old, c_old), (h_new, c_new))]
        first = min(self.places[name] for name in new)
        early = all(self.places.get(name, -1) < first for name in (*names, *old))
        shapes = {name: trace.around.known[name].shape for name in (*old, *new)}
        if not early or not all(is_state_form(shape) for shape in (*shapes.values(), *(p.shape for p in x if p))):
            return None
        inner = self._inner(trace, new, (*names, *old), old)
        if inner is None:
            return None
        dtype = trace.around.known[h_new].dtype
        return Step(cell, tuple(p for p in x if p), h_old, c_old, h_new, c_new, inner, shapes, dtype)

    def _inner(
        self, trace: Trace, new: Sequence[str], borders: Sequence[str], states: Sequence[str]
    ) -> frozenset[str] | None:
        """The tensors between the borders and the new states that nothing else reads; None if a gate is read.

        What is computed of x alone, or moved out of a state, may have other readers: it stays for them.
        """
        inner: set[str] = set()
        waiting = list(new)
        while waiting:
            name = waiting.pop()
            known = name in inner or name in borders or name not in trace.producers or name in trace.leaves
            if not known and trace.value(name) is None:
                node = trace.producers[name]
                inner.add(name)
                factors = node.inputs[:2] if node.op in ("MatMul", "Gemm") else ()
                waiting.extend(i for i in node.inputs if i not in factors or _reaches(trace, i, states))
        makers = {id(trace.producers[name]): trace.producers[name] for name in inner}
        late = set(states)
        for node in sorted(makers.values(), key=lambda node: self.places[next(filter(None, node.outputs))]):
            if any(name in late for name in node.inputs):
                late |= set(node.outputs)
        while shared := [node for node in makers.values() if self._is_read(node, new, makers)]:
            for node in shared:
                leaves = node.op in MOVES and trace.table.all_are(_traced(trace, node.output(0)), Kind.LEAF)
                if not leaves and (node.op not in LINEAR or late & set(node.outputs)):
                    return None
                del makers[id(node)]
        return frozenset(name for node in makers.values() for name in node.outputs if name)

    def _is_read(self, node: Node, new: Sequence[str], makers: Container[int]) -> bool:
        """Whether anything but some nodes reads what a node makes, new states aside."""
        return any(
            name in self.outputs or any(id(reader) not in makers for reader in self.readers.get(name, ()))
            for name in set(node.outputs) - {"", *new}
        )


def _reaches(trace: Trace, name: str, states: Sequence[str]) -> bool:
    """Whether what a matrix is multiplied with has part of a state in it, or is worked out: all else is x."""
    waiting, seen = [name], {name}
    while waiting:
        name = waiting.pop()
        node = trace.producers.get(name)
        if name in states or (node is not None and node.op not in MOVES and node.op in ("Add", "Mul")):
            return True
        more = set(node.inputs) - seen if node is not None and node.op in MOVES else set()
        seen |= more
        waiting.extend(more)
    return False


def _traced(trace: Trace, name: str) -> Ids:
    ids = trace.found.get(name)
    return np.zeros(0, np.int64) if ids is None else ids


def _same(one: Step, other: Step) -> bool:
    """Whether two readings, at different sizes, are of the same step."""
    x = [
        [(piece.name, piece.axis, piece.place, piece.length, len(piece.shape)) for piece in each.x]
        for each in (one, other)
    ]
    if x[0] != x[1]:
        return False
    names = [(each.h_old, each.c_old, each.h_new, each.c_new, each.inner) for each in (one, other)]
    return names[0] == names[1] and one.cell.alike(other.cell)


def _held(trace: Trace, x: Ids) -> Iterator[Piece | None]:
    """The tensors whose elements, side by side, are x[B,I]; None for a part that no tensor holds."""
    whole = _piece(trace, x)
    if whole is not None:
        yield whole
        return
    leaves, _, _ = trace.table.operands(x[0])
    kinds = trace.table.kinds(x[0])
    changes = np.flatnonzero((np.diff(leaves) != 0) | (np.diff(kinds) != 0)) + 1
    for part in np.split(np.arange(x.shape[1]), changes):
        yield _piece(trace, x[:, part])


def _piece(trace: Trace, x: Ids) -> Piece | None:
    """The tensor that holds x[B,I], or the leaf that has it at one place of an axis."""
    name = trace.holder(x)
    if name is not None:
        return Piece(name, trace.around.known[name].shape)
    leaves, places, _ = trace.table.operands(x)
    if not trace.table.all_are(x, Kind.LEAF) or (leaves != leaves.flat[0]).any():
        return None
    name = trace.leaf_names[int(leaves.flat[0])]
    ids = trace.leaves[name]
    for axis, place in enumerate(np.unravel_index(int(places.flat[0]), ids.shape)):
        cut = np.take(ids, int(place), axis)
        if ids.shape[axis] > 1 and cut.size == x.size and np.array_equal(cut.ravel(), x.ravel()):
            return Piece(name, cut.shape, axis, int(place), ids.shape[axis])
    return None
