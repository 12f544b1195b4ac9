"""State: a snapshot of everything a stream remembers, as plain arrays."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from .errors import StateError

_MAGIC: Final = b"LSTMSTAT"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sIIQ")  # magic, version, checksum of what follows, bytes of the description
_MOST_ARRAYS: Final = 10_000


@dataclass(frozen=True, eq=False)
class State:
    """Recurrent state of ``batch`` rows of one model.

    ``arrays``: by name, in the model's own shapes (h0[L·D,B,H] …), unpadded; ``fingerprint``: the model's;
    ``sampler``: a sampler's random state, empty without one. Compares equal bit by bit.
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
        return self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}{list(array.shape)}" for name, array in self.arrays.items())
        return f"State({shapes}; batch {self.batch}, model {self.fingerprint[:12]})"

    def to_bytes(self) -> bytes:
        """A versioned, checksummed, little-endian form, the same on every machine."""
        entries = [[name, a.dtype.newbyteorder("<").str, list(a.shape)] for name, a in self.arrays.items()]
        description = json.dumps(
            {
                "fingerprint": self.fingerprint,
                "batch": self.batch,
                "arrays": entries,
                "sampler": self.sampler.hex(),
            },
            separators=(",", ":"),
        ).encode()
        body = b"".join(a.astype(a.dtype.newbyteorder("<")).tobytes() for a in self.arrays.values())
        payload = description + body
        return _HEAD.pack(_MAGIC, _VERSION, zlib.crc32(payload), len(description)) + payload

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        """The state that to_bytes() wrote.

        Raises StateError for data that are damaged, cut off, of another kind or a later version.
        """
        if len(data) < _HEAD.size:
            raise StateError(f"state: {len(data)} bytes are too few for a header of {_HEAD.size}")
        magic, version, checksum, size = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise StateError("state: these bytes are not a state written by to_bytes()")
        if version != _VERSION:
            raise StateError(f"state: version {version}; this release reads version {_VERSION}")
        payload = data[_HEAD.size :]
        if zlib.crc32(payload) != checksum or size > len(payload):
            raise StateError("state: damaged or cut off (its checksum does not match)")
        try:
            return cls._parsed(json.loads(payload[:size]), payload[size:])
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            raise StateError(f"state: its description is not valid ({fault})") from fault

    @classmethod
    def _parsed(cls, description: Any, body: bytes) -> State:
        arrays: dict[str, np.ndarray] = {}
        offset = 0
        for name, code, shape in description["arrays"][:_MOST_ARRAYS]:
            dtype = np.dtype(code)
            if dtype.kind not in "fiub" or any(not isinstance(d, int) or d < 0 for d in shape):
                raise ValueError(f"array '{name}' is {code}{shape}")
            count = 1
            for dimension in shape:
                count *= dimension
            if offset + count * dtype.itemsize > len(body):
                raise ValueError(f"array '{name}' is longer than the data")
            values = np.frombuffer(body, dtype, count, offset).reshape(shape)
            arrays[str(name)] = values.astype(dtype.type)
            offset += count * dtype.itemsize
        if offset != len(body):
            raise ValueError("data are left over")
        fingerprint, batch = str(description["fingerprint"]), int(description["batch"])
        return cls(fingerprint, batch, arrays, bytes.fromhex(description["sampler"]))
