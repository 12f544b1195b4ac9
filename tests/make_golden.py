"""Make the golden files: what PyTorch's recurrent layers return, in float64.

    python tests/make_golden.py

A file holds a layer's weights under PyTorch's own names, its inputs and its outputs, so that tests need no PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lstm_engine import reference
from lstm_engine.graph import Node
from lstm_engine.vocabulary import to_onnx_gates

FOLDER = Path(__file__).parent / "golden"

CASES: dict[str, dict[str, Any]] = {
    "lstm": {"kind": "LSTM"},
    "lstm_two_layers": {"kind": "LSTM", "num_layers": 2},
    "lstm_no_bias": {"kind": "LSTM", "bias": False},
    "lstm_bidirectional_two_layers": {"kind": "LSTM", "num_layers": 2, "bidirectional": True},
    "lstm_projected": {"kind": "LSTM", "proj_size": 3},
    "lstm_projected_bidirectional_two_layers": {"kind": "LSTM", "proj_size": 3, "num_layers": 2, "bidirectional": True},
    "gru_bidirectional_two_layers": {"kind": "GRU", "num_layers": 2, "bidirectional": True},
    "rnn_tanh": {"kind": "RNN"},
    "rnn_relu_bidirectional": {"kind": "RNN", "nonlinearity": "relu", "bidirectional": True},
}
SIZES = {"T": 6, "B": 3, "I": 4, "H": 5}


def make(name: str) -> dict[str, np.ndarray]:
    """Run one case in PyTorch: weights, input, h_0, c_0, output, h_n, c_n."""
    import torch

    options = {key: value for key, value in CASES[name].items() if key != "kind"}
    torch.manual_seed(len(name))
    layer = getattr(torch.nn, CASES[name]["kind"])(SIZES["I"], SIZES["H"], dtype=torch.float64, **options)
    rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    x = torch.randn(SIZES["T"], SIZES["B"], SIZES["I"], dtype=torch.float64)
    h = torch.randn(rows, SIZES["B"], options.get("proj_size") or SIZES["H"], dtype=torch.float64)
    c = torch.randn(rows, SIZES["B"], SIZES["H"], dtype=torch.float64)
    with torch.no_grad():
        if CASES[name]["kind"] == "LSTM":
            output, (h_n, c_n) = layer(x, (h, c))
            tensors = {"input": x, "h_0": h, "c_0": c, "output": output, "h_n": h_n, "c_n": c_n}
        else:
            output, h_n = layer(x, h)
            tensors = {"input": x, "h_0": h, "output": output, "h_n": h_n}
    tensors = {**layer.state_dict(), **tensors}
    made = {key: tensor.numpy() for key, tensor in tensors.items()}
    return made | {key: np.array(value) for key, value in CASES[name].items()}


def load(name: str) -> dict[str, np.ndarray]:
    """A golden file."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def run_layers(golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The golden's layers by the reference definitions, with the golden's own weights and inputs."""
    kind, x = str(golden["kind"]), golden["input"]
    ways = ["", "_reverse"] if golden.get("bidirectional") else [""]
    states: list[tuple[np.ndarray, ...]] = []
    for k in range(int(golden.get("num_layers", 1))):
        weights = [stacked(golden, kind, part, k, ways) for part in ("weight_ih", "weight_hh")]
        bias = [stacked(golden, kind, part, k, ways) for part in ("bias_ih", "bias_hh")]
        B = None if bias[0] is None or bias[1] is None else np.concatenate([bias[0], bias[1]], axis=1)
        rows = slice(k * len(ways), (k + 1) * len(ways))
        inputs = [x, *weights, B, None, golden["h_0"][rows]]
        if kind == "LSTM":
            inputs += [golden["c_0"][rows], None, stacked(golden, "", "weight_hr", k, ways)]
        Y, *last = reference.evaluate(node(golden, kind, len(ways)), inputs)
        x = Y.swapaxes(1, 2).reshape(*Y.shape[::2][:2], -1)
        states.append(tuple(last))
    finals = [np.concatenate(parts) for parts in zip(*states, strict=True)]
    return {"output": x, **dict(zip(("h_n", "c_n"), finals, strict=False))}


def node(golden: dict[str, np.ndarray], kind: str, D: int) -> Node:
    """The ONNX node that a PyTorch layer is."""
    attributes: dict[str, Any] = {"direction": "bidirectional" if D == 2 else "forward"}
    if kind == "GRU":
        attributes["linear_before_reset"] = 1
    if golden.get("nonlinearity") == "relu":
        attributes["activations"] = ("Relu",) * D
    return Node(
        kind,
        tuple("XWRBlhcpj"[: 9 if kind == "LSTM" else 6]),
        ("Y", "Y_h", "Y_c")[: 3 if kind == "LSTM" else 2],
        attributes,
    )


def stacked(golden: dict[str, np.ndarray], kind: str, part: str, layer: int, ways: list[str]) -> np.ndarray | None:
    """A weight of all directions, its gates in ONNX's order."""
    names = [f"{part}_l{layer}{way}" for way in ways]
    if names[0] not in golden:
        return None
    return np.stack([in_onnx_order(golden[name], kind) for name in names])


def in_onnx_order(weight: np.ndarray, kind: str) -> np.ndarray:
    """PyTorch's i, f, g, o as i, o, f, g; its r, z, n as z, r, n."""
    if kind == "LSTM":
        return to_onnx_gates(weight, "pytorch")
    if kind == "GRU":
        r, z, n = np.split(weight, 3)
        return np.concatenate([z, r, n])
    return weight


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in CASES:
        np.savez_compressed(FOLDER / f"{name}.npz", **make(name))
        print(name)
