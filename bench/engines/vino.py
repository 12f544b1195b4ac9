"""OpenVINO: the model compiled for fixed sizes and the least latency, every tensor bound once.

As with onnxruntime, two requests take turns: the states one writes are those the other reads. All tensors share the
memory of NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, islice
from typing import Any

import numpy as np
import openvino

from ..workloads import Task

OPTIONS = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "INFERENCE_PRECISION_HINT": "f32",
}


def compile_model(task: Task, inputs: Mapping[str, np.ndarray]) -> Any:
    """For the shapes of these arrays, on one thread, in float32."""
    core = openvino.Core()
    model = core.read_model(task.path)
    model.reshape({name: list(array.shape) for name, array in inputs.items()})
    return core.compile_model(model, "CPU", OPTIONS)


def bind(compiled: Any, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Any:
    """A request over these arrays."""
    request = compiled.create_infer_request()
    for name, array in (*inputs.items(), *outputs.items()):
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
    return request


class Turns:
    """Two requests that exchange their states; ``pairs``: {input: output}."""

    def __init__(
        self, task: Task, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], pairs: Mapping[str, str]
    ) -> None:
        compiled = compile_model(task, inputs)
        here = {name: inputs[name] for name in pairs}
        there = {name: np.zeros_like(array) for name, array in here.items()}
        self.states = (*here.values(), *there.values())
        requests = []
        for past, future in ((here, there), (there, here)):
            written = {pairs[name]: array for name, array in future.items()}
            requests.append(bind(compiled, {**inputs, **past}, {**outputs, **written}))
        self.requests = cycle(requests)

    def reset(self) -> None:
        for array in self.states:
            array[...] = 0

    def loop(self, n: int) -> None:
        for request in islice(self.requests, n):
            request.infer()


class Step:
    """request.infer(), nothing copied."""

    def __init__(self, task: Task) -> None:
        workload = task.workload
        self.x = np.zeros((1, workload.B, workload.I), np.float32)
        self.y = np.zeros((1, 1, workload.B, workload.H), np.float32)
        states = {name: task.feeds[name].copy() for name in ("initial_h", "initial_c")}
        pairs = {"initial_h": "Y_h", "initial_c": "Y_c"}
        self.turns = Turns(task, {"X": self.x, **states}, {"Y": self.y}, pairs)
        self.reset, self.loop = self.turns.reset, self.turns.loop

    def write(self, x: np.ndarray) -> None:
        self.x[0] = x

    def read(self) -> dict[str, np.ndarray]:
        return {"Y": self.y.copy()}


class Sequence:
    """request.infer(), all outputs into arrays that stay."""

    def __init__(self, task: Task) -> None:
        self.outputs = {name: np.zeros(value.shape, np.float32) for name, value in task.expected.items()}
        self.feeds = {name: value.copy() for name, value in task.feeds.items()}
        self.request = bind(compile_model(task, self.feeds), self.feeds, self.outputs)

    def reset(self) -> None:
        """The initial states are bound and stay."""

    def write(self, x: np.ndarray) -> None:
        """The feeds are fixed."""

    def loop(self, n: int) -> None:
        infer = self.request.infer
        for _ in range(n):
            infer()

    def read(self) -> dict[str, np.ndarray]:
        return {name: value.copy() for name, value in self.outputs.items()}


class Character:
    """request.infer(), the token written into its bound array."""

    def __init__(self, task: Task) -> None:
        self.token = np.zeros((1, 1), np.int64)
        self.logits = np.zeros((1, 1, task.workload.O), np.float32)
        states = {name: task.feeds[name].copy() for name in ("h0", "c0")}
        inputs = {"tokens": self.token, **states}
        self.turns = Turns(task, inputs, {"logits": self.logits}, {"h0": "hn", "c0": "cn"})
        self.reset = self.turns.reset

    def write(self, x: np.ndarray) -> None:
        self.token[0, 0] = x

    def loop(self, n: int) -> None:
        token, logits = self.token, self.logits
        for request in islice(self.turns.requests, n):
            request.infer()
            token[0, 0] = logits.argmax()

    def read(self) -> dict[str, np.ndarray]:
        return {"logits": self.logits.copy()}


MAKERS = {("openvino", "step"): Step, ("openvino", "sequence"): Sequence, ("openvino", "character"): Character}
