"""The passes of recognition, in order."""

from __future__ import annotations

from collections.abc import Sequence

from ...graph import Graph, Node, reads
from ..shapes import constant, fold
from .chains import with_steps
from .directions import with_reverse_layers
from .loops import recognised
from .normalisation import without_normalisation
from .pieces import without_detours
from .surroundings import MOST_UNIONS, Surroundings, survey, unite
from .writing import Writer, names_of


def recognise(graph: Graph) -> Graph:
    """The graph with the recurrent layers that were written out as the nodes they are."""
    looped = with_loops(graph)
    stepped = with_steps(looped)
    if stepped is not looped:
        stepped = without_detours(stepped)
    return without_normalisation(with_reverse_layers(stepped))


def with_loops(graph: Graph) -> Graph:
    """Loop and Scan nodes that are recurrent layers, as those."""
    united: dict[str, str] = {}
    for _ in range(MOST_UNIONS):
        if not any(node.op in ("Loop", "Scan") for node in graph.nodes):
            break
        surroundings = survey(graph, united, large=True)
        graph = _with_loops(graph, surroundings)
        more = unite(graph, united, surroundings)
        if more == united:
            break
        united = more
    return graph


def _with_loops(graph: Graph, surroundings: Sequence[Surroundings]) -> Graph:
    writer = Writer(names_of(graph))
    used = {name for node in graph.nodes for name in reads(node)} | {spec.name for spec in graph.outputs}
    nodes: list[Node] = []
    for node in graph.nodes:
        made = [node]
        if node.op in ("Loop", "Scan") and not node.domain:
            start = len(writer.nodes)
            if recognised(node, surroundings, used, writer):
                made = writer.nodes[start:]
        for around in surroundings:
            around.known |= {name: constant(value) for name, value in writer.constants.items()}
            around.follow(made)
        nodes += made
    return fold(graph.with_nodes(nodes, {**graph.constants, **writer.constants})) if writer.nodes else graph
