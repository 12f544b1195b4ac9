"""Steps that follow one another with the same weights become one recurrent node over all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...graph import Graph, Node, reads, sort_nodes
from ..shapes import fold
from .steps import Piece, Step, find_steps
from .writing import Writer, names_of


def with_steps(graph: Graph) -> Graph:
    """The graph with written-out steps as LSTM, GRU and RNN nodes, those of one layer in one node."""
    chains = [chain for chain in _chains(graph, find_steps(graph)) if len(chain) > 1 or chain[0].cell.op != "RNN"]
    if not chains:
        return graph
    writer = Writer(names_of(graph))
    readers = graph.consumers()
    wanted = {spec.name for spec in graph.outputs}
    for chain in chains:
        _write(chain, _read_outside(chain, graph, readers, wanted), writer, graph)
    replaced = {name for chain in chains for step in chain for name in step.inner}
    kept = [node for node in graph.nodes if not replaced & set(node.outputs)]
    outside = {spec.name for spec in graph.inputs} | set(graph.constants) | set(writer.constants)
    ordered, cyclic = sort_nodes((*kept, *writer.nodes), outside)
    if cyclic:  # two layers that wait for each other cannot run one after the other
        return graph
    return fold(graph.with_nodes(ordered, {**graph.constants, **writer.constants}))


# --- which steps are one layer ----------------------------------------------------------------------------------------


def _chains(graph: Graph, found: Sequence[Sequence[Step]]) -> list[list[Step]]:
    """The steps as chains, each step read the way that makes the longest."""
    longest: dict[str, list[list[Step]]] = {}  # the chains that end at a state, one for each way to read its step
    for readings in found:
        longest[readings[0].h_new] = [_grown(longest.get(step.h_old, []), step) for step in readings]
    chains: list[list[Step]] = []
    taken: set[str] = set()
    for readings in reversed(found):
        ends = longest[readings[0].h_new]
        free = [[step for step in chain if step.h_new not in taken] for chain in ends]
        chain = max(free, key=len)
        if chain:
            chains.append(chain)
            taken |= {step.h_new for step in chain}
    return [part for chain in reversed(chains) for part in _independent(graph, chain)]


def _grown(chains: Sequence[list[Step]], step: Step) -> list[Step]:
    """The longest chain that a step continues, and the step."""
    return max([[*chain, step] for chain in chains if _follows(chain, step)], key=len, default=[step])


def _follows(chain: Sequence[Step], step: Step) -> bool:
    """Whether a step goes on where a chain ends, with the same weights."""
    last = chain[-1]
    if step.c_old != last.c_new or step.shapes[step.h_new] != last.shapes[last.h_new] or len(step.x) != len(last.x):
        return False
    if last.h_old:
        return last.cell.alike(step.cell)
    mine, its = last.cell, step.cell  # the first step, whose state of zeros left no recurrent weights
    return (
        mine.attributes() == its.attributes()
        and np.array_equal(mine.W, its.W)
        and np.array_equal(mine.B, its.B)
        and (mine.P is None) == (its.P is None)
        and (mine.P is None or its.P is None or np.array_equal(mine.P, its.P))
    )


def _independent(graph: Graph, chain: list[Step]) -> list[list[Step]]:
    """The chain, if no input of it waits for one of its own steps and no cell state within is read; else its steps."""
    if len(chain) == 1:
        return [chain]
    late = {name for step in chain for name in (step.h_new, step.c_new) if name}
    for node in graph.nodes:
        if any(name in late for name in reads(node)):
            late.update(node.outputs)
    inner = {name for step in chain for name in step.inner}
    read = {name for node in graph.nodes if not inner & set(node.outputs) for name in reads(node)}
    read |= {spec.name for spec in graph.outputs}
    whole = not any(name in late for step in chain for name in (piece.name for piece in step.x))
    whole = whole and not any(step.c_new in read for step in chain[:-1] if step.c_new)
    return [chain] if whole else [[step] for step in chain]


# --- writing ----------------------------------------------------------------------------------------------------------


def _read_outside(chain: Sequence[Step], graph: Graph, readers: dict[str, list[Node]], wanted: set[str]) -> set[str]:
    """The new states of a chain that something beside it reads."""
    inner = {name for step in chain for name in step.inner}
    found = set()
    for step in chain:
        for name in (step.h_new, step.c_new):
            if name and (name in wanted or any(not inner & set(node.outputs) for node in readers.get(name, ()))):
                found.add(name)
    return found


def _write(chain: Sequence[Step], read: set[str], writer: Writer, graph: Graph) -> None:
    first, last = chain[0], chain[-1]
    within = [step for step in chain[:-1] if step.h_new in read]
    x = writer.joined([_x(step, writer) for step in chain], 0)
    states = [_state(first, name, writer) for name in ((first.h_old, first.c_old) if first.c_new else (first.h_old,))]
    label = next(node.name for node in graph.nodes if last.h_new in node.outputs) or last.h_new
    Y, Y_h, Y_c = writer.cell(
        last.cell, last.cell.W, x, states, [bool(within), last.h_new in read, last.c_new in read],
        first.dtype, writer.fresh(label),
    )  # fmt: skip
    for place, step in enumerate(chain):
        if step in within:
            bounds = [writer.numbers(value) for value in (place, place + 1, 0)]
            one = writer.squeezed(writer.add("Slice", (Y, *bounds), Y), 1)
            writer.from_state(one, step.shapes[step.h_new], step.h_new)
    for name, made in ((last.h_new, Y_h), (last.c_new, Y_c)):
        if made:
            writer.from_state(made, last.shapes[name], name)


def _x(step: Step, writer: Writer) -> str:
    """The input of one step as [1,B,I]."""
    return writer.joined([_piece(piece, writer) for piece in step.x], 2)


def _piece(piece: Piece, writer: Writer) -> str:
    """A piece of x as [1,B,I]."""
    name = piece.name
    if piece.axis >= 0:
        place = writer.constant(np.array(piece.place, np.int64), f"place.{piece.place}")
        name = writer.add("Gather", (name, place), name, axis=piece.axis)
    return writer.as_state(name, piece.shape) or ""


def _state(step: Step, name: str, writer: Writer) -> str:
    return "" if not name else writer.as_state(name, step.shapes[name]) or ""
