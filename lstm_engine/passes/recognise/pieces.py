"""A tensor that is cut into pieces and put together again, or reversed twice, is that tensor, perhaps transposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Final

import numpy as np

from ...graph import Graph, Node
from .elements import Elements, Ids, Kind, TooManyError
from .surroundings import followed
from .trace import CELLS, MOVES, Trace
from .writing import Writer, names_of

#: Concats of fewer pieces are left alone.
FEWEST_PIECES: Final = 2
MOST_AXES: Final = 5


@dataclass(frozen=True)
class Whole:
    """How a Concat is one tensor: without axes of length 1, transposed, one axis reversed, with others of length 1."""

    source: str
    squeezed: tuple[int, ...]
    perm: tuple[int, ...]
    reversed: int  # among the transposed axes, -1 for none
    unsqueezed: tuple[int, ...]


class Moves(Trace):
    """Follows elements through operators that move them, and through nothing else.

    The last state h of a layer that has ``steps`` is what it gives at the last of them.
    """

    steps: frozenset[str] = frozenset()

    def _needs(self, name: str) -> Sequence[str]:
        node = self.producers.get(name)
        if node is None:
            return ()
        if self._is_last_state(node, name):
            return node.outputs[:1]
        if node.op == "ReverseSequence":
            return node.inputs[:1] if self._is_known(node.input(1)) else ()
        return super()._needs(name) if node.op in MOVES else ()

    def _expressions(self, node: Node) -> list[Ids] | None:
        return self._moved(node) if node.op == "ReverseSequence" else super()._expressions(node)

    def _settle(self, name: str) -> None:
        node = self.producers.get(name)
        whole = None if node is None or not self._is_last_state(node, name) else self.found[node.outputs[0]]
        if whole is None:
            super()._settle(name)
        else:
            self.assume(name, whole[-1])

    def _is_last_state(self, node: Node, name: str) -> bool:
        plain = node.attributes.get("direction", "forward") == "forward" and not node.attributes.get("layout", 0)
        return node.op in CELLS and name == node.output(1) and node.output(0) in self.steps and plain


def without_detours(graph: Graph) -> Graph:
    """The graph without Concats that only put the pieces of a tensor together, and without reversals of reversals."""
    producers = graph.producers()
    ends = [node for node in graph.nodes if is_reversal(graph, node) or _joins(node, producers)]
    if not ends:
        return graph
    traces = [Moves(graph.nodes, around, Elements()) for around in followed(graph)]
    cells = [node for node in graph.nodes if node.op in CELLS and not node.input(4)]
    steps = frozenset(node.output(0) for node in cells if _fixed(traces, node.output(0)))
    for trace in traces:
        trace.steps = steps
    writer = Writer(names_of(graph))
    made: dict[str, list[Node]] = {}
    for node in ends:
        name = node.output(0)
        whole = whole_of(traces, name)
        if whole is not None and (node.op == "Concat" or whole.reversed < 0):
            start = len(writer.nodes)
            write_whole(whole, writer, name)
            made[name] = writer.nodes[start:]
    nodes = [new for node in graph.nodes for new in made.get(node.output(0), [node])]
    return graph.with_nodes(nodes, {**graph.constants, **writer.constants}) if made else graph


def is_reversal(graph: Graph, node: Node) -> bool:
    """Whether a node may turn an axis round."""
    steps = graph.constants.get(node.input(4)) if node.op == "Slice" else None
    return node.op == "ReverseSequence" or (steps is not None and bool((steps == -1).any()))


def _joins(node: Node, producers: Mapping[str, Node]) -> bool:
    """Whether a node is a Concat of pieces."""
    if node.op != "Concat" or len(node.inputs) < FEWEST_PIECES:
        return False
    return all(name in producers and producers[name].op in MOVES for name in node.inputs)


def whole_of(traces: Sequence[Trace], name: str) -> Whole | None:
    """The one tensor whose elements a tensor has, if they are laid out in the same way at all sizes."""
    try:
        wholes = [_whole(trace, name) for trace in traces]
    except TooManyError:
        return None
    return wholes[0] if all(whole == wholes[0] for whole in wholes) else None


def _fixed(traces: Sequence[Trace], sequence: str) -> bool:
    """Whether a sequence has one number of steps whatever is fed, and some."""
    shapes = [trace.around.shape(sequence) for trace in traces]
    lengths = {shape[0] if shape else 0 for shape in shapes}
    return len(lengths) == 1 and 0 not in lengths


def _whole(trace: Trace, name: str) -> Whole | None:
    ids = trace.ids(name)
    if ids is None or not trace.table.all_are(ids, Kind.LEAF):
        return None
    leaves, places, _ = trace.table.operands(ids)
    source = trace.leaf_names[int(leaves.flat[0])]
    if (leaves != leaves.flat[0]).any() or source == name or trace.leaves[source].size != ids.size:
        return None
    before, after = trace.leaves[source].shape, ids.shape
    squeezed, unsqueezed = (tuple(k for k, n in enumerate(shape) if n == 1) for shape in (before, after))
    elements = np.arange(ids.size).reshape([n for n in before if n != 1])
    target = places.reshape([n for n in after if n != 1])
    if elements.ndim != target.ndim or elements.ndim > MOST_AXES:
        return None
    for perm in permutations(range(elements.ndim)):
        moved = elements.transpose(perm)
        if moved.shape != target.shape:
            continue
        for axis in range(-1, elements.ndim):
            if np.array_equal(moved if axis < 0 else np.flip(moved, axis), target):
                return Whole(source, squeezed, perm, axis, unsqueezed)
    return None


def write_whole(whole: Whole, writer: Writer, output: str = "") -> str:
    """Write the tensor as a view of the other; gives its name, ``output`` where that is given."""
    same = whole.squeezed == whole.unsqueezed
    perm = _around(whole.perm, whole.squeezed) if same else whole.perm
    glue: list[tuple[str, tuple[str, ...], dict[str, tuple[int, ...]]]] = []
    if whole.squeezed and not same:
        glue.append(("Squeeze", (writer.numbers(*whole.squeezed),), {}))
    if perm != tuple(range(len(perm))):
        glue.append(("Transpose", (), {"perm": perm}))
    if whole.reversed >= 0:
        kept = [axis for axis in range(len(perm)) if not same or axis not in whole.squeezed]
        bounds = (-1, -(2**63) + 1, kept[whole.reversed], -1)
        glue.append(("Slice", tuple(writer.numbers(value) for value in bounds), {}))
    if whole.unsqueezed and not same:
        glue.append(("Unsqueeze", (writer.numbers(*whole.unsqueezed),), {}))
    x = whole.source
    if output and not glue:
        glue.append(("Identity", (), {}))
    for left, (op, parameters, attributes) in enumerate(glue, 1 - len(glue)):
        x = writer.add(op, (x, *parameters), x, "" if left else output, **attributes)
    return x


def _around(perm: Sequence[int], ones: Sequence[int]) -> tuple[int, ...]:
    """A permutation of the axes that are not 1 as one of all axes, the others staying where they are."""
    free = [axis for axis in range(len(perm) + len(ones)) if axis not in ones]
    order = list(range(len(perm) + len(ones)))
    for place, source in zip(free, perm, strict=True):
        order[place] = free[source]
    return tuple(order)
