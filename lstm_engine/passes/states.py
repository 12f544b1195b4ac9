"""Which graph input is which output's past: recurrent state that a stream can carry by itself.

An exporter hands the layers' states in and out through Slice, Squeeze, Concat and the like. Those only move
elements, so they are followed with element numbers in place of values: an input and an output are a pair
when each recurrent node reads its initial state from the very places where its final state comes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Final

import numpy as np

from ..errors import StateError, listed
from ..graph import Graph, Node
from ..reference import evaluate
from .shapes import Specialised

#: Operators that only move elements of their first input (Concat: of all).
_MOVES: Final = frozenset({
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
})  # fmt: skip
#: States are looked for among inputs of at most this many elements.
MOST_ELEMENTS: Final = 1 << 22
#: Index of the initial state among a recurrent node's inputs, of the final one among its outputs.
SLOTS: Final[Mapping[str, tuple[int, int]]] = {"h": (5, 1), "c": (6, 2)}


@dataclass(frozen=True)
class CellState:
    """One state array of one recurrent node: which elements of the pair's input it is."""

    node: str  # the node's first named output, which is unique
    slot: str  # 'h' or 'c'
    elements: np.ndarray  # [D, B, H] places in the flattened input


@dataclass(frozen=True)
class StatePair:
    """An input that is an output's past; ``cells`` says which layers' states it consists of, () if of none."""

    input: str
    output: str
    cells: tuple[CellState, ...]


def node_key(node: Node) -> str:
    """A name that tells a node from all others."""
    return next(name for name in node.outputs if name)


def pair_states(graph: Graph, known: Specialised, declared: Mapping[str, str] | None = None) -> tuple[StatePair, ...]:
    """The pairs found by following elements at one set of shapes, and those the caller declares {input: output}.

    Raises StateError for a declared pair that names no input or output, or whose shapes differ.
    """
    found = {pair.input: pair for pair in _structural_pairs(graph, known)}
    inputs, outputs = {s.name for s in graph.inputs}, {s.name for s in graph.outputs}
    faults = []
    for source, result in (declared or {}).items():
        if source not in inputs:
            faults.append(f"'{source}' is not an input (inputs: {', '.join(sorted(inputs))})")
        elif result not in outputs:
            faults.append(f"'{result}' is not an output (outputs: {', '.join(sorted(outputs))})")
        elif known.shapes[source] != known.shapes[result]:
            faults.append(f"'{source}' {known.shapes[source]} and '{result}' {known.shapes[result]} differ in shape")
        elif source not in found or found[source].output != result:
            found[source] = StatePair(source, result, ())
    if faults:
        raise StateError(listed(f"states= of {graph.origin}", faults))
    return tuple(found[spec.name] for spec in graph.inputs if spec.name in found)


def _structural_pairs(graph: Graph, known: Specialised) -> Iterator[StatePair]:
    numbers, final = _follow_elements(graph, known)
    for spec in graph.inputs:
        cells = tuple(_cells_fed_by(graph, numbers, spec.name))
        size = prod(known.shapes[spec.name])
        covered = np.sort(np.concatenate([np.empty(0, np.int64), *(cell.elements.ravel() for cell in cells)]))
        if size == 0 or covered.size != size or not np.array_equal(covered, np.arange(size)):
            continue
        for result in graph.outputs:
            if known.shapes.get(result.name) == known.shapes[spec.name] and _returns(
                numbers, final, result.name, cells
            ):
                yield StatePair(spec.name, result.name, cells)
                break


def _follow_elements(
    graph: Graph, known: Specialised
) -> tuple[dict[str, tuple[str, np.ndarray]], dict[tuple[str, str], np.ndarray]]:
    """Element numbers of every tensor that only moves elements of one input, or of recurrent nodes' final states.

    First by tensor: (source, numbers), the source of final states being ''; second by (node, slot).
    """
    numbers: dict[str, tuple[str, np.ndarray]] = {}
    final: dict[tuple[str, str], np.ndarray] = {}
    for spec in graph.inputs:
        shape = known.shapes[spec.name]
        if prod(shape) <= MOST_ELEMENTS:
            numbers[spec.name] = (spec.name, np.arange(prod(shape)).reshape(shape))
    next_number = 0
    for node in graph.nodes:
        if node.op in ("LSTM", "GRU", "RNN"):
            for slot, (_, index) in SLOTS.items():
                name = node.output(index)
                if name and prod(known.shapes[name]) <= MOST_ELEMENTS:
                    shape = known.shapes[name]
                    count = prod(shape)
                    numbers[name] = ("", np.arange(next_number, next_number + count).reshape(shape))
                    final[node_key(node), slot] = numbers[name][1]
                    next_number += count
        elif node.op in _MOVES:
            numbers |= _moved(node, numbers, known)
    return numbers, final


def _moved(
    node: Node, numbers: Mapping[str, tuple[str, np.ndarray]], known: Specialised
) -> dict[str, tuple[str, np.ndarray]]:
    data = node.inputs if node.op == "Concat" else node.inputs[:1]
    sources = {numbers[name][0] if name in numbers else None for name in data}
    others = [name for name in node.inputs if name and name not in data]
    large = any(prod(known.shapes[name]) > MOST_ELEMENTS for name in node.outputs if name)
    if large or len(sources) != 1 or None in sources or any(name not in known.values for name in others):
        return {}
    arrays = [numbers[name][1] if name in data else known.values[name] if name else None for name in node.inputs]
    if node.op == "Cast":
        results: tuple[np.ndarray, ...] = (numbers[node.inputs[0]][1],)
    else:
        results = evaluate(node, arrays)
    source = next(iter(sources))
    assert source is not None
    return {name: (source, value) for name, value in zip(node.outputs, results, strict=False) if name}


def _cells_fed_by(graph: Graph, numbers: Mapping[str, tuple[str, np.ndarray]], source: str) -> Iterator[CellState]:
    for node in graph.nodes:
        if node.op in ("LSTM", "GRU", "RNN"):
            for slot, (index, _) in SLOTS.items():
                name = node.input(index)
                if name in numbers and numbers[name][0] == source:
                    yield CellState(node_key(node), slot, numbers[name][1])


def _returns(
    numbers: Mapping[str, tuple[str, np.ndarray]],
    final: Mapping[tuple[str, str], np.ndarray],
    output: str,
    cells: tuple[CellState, ...],
) -> bool:
    """Whether each cell's final state comes out at the places its initial state is read from."""
    if output not in numbers or numbers[output][0] != "":
        return False
    places = numbers[output][1].ravel()
    return all(
        (cell.node, cell.slot) in final
        and np.array_equal(places[cell.elements.ravel()], final[cell.node, cell.slot].ravel())
        for cell in cells
    )


def without_zero_states(graph: Graph) -> Graph:
    """The graph without constant initial states that are all zero: absent means the same, for any batch."""
    nodes = []
    for node in graph.nodes:
        if node.op in ("LSTM", "GRU", "RNN"):
            zeros = {name for name in node.inputs[5:7] if name in graph.constants and not graph.constants[name].any()}
            inputs = tuple("" if index in (5, 6) and name in zeros else name for index, name in enumerate(node.inputs))
            node = replace(node, inputs=inputs)
        nodes.append(node)
    return graph.with_nodes(nodes)


def without_states(graph: Graph, pairs: tuple[StatePair, ...]) -> Graph:
    """The graph whose paired layers keep their state themselves: their initial states and final outputs are gone."""
    held = {(cell.node, cell.slot) for pair in pairs for cell in pair.cells}
    gone_inputs = {pair.input for pair in pairs if pair.cells}
    gone_outputs = {pair.output for pair in pairs if pair.cells}
    nodes = []
    for node in graph.nodes:
        if node.op in ("LSTM", "GRU", "RNN"):
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
