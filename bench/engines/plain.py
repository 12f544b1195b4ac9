"""NumPy, as somebody who knows it would write the cell by hand.

One stacked product a step, results in place. The weights of the three sigmoid gates are halved when they are packed:
σ(z) = ½ + ½ tanh(z/2), so one tanh serves all four gates.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, repeat

import numpy as np

from lstm_engine.report.engines import Arrays, Fixed, Job, NotServedError, Run

from ..tasks import Task


def prepare(name: str, job: Job) -> Run:
    """The task's layers by hand. Raises NotServedError."""
    assert isinstance(job, Task)
    workload = job.workload
    if job.next_token is not None:
        return Character(job, job.next_token)
    if workload.cell != "LSTM" or workload.kind not in ("step", "sequence") or workload.D > 1:
        raise NotServedError("written out in NumPy are steps and sequences of LSTMs that look back")
    return Step(job) if job.steps else Sequence(job)


class Cell:
    """One layer: v [B, I+H+1] holds x, h and 1 (the bias is a column of the weights)."""

    def __init__(self, W: np.ndarray, R: np.ndarray, B: np.ndarray, rows: int) -> None:
        units, inputs = R.shape[2], W.shape[2]
        bias = B[0, : 4 * units] + B[0, 4 * units :]
        scale = np.ones((4 * units, 1), np.float32)
        scale[: 3 * units] = 0.5
        self.weights = np.ascontiguousarray((np.hstack([W[0], R[0], bias[:, None]]) * scale).T)
        self.v = np.ones((rows, inputs + units + 1), np.float32)
        self.x, self.h = self.v[:, :inputs], self.v[:, inputs : inputs + units]
        self.z = np.zeros((rows, 4 * units), np.float32)
        self.i, self.o, self.f, self.g = (self.z[:, k * units : (k + 1) * units] for k in range(4))
        self.gates = self.z[:, : 3 * units]
        self.c = np.zeros((rows, units), np.float32)
        self.reset()

    def reset(self) -> None:
        self.h[...] = 0
        self.c[...] = 0

    def step(self) -> None:
        """x lies in its place already; h and c become the next."""
        np.dot(self.v, self.weights, out=self.z)
        self.activate()

    def activate(self) -> None:
        z, c, h, gates = self.z, self.c, self.h, self.gates
        np.tanh(z, out=z)
        gates *= 0.5
        gates += 0.5
        c *= self.f
        self.i *= self.g
        c += self.i
        np.tanh(c, out=h)
        h *= self.o


class Step:
    """The cells, one step a call."""

    def __init__(self, task: Task) -> None:
        weights, workload = task.weights, task.workload
        self.cells = [Cell(weights[f"W{k}"], weights[f"R{k}"], weights[f"B{k}"], workload.B) for k in range(workload.L)]
        self.input = np.zeros((workload.B, workload.I), np.float32)

    def reset(self) -> None:
        for cell in self.cells:
            cell.reset()

    def write(self, feeds: Arrays) -> None:
        self.input[...] = feeds["X"][0]

    def loop(self, n: int) -> None:
        first, x, pairs = self.cells[0], self.input, [*pairwise(self.cells)]
        for _ in repeat(None, n):
            first.x[...] = x
            first.step()
            for lower, upper in pairs:
                upper.x[...] = lower.h
                upper.step()

    def read(self) -> dict[str, np.ndarray]:
        return {"Y": self.cells[-1].h.copy()}


class Sequence(Fixed):
    """All input products in one, then the recurrence."""

    def __init__(self, task: Task) -> None:
        weights, workload = task.weights, task.workload
        self.cell = Cell(weights["W0"], weights["R0"], weights["B0"], workload.B)
        inputs, units = workload.I, workload.H
        self.W = np.ascontiguousarray(self.cell.weights[:inputs])
        self.R = np.ascontiguousarray(self.cell.weights[inputs : inputs + units])
        self.bias = self.cell.weights[-1]
        self.feeds = task.feeds
        self.pre = np.zeros((workload.T, workload.B, 4 * units), np.float32)
        self.y = np.zeros((workload.T, 1, workload.B, units), np.float32)
        self.h = np.zeros((workload.B, units), np.float32)
        self.flat = task.feeds["X"].reshape(-1, inputs)

    def loop(self, n: int) -> None:
        for _ in repeat(None, n):
            self.run()

    def run(self) -> None:
        cell, R = self.cell, self.R
        np.dot(self.flat, self.W, out=self.pre.reshape(len(self.flat), -1))
        self.pre += self.bias
        h = self.feeds["initial_h"][0]
        cell.c[...] = self.feeds["initial_c"][0]
        for pre, y in zip(self.pre, self.y, strict=True):
            np.dot(h, R, out=cell.z)
            cell.z += pre
            cell.activate()
            y[0] = cell.h
            h = y[0]

    def read(self) -> dict[str, np.ndarray]:
        return {"Y": self.y.copy(), "Y_h": self.y[-1].copy(), "Y_c": self.cell.c[None].copy()}


class Character:
    """Embedding, two cells, dense layer."""

    def __init__(self, task: Task, choose: Callable[[np.ndarray], int]) -> None:
        weights, self.choose = task.weights, choose
        self.cells = [Cell(weights[f"W{k}"], weights[f"R{k}"], weights[f"B{k}"], 1) for k in range(task.workload.L)]
        self.embedding, self.head, self.bias = weights["embedding"], weights["head"], weights["head_bias"]
        self.logits = np.zeros((1, task.workload.O), np.float32)
        self.token = 0

    def reset(self) -> None:
        for cell in self.cells:
            cell.reset()

    def write(self, feeds: Arrays) -> None:
        self.token = int(feeds["tokens"].item())

    def loop(self, n: int) -> None:
        token, logits, choose = self.token, self.logits, self.choose
        lower, upper = self.cells
        for _ in repeat(None, n):
            lower.x[0] = self.embedding[token]
            lower.step()
            upper.x[...] = lower.h
            upper.step()
            np.dot(upper.h, self.head, out=logits)
            logits += self.bias
            token = int(choose(logits))
        self.token = token

    def read(self) -> dict[str, np.ndarray]:
        return {"logits": self.logits.copy()}
