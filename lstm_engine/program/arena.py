"""Where things lie in the arena: buffers with lifetimes, packed so that those never alive together share bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

ALIGNMENT = 64
CANARY_BYTES = 64  # between buffers, in debug mode


@dataclass(eq=False)
class Buffer:
    """Bytes of the arena; ``first``/``last``: the instructions between which they hold something."""

    name: str
    size: int
    persistent: bool = False  # lives for ever: state
    first: int = -1
    last: int = -1
    offset: int = field(default=-1)

    def touch(self, instruction: int) -> None:
        """An instruction reads or writes the buffer."""
        self.first = instruction if self.first < 0 else min(self.first, instruction)
        self.last = max(self.last, instruction)


def aligned(size: int) -> int:
    """size rounded up to whole cache lines."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def place(buffers: Sequence[Buffer], start: int, gap: int = 0) -> int:
    """Give every buffer an offset from ``start`` on, largest first, lowest free place; returns the end.

    With a gap (debug mode) nothing shares bytes, so that each gap keeps its canary.
    """
    placed: list[Buffer] = []
    end = start
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.first)):
        neighbours = sorted((o for o in placed if gap or _overlap(o, buffer)), key=lambda o: o.offset)
        at = start
        for other in neighbours:
            if at + aligned(buffer.size) + gap <= other.offset:
                break
            at = max(at, other.offset + aligned(other.size) + gap)
        buffer.offset = at
        placed.append(buffer)
        end = max(end, at + aligned(buffer.size) + gap)
    return end


def _overlap(one: Buffer, other: Buffer) -> bool:
    return one.first <= other.last and other.first <= one.last
