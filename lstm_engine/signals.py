"""What SIGINT and SIGTERM do while a command is at work."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO, Any


class Signals:
    """Lets SIGINT and SIGTERM end the work between two lines, never within one: the state stays that of whole lines."""

    def __init__(self) -> None:
        self.arrived = 0
        self._reading = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        with suppress(ValueError):  # only the main thread may
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def line_of(self, source: IO[bytes], longest: int) -> bytes:
        """The next line, cut after ``longest`` bytes; b'' at the end, or when a signal has come."""
        try:
            self._reading = True
            line = b"" if self.arrived else source.readline(longest)
            self._reading = False
        except InterruptedError:
            return b""
        return line

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.arrived = number
        if self._reading:
            self._reading = False
            raise InterruptedError


@contextmanager
def remembered_interrupts() -> Iterator[list[int]]:
    """SIGINT raises as ever, and is noted: raised within a callback of the compiler, it would be lost."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    before = None
    with suppress(ValueError):  # only the main thread may
        before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
