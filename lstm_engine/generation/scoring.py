"""score: how likely a model finds a text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import InputError
from ..stream import Stream
from .tokens import Ids, TokenModel

if TYPE_CHECKING:
    from ..model import Model

_MOST_EXPONENT: Final = 709.0  # of e, before it overflows


@dataclass(frozen=True, eq=False)
class Likelihood:
    """How likely a model finds tokens, each after those before it.

    ``tokens``: those that are scored; ``log_probabilities``: of each, in nats; ``characters``: of the text that they
    stand for, None where the model has no vocabulary.
    """

    tokens: tuple[int, ...]
    log_probabilities: np.ndarray
    characters: int | None

    @property
    def log_likelihood(self) -> float:
        """The sum of the log-probabilities, in nats."""
        return float(self.log_probabilities.sum())

    @property
    def perplexity(self) -> float:
        """e^ the mean negative log-probability: among so many equal tokens the model would choose."""
        mean = -self.log_likelihood / len(self.tokens)
        return math.exp(mean) if mean < _MOST_EXPONENT else math.inf

    @property
    def bits_per_token(self) -> float:
        """The mean negative log2-probability of a token."""
        return -self.log_likelihood / (math.log(2) * len(self.tokens))

    @property
    def bits_per_character(self) -> float | None:
        """The negative log2-probability of it all for each character of the text; None without a text."""
        return -self.log_likelihood / (math.log(2) * self.characters) if self.characters else None


def score(
    source: Model | Stream, text: str | Ids, *, prompt: str | Ids | None = None, vocabulary: Any = None
) -> Likelihood:
    """How likely a model finds a text, or token ids: all by one pass, in float64 from the scores.

    ``source``: a Model, from its beginning, or a Stream, from where it is (which stays there). ``prompt``: what is read
    first and not scored; None for the boundary token where ``source`` is a model that has one. Without either, the
    first token of the text has nothing before it and is read only. ``vocabulary``: as generate() takes it.

    Raises InputError for a model that does not give scores of tokens, a text that does not fit it or has nothing to
    score, an id out of range; ModelFormatError for a vocabulary that contradicts the model.
    """
    stream = source.fork() if isinstance(source, Stream) else source.stream()
    tokens = TokenModel.of(stream, vocabulary)
    ids = tokens.text_ids(text, "text")
    before = _before(tokens, prompt, isinstance(source, Stream))
    unscored = [] if before else ids[:1]
    scored = ids[len(unscored) :]
    if not scored:
        raise InputError("score: there is no token to score: the first needs something before it (prompt=)")
    found = _log_probabilities(tokens, stream, [*before, *unscored], scored)
    return Likelihood(tuple(scored), found, _characters(tokens, text, unscored, scored))


def _before(tokens: TokenModel, prompt: str | Ids | None, goes_on: bool) -> list[int]:
    """What is read first."""
    if prompt is not None:
        return tokens.text_ids(prompt, "prompt")
    boundary = None if goes_on or tokens.vocabulary is None else tokens.vocabulary.boundary
    return [] if boundary is None else [boundary]


def _log_probabilities(tokens: TokenModel, stream: Stream, before: list[int], scored: list[int]) -> np.ndarray:
    """Of each token that is scored; a part of the text at a time."""
    found = np.empty(len(scored))
    at = 1 - len(before)  # of the token that the next output is the distribution of
    for y in tokens.outputs_of(stream, [*before, *scored[:-1]]):
        first, at = at, at + len(y)
        skipped = max(-first, 0)
        if skipped < len(y):
            rows = tokens.log_probabilities(y[skipped:])
            wanted = scored[first + skipped : at]
            found[first + skipped : at] = rows[np.arange(len(wanted)), _checked(wanted, tokens.count)]
    return found


def _checked(ids: list[int], count: int) -> list[int]:
    """The ids, which the model's scores are to cover: the last of a text is never read. Raises InputError."""
    if strange := [token for token in ids if token >= count]:
        raise InputError(f"text: token {strange[0]} is out of range, expected 0 to {count - 1}")
    return ids


def _characters(tokens: TokenModel, text: str | Ids, unscored: list[int], scored: list[int]) -> int | None:
    """Characters of what is scored."""
    vocabulary = tokens.vocabulary
    if vocabulary is None:
        return None
    return len(text) - len(vocabulary.decode(unscored)) if isinstance(text, str) else len(vocabulary.decode(scored))
