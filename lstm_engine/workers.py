"""Helping threads: started when first woken, asleep when there is nothing to do, gone when the interpreter goes.

kernels/workers.py has the protocol between callers and a worker; here is what only Python can do. A worker is a thread
that alternates between machine code, which watches for jobs and returns when there have been none for a while, and a
lock, on which it sleeps. Machine code never wakes it: it sets the word ``BELL`` where a sleeping worker would be of
use, and the engine looks there after a call. One late or withdrawn job costs less than a system call would.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
import time
from contextlib import suppress
from typing import Final

import numpy as np

from .encoding import COMING, WORKER_WORDS, Worker
from .errors import InputError
from .locks import Lock
from .machine import SPIN_KNOB, THREADS_KNOB, Knob, allowed_cores, cores, current_core
from .program.packing import aligned_empty

GRACE: Final = 1e-6  # seconds: several times what a watching worker takes to begin
RISE: Final = 4  # in times a worker watches without work: a burst that has lasted so long will outlast the waking
HOLD: Final = (1e-3, 0.01)  # seconds: how long a worker is left asleep after a wake that did not pay, and at most
_ASKED: Final = 1


class Workers:
    """``count`` workers that watch for ``spin_seconds`` after their last job, asleep until woken; for all threads."""

    def __init__(self, count: int, spin_seconds: float) -> None:
        self._memory = aligned_empty((WORKER_WORDS * (1 + count),), np.int64)
        self._memory[:] = 0
        #: One word: not 0 when a call found a sleeping worker that it would have used; answer() then.
        self.bell = self._memory.data
        self._guard = threading.RLock()  # of starting, waking and ending; never waited for by callers
        self._closed = False
        self._helpers = [_Helper(k, self._memory[WORKER_WORDS * k :][:WORKER_WORDS]) for k in range(1, count + 1)]
        if count:
            self._set_up(spin_seconds)
        _all.append(self)

    def _set_up(self, spin_seconds: float) -> None:
        from .images import clock

        self._clock, self._rate = clock(), ticks_per_second()
        self._spin = int(spin_seconds * self._rate)
        self._rise = RISE * self._spin
        self._hold = [int(seconds * self._rate) for seconds in HOLD]
        for helper in self._helpers:
            helper.words[Worker.BELL] = int(self._memory.ctypes.data)
            helper.words[Worker.SPIN] = self._spin
            helper.words[Worker.RISE] = self._rise
            helper.words[Worker.GRACE] = int(GRACE * self._rate)

    @property
    def bell_address(self) -> int:
        """Where machine code finds the bell."""
        return int(self._memory.ctypes.data)

    def __len__(self) -> int:
        return len(self._helpers)

    def blocks(self, most: int) -> tuple[int, ...]:
        """Addresses of up to ``most`` workers' blocks, one after the other in memory, valid as long as the process."""
        return tuple(helper.address for helper in self._helpers[: max(0, most)])

    # --- waking ------------------------------------------------------------------------------------------------------

    def answer(self) -> None:
        """Wake the workers that calls have asked for."""
        self.bell[0] = 0
        for helper in self._helpers:
            if helper.words[Worker.WANTED] == _ASKED:
                self._wake(helper)

    def wake(self, most: int, seconds: float) -> None:
        """A call begins that will take about so long: wake up to ``most`` workers, if that is likely to pay."""
        if not self._helpers or seconds * self._rate < self._rise:
            return
        now = self._clock()
        for helper in self._helpers[: max(0, most)]:
            if not helper.words[Worker.AWAKE] and not helper.words[Worker.WANTED] and now > helper.words[Worker.HOLD]:
                self._wake(helper)

    def _wake(self, helper: _Helper) -> None:
        """Let a worker's thread go on, or start it; not at all where that is being done already."""
        if not self._guard.acquire(blocking=False):
            return
        try:
            self._judge(helper)
            if not self._closed and (helper.thread is not None or helper.start()):
                helper.words[Worker.WANTED] = COMING
                helper.keep_off(current_core())
                helper.release()
            else:
                helper.words[Worker.WANTED] = 0
        finally:
            self._guard.release()

    def _judge(self, helper: _Helper) -> None:
        """A wake has paid if the worker then did as much work as a burst is waited for: if not, it is left asleep the
        longer after this one.
        """
        worked, (least, most) = helper.words[Worker.WORKED], self._hold
        helper.hold = 0 if worked - helper.worked >= self._rise else min(max(2 * helper.hold, least), most)
        helper.worked = worked
        helper.words[Worker.HOLD] = self._clock() + helper.hold

    # --- the end -----------------------------------------------------------------------------------------------------

    def quiesce(self, owner: int) -> None:
        """Wait until no worker is doing a job that this owner has left behind: its memory may then be freed."""
        for helper in self._helpers:
            while helper.late_for(owner):
                time.sleep(GRACE)

    def stop(self) -> None:
        """End the threads; calls go on without them, and one that wakes them starts them anew."""
        with self._guard:
            for helper in self._helpers:
                helper.words[Worker.STOP] = 1
                helper.release()
            for helper in self._helpers:
                if helper.thread is not None:
                    helper.thread.join()
                helper.reset()

    def close(self) -> None:
        """Stop for good: the interpreter goes."""
        self._closed = True
        self.stop()

    def forget(self) -> None:
        """In a forked child, which has none of its parent's threads: what they and their callers left is void."""
        self._guard = threading.RLock()
        self.bell[0] = 0
        for helper in self._helpers:
            for word in _COUNTS:
                helper.words[word] = 0
            helper.reset()


#: Words that speak of threads and jobs under way.
_COUNTS: Final = [w for w in Worker if w < Worker.BELL]


class _Helper:
    """One worker: its block, the lock it sleeps on, its thread."""

    def __init__(self, number: int, block: np.ndarray) -> None:
        from .images import server

        self.number = number
        self.address = int(block.ctypes.data)
        self.words = block.data
        self._serve = server()
        self.reset()

    def reset(self) -> None:
        """No thread, and none asked for."""
        self.thread: threading.Thread | None = None
        self._sleeping = threading.Lock()
        self._sleeping.acquire()
        self.cores: frozenset[int] = frozenset()  # that its thread may run on
        self.kept_to: frozenset[int] = frozenset()
        self.hold = 0  # how long it is left asleep now
        self.worked = self.words[Worker.WORKED]  # the work it had done when it was last woken
        self.words[Worker.WANTED] = self.words[Worker.STOP] = 0

    def start(self) -> bool:
        """Start the thread, asleep; False where the system gives none."""
        thread = threading.Thread(target=self._live, name=f"lstm_engine worker {self.number}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self.thread = thread
        self.cores = allowed_cores(thread.native_id)
        return True

    def keep_off(self, core: int) -> None:
        """Run on another core than this, the caller's: there it would only come when the call is over."""
        others = self.cores - {core}
        if others and others != self.kept_to and self.thread is not None:
            with suppress(OSError):
                os.sched_setaffinity(self.thread.native_id or 0, others)
                self.kept_to = others

    def _live(self) -> None:
        while self._sleeping.acquire() and not self.words[Worker.STOP]:
            self._serve(self.address)

    def release(self) -> None:
        """Let the thread go on, now or when it next comes to sleep."""
        with suppress(RuntimeError):  # it has been told already
            self._sleeping.release()

    def late_for(self, owner: int) -> bool:
        """Whether a job of this owner's is under way."""
        ticket = self.words[Worker.TICKET]
        if self.words[Worker.ASKER] != owner:
            return False
        return ticket not in (self.words[Worker.DONE], self.words[Worker.WITHDRAWN])


#: Machine code knows the blocks by their addresses: they are never freed.
_all: Final[list[Workers]] = []
_sharing = Lock()


def shared() -> Workers:
    """The workers of this process, as many as the knobs and the machine allow."""
    with _sharing:
        return _shared()


@functools.cache
def _shared() -> Workers:
    return Workers(threads_allowed() - 1, _whole_number(SPIN_KNOB, 0, int(SPIN_KNOB.default)) * 1e-6)


def threads_allowed() -> int:
    """Most threads one call may use, the caller's own included."""
    return _whole_number(THREADS_KNOB, 1, cores())


def _whole_number(knob: Knob, least: int, default: int) -> int:
    """What an environment variable says, or its default.

    Raises InputError if it is no whole number, or less than ``least``.
    """
    text = os.environ.get(knob.name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < least:
        raise InputError(
            f"environment variable {knob.name} ({knob.meaning}): expected a whole number of at least {least}, "
            f"got {text!r}; set it to one, or unset it for the default: {knob.default}"
        )
    return int(text)


@functools.cache
def ticks_per_second() -> float:
    """Rate of the clock machine code reads, found by waiting for a moment."""
    first = _both_clocks()
    time.sleep(1e-3)
    last = _both_clocks()
    return (last[0] - first[0]) / (last[1] - first[1]) * 1e9


def _both_clocks() -> tuple[int, int]:
    """Ticks and nanoseconds at the same moment: of a few readings the one least disturbed."""
    from .images import clock

    ticks = clock()
    readings = [(ticks(), time.perf_counter_ns(), ticks()) for _ in range(8)]
    before, nanoseconds, after = min(readings, key=lambda reading: reading[2] - reading[0])
    return (before + after) // 2, nanoseconds


def _close_all() -> None:
    for workers in _all:
        workers.close()


def _forget_all() -> None:
    for workers in _all:
        workers.forget()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
