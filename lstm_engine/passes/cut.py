"""A graph at one set of input shapes: branches taken, and parted where shapes begin to hang on data.

What is known at these shapes is the *head*; it is lowered as it is. The nodes where a shape hangs on values are
evaluated once the head has run: the *deciding* nodes. All that reads their results is the *rest*, a graph of its own
whose inputs have definite shapes by then, and in which the conditions of branches are constants.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from ..errors import UnsupportedModelError
from ..graph import UNKNOWN_DTYPE, Graph, Node, TensorSpec, live_nodes, reads
from ..reference.control import closed, is_control, truth
from ..reference.pointwise import element_type
from ..reference.registry import SEQUENCES
from .control import Inlined, Names, inlined, renamed
from .sequences import Sequences
from .shape_rules import DataDependentError
from .shapes import Walk, copies

Shapes = Mapping[str, tuple[int, ...]]
#: What is known of a tensor's values goes into the rest as a constant up to this many elements.
MOST_CONSTANT: Final = 1 << 12

_TESTS: Final = frozenset(
    {"And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor"}
)
_OTHER_TYPES: Final = SEQUENCES | {
    "CastLike", "ConstantOfShape", "DequantizeLinear", "DynamicQuantizeLinear", "EyeLike", "MatMulInteger", "OneHot",
    "QuantizeLinear", "TopK", "Unique",
}  # fmt: skip
_COUNTS: Final = frozenset({"ArgMax", "ArgMin", "NonZero", "Shape", "Size"})


@dataclass(frozen=True)
class Resolved:
    """A graph without the branches that are not taken; ``choices`` are the branches taken, in order."""

    graph: Graph
    choices: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Cut:
    """The parts of a graph at one set of shapes.

    ``known``: values that shapes alone decide and the rest reads; ``conditions``: tensors that choose branches in it.
    """

    head: Graph
    choices: tuple[tuple[str, bool], ...]
    deciding: tuple[Node, ...]
    conditions: tuple[str, ...]
    rest: Graph
    known: Mapping[str, np.ndarray]


def resolved(graph: Graph, shapes: Shapes, *, join: bool = False) -> Resolved:
    """The graph in which every If whose condition is known at these shapes is the branch it takes.

    Other control-flow nodes are closed: they take what their bodies capture as inputs. ``join``: so is an If whose
    condition is not known, if its branches give the same shapes.

    Raises DataDependentError naming the node where a shape hangs on data; else as specialise() does.
    """
    if not any(is_control(node) or node.op in SEQUENCES for node in graph.nodes):
        return Resolved(graph, ())
    parts = _Parts(graph, shapes)
    for node in parts:
        if node.op == "If" and not join:
            raise DataDependentError(f"{node.label}: which branch is taken is computed from the feeds")
        parts.keep(node)
    nodes = [*parts.kept, *copies(graph, parts.aliases)]
    return Resolved(graph.with_nodes(nodes, parts.constants), tuple(parts.choices))


def cut(graph: Graph, shapes: Shapes) -> Cut:
    """The graph parted where, at these shapes, data decides shapes or branches. Raises as specialise() does."""
    parts = _Parts(graph, shapes)
    deciding: list[Node] = []
    late: list[Node] = []
    for node in parts:
        if node.op == "If" or any(name in parts.unknown for name in reads(node)):
            late.append(node)
        else:
            try:
                parts.keep(node)
                continue
            except DataDependentError:
                deciding.append(node)
        parts.unknown.update(name for name in node.outputs if name)
    for node in copies(graph, parts.aliases):
        (late if node.inputs[0] in parts.unknown else parts.kept).append(node)
    deciding, late = _with_counting(parts, deciding, late)
    whole = _assembled(graph, parts, deciding, late)
    if late and not deciding and not whole.conditions:
        raise UnsupportedModelError(f"{late[0].label}: what it hangs on cannot be told beforehand")
    return whole


class _Parts:
    """The walk through a graph; iterating over it gives the nodes that are left when known branches are taken."""

    def __init__(self, graph: Graph, shapes: Shapes) -> None:
        self.walk = Walk(graph, shapes)
        self.constants: dict[str, np.ndarray] = dict(graph.constants)
        self.aliases: dict[str, str] = {}
        self.choices: list[tuple[str, bool]] = []
        self.kept: list[Node] = []
        self.unknown: set[str] = set()
        self._names = Names(graph)
        self._sequences = Sequences(self._names.own)
        self._constructed: set[str] = set()
        self._waiting = deque(graph.nodes)

    def __iter__(self) -> Iterator[Node]:
        while self._waiting:
            node = renamed(self._waiting.popleft(), self.aliases)
            condition = self._condition(node)
            if condition is not None:
                self.choices.append((next(o for o in node.outputs if o), truth(node, condition)))
                self._replace(inlined(node, condition, self._names))
            elif (rewritten := self._sequences.rewritten(node, self.walk.known)) is not None:
                self._replace(rewritten)
            else:
                yield from self._constructions(node)
                yield node

    def _replace(self, parts: Inlined) -> None:
        """What stands in for a node comes next."""
        self.walk.learn(parts.constants)
        self.constants |= parts.constants
        self.aliases |= {target: self.aliases.get(source, source) for target, source in parts.aliases.items()}
        self._waiting.extendleft(reversed(parts.nodes))

    def _constructions(self, node: Node) -> Iterator[Node]:
        """Nodes that make the sequences a node reads as they are."""
        for name in dict.fromkeys(reads(node)):
            if name in self._sequences.members and name not in self._constructed:
                self._constructed.add(name)
                yield self._sequences.constructed(name)

    def keep(self, node: Node) -> None:
        """A node of the head. Raises DataDependentError where it is none."""
        self.walk.enter(node)
        self.kept.append(closed(node) if is_control(node) else node)

    def _condition(self, node: Node) -> np.ndarray | None:
        """The condition of an If, where it is known."""
        known = self.walk.known.get(node.input(0)) if node.op == "If" else None
        return None if known is None else known.value


def _with_counting(parts: _Parts, deciding: list[Node], late: list[Node]) -> tuple[list[Node], list[Node]]:
    """The deciding nodes and all those behind them that only count and compare, so that one stage settles them."""
    dtypes: dict[str, np.dtype[Any]] = {name: known.dtype for name, known in parts.walk.known.items()}
    ready, sequences = set(dtypes), {name for node in deciding if node.op in SEQUENCES for name in node.outputs}
    for node in deciding:
        ready.update(node.outputs)
        dtypes |= _types(node, dtypes)
    remaining = []
    for node in late:
        types = _types(node, dtypes)
        listed = node.op in SEQUENCES or not sequences.isdisjoint(reads(node))
        if ready.issuperset(reads(node)) and (listed or _counts(node, types, dtypes)):
            deciding.append(node)
            ready.update(node.outputs)
            dtypes |= types
            sequences.update(node.outputs if listed else ())
        else:
            remaining.append(node)
    return deciding, remaining


def _counts(node: Node, types: Mapping[str, np.dtype[Any]], dtypes: Mapping[str, np.dtype[Any]]) -> bool:
    """Whether a node makes whole numbers and truth values of the like, or of a shape."""
    whole = bool(types) and all(dtype.kind in "iub" for dtype in types.values())
    return whole and (
        node.op in ("Shape", "Size") or all(name in dtypes and dtypes[name].kind in "iub" for name in reads(node))
    )


def _types(node: Node, dtypes: Mapping[str, np.dtype[Any]]) -> dict[str, np.dtype[Any]]:
    """The type of the outputs of a node that counts, compares or moves; none of another's."""
    dtype: np.dtype[Any]
    if node.op in _TESTS:
        dtype = np.dtype(bool)
    elif node.op in _COUNTS:
        dtype = np.dtype(np.int64)
    elif node.op == "Cast":
        dtype = element_type(node.attributes["to"])
    elif is_control(node) or node.op in _OTHER_TYPES:
        return {}
    else:
        first = next((name for name in node.inputs[1 if node.op == "Where" else 0 :] if name), "")
        if first not in dtypes:
            return {}
        dtype = dtypes[first]
    return {name: dtype for name in node.outputs if name}


def _assembled(graph: Graph, parts: _Parts, deciding: list[Node], late: list[Node]) -> Cut:
    outputs = {spec.name for spec in graph.outputs}
    made_late = {name for node in late for name in node.outputs}
    rest_outputs = tuple(spec for spec in graph.outputs if spec.name in made_late)
    alive = live_nodes(late, {spec.name for spec in rest_outputs})
    read = {name for node in (*deciding, *alive) for name in reads(node)}
    values = {name: k.value for name, k in parts.walk.known.items() if k.value is not None}
    known = {
        name: values[name]
        for name in read
        if name in values and (name in parts.constants or values[name].size <= MOST_CONSTANT)
    }
    made = {name for node in parts.kept for name in node.outputs}
    handed_on = (outputs | read) - known.keys() | (outputs & made)
    wanted = [name for name in parts.walk.known if name in made and name in handed_on]
    head = graph.with_nodes(parts.kept, parts.constants, outputs=[_spec(graph, parts, name) for name in wanted])
    read_late = {name for node in alive for name in reads(node)}
    free = read_late - {name for node in alive for name in node.outputs} - known.keys()
    constants = {name: value for name, value in known.items() if name in read_late}
    rest = replace(
        graph,
        nodes=tuple(alive),
        constants=constants,
        inputs=tuple(_spec(graph, parts, name) for name in sorted(free)),
        outputs=rest_outputs,
    )
    conditions = {node.input(0) for node in alive if node.op == "If"} & free
    return Cut(head, tuple(parts.choices), tuple(deciding), tuple(sorted(conditions)), rest, known)


def _spec(graph: Graph, parts: _Parts, name: str) -> TensorSpec:
    """A tensor between the parts; its rank and type are left open where they show only as the network runs."""
    known = parts.walk.known.get(name)
    if known is None:
        return TensorSpec(name, UNKNOWN_DTYPE, None)
    return TensorSpec(name, known.dtype, (None,) * len(known.shape))


def rest_of(parts: Cut, conditions: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]) -> Graph:
    """The rest with its conditions decided, for inputs of definite ranks and types."""
    specs = tuple(
        TensorSpec(spec.name, inputs[spec.name].dtype, (None,) * inputs[spec.name].ndim)
        for spec in parts.rest.inputs
        if spec.name not in conditions
    )
    return replace(parts.rest, inputs=specs, constants={**parts.rest.constants, **conditions})
