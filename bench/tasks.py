"""A workload made concrete: its model file, its feeds, the outputs of the float64 definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from lstm_engine.report.engines import Arrays, Job
from lstm_engine.report.engines.drawing import Drawn, likeliest

from . import zoo
from .models import Weights, draw_weights, make_model, state_names
from .workloads import SPEECH_SAMPLES, Workload

CHARACTER_MODEL: Final = Path(__file__).parent.parent / "models" / "char" / "char.onnx"
CHARACTER_UNITS: Final = 256
CHECKED_STEPS: Final = 8  # calls of a stepping workload that are held against the definition
#: Largest difference from the float64 definition, as a part of the outputs' range (1 at least). Engines approximate
#: sigmoid and tanh each its own way; bfloat16 keeps 8 bits of each weight, int8 as many of each activation too.
TOLERANCE: Final = {"float32": 2e-5, "bfloat16": 2e-2, "int8": 5e-2}
#: Files of others compute with larger numbers, and amplify rounding.
ZOO_TOLERANCE: Final = 1e-3


@dataclass(frozen=True)
class Task(Job):
    """A workload with all that an engine needs.

    ``sequence``: feeds of successive steps, None for whole calls. ``expected``: the outputs, those of steps stacked.
    ``weights``: W, R, B of each layer (gates i, o, f, g; z, r, h); embedding, head, head_bias where there are any.
    """

    workload: Workload = field(kw_only=True)
    sequence: list[Arrays] | None = field(kw_only=True)
    expected: Arrays = field(kw_only=True)
    weights: Weights = field(kw_only=True)

    @property
    def tolerance(self) -> float:
        """What an engine may be off by."""
        return ZOO_TOLERANCE if self.workload.kind == "zoo" else TOLERANCE[self.precision]


def make_task(workload: Workload, folder: Path, collection: Path | None = None) -> Task:
    """Write the model into the folder, draw the feeds, ask the definition. ``collection``: the files of zoo rows."""
    if workload.kind == "character" or (workload.kind == "tokens" and workload.H == CHARACTER_UNITS):
        return _character(workload, folder)
    if workload.kind == "zoo":
        return _published(workload, folder, collection)
    weights = draw_weights(workload)
    path = folder / f"{_file_name(workload)}.onnx"
    if not path.exists():
        import onnx

        onnx.save(make_model(workload, weights), path)
    if workload.kind == "speech":
        return _speech(workload, path, folder, weights)
    if workload.kind == "tokens":
        return _tokens(workload, path, folder, weights)
    return _layers(workload, path, folder, weights)


def _file_name(workload: Workload) -> str:
    ragged = "-ragged" if workload.kind == "ragged" else ""
    kind = workload.kind if workload.kind in ("speech", "tokens") else workload.cell.lower()
    return f"{kind}-{workload.L}x{workload.H}-d{workload.D}-i{workload.I}{ragged}"


def _layers(workload: Workload, path: Path, folder: Path, weights: Weights) -> Task:
    rng = np.random.default_rng([2, workload.I, workload.H, workload.B])
    pairs = state_names(workload)
    shape = (workload.D, workload.B, workload.H)
    if workload.kind in ("sequence", "ragged"):
        feeds = {"X": _uniform(rng, 1, workload.T, workload.B, workload.I)}
        feeds |= {"lengths": workload.lengths} if workload.kind == "ragged" else {}
        feeds |= {name: _uniform(rng, 0.5, *shape) for name in pairs}
        return _call(workload, path, folder, feeds, ("Y", *pairs.values()), weights)
    states = {name: np.zeros(shape, np.float32) for name in pairs}
    sequence = [{"X": _uniform(rng, 1, 1, workload.B, workload.I)} for _ in range(CHECKED_STEPS)]
    return _steps(workload, path, folder, sequence, states, "Y", pairs, weights)


def _speech(workload: Workload, path: Path, folder: Path, weights: Weights) -> Task:
    rng = np.random.default_rng([7])
    states = {name: np.zeros((1, workload.B, workload.H), np.float32) for name in "hc"}
    sequence = [{"samples": _uniform(rng, 0.5, workload.B, SPEECH_SAMPLES)} for _ in range(CHECKED_STEPS)]
    return _steps(workload, path, folder, sequence, states, "probability", state_names(workload), weights)


def _character(workload: Workload, folder: Path) -> Task:
    rng = np.random.default_rng(3)
    state = np.zeros((workload.L, workload.B, workload.H), np.float32)
    sequence = [{"tokens": rng.integers(0, workload.O, (1, 1))} for _ in range(CHECKED_STEPS)]
    pairs = {"h0": "hn", "c0": "cn"}
    states = {"h0": state, "c0": state}
    return _steps(workload, CHARACTER_MODEL, folder, sequence, states, "logits", pairs, _character_weights())


def _tokens(workload: Workload, path: Path, folder: Path, weights: Weights) -> Task:
    rng = np.random.default_rng(3)
    sequence = [{"tokens": rng.integers(0, workload.O, (1, 1))} for _ in range(CHECKED_STEPS)]
    pairs = state_names(workload)
    states = {name: np.zeros((1, workload.B, workload.H), np.float32) for name in pairs}
    return _steps(workload, path, folder, sequence, states, "logits", pairs, weights)


def _published(workload: Workload, folder: Path, collection: Path | None) -> Task:
    if collection is None:
        raise ValueError(f"{workload.name}: --zoo says where the published files are")
    path, feeds, random = zoo.recorded(collection, workload.name.removeprefix("zoo-"))
    outputs = tuple(name for name in _definition(path, feeds) if name not in random)
    return _call(workload, path, folder, feeds, outputs, {})


def _uniform(rng: np.random.Generator, bound: float, *shape: int) -> np.ndarray:
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def _call(
    workload: Workload, path: Path, folder: Path, feeds: Arrays, outputs: tuple[str, ...], weights: Weights
) -> Task:
    expected = _kept(workload, folder, lambda: _definition(path, feeds))
    return Task(
        path,
        feeds,
        outputs,
        folder,
        batch=workload.B,
        precision=workload.precision,
        threads=workload.threads,
        workload=workload,
        sequence=None,
        expected={name: expected[name] for name in outputs},
        weights=weights,
    )


def _steps(
    workload: Workload,
    path: Path,
    folder: Path,
    sequence: list[Arrays],
    states: Arrays,
    output: str,
    pairs: dict[str, str],
    weights: Weights,
) -> Task:
    """From zero states; the definition's own states go from step to step in float64."""

    def stepped() -> Arrays:
        carried, found = dict(states), []
        for feeds in sequence:
            results = _definition(path, {**feeds, **carried})
            found.append(results[output])
            carried = {name: results[pairs[name]] for name in pairs}
        return {output: np.stack(found)}

    return Task(
        path,
        {**sequence[0], **states},
        (output,),
        folder,
        steps=True,
        pairs=pairs,
        next_token={"character": lambda: likeliest, "tokens": Drawn}.get(workload.kind, lambda: None)(),
        batch=workload.B,
        precision=workload.precision,
        threads=workload.threads,
        workload=workload,
        sequence=sequence,
        expected=_kept(workload, folder, stepped),
        weights=weights,
    )


def _character_weights() -> Weights:
    """embedding, then W, R, B of each layer, then head and head_bias."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(CHARACTER_MODEL).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights: Weights = {}
    layer = 0
    for node in graph.node:
        held = [arrays[name] for name in node.input if name in arrays]
        if node.op_type == "LSTM":
            weights |= {f"{letter}{layer}": array for letter, array in zip("WRB", held, strict=True)}
            layer += 1
        elif node.op_type in ("Gather", "MatMul", "Add") and held:
            weights[{"Gather": "embedding", "MatMul": "head", "Add": "head_bias"}[node.op_type]] = held[0]
    return weights


def _kept(workload: Workload, folder: Path, made: Callable[[], Arrays]) -> Arrays:
    """What ``made`` gives, made once for all precisions and numbers of threads."""
    parts = [workload.name if workload.kind == "zoo" else workload.kind, *map(str, workload.shape.values())]
    path = folder / f"expected-{'-'.join(parts)}.npz"
    if not path.exists():
        np.savez(path, **made())
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _definition(path: Path, feeds: Arrays) -> dict[str, Any]:
    """All outputs by the float64 definition."""
    from lstm_engine import reference

    results: dict[str, Any] = reference.run(_graph(path), dict(feeds))
    return results


def _graph(path: Path) -> Any:
    from lstm_engine.report.verify import definition_of

    return definition_of(str(path), None)
