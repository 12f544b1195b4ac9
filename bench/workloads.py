"""The named workloads: one table, and what makes a row of it concrete (a model file, feeds, the true outputs).

Letters: I inputs, H hidden units, L layers, B batch, T steps of a call.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import onnx

KINDS: Final = {
    "step": "one step of a stream, from Python call to Python return",
    "sequence": "a whole sequence in one call, every step's output",
    "character": "tokens of a character model, one a call, greedy",
    "cold": "process start to first output",
    "memory": "bytes a stream costs",
}
FLOAT_BYTES: Final = 4
CHARACTER_MODEL: Final = Path(__file__).parent.parent / "models" / "char" / "char.onnx"
CHECKED_STEPS: Final = 8  # calls of a step workload that are held against the oracle
CHECKED_TOKENS: Final = 24
#: Largest absolute difference from the float64 oracle. States lie in [-1, 1]; products run over up to 2H terms in
#: float32, and every engine approximates sigmoid and tanh its own way.
TOLERANCE: Final = {"step": 1e-5, "sequence": 2e-5, "character": 1e-3}


@dataclass(frozen=True)
class Workload:
    """One row of the table."""

    name: str
    kind: str
    I: int  # noqa: E741
    H: int
    L: int = 1
    B: int = 1
    T: int = 1
    O: int = 0  # outputs of a dense layer behind the LSTM  # noqa: E741

    @property
    def shape(self) -> dict[str, int]:
        """The shape letters."""
        values = asdict(self)
        return {letter: values[letter] for letter in "IHLBTO" if values[letter]}

    @property
    def input_weights(self) -> int:
        """Weights that meet inputs, which may be multiplied ahead of their steps."""
        return 4 * self.H * self.I

    @property
    def recurrent_weights(self) -> int:
        """Weights that every step has to read in turn (biases, upper layers and the dense layer among them)."""
        layers = self.L * (4 * self.H * self.H + 4 * self.H) + (self.L - 1) * 4 * self.H * self.H
        return layers + self.O * (self.H + 1)

    @property
    def footprint(self) -> int:
        """Bytes of weights that stay in use from step to step."""
        ahead = 0 if self.kind != "sequence" else self.input_weights
        return FLOAT_BYTES * (self.input_weights + self.recurrent_weights - ahead)

    @property
    def bytes(self) -> int:
        """Bytes of weights a call cannot help reading."""
        once = FLOAT_BYTES * self.input_weights if self.kind == "sequence" else 0
        return self.footprint * self.T + once

    @property
    def flops(self) -> int:
        """Multiplications and additions of a call."""
        return 2 * (self.input_weights + self.recurrent_weights) * self.B * self.T

    @property
    def state_bytes(self) -> int:
        """Bytes of h and c of all layers and rows."""
        return FLOAT_BYTES * 2 * self.L * self.B * self.H


def _table() -> tuple[Workload, ...]:
    steps = [Workload(f"step-h{H}", "step", H, H) for H in (8, 16, 32, 64, 128, 256, 512, 1024)]
    sequences = [
        Workload(f"sequence-h{H}-b{B}", "sequence", H, H, B=B, T=100)
        for B in (1, 16)
        for H in (16, 32, 64, 128, 256, 512, 1024)
    ]
    character = [Workload("character", "character", 64, 256, L=2, O=102)]
    cold = [Workload("cold-h64", "cold", 64, 64)]
    memory = [Workload(f"memory-h{H}", "memory", H, H) for H in (16, 64, 256, 1024)]
    return (*steps, *sequences, *character, *cold, *memory)


WORKLOADS: Final = {workload.name: workload for workload in _table()}


def chosen(pattern: str | None) -> list[Workload]:
    """The workloads whose name contains the pattern (a shell pattern if it has a * or ?). Raises ValueError: none."""
    import fnmatch

    if pattern is None:
        return list(WORKLOADS.values())
    wild = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    found = [workload for name, workload in WORKLOADS.items() if fnmatch.fnmatch(name, wild)]
    if not found:
        raise ValueError(f"no workload matches '{pattern}'; there are {', '.join(WORKLOADS)}")
    return found


# --- made concrete ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A workload with its model file, its feeds and the outputs the float64 oracle gives for them.

    step: X [CHECKED_STEPS, B, I] are as many calls' inputs, from zero states, Y their outputs.
    sequence: X [T, B, I], initial_h, initial_c; Y, Y_h, Y_c.
    character: tokens [1, n] are as many calls' inputs, from zero states, logits [1, n, O].
    """

    workload: Workload
    path: Path
    feeds: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]  # W0 [1,4H,I], R0 [1,4H,H], B0 [1,8H] of each layer; gates i, o, f, g


def make_task(workload: Workload, folder: Path) -> Task:
    """Write the model into the folder, draw the feeds, ask the oracle."""
    if workload.kind == "character":
        return _character_task(workload)
    weights = draw_weights(workload)
    path = folder / f"lstm-{workload.I}-{workload.H}.onnx"
    if not path.exists():
        _save(make_model(weights), path)
    rng = np.random.default_rng([2, workload.I, workload.H, workload.B])
    steps = CHECKED_STEPS if workload.kind != "sequence" else workload.T
    state = (1, workload.B, workload.H)
    feeds = {
        "X": rng.uniform(-1, 1, (steps, workload.B, workload.I)).astype(np.float32),
        "initial_h": np.zeros(state, np.float32),
        "initial_c": np.zeros(state, np.float32),
    }
    if workload.kind == "sequence":
        feeds["initial_h"] = rng.uniform(-0.5, 0.5, state).astype(np.float32)
        feeds["initial_c"] = rng.uniform(-0.5, 0.5, state).astype(np.float32)
    wanted = ("Y", "Y_h", "Y_c") if workload.kind == "sequence" else ("Y",)
    return Task(workload, path, feeds, _oracle(path, feeds, wanted), weights)


def draw_weights(workload: Workload) -> dict[str, np.ndarray]:
    """Seeded weights of trained scale: uniform over ±1/√H, ONNX's shapes and gate order."""
    rng = np.random.default_rng([1, workload.I, workload.H])
    bound = 1 / np.sqrt(workload.H)
    shapes = {"W0": (1, 4 * workload.H, workload.I), "R0": (1, 4 * workload.H, workload.H), "B0": (1, 8 * workload.H)}
    return {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}


def make_model(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """X, initial_h, initial_c → LSTM → Y, Y_h, Y_c, with open T and B."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def tensor(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    I, H = weights["W0"].shape[2], weights["R0"].shape[2]  # noqa: E741
    node = helper.make_node(
        "LSTM",
        ["X", "W0", "R0", "B0", "", "initial_h", "initial_c"],
        ["Y", "Y_h", "Y_c"],
        "lstm",
        hidden_size=H,
    )
    graph = helper.make_graph(
        [node],
        f"lstm-{I}-{H}",
        [tensor("X", "T", "B", I), tensor("initial_h", 1, "B", H), tensor("initial_c", 1, "B", H)],
        [tensor("Y", "T", 1, "B", H), tensor("Y_h", 1, "B", H), tensor("Y_c", 1, "B", H)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="bench")
    onnx.checker.check_model(model, full_check=True)
    return model


def _save(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    onnx.save(model, path)


def _character_task(workload: Workload) -> Task:
    rng = np.random.default_rng(3)
    state = np.zeros((workload.L, workload.B, workload.H), np.float32)
    tokens = rng.integers(0, workload.O, (1, CHECKED_TOKENS))
    feeds: dict[str, np.ndarray] = {"tokens": tokens, "h0": state, "c0": state}
    return Task(workload, CHARACTER_MODEL, feeds, _oracle(CHARACTER_MODEL, feeds, ("logits",)), _character_weights())


def _character_weights() -> dict[str, np.ndarray]:
    """embedding, then W, R, B of each layer, then head and head_bias."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(CHARACTER_MODEL).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights: dict[str, np.ndarray] = {}
    layer = 0
    for node in graph.node:
        held = [arrays[name] for name in node.input if name in arrays]
        if node.op_type == "LSTM":
            weights |= {f"{letter}{layer}": array for letter, array in zip("WRB", held, strict=True)}
            layer += 1
        elif node.op_type in ("Gather", "MatMul", "Add") and held:
            weights[{"Gather": "embedding", "MatMul": "head", "Add": "head_bias"}[node.op_type]] = held[0]
    return weights


def _oracle(path: Path, feeds: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
    import lstm_engine
    from lstm_engine import reference

    graph = lstm_engine.load(path).graph
    results: dict[str, Any] = reference.run(graph, feeds, outputs=outputs)
    return results
