"""Shapes, types and values that are known before anything runs.

``specialise`` follows concrete input shapes through a graph; ``fold`` replaces what depends on constants alone.
A shape is always worked out before a value is, so that no file can make the engine allocate what it merely names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..errors import InputError, LstmEngineError, ModelFormatError, UnsupportedModelError, listed
from ..graph import Graph, Node
from ..reference import evaluate, honoured, node_faults, sized
from .shape_rules import RULES, DType, Known, Size

__all__ = ["BUDGET", "RULES", "Known", "Specialised", "fold", "infer", "specialise"]

#: How many elements a folded tensor may have, or as many as the file itself carries if that is more.
BUDGET: Final = 1 << 24
#: How often that may be folded in all (every weight passes through a few Concats and Casts).
TOTAL: Final = 8
#: Operators whose result is a view and costs no memory.
VIEWS: Final = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split"})


@dataclass(frozen=True, slots=True)
class Specialised:
    """Every tensor of a graph for one set of input shapes; ``values`` holds those that no feed can change."""

    shapes: Mapping[str, Size]
    dtypes: Mapping[str, DType]
    values: Mapping[str, np.ndarray]


def specialise(graph: Graph, shapes: Mapping[str, Size], *, budget: int = BUDGET) -> Specialised:
    """Follow the shapes of all graph inputs through the graph (optional ones may be left out).

    Raises ModelFormatError where shapes do not fit, UnsupportedModelError for an operator that is not implemented,
    a shape that depends on data, or a constant of more than ``budget`` elements.
    """
    known = {name: constant(value) for name, value in graph.constants.items()}
    dtypes = {spec.name: spec.dtype for spec in graph.inputs}
    known |= {name: Known(shape, dtypes[name]) for name, shape in _input_shapes(graph, shapes).items()}
    folder = _Folder(budget, graph)
    for node in graph.nodes:
        inputs = [known[name] if name else None for name in node.inputs]
        results = folder.settle(node, inputs, infer(node, inputs))
        known |= {name: result for name, result in zip(node.outputs, results, strict=False) if name}
    return Specialised(
        {name: k.shape for name, k in known.items()},
        {name: k.dtype for name, k in known.items()},
        {name: k.value for name, k in known.items() if k.value is not None},
    )


def fold(graph: Graph, *, budget: int = BUDGET) -> Graph:
    """The graph with every node that reads only constants replaced by its value, whatever the input shapes.

    Nodes that are not implemented or exceed the budget stay as they are.
    """
    constants = dict(graph.constants)
    folder = _Folder(budget, graph)
    kept = []
    for node in graph.nodes:
        inputs = [constant(constants[name]) if name else None for name in node.inputs if not name or name in constants]
        if len(inputs) < len(node.inputs) or node_faults(node) or node.op not in RULES:
            kept.append(node)
            continue
        results = infer(node, inputs)
        if folder.may_evaluate(node, inputs) and folder.affords(results):
            values = folder.settle(node, inputs, results)
            constants |= {o: k.value for o, k in zip(node.outputs, values, strict=False) if o and k.value is not None}
        else:
            kept.append(node)
    return graph.with_nodes(kept, constants)


def infer(node: Node, inputs: Sequence[Known | None]) -> tuple[Known, ...]:
    """Shape and type of a node's outputs, by its rule."""
    faults = node_faults(node)
    if not faults and node.op not in RULES:
        faults = [f"{node.label}: operator {node.op} has no shape rule"]
    if faults:
        raise UnsupportedModelError(listed("not implemented", faults))
    try:
        result = RULES[node.op](*inputs, **honoured(node, defaults=True))
    except LstmEngineError as error:
        raise type(error)(f"{node.label}: {error}") from error
    except (ValueError, IndexError, TypeError, AttributeError, ArithmeticError) as error:
        got = ", ".join("absent" if k is None else str(k) for k in inputs)
        raise ModelFormatError(f"{node.label}: inputs {got} do not fit: {error}") from error
    return (result,) if isinstance(result, Known) else tuple(result)


def constant(value: np.ndarray) -> Known:
    """What is known of a constant: all."""
    return Known(value.shape, value.dtype, value)


class _Folder:
    """Evaluates what is known, within a budget of elements."""

    def __init__(self, budget: int, graph: Graph) -> None:
        self.limit = max(budget, sum(value.size for value in graph.constants.values()))
        self.left = TOTAL * self.limit

    def may_evaluate(self, node: Node, inputs: Sequence[Known | None]) -> bool:
        """Whether no feed can change the outputs. A recurrent node is never folded: it may have any length."""
        if node.op in ("Shape", "Size"):
            return True
        return node.op not in ("LSTM", "GRU", "RNN") and all(k is None or k.value is not None for k in inputs)

    def affords(self, results: Iterable[Known]) -> bool:
        """Whether the budget still allows these results."""
        count = sum(math.prod(k.shape) for k in results)
        return count <= min(self.limit, self.left)

    def settle(self, node: Node, inputs: Sequence[Known | None], results: tuple[Known, ...]) -> tuple[Known, ...]:
        """The results with their values where those are known."""
        if not self.may_evaluate(node, inputs):
            return results
        if not self.affords(results):
            made = ", ".join(map(str, results))
            raise UnsupportedModelError(f"{node.label}: makes {made}, more than the budget of {self.limit} elements")
        if node.op not in VIEWS:
            self.left -= sum(math.prod(k.shape) for k in results)
        values = evaluate(node, [None if k is None else _value_or_shape(k) for k in inputs])
        return tuple(constant(value) for value in values)


def _value_or_shape(known: Known) -> np.ndarray:
    """The value, or for Shape and Size, which look at nothing else, an array of that shape without memory."""
    return np.broadcast_to(np.zeros((), known.dtype), known.shape) if known.value is None else known.value


def _input_shapes(graph: Graph, shapes: Mapping[str, Size]) -> dict[str, Size]:
    """The shapes of all inputs; those of optional ones from the named dimensions of the others."""
    names = {spec.name for spec in graph.inputs}
    faults = [f"'{name}' is not an input" for name in shapes if name not in names]
    bound = {
        dim: size
        for spec in graph.inputs
        for dim, size in zip(spec.shape or (), shapes.get(spec.name, ()), strict=False)
        if isinstance(dim, str)
    }
    found: dict[str, Size] = {}
    for spec in graph.inputs:
        if spec.name in shapes:
            found[spec.name] = tuple(int(size) for size in shapes[spec.name])
            continue
        size = sized(spec, bound)
        if not spec.optional or size is None:
            faults.append(f"the shape of '{spec}' is missing")
        found[spec.name] = size or ()
    if faults:
        raise InputError(listed(f"shapes for {graph.origin}", faults))
    return found
