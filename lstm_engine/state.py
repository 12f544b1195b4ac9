"""State: a snapshot of everything a stream remembers, as plain arrays.

As bytes, all numbers little-endian:

    magic "LSTMSTAT", version (4 bytes)
    digest (16 bytes: BLAKE2b of all else), size of the description (8 bytes)
    description: JSON of fingerprint, batch, arrays as [name, type, shape], sampler as hexadecimal digits
    the arrays' values, one after the other

A state has one such form: what does not come out of to_bytes() byte for byte is refused. The digest finds damage, not
malice: whoever can write a file can put any numbers into it, but never more than numbers.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from math import prod
from typing import Any, Final

import numpy as np

from .errors import StateError, listed
from .feeds import described

_MAGIC: Final = b"LSTMSTAT"
_PREFIX: Final = struct.Struct("<8sI")  # magic, version
_MOST_ARRAYS: Final = 10_000
_MOST_AXES: Final = 32
_MOST_DESCRIPTION: Final = 4 << 20  # bytes
_MOST: Final = 2**63 - 1  # of batch, and of an array's bytes
_CODES: Final = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")


@dataclass(frozen=True)
class _Version:
    """What stands between the prefix and the description: a digest, and the description's size."""

    fields: struct.Struct
    digest: Callable[[bytes, bytes, bytes], bytes]  # of prefix, size and all that follows

    def head(self, number: int, size: int, payload: bytes) -> bytes:
        """Everything before the description."""
        prefix, length = _PREFIX.pack(_MAGIC, number), size.to_bytes(8, "little")
        return prefix + self.fields.pack(self.digest(prefix, length, payload), size)


def _checksum(_prefix: bytes, _size: bytes, payload: bytes) -> bytes:
    return zlib.crc32(payload).to_bytes(4, "little")


def _digest(prefix: bytes, size: bytes, payload: bytes) -> bytes:
    total = blake2b(prefix, digest_size=16)
    total.update(size)
    total.update(payload)
    return total.digest()


#: Those that can be read; the last is written.
_VERSIONS: Final = {
    1: _Version(struct.Struct("<4sQ"), _checksum),
    2: _Version(struct.Struct("<16sQ"), _digest),
}
_WRITTEN: Final = max(_VERSIONS)
#: Where the digest of what is written lies, and how long it is.
DIGEST_PLACE: Final = _PREFIX.size
DIGEST_BYTES: Final = 16


@dataclass(frozen=True, eq=False)
class State:
    """Recurrent state of ``batch`` rows of one model.

    ``arrays``: by name, in the model's own shapes (h0[L·D,B,H] …), unpadded; ``fingerprint``: the model's, whose
    weights are others in another precision; ``sampler``: a sampler's random state, empty without one. Compares equal
    bit by bit.
    """

    fingerprint: str
    batch: int
    arrays: Mapping[str, np.ndarray]
    sampler: bytes = field(default=b"")

    def copy(self) -> State:
        """An independent copy."""
        return State(self.fingerprint, self.batch, {n: a.copy() for n, a in self.arrays.items()}, self.sampler)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        return self._described() == other._described() and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((self._described(), self._values()))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}{list(array.shape)}" for name, array in self.arrays.items())
        return f"State({shapes}; batch {self.batch}, model {self.fingerprint[:12]})"

    # --- as bytes ----------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """A versioned, checksummed, little-endian form, the same on every machine.

        Raises StateError for what from_bytes() would refuse: arrays of other numbers than states have, or too many.
        """
        description, values = self._described(), self._values()
        faults = [f"'{n}' is of {a.dtype}{list(a.shape)}" for n, a in self.arrays.items() if not _writable(a)]
        if not 1 <= self.batch <= _MOST:
            faults.append(f"{self.batch} rows are no batch")
        if len(self.arrays) > _MOST_ARRAYS or len(description) > _MOST_DESCRIPTION:
            faults.append(f"{len(self.arrays)} arrays in {len(description)} bytes of description are too many")
        if faults:
            raise StateError(listed("state: it cannot be written", faults))
        payload = description + values
        return _VERSIONS[_WRITTEN].head(_WRITTEN, len(description), payload) + payload

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> State:
        """The state that to_bytes() wrote, in this release or an earlier one.

        Raises StateError for whatever else: data that are damaged, cut off, of another kind, of a later version.
        """
        try:
            data = bytes(memoryview(data))
        except (TypeError, ValueError, BufferError) as fault:
            raise StateError(
                f"state: expected the bytes that to_bytes() returned, got {type(data).__name__}"
            ) from fault
        description, values = _unsealed(data)
        try:
            state = cls._parsed(json.loads(description), values)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as fault:
            raise StateError(f"state: its description is not valid ({type(fault).__name__}: {fault})") from fault
        if state._described() != description:
            raise StateError("state: its description is not as to_bytes() writes it")
        return state

    def _described(self) -> bytes:
        entries = [[name, _code(a), list(a.shape)] for name, a in self.arrays.items()]
        parts = {
            "fingerprint": self.fingerprint,
            "batch": self.batch,
            "arrays": entries,
            "sampler": self.sampler.hex(),
        }
        return json.dumps(parts, separators=(",", ":")).encode()

    def _values(self) -> bytes:
        return b"".join(a.astype(a.dtype.newbyteorder("<")).tobytes() for a in self.arrays.values())

    @classmethod
    def _parsed(cls, description: Any, values: bytes) -> State:
        batch, entries = description["batch"], description["arrays"]
        if type(batch) is not int or not 1 <= batch <= _MOST:
            raise ValueError("batch is no number of rows")
        if len(entries) > _MOST_ARRAYS:
            raise ValueError(f"{len(entries)} arrays; at most {_MOST_ARRAYS}")
        arrays: dict[str, np.ndarray] = {}
        offset = 0
        for name, code, shape in entries:
            if type(name) is not str or name in arrays:
                raise ValueError("an array's name is none, or another's")
            arrays[name] = _array(code, shape, values, offset)
            offset += arrays[name].nbytes
        if offset != len(values):
            raise ValueError(f"the arrays take {offset} bytes of {len(values)}")
        fingerprint = description["fingerprint"]
        if type(fingerprint) is not str:
            raise ValueError("the fingerprint is no text")
        return cls(fingerprint, batch, arrays, bytes.fromhex(description["sampler"]))


def check_alike(snapshot: State, own: State) -> None:
    """Raise StateError for a snapshot of another model, batch or shape than a stream's own."""
    if not isinstance(snapshot, State):
        raise StateError(f"state: expected a State, got {type(snapshot).__name__}")
    if snapshot.fingerprint != own.fingerprint:
        raise StateError(f"state: it belongs to model {snapshot.fingerprint[:12]}, this is {own.fingerprint[:12]}")
    if snapshot.batch != own.batch:
        raise StateError(f"state: it is of batch {snapshot.batch}, this stream is of batch {own.batch}")
    faults = [
        f"'{name}': expected {described(own.arrays.get(name))}, got {described(snapshot.arrays.get(name))}"
        for name in {*own.arrays, *snapshot.arrays}
        if described(own.arrays.get(name)) != described(snapshot.arrays.get(name))
    ]
    if faults:
        raise StateError(listed("state", sorted(faults)))


def _code(array: np.ndarray) -> str:
    """An array's type, little-endian."""
    return str(array.dtype.newbyteorder("<").str)


def _writable(array: np.ndarray) -> bool:
    return _code(array) in _CODES and array.ndim <= _MOST_AXES


def _unsealed(data: bytes) -> tuple[bytes, bytes]:
    """Description and values of a state's bytes, of which none was changed."""
    if len(data) < _PREFIX.size:
        raise StateError(f"state: {len(data)} bytes are too few for a header")
    magic, number = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise StateError("state: these bytes are not a state written by to_bytes()")
    version = _VERSIONS.get(number)
    if version is None:
        raise StateError(f"state: version {number}; this release reads versions 1 to {_WRITTEN}")
    start = _PREFIX.size + version.fields.size
    if len(data) < start:
        raise StateError(f"state: {len(data)} bytes are too few for a header of {start}")
    _, size = version.fields.unpack_from(data, _PREFIX.size)
    payload = data[start:]
    if size > len(payload) or version.head(number, size, payload) != data[:start]:
        raise StateError("state: damaged or cut off (its checksum does not match)")
    if size > _MOST_DESCRIPTION:
        raise StateError(f"state: a description of {size} bytes; at most {_MOST_DESCRIPTION}")
    return payload[:size], payload[size:]


def _array(code: Any, shape: Any, values: bytes, offset: int) -> np.ndarray:
    """A copy of the array that begins at ``offset``, in this machine's byte order."""
    if code not in _CODES or not isinstance(shape, list) or len(shape) > _MOST_AXES:
        raise ValueError("an array's type or shape is none of a state's")
    dtype = np.dtype(code)
    if any(type(size) is not int or not 0 <= size <= _MOST for size in shape):
        raise ValueError("an array's sizes are none")
    if prod(max(size, 1) for size in shape) * dtype.itemsize > _MOST:
        raise ValueError("an array is larger than any memory")
    count = prod(shape)
    if offset + count * dtype.itemsize > len(values):
        raise ValueError("an array is longer than the data")
    found = np.frombuffer(values, dtype, count, offset) if count else np.empty(0, dtype)
    if dtype.kind == "b" and (found.view(np.uint8) > 1).any():
        raise ValueError("a truth value is neither true nor false")
    result: np.ndarray = found.reshape(shape).astype(dtype.newbyteorder("="))
    return result
