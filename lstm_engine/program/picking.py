"""Lowering of Gather and GatherElements by computed indices: which element each result takes at which index.

Found by running the operator's definition on element numbers, at index 0 and on the numbers of the indices: what is
left to run time is a table's row per piece and one multiplication by the index.
"""

from __future__ import annotations

from math import prod

import numpy as np

from ..encoding import Opcode, Pick
from ..graph import Node
from .lower import Lowering, NoInstructionError, falls_back
from .program import Pinned, Rows
from .rearranging import MOST_ELEMENTS, NOWHERE, TOO_LARGE, homes, lower_moves, numbers_of, physical_numbers


@falls_back("Gather", "GatherElements")
def lower_gathered(low: Lowering, node: Node) -> None:
    """Elements moved as indices say, known or computed."""
    if low.value(node.input(1)) is None:
        lower_pick_computed(low, node)
    else:
        lower_moves(low, node)


def lower_pick_computed(low: Lowering, node: Node) -> None:
    """Pieces of each step's rows at computed places along one axis; a whole sequence's steps are such an axis too."""
    data, named, result = node.input(0), node.input(1), node.output(0)
    shape, indices = low.shape(data), low.shape(named)
    if max(map(prod, (shape, indices, low.shape(result)))) > MOST_ELEMENTS:
        raise NoInstructionError(TOO_LARGE)
    if not prod(shape) or not prod(low.shape(result)):
        raise NoInstructionError("it moves nothing")
    axis = int(node.attributes.get("axis", 0)) % len(shape)
    x, index = low.read(data), low.read(named)
    if index.dtype not in (np.int32, np.int64) or max(x.together, index.together) > 1:
        raise NoInstructionError("its indices are not integers, or its rows hold several vectors")
    across = _role(low, data, axis)
    if across == "time" and (low.plan.causal or low.plan.streamed):
        raise NoInstructionError("it picks steps")
    first, which = _at_index_zero(node.op, shape, indices, axis)
    sources = _homes_of(low, result, data, first, steps_apart=across != "time")
    names = _homes_of(low, result, named, which, steps_apart=True)
    timed, batched = (x.timed and across != "time") or index.timed, low.form(result).batched
    out = low.new_rows(result, timed, batched, sources.shape[2], x.dtype)
    table = _pieces(low, x, index, out, sources, names)
    low.fallible = True
    low.emit(
        Opcode.PICK,
        {
            Pick.X: x.place,
            Pick.X_STEP: low.step_stride(x) if across != "time" else 0,
            Pick.INDEX: index.place,
            Pick.INDEX_STEP: low.step_stride(index),
            Pick.INDEX_BYTES: index.dtype.itemsize,
            Pick.OUT: out.place,
            Pick.OUT_STEP: low.step_stride(out),
            Pick.PIECES: Pinned(low.store.shared(table, np.int64)),
            Pick.COUNT: len(table),
            Pick.ALONG: _along(low, data, axis, across, x),
            Pick.LIMIT: 0 if across == "time" and x.timed else shape[axis],
            Pick.TIMED: int(timed),
        },
        f"{len(table)} pieces of {int(table[:, 3].sum())} bytes along {across}",
    )
    low.rows[result] = out


def _role(low: Lowering, name: str, axis: int) -> str:
    """What an axis is in memory: 'time', 'batch' or 'width'."""
    atoms, form = low.roles.axes[name][axis], low.form(name)
    if form.timed and atoms == low.roles.time:
        return "time"
    if form.batched and atoms == low.roles.batch:
        return "batch"
    if not set(atoms) <= set(form.width):
        raise NoInstructionError("it picks along several steps or rows at once")
    return "width"


def _along(low: Lowering, name: str, axis: int, across: str, x: Rows) -> int:
    """Bytes from one place along an axis to the next."""
    if across == "time":
        return low.step_stride(x)
    if across == "batch":
        return x.stride if x.batched else 0
    atoms, width = low.roles.axes[name][axis], low.form(name).width
    if not atoms:
        return 0
    first = width.index(atoms[0])
    if width[first : first + len(atoms)] != atoms:
        raise NoInstructionError("its rows lie in another order")
    return low.roles.size(width[first + len(atoms) :]) * x.dtype.itemsize


def _at_index_zero(
    op: str, shape: tuple[int, ...], indices: tuple[int, ...], axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each element of the result the number of the element it takes at index 0, and that of its index."""
    numbers, which = numbers_of(shape), numbers_of(indices)
    zeros = np.zeros(indices, np.int64)
    if op == "GatherElements":
        rest = tuple(slice(None) if k == axis else slice(0, n) for k, n in enumerate(indices))
        return np.take_along_axis(numbers[rest], zeros, axis), which
    taken = np.take(numbers, zeros, axis)
    spread = which.reshape((1,) * axis + indices + (1,) * (len(shape) - axis - 1))
    return taken, np.broadcast_to(spread, taken.shape)


def _homes_of(low: Lowering, result: str, name: str, numbers: np.ndarray, *, steps_apart: bool) -> np.ndarray:
    """For each element of the result's rows the column and the row that an operand's element lies in: [2, B, width].

    Raises NoInstructionError where steps differ in this. ``steps_apart``: a step of the result takes from its own.
    """
    physical = physical_numbers(low, result, numbers)
    found = homes(low, 0, name)[physical]
    step = found[..., 2]
    own = np.arange(physical.shape[0])[:, None, None] if steps_apart else 0
    if ((step != NOWHERE) & (step != own)).any() or (found[..., 1:4:2] != found[:1, ..., 1:4:2]).any():
        raise NoInstructionError("it takes other steps")
    taken: np.ndarray = np.moveaxis(found[0][..., 1:4:2], -1, 0)
    return taken


def _pieces(low: Lowering, x: Rows, index: Rows, out: Rows, sources: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Runs of elements that one index moves together, [count, 4]: source, index, target, length, all in bytes."""

    def offsets(rows: Rows, home: np.ndarray) -> np.ndarray:
        columns, row = home[0], home[1]
        stride = rows.stride if rows.batched else 0
        flat: np.ndarray = (np.maximum(row, 0) * stride + columns * rows.dtype.itemsize).reshape(-1)
        return flat

    size = x.dtype.itemsize
    source, named = offsets(x, sources), offsets(index, names)
    rows = np.arange(sources.shape[1])[:, None] * out.stride
    target = (rows + np.arange(sources.shape[2]) * size).reshape(-1)
    apart = (np.diff(source) != size) | (np.diff(target) != size) | (np.diff(named) != 0)
    starts = np.concatenate([[0], np.flatnonzero(apart) + 1])
    lengths = np.diff(np.concatenate([starts, [len(source)]])) * size
    return np.ascontiguousarray(np.stack([source[starts], named[starts], target[starts], lengths], axis=1), np.int64)
