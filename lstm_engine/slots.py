"""Slots that are opened and closed, and the records they keep."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Final

import numpy as np

from .encoding import SLOT_BITS
from .errors import InputError, StateError
from .feeds import described
from .program.packing import aligned_empty

#: Bytes of records that are asked for at once.
SLAB_BYTES: Final = 1 << 20
MOST_SLOTS: Final = 1 << SLOT_BITS
MOST_TIMES: Final = (1 << 62 - SLOT_BITS) - 1  # a slot is opened
_SLOT: Final = MOST_SLOTS - 1


class Slots:
    """Which slots are open. A handle is a slot and how many times it was opened: one of a slot since closed is stale.

    ``opened``: int64[slots], how often each was opened, as a negative number -1 - times while it is closed; ``calls``:
    int64[slots], number of the last call that each took part in.
    """

    def __init__(self, capacity: int) -> None:
        self.opened = np.full(capacity, -1, np.int64)
        self.calls = np.zeros(capacity, np.int64)
        self._closed = list(range(capacity - 1, -1, -1))

    @property
    def capacity(self) -> int:
        """Slots there is room for."""
        return len(self.opened)

    def __len__(self) -> int:
        """Slots that are open."""
        return self.capacity - len(self._closed)

    @property
    def full(self) -> bool:
        """Whether none is closed."""
        return not self._closed

    def grow(self, more: int) -> None:
        """Room for more slots; the handles there are stay as they are."""
        first = self.capacity
        self.opened = np.concatenate([self.opened, np.full(more, -1, np.int64)])
        self.calls = np.concatenate([self.calls, np.zeros(more, np.int64)])
        self._closed[:0] = range(first + more - 1, first - 1, -1)

    def open(self) -> int:
        """The handle of a closed slot, which is open now."""
        slot = self._closed.pop()
        times = -int(self.opened[slot])  # one more than before
        self.opened[slot] = times
        return times << SLOT_BITS | slot

    def close(self, handle: int) -> int:
        """The slot of a handle, which is closed now: only a handle yet to come will name it again."""
        slot = self.slot(handle)
        times = int(self.opened[slot])
        self.opened[slot] = -1 - times
        if times < MOST_TIMES:
            self._closed.append(slot)
        return slot

    def slot(self, handle: Any) -> int:
        """The slot of a handle.

        Raises StateError for one that is stale or none.
        """
        if isinstance(handle, (bool, np.bool_)) or not isinstance(handle, (int, np.integer)):
            raise StateError(f"slot: expected a handle that open() or fork() gave, got {type(handle).__name__}")
        slot, times = int(handle) & _SLOT, int(handle) >> SLOT_BITS
        if times < 1 or slot >= self.capacity or self.opened[slot] != times:
            raise stale(handle)
        return slot

    def handles(self, slots: Any) -> np.ndarray:
        """Handles as int64[n].

        Raises InputError for what is no sequence of integers.
        """
        array = np.asarray(slots)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise InputError(
                f"slots: expected a sequence of handles that open() or fork() gave, got {described(array)}"
            )
        if array.dtype.kind == "u" and array.size and int(array.max()) >= 1 << 63:
            raise stale(int(array.max()))
        return np.ascontiguousarray(array, np.int64)

    def each(self, handles: np.ndarray) -> list[int]:
        """The slots of handles, which must all be open and different.

        Raises StateError.
        """
        found = [self.slot(handle) for handle in handles.tolist()]
        seen: set[int] = set()
        for handle, slot in zip(handles.tolist(), found, strict=True):
            if slot in seen:
                raise twice(handle)
            seen.add(slot)
        return found


def stale(handle: Any) -> StateError:
    """The error of a handle that names no open slot."""
    return StateError(
        f"slot {int(handle):#x} is not open: it was closed, or another pool opened it; use what the last open() gave"
    )


def twice(handle: Any) -> StateError:
    """The error of a slot that one call names several times."""
    return StateError(
        f"slot {int(handle):#x} is named twice in one call, but its steps follow one another; feed() it a chunk of them"
    )


class Records:
    """Equally long records of slots, in memory that never moves."""

    def __init__(self, size: int, count: int) -> None:
        self.size = max(size, 1)
        self._a_slab = max(1, SLAB_BYTES // self.size)
        self._slabs: list[np.ndarray] = []
        self._first = [0]  # record of each slab, and the one after the last
        self.addresses = np.zeros(0, np.int64)
        self.grow(count)

    def grow(self, more: int) -> None:
        """Room for more records; those there are stay where they are."""
        wanted = self._first[-1] + more
        while self._first[-1] < wanted:
            slab = aligned_empty((min(self._a_slab, wanted - self._first[-1]), self.size), np.uint8)
            self._slabs.append(slab)
            self._first.append(self._first[-1] + len(slab))
            places = slab.ctypes.data + np.arange(len(slab), dtype=np.int64) * self.size
            self.addresses = np.concatenate([self.addresses, places])

    def __getitem__(self, slot: int) -> np.ndarray:
        """View uint8[size] of a record."""
        slab = bisect_right(self._first, slot) - 1
        view: np.ndarray = self._slabs[slab][slot - self._first[slab]]
        return view
