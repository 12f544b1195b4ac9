"""Columns of Arrow tables as columns of sequences, and back; values are never copied where they lie in one piece."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from ..errors import InputError, of_row
from ..ragged import Column, Ragged

Array: TypeAlias = Any  # pa.Array and its kinds


def column_of(chunks: Any, name: str) -> Column:
    """A column as run_ragged() takes it: sequences, or an array with a number for each row.

    Lists (of lists) of numbers, lists of a fixed size, and tensors of fixed and of variable shape are sequences.
    Raises InputError naming the first row that is null, or whose lists are no steps of one size.
    """
    array = chunks.combine_chunks() if isinstance(chunks, pa.ChunkedArray) else chunks
    if isinstance(array, pa.ChunkedArray):  # larger than a chunk may be
        array = pa.concat_arrays([chunk.cast(_large(chunk.type)) for chunk in array.chunks])
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise of_row(row, InputError(f"column '{name}': expected a sequence, got null"))
    shape = getattr(array.type, "shape", None) if isinstance(array.type, pa.BaseExtensionType) else None
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_struct(array.type) and shape is not None:
        return _of_shapes(array, name)
    if pa.types.is_fixed_size_list(array.type) or shape:
        return _of_one_size(array, name, tuple(shape or ()))
    if not _is_list(array.type):
        return _numbers(array, name, np.arange(len(array) + 1))
    offsets = array.offsets.to_numpy()
    steps = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    return Ragged(_steps(steps, name, offsets - offsets[0]), offsets - offsets[0])


def array_of(column: Column) -> Array:
    """A column of results: lists of steps, or, where a row has none, lists of a fixed size or numbers."""
    if not isinstance(column, Ragged):
        return _fixed(column)
    begin, end = int(column.offsets[0]), int(column.offsets[-1])
    offsets, steps = column.offsets - begin, _fixed(column.values[begin:end])
    if end - begin > np.iinfo(np.int32).max:
        return pa.LargeListArray.from_arrays(pa.array(offsets), steps)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), steps)


def _fixed(array: np.ndarray) -> Array:
    """[n, …] as n numbers, or n (nested) lists of a fixed size."""
    made = pa.array(np.ascontiguousarray(array).reshape(array.size))
    for size in reversed(array.shape[1:]):
        made = pa.FixedSizeListArray.from_arrays(made, size)
    return made


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _large(kind: pa.DataType) -> pa.DataType:
    return pa.large_list(kind.value_type) if pa.types.is_list(kind) else kind


def _of_one_size(array: Array, name: str, shape: tuple[int, ...]) -> Column:
    """Rows of as many elements each: a fixed-size list, or a tensor of this shape (in whatever lists)."""
    rows = len(array)
    per_row = np.full(rows, array.type.list_size) if pa.types.is_fixed_size_list(array.type) else np.diff(array.offsets)
    flat = array.flatten()
    offsets = np.concatenate([[0], np.cumsum(per_row)]).astype(np.int64)
    values = _steps(flat, name, offsets)
    if shape:
        values = values.reshape(rows * shape[0], *shape[1:])
        offsets = np.arange(rows + 1) * shape[0]
    return Ragged(values, offsets)


def _of_shapes(array: Array, name: str) -> Ragged:
    """Tensors of variable shape: their elements, and the shape of each."""
    data, shapes = array.field("data"), array.field("shape")
    rank = len(shapes.flatten()) // max(1, len(array))
    sizes = shapes.flatten().to_numpy().reshape(len(array), rank).astype(np.int64)
    if len(wrong := np.flatnonzero((sizes[:, 1:] != sizes[:1, 1:]).any(axis=1))):
        row = int(wrong[0])
        got = sizes[row].tolist()
        raise of_row(row, InputError(f"column '{name}': steps of another shape than row 0's: {got}"))
    offsets = np.concatenate([[0], np.cumsum(sizes[:, 0])]) if rank else np.arange(len(array) + 1)
    inner = tuple(sizes[0, 1:].tolist()) if len(array) else ()
    values = _numbers(data.flatten(), name, np.concatenate([[0], np.cumsum(sizes.prod(axis=1))]))
    return Ragged(values.reshape(int(offsets[-1]), *inner), offsets)


def _steps(array: Array, name: str, offsets: np.ndarray) -> np.ndarray:
    """The steps of all rows, of one size each; row k's are ``offsets[k]:offsets[k + 1]``."""
    if array.null_count:
        raise _null_within(array, name, offsets)
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        inner = _steps(array.flatten(), name, offsets * width)
        return inner.reshape(len(array), width, *inner.shape[1:])
    if not _is_list(array.type):
        return _numbers(array, name, offsets)
    begins = array.offsets.to_numpy()
    widths = np.diff(begins)
    if not len(widths):
        return np.zeros(0)
    if len(wrong := np.flatnonzero(widths != widths[0])):
        row = int(np.searchsorted(offsets, wrong[0], side="right")) - 1
        got = f"{widths[wrong[0]]} numbers where others have {widths[0]}"
        raise of_row(row, InputError(f"column '{name}': step {wrong[0] - offsets[row]} has {got}"))
    inner = _steps(array.values.slice(begins[0], begins[-1] - begins[0]), name, offsets * widths[0])
    return inner.reshape(len(array), int(widths[0]), *inner.shape[1:])


def _numbers(array: Array, name: str, offsets: np.ndarray) -> np.ndarray:
    """Numbers in one piece; their kinds are judged where they are fed."""
    if array.null_count:
        raise _null_within(array, name, offsets)
    numbers: np.ndarray = array.to_numpy(zero_copy_only=False)
    return numbers


def _null_within(array: Array, name: str, offsets: np.ndarray) -> InputError:
    place = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0]
    row = int(np.searchsorted(offsets, place, side="right")) - 1
    return of_row(row, InputError(f"column '{name}': a null among its numbers, at place {place - offsets[row]}"))
