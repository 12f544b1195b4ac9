"""Record: all that a stream is, as a store holds it.

As bytes: magic "LSTMRECD", sizes of header, state and reply (8 bytes each, little-endian), a digest of them and of the
header (16 bytes), the header (JSON), the state, the last reply: both as State writes them, with their own digests.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Final

import numpy as np

from ..errors import StateError
from ..state import State

_MAGIC: Final = b"LSTMRECD"
_SIZES: Final = struct.Struct("<QQQ")
_DIGEST: Final = 16
#: Steps that one opening may take; a number is one number for both.
_STEPS: Final = 1 << 48
_REPLY: Final = "reply"

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Reply:
    """The last answer: ``outputs`` of the steps from ``first`` on, kept for a client that it did not reach."""

    first: int
    outputs: Outputs


@dataclass(frozen=True)
class Record:
    """A stream after ``steps`` steps. ``epoch``: how often it was opened; ``session``: the client it belongs to;
    ``sampler``: settings of its sampler, whose random state is the State's; ``drawn``: [2, n], step numbers and tokens
    of those drawn last; ``reply``: only where the client may not have it.
    """

    epoch: int
    steps: int
    session: str
    state: State
    sampler: Mapping[str, Any] | None
    drawn: np.ndarray
    reply: Reply | None = None

    @property
    def number(self) -> int:
        """Grows with every record of a stream: a later one is never replaced by an earlier."""
        return record_number(self.epoch, self.steps)

    def to_bytes(self) -> bytes:
        """The form described above."""
        header = {
            "epoch": self.epoch,
            "steps": self.steps,
            "session": self.session,
            "sampler": None if self.sampler is None else dict(self.sampler),
            "drawn": self.drawn.tolist(),
            "first": None if self.reply is None else self.reply.first,
        }
        described = json.dumps(header, separators=(",", ":")).encode()
        state = self.state.to_bytes()
        reply = b"" if self.reply is None else State(_REPLY, 1, self.reply.outputs).to_bytes()
        sizes = _SIZES.pack(len(described), len(state), len(reply))
        return b"".join((_MAGIC, sizes, _digest(sizes, described), described, state, reply))

    @staticmethod
    def from_bytes(data: bytes) -> Record:
        """What to_bytes() wrote. Raises StateError for whatever else."""
        start = len(_MAGIC) + _SIZES.size
        sizes, digest = data[len(_MAGIC) : start], data[start : start + _DIGEST]
        if data[: len(_MAGIC)] != _MAGIC or len(digest) < _DIGEST:
            raise StateError("record: these bytes are not those of a stream's record")
        first, second, third = _SIZES.unpack(sizes)
        ends = np.cumsum([start + _DIGEST, first, second, third]).tolist()
        header, state, reply = (data[a:b] for a, b in pairwise(ends))
        if len(data) != ends[-1] or _digest(sizes, header) != digest:
            raise StateError("record: damaged or cut off (its checksum does not match)")
        said = json.loads(header)
        answered = None if said["first"] is None else Reply(said["first"], State.from_bytes(reply).arrays)
        drawn = np.array(said["drawn"], np.int64).reshape(2, -1)
        parts = said["epoch"], said["steps"], said["session"]
        return Record(*parts, State.from_bytes(state), said["sampler"], drawn, answered)


def record_number(epoch: int, steps: int) -> int:
    """The order of records: by opening, then by steps."""
    return epoch * _STEPS + steps


def _digest(sizes: bytes, header: bytes) -> bytes:
    return blake2b(sizes + header, digest_size=_DIGEST).digest()
