"""generate and Sampler: one token after another from a model of tokens.

stream = le.load("char.onnx").stream()
for piece in le.generate(stream, "def ", max_tokens=200, sampler=le.Sampler(temperature=0.7, seed=1)):
    print(piece, end="", flush=True)
"""

from __future__ import annotations

import json
import math
import operator
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, SupportsIndex, TypeAlias, overload

import numpy as np

from .errors import InputError, ModelFormatError, listed

if TYPE_CHECKING:
    from .graph import Graph
    from .model import Model
    from .stream import Stream

Ids: TypeAlias = "int | Sequence[int] | np.ndarray"
Stop: TypeAlias = "str | int | Sequence[str | int] | None"

#: Metadata keys under which a model file carries its vocabulary.
VOCABULARY_KEY: Final = "vocabulary"  # JSON list: one string per token id
UNIT_KEY: Final = "unit"  # "character": text is read character by character
UNKNOWN_KEY: Final = "unknown"  # the token that stands for what is not in the list
BOUNDARY_KEY: Final = "boundary"  # the token that stands before and after a text

_MOST_SCORES: Final = 1 << 22  # of a prompt's feed at a time: what it returns is thrown away
_MOST_NAMED: Final = 10  # things that a message names
#: Operators between a softmax and the output that do not change what the numbers mean.
_MOVES: Final = frozenset({
    "Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
_MEANINGS: Final[Mapping[str, str]] = {"Softmax": "probabilities", "LogSoftmax": "log-probabilities"}


# --- drawing a token -------------------------------------------------------------------------------------------------


class SplitMix64:
    """Steele, Lea & Flood's generator (OOPSLA 2014): 64 bits of state, the same numbers on every machine."""

    __slots__ = ("state",)

    def __init__(self, seed: int) -> None:
        self.state = seed

    def uniform(self) -> float:
        """The next number in [0, 1), a multiple of 2⁻⁵³."""
        mask = 0xFFFF_FFFF_FFFF_FFFF
        self.state = z = (self.state + 0x9E37_79B9_7F4A_7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & mask
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen from a model's scores, and the random numbers for it.

    ``temperature``: divides the scores; 0 takes the most likely token (of equals the first), always. ``top_k``: only
    the k most likely tokens. ``top_p``: then only the most likely of those that together have this probability.
    ``seed``: 0 to 2⁶⁴−1 makes every run draw the same numbers, on every machine; None is different every time.

    A sampler draws on with every token, so one serves one stream. ``state`` is where it is, and restore() goes back
    there; a stream's snapshot has room for it: ``dataclasses.replace(stream.state, sampler=sampler.state)``.

    Raises InputError listing every setting out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    _random: SplitMix64 = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        faults = [fault for fault in (_temperature_fault(self), _top_k_fault(self), _top_p_fault(self)) if fault]
        if self.seed is not None and not _whole(self.seed, 0, 1 << 64):
            faults.append(f"seed={self.seed!r}: expected 0 to 2⁶⁴−1 or None")
        if faults:
            raise InputError(listed("Sampler", faults))
        seed = secrets.randbits(64) if self.seed is None else int(self.seed)
        object.__setattr__(self, "_random", SplitMix64(seed))

    @property
    def state(self) -> bytes:
        """Where the random numbers are: 8 bytes, little-endian."""
        return self._random.state.to_bytes(8, "little")

    def restore(self, state: bytes) -> None:
        """Draw on from where ``state`` was taken. Raises InputError for what no sampler's ``state`` returned."""
        if not isinstance(state, bytes) or len(state) != 8:
            raise InputError(f"Sampler: a state is 8 bytes, got {len(state) if isinstance(state, bytes) else state!r}")
        self._random.state = int.from_bytes(state, "little")

    def choose(self, scores: np.ndarray) -> int:
        """The next token's id; ``scores`` [V]: logits or log-probabilities, −inf for what cannot be.

        Raises InputError for no scores at all, NaN, +inf, or −inf only.
        """
        scores = np.asarray(scores, np.float64)
        best = float(scores.max()) if scores.size else math.nan
        if not math.isfinite(best):
            raise InputError(f"generate: no token can be chosen, the greatest of {scores.size} scores is {best}")
        if self.temperature == 0:
            return int(scores.argmax())
        with np.errstate(over="ignore", under="ignore"):
            weights = np.exp((scores - best) / self.temperature)
        if self.top_k is not None and self.top_k < scores.size:
            weights[~_greatest(scores, self.top_k)] = 0
        if self.top_p is not None and self.top_p < 1:
            weights[~_nucleus(weights, self.top_p)] = 0
        return _drawn(weights, self._random.uniform())


def _greatest(scores: np.ndarray, count: int) -> np.ndarray:
    """Which scores are among the ``count`` greatest; of equals the first."""
    least = np.partition(scores, -count)[-count]
    kept: np.ndarray = scores > least
    ties = np.flatnonzero(scores == least)
    kept[ties[: count - int(kept.sum())]] = True
    return kept


def _nucleus(weights: np.ndarray, part: float) -> np.ndarray:
    """The fewest greatest weights that together make up ``part`` of the sum; of equals the first."""
    order = np.argsort(-weights, kind="stable")
    sums = np.cumsum(weights[order])
    count = int(np.searchsorted(sums, part * sums[-1])) + 1
    kept = np.zeros(weights.size, bool)
    kept[order[:count]] = True
    return kept


def _drawn(weights: np.ndarray, uniform: float) -> int:
    """An index with a chance in proportion to its weight."""
    sums = np.cumsum(weights)
    index = int(np.searchsorted(sums, uniform * sums[-1], side="right"))
    # Rounding can make the product the whole sum, which lies behind the last index that has a weight.
    return index if index < sums.size else int(np.flatnonzero(weights)[-1])


def _whole(value: object, low: int, high: int | None = None) -> bool:
    """Whether ``value`` is a whole number (no bool) in range."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return not isinstance(value, bool | np.bool_) and number >= low and (high is None or number < high)


def _real(value: object) -> bool:
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return real and math.isfinite(value)  # type: ignore[arg-type]


def _temperature_fault(sampler: Sampler) -> str:
    fits = _real(sampler.temperature) and sampler.temperature >= 0
    return "" if fits else f"temperature={sampler.temperature!r}: expected a number from 0 on"


def _top_k_fault(sampler: Sampler) -> str:
    fits = sampler.top_k is None or _whole(sampler.top_k, 1)
    return "" if fits else f"top_k={sampler.top_k!r}: expected a whole number from 1 on, or None"


def _top_p_fault(sampler: Sampler) -> str:
    fits = sampler.top_p is None or (_real(sampler.top_p) and 0 < sampler.top_p <= 1)
    return "" if fits else f"top_p={sampler.top_p!r}: expected a number above 0 and up to 1, or None"


# --- text and ids ----------------------------------------------------------------------------------------------------


class Vocabulary:
    """The strings of a model's tokens. ``tokens[id]`` is a token's text; ``unknown``, ``boundary``: ids or None.

    Text is cut into the longest tokens that fit, or into characters where the unit is "character". The unknown and
    the boundary token are never made out of text: they have ids only.
    """

    def __init__(self, tokens: Sequence[str], unit: str = "", unknown: str = "", boundary: str = "") -> None:
        self.tokens = tuple(tokens)
        self.unknown = self.tokens.index(unknown) if unknown else None
        self.boundary = self.tokens.index(boundary) if boundary else None
        special = {unknown, boundary, ""}
        self._ids = {text: i for i, text in reversed(list(enumerate(self.tokens))) if text not in special}
        self._lengths = [1] if unit == "character" else sorted({len(text) for text in self._ids}, reverse=True)

    @staticmethod
    def of(model: Model) -> Vocabulary | None:
        """The vocabulary in a model's metadata, None if it carries none.

        Raises ModelFormatError if the metadata contradict themselves.
        """
        metadata, origin = model.metadata, model.graph.origin
        if VOCABULARY_KEY not in metadata:
            return None
        try:
            tokens = json.loads(metadata[VOCABULARY_KEY])
        except (ValueError, RecursionError) as fault:
            raise ModelFormatError(f"{origin}: metadata '{VOCABULARY_KEY}' is not JSON ({fault})") from fault
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ModelFormatError(f"{origin}: metadata '{VOCABULARY_KEY}' is not a list of strings, one per token id")
        faults = [
            f"'{key}' is {metadata[key]!r}, which is not in the vocabulary"
            for key in (UNKNOWN_KEY, BOUNDARY_KEY)
            if metadata.get(key) and metadata[key] not in tokens
        ]
        if faults:
            raise ModelFormatError(listed(f"{origin}: metadata", faults))
        special = (metadata.get(key, "") for key in (UNIT_KEY, UNKNOWN_KEY, BOUNDARY_KEY))
        return Vocabulary(tokens, *special)

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises InputError naming the characters that no token begins with, unless there is a token for unknown ones.
        """
        ids: list[int] = []
        strange: dict[str, None] = {}
        at = 0
        while at < len(text):
            length = next((n for n in self._lengths if text[at : at + n] in self._ids), 0)
            if length:
                ids.append(self._ids[text[at : at + length]])
            elif self.unknown is not None:
                ids.append(self.unknown)
            else:
                strange[text[at]] = None
            at += max(length, 1)
        if strange:
            named = ", ".join(map(repr, islice(strange, _MOST_NAMED)))
            more = f" and {len(strange) - _MOST_NAMED} more" if len(strange) > _MOST_NAMED else ""
            raise InputError(f"text: no token of the model stands for {named}{more}, nor for unknown characters")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids. Raises InputError for an id out of range."""
        return "".join(self.text(token) for token in ids)

    def text(self, token: int) -> str:
        """A token's text. Raises InputError for an id out of range."""
        if not 0 <= token < len(self.tokens):
            raise InputError(f"token {token}: the vocabulary has ids 0 to {len(self.tokens) - 1}")
        return self.tokens[token]


# --- generating ------------------------------------------------------------------------------------------------------


@overload
def generate(
    stream: Stream, prompt: str, *, max_tokens: int | None = ..., sampler: Sampler | None = ..., stop: Stop = ...
) -> Iterator[str]: ...
@overload
def generate(
    stream: Stream, prompt: Ids, *, max_tokens: int | None = ..., sampler: Sampler | None = ..., stop: Stop = ...
) -> Iterator[int]: ...
def generate(
    stream: Stream,
    prompt: str | Ids,
    *,
    max_tokens: int | None = None,
    sampler: Sampler | None = None,
    stop: Stop = None,
) -> Iterator[Any]:
    """Token after token: what the model goes on with after the prompt. Ids in, ids out; text in, text out.

    ``stream``: of one row, reads one token id and gives scores [V] a step; it goes on from the state it has.
    ``prompt``: text, where the model carries a vocabulary, or token ids; an empty one stands for the boundary token.
    ``max_tokens``: at most so many, None for no limit. ``sampler``: None for Sampler(), which draws from the model's
    own distribution. ``stop``: token ids, or texts where the prompt is text, that end the generation and are not
    part of it. So does the boundary token, unless ``stop`` is an empty sequence.

    Text comes a token at a time, except that what may be the beginning of a stop text is held back. The prompt is
    read when the first token is asked for. The last token that came has not been read by the stream: to go on later,
    begin the next prompt with it.

    Raises InputError for a stream that does not generate, a prompt that does not fit it, settings out of range;
    ModelFormatError for a vocabulary that contradicts the model.
    """
    writer = _Writer(stream, Sampler() if sampler is None else sampler)
    if max_tokens is not None and not _whole(max_tokens, 0):
        raise InputError(f"generate: max_tokens={max_tokens!r}: expected a whole number from 0 on, or None")
    as_text = isinstance(prompt, str)
    start = writer.prompt_ids(prompt)
    stop_ids, stop_texts = _stops(stop, writer.vocabulary, as_text)
    ids = writer.tokens(start, stop_ids)
    limited = ids if max_tokens is None else islice(ids, min(int(max_tokens), sys.maxsize))
    if writer.vocabulary is None or not as_text:
        return limited
    return _text_until(map(writer.vocabulary.text, limited), stop_texts)


def score_meaning(graph: Graph, output: str) -> str:
    """What an output's numbers are by the operator that makes them: probabilities, log-probabilities or logits."""
    producers = graph.producers()
    node = producers.get(output)
    while node is not None and node.op in _MOVES:
        node = producers.get(node.input(0))
    return "logits" if node is None else _MEANINGS.get(node.op, "logits")


class _Writer:
    """A stream that generates: how its tokens go in and its scores come out."""

    def __init__(self, stream: Stream, sampler: Sampler) -> None:
        faults = _generating_faults(stream)
        if faults:
            raise InputError(listed(f"{stream.model.graph.origin} does not generate tokens", faults))
        if not isinstance(sampler, Sampler):
            raise InputError(f"generate: sampler: expected a Sampler or None, got {type(sampler).__name__}")
        self.stream = stream
        self.sampler = sampler
        self.vocabulary = Vocabulary.of(stream.model)
        self.count = math.prod(_sizes(stream.outputs[0].shape))
        self.probabilities = score_meaning(stream.model.graph, stream.outputs[0].name) == "probabilities"
        if self.vocabulary is not None and len(self.vocabulary) != self.count:
            raise ModelFormatError(
                f"{stream.model.graph.origin}: the vocabulary has {len(self.vocabulary)} tokens, "
                f"but output '{stream.outputs[0]}' scores {self.count}"
            )

    def prompt_ids(self, prompt: str | Ids) -> list[int]:
        """The ids that the stream reads first, at least one."""
        if isinstance(prompt, str):
            if self.vocabulary is None:
                raise InputError(f"prompt: {self.stream.model.graph.origin} carries no vocabulary; give token ids")
            ids = self.vocabulary.encode(prompt)
        else:
            ids = _checked_ids(prompt)
        if ids:
            return ids
        if self.vocabulary is None or self.vocabulary.boundary is None:
            raise InputError("prompt: it is empty, and the model names no boundary token to begin with")
        return [self.vocabulary.boundary]

    def tokens(self, start: Sequence[int], stop: frozenset[int]) -> Iterator[int]:
        """Read ``start``, then draw tokens without end, or until one of ``stop``."""
        scores = self._read(start)
        while True:
            token = self.sampler.choose(scores)
            if token in stop:
                return
            yield token
            scores = self._scores(self.stream.step(token))

    def _read(self, ids: Sequence[int]) -> np.ndarray:
        """Read a prompt; the scores after its last token."""
        before = np.array(ids[:-1], self.stream.inputs[0].dtype)
        if len(_sizes(self.stream.inputs[0].shape)) <= 1:
            most = max(_MOST_SCORES // self.count, 1)
            for first in range(0, before.size, most):
                self.stream.feed(before[first : first + most])
        else:
            for token in before.tolist():
                self.stream.step(token)
        return self._scores(self.stream.step(ids[-1]))

    def _scores(self, y: np.ndarray) -> np.ndarray:
        """A step's output as logits or log-probabilities [V]."""
        y = y.reshape(-1)
        if not self.probabilities:
            return y
        with np.errstate(divide="ignore"):
            logs: np.ndarray = np.log(y, dtype=np.float64)
        return logs


def _generating_faults(stream: Stream) -> list[str]:
    faults = []
    if stream.batch != 1:
        faults.append(f"the stream has {stream.batch} rows; generate() serves one")
    if (
        len(stream.inputs) != 1
        or stream.inputs[0].dtype.kind not in "iu"
        or math.prod(_sizes(stream.inputs[0].shape)) != 1
    ):
        faults.append(f"a step should take one token id, it takes {'; '.join(map(str, stream.inputs)) or 'nothing'}")
    if (
        len(stream.outputs) != 1
        or stream.outputs[0].dtype.kind != "f"
        or math.prod(_sizes(stream.outputs[0].shape)) < 1
    ):
        faults.append(
            f"a step should give one score per token, it gives {'; '.join(map(str, stream.outputs)) or 'nothing'}"
        )
    return faults


def _sizes(shape: Any) -> list[int]:
    """The sizes of a step's array, which are all known."""
    return [int(size) for size in shape or ()]


def _checked_ids(prompt: Any) -> list[int]:
    """A prompt of ids; that they are not too great is the model's to check."""
    try:
        array = np.atleast_1d(np.asarray(prompt))
    except ValueError as fault:
        raise InputError(f"prompt: expected text or token ids in a row ({fault})") from fault
    if array.size == 0 and array.ndim == 1:
        return []
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"prompt: expected text or token ids in a row, got {array.dtype}{list(array.shape)}")
    if array.min() < 0:
        raise InputError(f"prompt: token ids begin with 0, got {array.min()}")
    return [int(token) for token in array]


def _stops(stop: Any, vocabulary: Vocabulary | None, as_text: bool) -> tuple[frozenset[int], tuple[str, ...]]:
    """Token ids and texts that end a generation."""
    boundary = {vocabulary.boundary} if vocabulary is not None and vocabulary.boundary is not None else set()
    if stop is None:
        return frozenset(boundary), ()
    wanted = [stop] if isinstance(stop, str | SupportsIndex) else list(stop)
    texts = tuple(entry for entry in wanted if isinstance(entry, str))
    faults = [
        f"stop={entry!r}: expected a token id or a text of at least one character"
        for entry in wanted
        if entry == "" or not (isinstance(entry, str) or _whole(entry, 0))
    ]
    if texts and not as_text:
        faults.append("stop: texts can end a generation only where the prompt is text; give token ids")
    if faults:
        raise InputError(listed("generate", faults))
    ids = {operator.index(entry) for entry in wanted if not isinstance(entry, str)}
    return frozenset(ids | boundary if wanted else ids), texts


def _text_until(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
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
