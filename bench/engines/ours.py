"""This engine: a stream's step, into an array of the caller's or a fresh one; a model's run."""

from __future__ import annotations

from itertools import repeat

import numpy as np

import lstm_engine

from ..workloads import Task


class Step:
    """stream.step(x, out=y)."""

    def __init__(self, task: Task) -> None:
        workload = task.workload
        self.stream = lstm_engine.load(task.path, threads=1).stream(batch=workload.B)
        self.x = np.zeros((workload.B, workload.I), np.float32)
        self.y = np.zeros((1, workload.B, workload.H), np.float32)

    def reset(self) -> None:
        self.stream.reset()

    def write(self, x: np.ndarray) -> None:
        self.x[...] = x

    def loop(self, n: int) -> None:
        step, x, y = self.stream.step, self.x, self.y
        for _ in repeat(None, n):
            step(x, out=y)

    def read(self) -> dict[str, np.ndarray]:
        return {"Y": self.y[None].copy()}


class FreshStep(Step):
    """y = stream.step(x)."""

    def loop(self, n: int) -> None:
        step, x, y = self.stream.step, self.x, self.y
        for _ in repeat(None, n):
            y = step(x)
        self.y = y


class Sequence:
    """model.run(feeds), all outputs."""

    def __init__(self, task: Task) -> None:
        self.model = lstm_engine.load(task.path, threads=1)
        self.feeds = task.feeds
        self.results: dict[str, np.ndarray] = {}

    def reset(self) -> None:
        """The initial states are fed."""

    def write(self, x: np.ndarray) -> None:
        """The feeds are fixed."""

    def loop(self, n: int) -> None:
        run, feeds = self.model.run, self.feeds
        results = self.results
        for _ in repeat(None, n):
            results = run(feeds)
        self.results = results

    def read(self) -> dict[str, np.ndarray]:
        return dict(self.results)


class Character:
    """token = argmax of stream.step(token, out=logits)."""

    def __init__(self, task: Task) -> None:
        self.stream = lstm_engine.load(task.path, threads=1).stream()
        self.token = 0
        self.logits = np.zeros(task.workload.O, np.float32)

    def reset(self) -> None:
        self.stream.reset()

    def write(self, x: np.ndarray) -> None:
        self.token = int(x)

    def loop(self, n: int) -> None:
        step, token, logits = self.stream.step, self.token, self.logits
        for _ in repeat(None, n):
            token = int(step(token, out=logits).argmax())
        self.token = token

    def read(self) -> dict[str, np.ndarray]:
        return {"logits": self.logits[None, None].copy()}


class FreshCharacter(Character):
    """token = argmax of stream.step(token)."""

    def loop(self, n: int) -> None:
        step, token, logits = self.stream.step, self.token, self.logits
        for _ in repeat(None, n):
            logits = step(token)
            token = int(logits.argmax())
        self.token, self.logits = token, logits


MAKERS = {
    ("lstm_engine", "step"): Step,
    ("lstm_engine_fresh", "step"): FreshStep,
    ("lstm_engine", "sequence"): Sequence,
    ("lstm_engine", "character"): Character,
    ("lstm_engine_fresh", "character"): FreshCharacter,
}
