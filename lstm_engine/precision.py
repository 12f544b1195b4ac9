"""Precisions that weights may be held in: which weights of a graph, and how they are rounded.

A graph at a precision is the same graph with rounded weights, still float32, and a word in its metadata. Rounding
what was rounded changes nothing, so packing, saving and loading all come to the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from .graph import Graph, Node, reads

#: Precision of the weights → type of all other numbers.
PRECISIONS: Final[Mapping[str, str]] = {
    "float32": "float32",
    "bfloat16": "float32",
    "int8": "float32",
    "float64": "float64",
}
#: Key of the metadata that say in which precision a file's weights are held; without it they are as the arrays are.
HELD_IN: Final = "lstm_engine.precision"
LEVELS: Final = 127


def rounded(graph: Graph, precision: str) -> Graph:
    """The graph with its weights at a precision; those of bodies (If, Loop, Scan) and convolutions stay as they are."""
    metadata = {key: value for key, value in graph.metadata.items() if key != HELD_IN}
    if precision not in ROUNDINGS:
        return replace(graph, metadata=metadata)
    constants = dict(graph.constants)
    alone = set(weight_axes(graph))
    nodes = [_rounded_node(node, precision, graph.constants, constants, alone) for node in graph.nodes]
    return replace(graph, nodes=tuple(nodes), constants=constants, metadata={**metadata, HELD_IN: precision})


def _rounded_node(
    node: Node, precision: str, known: Mapping[str, np.ndarray], constants: dict[str, np.ndarray], alone: set[str]
) -> Node:
    inputs = list(node.inputs)
    for index, axis in summed_axes(node, known):
        name = inputs[index]
        inputs[index] = name if name in alone else f"{name}, {precision} along {axis}"
        if name not in alone or constants[name] is known[name]:
            constants[inputs[index]] = ROUNDINGS[precision](known[name], axis)
    return replace(node, inputs=tuple(inputs))


def summed_axes(node: Node, known: Mapping[str, np.ndarray]) -> Iterator[tuple[int, int]]:
    """Which of a node's inputs are weights, and the axis that its products sum over in each."""
    places: tuple[tuple[int, int], ...] = ()
    if node.op in ("LSTM", "GRU", "RNN"):
        places = ((1, 2), (2, 2))
    elif node.op in ("MatMul", "Gemm"):
        places = ((1, 1 if node.attributes.get("transB", 0) else 0),)
    for index, axis in places:
        value = known.get(node.input(index))
        if value is not None and value.dtype == np.float32 and value.ndim == (3 if axis == 2 else 2):
            yield index, axis


def weight_axes(graph: Graph) -> dict[str, int]:
    """Constants that are weights and nothing else, and the axis that products sum over in each."""
    axes = {name: axes for name, axes in _uses(graph).items() if len(axes) == 1}
    return {name: axis for name, (axis,) in axes.items() if axis is not None}


def sizes(graph: Graph, precision: str) -> tuple[int, int, int]:
    """Numbers that a graph holds, how many of them are weights in a lesser ``precision``, and the bytes of all."""
    floats = {name: value for name, value in graph.constants.items() if value.dtype.kind == "f"}
    less = {name: axis for name, axis in weight_axes(graph).items() if precision in ROUNDINGS}
    bytes_ = sum(value.nbytes for name, value in floats.items() if name not in less)
    for name, axis in less.items():
        value = floats[name]
        scales = 4 * value.size // max(1, value.shape[axis])
        bytes_ += 2 * value.size if precision == "bfloat16" else value.size + scales
    return sum(value.size for value in floats.values()), sum(floats[name].size for name in less), bytes_


def _uses(graph: Graph) -> dict[str, set[int | None]]:
    """For each name: the axes summed over where it is a weight, None where it is read otherwise."""
    uses: dict[str, set[int | None]] = {}
    for node in graph.nodes:
        axes = dict(summed_axes(node, graph.constants))
        for index, name in enumerate(node.inputs):
            uses.setdefault(name, set()).add(axes.get(index))
        for name in set(reads(node)) - set(node.inputs):  # by bodies
            uses.setdefault(name, set()).add(None)
    for spec in graph.outputs:
        uses.setdefault(spec.name, set()).add(None)
    return uses


# --- rounding --------------------------------------------------------------------------------------------------------


def bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 values rounded to the nearest bfloat16 (ties to even); NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) & np.uint32(0xFFFF0000)
    whole: np.ndarray = np.where(np.isnan(values), np.uint32(0x7FC00000), rounded).view(np.float32)
    return whole


def int8_levels(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 levels and float32 scales (without ``axis``): values ≈ levels·scales, the largest at ±127.

    A scale has 16 bits of mantissa, so that a level times a scale is exact in float32, and rounding what was rounded
    before changes nothing. Weights that are not finite make their scale NaN; those whose scale would be denormal, and
    count as zero in the kernels, make it zero.
    """
    with np.errstate(all="ignore"):
        exact = np.abs(values).max(axis=axis, initial=0.0).astype(np.float32) / np.float32(LEVELS)
        exact = np.where(exact < np.finfo(np.float32).tiny, np.float32(0), exact)
        bits = np.ascontiguousarray(exact).view(np.uint32)
        scales = np.where(np.isfinite(exact), (bits + np.uint32(0x7F)) & np.uint32(0xFFFFFF00), np.uint32(0x7FC00000))
        scales = scales.view(np.float32)
        safe = np.where(np.isfinite(scales) & (scales > 0), scales, np.float32(np.inf))
        levels = np.nan_to_num(np.rint(values / np.expand_dims(safe, axis)), nan=0.0, posinf=0.0, neginf=0.0)
    return np.clip(levels, -LEVELS, LEVELS).astype(np.int8), scales


def int8(values: np.ndarray, axis: int) -> np.ndarray:
    """Values rounded to int8 levels along ``axis`` (the one a product sums over), as float32."""
    levels, scales = int8_levels(values, axis)
    rounded: np.ndarray = levels.astype(np.float32) * np.expand_dims(scales, axis)
    return rounded


#: By precision: an array of weights and the axis a product sums over → the same, rounded.
ROUNDINGS: Final = {"bfloat16": lambda values, axis: bfloat16(values), "int8": int8}
