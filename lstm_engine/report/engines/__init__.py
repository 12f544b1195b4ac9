"""Engines that run a model file, one adapter a module, all behind one small interface.

An adapter prepares a Job as a Run: the very code that is checked is the code that is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

Arrays = Mapping[str, np.ndarray]
SMALLEST_RANGE: Final = 1e-6


class NotServedError(Exception):
    """An engine cannot do a job; the message says why."""


@dataclass(frozen=True)
class Job:
    """What every engine is to do with a file, again and again.

    ``feeds``: the inputs of one call; ``outputs``: those that are looked at. With ``steps`` each call is one step of a
    sequence: ``pairs`` {input: output} names the states that go from call to call, ``feeds`` has their first values.
    ``next_token``: makes the next step's token of a step's output, where there is one. ``folder``: a place for derived
    files; ``loading``: what else this engine's load() is to be told.
    """

    path: Path
    feeds: Arrays
    outputs: tuple[str, ...]
    folder: Path
    steps: bool = False
    pairs: Mapping[str, str] = field(default_factory=dict)
    constants: Arrays = field(default_factory=dict)
    next_token: Callable[[np.ndarray], int] | None = None
    batch: int = 1
    precision: str = "float32"
    threads: int = 1
    loading: Mapping[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] | None = None

    @property
    def data(self) -> dict[str, np.ndarray]:
        """Copies of the inputs that change from step to step."""
        held = {*self.pairs, *self.constants}
        return {name: np.array(array, order="C") for name, array in self.feeds.items() if name not in held}

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What is made, or what another run of the job made."""
        if self.shared is None:
            return make()
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]


class Run(Protocol):
    """One engine, ready to do one job again and again."""

    def reset(self) -> None:
        """Go back to the initial states."""

    def write(self, feeds: Arrays) -> None:
        """Put the next step's inputs where the engine reads them."""

    def loop(self, n: int) -> None:
        """Make n calls. All that is timed happens here."""

    def read(self) -> dict[str, np.ndarray]:
        """Copies of the last call's outputs."""


class Fixed:
    """A Run whose every call is fed the same."""

    def reset(self) -> None:
        """The initial states are fed."""

    def write(self, feeds: Arrays) -> None:
        """The feeds are fixed."""


class Fed:
    """A Run that reads each step's inputs from arrays which stay where they are."""

    data: dict[str, np.ndarray]

    def write(self, feeds: Arrays) -> None:
        """Copy them in."""
        for name, array in self.data.items():
            array[...] = feeds[name]


@dataclass(frozen=True)
class Engine:
    """An adapter: what it is called, what it needs installed, and how to install that."""

    name: str
    title: str
    package: str
    module: str  # with a function prepare(name, job) → Run that raises NotServedError
    precisions: tuple[str, ...]
    ours: bool = False

    def missing(self) -> str | None:
        """Why this engine cannot run here."""
        return None if find_spec(self.package) is not None else f"{self.package} is not installed"

    def prepare(self, job: Job) -> Run:
        """The job, ready to run. Raises NotServedError."""
        if job.precision not in self.precisions:
            raise NotServedError(f"{self.title} has no {job.precision} ({', '.join(self.precisions)} only)")
        try:
            run: Run = import_module(self.module).prepare(self.name, job)
        except NotServedError:
            raise
        except Exception as fault:  # other engines' errors have no common type
            if self.ours:
                raise
            raise NotServedError(f"{self.title}: {first_line(fault)}") from fault
        return run


_HERE: Final = __name__
_OURS: Final = ("float32", "float64", "bfloat16", "int8")
_ORT: Final = ("float32", "float64", "int8")
_VINO: Final = ("float32", "bfloat16")
FILE_ENGINES: Final = (
    Engine("lstm_engine", "lstm_engine", "lstm_engine", f"{_HERE}.ours", _OURS, ours=True),
    Engine("lstm_engine_fresh", "lstm_engine, fresh result", "lstm_engine", f"{_HERE}.ours", ("float32",), ours=True),
    Engine("lstm_engine_lone", "lstm_engine, lone streams", "lstm_engine", f"{_HERE}.ours", _OURS, ours=True),
    Engine("lstm_engine_one", "lstm_engine, one thread", "lstm_engine", f"{_HERE}.ours", _OURS, ours=True),
    Engine("onnxruntime", "onnxruntime", "onnxruntime", f"{_HERE}.ort", _ORT),
    Engine("onnxruntime_bound", "onnxruntime, I/O binding", "onnxruntime", f"{_HERE}.ort", _ORT),
    Engine("openvino", "OpenVINO", "openvino", f"{_HERE}.vino", _VINO),
)


def first_line(fault: BaseException) -> str:
    """What an error says, on one line: where in its own source it arose is no news."""
    lines = [line for line in str(fault).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))] or lines
    return " ".join(" ".join(telling[:2]).split())[:200] if telling else type(fault).__name__


# --- checking ---------------------------------------------------------------------------------------------------------


class MismatchError(AssertionError):
    """An engine's outputs differ from what they should be; ``error``: by how much, as a part of their range."""

    def __init__(self, message: str, error: float) -> None:
        super().__init__(message)
        self.error = error


def outputs_of(run: Run, steps: Sequence[Arrays] | None) -> dict[str, np.ndarray]:
    """One call from the beginning; of ``steps``, one call for each of these feeds, their outputs stacked in front."""
    run.reset()
    if steps is None:
        run.loop(1)
        return run.read()
    results = []
    for feeds in steps:
        run.write(feeds)
        run.loop(1)
        results.append(run.read())
    return {name: np.stack([result[name] for result in results]) for name in results[0]}


def checked(run: Run, steps: Sequence[Arrays] | None, expected: Arrays, tolerance: float) -> float:
    """Run through the code that will be timed; the largest difference from ``expected``, as a part of the range.

    Raises MismatchError beyond the tolerance.
    """
    outputs = outputs_of(run, steps)
    worst = 0.0
    for name, wanted in expected.items():
        got = outputs[name]
        if got.size != wanted.size:
            raise MismatchError(f"{name} has shape {got.shape}, expected {wanted.shape}", float("inf"))
        error = relative_error(got.reshape(wanted.shape), wanted)
        if not error <= tolerance:
            raise MismatchError(f"{name} is off by {error:.2g} (allowed {tolerance:.0e})", error)
        worst = max(worst, error)
    return worst


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference over the range of what is wanted; not a number where either has none.

    The range of numbers that hardly differ counts as a tenth of the greatest.
    """
    if not wanted.size:
        return 0.0
    exact = wanted.astype(np.float64)
    difference: Any = np.abs(got.astype(np.float64) - exact).max()
    return float(difference / max(float(np.ptp(exact)), 0.1 * float(np.abs(exact).max()), SMALLEST_RANGE))
