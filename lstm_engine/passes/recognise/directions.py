"""A layer that runs forward over a reversed sequence is one that runs backward."""

from __future__ import annotations

from dataclasses import replace

from ...graph import Graph, Node
from .elements import Elements
from .pieces import Moves, Whole, is_reversal, whole_of, without_detours, write_whole
from .surroundings import followed
from .trace import CELLS
from .writing import Writer, names_of


def with_reverse_layers(graph: Graph) -> Graph:
    """Layers over reversed sequences as layers of direction reverse, without the reversals."""
    if not any(is_reversal(graph, node) for node in graph.nodes) or not any(n.op in CELLS for n in graph.nodes):
        return graph
    traces = [Moves(graph.nodes, around, Elements()) for around in followed(graph)]
    writer = Writer(names_of(graph))
    nodes: list[Node] = []
    for node in graph.nodes:
        whole = whole_of(traces, node.input(0)) if _is_plain(node) else None
        if whole is None or not _turns_time(whole):
            nodes.append(node)
            continue
        start = len(writer.nodes)
        _turn(node, whole, writer)
        nodes += writer.nodes[start:]
    if not writer.nodes:
        return graph
    return without_detours(graph.with_nodes(nodes, {**graph.constants, **writer.constants}))


def _is_plain(node: Node) -> bool:
    """Whether a node is a recurrent layer that runs forward over whole rows."""
    attributes = node.attributes
    forward = attributes.get("direction", "forward") == "forward" and not attributes.get("layout", 0)
    return node.op in CELLS and not node.domain and forward and not node.input(4)


def _turns_time(whole: Whole) -> bool:
    """Whether the axis that is reversed is the first of all."""
    return whole.reversed == 0 and 0 not in whole.unsqueezed


def _turn(node: Node, whole: Whole, writer: Writer) -> None:
    """Write the node with direction reverse: its sequence comes out the other way round, its last states the same."""
    x = write_whole(replace(whole, reversed=-1), writer)
    Y = writer.fresh(f"{node.output(0)}.reverse") if node.output(0) else ""
    attributes = {**node.attributes, "direction": "reverse"}
    writer.nodes.append(
        replace(node, inputs=(x, *node.inputs[1:]), outputs=(Y, *node.outputs[1:]), attributes=attributes)
    )
    if Y:
        bounds = [writer.numbers(value) for value in (-1, -(2**63) + 1, 0, -1)]
        writer.add("Slice", (Y, *bounds), Y, node.output(0))
