"""ONNX tensors, inline or in a file beside the model, as NumPy arrays.

Nothing is allocated on a file's say-so: declared sizes are compared with the bytes that are there first.
"""

from __future__ import annotations

import math
import os
import stat
from typing import Any, Final

import numpy as np
from onnx import TensorProto

from ..errors import ModelFormatError, UnsupportedModelError
from ..graph import native

#: Element types the engine takes, little-endian as ONNX stores raw data. bfloat16 travels as its bits.
STORED: Final[dict[int, np.dtype[Any]]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.UINT8: np.dtype("u1"),
    TensorProto.INT8: np.dtype("i1"),
    TensorProto.UINT16: np.dtype("<u2"),
    TensorProto.INT16: np.dtype("<i2"),
    TensorProto.INT32: np.dtype("<i4"),
    TensorProto.INT64: np.dtype("<i8"),
    TensorProto.BOOL: np.dtype("?"),
    TensorProto.FLOAT16: np.dtype("<f2"),
    TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.UINT32: np.dtype("<u4"),
    TensorProto.UINT64: np.dtype("<u8"),
    TensorProto.COMPLEX64: np.dtype("<c8"),
    TensorProto.COMPLEX128: np.dtype("<c16"),
    TensorProto.BFLOAT16: np.dtype("<u2"),
}
#: The protobuf field that holds elements which are not raw, and the dtype of its items.
TYPED_FIELDS: Final[dict[int, tuple[str, str]]] = {
    TensorProto.FLOAT: ("float_data", "f4"),
    TensorProto.COMPLEX64: ("float_data", "f4"),
    TensorProto.DOUBLE: ("double_data", "f8"),
    TensorProto.COMPLEX128: ("double_data", "f8"),
    TensorProto.INT64: ("int64_data", "i8"),
    TensorProto.UINT32: ("uint64_data", "u8"),
    TensorProto.UINT64: ("uint64_data", "u8"),
}
BIT_PATTERNS: Final = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
MAX_RANK: Final = 32


def text(value: str | bytes) -> str:
    """A text of the file; protobuf hands out one that is not UTF-8 as bytes. Raises UnicodeDecodeError for it."""
    return value if isinstance(value, str) else value.decode("utf-8")


def element_dtype(data_type: int, subject: str) -> np.dtype[Any]:
    """The dtype a tensor of this ONNX element type has in the engine (bfloat16 becomes float32)."""
    if data_type == TensorProto.BFLOAT16:
        return np.dtype(np.float32)
    if data_type in STORED:
        return native(STORED[data_type])
    if data_type == TensorProto.UNDEFINED or data_type not in TensorProto.DataType.values():
        raise ModelFormatError(f"{subject}: {data_type} is no ONNX element type")
    raise UnsupportedModelError(f"{subject}: element type {TensorProto.DataType.Name(data_type)} is not implemented")


def read_tensor(tensor: TensorProto, subject: str, beside: NeighbourFiles) -> np.ndarray:
    """The values of ``tensor``; ``subject`` is what messages call it.

    Raises ModelFormatError if sizes, type or the external file do not fit, UnsupportedModelError for element
    types without an implementation.
    """
    dtype = element_dtype(tensor.data_type, subject)
    if tensor.HasField("segment"):
        raise UnsupportedModelError(f"{subject}: tensors stored in segments are not implemented")
    shape = _checked_shape(tensor, subject)
    stored = STORED[tensor.data_type]
    count = math.prod(shape)
    if tensor.data_location == TensorProto.EXTERNAL:
        values = np.frombuffer(beside.read(tensor, count * stored.itemsize, subject), stored, count) if count else None
    elif count == 0 or tensor.raw_data:
        values = _from_raw(tensor, stored, count, subject)
    else:
        values = _from_typed_field(tensor, stored, count, subject)
    if values is None:
        return np.zeros(shape, dtype)
    if tensor.data_type == TensorProto.BFLOAT16:
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(dtype, copy=False).reshape(shape)


def _checked_shape(tensor: TensorProto, subject: str) -> tuple[int, ...]:
    if len(tensor.dims) > MAX_RANK:
        raise ModelFormatError(f"{subject}: rank {len(tensor.dims)}, at most {MAX_RANK} expected")
    shape = tuple(tensor.dims)
    if any(size < 0 for size in shape):
        raise ModelFormatError(f"{subject}: negative size in shape {list(shape)}")
    if math.prod(max(size, 1) for size in shape) >= 2**48:
        raise ModelFormatError(f"{subject}: shape {list(shape)} is larger than any memory")
    return shape


def _from_raw(tensor: TensorProto, stored: np.dtype[Any], count: int, subject: str) -> np.ndarray | None:
    raw = tensor.raw_data
    if len(raw) != count * stored.itemsize:
        raise ModelFormatError(
            f"{subject}: shape {list(tensor.dims)} of {_type_name(tensor)} takes {count * stored.itemsize} bytes, "
            f"the file holds {len(raw)}"
        )
    return np.frombuffer(raw, stored) if count else None


def _from_typed_field(tensor: TensorProto, stored: np.dtype[Any], count: int, subject: str) -> np.ndarray:
    field, item = TYPED_FIELDS.get(tensor.data_type, ("int32_data", "i4"))
    items = getattr(tensor, field)
    needed = count * 2 if stored.kind == "c" else count
    if len(items) != needed:
        raise ModelFormatError(
            f"{subject}: shape {list(tensor.dims)} of {_type_name(tensor)} takes {needed} values in {field}, "
            f"the file holds {len(items)}"
        )
    values = np.fromiter(items, item, needed)
    if stored.kind == "c":
        return values.view(native(stored))
    narrow = values.astype(np.uint16 if tensor.data_type in BIT_PATTERNS else native(stored))
    if values.dtype.kind in "iu" and not np.array_equal(narrow.astype(values.dtype), values):
        raise ModelFormatError(f"{subject}: values in {field} are outside the range of {_type_name(tensor)}")
    return narrow.view(np.float16) if tensor.data_type == TensorProto.FLOAT16 else narrow


def _type_name(tensor: TensorProto) -> str:
    name: str = TensorProto.DataType.Name(tensor.data_type)
    return name.lower()


class NeighbourFiles:
    """The files beside a model that may hold its weights: inside the model's folder, nowhere else."""

    def __init__(self, model_path: str | None):
        self._folder = None if model_path is None else os.path.realpath(os.path.dirname(model_path) or os.curdir)
        self._sizes: dict[str, int] = {}
        self._regions: dict[tuple[str, int, int], bytes] = {}
        self._read = 0

    def read(self, tensor: TensorProto, size: int, subject: str) -> bytes:
        """The ``size`` bytes of an external tensor."""
        place = {text(entry.key): text(entry.value) for entry in tensor.external_data}
        path = self._inside_folder(place.get("location", ""), subject)
        offset = _natural(place.get("offset", "0"), "offset", subject)
        length = _natural(place.get("length", str(size)), "length", subject)
        if length != size:
            raise ModelFormatError(
                f"{subject}: shape {list(tensor.dims)} of {_type_name(tensor)} takes {size} bytes, "
                f"its external data declares {length}"
            )
        if (path, offset, size) not in self._regions:
            self._regions[path, offset, size] = self._region(path, offset, size, subject)
        return self._regions[path, offset, size]

    def _inside_folder(self, location: str, subject: str) -> str:
        if self._folder is None:
            raise ModelFormatError(
                f"{subject}: its values are in the file {location!r}, which bytes alone cannot reach; "
                "load the model by its path"
            )
        parts = location.replace("\\", "/").split("/")
        if not location or "\0" in location or os.path.isabs(location) or ".." in parts or not parts[0]:
            raise ModelFormatError(f"{subject}: weights file {location!r} must be a path inside the model's folder")
        if ":" in parts[0]:
            raise ModelFormatError(f"{subject}: weights file {location!r} must not name a drive")
        path = os.path.realpath(os.path.join(self._folder, location))
        if not _is_inside(path, self._folder):
            raise ModelFormatError(
                f"{subject}: weights file {location!r} is a link that leaves the model's folder; "
                "put a copy of the file in its place"
            )
        return path

    def _region(self, path: str, offset: int, size: int, subject: str) -> bytes:
        available = self._size(path, subject)
        if offset + size > available:
            raise ModelFormatError(
                f"{subject}: bytes {offset} to {offset + size} of {os.path.basename(path)!r}, which has {available}"
            )
        self._read += size
        # Shared tensors name the same region; a file whose regions overlap again and again would multiply memory.
        if self._read > 2 * sum(self._sizes.values()):
            raise ModelFormatError(f"{subject}: external tensors overlap each other in {os.path.basename(path)!r}")
        with open(path, "rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
        if len(data) != size:
            raise ModelFormatError(f"{subject}: {os.path.basename(path)!r} became shorter while it was read")
        return data

    def _size(self, path: str, subject: str) -> int:
        if path not in self._sizes:
            try:
                status = os.stat(path)
            except (OSError, ValueError) as error:
                raise ModelFormatError(
                    f"{subject}: its weights file {os.path.basename(path)!r} was not found; put it beside the model"
                ) from error
            if not stat.S_ISREG(status.st_mode):
                raise ModelFormatError(f"{subject}: its weights file {os.path.basename(path)!r} is not a plain file")
            self._sizes[path] = status.st_size
        return self._sizes[path]


def _is_inside(path: str, folder: str) -> bool:
    try:
        return os.path.commonpath([path, folder]) == folder
    except ValueError:  # on another drive
        return False


def _natural(text: str, what: str, subject: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ModelFormatError(f"{subject}: external data {what} {text[:40]!r} is not a number of bytes")
    return int(text)
