"""What is known of a graph's tensors at a few sets of input sizes, as far as it can be known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from math import prod
from typing import Final

import numpy as np

from ...errors import LstmEngineError
from ...graph import Graph, Node, TensorSpec
from ...reference import OPERATORS, evaluate, node_faults
from ..shape_rules import RULES, Known
from ..shapes import constant, infer

#: Sizes for the dimensions that a file leaves open. What is recognised must be the same at all of them; they are
#: distinct primes that the file itself does not use, so that no two dimensions are taken for one; the large ones are
#: past any bound a file may put.
PRIMES: Final = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101)
LARGE_SIZES: Final = (1000003, 1000033, 1000037, 1000039, 1000081, 1000099, 1000117, 1000121)
#: Operators whose operands have the same axes.
JOINING: Final = frozenset({"Add", "Sub", "Mul", "Div", "Min", "Max", "Sum", "Where"})
#: How often dimensions are made one before a graph is left as it is.
MOST_UNIONS: Final = 4
#: Values of more elements than this are not followed.
MOST_FOLLOWED: Final = 1 << 14


@dataclass
class Surroundings:
    """Shape, type and, where no feed can change it, value of each tensor met so far.

    ``dimensions``: the open dimension that has each size. ``unlike``: pairs of them that must be one, since an
    operator joins them; exporters name the batch of each input anew.
    """

    known: dict[str, Known] = field(default_factory=dict)
    dimensions: dict[int, str] = field(default_factory=dict)
    unlike: set[tuple[str, str]] = field(default_factory=set)

    @staticmethod
    def of(graph: Graph, sizes: Sequence[int], united: Mapping[str, str]) -> Surroundings:
        """Inputs and constants of a graph; its open dimensions have these sizes, in the order they are met.

        ``united``: dimensions that are another one.
        """
        known = {name: constant(value) for name, value in graph.constants.items()}
        named: dict[str, int] = {}
        for spec in graph.inputs:
            shape = _sized(spec, named, sizes, united)
            if shape is not None:
                known[spec.name] = Known(shape, spec.dtype)
        return Surroundings(known, {size: name for name, size in named.items()})

    def inside(self, body: Graph) -> Surroundings:
        """What the body of a control-flow node sees, its inputs left out."""
        mine = {name: constant(value) for name, value in body.constants.items()}
        return Surroundings({**self.known, **mine}, self.dimensions, self.unlike)

    def follow(self, nodes: Iterable[Node]) -> None:
        """Learn what these nodes make; nothing where a shape cannot be known."""
        for node in nodes:
            for name in node.outputs:
                self.known.pop(name, None)
            if any(name and name not in self.known for name in node.inputs):
                continue
            if node.op not in RULES or node_faults(node):
                continue
            inputs = [self.known[name] if name else None for name in node.inputs]
            try:
                results = self._settled(node, inputs, infer(node, inputs))
            except LstmEngineError:
                shapes = [k.shape for k in inputs if k is not None]
                if node.op in JOINING:
                    self._note_unlike(shapes)
                elif node.op == "Concat":
                    self._note_unlike([_without(shape, int(node.attributes["axis"])) for shape in shapes])
                continue
            self.known |= {name: k for name, k in zip(node.outputs, results, strict=False) if name}

    def _note_unlike(self, shapes: list[tuple[int, ...]]) -> None:
        for column in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
            names = sorted({self.dimensions[size] for size in column if size in self.dimensions})
            if len(names) > 1:
                self.unlike.add((names[0], names[1]))

    def _settled(self, node: Node, inputs: list[Known | None], results: tuple[Known, ...]) -> tuple[Known, ...]:
        if node.op in ("Shape", "Size"):
            x = inputs[0]
            shape = np.zeros((), np.float32) if x is None else np.broadcast_to(np.zeros((), x.dtype), x.shape)
            return tuple(constant(value) for value in evaluate(node, [shape]))
        fixed = all(k is None or k.value is not None for k in inputs) and not OPERATORS[node.op].random
        small = all(prod(k.shape) <= MOST_FOLLOWED for k in results)
        controls = any(isinstance(value, Graph) for value in node.attributes.values())
        if not fixed or not small or controls or node.op in ("LSTM", "GRU", "RNN"):
            return results
        return tuple(constant(value) for value in evaluate(node, [None if k is None else k.value for k in inputs]))

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Sizes of a tensor's axes; None where they are not known."""
        return self.known[name].shape if name in self.known else None

    def value(self, name: str) -> np.ndarray | None:
        """What a tensor holds, if no feed can change it."""
        return self.known[name].value if name in self.known else None


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(size for k, size in enumerate(shape) if k not in (axis, axis + len(shape)))


def survey(graph: Graph, united: Mapping[str, str], *, large: bool) -> list[Surroundings]:
    """What is known of a graph's inputs at each set of sizes, ``large`` ones last on request."""
    taken = {dim for spec in graph.inputs for dim in spec.shape or () if isinstance(dim, int)}
    taken |= {size for value in graph.constants.values() for size in value.shape}
    free = [prime for prime in PRIMES if prime not in taken]
    if not open_dimensions(graph):
        return [Surroundings.of(graph, free, united)]
    sizes = (free, free[1:], LARGE_SIZES) if large else (free, free[1:])
    return [Surroundings.of(graph, each, united) for each in sizes]


def followed(graph: Graph) -> list[Surroundings]:
    """What is known of all of a graph's tensors at each set of sizes."""
    united: dict[str, str] = {}
    for _ in range(MOST_UNIONS):
        surroundings = survey(graph, united, large=False)
        for around in surroundings:
            around.follow(graph.nodes)
        more = unite(graph, united, surroundings)
        if more == united:
            break
        united = more
    return surroundings


def unite(graph: Graph, united: Mapping[str, str], surroundings: Iterable[Surroundings]) -> dict[str, str]:
    """``united`` with the dimensions that must be one; two of the same input stay two."""
    more = dict(united)
    for one, other in sorted({pair for around in surroundings for pair in around.unlike}):
        one, other = _root(more, one), _root(more, other)
        if one != other and not any({one, other} <= _dimensions(spec, more) for spec in graph.inputs):
            more[other] = one
    return more


def _dimensions(spec: TensorSpec, united: Mapping[str, str]) -> set[str]:
    """The open dimensions of an input."""
    named = [(f"{spec.name}[{k}]" if dim is None else dim) for k, dim in enumerate(spec.shape or ())]
    return {_root(united, dim) for dim in named if isinstance(dim, str)}


def _root(united: Mapping[str, str], name: str) -> str:
    while name in united:
        name = united[name]
    return name


def _sized(
    spec: TensorSpec, named: dict[str, int], sizes: Sequence[int], united: Mapping[str, str]
) -> tuple[int, ...] | None:
    if spec.shape is None:
        return None
    shape = []
    for index, dim in enumerate(spec.shape):
        if isinstance(dim, int):
            shape.append(dim)
        else:
            key = _root(united, f"{spec.name}[{index}]" if dim is None else dim)
            shape.append(named.setdefault(key, sizes[len(named) % len(sizes)]))
    return tuple(shape)


def open_dimensions(graph: Graph) -> bool:
    """Whether the inputs of a graph may have several shapes."""
    return any(spec.shape is None or not all(isinstance(dim, int) for dim in spec.shape) for spec in graph.inputs)
