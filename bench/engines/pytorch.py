"""PyTorch: torch.nn.LSTM, eager, in inference mode."""

from __future__ import annotations

from itertools import repeat

import numpy as np
import torch

from ..workloads import Task


def make_lstm(task: Task) -> torch.nn.LSTM:
    """The layer with the task's weights; PyTorch's gates are i, f, g, o."""
    torch.set_num_threads(1)
    workload = task.workload
    layer = torch.nn.LSTM(workload.I, workload.H)
    bias = task.weights["B0"][0].reshape(2, -1)
    values = {"weight_ih_l0": task.weights["W0"][0], "weight_hh_l0": task.weights["R0"][0]}
    values |= {"bias_ih_l0": bias[0], "bias_hh_l0": bias[1]}
    layer.load_state_dict({name: torch.from_numpy(_gates(value)) for name, value in values.items()})
    return layer.eval()


def _gates(stacked: np.ndarray) -> np.ndarray:
    i, o, f, g = np.split(stacked, 4)
    return np.concatenate([i, f, g, o])


class Step:
    """layer(x, (h, c)), the states fed back."""

    def __init__(self, task: Task) -> None:
        self.layer = make_lstm(task)
        self.x = torch.zeros(1, task.workload.B, task.workload.I)
        self.y = torch.zeros(0)
        self.initial = tuple(torch.from_numpy(task.feeds[name].copy()) for name in ("initial_h", "initial_c"))
        self.reset()

    def reset(self) -> None:
        self.state = self.initial

    def write(self, x: np.ndarray) -> None:
        self.x[0] = torch.from_numpy(x)

    def loop(self, n: int) -> None:
        layer, x, y, state = self.layer, self.x, self.y, self.state
        with torch.inference_mode():
            for _ in repeat(None, n):
                y, state = layer(x, state)
        self.y, self.state = y, state

    def read(self) -> dict[str, np.ndarray]:
        return {"Y": self.y.numpy()[:, None].copy()}


class Sequence:
    """layer(X, (h, c)), all outputs."""

    def __init__(self, task: Task) -> None:
        self.layer = make_lstm(task)
        self.feeds = {name: torch.from_numpy(value.copy()) for name, value in task.feeds.items()}

    def reset(self) -> None:
        """The initial states are fed."""

    def write(self, x: np.ndarray) -> None:
        """The feeds are fixed."""

    def loop(self, n: int) -> None:
        layer, x = self.layer, self.feeds["X"]
        state = self.feeds["initial_h"], self.feeds["initial_c"]
        with torch.inference_mode():
            for _ in repeat(None, n):
                results = layer(x, state)
        self.results = results

    def read(self) -> dict[str, np.ndarray]:
        y, (h, c) = self.results
        return {"Y": y.numpy()[:, None].copy(), "Y_h": h.numpy().copy(), "Y_c": c.numpy().copy()}


MAKERS = {("torch", "step"): Step, ("torch", "sequence"): Sequence}
