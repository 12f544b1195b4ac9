"""Operators that move elements about: views, joins, indexing, and the makers of constants."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..errors import InputError, ModelFormatError, UnsupportedModelError
from .pointwise import element_type
from .registry import Array, operator

# --- constants --------------------------------------------------------------------------------------------------------


@operator("Constant")
def constant(*, value: Array | None = None) -> Array:
    """The value."""
    if value is None:
        raise ModelFormatError("a Constant needs a value")
    return np.asarray(value)


@operator("ConstantOfShape")
def constant_of_shape(shape: Array, *, value: Array | None = None) -> Array:
    """The one-element value (zero, float32) repeated to the shape."""
    value = np.zeros(1, np.float32) if value is None else np.asarray(value)
    return np.full(sizes(shape), value.reshape(()), value.dtype)


@operator("Range")
def arange(start: Array, limit: Array, delta: Array) -> Array:
    """start, start + delta, ... before the limit."""
    start, delta = start.reshape(()), delta.reshape(())
    steps = np.arange(range_length(start, limit.reshape(()), delta))
    return (start + steps * delta).astype(start.dtype)


def range_length(start: Array, limit: Array, delta: Array) -> int:
    """How many elements Range makes."""
    if delta == 0:
        raise ModelFormatError("delta of a Range must not be 0")
    if np.issubdtype(start.dtype, np.integer):
        return max(0, -((int(start) - int(limit)) // int(delta)))
    return max(0, math.ceil((float(limit) - float(start)) / float(delta)))


@operator("Shape")
def shape(x: Array, *, start: int = 0, end: int | None = None) -> Array:
    """The sizes of x's axes, from ``start`` to before ``end``."""
    return np.array(x.shape[start:end], np.int64)


@operator("Size")
def size(x: Array) -> Array:
    """How many elements x has."""
    return np.array(x.size, np.int64)


@operator("EyeLike")
def eye_like(x: Array, *, dtype: int | None = None, k: int = 0) -> Array:
    """Ones on the k-th diagonal of a matrix of x's shape, 0 elsewhere."""
    rows, columns = x.shape
    return np.eye(rows, columns, k, dtype=x.dtype if dtype is None else element_type(dtype))


# --- views ------------------------------------------------------------------------------------------------------------


@operator("Reshape")
def reshape(x: Array, shape: Array, *, allowzero: int = 0) -> Array:
    """x with other axes and the same elements; see ``reshaped``."""
    return x.reshape(reshaped(x.shape, sizes(shape), bool(allowzero)))


def reshaped(shape: tuple[int, ...], target: tuple[int, ...], allowzero: bool = False) -> tuple[int, ...]:
    """The sizes Reshape makes: 0 copies an axis (unless allowzero), one -1 is what remains."""
    if not allowzero and any(d == 0 and k >= len(shape) for k, d in enumerate(target)):
        raise ModelFormatError(f"Reshape to {list(target)} copies an axis that {list(shape)} does not have")
    wanted = [shape[k] if d == 0 and not allowzero else d for k, d in enumerate(target)]
    if wanted.count(-1) > 1 or any(d < -1 for d in wanted):
        raise ModelFormatError(f"Reshape to {list(target)} is ambiguous")
    rest = math.prod(d for d in wanted if d != -1)
    if -1 in wanted:
        wanted[wanted.index(-1)] = math.prod(shape) // rest if rest else 0
    if math.prod(wanted) != math.prod(shape):
        raise ModelFormatError(f"Reshape from {list(shape)} to {list(target)} changes the number of elements")
    return tuple(wanted)


@operator("Flatten")
def flatten(x: Array, *, axis: int = 1) -> Array:
    """x as a matrix, cut before ``axis``."""
    return x.reshape(flattened(x.shape, axis))


def flattened(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    """The sizes Flatten makes; ``axis`` may be the rank itself."""
    if not -len(shape) <= axis <= len(shape):
        raise ModelFormatError(f"axis {axis} does not exist in {list(shape)}")
    axis += len(shape) if axis < 0 else 0
    return math.prod(shape[:axis]), math.prod(shape[axis:])


@operator("Transpose")
def transpose(x: Array, *, perm: Sequence[int] | None = None) -> Array:
    """x with its axes in another order (reversed unless told)."""
    return np.transpose(x, None if perm is None else tuple(perm))


@operator("Squeeze")
def squeeze(x: Array, axes: Array | None = None) -> Array:
    """x without the axes of size 1 (those given, else all)."""
    return np.squeeze(x, None if axes is None else sizes(axes))


@operator("Unsqueeze")
def unsqueeze(x: Array, axes: Array) -> Array:
    """x with new axes of size 1, at positions of the result."""
    return np.expand_dims(x, sizes(axes))


@operator("Expand")
def expand(x: Array, shape: Array) -> Array:
    """x repeated along axes of size 1 to the shape, or broadcast with it."""
    return np.array(np.broadcast_to(x, np.broadcast_shapes(x.shape, sizes(shape))))


@operator("Tile")
def tile(x: Array, repeats: Array) -> Array:
    """x repeated along each axis."""
    return np.tile(x, sizes(repeats))


@operator("Slice")
def slice_(x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Array:
    """x[start:end:step] along each of the axes."""
    return x[slices(x.ndim, starts, ends, axes, steps)]


def slices(
    rank: int, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> tuple[slice, ...]:
    """The inputs of Slice as an index of an array of that rank."""
    given = [x for x in (starts, ends, axes, steps) if x is not None]
    if any(x.ndim != 1 for x in given):
        raise ModelFormatError(f"bounds must be lists, got shapes {', '.join(str(list(x.shape)) for x in given)}")
    index = [slice(None)] * rank
    where = range(len(starts)) if axes is None else sizes(axes)
    if len({axis % max(rank, 1) for axis in where}) < len(where):
        raise ModelFormatError(f"axes {list(where)} name an axis twice")
    strides = (1,) * len(starts) if steps is None else sizes(steps)
    if 0 in strides:
        raise ModelFormatError("a step of Slice must not be 0")
    for axis, start, end, step in zip(where, sizes(starts), sizes(ends), strides, strict=True):
        index[axis] = slice(start, end, step)
    return tuple(index)


@operator("Trilu")
def trilu(x: Array, k: Array | None = None, *, upper: int = 1) -> Array:
    """The upper (else lower) triangle of x[...,M,N] from diagonal k on, 0 elsewhere."""
    return (np.triu if upper else np.tril)(x, 0 if k is None else int(k.reshape(())))


@operator("DepthToSpace")
def depth_to_space(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Channels of x[N,C,H,W] as blocks of pixels → [N,C/b²,H*b,W*b]; in x the block (DCR) or the channel leads."""
    N, C, H, W = x.shape
    rest = C // blocksize**2
    if mode == "DCR":
        return (
            x.reshape(N, blocksize, blocksize, rest, H, W).transpose(0, 3, 4, 1, 5, 2).reshape(_enlarged(x, blocksize))
        )
    if mode == "CRD":
        return (
            x.reshape(N, rest, blocksize, blocksize, H, W).transpose(0, 1, 4, 2, 5, 3).reshape(_enlarged(x, blocksize))
        )
    raise UnsupportedModelError(f"mode='{mode}' is neither DCR nor CRD")


def _enlarged(x: Array, blocksize: int) -> tuple[int, int, int, int]:
    N, C, H, W = x.shape
    return N, C // blocksize**2, H * blocksize, W * blocksize


@operator("SpaceToDepth")
def space_to_depth(x: Array, *, blocksize: int) -> Array:
    """Blocks of pixels of x[N,C,H,W] as channels → [N,C*b²,H/b,W/b]."""
    N, C, H, W = x.shape
    b = blocksize
    cut = x.reshape(N, C, H // b, b, W // b, b)
    return cut.transpose(0, 3, 5, 1, 2, 4).reshape(N, C * b * b, H // b, W // b)


# --- joins ------------------------------------------------------------------------------------------------------------


@operator("Concat")
def concat(*inputs: Array, axis: int) -> Array:
    """The inputs one after another along ``axis``."""
    return np.concatenate(inputs, axis)


@operator("Split")
def split(x: Array, split: Array | None = None, *, axis: int = 0, num_outputs: int | None = None) -> tuple[Array, ...]:
    """x cut along ``axis`` into parts of the sizes given, else into equal ones (the last may be smaller)."""
    parts = part_sizes(x.shape[axis], None if split is None else sizes(split), num_outputs)
    return tuple(np.split(x, np.cumsum(parts)[:-1], axis))


def part_sizes(whole: int, parts: tuple[int, ...] | None, count: int | None) -> tuple[int, ...]:
    """The sizes Split cuts an axis into."""
    if parts is None:
        if not count:
            raise ModelFormatError("Split needs the sizes of the parts or their number")
        share = -(-whole // count)
        parts = tuple(max(0, min(share, whole - share * k)) for k in range(count))
    if sum(parts) != whole or min(parts, default=0) < 0:
        raise ModelFormatError(f"Split into {list(parts)} does not fit an axis of {whole}")
    return parts


@operator("Pad")
def pad(
    x: Array, pads: Array, constant_value: Array | None = None, axes: Array | None = None, *, mode: str = "constant"
) -> Array:
    """x with elements added (or, where negative, taken off) before and after each of the axes."""
    widths = pad_widths(x.ndim, pads, axes)
    grown = [(max(0, before), max(0, after)) for before, after in widths]
    kept = tuple(slice(max(0, -before), min(0, after) or None) for before, after in widths)
    if mode == "constant":
        value = 0 if constant_value is None else constant_value.reshape(()).astype(x.dtype)
        return np.pad(x, grown, constant_values=value)[kept]
    if mode == "edge":
        return np.pad(x, grown, "edge")[kept]
    if mode == "reflect":
        return np.pad(x, grown, "reflect")[kept]
    if mode == "wrap":
        return np.pad(x, grown, "wrap")[kept]
    raise UnsupportedModelError(f"mode='{mode}' is not one of constant, reflect, edge, wrap")


def pad_widths(rank: int, pads: Array, axes: Array | None) -> list[tuple[int, int]]:
    """How much Pad adds before and after each axis."""
    where = tuple(range(rank)) if axes is None else sizes(axes)
    if len(pads) != 2 * len(where):
        raise ModelFormatError(f"Pad needs 2 x {len(where)} widths, got {len(pads)}")
    widths = [(0, 0)] * rank
    for axis, before, after in zip(where, sizes(pads[: len(where)]), sizes(pads[len(where) :]), strict=True):
        widths[axis] = (before, after)
    return widths


# --- indexing ---------------------------------------------------------------------------------------------------------


@operator("Gather")
def gather(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """The slices of x along ``axis`` that the indices name."""
    return np.take(x, checked_indices(indices, x.shape[axis]), axis)


@operator("GatherElements")
def gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """out[a,b,..] = x[a,indices[a,b,..],..], the index on ``axis``."""
    return x[_element_index(x, indices, axis)]


@operator("GatherND")
def gather_nd(x: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """The slices of x that the rows of indices name, after ``batch_dims`` shared axes."""
    _check_depth(indices, x.ndim - batch_dims)
    shared = np.ix_(*(np.arange(n) for n in indices.shape[:batch_dims])) if batch_dims else ()
    spread = (1,) * (indices.ndim - 1 - batch_dims)
    own = tuple(checked_indices(indices[..., k], x.shape[batch_dims + k]) for k in range(indices.shape[-1]))
    index = (*(s.reshape(s.shape + spread) for s in shared), *own)
    return x[index]


@operator("ScatterElements")
def scatter_elements(x: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none") -> Array:
    """x with out[a,indices[a,b,..],..] set to (or combined with) updates[a,b,..]."""
    return _scattered(x, _element_index(x, indices, axis), updates, reduction)


@operator("ScatterND")
def scatter_nd(x: Array, indices: Array, updates: Array, *, reduction: str = "none") -> Array:
    """x with the slices that the rows of indices name set to (or combined with) the updates."""
    _check_depth(indices, x.ndim)
    index = tuple(checked_indices(indices[..., k], x.shape[k]) for k in range(indices.shape[-1]))
    return _scattered(x, index, updates, reduction)


@operator("OneHot")
def one_hot(indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Array:
    """values[1] at each index along a new axis of size depth, else values[0]."""
    count = one_hot_depth(depth)
    spread = np.expand_dims(indices, axis)
    ladder = [1] * spread.ndim
    ladder[axis] = count
    hot = np.where(spread < 0, spread + count, spread) == np.arange(count).reshape(ladder)
    return np.where(hot, values[1], values[0]).astype(values.dtype)


def one_hot_depth(depth: Array) -> int:
    """How many places OneHot makes. Raises ModelFormatError where they are fewer than none."""
    count = int(depth.reshape(()))
    if count < 0:
        raise ModelFormatError(f"depth must not be negative, got {count}")
    return count


@operator("NonZero")
def non_zero(x: Array) -> Array:
    """The coordinates of the elements that are not 0, [rank, count]."""
    return (
        np.array(np.nonzero(np.atleast_1d(x)), np.int64)[-x.ndim :] if x.ndim else np.zeros((0, int(x != 0)), np.int64)
    )


@operator("Compress")
def compress(x: Array, condition: Array, *, axis: int | None = None) -> Array:
    """The slices of x along ``axis`` (else its elements) where the condition holds."""
    whole = x.reshape(-1) if axis is None else x
    along = 0 if axis is None else axis
    if condition.ndim != 1 or condition.size > whole.shape[along]:
        raise ModelFormatError(f"condition {list(condition.shape)} does not fit {list(whole.shape)}")
    return np.compress(condition, whole, along)


@operator("Unique")
def unique(x: Array, *, axis: int | None = None, sorted: int = 1) -> tuple[Array, Array, Array, Array]:
    """What occurs in x (along ``axis``), each once; where first; which each of x is; how often each is there."""
    values, first, inverse, counts = np.unique(x, True, True, True, axis)
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first, kind="stable")
        values = np.take(values, order, 0 if axis is None else axis)
        first, inverse, counts = first[order], np.argsort(order)[inverse], counts[order]
    return values, first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)


@operator("ReverseSequence")
def reverse_sequence(x: Array, sequence_lens: Array, *, batch_axis: int = 1, time_axis: int = 0) -> Array:
    """Each row's first sequence_lens[B] steps in reverse."""
    if (batch_axis, time_axis) not in ((0, 1), (1, 0)):
        raise ModelFormatError(f"batch_axis and time_axis must be 0 and 1, got {batch_axis} and {time_axis}")
    if batch_axis == 0:
        return reverse_sequence(x.swapaxes(0, 1), sequence_lens).swapaxes(0, 1)
    t = np.arange(x.shape[0])[:, None]
    return x[np.where(t < sequence_lens, sequence_lens - 1 - t, t), np.arange(x.shape[1])]


def checked_indices(indices: Array, size: int) -> Array:
    """Indices counted from the front; refused outside -size..size-1."""
    wrong = indices[(indices < -size) | (indices >= size)]
    if wrong.size:
        raise InputError(f"index {wrong[0]} is outside an axis of size {size} (-{size}..{size - 1})")
    return np.where(indices < 0, indices + size, indices)


def sizes(values: Array) -> tuple[int, ...]:
    """A one-dimensional integer array as a tuple."""
    return tuple(int(v) for v in np.asarray(values).reshape(-1))


def _check_depth(indices: Array, most: int) -> None:
    """Each row of indices must name at least one axis, and at most those there are."""
    if not indices.ndim or not 1 <= indices.shape[-1] <= most:
        raise ModelFormatError(f"indices {list(indices.shape)} must name 1 to {most} axes")


def _element_index(x: Array, indices: Array, axis: int) -> tuple[Array, ...]:
    index = list(np.indices(indices.shape, sparse=True))
    index[axis] = checked_indices(indices, x.shape[axis])
    return tuple(index)


def _scattered(x: Array, index: tuple[Array, ...], updates: Array, reduction: str) -> Array:
    out = np.array(x)
    if reduction == "none":
        out[index] = updates
    elif reduction in _COMBINE:
        _COMBINE[reduction].at(out, index, updates)
    else:
        raise UnsupportedModelError(f"reduction='{reduction}' is not one of none, {', '.join(_COMBINE)}")
    return out


_COMBINE = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}
