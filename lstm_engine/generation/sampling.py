"""Sampler: how the next token is chosen from scores. The choosing itself is machine code (`kernels/sampling.py`)."""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np

from ..encoding import SAMPLER_BUSY, UNDRAWN
from ..errors import InputError, LstmEngineError, StateError, listed
from ..kernels.draws import Draw, Scores
from ..program.packing import aligned_empty

_MOST_TOKENS: Final = 1 << 24  # that a history tells apart: a table of a word each
_ALL: Final = 1 << 62  # top_k where all may come
_LANES: Final = 16  # the tables are read in whole vectors
_IN_USE: Final = "this sampler is in use by another caller; a sampler serves one stream at a time"


class ScoreTable:
    """Scores of ``count`` tokens: where a step writes them, what they are, and the tables that drawing needs."""

    def __init__(self, count: int, dtype: np.dtype[Any], probabilities: bool, tell: bool = False) -> None:
        self.count = count
        self.place = aligned_empty((count,), dtype)
        padded = -(-count // _LANES) * _LANES
        self._tables = aligned_empty((4, padded), np.float64)
        self.words = np.zeros(len(Scores), np.int64)
        self.address = int(self.words.ctypes.data)
        self._floats = self.words.view(np.float64)
        values: dict[Scores, int] = {
            Scores.COUNT: count,
            Scores.BYTES: dtype.itemsize,
            Scores.PROBABILITIES: probabilities,
            Scores.PLACE: self.place.ctypes.data,
            Scores.TELL: tell,
        }
        values |= {word: self._tables[word - Scores.VALUES].ctypes.data for word in list(Scores)[6:10]}
        for word, value in values.items():
            self.words[word] = value

    @property
    def log_probability(self) -> float:
        """Of the token drawn last, in the model's own distribution. The table was made to ``tell``."""
        return float(self._floats[Scores.TOLD]) - math.log(self._floats[Scores.SUM])

    @property
    def fault(self) -> int:
        """Why there is no token."""
        return int(self.words[Scores.FAULT])

    def error(self) -> LstmEngineError:
        """The error of a fault of drawing."""
        if self.fault == SAMPLER_BUSY:
            return StateError(_IN_USE)
        assert self.fault == UNDRAWN
        best = float(self._floats[Scores.BEST])
        return InputError(f"generate: no token can be chosen, the greatest of {self.count} scores is {best}")


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen from a model's scores, and the random numbers for it.

    In this order: ``repetition_penalty`` (Keskar et al. 2019) divides the scores of tokens that were read, negative
    ones are multiplied by it; ``repetition_window``: of those read last only, so many; None: of all. (Probabilities are
    taken as their logarithms, which are never positive.) ``temperature`` divides the scores; 0 takes the most likely
    token (of equals the first), always. ``top_k``: only the k most likely tokens. ``top_p``: of these the fewest most
    likely that together have this part of their probability. ``min_p`` (Nguyen et al. 2024): of these the ones that
    are at least so likely as this part of the most likely. What is left is drawn from in proportion.

    ``seed``: 0 to 2⁶⁴−1 makes every run draw the same numbers, and from the same scores the same tokens, on every
    machine; None is different every time.

    A sampler draws on with every token, so one serves one stream. ``state`` is where it is, and restore() goes back
    there; a stream's snapshot has room for it: ``dataclasses.replace(stream.state, sampler=sampler.state)``.

    Raises InputError listing every setting out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    min_p: float | None = field(default=None, kw_only=True)
    repetition_penalty: float = field(default=1.0, kw_only=True)
    repetition_window: int | None = field(default=None, kw_only=True)
    _draws: Draws = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        faults = [fault for fault in map(self._fault, _EXPECTED) if fault]
        if faults:
            raise InputError(listed("Sampler", faults))
        object.__setattr__(self, "_draws", Draws(self))

    def _fault(self, name: str) -> str:
        value, (fits, expected) = getattr(self, name), _EXPECTED[name]
        return "" if fits(value) else f"{name}={value!r}: expected {expected}"

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.init}
        return _restored, (settings, self.state)

    @property
    def address(self) -> int:
        """Of the words that machine code draws with."""
        return self._draws.address

    @property
    def state(self) -> bytes:
        """Where the random numbers are: 8 bytes, little-endian; with a penalty, 4 more for each token of its window."""
        return self._draws.state()

    def restore(self, state: bytes) -> None:
        """Draw on from where ``state`` was taken. Raises InputError for what no such sampler's ``state`` returned."""
        self._draws.restore(state)

    def read(self, tokens: Iterable[int]) -> None:
        """Have these tokens counted by the repetition penalty, as generate() does with all that a stream reads.

        Raises InputError for what is no token id.
        """
        self._draws.read(tokens)

    def choose(self, scores: np.ndarray) -> int:
        """The next token's id; ``scores`` [V]: logits or log-probabilities, −inf for what cannot be.

        Raises InputError for no scores at all, NaN, +inf, or −inf only.
        """
        table = self._draws.table_for(np.ascontiguousarray(scores, np.float64).reshape(-1))
        return self.choose_after(table, None)

    def choose_after(self, table: ScoreTable, token: int | None) -> int:
        """The next token's id by the scores in a table, after ``token`` was read. Raises InputError, StateError."""
        from .. import images

        place, read = int(table.words[Scores.PLACE]), -1 if token is None else token
        chosen = images.sampling().function("draw_one")(self.address, table.address, place, read)
        if chosen < 0:
            raise table.error()
        return chosen

    def make_room(self, count: int) -> None:
        """Be ready to count ``count`` different tokens."""
        self._draws.make_room(count)


def _restored(settings: dict[str, Any], state: bytes) -> Sampler:
    """A sampler with these settings that draws on from a state."""
    sampler = Sampler(**settings)
    sampler.restore(state)
    return sampler


class Draws:
    """What changes of a sampler: the words and tables that machine code reads and writes."""

    def __init__(self, sampler: Sampler) -> None:
        seed = secrets.randbits(64) if sampler.seed is None else int(sampler.seed)
        self.counts = sampler.repetition_penalty != 1
        self.words = np.zeros(len(Draw), np.int64)
        self.address = int(self.words.ctypes.data)
        self._seen = np.zeros(0, np.int64)
        self._ring = np.zeros(sampler.repetition_window or 0, np.int64) if self.counts else np.zeros(0, np.int64)
        self._table: ScoreTable | None = None
        self._set_random(seed)
        floats = self.words.view(np.float64)
        floats[Draw.TEMPERATURE] = sampler.temperature
        floats[Draw.TOP_P] = 1.0 if sampler.top_p is None else sampler.top_p
        floats[Draw.MIN_P] = 0.0 if sampler.min_p is None else sampler.min_p
        floats[Draw.PENALTY] = sampler.repetition_penalty
        self.words[Draw.TOP_K] = _ALL if sampler.top_k is None else min(int(sampler.top_k), _ALL)
        self.words[Draw.RING], self.words[Draw.RING_SIZE] = self._ring.ctypes.data, self._ring.size

    def _set_random(self, state: int) -> None:
        self.words.view(np.uint64)[Draw.RANDOM] = state

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep machine code in other threads away. Raises StateError where there is some."""
        from .. import images

        acquire, give_up = images.guards()
        if not acquire(self.address):
            raise StateError(_IN_USE)
        try:
            yield
        finally:
            give_up(self.address)

    def make_room(self, count: int) -> None:
        """Count so many different tokens."""
        if not self.counts or count <= self._seen.size:
            return
        if count > _MOST_TOKENS:
            raise InputError(f"Sampler: a repetition penalty tells {_MOST_TOKENS:,} tokens apart, not {count:,}")
        grown = np.zeros(count, np.int64)
        with self._alone():
            grown[: self._seen.size] = self._seen
            self._seen = grown
            self.words[Draw.SEEN], self.words[Draw.SEEN_COUNT] = grown.ctypes.data, count

    def read(self, tokens: Iterable[int]) -> None:
        """Count tokens."""
        from .. import images

        ids = list(tokens)
        if strange := [token for token in ids if not whole(token, 0, _MOST_TOKENS)]:
            raise InputError(f"Sampler: expected token ids from 0 to {_MOST_TOKENS - 1:,}, got {strange[0]!r}")
        if not self.counts or not ids:
            return
        self.make_room(max(ids) + 1)
        array = np.array(ids, np.int64)
        if images.sampling().function("read")(self.address, array.ctypes.data, array.size):
            raise StateError(_IN_USE)

    def table_for(self, scores: np.ndarray) -> ScoreTable:
        """A table of these scores."""
        if not scores.size:
            raise InputError("generate: no token can be chosen, there are no scores")
        table = self._table
        if table is None or table.count != scores.size:
            self._table = table = ScoreTable(scores.size, scores.dtype, False)
        table.place[...] = scores
        return table

    def state(self) -> bytes:
        """The random numbers' state, and the tokens that the penalty counts, oldest first."""
        random = int(self.words.view(np.uint64)[Draw.RANDOM]).to_bytes(8, "little")
        return random + self._history().astype("<u4").tobytes()

    def _history(self) -> np.ndarray:
        if not self._ring.size:
            return np.flatnonzero(self._seen)
        at, filled = int(self.words[Draw.RING_AT]), int(self.words[Draw.RING_FILLED])
        return self._ring[(at - filled + np.arange(filled)) % self._ring.size]

    def restore(self, state: bytes) -> None:
        """Go back to a state."""
        size = len(state) if isinstance(state, bytes) else -1
        most = (self._ring.size or _MOST_TOKENS) if self.counts else 0
        if size < 8 or size % 4 or size > 8 + 4 * most:
            further = f" and up to {most:,} tokens of 4" if most else ""
            got = f"{size} bytes" if size >= 0 else repr(state)
            raise InputError(f"Sampler: a state of this one is 8 bytes{further}, got {got}")
        history = np.frombuffer(state, "<u4", offset=8).astype(np.int64)
        if history.size and history.max() >= _MOST_TOKENS:
            raise InputError(f"Sampler: the state names token {history.max()}, of at most {_MOST_TOKENS:,}")
        with self._alone():
            self._seen[:] = 0
            self.words[Draw.RING_AT] = self.words[Draw.RING_FILLED] = 0
        self._set_random(int.from_bytes(state[:8], "little"))
        self.read(history.tolist())


# --- settings --------------------------------------------------------------------------------------------------------


def whole(value: object, low: int, high: int | None = None) -> bool:
    """Whether ``value`` is a whole number (no bool) in range."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return not isinstance(value, bool | np.bool_) and number >= low and (high is None or number < high)


def real(value: Any, low: float, high: float = math.inf, above: bool = False) -> bool:
    """Whether ``value`` is a finite number (no bool) from ``low`` (or ``above`` it) to ``high``."""
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return real and math.isfinite(value) and low <= value <= high and not (above and value == low)


_EXPECTED: Final[dict[str, tuple[Any, str]]] = {
    "temperature": (lambda x: real(x, 0), "a number from 0 on"),
    "top_k": (lambda x: x is None or whole(x, 1), "a whole number from 1 on, or None"),
    "top_p": (lambda x: x is None or real(x, 0, 1, above=True), "a number above 0 and up to 1, or None"),
    "min_p": (lambda x: x is None or real(x, 0, 1), "a number from 0 to 1, or None"),
    "repetition_penalty": (lambda x: real(x, 0, above=True), "a number above 0"),
    "repetition_window": (lambda x: x is None or whole(x, 1, _MOST_TOKENS), "a whole number from 1 on, or None"),
    "seed": (lambda x: x is None or whole(x, 0, 1 << 64), "0 to 2⁶⁴−1 or None"),
}
