"""Cold start: from starting the interpreter to the first output, a new process each time.

The scripts are what somebody would write who wants one step of the model and nothing else.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from lstm_engine.report.timing import summarise

from .tasks import Task

#: Each ends with the first output in ``y``; the clock is the system's, shared by parent and child.
_HEAD: Final = "import sys, time; marks = [time.monotonic_ns()]; path = sys.argv[1]"
_TAIL: Final = (
    "marks.append(time.monotonic_ns()); import json; from bench.resident import resident_bytes;"
    " print(json.dumps([marks, resident_bytes(), y.ravel()[:4].tolist()]))"
)
_MARK: Final = "marks.append(time.monotonic_ns())"

_OURS: Final = """
import numpy as np
import lstm_engine
{mark}
stream = lstm_engine.load(path).stream()
{mark}
y = stream.step(np.zeros((1, {I}), np.float32))
"""
_ONNXRUNTIME: Final = """
import numpy as np
import onnxruntime
{mark}
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
{mark}
x, state = np.zeros((1, 1, {I}), np.float32), np.zeros((1, 1, {H}), np.float32)
y = session.run(None, {{"X": x, "initial_h": state, "initial_c": state}})[0]
"""
_NUMPY: Final = """
import numpy as np
{mark}
with np.load(path) as weights:
    W, R, B = weights["W0"][0], weights["R0"][0], weights["B0"][0].reshape(2, -1).sum(axis=0)
{mark}
x, h, c = np.zeros({I}, np.float32), np.zeros({H}, np.float32), np.zeros({H}, np.float32)
z = W @ x + R @ h + B
i, o, f = 1 / (1 + np.exp(-z[: 3 * {H}].reshape(3, {H})))
c = f * c + i * np.tanh(z[3 * {H} :])
y = h = o * np.tanh(c)
"""
_TORCH: Final = """
import torch
{mark}
layer = torch.nn.LSTM({I}, {H})
layer.load_state_dict(torch.load(path, weights_only=True))
{mark}
with torch.inference_mode():
    y = layer(torch.zeros(1, 1, {I}))[0].numpy()
"""
_FLOOR: Final = """
import numpy as np
{mark}
{mark}
y = np.zeros(4, np.float32)
"""
#: name: (engine of the table, the script, what its model file is)
_SCRIPTS: Final = {
    "lstm_engine": (_OURS, "onnx"),
    "lstm_engine_npz": (_OURS, "native"),
    "lstm_engine_empty_cache": (_OURS, "onnx"),
    "onnxruntime": (_ONNXRUNTIME, "onnx"),
    "numpy": (_NUMPY, "weights"),
    "torch": (_TORCH, "torch"),
}
TITLES: Final = {
    "lstm_engine": "lstm_engine",
    "lstm_engine_npz": "lstm_engine, its own .npz",
    "lstm_engine_empty_cache": "lstm_engine, empty cache",
    "onnxruntime": "onnxruntime",
    "numpy": "NumPy",
    "torch": "PyTorch",
}


def measure(task: Task, folder: Path, engines: set[str], repeats: int, tick: Callable[[], None]) -> dict[str, Any]:
    """Rows by name, and the floor: an interpreter that imports NumPy.

    Names begin with their engine's; an empty cache compiles everything, so it is tried fewer times.
    """
    files = _files(task, folder, engines)
    names = [name for name in _SCRIPTS if _engine_of(name) in engines]
    samples: dict[str, list[_Start]] = {name: [] for name in (*names, "floor")}
    source = {name: _SCRIPTS[name][0] for name in names} | {"floor": _FLOOR}
    paths = {name: files[_SCRIPTS[name][1]] for name in names} | {"floor": task.path}
    for name in source:
        if name != "lstm_engine_empty_cache":
            _start(source[name], paths[name], task, None)  # disk and code caches are warm from here on
    for attempt in range(repeats):
        for name in source:
            if name != "lstm_engine_empty_cache":
                samples[name].append(_start(source[name], paths[name], task, None))
            elif attempt < max(1, repeats // 5):
                with tempfile.TemporaryDirectory(dir=folder) as empty:
                    samples[name].append(_start(source[name], paths[name], task, empty))
        tick()
    return {name: _row(values) for name, values in samples.items()}


def _engine_of(name: str) -> str:
    return "lstm_engine" if name.startswith("lstm_engine") else name


@dataclass(frozen=True)
class _Start:
    """One process: seconds of interpreter, imports, load and first output, and bytes in memory at the end."""

    parts: list[float]
    resident: int | None


def _row(samples: list[_Start]) -> dict[str, Any]:
    """Summary of the whole and the medians of its parts."""
    whole = summarise([sum(start.parts) for start in samples], 1).as_json()
    parts = [median(column) for column in zip(*(start.parts for start in samples), strict=True)]
    known = [start.resident for start in samples if start.resident is not None]
    named = dict(zip(("interpreter", "imports", "load", "first_output"), parts, strict=True))
    return whole | named | {"resident": median(known) if known else None}


def _start(script: str, path: Path, task: Task, cache: str | None) -> _Start:
    """One process from its start to the first output."""
    body = script.format(mark=_MARK, I=task.workload.I, H=task.workload.H)
    root = str(Path(__file__).parent.parent)
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    if cache is not None:
        environment["LSTM_ENGINE_CACHE"] = cache
    begin = time.monotonic_ns()
    done = subprocess.run(
        [sys.executable, "-c", f"{_HEAD}\n{body}\n{_TAIL}", str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"cold start failed:\n{done.stderr}")
    marks, resident, _ = json.loads(done.stdout.splitlines()[-1])
    times = [begin, *marks]
    return _Start([(after - before) * 1e-9 for before, after in itertools.pairwise(times)], resident)


def _files(task: Task, folder: Path, engines: set[str]) -> dict[str, Path]:
    """The same weights in each engine's own format."""
    import numpy as np

    import lstm_engine

    files = {"onnx": task.path, "native": folder / "native.npz", "weights": folder / "weights.npz"}
    lstm_engine.load(task.path).save(files["native"])
    arrays: dict[str, Any] = dict(task.weights)
    np.savez(files["weights"], **arrays)
    if "torch" in engines:
        import torch

        from .engines.pytorch import make_layers

        files["torch"] = folder / "weights.pt"
        torch.save(make_layers(task.workload, task.weights).state_dict(), files["torch"])
    return files
