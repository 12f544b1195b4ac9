"""What can be told to be wrong with a network before any input shape is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError, listed
from ..graph import Graph, Node
from ..reference import unsupported
from ..reference.layers import INPUTS, layer_of
from ..reference.registry import SEQUENCES
from .shape_rules import Known

#: Operators whose result is a sequence of tensors.
MAKE_SEQUENCES: Final = SEQUENCES - {"ConcatFromSequence", "SequenceAt", "SequenceLength"}


def check(graph: Graph) -> None:
    """Refuse what is not implemented, and recurrent layers whose weights do not fit one another.

    Raises UnsupportedModelError naming each node, operator and attribute; ModelFormatError naming each layer, the
    expected shape in named dimensions and the one it got.
    """
    faults = unsupported(graph)
    if not faults:
        sequences = _sequences(graph, ())
        found = [spec.name for spec in graph.outputs if spec.name in sequences]
        faults = [f"output '{name}': a sequence of tensors as an output is not implemented" for name in found]
    if faults:
        raise UnsupportedModelError(listed(f"{graph.origin}: not implemented", faults))
    faults = [fault for node in graph.nodes if node.op in INPUTS for fault in _weight_faults(graph, node)]
    if faults:
        raise ModelFormatError(listed(f"{graph.origin}: weights do not fit", faults))


def _sequences(graph: Graph, around: Iterable[str]) -> set[str]:
    """Names of a graph that stand for sequences of tensors; ``around``: those that it finds in place."""
    found = set(around)
    for node in graph.nodes:
        if node.op in MAKE_SEQUENCES or (node.op == "Identity" and node.input(0) in found):
            found.update(node.outputs)
        elif node.op == "Loop":
            found.update(made for given, made in zip(node.inputs[2:], node.outputs, strict=False) if given in found)
        for body in (value for value in node.attributes.values() if isinstance(value, Graph)):
            fed = zip(node.inputs, body.inputs, strict=False)
            inside = _sequences(body, found | {spec.name for given, spec in fed if given in found})
            handed_on = body.outputs[1:] if node.op == "Loop" else body.outputs
            found.update(made for made, spec in zip(node.outputs, handed_on, strict=False) if spec.name in inside)
    return found - {""}


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
