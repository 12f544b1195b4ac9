"""onnxruntime: a plain session, and I/O binding with every buffer bound once.

Bound, the states need no copy: two bindings exchange the roles of two sets of state buffers, and calls take turns
between them. All tensors are OrtValues over NumPy arrays, so that inputs are written and outputs read in place.
In int8 the file is that of onnxruntime's own dynamic quantisation.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from . import Arrays, Fed, Fixed, Job, NotServedError, Run

if TYPE_CHECKING:
    import onnxruntime

#: What its guide quantises dynamically: recurrent layers and products. Convolutions lose by it.
_QUANTISED: Final = ("LSTM", "MatMul", "Gemm")


def prepare(name: str, job: Job) -> Run:
    """The job on a session, plain or bound. Raises NotServedError."""
    if job.steps and not job.pairs:
        raise NotServedError("the file neither takes nor gives its state")
    bound = name == "onnxruntime_bound"
    if not job.steps:
        return BoundCall(job) if bound else Call(job)
    if job.next_token is not None:
        return BoundTokens(job, job.next_token) if bound else Tokens(job, job.next_token)
    return BoundStep(job) if bound else Step(job)


def open_session(job: Job) -> onnxruntime.InferenceSession:
    """So many threads (several spin as they do by themselves), no parallel branches, every graph optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    path = quantised(job) if job.precision == "int8" else job.path
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def quantised(job: Job) -> Path:
    """The file with int8 weights, made once. Raises NotServedError where nothing in it is quantised."""
    import logging

    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = job.folder / f"{job.path.stem}.ort-int8.onnx"
    if not path.exists():
        before = logging.root.level
        logging.root.setLevel(logging.ERROR)  # it recommends steps that make no difference here
        try:
            quantize_dynamic(job.path, path, op_types_to_quantize=list(_QUANTISED), weight_type=QuantType.QInt8)
        finally:
            logging.root.setLevel(before)
    operators = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    if not operators & {"DynamicQuantizeLSTM", "MatMulInteger"}:
        raise NotServedError(f"onnxruntime quantises {', '.join(_QUANTISED)}; the file has none that it could")
    return path


class _Session:
    """A session, the feeds it knows, and the names of the outputs asked for."""

    def __init__(self, job: Job) -> None:
        self.session: onnxruntime.InferenceSession = job.once("session", lambda: open_session(job))
        known = {entry.name for entry in self.session.get_inputs()}
        self.fixed = {name: np.asarray(array) for name, array in job.constants.items() if name in known}
        self.feeds = {name: array for name, array in job.feeds.items() if name in known} | self.fixed
        self.names = [*job.outputs, *job.pairs.values()]

    def zeros(self) -> dict[str, np.ndarray]:
        """Arrays of the shapes that the outputs have."""
        results = self.session.run(self.names, self.feeds)
        return {name: np.zeros_like(array) for name, array in zip(self.names, results, strict=True)}


class Step(Fed):
    """session.run, the new states fed back as NumPy arrays."""

    def __init__(self, job: Job) -> None:
        self.opened = _Session(job)
        self.run, self.names, self.outputs = self.opened.session.run, self.opened.names, job.outputs
        self.initial = {name: job.feeds[name] for name in job.pairs}
        self.data = job.data
        self.feeds = {**self.opened.fixed, **self.data, **self.initial}
        self.results: list[np.ndarray] = []

    def reset(self) -> None:
        self.feeds.update(self.initial)

    def loop(self, n: int) -> None:
        run, names, feeds, states, first = self.run, self.names, self.feeds, [*self.initial], len(self.outputs)
        results = self.results
        for _ in repeat(None, n):
            results = run(names, feeds)
            feeds.update(zip(states, results[first:], strict=True))
        self.results = results

    def read(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in zip(self.outputs, self.results, strict=False)}


class Tokens(Step):
    """session.run, token and states fed back."""

    def __init__(self, job: Job, choose: Callable[[np.ndarray], int]) -> None:
        super().__init__(job)
        self.choose = choose

    def loop(self, n: int) -> None:
        run, names, feeds, states = self.run, self.names, self.feeds, [*self.initial]
        token, choose = next(iter(self.data.values())), self.choose
        results = self.results
        for _ in repeat(None, n):
            results = run(names, feeds)
            feeds.update(zip(states, results[1:], strict=True))
            token.fill(choose(results[0]))
        self.results = results


class Call(Fixed):
    """session.run."""

    def __init__(self, job: Job) -> None:
        self.opened = _Session(job)
        self.results: list[np.ndarray] = []
        self.loop(1)

    def loop(self, n: int) -> None:
        run, names, feeds, results = self.opened.session.run, self.opened.names, self.opened.feeds, self.results
        for _ in repeat(None, n):
            results = run(names, feeds)
        self.results = results

    def read(self) -> dict[str, np.ndarray]:
        return dict(zip(self.opened.names, self.results, strict=True))


class BoundStep(Fed):
    """run_with_iobinding, nothing copied and nothing allocated by the caller."""

    def __init__(self, job: Job) -> None:
        self.opened = _Session(job)
        zeros = self.opened.zeros()
        self.data, self.outputs = job.data, {name: zeros[name] for name in job.outputs}
        self.initial = {name: np.array(job.feeds[name]) for name in job.pairs}
        here = {name: array.copy() for name, array in self.initial.items()}
        there = {name: np.zeros_like(array) for name, array in self.initial.items()}
        self.kept = [self.data, self.opened.fixed, self.outputs, here, there]
        turns = []
        for past, future in ((here, there), (there, here)):
            made = {job.pairs[name]: array for name, array in future.items()}
            inputs = {**self.opened.fixed, **self.data, **past}
            turns.append(bound(self.opened.session, inputs, {**self.outputs, **made}))
        self.states = (here, there)
        self.turns = cycle(turns)

    def reset(self) -> None:
        for states in self.states:
            for name, array in states.items():
                array[...] = self.initial[name]

    def loop(self, n: int) -> None:
        run = self.opened.session.run_with_iobinding
        for binding in islice(self.turns, n):
            run(binding)

    def read(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self.outputs.items()}


class BoundTokens(BoundStep):
    """run_with_iobinding, the token written into its bound array."""

    def __init__(self, job: Job, choose: Callable[[np.ndarray], int]) -> None:
        super().__init__(job)
        self.choose = choose

    def loop(self, n: int) -> None:
        run = self.opened.session.run_with_iobinding
        token, logits, choose = next(iter(self.data.values())), next(iter(self.outputs.values())), self.choose
        for binding in islice(self.turns, n):
            run(binding)
            token.fill(choose(logits))


class BoundCall(Fixed):
    """run_with_iobinding, all outputs into arrays that stay."""

    def __init__(self, job: Job) -> None:
        self.opened = _Session(job)
        self.outputs = self.opened.zeros()
        self.feeds = {name: np.ascontiguousarray(array) for name, array in self.opened.feeds.items()}
        self.binding = bound(self.opened.session, self.feeds, self.outputs)

    def loop(self, n: int) -> None:
        run, binding = self.opened.session.run_with_iobinding, self.binding
        for _ in repeat(None, n):
            run(binding)

    def read(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self.outputs.items()}


def bound(session: onnxruntime.InferenceSession, inputs: Arrays, outputs: Arrays) -> Any:
    """A binding of the session over these arrays."""
    import onnxruntime

    binding = session.io_binding()
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, value(array))
    for name, array in outputs.items():
        binding.bind_ortvalue_output(name, value(array))
    return binding
