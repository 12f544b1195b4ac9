"""Models of tokens: what of a model and its stream makes them generate, and how prompts become ids."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from ..encoding import RUNG, SAMPLER_BUSY, UNDRAWN
from ..errors import InputError, ModelFormatError, StateError, listed
from ..kernels.draws import Scores
from ..program.packing import aligned_empty
from .sampling import Sampler, ScoreTable
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..graph import Graph
    from ..model import Model
    from ..pool import StreamPool
    from ..stream import Stream

Ids: TypeAlias = "int | Sequence[int] | np.ndarray"

_MOST_SCORES: Final = 1 << 20  # of a text's feed at a time
#: Operators between a softmax and the output that do not change what the numbers mean.
_MOVES: Final = frozenset({
    "Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
_MEANINGS: Final[Mapping[str, str]] = {"Softmax": "probabilities", "LogSoftmax": "log-probabilities"}
_TABLES: Final = (np.dtype(np.float32), np.dtype(np.float64))


def score_meaning(graph: Graph, output: str) -> str:
    """What an output's numbers are by the operator that makes them: probabilities, log-probabilities or logits."""
    producers = graph.producers()
    node = producers.get(output)
    while node is not None and node.op in _MOVES:
        node = producers.get(node.input(0))
    return "logits" if node is None else _MEANINGS.get(node.op, "logits")


class TokenModel:
    """How tokens go into a model's steps and scores come out: checked once, the same for each of its streams.

    ``count``: scores a step; ``inputs``: shape of one step's token; ``dtype``: of an id; ``scores``: the dtype that
    tokens are drawn from; ``direct``: whether steps write that, and take every token; ``probabilities``: whether the
    scores are such.

    Raises InputError for a model that does not generate, ModelFormatError for a vocabulary that contradicts it.
    """

    def __init__(self, model: Model, inputs: Sequence[Any], outputs: Sequence[Any], vocabulary: Any = None) -> None:
        self.origin = model.graph.origin
        faults = _generating_faults(inputs, outputs)
        if faults:
            raise InputError(listed(f"{self.origin} does not generate tokens", faults))
        self.dtype = np.dtype(inputs[0].dtype)
        self.inputs = tuple(_sizes(inputs[0].shape))
        self.count = math.prod(_sizes(outputs[0].shape))
        output = np.dtype(outputs[0].dtype)
        self.scores = output if output in _TABLES else np.dtype(np.float64)
        self.direct = output == self.scores and self.count <= np.iinfo(self.dtype).max + 1
        self.probabilities = score_meaning(model.graph, outputs[0].name) == "probabilities"
        self.vocabulary = _vocabulary(model, vocabulary)
        if self.vocabulary is not None and len(self.vocabulary) != self.count:
            raise ModelFormatError(
                f"{self.origin}: the vocabulary has {len(self.vocabulary)} tokens, "
                f"but output '{outputs[0]}' scores {self.count}"
            )

    @staticmethod
    def of_pool(pool: StreamPool, vocabulary: Any = None) -> TokenModel:
        """That of a pool's model. ``vocabulary``: as generate() takes it. Raises InputError, ModelFormatError."""
        return TokenModel(pool.model, pool.inputs, pool.outputs, vocabulary)

    @staticmethod
    def of(stream: Stream, vocabulary: Any = None) -> TokenModel:
        """That of a stream's model. ``vocabulary``: as generate() takes it. Raises InputError, ModelFormatError."""
        if stream.batch != 1:
            rows = f"the stream has {stream.batch} rows; one is generated from"
            raise InputError(f"{stream.model.graph.origin} does not generate tokens: {rows}")
        return TokenModel(stream.model, stream.inputs, stream.outputs, vocabulary)

    def prompt_ids(self, prompt: str | Ids) -> list[int]:
        """The ids that a stream reads first, at least one. Raises InputError."""
        ids = self.text_ids(prompt, "prompt")
        if ids:
            return ids
        if self.vocabulary is None or self.vocabulary.boundary is None:
            raise InputError("prompt: it is empty, and the model names no boundary token to begin with")
        return [self.vocabulary.boundary]

    def text_ids(self, text: str | Ids, subject: str) -> list[int]:
        """The ids of a text or of ids. Raises InputError."""
        if not isinstance(text, str):
            return _checked_ids(text, subject, int(np.iinfo(self.dtype).max))
        if self.vocabulary is None:
            raise InputError(f"{subject}: {self.origin} carries no vocabulary; give token ids, or vocabulary=")
        return self.vocabulary.encode(text)

    def text_of(self, ids: Sequence[int], before: Sequence[int]) -> str | None:
        """The text of tokens behind others, None without a vocabulary."""
        return None if self.vocabulary is None else "".join(map(self.vocabulary.speller(before), ids))

    def table(self, tell: bool = False) -> ScoreTable:
        """Where scores of a step go. ``tell``: log-probabilities are wanted, too."""
        return ScoreTable(self.count, self.scores, self.probabilities, tell)

    def logarithms(self, y: np.ndarray) -> np.ndarray:
        """Steps' outputs as logits or log-probabilities [steps, V] in float64."""
        scores = y.reshape(-1, self.count).astype(np.float64)
        if not self.probabilities:
            return scores
        with np.errstate(divide="ignore"):
            logs: np.ndarray = np.log(scores)
        return logs

    def log_probabilities(self, y: np.ndarray) -> np.ndarray:
        """Steps' outputs as log-probabilities [steps, V] in float64.

        Raises InputError for scores of which the greatest is no finite number.
        """
        scores = self.logarithms(y)
        best = scores.max(axis=1, keepdims=True)
        if not np.isfinite(best).all():
            strange = float(best[~np.isfinite(best)][0])
            raise InputError(f"{self.origin}: scores give no probabilities, the greatest of {self.count} is {strange}")
        scores -= best
        normalised: np.ndarray = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return normalised

    def outputs_of(self, stream: Stream, ids: Sequence[int]) -> Iterator[np.ndarray]:
        """What a stream gives for these tokens, some steps at a time: [steps, V]."""
        array = np.array(ids, self.dtype)
        if len(self.inputs) <= 1:
            most = max(_MOST_SCORES // self.count, 1)
            for first in range(0, array.size, most):
                yield stream.feed(array[first : first + most]).reshape(-1, self.count)
        else:
            for token in ids:
                yield stream.step(token).reshape(1, self.count)


def rows_for(pool: StreamPool, ids: Sequence[int]) -> np.ndarray:
    """Tokens as a pool takes them, one for each of its slots."""
    (spec,) = pool.inputs
    return np.array(ids, spec.dtype).reshape(len(ids), *_sizes(spec.shape))


class Writer:
    """A stream that generates: reads a prompt, then steps and draws in one call a token.

    ``tell``: log-probabilities are wanted, too. A call that fails leaves stream and sampler as they were.
    """

    def __init__(self, tokens: TokenModel, stream: Stream, sampler: Sampler, tell: bool = False) -> None:
        if not isinstance(sampler, Sampler):
            raise InputError(f"generate: sampler: expected a Sampler or None, got {type(sampler).__name__}")
        self.tokens = tokens
        self.stream = stream
        self.sampler = sampler
        sampler.make_room(tokens.count)
        self.table = tokens.table(tell)
        self._runner = stream.short_way if tokens.direct else None
        self.draw: Callable[[int], int] = self._stepped if self._runner is None else self._one_call()

    def _one_call(self) -> Callable[[int], int]:
        """A step and the next token in one call of machine code."""
        from .. import images

        runner, table, resolved = self._runner, self.table, self._resolved
        assert runner is not None
        table.words[Scores.CONTEXT] = runner.address
        if not runner.program.shadow:
            self._backup = aligned_empty((max(runner.program.state_bytes, 1),), np.uint8)
            table.words[Scores.BACKUP] = self._backup.ctypes.data
        enter = images.sampling().function("step_and_draw" if runner.tiny else "step_and_draw_nogil")
        sampler, scores = self.sampler.address, table.address

        def draw(token: int) -> int:
            drawn = enter(sampler, scores, token)
            return drawn if drawn >= 0 else resolved()

        return draw

    def _resolved(self) -> int:
        """The token of a call that had more to say, or its error."""
        fault, runner = self.table.fault, self._runner
        assert runner is not None
        if fault == RUNG:
            runner.done(fault)
            return int(self.table.words[Scores.TOKEN])
        raise self.table.error() if fault in (UNDRAWN, SAMPLER_BUSY) else runner.fault(fault)

    def _stepped(self, token: int) -> int:
        """As _one_call(), where a step is more than one call."""
        before = self.stream.state
        self.table.place[...] = self.stream.step(token).reshape(-1)
        try:
            return self.sampler.choose_after(self.table, token)
        except InputError:
            self.stream.state = before
            raise

    def begin(self, start: Sequence[int]) -> int:
        """Read a prompt; the token drawn after it."""
        before, drawn = self.stream.state, self.sampler.state
        try:
            for _ in self.tokens.outputs_of(self.stream, start[:-1]):
                pass
            self.sampler.read(start[:-1])
            return self.draw(start[-1])
        except BaseException:
            with suppress(StateError):  # in use by another caller: nothing was done
                self.stream.state = before
                self.sampler.restore(drawn)
            raise

    def drawn(self, start: Sequence[int], stop: frozenset[int]) -> Iterator[int]:
        """Read ``start``, then draw tokens without end, or until one of ``stop``."""
        token = self.begin(start)
        draw = self.draw
        while token not in stop:
            yield token
            token = draw(token)


def _vocabulary(model: Model, given: Any) -> Vocabulary | None:
    if given is None:
        return Vocabulary.of(model)
    return given if isinstance(given, Vocabulary) else Vocabulary.load(given)


def _generating_faults(inputs: Sequence[Any], outputs: Sequence[Any]) -> list[str]:
    faults = []
    if len(inputs) != 1 or np.dtype(inputs[0].dtype).kind not in "iu" or math.prod(_sizes(inputs[0].shape)) != 1:
        faults.append(f"a step should take one token id, it takes {'; '.join(map(str, inputs)) or 'nothing'}")
    if len(outputs) != 1 or np.dtype(outputs[0].dtype).kind != "f" or math.prod(_sizes(outputs[0].shape)) < 1:
        faults.append(f"a step should give one score per token, it gives {'; '.join(map(str, outputs)) or 'nothing'}")
    return faults


def _sizes(shape: Any) -> list[int]:
    """The sizes of a step's array; 0 for one that the model leaves open."""
    return [size if isinstance(size, int) else 0 for size in shape or ()]


def _checked_ids(prompt: Any, subject: str, most: int) -> list[int]:
    """A row of ids up to ``most``; whether the model has so many is its own to check."""
    try:
        array = np.atleast_1d(np.asarray(prompt))
    except ValueError as fault:
        raise InputError(f"{subject}: expected text or token ids in a row ({fault})") from fault
    if array.size == 0 and array.ndim == 1:
        return []
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"{subject}: expected text or token ids in a row, got {array.dtype}{list(array.shape)}")
    if array.min() < 0:
        raise InputError(f"{subject}: token ids begin with 0, got {array.min()}")
    if array.max() > most:
        raise InputError(f"{subject}: token {array.max()} is out of range, the model reads ids up to {most}")
    return [int(token) for token in array]
