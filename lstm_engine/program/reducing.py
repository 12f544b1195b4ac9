"""Lowering of reductions and pooling within rows: tables say which elements of a row each result is made of."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Final

import numpy as np

from ..encoding import Extreme, Opcode, Operation, Reduce
from ..graph import Node
from ..reference.windows import pool_windows
from .convolution import MOST_ENTRIES, grid, table
from .lower import Lowering, NoInstructionError, emits
from .packing import LANES, blocks
from .pointwise import emit_join
from .program import Rows
from .rearranging import progressions, rearranged_row

REDUCTIONS: Final = {
    "ReduceSum": Operation.ADD,
    "ReduceMean": Operation.ADD,
    "ReduceMax": Operation.MAXIMUM,
    "ReduceMin": Operation.MINIMUM,
    "GlobalAveragePool": Operation.ADD,
    "GlobalMaxPool": Operation.MAXIMUM,
}
#: By operator and select_last_index.
EXTREMES: Final = {
    ("ArgMax", 0): Extreme.FIRST_GREATEST,
    ("ArgMax", 1): Extreme.LAST_GREATEST,
    ("ArgMin", 0): Extreme.FIRST_LEAST,
    ("ArgMin", 1): Extreme.LAST_LEAST,
}
#: Results that follow one another are made a vector at a time from so many on.
FEWEST_NEIGHBOURS: Final = 8
#: How far apart, in elements, places may lie that are read a vector at a time.
EVEN: Final = (1, 2)


@emits(*REDUCTIONS, "ArgMax", "ArgMin")
def lower_reduction(low: Lowering, node: Node) -> None:
    """Over axes that lie within rows."""
    source, result = node.input(0), node.output(0)
    rank = len(low.shape(source))
    form, axes = low.form(source), low.roles.axes[source]
    if form.width != tuple(atom for axis in axes for atom in axis if atom in form.width):
        raise NoInstructionError("its rows lie in another order")
    gone = {atom for axis in _reduced(low, node, rank) for atom in axes[axis]}
    if not gone <= set(form.width):
        raise NoInstructionError("it reduces over steps or rows")
    if low.form(result).width != tuple(atom for atom in form.width if atom not in gone):
        raise NoInstructionError("its result lies in another order")
    if not 0 < low.roles.size(form.width) <= MOST_ENTRIES:
        raise NoInstructionError("it reduces nothing, or more than the tables allow")
    sizes = low.roles.sizes
    strides, stride = {}, low.dtype.itemsize
    for atom in reversed(form.width):
        strides[atom] = stride
        stride *= sizes[atom]
    places, offsets = (
        _places([(sizes[atom], strides[atom]) for atom in form.width if (atom in gone) == inside])
        for inside in (False, True)
    )
    mean, last = node.op in ("ReduceMean", "GlobalAveragePool"), int(bool(node.attributes.get("select_last_index", 0)))
    x = low.read_float(source)
    operation = EXTREMES[node.op, last] if node.op.startswith("Arg") else REDUCTIONS[node.op]
    low.rows[result] = emit_reduce(low, result, operation, x, places, offsets, 1.0 / len(offsets) if mean else 1.0)


def _reduced(low: Lowering, node: Node, rank: int) -> Sequence[int]:
    if node.op.startswith("Global"):
        return range(2, rank)
    if node.op.startswith("Arg"):
        return (int(node.attributes.get("axis", 0)) % rank,)
    if not node.input(1):
        return () if node.attributes.get("noop_with_empty_axes", 0) else range(rank)
    axes = low.value(node.input(1))
    if axes is None:
        raise NoInstructionError("its axes are computed at run time")
    if not axes.size:
        return () if node.attributes.get("noop_with_empty_axes", 0) else range(rank)
    return [int(axis) % rank for axis in axes.reshape(-1)]


def _places(axes: list[tuple[int, int]]) -> np.ndarray:
    """Every sum of multiples of the strides, last axis fastest."""
    total = np.zeros((), np.int64)
    for size, stride in axes:
        total = np.add.outer(total, np.arange(size) * stride)
    return total.reshape(-1)


def emit_reduce(
    low: Lowering,
    result: str,
    operation: Operation | Extreme,
    x: Rows,
    places: np.ndarray,
    offsets: np.ndarray,
    scale: float,
) -> Rows:
    """Append REDUCE; returns where its result lies."""
    if max(places.size, offsets.size) > MOST_ENTRIES:
        raise NoInstructionError("it is larger than the tables allow")
    which = isinstance(operation, Extreme)
    groups = _single(np.arange(places.size)) if which else _groups(places, low.dtype.itemsize)
    out = low.new_rows(result, x.timed, x.batched, places.size, np.int64 if which else low.dtype)
    low.emit(
        Opcode.REDUCE,
        {
            Reduce.X: x.place,
            Reduce.X_STRIDE: x.stride,
            Reduce.OUT: out.place,
            Reduce.OUT_STRIDE: out.stride,
            Reduce.GROUPS: table(low, np.column_stack([places[groups[:, 0]], groups])),
            Reduce.COUNT: len(groups),
            Reduce.OFFSETS: table(low, offsets),
            Reduce.DEPTH: offsets.size,
            Reduce.FUNCTION: int(operation),
            Reduce.SCALE: int(np.float64(scale).view(np.int64)),
            Reduce.ROWS: low.per_step(x),
            Reduce.TIMED: int(x.timed),
        },
        f"{operation.name.lower()} of {offsets.size} for {places.size}",
        operations=places.size * offsets.size * low.per_step(x),
    )
    return out


def _groups(places: np.ndarray, size: int) -> np.ndarray:
    """What is made at once, [count, 2]: the first of 16 elements whose places lie evenly and how far apart, or single.

    The last of several vectors may overlap the one before, but where all places are neighbours: rows are padded.
    """
    apart = np.diff(places) // size
    starts, lengths = progressions(apart, np.isin(apart, EVEN) & (np.diff(places) % size == 0))
    if len(starts) == 1 and places.size >= FEWEST_NEIGHBOURS and apart[0] == 1:
        firsts = np.arange(0, places.size, LANES)
        return np.stack([firsts, np.ones_like(firsts)], axis=1)
    whole = lengths >= LANES
    groups = [_single(np.flatnonzero(np.repeat(~whole, lengths)))]
    for start, length in zip(starts[whole], lengths[whole], strict=True):
        firsts = start + np.minimum(np.arange(blocks(length)) * LANES, length - LANES)
        groups.append(np.stack([firsts, np.full_like(firsts, apart[start])], axis=1))
    joined = np.concatenate(groups)
    return np.ascontiguousarray(joined[np.argsort(joined[:, 0], kind="stable")])


def _single(elements: np.ndarray) -> np.ndarray:
    """Elements each by itself, [count, 2]."""
    return np.stack([elements, np.zeros_like(elements)], axis=1)


@emits("MaxPool", "AveragePool")
def lower_pool(low: Lowering, node: Node) -> None:
    """Windows over the axes behind N and C, on a padded copy of the row where there is padding."""
    source, result = node.input(0), node.output(0)
    if any(node.outputs[1:]):
        raise NoInstructionError("the places of its maxima are asked for")
    for name in (source, result):
        if low.form(name).width != tuple(atom for axis in low.roles.axes[name][1:] for atom in axis):
            raise NoInstructionError("its samples are not the program's rows")
    shape = low.shape(source)
    spatial, channels = shape[2:], shape[1]
    given = {k: v for k, v in node.attributes.items() if k in ("auto_pad", "ceil_mode", "dilations", "pads", "strides")}
    defaults: dict[str, Any] = {"strides": None, "dilations": None, "pads": None, "auto_pad": "NOTSET", "ceil_mode": 0}
    at = pool_windows(spatial, node.attributes.get("kernel_shape"), **{**defaults, **given})
    widths = at.widths(spatial)
    padded = tuple(n + before + after for n, (before, after) in zip(spatial, widths, strict=True))
    if max(prod(padded) * channels, prod(at.outputs) * channels) > MOST_ENTRIES:
        raise NoInstructionError("it is larger than the tables allow")
    largest = node.op == "MaxPool"
    x = low.read_float(source)
    if padded != spatial:
        x = _padded(low, source, x, widths, -np.inf if largest else 0.0)
    starts = grid([np.arange(o) * s for o, s in zip(at.outputs, at.strides, strict=True)], padded)
    taps = grid([np.arange(k) * d for k, d in zip(at.kernel, at.dilations, strict=True)], padded)
    places = (np.arange(channels)[:, None] * prod(padded) + starts).reshape(-1)
    size = low.dtype.itemsize
    counts = None if largest else at.counts(spatial, bool(node.attributes.get("count_include_pad", 0)))
    even = counts is None or (counts == counts.reshape(-1)[0]).all()
    scale = 1.0 / float(counts.reshape(-1)[0]) if counts is not None and even else 1.0
    operation = Operation.MAXIMUM if largest else Operation.ADD
    low.rows[result] = emit_reduce(low, result, operation, x, places * size, taps * size, scale)
    if counts is not None and not even:
        shares = low.constant_rows(result, np.broadcast_to(1.0 / counts, low.shape(result)).astype(low.dtype))
        low.rows[result] = emit_join(low, result, Operation.MULTIPLY, low.rows[result], shares)


def _padded(low: Lowering, name: str, x: Rows, widths: Sequence[tuple[int, int]], fill: float) -> Rows:
    """The row's channels with ``fill`` around them."""
    shape = low.shape(name)[1:]
    numbers = np.pad(np.arange(prod(shape)).reshape(shape), [(0, 0), *widths], constant_values=-1).reshape(-1)
    return rearranged_row(low, f"{name} padded", x, numbers, fill)
