"""Whether what holds for two numbers of time steps holds for all.

A network may compute with its number of steps T. Sums and products of T differ from one T to another, so comparing
two T shows them; what is clipped, compared or rounded may be the same at two T and another at a third.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ..graph import Graph, Node
from .axes import ELEMENTWISE
from .shapes import Specialised

#: Operators that hand elements on as they are: those of their first input, or of all.
_MOVES: Final = frozenset({
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
})  # fmt: skip
_COMPARISONS: Final = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_RANGED: Final = frozenset({"Pad", "Slice"})


def settles(graph: Graph, one: Specialised, other: Specialised) -> Node | None:
    """The first node that may give the same at these two numbers of steps, but not at another; None if none does."""
    sizes: set[str] = set()  # tensors whose elements are sizes of axes, or constants
    for node in graph.nodes:
        if node.op in ("Shape", "Size"):
            sizes.update(node.outputs)
        elif _cuts(node, one, other) or _levels(node, one, other, sizes):
            return node
        elif node.op in _MOVES and any(name in sizes for name in node.inputs):
            sizes.update(node.outputs)
    return None


def _cuts(node: Node, one: Specialised, other: Specialised) -> bool:
    """Whether a Slice or Pad gives several elements of an axis that differs, and as many at both."""
    if node.op not in _RANGED or node.output(0) in one.values:
        return False
    before = zip(one.shapes[node.input(0)], other.shapes[node.input(0)], strict=True)
    after = zip(one.shapes[node.output(0)], other.shapes[node.output(0)], strict=True)
    return any(a != b and n == m and n > 1 for (a, b), (n, m) in zip(before, after, strict=True))


def _levels(node: Node, one: Specialised, other: Specialised, sizes: set[str]) -> bool:
    """Whether elements that differ come out as elements that do not."""
    differing = [name for name in node.inputs if name in one.values and _differs(one.values[name], other.values[name])]
    if not differing:
        return False
    if node.op in _MOVES:
        picked = node.op in ("Gather", "Slice") and any(name in differing for name in node.inputs[1:])
        return picked and any(not _differs(one.values[n], other.values[n]) for n in node.outputs if n in one.values)
    if node.op in _COMPARISONS and _beyond_all_sizes(node, one, other, sizes):
        return False
    for name in filter(None, node.outputs):
        if name not in one.values:
            continue
        here, there = one.values[name], other.values[name]
        if here.shape != there.shape:
            continue
        if node.op not in ELEMENTWISE:
            return bool((here == there).all())
        changed = [np.broadcast_to(one.values[n] != other.values[n], here.shape) for n in differing]
        if (np.logical_or.reduce(changed) & (here == there)).any():
            return True
    return False


def _differs(here: np.ndarray, there: np.ndarray) -> bool:
    return here is not there and not np.array_equal(here, there)


def _beyond_all_sizes(node: Node, one: Specialised, other: Specialised, sizes: set[str]) -> bool:
    """Whether a size is compared with negative numbers alone, which no size is: what Expand's -1 comes to."""
    left, right = (one.values.get(name) for name in node.inputs[:2])
    if left is None or right is None:
        return False
    return any(
        name in sizes and bool((bound < 0).all()) for name, bound in ((node.input(0), right), (node.input(1), left))
    )
