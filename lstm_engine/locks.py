"""Locks that a forked child finds free: the threads that held them are not there.

What they guard must be whole, or made anew, at every moment: a thread may have been put aside in the middle of it.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Final


class Lock:
    """For ``with``; the thread that has it may take it again."""

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _all.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """In a forked child: be free, unless the thread that forked has it."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock = threading.RLock()


_all: Final[weakref.WeakSet[Lock]] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in _all:
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
