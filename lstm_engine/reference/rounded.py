"""Weights of a lesser precision: what the products of a graph are then, exactly.

In bfloat16 a product is that of the rounded weights with the rows, or (``rows_too``: where the processor multiplies
bfloat16 by itself) with rows that are rounded as the weights are, from float32. In int8 both of its operands are levels
times a scale: weights have a scale for each output, rows one of their own, taken from the row as float32:

    scale = max|x| / 127        (h of a cell that stays within ±1: max(1, max|h|) / 127)
    q     = x · (127 / max|x|), to the nearest integer, ties to even
    x·W   = scale · S_W · Σ_k q_k·w_k

A row that is zero, or tiny, adds nothing; one with NaN or ±inf makes NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from ..graph import Graph, Node
from ..precision import LEVELS, bfloat16, int8_levels, summed_axes
from .cells import cell_attributes
from .registry import Array, quiet

#: Rows whose largest element is no larger count as zero: the reciprocal of a smaller one overflows.
NOTHING: Final = np.float32(2.0**-100)


def int8_rows(x: Array, least: float = 0.0, lean: float = 0.0) -> tuple[Array, Array]:
    """x[..., K] as levels (whole numbers in float64) and a float32 scale for each row.

    ``least``: what a row's largest element counts as at least. ``lean``: added to each fraction of a level before
    rounding, to see what near-ties matter.
    """
    with quiet():
        rows = np.asarray(x, np.float32)
        largest = np.maximum(np.abs(rows).max(axis=-1, keepdims=True, initial=0.0), np.float32(least))
        held = np.isfinite(largest) & (largest > NOTHING)
        inverse = np.where(held, np.float32(LEVELS) / largest, np.float32(0))
        levels = np.rint(rows.astype(np.float64) * inverse + lean)
        scale = np.where(held, largest / np.float32(LEVELS), np.where(np.isfinite(largest), 0, np.nan))
    return np.where(held, levels, 0.0), scale.astype(np.float32)


def bfloat16_rows(x: Array, least: Any = 0.0, lean: float = 0.0) -> Array:
    """x[..., K] as float32 rounded to bfloat16; ``least``, ``lean``: as in int8_rows(), of the row's greatest level."""
    with quiet():
        rows = np.asarray(x, np.float32)
        largest = np.maximum(np.abs(rows).max(axis=-1, keepdims=True, initial=0.0), np.float32(least))
        level = np.where(np.isfinite(largest), largest / np.float32(LEVELS + 1), np.float32(0))
        return bfloat16(rows + np.float32(lean) * level if lean else rows)


class NarrowWeights(np.ndarray):
    """Weights whose products with rows, ``x @ W``, are of rounded rows; in all else an array.

    ``least``, ``lean``: of int8_rows(); for stacked directions, W[D, ., .], ``least`` is one number for each.
    """

    least: Any = 0.0
    lean: float = 0.0

    @classmethod
    def of(cls, values: Array, least: Any = 0.0, lean: float = 0.0) -> NarrowWeights:
        """``values``, not copied."""
        weights: NarrowWeights = values.view(cls)
        weights.least, weights.lean = least, lean
        return weights

    def __array_finalize__(self, source: Any) -> None:
        """Views, splits and conversions round as their source does."""
        self.least, self.lean = getattr(source, "least", 0.0), getattr(source, "lean", 0.0)

    def __getitem__(self, index: Any) -> Any:
        """A part; a direction has its own ``least``."""
        part = super().__getitem__(index)
        if isinstance(part, NarrowWeights) and np.ndim(self.least) and isinstance(index, int | slice):
            part.least = self.least[index]
        return part

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Products of a row with the weights in their precision, all else as arrays do it."""
        if ufunc is np.matmul and method == "__call__" and inputs[1] is self:
            return self._times(np.asarray(inputs[0]))
        plain = [np.asarray(x) if isinstance(x, NarrowWeights) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **options)

    def _times(self, x: Array) -> Array:
        raise NotImplementedError


class Bfloat16Weights(NarrowWeights):
    """Weights that meet rows in bfloat16."""

    def _times(self, x: Array) -> Array:
        with quiet():
            rows = bfloat16_rows(x, self.least, self.lean)
            product: Array = rows.astype(x.dtype) @ np.asarray(self).astype(x.dtype)
            return product


class Int8Weights(NarrowWeights):
    """Weights that meet rows in int8."""

    #: Levels and scales by place in memory, shared by all views; with the view, so that no other array takes the place.
    known: dict[Any, tuple[Any, Array, Array]]

    def __array_finalize__(self, source: Any) -> None:
        """As NarrowWeights; one table of levels for all that come of one array."""
        super().__array_finalize__(source)
        self.known = getattr(source, "known", {})

    def _times(self, x: Array) -> Array:
        rows, scale = int8_rows(x, self.least, self.lean)
        levels, scales = self._levels()
        with quiet():
            product = (rows @ levels) * (scale.astype(np.float64) * scales)
            return product.astype(x.dtype)

    def _levels(self) -> tuple[Array, Array]:
        place = (self.__array_interface__["data"], self.shape, self.strides, self.dtype)
        if place not in self.known:
            levels, scales = int8_levels(np.asarray(self, np.float32), axis=0)
            self.known[place] = self, levels.astype(np.float64), scales
        return self.known[place][1:]


#: Weights and the least that the largest element of a row counts as → the same at a precision.
_Hold = Callable[[Array, Any], Array]


def at_precision(
    graph: Graph, precision: str, apart: Container[str] = (), lean: float = 0.0, *, rows_too: bool
) -> Graph:
    """The graph in which the products of its nodes, and of those in branches, have their weights in ``precision``.

    ``apart``: labels of nodes whose weights stay as they are. ``lean``: see int8_rows(). ``rows_too``: in bfloat16 too
    products are of rounded rows.
    """

    def hold(values: Array, least: Any) -> Array:
        if precision == "int8":
            return Int8Weights.of(values, least, lean)
        return Bfloat16Weights.of(bfloat16(values), least, lean) if rows_too else bfloat16(values)

    return _at_precision(graph, precision, apart, hold, {})


def _at_precision(
    graph: Graph, precision: str, apart: Container[str], hold: _Hold, outer: Mapping[str, np.ndarray]
) -> Graph:
    constants = dict(graph.constants)
    known = {**outer, **constants}
    nodes = []
    for node in graph.nodes:
        branches = {
            name: _at_precision(body, precision, apart, hold, known)
            for name, body in node.attributes.items()
            if node.op == "If" and isinstance(body, Graph)
        }
        node = replace(node, attributes={**node.attributes, **branches})
        nodes.append(node if node.label in apart else _held(node, precision, hold, known, constants))
    return replace(graph, nodes=tuple(nodes), constants=constants)


def _held(
    node: Node, precision: str, hold: _Hold, known: Mapping[str, np.ndarray], constants: dict[str, np.ndarray]
) -> Node:
    """The node with weights of its own, at a precision; a factor alpha is part of them."""
    inputs, attributes = list(node.inputs), dict(node.attributes)
    places = [index for index, _ in summed_axes(node, known)]
    if not places:
        return node
    factor = np.float32(attributes.pop("alpha", 1.0)) if node.op == "Gemm" else np.float32(1.0)
    for index in places:
        values = known[inputs[index]] * factor
        inputs[index] = f"{inputs[index]} of {node.label}, {precision}"
        constants[inputs[index]] = hold(values, _least(node) if index == 2 else 0.0)
    return replace(node, inputs=tuple(inputs), attributes=attributes)


def _least(node: Node) -> Array:
    """What the largest element of h counts as at least, by direction."""
    attributes = cell_attributes(node.op, node.attributes)
    free = node.op == "LSTM" and node.input(8)  # a projection may reach beyond
    return np.array([float(attributes.within_one(d) and not free) for d in range(len(attributes.directions))])
