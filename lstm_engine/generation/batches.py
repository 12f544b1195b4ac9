"""generate_many: continuations of many prompts, side by side through a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import InputError
from ..pool import StreamPool
from .sampling import Sampler, whole
from .stops import Stop, parsed_stops
from .tokens import Ids, TokenModel, rows_for

if TYPE_CHECKING:
    from ..model import Model

_SEEDS: Final = 1 << 64


def generate_many(
    source: Model | StreamPool,
    prompts: Iterable[str | Ids],
    *,
    max_tokens: int,
    sampler: Sampler | None = None,
    stop: Stop = None,
    vocabulary: Any = None,
    width: int = 64,
) -> list[Any]:
    """What a model goes on with after each of many prompts, in their order: a text for a text, a list of ids for ids.

    Each is what generate() gives for its prompt alone with a new stream and a sampler of its own: with the settings of
    ``sampler`` and its seed plus the prompt's number, counted from 0 (None stays different every time).

    ``source``: a Model, or a pool to open slots in, which are closed in the end. ``width``: at most so many prompts at
    once, a step of all of them in one call; where one is done the next comes in. ``prompts`` is read as they come in.
    The other settings are those of generate().

    Raises what generate() raises, naming the prompt; StateError from a pool that is out of slots.
    """
    if not whole(width, 1):
        raise InputError(f"generate_many: width={width!r}: expected a whole number from 1 on")
    if not whole(max_tokens, 0):
        raise InputError(f"generate_many: max_tokens={max_tokens!r}: expected a whole number from 0 on")
    if sampler is not None and not isinstance(sampler, Sampler):
        raise InputError(f"generate_many: sampler: expected a Sampler or None, got {type(sampler).__name__}")
    pool = source if isinstance(source, StreamPool) else source.pool(capacity=width)
    tokens = TokenModel.of_pool(pool, vocabulary)
    batch = _Batch(pool, tokens, Sampler() if sampler is None else sampler, int(max_tokens), stop)
    return batch.run(enumerate(prompts), width)


@dataclass(eq=False)
class _Row:
    """A prompt on its way: the tokens it has still to read before the first is drawn, and what was made of it."""

    number: int
    slot: int
    prompt: Iterator[int]
    following: int
    sampler: Sampler
    stop_ids: frozenset[int]
    stop_texts: tuple[str, ...]
    spell: Callable[[int], str] | None
    ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    tail: str = ""
    reading: bool = True

    def read_on(self) -> None:
        """The next token of the prompt is to be read; after the last one, a token is drawn."""
        token = next(self.prompt, None)
        self.reading = token is not None
        if token is not None:
            self.sampler.read([self.following])
            self.following = token

    def take(self, token: int, most: int) -> bool:
        """Have a drawn token; whether it was the last."""
        if token in self.stop_ids:
            return True
        self.following = token
        self.ids.append(token)
        if self.spell is not None and self._ended(self.spell(token)):
            return True
        return len(self.ids) >= most

    def _ended(self, piece: str) -> bool:
        """Whether a stop text ends with this piece of text: it is then cut off."""
        self.pieces.append(piece)
        recent = self.tail + piece
        found = [at for at in map(recent.find, self.stop_texts) if at >= 0]
        if found:
            whole = "".join(self.pieces)
            self.pieces = [whole[: len(whole) - len(recent) + min(found)]]
        else:
            shared = max(map(len, self.stop_texts), default=1) - 1  # a stop text that goes on has begun there
            self.tail = recent[-shared:] if shared else ""
        return bool(found)


class _Batch:
    """Rows that are under way in a pool."""

    def __init__(self, pool: StreamPool, tokens: TokenModel, sampler: Sampler, most: int, stop: Stop) -> None:
        from .. import images

        self.pool, self.tokens, self.sampler, self.most, self.stop = pool, tokens, sampler, most, stop
        self.table = tokens.table()
        self.draw_rows = images.sampling().function("draw_rows")
        self.rows: list[_Row] = []
        self.results: dict[int, Any] = {}

    def run(self, prompts: Iterator[tuple[int, str | Ids]], width: int) -> list[Any]:
        """All prompts, at most ``width`` at once."""
        more = True
        try:
            while more or self.rows:
                while more and len(self.rows) < width:
                    entry = next(prompts, None)
                    more = entry is not None
                    if entry is not None:
                        self._admit(*entry)
                if self.rows:
                    self._step()
        finally:
            for row in self.rows:
                self.pool.close(row.slot)
        return [self.results[number] for number in range(len(self.results))]

    def _admit(self, number: int, prompt: str | Ids) -> None:
        """Have a prompt join."""
        as_text, vocabulary = isinstance(prompt, str), self.tokens.vocabulary
        try:
            start = self.tokens.prompt_ids(prompt)
            stops = parsed_stops(self.stop, vocabulary, as_text)
        except InputError as fault:
            raise InputError(f"prompt {number}: {fault}") from fault
        spell = vocabulary.speller(start) if as_text and vocabulary is not None else None
        if self.most == 0:
            self.results[number] = "" if as_text else []
            return
        seed = None if self.sampler.seed is None else (self.sampler.seed + number) % _SEEDS
        sampler = replace(self.sampler, seed=seed)
        sampler.make_room(self.tokens.count)
        first, *others = start
        row = _Row(number, self.pool.open(), iter(others), first, sampler, *stops, spell)
        self.rows.append(row)

    def _step(self) -> None:
        """A step of all rows; those that have read their prompt draw a token, and those that are done leave."""
        rows = self.rows
        fed = [row.following for row in rows]
        try:
            scores = self.pool.step([row.slot for row in rows], rows_for(self.pool, fed)).reshape(len(rows), -1)
        except InputError as fault:
            raise InputError(f"prompts {', '.join(str(row.number) for row in rows)}: {fault}") from fault
        for row in rows:
            if row.reading:
                row.read_on()
        drawn = self._drawn(scores.astype(self.tokens.scores, copy=False), fed)
        for row, token in zip(rows, drawn, strict=True):
            if not row.reading and row.take(token, self.most):
                self.results[row.number] = row.ids if row.spell is None else "".join(row.pieces)
                self.pool.close(row.slot)
        self.rows = [row for row in rows if row.number not in self.results]

    def _drawn(self, scores: np.ndarray, fed: Sequence[int]) -> list[int]:
        """The tokens drawn, of the rows that read their prompts those they were fed."""
        tokens = np.array(fed, np.int64)
        addresses = np.array([0 if row.reading else row.sampler.address for row in self.rows], np.int64)
        place, row = int(scores.ctypes.data), scores.strides[0]
        done = self.draw_rows(addresses.ctypes.data, self.table.address, place, row, len(fed), tokens.ctypes.data)
        if done < len(fed):
            fault = self.table.error()
            raise type(fault)(f"prompt {self.rows[done].number}: {fault}")
        drawn: list[int] = tokens.tolist()
        return drawn
