"""Sequences of tensors. A sequence is a Python list of arrays; it exists between nodes only.

No shape rule is theirs: passes resolve what is known by position to Split and Concat, the rest runs here.
"""

from __future__ import annotations

import numpy as np

from ..errors import InputError, ModelFormatError
from .pointwise import element_type
from .registry import Array, operator
from .shaping import part_sizes, sizes


@operator("SequenceEmpty")
def sequence_empty(*, dtype: int = 1) -> list[Array]:
    """No tensors."""
    element_type(dtype)
    return []


@operator("SequenceConstruct")
def sequence_construct(first: Array, *others: Array) -> list[Array]:
    """The inputs in a row."""
    return [first, *others]


@operator("SequenceInsert")
def sequence_insert(sequence: list[Array], tensor: Array, position: Array | None = None) -> list[Array]:
    """The sequence with one more tensor before ``position``, else at its end."""
    place = len(sequence) if position is None else _position(position, len(sequence), len(sequence) + 1)
    return [*sequence[:place], tensor, *sequence[place:]]


@operator("SequenceErase")
def sequence_erase(sequence: list[Array], position: Array | None = None) -> list[Array]:
    """The sequence without the tensor at ``position``, else without its last."""
    place = _position(np.array(-1) if position is None else position, len(sequence), len(sequence))
    return [*sequence[:place], *sequence[place + 1 :]]


@operator("SequenceAt")
def sequence_at(sequence: list[Array], position: Array) -> Array:
    """The tensor at ``position``."""
    return _checked(sequence)[_position(position, len(sequence), len(sequence))]


@operator("SequenceLength")
def sequence_length(sequence: list[Array]) -> Array:
    """How many tensors there are."""
    return np.array(len(_checked(sequence)), np.int64)


@operator("SplitToSequence")
def split_to_sequence(x: Array, split: Array | None = None, *, axis: int = 0, keepdims: int = 1) -> list[Array]:
    """x cut along ``axis`` into parts of the sizes given, of one size, or of 1 (without keepdims: without the axis)."""
    length = x.shape[axis]
    if split is None:
        parts = np.split(x, length, axis) if length else []
        return parts if keepdims else [part.squeeze(axis) for part in parts]
    if split.ndim:
        given = part_sizes(length, sizes(split), None)
    else:
        size = int(split)
        if size < 1:
            raise ModelFormatError(f"split must be positive, got {size}")
        given = tuple(min(size, length - first) for first in range(0, length, size))
    return np.split(x, np.cumsum(given)[:-1], axis) if given else []


@operator("ConcatFromSequence")
def concat_from_sequence(sequence: list[Array], *, axis: int, new_axis: int = 0) -> Array:
    """The tensors one after another along ``axis``, or along a new one."""
    if not _checked(sequence):
        raise ModelFormatError("an empty sequence has nothing to concatenate")
    return np.stack(sequence, axis) if new_axis else np.concatenate(sequence, axis)


def _checked(sequence: list[Array]) -> list[Array]:
    if not isinstance(sequence, list):
        raise ModelFormatError(f"expected a sequence, got a tensor {list(np.shape(sequence))}")
    return sequence


def _position(position: Array, length: int, end: int) -> int:
    """A position counted from the front, below ``end``."""
    place = int(position.reshape(()))
    if not -length <= place < end:
        raise InputError(f"position {place} is outside a sequence of {length} tensors")
    return place + length if place < 0 else place
