"""PyTorch, eager, in inference mode: torch.nn.LSTM and GRU, and for steps a torch.nn.LSTMCell a layer.

int8 is torch's dynamic quantisation of that module, bfloat16 the module in that type.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import repeat
from typing import Any, Final

import numpy as np
import torch

from lstm_engine.report.engines import Arrays, Fixed, Job, NotServedError, Run

from ..tasks import Task
from ..workloads import Workload

#: PyTorch's gates (i, f, g, o and r, z, n) by their places in ONNX's order (i, o, f, g and z, r, h).
GATES: Final = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}


def prepare(name: str, job: Job) -> Run:
    """The task's layers on so many threads. Raises NotServedError."""
    assert isinstance(job, Task)
    workload = job.workload
    if workload.kind in ("speech", "zoo"):
        raise NotServedError("PyTorch runs no model file")
    torch.set_num_threads(job.threads)
    if name == "torch_cell":
        if not job.steps or workload.cell != "LSTM" or job.next_token is not None:
            raise NotServedError("an LSTMCell is for single steps of an LSTM")
        return CellStep(job)
    if workload.kind == "ragged":
        return Ragged(job)
    if job.next_token is not None:
        return Tokens(job, job.next_token)
    return Step(job) if job.steps else Sequence(job)


def make_layers(workload: Workload, weights: Arrays) -> Any:
    """torch.nn.LSTM or GRU with these weights."""
    kind = {"LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU}[workload.cell]
    layers = kind(workload.I, workload.H, workload.L, bidirectional=workload.D == 2)
    values = {}
    for k in range(workload.L):
        for d, suffix in zip(range(workload.D), ("", "_reverse"), strict=False):
            parts = _parts(workload, weights, k, d)
            values |= {f"{name}_l{k}{suffix}": value for name, value in parts.items()}
    layers.load_state_dict(values)
    return layers.eval()


def make_cells(workload: Workload, weights: Arrays) -> Any:
    """A torch.nn.LSTMCell for each layer."""
    cells = [torch.nn.LSTMCell(workload.I if k == 0 else workload.H, workload.H) for k in range(workload.L)]
    for k, cell in enumerate(cells):
        cell.load_state_dict(_parts(workload, weights, k, 0))
    return torch.nn.ModuleList(cells).eval()


def _parts(workload: Workload, weights: Arrays, layer: int, direction: int) -> dict[str, torch.Tensor]:
    bias = weights[f"B{layer}"][direction].reshape(2, -1)
    values = {"weight_ih": weights[f"W{layer}"][direction], "weight_hh": weights[f"R{layer}"][direction]}
    values |= {"bias_ih": bias[0], "bias_hh": bias[1]}
    return {name: torch.from_numpy(_gates(value, workload.cell)) for name, value in values.items()}


def _gates(stacked: np.ndarray, cell: str) -> np.ndarray:
    parts = np.split(stacked, len(GATES[cell]))
    return np.concatenate([parts[place] for place in GATES[cell]])


def in_precision(module: Any, precision: str) -> Any:
    """The module in a precision, as PyTorch's guides do it."""
    if precision == "bfloat16":
        return module.to(torch.bfloat16)
    if precision == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that another package will take this over
            kinds = {torch.nn.LSTM, torch.nn.GRU, torch.nn.LSTMCell, torch.nn.Linear}
            held = torch.nn.ModuleList([module])  # what is quantised is swapped inside its parent
            return torch.ao.quantization.quantize_dynamic(held, kinds, dtype=torch.qint8)[0]
    return module


def _dtype(job: Job) -> torch.dtype:
    return torch.bfloat16 if job.precision == "bfloat16" else torch.float32


def _states(task: Task) -> tuple[torch.Tensor, ...]:
    """First h, and c where there is one: [L·D, B, H]."""
    names = [name for name in task.feeds if name.removeprefix("initial_")[0] in "hc"]
    letters = "hc" if task.workload.cell == "LSTM" else "h"
    stacked = [
        np.concatenate([task.feeds[name] for name in names if name.removeprefix("initial_")[0] == letter])
        for letter in letters
    ]
    return tuple(torch.from_numpy(array).to(_dtype(task)) for array in stacked)


def _plain(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.to(torch.float32).numpy()
    return array.copy()


class Step:
    """layers(x, (h, c)), the states fed back."""

    def __init__(self, task: Task) -> None:
        self.layers = task.once(
            "layers", lambda: in_precision(make_layers(task.workload, task.weights), task.precision)
        )
        self.x = torch.from_numpy(task.data["X"]).to(_dtype(task))
        states = _states(task)
        self.initial: Any = states if len(states) > 1 else states[0]
        self.y = torch.zeros(0)
        self.reset()
        self.loop(1)
        self.reset()

    def reset(self) -> None:
        self.state = self.initial

    def write(self, feeds: Arrays) -> None:
        self.x.copy_(torch.from_numpy(np.asarray(feeds["X"])))

    def loop(self, n: int) -> None:
        layers, x, y, state = self.layers, self.x, self.y, self.state
        with torch.inference_mode():
            for _ in repeat(None, n):
                y, state = layers(x, state)
        self.y, self.state = y, state

    def read(self) -> dict[str, np.ndarray]:
        return {"Y": _plain(self.y)}


class CellStep:
    """h, c = cell(x, (h, c)), layer by layer."""

    def __init__(self, task: Task) -> None:
        made = in_precision(make_cells(task.workload, task.weights), task.precision)
        self.cells = list(made)
        self.x = torch.from_numpy(task.data["X"][0]).to(_dtype(task))
        h, c = _states(task)
        self.initial = list(zip(h, c, strict=True))
        self.reset()
        self.loop(1)
        self.reset()

    def reset(self) -> None:
        self.states = list(self.initial)

    def write(self, feeds: Arrays) -> None:
        self.x.copy_(torch.from_numpy(np.asarray(feeds["X"][0])))

    def loop(self, n: int) -> None:
        cells, states, x = self.cells, self.states, self.x
        with torch.inference_mode():
            if len(cells) == 1:
                cell, state = cells[0], states[0]
                for _ in repeat(None, n):
                    state = cell(x, state)
                states[0] = state
                return
            for _ in repeat(None, n):
                below = x
                for k, cell in enumerate(cells):
                    states[k] = cell(below, states[k])
                    below = states[k][0]

    def read(self) -> dict[str, np.ndarray]:
        return {"Y": _plain(self.states[-1][0])}


class Network(torch.nn.Module):
    """Embedding, LSTM, dense layer."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        tensors = {name: torch.from_numpy(array.copy()) for name, array in task.weights.items()}
        self.embedding = torch.nn.Embedding.from_pretrained(tensors["embedding"])
        self.layers = make_layers(task.workload, task.weights)
        self.head = torch.nn.Linear(*tensors["head"].shape)
        self.head.load_state_dict({"weight": tensors["head"].T, "bias": tensors["head_bias"]})

    def forward(self, token: torch.Tensor, state: Any) -> Any:
        y, state = self.layers(self.embedding(token), state)
        return self.head(y[0]), state


class Tokens:
    """network(token, (h, c)), the next token fed back."""

    def __init__(self, task: Task, choose: Callable[[np.ndarray], int]) -> None:
        self.choose = choose
        self.network = in_precision(Network(task).eval(), task.precision)
        self.token = torch.zeros(1, 1, dtype=torch.int64)
        self.initial: Any = _states(task)
        self.logits = torch.zeros(0)
        self.plain = _dtype(task) == torch.float32
        self.reset()
        self.loop(1)
        self.reset()

    def reset(self) -> None:
        self.state = self.initial

    def write(self, feeds: Arrays) -> None:
        self.token.fill_(int(feeds["tokens"].item()))

    def loop(self, n: int) -> None:
        network, token, logits, state, choose = self.network, self.token, self.logits, self.state, self.choose
        with torch.inference_mode():
            for _ in repeat(None, n):
                logits, state = network(token, state)
                token.fill_(int(choose(logits.numpy() if self.plain else logits.float().numpy())))
        self.logits, self.state = logits, state

    def read(self) -> dict[str, np.ndarray]:
        return {"logits": _plain(self.logits)}


class Sequence(Fixed):
    """layers(X, (h, c)), all outputs."""

    def __init__(self, task: Task) -> None:
        self.workload, self.states = task.workload, [name for name in task.outputs if name != "Y"]
        self.layers = in_precision(make_layers(task.workload, task.weights), task.precision)
        self.x = self.fed(task)
        states = _states(task)
        self.state: Any = states if len(states) > 1 else states[0]
        self.results: Any = None
        self.loop(1)

    def fed(self, task: Task) -> Any:
        """What the layers take in the place of X."""
        return torch.from_numpy(task.data["X"]).to(_dtype(task))

    def loop(self, n: int) -> None:
        layers, x, state, results = self.layers, self.x, self.state, self.results
        with torch.inference_mode():
            for _ in repeat(None, n):
                results = layers(x, state)
        self.results = results

    def read(self) -> dict[str, np.ndarray]:
        y, last = self.results
        workload = self.workload
        made = _plain(y).reshape(len(y), workload.B, workload.D, workload.H).swapaxes(1, 2)
        states = last if isinstance(last, tuple) else (last,)
        return {"Y": made} | {name: _plain(state) for name, state in zip(self.states, states, strict=True)}


class Ragged(Sequence):
    """As a sequence, the batch packed ahead; the outputs are padded again."""

    def fed(self, task: Task) -> Any:
        lengths = torch.from_numpy(task.feeds["lengths"].astype(np.int64))
        return torch.nn.utils.rnn.pack_padded_sequence(super().fed(task), lengths, enforce_sorted=False)

    def loop(self, n: int) -> None:
        padded = torch.nn.utils.rnn.pad_packed_sequence
        layers, x, state, results = self.layers, self.x, self.state, self.results
        with torch.inference_mode():
            for _ in repeat(None, n):
                y, last = layers(x, state)
                results = padded(y)[0], last
        self.results = results
