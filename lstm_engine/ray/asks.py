"""What clients and shards say to each other."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple


class Do(IntEnum):
    """What is asked for."""

    OPEN = 0  # the stream is this client's from now on
    RESUME = 1  # it still is: go on from the store
    STEP = 2
    FEED = 3
    DRAW = 4
    STATE = 5
    RESTORE = 6
    CLOSE = 7
    DROP = 8


class Is(IntEnum):
    """What an answer is."""

    DONE = 0
    FAULT = 1  # an error of this package, in ``value``
    ABSENT = 2  # the stream is not open here, or does not stand where the client thinks
    LATER = 3  # not here, or not yet: why, in ``value``


class Ask(NamedTuple):
    """A request about a stream by the client ``session``. ``first``: the number of its first step, counted from 1."""

    do: Do
    key: str
    session: str
    first: int = 0
    value: Any = None


class Answer(NamedTuple):
    """``steps``: where the stream stands; ``durable``: where it stands in the store."""

    kind: Is
    value: Any = None
    steps: int = 0
    durable: int = 0


class Drawing(NamedTuple):
    """Read ``start`` and draw up to ``most`` tokens, the last of them one of ``stop``. Without a start the token drawn
    last is read; without a sampler the one that the stream has is used.
    """

    start: Sequence[int]
    most: int
    stop: frozenset[int]
    sampler: Any


def packed(messages: list[Any]) -> bytes:
    """Messages as one piece: hundreds of small arrays, each carried apart, would take Ray longer than their steps."""
    return pickle.dumps(messages, protocol=5)


def unpacked(data: bytes) -> list[Any]:
    """What packed() was given, within one cluster."""
    messages: list[Any] = pickle.loads(data)
    return messages
