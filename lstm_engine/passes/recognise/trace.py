"""Follows the tensors of a piece of a graph as elements: which expression each of them is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Final

import numpy as np

from ...errors import LstmEngineError
from ...graph import Node
from ...reference import evaluate
from .elements import Elements, Ids, Kind
from .opened import opened
from .surroundings import Surroundings

#: Tensors of more elements than this are not followed.
MOST_ELEMENTS: Final = 1 << 16
#: Operators that only move elements of their first input (Concat: of all); the other inputs say how.
MOVES: Final = frozenset({
    "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
})  # fmt: skip
CELLS: Final = ("LSTM", "GRU", "RNN")
BINARY: Final = {
    "Add": Kind.ADD, "Sub": Kind.SUB, "Mul": Kind.MUL, "Div": Kind.DIV, "Min": Kind.MIN, "Max": Kind.MAX,
    "Sum": Kind.ADD, "Less": Kind.LESS, "LessOrEqual": Kind.LESS_EQUAL, "And": Kind.AND,
}  # fmt: skip
SWAPPED: Final = {"Greater": Kind.LESS, "GreaterOrEqual": Kind.LESS_EQUAL}
#: Functions of one number: the parameters each takes, with their defaults.
FUNCTIONS: Final[dict[str, dict[str, float]]] = {
    "Sigmoid": {},
    "Tanh": {},
    "Relu": {},
    "Softsign": {},
    "Softplus": {},
    "Exp": {},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "LeakyRelu": {"alpha": 0.01},
    "Elu": {"alpha": 1.0},
    "ThresholdedRelu": {"alpha": 1.0},
}


class Trace:
    """The tensors of some nodes as elements, each worked out when it is asked for."""

    def __init__(self, nodes: Iterable[Node], around: Surroundings, table: Elements) -> None:
        self.around = around
        self.table = table
        self.order = tuple(nodes)
        self.producers = {name: node for node in self.order for name in node.outputs if name}
        self.found: dict[str, Ids | None] = {}
        self.leaves: dict[str, Ids] = {}
        self.leaf_names: dict[int, str] = {}
        self.holders: dict[bytes, str] = {}
        self._matrices: dict[tuple[str, bool], np.ndarray] = {}

    def value(self, name: str) -> np.ndarray | None:
        """What a tensor holds, if no feed can change it."""
        return self.around.value(name)

    def ids(self, name: str) -> Ids | None:
        """The elements of a tensor; None where its shape is not known or it is too large."""
        waiting = [name]
        while waiting:
            top = waiting[-1]
            if top in self.found:
                waiting.pop()
                continue
            needs = [need for need in self._needs(top) if need not in self.found]
            if needs:
                waiting.extend(needs)
                continue
            waiting.pop()
            self._settle(top)
        return self.found[name]

    def assume(self, name: str, ids: Ids) -> None:
        """Take these as the elements of a tensor, whatever makes it."""
        self.found[name] = ids
        self.holders.setdefault(ids.tobytes(), name)

    def leaf(self, name: str) -> Ids | None:
        """Make a tensor one of which nothing is known."""
        shape = self.around.shape(name)
        if shape is None or prod(shape) > MOST_ELEMENTS:
            self.found[name] = None
            return None
        self.leaf_names[self.table.leaves] = name
        ids = self.leaves[name] = self.table.leaf(shape)
        self.assume(name, ids)
        return ids

    def holder(self, ids: Ids) -> str | None:
        """A tensor that holds just these elements in this order, in whatever shape."""
        return self.holders.get(np.ascontiguousarray(ids).tobytes())

    # --- one node ----------------------------------------------------------------------------------------------------

    def _is_known(self, name: str) -> bool:
        return self.value(name) is not None

    def _needs(self, name: str) -> Sequence[str]:
        """The inputs whose elements the expression of a tensor is made of; none for leaves and constants."""
        node = self.producers.get(name)
        if node is None or self._is_known(name) or node.domain:
            return ()
        if node.op in ("MatMul", "Gemm"):
            return [i for i in node.inputs if i and not self._is_known(i)] + [i for i in node.inputs[2:3] if i]
        if node.op in MOVES:
            return node.inputs if node.op == "Concat" else node.inputs[:1]
        if node.op in CELLS:
            return self._cell_needs(node)
        if node.op in BINARY or node.op in SWAPPED or node.op in ("Where", "Clip"):
            return [i for i in node.inputs if i]
        return node.inputs[:1] if node.op in FUNCTIONS or node.op in ("Cast", "Neg", "Not") else ()

    def _cell_needs(self, node: Node) -> Sequence[str]:
        """A recurrent node of one step with known weights is what it computes."""
        shape = self.around.shape(node.input(0))
        absent = not node.input(4) and len(node.inputs) <= 7
        known = all(self._is_known(name) for name in node.inputs[1:4] if name)
        if shape is None or shape[:1] != (1,) or not absent or not known:
            return ()
        return [name for name in (node.input(0), *node.inputs[5:7]) if name]

    def _settle(self, name: str) -> None:
        value = self.value(name)
        if value is not None:
            followed = value.size <= MOST_ELEMENTS and value.dtype.kind in "fiub"
            self.found[name] = None
            if followed:
                self.assume(name, self.table.constant(value))
            return
        node = self.producers.get(name)
        results = None if node is None or not self._followed(node) else self._expressions(node)
        if node is None or results is None:
            self.leaf(name)
            return
        for output, ids in zip(node.outputs, results, strict=False):
            if output and output not in self.found:
                if ids.shape == self.around.shape(output) and ids.size <= MOST_ELEMENTS:
                    self.assume(output, ids)
                else:
                    self.found[output] = None

    def _followed(self, node: Node) -> bool:
        if node.domain or any(self.around.shape(output) is None for output in node.outputs if output):
            return False
        traced = self._needs(node.outputs[0])
        return bool(traced) and all(self.found.get(need) is not None for need in traced)

    def _expressions(self, node: Node) -> list[Ids] | None:
        if node.op in MOVES:
            return self._moved(node)
        if node.op in CELLS:
            weights = [self.value(node.input(index)) for index in (1, 2, 3)]
            states = [self.found.get(node.input(index)) for index in (5, 6)]
            return opened(self.table, node, self._ids(node.inputs[0]), weights, states)
        rule = _RULES.get(node.op)
        try:
            made = rule(self, node) if rule is not None else None
        except (ValueError, TypeError):  # inputs or attributes that do not fit; whoever runs the node says so
            made = None
        return None if made is None else [made]

    def _moved(self, node: Node) -> list[Ids] | None:
        data = len(node.inputs) if node.op == "Concat" else 1
        inputs = [
            None if not name else self._ids(name) if index < data else self.value(name)
            for index, name in enumerate(node.inputs)
        ]
        if any(name and x is None for name, x in zip(node.inputs, inputs, strict=True)):
            return None
        try:
            return list(evaluate(node, inputs))
        except LstmEngineError:
            return None

    def _ids(self, name: str) -> Ids:
        ids = self.found[name]
        assert ids is not None  # _followed() saw to it
        return ids

    def _dtype(self, name: str) -> np.dtype[np.generic]:
        return self.around.known[name].dtype

    def _matrix(self, name: str, transposed: bool = False) -> np.ndarray | None:
        """A constant as the right operand of a product."""
        value = self.value(name)
        if value is None or value.dtype.kind != "f" or value.ndim < 2 or prod(value.shape[:-2]) != 1:
            return None
        key = (name, transposed)
        if key not in self._matrices:
            matrix = value.reshape(value.shape[-2:])
            self._matrices[key] = matrix.T if transposed else matrix
        return self._matrices[key]

    def _binary(self, node: Node) -> Ids | None:
        if node.op == "Div" and self._dtype(node.inputs[0]).kind != "f":
            return None
        kind = BINARY[node.op]
        result = self._ids(node.inputs[0])
        for name in node.inputs[1:]:
            result = self.table.binary(kind, result, self._ids(name))
        return result

    def _swapped(self, node: Node) -> Ids:
        return self.table.binary(SWAPPED[node.op], self._ids(node.inputs[1]), self._ids(node.inputs[0]))

    def _function(self, node: Node) -> Ids | None:
        if set(node.attributes) - set(FUNCTIONS[node.op]):
            return None
        given = {name: float(node.attributes.get(name, value)) for name, value in FUNCTIONS[node.op].items()}
        return self.table.function(self._ids(node.inputs[0]), node.op, **given)

    def _clip(self, node: Node) -> Ids | None:
        result = self._ids(node.inputs[0])
        for index, kind in ((1, Kind.MAX), (2, Kind.MIN)):
            if node.input(index):
                result = self.table.binary(kind, result, self._ids(node.input(index)))
        return result

    def _cast(self, node: Node) -> Ids | None:
        """Only where every value stays what it is."""
        before, after = self._dtype(node.inputs[0]), self._dtype(node.outputs[0])
        exact = before == after or (before.kind in "iu" and after.kind in "if" and after.itemsize >= 4)
        return self._ids(node.inputs[0]) if exact else None

    def _negated(self, node: Node) -> Ids:
        return self.table.negated(self._ids(node.inputs[0]))

    def _not(self, node: Node) -> Ids:
        return self.table.inverted(self._ids(node.inputs[0]))

    def _where(self, node: Node) -> Ids:
        condition, yes, no = (self._ids(name) for name in node.inputs)
        return self.table.where(condition, yes, no)

    def _matmul(self, node: Node) -> Ids | None:
        left, right = node.inputs
        matrix = self._matrix(right)
        x = self.found.get(left)
        if matrix is not None and x is not None and x.ndim >= max(1, self.around.known[right].rank - 1):
            return self.table.dot(x, matrix)
        matrix = self._matrix(left, True)
        x = self.found.get(right)
        if matrix is not None and x is not None and x.ndim == 2 and self.around.known[left].rank == 2:
            product: Ids = self.table.dot(x.T, matrix).T
            return product
        return None

    def _gemm(self, node: Node) -> Ids | None:
        alpha, beta = (self.table.constant(np.float64(node.attributes.get(key, 1.0))) for key in ("alpha", "beta"))
        matrix = self._matrix(node.inputs[1], bool(node.attributes.get("transB", 0)))
        if matrix is None or self._is_known(node.inputs[0]):
            return None
        x = self._ids(node.inputs[0])
        product = self.table.dot(x.T if node.attributes.get("transA", 0) else x, matrix)
        product = self.table.binary(Kind.MUL, alpha, product)
        if not node.input(2):
            return product
        return self.table.binary(Kind.ADD, product, self.table.binary(Kind.MUL, beta, self._ids(node.input(2))))


_RULES: Final[dict[str, Callable[[Trace, Node], Ids | None]]] = {
    **dict.fromkeys(BINARY, Trace._binary),
    **dict.fromkeys(SWAPPED, Trace._swapped),
    **dict.fromkeys(FUNCTIONS, Trace._function),
    "Clip": Trace._clip,
    "Cast": Trace._cast,
    "Neg": Trace._negated,
    "Not": Trace._not,
    "Where": Trace._where,
    "MatMul": Trace._matmul,
    "Gemm": Trace._gemm,
}
