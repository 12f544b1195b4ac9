"""This engine: a stream's step, into an array of the caller's or a fresh one; a model's run."""

from __future__ import annotations

from itertools import islice, repeat
from typing import Any, Final

import numpy as np

from ...errors import LstmEngineError
from ...generation import Sampler
from ...generation.tokens import TokenModel, Writer
from ...model import Model, load
from ...stream import Stream
from . import Arrays, Fed, Fixed, Job, NotServedError, Run, drawing

OPEN: Final = 10_000  # slots of a pool of which some make a step
#: What load() calls the file's own precision.
_OWN = ("float32", "float64")


def prepare(name: str, job: Job) -> Run:
    """The job on this engine. Raises NotServedError."""
    fresh, alone, lone = (name == f"lstm_engine_{way}" for way in ("fresh", "one", "lone"))
    if alone and job.threads == 1:
        raise NotServedError("one thread is shown beside several")
    if fresh and not (job.steps and job.threads == 1):
        raise NotServedError("fresh results are shown for steps on one thread")
    if lone and not (job.steps and job.batch > 1):
        raise NotServedError("lone streams are shown beside those that step together")
    try:
        model: Model = job.once(name, lambda: _loaded(job, 1 if alone or lone else job.threads))
        if not job.steps:
            return Call(model, job)
        if lone:
            return Lone(model, job)
        if job.batch > 1 and job.next_token is None:
            return Together(model, job)
        stream = model.stream(batch=job.batch)
        if isinstance(job.next_token, drawing.Drawn):
            if fresh:
                raise NotServedError("a token is drawn in the call that makes its scores")
            return Drawn(stream, job)
        if job.next_token is not None:
            return (FreshTokens if fresh else Tokens)(stream, job)
        return (Fresh if fresh or len(stream.outputs) > 1 else Step)(stream, job)
    except LstmEngineError as fault:
        raise NotServedError(" ".join(str(fault).split())) from fault


def _loaded(job: Job, threads: int) -> Model:
    precision = None if job.precision in _OWN else job.precision
    return load(job.path, precision=precision, threads=threads, constants=dict(job.constants) or None, **job.loading)


class Call(Fixed):
    """model.run(feeds)."""

    def __init__(self, model: Model, job: Job) -> None:
        self.model = model
        self.feeds = {name: array for name, array in job.feeds.items() if name not in job.constants}
        self.wanted = job.outputs
        self.results: dict[str, np.ndarray] = {}
        self.loop(1)

    def loop(self, n: int) -> None:
        run, feeds, wanted = self.model.run, self.feeds, self.wanted
        results = self.results
        for _ in repeat(None, n):
            results = run(feeds, wanted)
        self.results = results

    def read(self) -> dict[str, np.ndarray]:
        return dict(self.results)


class Step(Fed):
    """stream.step(x, out=y)."""

    def __init__(self, stream: Stream, job: Job) -> None:
        self.stream = stream
        self.data = job.data
        views = {spec.name: _as_step(self.data[spec.name], spec.shape) for spec in stream.inputs}
        self.x: Any = next(iter(views.values())) if len(views) == 1 else views
        self.y: Any = stream.step(self.x)
        stream.reset()

    def reset(self) -> None:
        self.stream.reset()

    def loop(self, n: int) -> None:
        step, x, y = self.stream.step, self.x, self.y
        for _ in repeat(None, n):
            step(x, out=y)

    def read(self) -> dict[str, np.ndarray]:
        results = self.y if isinstance(self.y, dict) else {self.stream.outputs[0].name: self.y}
        return {name: np.array(array) for name, array in results.items()}


class Fresh(Step):
    """y = stream.step(x)."""

    def loop(self, n: int) -> None:
        step, x, y = self.stream.step, self.x, self.y
        for _ in repeat(None, n):
            y = step(x)
        self.y = y


class Together(Fed):
    """pool.step(slots, X, out=Y) of some among many open slots, in no order."""

    def __init__(self, model: Model, job: Job) -> None:
        self.pool = model.pool(OPEN)
        draw = np.random.default_rng(job.batch)
        self.slots = draw.permutation([self.pool.open() for _ in range(OPEN)])[: job.batch]
        self.data = job.data
        self.x = {spec.name: _rows(self.data[spec.name], job.batch) for spec in self.pool.inputs}
        self.y = self.pool.step(self.slots, self.x)
        self.reset()

    def reset(self) -> None:
        for slot in self.slots:
            self.pool.reset(int(slot))

    def loop(self, n: int) -> None:
        step, slots, x, y = self.pool.step, self.slots, self.x, self.y
        for _ in repeat(None, n):
            step(slots, x, out=y)

    def read(self) -> dict[str, np.ndarray]:
        results = self.y if isinstance(self.y, dict) else {self.pool.outputs[0].name: self.y}
        return {name: np.array(array) for name, array in results.items()}


class Lone(Fed):
    """stream.step(x, out=y) of as many streams, one after another."""

    def __init__(self, model: Model, job: Job) -> None:
        self.streams = [model.stream() for _ in range(job.batch)]
        self.data = job.data
        (spec,), (self.output,) = self.streams[0].inputs, self.streams[0].outputs
        self.x = [row.reshape(spec.shape) for row in _rows(self.data[spec.name], job.batch)]
        self.y = np.stack([stream.step(x) for stream, x in zip(self.streams, self.x, strict=True)])
        self.reset()

    def reset(self) -> None:
        for stream in self.streams:
            stream.reset()

    def loop(self, n: int) -> None:
        ways = [(stream.step, x, y) for stream, x, y in zip(self.streams, self.x, self.y, strict=True)]
        for _ in repeat(None, n):
            for step, x, y in ways:
                step(x, out=y)

    def read(self) -> dict[str, np.ndarray]:
        return {self.output.name: np.array(self.y)}


class Tokens(Step):
    """token = argmax of stream.step(token, out=logits)."""

    def __init__(self, stream: Stream, job: Job) -> None:
        super().__init__(stream, job)
        self.y = np.array(stream.step(0))  # an id without its batch axis gives a result without it
        stream.reset()
        self.token = 0

    def write(self, feeds: Arrays) -> None:
        self.token = next(int(feeds[name].item()) for name in self.data)

    def loop(self, n: int) -> None:
        step, token, logits = self.stream.step, self.token, self.y
        for _ in repeat(None, n):
            token = int(step(token, out=logits).argmax())
        self.token = token


class Drawn:
    """What le.generate(stream, token, sampler=…) iterates over: a step and the next token in one call."""

    def __init__(self, stream: Stream, job: Job) -> None:
        sampler = Sampler(drawing.TEMPERATURE, drawing.TOP_K, drawing.TOP_P, drawing.SEED)
        self.stream, self.inputs = stream, [*job.data]
        self.writer = Writer(TokenModel.of(stream), stream, sampler)
        self._go_on_from(0)

    def _go_on_from(self, token: int) -> None:
        self.tokens = self.writer.drawn([token], frozenset())

    def reset(self) -> None:
        self.stream.reset()

    def write(self, feeds: Arrays) -> None:
        self._go_on_from(next(int(feeds[name].item()) for name in self.inputs))

    def loop(self, n: int) -> None:
        for _ in islice(self.tokens, n):
            pass

    def read(self) -> dict[str, np.ndarray]:
        return {self.stream.outputs[0].name: self.writer.table.place.copy()}


class FreshTokens(Tokens):
    """token = argmax of stream.step(token)."""

    def loop(self, n: int) -> None:
        step, token, logits = self.stream.step, self.token, self.y
        for _ in repeat(None, n):
            logits = step(token)
            token = int(logits.argmax())
        self.token, self.y = token, logits


def _rows(array: np.ndarray, batch: int) -> np.ndarray:
    """A view [batch, …] of the inputs of one call, whose other leading axes have one place."""
    axis = array.shape.index(batch)
    return array.reshape(array.shape[axis:])


def _as_step(array: np.ndarray, shape: Any) -> np.ndarray:
    """The array of a call as a step takes it, in the same memory: without the time axis, which has one place."""
    if shape is None or len(shape) == array.ndim:
        return array
    return array.reshape([-1 if size is None else size for size in shape])
