"""What ends a generation: token ids, and texts that may lie across tokens."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, SupportsIndex, TypeAlias

from ..errors import InputError, listed
from .sampling import whole
from .vocabulary import Vocabulary

Stop: TypeAlias = "str | int | Sequence[str | int] | None"


def parsed_stops(stop: Any, vocabulary: Vocabulary | None, as_text: bool) -> tuple[frozenset[int], tuple[str, ...]]:
    """Token ids and texts that end a generation. Raises InputError listing what is neither."""
    boundary = {vocabulary.boundary} if vocabulary is not None and vocabulary.boundary is not None else set()
    if stop is None:
        return frozenset(boundary), ()
    wanted = [stop] if isinstance(stop, str | SupportsIndex) else list(stop)
    texts = tuple(entry for entry in wanted if isinstance(entry, str))
    faults = [
        f"stop={entry!r}: expected a token id or a text of at least one character"
        for entry in wanted
        if entry == "" or not (isinstance(entry, str) or whole(entry, 0))
    ]
    if texts and not as_text:
        faults.append("stop: texts can end a generation only where the prompt is text; give token ids")
    if faults:
        raise InputError(listed("generate", faults))
    ids = {operator.index(entry) for entry in wanted if not isinstance(entry, str)}
    return frozenset(ids | boundary if wanted else ids), texts


def text_until(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """The pieces up to the first stop text; those that may be its beginning wait until that is decided."""
    held: list[str] = []
    for piece in pieces:
        held.append(piece)
        text = "".join(held)
        found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
        if found:
            yield from _cut(held, min(found))
            return
        waiting = max((_overlap(text, stop) for stop in stops), default=0)
        clear = len(text) - waiting
        while held and len(held[0]) <= clear:
            clear -= len(held[0])
            yield held.pop(0)
    yield from held


def _cut(pieces: Sequence[str], length: int) -> Iterator[str]:
    """The pieces of the first ``length`` characters."""
    for piece in pieces:
        if length <= 0:
            return
        yield piece[:length]
        length -= len(piece)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    fits: Callable[[int], bool] = lambda n: text.endswith(stop[:n])  # noqa: E731
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if fits(n)), 0)
