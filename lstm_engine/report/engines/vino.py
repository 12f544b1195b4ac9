"""OpenVINO: the model compiled for fixed sizes and the least latency, every tensor bound once.

As with onnxruntime, two requests take turns: the states one writes are those the other reads. All tensors share the
memory of NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice
from typing import Any, Final

import numpy as np

from . import Arrays, Fed, Fixed, Job, NotServedError, Run

_HINTS: Final = {"float32": "f32", "bfloat16": "bf16"}


def prepare(name: str, job: Job) -> Run:
    """The job on compiled requests. Raises NotServedError."""
    if not job.steps:
        return Call(job)
    if not job.pairs:
        raise NotServedError("the file neither takes nor gives its state")
    return Step(job) if job.next_token is None else Tokens(job, job.next_token)


def compile_model(job: Job, inputs: Arrays) -> Any:
    """For the shapes of these arrays. Raises NotServedError where the CPU has no such precision."""
    import openvino

    core = openvino.Core()
    if job.precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise NotServedError("OpenVINO has no bfloat16 on this CPU")
    model = core.read_model(job.path)
    model.reshape({name: list(array.shape) for name, array in inputs.items()})
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": _HINTS[job.precision],
    }
    return core.compile_model(model, "CPU", options)


def bind(compiled: Any, inputs: Arrays, outputs: Arrays) -> Any:
    """A request over these arrays."""
    import openvino

    request = compiled.create_infer_request()
    for name, array in (*inputs.items(), *outputs.items()):
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
    return request


def _known(job: Job) -> dict[str, np.ndarray]:
    """Copies of the feeds that the file has as inputs: one that it reads nowhere is gone."""
    import openvino

    names = {name for port in openvino.Core().read_model(job.path).inputs for name in port.get_names()}
    fed = {**job.feeds, **job.constants}
    return {name: np.array(array, order="C") for name, array in fed.items() if name in names}


def _zeros(compiled: Any, inputs: Arrays) -> dict[str, np.ndarray]:
    """Arrays of the shapes that the outputs have."""
    results = compiled.create_infer_request().infer(dict(inputs))
    return {name: np.zeros_like(array) for port, array in results.items() for name in port.get_names()}


class Step(Fed):
    """request.infer(), nothing copied."""

    def __init__(self, job: Job) -> None:
        inputs = _known(job)
        compiled = compile_model(job, inputs)
        zeros = _zeros(compiled, inputs)
        self.initial = {name: inputs[name].copy() for name in job.pairs}
        self.data = {name: inputs[name] for name in job.data if name in inputs}
        self.outputs = {name: zeros[name] for name in job.outputs}
        here = {name: inputs[name] for name in job.pairs}
        there = {name: np.zeros_like(array) for name, array in here.items()}
        self.states = (here, there)
        requests = []
        for past, future in ((here, there), (there, here)):
            made = {job.pairs[name]: array for name, array in future.items()}
            requests.append(bind(compiled, {**inputs, **past}, {**self.outputs, **made}))
        self.requests = cycle(requests)

    def reset(self) -> None:
        for states in self.states:
            for name, array in states.items():
                array[...] = self.initial[name]

    def loop(self, n: int) -> None:
        for request in islice(self.requests, n):
            request.infer()

    def read(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self.outputs.items()}


class Tokens(Step):
    """request.infer(), the token written into its bound array."""

    def __init__(self, job: Job, choose: Callable[[np.ndarray], int]) -> None:
        super().__init__(job)
        self.choose = choose

    def loop(self, n: int) -> None:
        token, logits, choose = next(iter(self.data.values())), next(iter(self.outputs.values())), self.choose
        for request in islice(self.requests, n):
            request.infer()
            token.fill(choose(logits))


class Call(Fixed):
    """request.infer(), all outputs into arrays that stay."""

    def __init__(self, job: Job) -> None:
        self.feeds = _known(job)
        compiled = compile_model(job, self.feeds)
        zeros = _zeros(compiled, self.feeds)
        self.outputs = {name: zeros[name] for name in job.outputs}
        self.request = bind(compiled, self.feeds, self.outputs)

    def loop(self, n: int) -> None:
        infer = self.request.infer
        for _ in range(n):
            infer()

    def read(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self.outputs.items()}
