"""Where things lie in the arena: buffers with lifetimes, packed so that those never alive together share bytes."""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

ALIGNMENT = 64
CANARY_BYTES = 64  # between buffers, in debug mode
#: Beyond so many buffers they are placed as they come: comparing each with each would take minutes.
MOST_COMPARED = 512


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
    if gap:
        return _side_by_side(buffers, start, gap)
    if len(buffers) > MOST_COMPARED:
        return _as_they_come(buffers, start)
    placed: list[Buffer] = []
    end = start
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.first)):
        neighbours = sorted((o for o in placed if _overlap(o, buffer)), key=lambda o: o.offset)
        at = start
        for other in neighbours:
            if at + aligned(buffer.size) <= other.offset:
                break
            at = max(at, other.offset + aligned(other.size))
        buffer.offset = at
        placed.append(buffer)
        end = max(end, at + aligned(buffer.size))
    return end


def _side_by_side(buffers: Sequence[Buffer], start: int, gap: int) -> int:
    end = start
    for buffer in buffers:
        buffer.offset = end
        end += aligned(buffer.size) + gap
    return end


def _as_they_come(buffers: Sequence[Buffer], start: int) -> int:
    """Each buffer, when its life begins, into the lowest free place that holds it; its bytes are free after its end."""
    free: list[tuple[int, int]] = []  # (offset, size), apart and in order
    alive: list[tuple[int, int, int]] = []  # (last instruction, offset, size)
    end = start
    for buffer in sorted(buffers, key=lambda b: b.first):
        while alive and alive[0][0] < buffer.first:
            _, at, room = heappop(alive)
            _give_back(free, at, room)
        size = aligned(buffer.size)
        place_ = next((k for k, (_, room) in enumerate(free) if room >= size), None)
        if place_ is None:
            buffer.offset = end
            end += size
        else:
            at, room = free.pop(place_)
            buffer.offset = at
            if room > size:
                free.insert(place_, (at + size, room - size))
        heappush(alive, (buffer.last, buffer.offset, size))
    return end


def _give_back(free: list[tuple[int, int]], at: int, size: int) -> None:
    """Free bytes, as one with what is free beside them."""
    index = bisect(free, (at,))
    if index < len(free) and free[index][0] == at + size:
        size += free.pop(index)[1]
    if index and sum(free[index - 1]) == at:
        at, before = free.pop(index - 1)
        size += before
    insort(free, (at, size))


def _overlap(one: Buffer, other: Buffer) -> bool:
    return one.first <= other.last and other.first <= one.last
