"""Which graph input is which output's past: recurrent state that a stream can carry by itself.

An exporter hands states in and out through Slice, Squeeze, Concat and the like. Those only move elements, so they
are followed with element numbers in place of values. A pair needs evidence, the first of these that there is:

1. every element of the input is where a recurrent node's initial state is read, and the output has that node's
   final state in the very same places (the node then keeps its state itself);
2. the same of some of its elements, or with arithmetic on the way in (a reset mask) or a choice on the way out;
3. the output holds elements of the input in other places beside new ones: a cache that moves on;
4. shape and type agree, the output depends on the input, the input has no time axis, and the names are those of one
   state before and after a step (passes/state_names.py).

Equal shapes alone are none: an autoencoder gives back what it takes. Where several outputs or inputs would do, names
decide if they can, and nothing is guessed if they cannot.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from math import prod
from typing import Final

import numpy as np

from ..errors import LstmEngineError, StateError, listed
from ..graph import Graph, Node, reads
from ..reference import evaluate
from .axes import ELEMENTWISE, Roles, assign_roles
from .context import CAUSAL
from .shapes import Specialised
from .state_names import Likeness, likeness

RECURRENT: Final = ("LSTM", "GRU", "RNN")
#: Index of the initial state among a recurrent node's inputs, of the final one among its outputs.
SLOTS: Final[Mapping[str, tuple[int, int]]] = {"h": (5, 1), "c": (6, 2)}
#: The same of what a window that looks back remembers (passes/context.py); an input is to keep that.
_CONTEXT: Final[Mapping[str, tuple[int, int]]] = {"context": (1, 1)}
#: Operators that only move elements, and which of their inputs those are of (None: of all).
_MOVES: Final[Mapping[str, tuple[int, ...] | None]] = {
    "Concat": None,
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    **dict.fromkeys(
        ("Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
        (0,),
    ),
}
#: States are looked for among tensors of at most this many elements, and this many are numbered in all.
MOST_ELEMENTS: Final = 1 << 22
MOST_NUMBERS: Final = 1 << 24
MOST_CANDIDATES: Final = 1 << 16  # inputs times outputs that are looked at
UNKNOWN: Final = -1  # number of an element that was computed


class Change(IntEnum):
    """What happened to elements on their way."""

    NONE = 0
    CHOICE = 1  # Where: it is they or others
    ARITHMETIC = 2


class Evidence(IntEnum):
    """Why an input and an output are taken for a pair, the strongest last."""

    NONE = 0
    NAMES_OF_TIME = 1
    NAMES_OF_STATE = 2
    MOVES_ON = 3
    CELLS = 4
    WHOLE = 5


@dataclass(frozen=True)
class CellState:
    """One state array of one recurrent node: which elements of the pair's input it is."""

    node: str  # the node's first named output, which is unique
    slot: str  # 'h' or 'c'
    elements: np.ndarray  # [D, B, H] places in the flattened input


@dataclass(frozen=True)
class StatePair:
    """An input that is an output's past.

    ``cells`` says which layers' states it consists of and nothing else; () if it is to be kept as it is.
    """

    input: str
    output: str
    cells: tuple[CellState, ...]


@dataclass(frozen=True)
class Pairing:
    """The pairs of a graph, and for each input that might be a state but is not surely one a line that says why."""

    pairs: tuple[StatePair, ...]
    doubts: tuple[str, ...]


def _slots(node: Node) -> Mapping[str, tuple[int, int]]:
    return SLOTS if node.op in RECURRENT else _CONTEXT if node.op in CAUSAL else {}


def node_key(node: Node) -> str:
    """A name that tells a node from all others."""
    return next(name for name in node.outputs if name)


def pair_states(graph: Graph, known: Specialised, declared: Mapping[str, str | None] | None = None) -> Pairing:
    """The pairs there is evidence for at one set of shapes, and those the caller declares {input: output}.

    An input declared None is no state.

    Raises StateError for a declared pair that names no input or output, or whose shapes or types differ.
    """
    declared = declared or {}
    check_declared(graph, declared, known)
    search = _Search(graph, known)
    free = [spec.name for spec in graph.inputs if spec.name not in declared]
    found, doubts = search.pairs(free, [spec.name for spec in graph.outputs if spec.name not in declared.values()])
    found |= {source: search.pair(source, result) for source, result in declared.items() if result is not None}
    return Pairing(tuple(found[spec.name] for spec in graph.inputs if spec.name in found), tuple(doubts))


def check_declared(graph: Graph, declared: Mapping[str, str | None], known: Specialised | None = None) -> None:
    """Raise StateError for pairs that name no input or output, or that differ in shape or type as far as is known."""
    inputs, outputs = {s.name for s in graph.inputs}, {s.name for s in graph.outputs}
    faults = []
    for source, result in declared.items():
        if source not in inputs:
            faults.append(f"'{source}' is not an input (inputs: {', '.join(sorted(inputs))})")
        elif result is None:
            continue
        elif result not in outputs:
            faults.append(f"'{result}' is not an output (outputs: {', '.join(sorted(outputs))})")
        elif known is None or result not in known.shapes:
            continue
        elif known.shapes[source] != known.shapes[result]:
            faults.append(f"'{source}' {known.shapes[source]} and '{result}' {known.shapes[result]} differ in shape")
        elif known.dtypes[source] != known.dtypes[result]:
            faults.append(f"'{source}' is {known.dtypes[source]}, '{result}' {known.dtypes[result]}")
    if faults:
        raise StateError(listed(f"states= of {graph.origin}", faults))


class _Search:
    """The evidence for each pair of an input and an output."""

    def __init__(self, graph: Graph, known: Specialised) -> None:
        self.graph = graph
        self.known = known
        self.trace = _Trace(graph, known)
        self.cells = {spec.name: tuple(self.trace.cells_fed_by(spec.name)) for spec in graph.inputs}
        self.makers = graph.producers()
        self._ancestors: dict[str, set[str]] = {}

    def pairs(self, inputs: list[str], outputs: list[str]) -> tuple[dict[str, StatePair], list[str]]:
        """Each input's one best output that is no other input's; second, the doubts."""
        if len(inputs) * len(outputs) > MOST_CANDIDATES:
            return {}, []
        weighed = {source: {result: self.evidence(source, result) for result in outputs} for source in inputs}
        best = {source: max(each.values(), default=Evidence.NONE) for source, each in weighed.items()}
        if max(best.values(), default=Evidence.NONE) > Evidence.NAMES_OF_TIME or len(self.graph.outputs) < 2:
            best = {s: Evidence.NONE if e == Evidence.NAMES_OF_TIME else e for s, e in best.items()}
        if sum(map(bool, best.values())) == len(self.graph.inputs):  # what would it be fed?
            best = {s: e if e > Evidence.NAMES_OF_STATE else Evidence.NONE for s, e in best.items()}
        found: dict[str, StatePair] = {}
        doubts = []
        for source, evidence in sorted(best.items(), key=lambda item: -item[1]):
            if evidence == Evidence.NONE:
                continue
            used = {pair.output for pair in found.values()}
            equal = [r for r in outputs if weighed[source][r] == evidence and r not in used]
            chosen = self._chosen(source, equal, evidence)
            rivals = [s for s in inputs if s != source and s not in found and weighed[s].get(chosen) == best[s] > 0]
            if not equal:
                continue
            if chosen and (evidence == Evidence.WHOLE or not rivals or self._named_alike(source, chosen, rivals)):
                found[source] = self.pair(source, chosen)
            else:
                doubts.append(self._doubt(source, equal, rivals))
        return found, doubts

    def pair(self, source: str, result: str) -> StatePair:
        """The pair; its cells where they are all there is to it."""
        whole = self._structural(source, result) == Evidence.WHOLE
        pair = StatePair(source, result, self.cells[source] if whole else ())
        if any(cell.slot not in SLOTS for cell in pair.cells) or self._is_read_without(pair):
            return replace(pair, cells=())
        return pair

    def _is_read_without(self, pair: StatePair) -> bool:
        """Whether anything but its cells reads a pair's input, or the caller."""
        rest = without_states(self.graph, (pair,))
        given = any(pair.input == spec.name for spec in self.graph.outputs)
        return given or any(pair.input in reads(node) for node in rest.nodes)

    def _chosen(self, source: str, equal: list[str], evidence: Evidence) -> str:
        """Of outputs with the same evidence the one whose name says so; '' where that leaves several."""
        if not equal or len(equal) == 1 or evidence == Evidence.WHOLE:  # the very same elements: either will do
            return max(equal, key=lambda result: likeness(source, result), default="")
        alike = [likeness(source, result) for result in equal]
        return equal[alike.index(max(alike))] if alike.count(max(alike)) == 1 else ""

    def _named_alike(self, source: str, result: str, rivals: list[str]) -> bool:
        """Whether the names make this input the output's past rather than the rivals."""
        return all(likeness(rival, result) < likeness(source, result) for rival in rivals)

    def _doubt(self, source: str, equal: list[str], rivals: list[str]) -> str:
        ways = " or ".join(f"'{result}'" for result in equal)
        others = f" (so may {', '.join(map(repr, rivals))})" if rivals else ""
        return (
            f"input '{source}' {list(self.known.shapes[source])} may be the past of output {ways}{others}: "
            f"say load(..., states={{{source!r}: {equal[0]!r}}}), or {{{source!r}: None}} if it is no state"
        )

    def evidence(self, source: str, result: str) -> Evidence:
        """The strongest reason to take the two for a pair."""
        shapes, dtypes = self.known.shapes, self.known.dtypes
        if shapes.get(result) != shapes[source] or dtypes[result] != dtypes[source] or not prod(shapes[source]):
            return Evidence.NONE
        structural = self._structural(source, result)
        if structural:
            return structural
        alike = likeness(source, result)
        if not alike or result in self.known.values or self._timed(source) or not self._depends(result, source):
            return Evidence.NONE
        return Evidence.NAMES_OF_STATE if alike == Likeness.STATE else Evidence.NAMES_OF_TIME

    def _structural(self, source: str, result: str) -> Evidence:
        cells, size = self.cells[source], prod(self.known.shapes[source])
        back = self.trace.tracks.get(result)
        if back is None or source not in self.trace.first:
            return Evidence.NONE
        places = back.numbers.ravel()
        returned = [cell for cell in cells if self.trace.returns(places, cell)]
        covered = np.sort(np.concatenate([np.empty(0, np.int64), *(cell.elements.ravel() for cell in cells)]))
        if cells and len(returned) == len(cells) and np.array_equal(covered, np.arange(size)):
            changes = max(back.change, *(self.trace.change_into(cell) for cell in cells))
            if changes == Change.NONE:
                return Evidence.WHOLE
        if returned and back.change <= Change.CHOICE:
            return Evidence.CELLS
        own = (places >= self.trace.first[source]) & (places < self.trace.first[source] + size)
        moved = own & (places - self.trace.first[source] != np.arange(size))
        if back.change == Change.NONE and own.any() and not own.all() and np.array_equal(own, moved):
            return Evidence.MOVES_ON
        return Evidence.NONE

    def _timed(self, source: str) -> bool:
        """Whether an input has the sequence's own time axis, as data have and states have not."""
        return self._roles.form(source).timed

    @cached_property
    def _roles(self) -> Roles:
        return assign_roles(self.graph, self.known)

    def _depends(self, result: str, source: str) -> bool:
        """Whether an output's values depend on an input's."""
        if result not in self._ancestors:
            wanted, waiting = {result}, [result]
            while waiting:
                maker = self.makers.get(waiting.pop())
                if maker is not None and maker.op not in ("Shape", "Size"):
                    new = set(reads(maker)) - wanted
                    wanted |= new
                    waiting.extend(new)
            self._ancestors[result] = wanted
        return source in self._ancestors[result] and source != result


@dataclass(frozen=True)
class _Track:
    """Where a tensor's elements come from, by number, and what happened to them on the way."""

    numbers: np.ndarray
    change: Change = Change.NONE


@dataclass
class _Trace:
    """Element numbers of every tensor that has elements of inputs or of recurrent nodes' final states.

    Inputs are numbered first, then final states.
    """

    graph: Graph
    known: Specialised
    tracks: dict[str, _Track] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)  # number of each input's first element
    final: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    inputs_end: int = 0
    _next: int = 0
    _made: int = 0

    def __post_init__(self) -> None:
        for spec in self.graph.inputs:
            numbers = self._new(spec.name)
            if numbers is not None:
                self.first[spec.name] = self._next - numbers.size
                self.tracks[spec.name] = _Track(numbers)
        self.inputs_end = self._next
        for node in self.graph.nodes:
            if node.op in RECURRENT:
                self._recurrent(node)
            elif node.op in CAUSAL:
                self._context(node)
            elif node.op in _MOVES:
                self._moved(node)
            elif node.op in ELEMENTWISE:
                self._elementwise(node)

    def _affords(self, size: int) -> bool:
        fits = size <= MOST_ELEMENTS and self._made + size <= MOST_NUMBERS
        self._made += size if fits else 0
        return fits

    def _new(self, name: str) -> np.ndarray | None:
        shape = self.known.shapes[name]
        size = prod(shape)
        if not self._affords(size):
            return None
        self._next += size
        return np.arange(self._next - size, self._next).reshape(shape)

    def _recurrent(self, node: Node) -> None:
        for slot, (_, index) in SLOTS.items():
            name = node.output(index)
            shaped = name or (node.output(0) if slot == "h" else "")
            numbers = self._final_numbers(node, name) if shaped in self.known.shapes else None
            if numbers is None:
                continue
            self.final[node_key(node), slot] = _directions_first(node, numbers)
            if name:
                self.tracks[name] = _Track(numbers)
            if slot == "h" and node.output(0) and not node.input(4):
                self._last_of_sequence(node, numbers)

    def _context(self, node: Node) -> None:
        numbers = self._new(node.output(1)) if node.output(1) else None
        if numbers is not None:
            self.final[node_key(node), "context"] = numbers
            self.tracks[node.output(1)] = _Track(numbers)

    def _final_numbers(self, node: Node, name: str) -> np.ndarray | None:
        """New numbers for a final state [D,B,H] (layout 1: [B,D,H]), whose shape Y [T,D,B,H] or [B,T,D,H] has too."""
        if name:
            return self._new(name)
        Y = self.known.shapes[node.output(0)]
        shape = (Y[0], *Y[2:]) if node.attributes.get("layout", 0) else Y[1:]
        if not self._affords(prod(shape)):
            return None
        self._next += prod(shape)
        return np.arange(self._next - prod(shape), self._next).reshape(shape)

    def _last_of_sequence(self, node: Node, final: np.ndarray) -> None:
        """Y has Y_h in it: each direction's last step."""
        shape = self.known.shapes[node.output(0)]
        if not prod(shape) or not self._affords(prod(shape)):
            return
        Y = np.full(shape, UNKNOWN)
        direction = node.attributes.get("direction", "forward")
        batch_first = bool(node.attributes.get("layout", 0))
        steps = Y.transpose(1, 2, 0, 3) if batch_first else Y
        for d, end in enumerate(_directions_first(node, final)):
            steps[0 if direction == "reverse" or d == 1 else -1, d] = end
        self.tracks[node.output(0)] = _Track(Y)

    def _moved(self, node: Node) -> None:
        indices = _MOVES[node.op]
        data = {i for i, name in enumerate(node.inputs) if name and (indices is None or i in indices)}
        followed = [self.tracks[node.inputs[i]] for i in data if node.inputs[i] in self.tracks]
        made = [name for name in node.outputs if name]
        steering = [name for i, name in enumerate(node.inputs) if name and i not in data]
        if not followed or any(name not in self.known.values for name in steering):
            return
        if node.attributes.get("reduction", "none") != "none" or any(n not in self.known.shapes for n in made):
            return
        if not self._affords(sum(prod(self.known.shapes[name]) for name in (*made, *(node.inputs[i] for i in data)))):
            return
        arrays = [
            (self._numbers(name) if i in data else self.known.values[name]) if name else None
            for i, name in enumerate(node.inputs)
        ]
        change = max(track.change for track in followed)
        with suppress(LstmEngineError):  # places out of range: an error of the run, which says so better
            for name, numbers in zip(node.outputs, evaluate(node, arrays), strict=False):
                if name:
                    self.tracks[name] = _Track(numbers, change)

    def _numbers(self, name: str) -> np.ndarray:
        track = self.tracks.get(name)
        return np.full(self.known.shapes[name], UNKNOWN) if track is None else track.numbers

    def _elementwise(self, node: Node) -> None:
        """An element computed from one followed element is still its offspring; from two it is a new one."""
        name = node.output(0)
        shape = self.known.shapes.get(name)
        if shape is None:
            return
        whole = [n for n in node.inputs if n in self.tracks and self.known.shapes[n] == shape]
        alike = [n for n in whole if self.known.dtypes[n] == self.known.dtypes[name]]  # not a Where's condition
        operands = [self.tracks[n] for n in alike or whole]
        if not operands or not self._affords(prod(shape)):
            return
        change = {"Cast": Change.NONE if alike else Change.ARITHMETIC, "Where": Change.CHOICE}.get(
            node.op, Change.ARITHMETIC
        )
        numbers = operands[0].numbers
        for other in operands[1:]:
            numbers = self._merged(numbers, other.numbers)
        self.tracks[name] = _Track(numbers, max(change, *(track.change for track in operands)))

    def _merged(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Final states come before inputs, inputs before what was computed; two of a kind make something new."""
        alike = (one >= self.inputs_end) == (other >= self.inputs_end)
        clash = (one != other) & (np.minimum(one, other) >= 0) & alike
        numbers: np.ndarray = np.where(clash, UNKNOWN, np.maximum(one, other))
        return numbers

    def cells_fed_by(self, source: str) -> Iterator[CellState]:
        """The recurrent nodes' states that begin with elements of an input."""
        if source not in self.first:
            return
        first, size = self.first[source], prod(self.known.shapes[source])
        for node, slot, track in self._initial():
            if ((track.numbers >= first) & (track.numbers < first + size)).all():
                yield CellState(node_key(node), slot, _directions_first(node, track.numbers - first))

    def _initial(self) -> Iterator[tuple[Node, str, _Track]]:
        for node in self.graph.nodes:
            for slot, (index, _) in _slots(node).items():
                if node.input(index) in self.tracks:
                    yield node, slot, self.tracks[node.input(index)]

    def change_into(self, cell: CellState) -> Change:
        """What happened to an input's elements before they became a cell's initial state."""
        return next(t.change for node, slot, t in self._initial() if (node_key(node), slot) == (cell.node, cell.slot))

    def returns(self, places: np.ndarray, cell: CellState) -> bool:
        """Whether the cell's final state comes out at the places its initial state is read from."""
        end = self.final.get((cell.node, cell.slot))
        return end is not None and np.array_equal(places[cell.elements], end)


def _directions_first(node: Node, state: np.ndarray) -> np.ndarray:
    """A recurrent node's state as [D, B, H], whatever its layout."""
    return state.swapaxes(0, 1) if node.attributes.get("layout", 0) else state


def without_zero_states(graph: Graph, values: Mapping[str, np.ndarray] | None = None) -> Graph:
    """The graph without constant initial states that are all zero: absent means the same, for any batch.

    ``values``: those that are known; None: the constants.
    """
    values = graph.constants if values is None else values
    nodes = []
    for node in graph.nodes:
        if node.op in RECURRENT:
            zeros = {name for name in node.inputs[5:7] if name in values and not values[name].any()}
            inputs = tuple("" if index in (5, 6) and name in zeros else name for index, name in enumerate(node.inputs))
            node = replace(node, inputs=inputs)
        nodes.append(node)
    return graph.with_nodes(nodes)


def with_sizes_of_states(graph: Graph, known: Specialised, roles: Roles) -> Graph:
    """The graph in which the sizes of what is made of inputs without a time axis are constants.

    Reading the size of a state is not reading the state.
    """
    timed = {spec.name for spec in graph.inputs if roles.form(spec.name).timed}
    constants: dict[str, np.ndarray] = {}
    nodes = []
    for node in graph.nodes:
        if node.op in ("Shape", "Size") and node.input(0) not in timed and node.output(0) in known.values:
            constants[node.output(0)] = known.values[node.output(0)]
            continue
        if not timed.isdisjoint(reads(node)):
            timed.update(node.outputs)
        nodes.append(node)
    return graph.with_nodes(nodes, {**graph.constants, **constants}) if constants else graph


def without_states(graph: Graph, pairs: tuple[StatePair, ...], shown: Container[str] = ()) -> Graph:
    """The graph whose paired layers keep their state themselves.

    Their initial states are gone, and their final outputs but for those that are to be ``shown``.
    """
    held = {(cell.node, cell.slot) for pair in pairs for cell in pair.cells}
    gone_inputs = {pair.input for pair in pairs if pair.cells}
    gone_outputs = {pair.output for pair in pairs if pair.cells and pair.output not in shown}
    nodes = []
    for node in graph.nodes:
        if node.op in RECURRENT:
            inputs = list(node.inputs)
            for slot, (index, _) in SLOTS.items():
                if (node_key(node), slot) in held:
                    inputs[index] = ""
            node = replace(node, inputs=tuple(inputs))
        nodes.append(node)
    return graph.with_nodes(
        nodes,
        inputs=[spec for spec in graph.inputs if spec.name not in gone_inputs],
        outputs=[spec for spec in graph.outputs if spec.name not in gone_outputs],
    )
