"""The engines, one adapter a file, all behind one small interface.

An adapter prepares a Task as a Run: the very code that is checked is the code that is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, Protocol

import numpy as np

from ..workloads import TOLERANCE, Task


class Run(Protocol):
    """One engine, ready to run one task again and again."""

    def reset(self) -> None:
        """Go back to the initial states."""

    def write(self, x: np.ndarray) -> None:
        """Put the next call's input where the engine reads it (nothing to do for a whole sequence)."""

    def loop(self, n: int) -> None:
        """Make n calls. All that is timed happens here."""

    def read(self) -> dict[str, np.ndarray]:
        """Copies of the last call's outputs."""


@dataclass(frozen=True)
class Engine:
    """An adapter: what it is called, what it needs installed, and what prepares a task of each kind."""

    name: str
    title: str
    package: str
    adapter: str  # module of this folder
    kinds: tuple[str, ...]
    ours: bool = False

    def missing(self) -> str | None:
        """Why this engine cannot run here."""
        return None if find_spec(self.package) is not None else f"{self.package} is not installed"

    def prepare(self, task: Task) -> Run:
        """The task, ready to run."""
        from importlib import import_module

        module = import_module(f".{self.adapter}", __name__)
        makers: Mapping[tuple[str, str], Callable[[Task], Run]] = module.MAKERS
        return makers[self.name, task.workload.kind](task)


_TIMED = ("step", "sequence", "character")
_TABLE = (
    Engine("lstm_engine", "lstm_engine", "lstm_engine", "ours", _TIMED, ours=True),
    Engine("lstm_engine_fresh", "lstm_engine, fresh result", "lstm_engine", "ours", ("step", "character"), ours=True),
    Engine("onnxruntime", "onnxruntime", "onnxruntime", "ort", _TIMED),
    Engine("onnxruntime_bound", "onnxruntime, I/O binding", "onnxruntime", "ort", _TIMED),
    Engine("numpy", "NumPy", "numpy", "plain", _TIMED),
    Engine("openvino", "OpenVINO", "openvino", "vino", _TIMED),
    Engine("torch", "PyTorch", "torch", "pytorch", ("step", "sequence")),
)
ENGINES: Final = {engine.name: engine for engine in _TABLE}


class MismatchError(AssertionError):
    """An engine's outputs differ from the oracle's."""


def check(run: Run, task: Task) -> float:
    """Run the task once through the code that will be timed; the largest difference from the oracle.

    Raises MismatchError beyond the workload's tolerance.
    """
    outputs = _stepwise(run, task) if task.workload.kind != "sequence" else _at_once(run)
    worst = 0.0
    for name, expected in task.expected.items():
        got = outputs[name]
        if got.shape != expected.shape:
            raise MismatchError(f"{task.workload.name}: {name} has shape {got.shape}, expected {expected.shape}")
        difference = float(np.abs(got - expected).max())
        if not difference <= TOLERANCE[task.workload.kind]:
            raise MismatchError(f"{task.workload.name}: {name} is off by {difference:.2g}")
        worst = max(worst, difference)
    return worst


def _at_once(run: Run) -> dict[str, np.ndarray]:
    run.reset()
    run.loop(1)
    return run.read()


def _stepwise(run: Run, task: Task) -> dict[str, np.ndarray]:
    """Call by call, stacked along time: X is [T,B,I], tokens and logits are [B,T…]."""
    run.reset()
    tokens = task.feeds.get("tokens")
    inputs = task.feeds["X"] if tokens is None else tokens[0]
    results = []
    for x in inputs:
        run.write(x)
        run.loop(1)
        results.append(run.read())
    axis = 0 if tokens is None else 1
    return {name: np.concatenate([r[name] for r in results], axis=axis) for name in results[0]}
