"""beam_search: the likeliest continuations, several at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import InputError, listed
from .sampling import real, whole
from .stops import Stop, parsed_stops
from .tokens import Ids, TokenModel, rows_for

if TYPE_CHECKING:
    from ..pool import StreamPool
    from ..stream import Stream

_MOST: Final = 1 << 31  # beams, or tokens of one
_STEEPEST: Final = 10  # length penalty: lengths to this power are still numbers


@dataclass(frozen=True)
class Beam:
    """A continuation that beam_search() found.

    ``tokens``, and their ``text`` where the model has a vocabulary; ``log_probability``: the sum over all tokens, that
    of the stop token which ended it included; ``score``: by which beams are ranked.
    """

    tokens: tuple[int, ...]
    text: str | None
    log_probability: float
    score: float


@dataclass(frozen=True)
class _Open:
    """A beam that goes on: its slot has read all tokens but the last."""

    tokens: tuple[int, ...]
    log_probability: float
    slot: int


@dataclass(frozen=True)
class _Search:
    """What is looked for: ``longest`` tokens, the stop token included; ``penalty``: of the length."""

    tokens: TokenModel
    width: int
    longest: int
    penalty: float
    stops: frozenset[int]

    def score(self, log_probability: float, length: int) -> float:
        """log p / length^penalty."""
        return float(log_probability / length**self.penalty)

    def bound(self, beam: _Open) -> float:
        """What no continuation of a beam can score more than: its sum can only fall."""
        return max(self.score(beam.log_probability, n) for n in (len(beam.tokens) + 1, self.longest))


def beam_search(
    stream: Stream,
    prompt: str | Ids,
    *,
    width: int = 4,
    max_tokens: int,
    length_penalty: float = 1.0,
    stop: Stop = None,
    vocabulary: Any = None,
) -> list[Beam]:
    """The likeliest continuations of a prompt, best first; the ``width`` best are followed side by side, in one call a
    token.

    ``stream``: as generate() takes it; it stays where it is. A beam ends at a token of ``stop`` (None: the boundary
    token, if the model has one), which is not part of it, or with ``max_tokens`` tokens. Beams are ranked by their
    log-probability over length^``length_penalty`` (the length counts the stop token): 0 favours short ones, 1 ranks by
    the mean. Of equals the one of the better beam, then of the lower token, comes first.

    Raises what generate() raises.
    """
    tokens = TokenModel.of(stream, vocabulary)
    stops, texts = parsed_stops(stop, tokens.vocabulary, as_text=True)
    faults = ["stop: beams end at tokens; give token ids"] if texts else []
    faults += [
        f"{name}={value!r}: expected a whole number from 1 on"
        for name, value in (("width", width), ("max_tokens", max_tokens))
        if not whole(value, 1, _MOST)
    ]
    if not real(length_penalty, -_STEEPEST, _STEEPEST):
        faults.append(f"length_penalty={length_penalty!r}: expected a number from {-_STEEPEST} to {_STEEPEST}")
    if faults:
        raise InputError(listed("beam_search", faults))
    search = _Search(tokens, width, max_tokens, float(length_penalty), stops)
    start = tokens.prompt_ids(prompt)
    found = _searched(search, stream, start)
    return [Beam(ids, tokens.text_of(ids, start), total, score) for score, total, ids in found]


_Found = tuple[float, float, tuple[int, ...]]  # score, log-probability, tokens


def _searched(search: _Search, stream: Stream, start: Sequence[int]) -> list[_Found]:
    """The best ended beams, best first."""
    reader = stream.fork()
    for y in search.tokens.outputs_of(reader, start):
        last = y[-1:]
    pool = stream.model.pool(capacity=2 * search.width, constants=stream.constants or None)
    slot = pool.open()
    pool.restore(slot, reader.state)
    ended: list[_Found] = []
    beams, log_probabilities = [_Open((), 0.0, slot)], search.tokens.log_probabilities(last)
    while beams:
        beams = _extended(search, pool, beams, log_probabilities, ended)
        ended = _best(ended, search.width)
        if len(ended) == search.width:
            beams = [beam for beam in beams if search.bound(beam) > ended[-1][0]]
        if beams:
            y = pool.step([beam.slot for beam in beams], rows_for(pool, [beam.tokens[-1] for beam in beams]))
            log_probabilities = search.tokens.log_probabilities(y)
    return ended


def _best(ended: Iterable[_Found], width: int) -> list[_Found]:
    return sorted(ended, key=lambda found: -found[0])[:width]


def _extended(
    search: _Search, pool: StreamPool, beams: Sequence[_Open], log_probabilities: np.ndarray, ended: list[_Found]
) -> list[_Open]:
    """The best beams a token longer, each with a slot of its own; those that end go to ``ended``."""
    chosen: list[tuple[_Open, int, float]] = []
    for beam, token, total in _candidates(beams, log_probabilities):
        if token in search.stops:
            ended.append((search.score(total, len(beam.tokens) + 1), total, beam.tokens))
            continue
        chosen.append((beam, token, total))
        if len(chosen) == search.width:
            break
    if len(beams[0].tokens) + 1 == search.longest:
        ended += [(search.score(total, search.longest), total, (*beam.tokens, t)) for beam, t, total in chosen]
        return []
    children = Counter(beam.slot for beam, _, _ in chosen)
    for beam in beams:
        if not children[beam.slot]:
            pool.close(beam.slot)
    longer = []
    for beam, token, total in chosen:
        children[beam.slot] -= 1
        slot = pool.fork(beam.slot) if children[beam.slot] else beam.slot
        longer.append(_Open((*beam.tokens, token), total, slot))
    return longer


def _candidates(beams: Sequence[_Open], log_probabilities: np.ndarray) -> Iterator[tuple[_Open, int, float]]:
    """Every possible next token of every beam, the likeliest first."""
    totals = np.array([[beam.log_probability] for beam in beams]) + log_probabilities
    for place in np.argsort(-totals, axis=None, kind="stable"):
        row, token = divmod(int(place), totals.shape[1])
        if totals[row, token] == -math.inf:
            return
        yield beams[row], token, float(totals[row, token])
