"""Tracing in a graph at large: cut off at what a matrix is multiplied with, or one cell would reach into the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ...graph import Node
from .elements import Elements
from .surroundings import Surroundings
from .trace import CELLS, MOVES, Trace


class CutTrace(Trace):
    """A trace whose products read leaves, or elements moved out of leaves.

    A product of two tensors is followed further all the same: r ∘ h of a GRU is one. What only the sizes of the feeds
    decide, a state of zeros for one, is a leaf too: it has a name to be read by.
    """

    def __init__(self, nodes: Iterable[Node], around: Surroundings, table: Elements) -> None:
        super().__init__(nodes, around, table)
        self._cut: set[str] = set()
        self._seen: set[str] = set()

    def value(self, name: str) -> np.ndarray | None:
        """The value of a tensor that is constant in the file, or a matter of shapes."""
        value = super().value(name)
        return None if value is not None and value.dtype.kind == "f" and name in self.producers else value

    def _needs(self, name: str) -> Sequence[str]:
        node = self.producers.get(name)
        filled = node is not None and node.op in ("Expand", "Tile") and self.around.value(name) is not None
        if name in self._cut or filled or (node is not None and node.op in CELLS):
            return ()
        needs = super()._needs(name)
        if needs and node is not None and node.op in ("MatMul", "Gemm"):
            for factor in node.inputs[:2]:
                self._cut_behind(factor)
        return needs

    def _followed(self, node: Node) -> bool:
        return not any(output in self._cut for output in node.outputs) and super()._followed(node)

    def _cut_behind(self, name: str) -> None:
        """Make leaves of what the elements of a factor are moved out of."""
        waiting = [name]
        while waiting:
            name = waiting.pop()
            if name in self._seen or self._is_known(name):
                continue
            self._seen.add(name)
            node = self.producers.get(name)
            if node is None or node.op == "Mul":
                continue
            if node.op in MOVES or node.op == "Cast":
                waiting += super()._needs(name)
            else:
                self._cut.add(name)
