"""Half precision becomes float32: the engine has no arithmetic of 16 bits, and a wider one loses nothing."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from ..graph import Graph, Node, TensorSpec
from ..vocabulary import COMPUTED_IN, WIDENED

FLOAT: Final = 1
#: ONNX's numbers of the types that are widened.
HALVES: Final = frozenset({10, 16})
#: Attributes whose value is the number of a type.
TYPE_ATTRIBUTES: Final = frozenset({"to", "dtype", "output_dtype", "output_datatype"})


def widened(graph: Graph) -> Graph:
    """The graph with every float16 or bfloat16 tensor in float32, bodies included; its metadata say so."""
    wide = _widened(graph)
    if wide is graph:
        return graph
    return replace(wide, metadata=MappingProxyType({**graph.metadata, COMPUTED_IN: WIDENED}))


def _widened(graph: Graph) -> Graph:
    nodes = tuple(map(_node, graph.nodes))
    inputs, outputs = tuple(map(_spec, graph.inputs)), tuple(map(_spec, graph.outputs))
    constants = {name: _value(value) for name, value in graph.constants.items()}
    before = (*graph.nodes, *graph.inputs, *graph.outputs, *graph.constants.values())
    after = (*nodes, *inputs, *outputs, *constants.values())
    if all(a is b for a, b in zip(before, after, strict=True)):
        return graph
    return replace(graph, nodes=nodes, inputs=inputs, outputs=outputs, constants=MappingProxyType(constants))


def _spec(spec: TensorSpec) -> TensorSpec:
    return replace(spec, dtype=np.dtype(np.float32)) if spec.dtype == np.float16 else spec


def _node(node: Node) -> Node:
    attributes = {name: _attribute(name, value) for name, value in node.attributes.items()}
    if all(attributes[name] is value for name, value in node.attributes.items()):
        return node
    return replace(node, attributes=attributes)


def _attribute(name: str, value: Any) -> Any:
    if isinstance(value, Graph):
        return _widened(value)
    if isinstance(value, np.ndarray):
        return _value(value)
    return FLOAT if name in TYPE_ATTRIBUTES and isinstance(value, int) and value in HALVES else value


def _value(value: np.ndarray) -> np.ndarray:
    if value.dtype != np.float16:
        return value
    wide = value.astype(np.float32)
    wide.flags.writeable = False
    return wide
