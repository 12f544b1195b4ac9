"""Lowering of windows where time is one of the axes behind N and C.

A window that is one step long is within a row. One that looks back, in a stream, is a row and rows that follow it,
with what the stream remembers, the last steps of the block before, in front of the block's own: the steps it sees are
offsets, like places along any other axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final

import numpy as np

from ..encoding import Copy, Opcode, Operation
from ..graph import Node
from ..reference.windows import Sizes, Windows, windows
from .convolution import MOST_ENTRIES, Geometry, emit_convolution, grid
from .layers import weights
from .lower import EMITTERS, Lowering, NoInstructionError, emits, falls_back
from .program import Rows
from .rearranging import emit_pieces, filled, rearranged_row
from .reducing import emit_reduce

#: What an operator without a context would put around.
_FILLING: Final = {"CausalConv": 0.0, "CausalMaxPool": -np.inf, "CausalAveragePool": 0.0}


@dataclass(frozen=True)
class View:
    """What the windows of a block read: a row is the first step that a window sees.

    ``step``: bytes from one step to the next; ``sizes``: of the axes within a row behind the channels, padded;
    ``at``: how the windows lie along those; ``taps``: steps from a window's first to each that it sees.
    """

    rows: Rows
    step: int
    sizes: Sizes
    at: Windows
    taps: np.ndarray

    def offsets(self, channels: int, size: int) -> np.ndarray:
        """From a window's place to each element it sees, in bytes: [channels, steps, others]."""
        inside = grid([np.arange(k) * d for k, d in zip(self.at.kernel, self.at.dilations, strict=True)], self.sizes)
        planes = np.arange(channels) * prod(self.sizes) * size
        offsets: np.ndarray = np.add.outer(np.add.outer(planes, self.taps * self.step), inside * size)
        return offsets

    def places(self) -> np.ndarray:
        """The elements of a row that windows begin at."""
        return grid([np.arange(o) * s for o, s in zip(self.at.outputs, self.at.strides, strict=True)], self.sizes)


@emits("CausalConv")
def lower_causal_convolution(low: Lowering, node: Node) -> None:
    """x[N,C,...T...] in a stream: each step's window by one instruction."""
    if low.value(node.input(1)) is not None:
        _lower_padded(low, node)
        return
    axis = int(node.attributes["axis"])
    W = weights(low, node, 2)
    _convolve(low, node, W, axis, _looking_back(low, node, W.shape[2:], axis))
    del low.contexts[node.input(1)]  # the instructions see to what is remembered


@falls_back("Conv")
def lower_convolution_of_a_step(low: Lowering, node: Node) -> None:
    """Along all axes but time."""
    W = weights(low, node, 1)
    axis = _axis_of_time(low, node, W.shape[2:])
    _convolve(low, node, W, axis, _within_steps(low, node, W.shape[2:], axis))


def _convolve(low: Lowering, node: Node, W: np.ndarray, axis: int, view: View) -> None:
    group, size = int(node.attributes.get("group", 1)), low.dtype.itemsize
    channels, places, plane = W.shape[1], view.places(), prod(view.at.outputs)
    if max(places.size, channels * prod(W.shape[2:])) > MOST_ENTRIES:
        raise NoInstructionError("it is larger than the tables allow")
    at = Geometry(
        places * size,
        view.offsets(channels, size).reshape(-1),
        np.arange(plane) * size,
        channels * prod(view.sizes) * size,
        plane * size,
    )
    out = low.new_rows(node.output(0), True, view.rows.batched, W.shape[0] * plane, low.dtype)
    note = f"{group * channels}×{list(view.sizes)}, {view.taps.size} steps → {W.shape[0]}×{list(view.at.outputs)}"
    emit_convolution(low, node, view.rows, out, np.moveaxis(W, axis, 2), axis, at, None, note)
    low.rows[node.output(0)] = out


@emits("CausalMaxPool", "CausalAveragePool")
def lower_causal_pool(low: Lowering, node: Node) -> None:
    """Windows over x[N,C,...T...] in a stream."""
    if low.value(node.input(1)) is not None:
        _lower_padded(low, node)
        return
    axis, kernel = int(node.attributes["axis"]), tuple(node.attributes["kernel_shape"])
    view = _looking_back(low, node, kernel, axis)
    planes = np.arange(low.shape(node.input(0))[1]) * prod(view.sizes)
    places = np.add.outer(planes, view.places()).reshape(-1) * low.dtype.itemsize
    offsets = view.offsets(1, low.dtype.itemsize).reshape(-1)
    largest = node.op == "CausalMaxPool"
    operation, scale = (Operation.MAXIMUM, 1.0) if largest else (Operation.ADD, 1.0 / offsets.size)
    low.rows[node.output(0)] = emit_reduce(low, node.output(0), operation, view.rows, places, offsets, scale)
    del low.contexts[node.input(1)]


def _lower_padded(low: Lowering, node: Node) -> None:
    """Along an axis within the row, what a window sees before the first element is padding."""
    context = low.value(node.input(1))
    assert context is not None
    if low.is_read(node.output(1)) or (context != _FILLING[node.op]).any():
        raise NoInstructionError("what it begins with is no padding")
    axis = int(node.attributes["axis"])
    rank = context.ndim - 2
    pads = list(node.attributes.get("pads") or (0,) * (2 * rank))
    pads[axis - 2] = context.shape[axis]
    attributes: dict[str, Any] = {k: v for k, v in node.attributes.items() if k != "axis"} | {"pads": tuple(pads)}
    if node.op == "CausalAveragePool":
        attributes["count_include_pad"] = 1
    inputs = (node.input(0), *node.inputs[2:])
    plain = replace(node, op=node.op.removeprefix("Causal"), inputs=inputs, attributes=attributes, domain="")
    EMITTERS[plain.op](low, replace(plain, outputs=node.outputs[:1]))


def _axis_of_time(low: Lowering, node: Node, kernel: Sequence[int]) -> int:
    """The axis of x[N,C,...T...] that is time, if windows are one step of it."""
    axis = low.roles.axis_of(node.input(0), low.roles.time)
    if axis is None or axis < 2:
        raise NoInstructionError("its samples are not the program's rows")
    rank, k = len(kernel), axis - 2
    pads = node.attributes.get("pads") or (0,) * (2 * rank)
    strides = node.attributes.get("strides") or (1,) * rank
    if node.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise NoInstructionError("its padding is not said in numbers")
    if (kernel[k], strides[k], pads[k], pads[k + rank]) != (1, 1, 0, 0):
        raise NoInstructionError("it looks at more than one step")
    return axis


def _within_steps(low: Lowering, node: Node, kernel: Sequence[int], axis: int) -> View:
    """The windows of each step.

    Raises NoInstructionError where the rows of x are not the program's steps.
    """
    _check_rows(low, node, axis)
    name = node.input(0)
    sizes = _sizes(low.shape(name), axis)
    at, _ = _others(node, kernel, sizes, axis)
    x = low.uniform(low.read_float(name), True, low.form(name).batched)
    columns = _columns(low.shape(name)[1], sizes, at)
    if columns.size != x.width:
        x = rearranged_row(low, f"{name} padded", x, columns, 0.0)
    return View(x, 0, _padded_sizes(sizes, at), at, np.zeros(1, np.int64))


def _looking_back(low: Lowering, node: Node, kernel: Sequence[int], axis: int) -> View:
    """The block's windows over the rows of context and block in one; and what is remembered for the next block.

    Raises NoInstructionError where the rows of x are not the program's steps, or the context is not the node's own.
    """
    name, context = node.input(0), node.input(1)
    if context not in low.contexts or not low.plan.streamed:
        raise NoInstructionError("its context is not its own")
    if low.consumers.get(node.output(1)):
        raise NoInstructionError("its next context is read")
    _check_rows(low, node, axis)
    reach, sizes = low.shape(context)[axis], _sizes(low.shape(name), axis)
    at, dilation = _others(node, kernel, sizes, axis)
    x = low.uniform(low.read_float(name), True, low.form(name).batched)
    stride, rows = low.row_stride(x.width, x.dtype), low.per_step(x)
    joined = low.buffer((reach + low.block) * rows * stride, f"{name} and before")
    past = Rows(joined, stride, False, True, x.width, x.dtype, reach)
    present = Rows(joined.shifted(reach * rows * stride), stride, True, x.batched, x.width, x.dtype)
    memory = _memory(low, node, axis, stride)
    low.copy(memory, past)
    low.copy(x, present)
    _remember(low, memory, replace(past, place=joined.shifted(rows * stride)), rows * stride)
    columns = _columns(low.shape(name)[1], sizes, at)
    whole = Rows(joined, stride, True, x.batched, x.width, x.dtype)
    if columns.size != x.width:
        whole = _padded(low, name, past, present, columns, _FILLING[node.op])
    return View(whole, rows * whole.stride, _padded_sizes(sizes, at), at, np.arange(kernel[axis - 2]) * dilation)


def _sizes(shape: Sizes, axis: int) -> Sizes:
    """Of the axes behind N and C that are not time; one place where there are none."""
    return tuple(n for k, n in enumerate(shape) if k not in (0, 1, axis)) or (1,)


def _padded_sizes(sizes: Sizes, at: Windows) -> Sizes:
    return tuple(n + before + after for n, (before, after) in zip(sizes, at.widths(sizes), strict=True))


def _columns(channels: int, sizes: Sizes, at: Windows) -> np.ndarray:
    """Which column of a row each column of a padded row is, -1 for padding."""
    own = np.arange(channels * prod(sizes)).reshape(channels, *sizes)
    columns: np.ndarray = np.pad(own, [(0, 0), *at.widths(sizes)], constant_values=-1).reshape(-1)
    return columns


def _check_rows(low: Lowering, node: Node, axis: int) -> None:
    for name in (node.input(0), node.output(0)):
        axes, form = low.roles.axes[name], low.form(name)
        inner = tuple(atom for k, each in enumerate(axes) if k not in (0, axis) for atom in each)
        outer = low.roles.batch if form.batched else ()
        if axes[axis] != low.roles.time or axes[0] != outer or form.width != inner:
            raise NoInstructionError("its samples are not the program's rows")
        if not form.batched and low.batch > 1:
            raise NoInstructionError("its rows are shared by the batch")


def _others(node: Node, kernel: Sequence[int], sizes: Sizes, axis: int) -> tuple[Windows, int]:
    """How windows lie along the axes that are not time (one of a single place where there are none); the dilation of
    those that are."""
    rank = len(kernel)
    along = [k for k in range(rank) if k != axis - 2]
    pads = node.attributes.get("pads") or (0,) * (2 * rank)
    strides, dilations = (node.attributes.get(key) or (1,) * rank for key in ("strides", "dilations"))
    if not along:
        return windows((1,), (1,)), dilations[axis - 2]
    chosen = [tuple(values[k] for k in along) for values in (kernel, strides, dilations)]
    around = tuple(pads[k + side * rank] for side in (0, 1) for k in along)
    return windows(sizes, chosen[0], strides=chosen[1], dilations=chosen[2], pads=around), dilations[axis - 2]


def _memory(low: Lowering, node: Node, axis: int, stride: int) -> Rows:
    """The state: [steps looked back at][B][width]."""
    shape = low.shape(node.input(1))
    places = np.moveaxis(np.arange(prod(shape)).reshape(shape), axis, 0)
    elements = places.reshape(shape[axis] * shape[0], -1)
    slot = low.kept_slot(low.contexts[node.input(1)], elements, stride, low.dtype)
    return Rows(slot.place, stride, False, True, elements.shape[1], low.dtype, shape[axis])


def _remember(low: Lowering, memory: Rows, following: Rows, step: int) -> None:
    """Keep the steps that end with the block's last; ``following``: those that end with its first."""
    low.emit(
        Opcode.COPY,
        {
            Copy.SOURCE: following.place,
            Copy.SOURCE_STEP: step,
            Copy.SOURCE_ROW: following.stride,
            Copy.TARGET: memory.place,
            Copy.TARGET_STEP: 0,
            Copy.TARGET_ROW: memory.stride,
            Copy.BYTES: memory.row_bytes,
            Copy.ROWS: low.per_step(memory),
            Copy.TIMED: 0,
            Copy.LAST: 1,
            Copy.ONCE: 0,
        },
        f"{low.per_step(memory)} rows of {memory.row_bytes} bytes, the block's last",
    )


def _padded(low: Lowering, name: str, past: Rows, present: Rows, columns: np.ndarray, filling: float) -> Rows:
    """The rows of context and block with ``filling`` where a column is -1."""
    stride, rows = low.row_stride(columns.size, past.dtype), low.per_step(present)
    place = low.buffer((past.together + low.block) * rows * stride, f"{name} padded")
    begin = Rows(place, stride, False, True, columns.size, past.dtype, past.together)
    rest = Rows(place.shifted(past.together * rows * stride), stride, True, present.batched, columns.size, past.dtype)
    targets = np.flatnonzero(columns >= 0)
    for source, target in ((past, begin), (present, rest)):
        low.copy(filled(low, target, filling), target)
        emit_pieces(low, source, target, columns[targets], targets)
    return Rows(place, stride, True, present.batched, columns.size, past.dtype)
