"""What can be told to be wrong with a network before any input shape is known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError, listed
from ..graph import Graph, Node
from ..reference import unsupported
from ..reference.layers import INPUTS, layer_of
from .shape_rules import Known


def check(graph: Graph) -> None:
    """Refuse what is not implemented, and recurrent layers whose weights do not fit one another.

    Raises UnsupportedModelError naming each node, operator and attribute; ModelFormatError naming each layer, the
    expected shape in named dimensions and the one it got.
    """
    faults = unsupported(graph)
    if faults:
        raise UnsupportedModelError(listed(f"{graph.origin}: not implemented", faults))
    faults = [fault for node in graph.nodes if node.op in INPUTS for fault in _weight_faults(graph, node)]
    if faults:
        raise ModelFormatError(listed(f"{graph.origin}: weights do not fit", faults))


def _fixed_batch(arrays: Mapping[str, np.ndarray], layout: int) -> int:
    """The batch that stored states or lengths fix, else 1."""
    for name, rank, axis in (("initial_h", 3, 1 - layout), ("initial_c", 3, 1 - layout), ("sequence_lens", 1, 0)):
        if name in arrays and arrays[name].ndim == rank:
            return int(arrays[name].shape[axis])
    return 1


def _weight_faults(graph: Graph, node: Node) -> list[str]:
    """Faults of one layer's constant inputs, beside an X of whatever size they imply."""
    given = dict(zip(INPUTS[node.op], node.inputs, strict=False))
    arrays = {name: graph.constants[tensor] for name, tensor in given.items() if tensor in graph.constants}
    if "W" not in arrays or "R" not in arrays or "X" in arrays:
        return []
    layout = int(node.attributes.get("layout", 0))
    inputs = arrays["W"].shape[2] if arrays["W"].ndim == 3 else 1
    batch = _fixed_batch(arrays, layout)
    x = Known((batch, 1, inputs) if layout else (1, batch, inputs), arrays["W"].dtype)
    try:
        layer_of(node.op, {**node.attributes, **arrays, "X": x})
    except ModelFormatError as fault:
        return [f"{node.label}: {fault}"]
    return []
