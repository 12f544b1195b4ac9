"""BatchNormalization by statistics that the graph computes: so exporters write the normalisation of a layer."""

from __future__ import annotations

from typing import Final

import numpy as np

from ..graph import Graph, Node
from .recognise.writing import Writer, names_of
from .shapes import Specialised

EPSILON: Final = 1e-5


def with_normalisation_written_out(graph: Graph, known: Specialised) -> Graph:
    """The graph in which a BatchNormalization by computed statistics is (x - mean) / √(var + ε) · scale + bias.

    A layer normalisation over x[B,T,I] comes as one over [1,B·T,I,1]: each step is a channel of its own, which an
    elementwise operator shows and BatchNormalization hides.
    """
    writer = Writer(names_of(graph))
    nodes: list[Node] = []
    for node in graph.nodes:
        start = len(writer.nodes)
        if _computes_statistics(node, known):
            _write(writer, node, known)
        nodes += writer.nodes[start:] or [node]
    return graph.with_nodes(nodes, {**graph.constants, **writer.constants}) if writer.nodes else graph


def _computes_statistics(node: Node, known: Specialised) -> bool:
    plain = (
        node.op == "BatchNormalization" and not node.attributes.get("training_mode", 0) and not any(node.outputs[1:])
    )
    return plain and any(name not in known.values for name in node.inputs[3:5])


def _write(writer: Writer, node: Node, known: Specialised) -> None:
    name, x = node.output(0), node.input(0)
    rank = len(known.shapes[x])
    others = [0, *range(2, rank)]
    scale, bias, mean, variance = (writer.unsqueezed(each, *others) for each in node.inputs[1:5])
    dtype = known.dtypes[node.input(4)]
    epsilon = writer.constant(np.array(node.attributes.get("epsilon", EPSILON), dtype), f"{name}.epsilon")
    spread = writer.add("Sqrt", (writer.add("Add", (variance, epsilon), name),), name)
    centred = writer.add("Sub", (x, mean), name)
    scaled = writer.add("Mul", (writer.add("Div", (centred, spread), name), scale), name)
    writer.add("Add", (scaled, bias), name, name)
