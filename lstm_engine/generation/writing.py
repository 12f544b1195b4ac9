"""generate and stream_generate: one token after another from a stream.

stream = le.load("char.onnx").stream()
for piece in le.generate(stream, "def ", max_tokens=200, sampler=le.Sampler(temperature=0.7, seed=1)):
    print(piece, end="", flush=True)
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, overload

from ..errors import InputError
from .sampling import Sampler, whole
from .stops import Stop, parsed_stops, text_until
from .tokens import Ids, TokenModel, Writer

if TYPE_CHECKING:
    from ..stream import Stream


@overload
def generate(
    stream: Stream,
    prompt: str,
    *,
    max_tokens: int | None = ...,
    sampler: Sampler | None = ...,
    stop: Stop = ...,
    vocabulary: Any = ...,
) -> Iterator[str]: ...
@overload
def generate(
    stream: Stream,
    prompt: Ids,
    *,
    max_tokens: int | None = ...,
    sampler: Sampler | None = ...,
    stop: Stop = ...,
    vocabulary: Any = ...,
) -> Iterator[int]: ...
def generate(
    stream: Stream,
    prompt: str | Ids,
    *,
    max_tokens: int | None = None,
    sampler: Sampler | None = None,
    stop: Stop = None,
    vocabulary: Any = None,
) -> Iterator[Any]:
    """Token after token: what the model goes on with after the prompt. Ids in, ids out; text in, text out.

    ``stream``: of one row, reads one token id and gives scores [V] a step; it goes on from the state it has.
    ``prompt``: text, where the model has a vocabulary, or token ids; an empty one stands for the boundary token.
    ``max_tokens``: at most so many, None for no limit. ``sampler``: None for Sampler(), which draws from the model's
    own distribution. ``stop``: token ids, or texts where the prompt is text, that end the generation and are not
    part of it. So does the boundary token, unless ``stop`` is an empty sequence. ``vocabulary``: a Vocabulary or the
    path of its JSON file; None for that in the model's metadata or beside its file.

    Text comes a token at a time, except that what may be the beginning of a stop text is held back. The prompt is
    read when the first token is asked for. The last token that came has not been read by the stream: to go on later,
    begin the next prompt with it. A token costs one call of machine code; one that fails leaves the stream and the
    sampler as they were.

    Raises InputError for a stream that does not generate, a prompt that does not fit it, settings out of range;
    ModelFormatError for a vocabulary that contradicts the model.
    """
    plan = _Plan(stream, prompt, max_tokens, sampler, stop, vocabulary)
    ids = plan.ids()
    return plan.texts(ids) if plan.as_text else ids


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of stream_generate().

    ``text``: None without a vocabulary; ``log_probability``: of the token in the model's own distribution, whatever
    the sampler made of it; ``first_token_seconds``: how long the prompt and the first token took;
    ``tokens_per_second``: of the tokens behind the first up to this one, 0 for the first. Times are those in which the
    generation was at work, not its consumer.
    """

    token: int
    text: str | None
    log_probability: float
    first_token_seconds: float
    tokens_per_second: float


def stream_generate(
    stream: Stream,
    prompt: str | Ids,
    *,
    max_tokens: int | None = None,
    sampler: Sampler | None = None,
    stop: Stop = None,
    vocabulary: Any = None,
) -> Iterator[Piece]:
    """As generate(), each token as a Piece with its text, log-probability and timings.

    A piece whose text holds the beginning of a stop text comes when that is decided; its times are those at which its
    token was drawn.

    Raises what generate() raises.
    """
    plan = _Plan(stream, prompt, max_tokens, sampler, stop, vocabulary, tell=True)
    return plan.pieces()


class _Plan:
    """What generate() and stream_generate() are asked for, checked."""

    def __init__(
        self,
        stream: Stream,
        prompt: str | Ids,
        max_tokens: int | None,
        sampler: Sampler | None,
        stop: Stop,
        vocabulary: Any,
        tell: bool = False,
    ) -> None:
        tokens = TokenModel.of(stream, vocabulary)
        self.writer = Writer(tokens, stream, Sampler() if sampler is None else sampler, tell)
        self.vocabulary = tokens.vocabulary
        self.as_text = isinstance(prompt, str)
        self.limit = checked_limit(max_tokens)
        self.start = tokens.prompt_ids(prompt)
        self.stop_ids, self.stop_texts = parsed_stops(stop, self.vocabulary, self.as_text)

    def ids(self) -> Iterator[int]:
        """The tokens up to the limit or a stop id."""
        return islice(self.writer.drawn(self.start, self.stop_ids), self.limit)

    def texts(self, ids: Iterator[int]) -> Iterator[str]:
        """Their texts up to a stop text."""
        assert self.vocabulary is not None
        texts = map(self.vocabulary.speller(self.start), ids)
        return text_until(texts, self.stop_texts) if self.stop_texts else texts

    def pieces(self) -> Iterator[Piece]:
        """Their pieces."""
        if self.vocabulary is None:
            yield from self._timed()
            return
        waiting: deque[Piece] = deque()

        def passing() -> Iterator[int]:
            for piece in self._timed():
                waiting.append(piece)
                yield piece.token

        for text in self.texts(passing()):
            yield replace(waiting.popleft(), text=text)

    def _timed(self) -> Iterator[Piece]:
        """The tokens with their times, which end before a consumer gets them."""
        table, ids, first = self.writer.table, self.ids(), 0.0
        busy, count = 0.0, 0
        while True:
            began = time.perf_counter()
            token = next(ids, None)
            busy += time.perf_counter() - began
            if token is None:
                return
            first = first or busy
            rate = count / (busy - first) if count else 0.0
            count += 1
            yield Piece(token, None, table.log_probability, first, rate)


def checked_limit(max_tokens: Any) -> int | None:
    """How many tokens islice() is to let through. Raises InputError for no whole number."""
    if max_tokens is None:
        return None
    if not whole(max_tokens, 0):
        raise InputError(f"generate: max_tokens={max_tokens!r}: expected a whole number from 0 on, or None")
    return min(int(max_tokens), sys.maxsize)
