"""Lowering of convolutions over the axes of a row: every geometry becomes tables of offsets.

A transposed convolution is one plain convolution for each remainder of the output's places by the strides: the
places of one remainder are reached by the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Final

import numpy as np

from ..encoding import PLACES_AT_ONCE, Convolution, Opcode
from ..graph import Node
from ..machine import target
from ..reference.convolution import spreading
from ..reference.windows import Sizes, windows
from .layers import optional_weights, source, weights
from .lower import Lowering, NoInstructionError, emits
from .packing import LANES, WIDE, aligned_copy, blocks, pack_dense, pack_planes
from .program import Field, Pinned, Rows
from .weights import form_of

#: Entries of a table of offsets: more is an image, not a step of a stream.
MOST_ENTRIES: Final = 1 << 20
#: Vectors of places are taken where they are at most this many times those of outputs, which have to be transposed.
SPAN_GAIN: Final = 1.25


@dataclass(frozen=True)
class Taps:
    """Along one axis: output ``targets`` read the padded input at ``places`` + each of ``offsets``, by ``weights``.

    ``before``, ``after``: the padding those places need.
    """

    targets: np.ndarray
    places: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray
    before: int
    after: int


@dataclass(frozen=True)
class Padding:
    """Where each line of a row goes in a padded copy of it, how long a line is and how large the copy, in bytes."""

    lines: np.ndarray
    line: int
    size: int


@dataclass(frozen=True)
class Geometry:
    """Offsets in bytes: of each place in a (padded) row, of each weight's element from there, of each place's result.

    ``group``: from one group's channels to the next; ``plane``: from one output channel to the next.
    """

    places: np.ndarray
    offsets: np.ndarray
    targets: np.ndarray
    group: int
    plane: int


def _taps(size: int, targets: np.ndarray, first: np.ndarray, offsets: np.ndarray, chosen: np.ndarray) -> Taps:
    """Taps from places ``first`` + ``offsets`` in the input, which may lie outside it."""
    before = max(0, -int(first.min() + offsets.min()))
    after = max(0, int(first.max() + offsets.max()) - size + 1)
    lowest = int(offsets.min())
    return Taps(targets, first + before + lowest, offsets - lowest, chosen, before, after)


@emits("Conv")
def lower_convolution(low: Lowering, node: Node) -> None:
    """x[N,C,...] with N the rows: one instruction."""
    x, spatial, kernel = _operands(low, node)
    W = weights(low, node, 1)
    attributes = {k: v for k, v in node.attributes.items() if k in ("auto_pad", "dilations", "pads", "strides")}
    at = windows(spatial, kernel, **attributes)
    axes = [
        _taps(n, np.arange(o), np.arange(o) * s - b, np.arange(k) * d, np.arange(k))
        for n, k, s, d, b, o in zip(spatial, kernel, at.strides, at.dilations, at.before, at.outputs, strict=True)
    ]
    out = _out_rows(low, node)
    _emit(low, node, x, out, axes, W, at.outputs, spatial)
    low.rows[node.output(0)] = out


@emits("ConvTranspose")
def lower_transposed(low: Lowering, node: Node) -> None:
    """y[i·s + k·d - pad] += W[k]·x[i]: an instruction for each remainder of the output's places by the strides."""
    x, spatial, kernel = _operands(low, node)
    names = ("auto_pad", "dilations", "output_padding", "output_shape", "pads", "strides")
    given: dict[str, Any] = dict.fromkeys(names) | {"auto_pad": "NOTSET"}
    given |= {k: v for k, v in node.attributes.items() if k in names}
    at = spreading(spatial, kernel, **given)
    group = int(node.attributes.get("group", 1))
    W = weights(low, node, 1)  # [C, M/group, ...] → [M, C/group, ...]
    W = W.reshape(group, -1, *W.shape[1:]).swapaxes(1, 2).reshape(-1, W.shape[0] // group, *kernel)
    out = _out_rows(low, node)
    sizes = zip(spatial, kernel, at.strides, at.dilations, at.before, at.outputs, strict=True)
    for axes in product(*(list(_remainders(*axis)) for axis in sizes)):
        _emit(low, node, x, out, list(axes), W, at.outputs, spatial)
    low.rows[node.output(0)] = out


def _remainders(size: int, kernel: int, stride: int, dilation: int, before: int, outputs: int) -> Iterator[Taps]:
    """The taps of the outputs o with the same (o + pad) mod stride: i = (o + pad - k·dilation) / stride."""
    taps = np.arange(kernel)
    for remainder in range(stride):
        first = (remainder - before) % stride
        targets = np.arange(first, outputs, stride)
        chosen = taps[(remainder - taps * dilation) % stride == 0]
        if not targets.size:
            continue
        if not chosen.size:  # nothing reaches these outputs: one weight of zero stands for that
            yield Taps(targets, np.zeros(len(targets), np.int64), np.zeros(1, np.int64), np.array([-1]), 0, 0)
            continue
        steps = (remainder - chosen * dilation) // stride
        yield _taps(size, targets, (targets + before - remainder) // stride, steps, chosen)


def _operands(low: Lowering, node: Node) -> tuple[Rows, Sizes, Sizes]:
    """x as rows of whole samples, its spatial sizes and the kernel's."""
    for name in (node.input(0), node.output(0)):
        form, (_, *inner) = low.form(name), low.roles.axes[name]
        if form.width != tuple(atom for axis in inner for atom in axis):
            raise NoInstructionError("its samples are not the program's rows")
    forms = [low.form(name) for name in (node.input(0), node.output(0))]
    if (forms[0].timed, forms[0].batched) != (forms[1].timed, forms[1].batched):
        raise NoInstructionError("its rows change")
    x = low.read_float(node.input(0))
    kernel = low.shape(node.input(1))[2:]
    return low.uniform(x, x.timed, forms[0].batched), low.shape(node.input(0))[2:], kernel


def _out_rows(low: Lowering, node: Node) -> Rows:
    form = low.form(node.output(0))
    return low.new_rows(node.output(0), form.timed, form.batched, low.roles.size(form.width), low.dtype)


def _emit(
    low: Lowering,
    node: Node,
    x: Rows,
    out: Rows,
    axes: list[Taps],
    W: np.ndarray,
    outputs: Sizes,
    spatial: Sizes,
) -> None:
    """CONVOLUTION for the taps along each axis of weights W[M, C/group, ...]."""
    size, groups = low.dtype.itemsize, int(node.attributes.get("group", 1))
    M, channels = W.shape[0] // groups, W.shape[1]
    padded = tuple(n + axis.before + axis.after for n, axis in zip(spatial, axes, strict=True))
    entries = (prod(len(a.places) for a in axes), channels * prod(len(a.offsets) for a in axes), prod(outputs))
    if max(*entries, prod(padded)) > MOST_ENTRIES:
        raise NoInstructionError("it is larger than the tables allow")
    places = grid([axis.places for axis in axes], padded)
    targets = grid([axis.targets for axis in axes], outputs)
    inside = grid([axis.offsets for axis in axes], padded)
    offsets = (np.arange(channels)[:, None] * prod(padded) + inside).reshape(-1)
    taps = np.pad(W, [(0, 0), (0, 0), *[(0, 1)] * len(axes)])  # the zero that a tap of -1 means
    chosen = taps[np.ix_(np.arange(W.shape[0]), np.arange(channels), *(axis.weights for axis in axes))]
    lines = grid([np.arange(n) + axis.before for n, axis in zip(spatial, axes, strict=True)][:-1], padded[:-1])
    lines = (np.arange(groups * channels)[:, None] * prod(padded[:-1]) + lines).reshape(-1) * padded[-1]
    around = Padding((lines + axes[-1].before) * size, spatial[-1] * size, groups * channels * prod(padded) * size)
    geometry = Geometry(
        places * size, offsets * size, targets * size, channels * prod(padded) * size, prod(outputs) * size
    )
    kept = tuple(tuple(axis.weights) for axis in axes)
    note = f"{groups * channels}×{list(spatial)} → {groups * M}×{list(outputs)}"
    emit_convolution(low, node, x, out, chosen, kept, geometry, around if padded != spatial else None, note)


def emit_convolution(
    low: Lowering,
    node: Node,
    x: Rows,
    out: Rows,
    W: np.ndarray,
    kind: object,
    at: Geometry,
    padding: Padding | None,
    note: str,
) -> None:
    """Append CONVOLUTION by weights W[M, ...], whose elements of an output are in the order of the offsets.

    ``kind``: what tells these weights from others made of the same constants.
    """
    size, groups, depth = low.dtype.itemsize, int(node.attributes.get("group", 1)), at.offsets.size
    M = W.shape[0] // groups
    by_group = W.reshape(groups, M, depth)
    spans = _spans(at, size)
    abreast = spans.size > 0 and depth > 0 and len(spans) * M * LANES <= SPAN_GAIN * at.places.size * blocks(M) * LANES
    weights_at = 2 if node.op == "CausalConv" else 1
    bias_at = weights_at + 1
    B = optional_weights(low, node, bias_at)
    bias = np.zeros((groups, M), low.dtype) if B is None else B.reshape(groups, M)
    key = (node.op, source(low, node, weights_at), source(low, node, bias_at), groups, kind, low.dtype.name)
    low.emit(
        Opcode.CONVOLUTION,
        {
            Convolution.X: x.place,
            Convolution.X_STRIDE: x.stride,
            Convolution.OUT: out.place,
            Convolution.OUT_STRIDE: out.stride,
            **(_places_abreast if abreast else _outputs_abreast)(low, key, by_group, bias, at),
            Convolution.DEPTH: depth,
            Convolution.GROUPS: groups,
            Convolution.GROUP_BYTES: at.group,
            Convolution.OUTPUTS: M,
            Convolution.OFFSETS: table(low, at.offsets),
            Convolution.PLANE: at.plane,
            Convolution.FLOOR: int(np.float64(-np.inf).view(np.int64)),
            Convolution.LINES: table(low, padding.lines) if padding else -1,
            Convolution.LINE_COUNT: padding.lines.size if padding else 0,
            Convolution.LINE_BYTES: padding.line if padding else 0,
            Convolution.PADDED: low.buffer(padding.size, "padded") if padding else -1,
            Convolution.PADDED_BYTES: padding.size if padding else 0,
            Convolution.ROWS: low.per_step(x),
            Convolution.TIMED: int(x.timed),
        },
        f"{note} {low.dtype.name} {target().variant}, {'places' if abreast else 'outputs'} abreast",
        by_group.nbytes,
        2 * by_group.size * at.places.size * low.per_step(x),
    )


def _outputs_abreast(
    low: Lowering, key: tuple[object, ...], by_group: np.ndarray, bias: np.ndarray, at: Geometry
) -> dict[Convolution, Field]:
    """Fields of a CONVOLUTION whose lanes are outputs."""
    packed = low.store.get(("convolution", *key), lambda: _packed(by_group, low.dtype))
    padded = low.store.get(
        ("convolution bias", *key), lambda: aligned_copy(_planes(bias[:, :, None], low.dtype), low.dtype)
    )
    return {
        Convolution.WEIGHTS: Pinned(packed),
        Convolution.BIAS: Pinned(padded),
        Convolution.VECTORS: blocks(by_group.shape[1]),
        Convolution.PLACES: table(low, at.places),
        Convolution.COUNT: at.places.size,
        Convolution.TARGETS: table(low, at.targets),
        Convolution.TILES: low.buffer(PLACES_AT_ONCE * WIDE * low.dtype.itemsize, "tiles"),
        Convolution.SPAN_COUNT: 0,
    }


def _places_abreast(
    low: Lowering, key: tuple[object, ...], by_group: np.ndarray, bias: np.ndarray, at: Geometry
) -> dict[Convolution, Field]:
    """Fields of a CONVOLUTION whose lanes are neighbouring places."""
    spans = _spans(at, low.dtype.itemsize)
    dense = low.store.get(("convolution by places", *key), lambda: aligned_copy(by_group, low.dtype))
    return {
        Convolution.WEIGHTS: Pinned(dense),
        Convolution.BIAS: Pinned(low.store.shared(bias, low.dtype)),
        Convolution.TILES: -1,
        Convolution.SPANS: table(low, spans),
        Convolution.SPAN_COUNT: len(spans),
    }


def _spans(at: Geometry, size: int) -> np.ndarray:
    """Place and target of the first of every 16 places that lie side by side in input and output: [count, 2].

    The last of a line may overlap the one before. Empty where a line has fewer than 16.
    """
    breaks = np.flatnonzero((np.diff(at.places) != size) | (np.diff(at.targets) != size)) + 1
    starts = np.concatenate([[0], breaks])
    lengths = np.diff(np.concatenate([starts, [at.places.size]]))
    if lengths.min() < LANES:
        return np.empty((0, 2), np.int64)
    within = [
        np.minimum(np.arange(blocks(n)) * LANES, n - LANES) + first for first, n in zip(starts, lengths, strict=True)
    ]
    chosen = np.concatenate(within)
    return np.stack([at.places[chosen], at.targets[chosen]], axis=1)


def grid(axes: list[np.ndarray], sizes: Sizes) -> np.ndarray:
    """Flat index, in an array of the sizes, of every combination of indices along its axes."""
    total = np.zeros((), np.int64)
    for indices, size in zip(axes, sizes, strict=True):
        total = np.add.outer(total * size, indices)
    return total.reshape(-1)


def _planes(stacked: np.ndarray, dtype: Any) -> np.ndarray:
    """[G, M, K] → [G, ⌈M/16⌉·16, K]."""
    groups, outputs, depth = stacked.shape
    return pack_planes(stacked.astype(dtype)).reshape(groups, blocks(outputs) * LANES, depth)


def _packed(by_group: np.ndarray, dtype: Any) -> np.ndarray:
    """[G, M, K] → each group as a dense layer's weights."""
    form = form_of(dtype.name)
    return aligned_copy(np.concatenate([pack_dense(group.T, form) for group in _planes(by_group, dtype)]), np.uint8)


def table(low: Lowering, offsets: np.ndarray) -> Pinned:
    """Offsets as a constant."""
    return Pinned(low.store.shared(offsets, np.int64))
