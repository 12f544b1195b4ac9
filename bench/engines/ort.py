"""onnxruntime: a plain session, and I/O binding with every buffer bound once.

Bound, the states need no copy: two bindings exchange the roles of two pairs of state buffers, and calls take turns
between them. All tensors are OrtValues over NumPy arrays, so that inputs are written and outputs read in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ..workloads import Task


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """One thread, no parallel branches, every graph optimisation."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Bound:
    """Arrays bound to a session once and for all; with states, two bindings that take turns."""

    def __init__(self, path: Path, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        self.session = open_session(path)
        self.kept = [{**inputs, **outputs}]
        self.turns: Iterator[Any] = repeat(self.bind(inputs, outputs))

    def alternate(self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], pairs: dict[str, str]) -> None:
        """Two bindings: the outputs named by ``pairs`` {input: output} of one are the inputs of the other."""
        here = {name: inputs[name] for name in pairs}
        there = {name: np.zeros_like(array) for name, array in here.items()}
        self.kept.append(there)
        turns = []
        for past, future in ((here, there), (there, here)):
            states = {pairs[name]: array for name, array in future.items()}
            turns.append(self.bind({**inputs, **past}, {**outputs, **states}))
        self.turns = cycle(turns)

    def bind(self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> Any:
        binding = self.session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, value(array))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, value(array))
        return binding

    def loop(self, n: int) -> None:
        run = self.session.run_with_iobinding
        for binding in islice(self.turns, n):
            run(binding)


class Step:
    """session.run, the new states fed back as NumPy arrays."""

    def __init__(self, task: Task) -> None:
        self.session = open_session(task.path)
        self.x = np.zeros((1, task.workload.B, task.workload.I), np.float32)
        self.state = (task.feeds["initial_h"], task.feeds["initial_c"])
        self.y = np.zeros(0, np.float32)
        self.reset()

    def reset(self) -> None:
        self.h, self.c = self.state

    def write(self, x: np.ndarray) -> None:
        self.x[0] = x

    def loop(self, n: int) -> None:
        run, x, y, h, c = self.session.run, self.x, self.y, self.h, self.c
        for _ in repeat(None, n):
            y, h, c = run(None, {"X": x, "initial_h": h, "initial_c": c})
        self.y, self.h, self.c = y, h, c

    def read(self) -> dict[str, np.ndarray]:
        return {"Y": self.y.copy()}


class BoundStep:
    """run_with_iobinding, nothing copied and nothing allocated by the caller."""

    PAIRS = {"initial_h": "Y_h", "initial_c": "Y_c"}  # noqa: RUF012

    def __init__(self, task: Task) -> None:
        workload = task.workload
        self.x = np.zeros((1, workload.B, workload.I), np.float32)
        self.y = np.zeros((1, 1, workload.B, workload.H), np.float32)
        self.states = {name: task.feeds[name].copy() for name in self.PAIRS}
        inputs = {"X": self.x, **self.states}
        self.bound = Bound(task.path, inputs, {"Y": self.y})
        self.bound.alternate(inputs, {"Y": self.y}, self.PAIRS)
        self.loop = self.bound.loop

    def reset(self) -> None:
        for arrays in self.bound.kept:
            for name in self.PAIRS:
                arrays[name][...] = 0

    def write(self, x: np.ndarray) -> None:
        self.x[0] = x

    def read(self) -> dict[str, np.ndarray]:
        return {"Y": self.y.copy()}


class Sequence:
    """session.run, all outputs."""

    def __init__(self, task: Task) -> None:
        self.session = open_session(task.path)
        self.feeds = task.feeds
        self.results: list[np.ndarray] = []

    def reset(self) -> None:
        """The initial states are fed."""

    def write(self, x: np.ndarray) -> None:
        """The feeds are fixed."""

    def loop(self, n: int) -> None:
        run, feeds, results = self.session.run, self.feeds, self.results
        for _ in repeat(None, n):
            results = run(None, feeds)
        self.results = results

    def read(self) -> dict[str, np.ndarray]:
        return dict(zip(("Y", "Y_h", "Y_c"), self.results, strict=True))


class BoundSequence:
    """run_with_iobinding, all outputs into arrays that stay."""

    def __init__(self, task: Task) -> None:
        self.outputs = {name: np.zeros(value.shape, np.float32) for name, value in task.expected.items()}
        self.bound = Bound(task.path, task.feeds, self.outputs)
        self.loop = self.bound.loop

    def reset(self) -> None:
        """The initial states are bound and stay."""

    def write(self, x: np.ndarray) -> None:
        """The feeds are fixed."""

    def read(self) -> dict[str, np.ndarray]:
        return {name: value.copy() for name, value in self.outputs.items()}


class Character:
    """session.run, token and states fed back."""

    def __init__(self, task: Task) -> None:
        self.session = open_session(task.path)
        self.state = (task.feeds["h0"], task.feeds["c0"])
        self.token = np.zeros((1, 1), np.int64)
        self.logits = np.zeros(0, np.float32)
        self.reset()

    def reset(self) -> None:
        self.h, self.c = self.state

    def write(self, x: np.ndarray) -> None:
        self.token[0, 0] = x

    def loop(self, n: int) -> None:
        run, token, logits, h, c = self.session.run, self.token, self.logits, self.h, self.c
        for _ in repeat(None, n):
            logits, h, c = run(None, {"tokens": token, "h0": h, "c0": c})
            token[0, 0] = logits.argmax()
        self.logits, self.h, self.c = logits, h, c

    def read(self) -> dict[str, np.ndarray]:
        return {"logits": self.logits.copy()}


class BoundCharacter:
    """run_with_iobinding, the token written into its bound array."""

    PAIRS = {"h0": "hn", "c0": "cn"}  # noqa: RUF012

    def __init__(self, task: Task) -> None:
        self.token = np.zeros((1, 1), np.int64)
        self.logits = np.zeros((1, 1, task.workload.O), np.float32)
        inputs = {"tokens": self.token, **{name: task.feeds[name].copy() for name in self.PAIRS}}
        self.bound = Bound(task.path, inputs, {"logits": self.logits})
        self.bound.alternate(inputs, {"logits": self.logits}, self.PAIRS)

    def reset(self) -> None:
        for arrays in self.bound.kept:
            for name in self.PAIRS:
                arrays[name][...] = 0

    def write(self, x: np.ndarray) -> None:
        self.token[0, 0] = x

    def loop(self, n: int) -> None:
        run, token, logits = self.bound.session.run_with_iobinding, self.token, self.logits
        for binding in islice(self.bound.turns, n):
            run(binding)
            token[0, 0] = logits.argmax()

    def read(self) -> dict[str, np.ndarray]:
        return {"logits": self.logits.copy()}


MAKERS = {
    ("onnxruntime", "step"): Step,
    ("onnxruntime_bound", "step"): BoundStep,
    ("onnxruntime", "sequence"): Sequence,
    ("onnxruntime_bound", "sequence"): BoundSequence,
    ("onnxruntime", "character"): Character,
    ("onnxruntime_bound", "character"): BoundCharacter,
}
