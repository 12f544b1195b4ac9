"""The workloads' models, written as ONNX files: seeded weights of trained scale, ONNX's shapes and gate orders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .workloads import SPEECH_BINS, SPEECH_LAYERS, SPEECH_MIRRORED, SPEECH_SAMPLES, Workload

if TYPE_CHECKING:
    import onnx

Weights = dict[str, np.ndarray]
_RECTIFIED: Final = "rectified"


def draw_weights(workload: Workload) -> Weights:
    """W, R, B of each layer, uniform over ±1/√H; of the speech model also its front end and head."""
    if workload.kind == "speech":
        return _front(np.random.default_rng([5])) | _recurrent(workload, np.random.default_rng([6]))
    return _recurrent(workload, np.random.default_rng([1, workload.I, workload.H]))


def _recurrent(workload: Workload, rng: np.random.Generator) -> Weights:
    H, D, rows = workload.H, workload.D, workload.gates * workload.H
    bound = 1 / np.sqrt(H)
    shapes = {}
    for k in range(workload.L):
        inputs = workload.I if k == 0 else D * H
        shapes |= {f"W{k}": (D, rows, inputs), f"R{k}": (D, rows, H), f"B{k}": (D, 2 * rows)}
    if workload.kind == "tokens":
        shapes |= {"embedding": (workload.O, workload.I)}
    if workload.kind in ("speech", "tokens"):
        shapes |= {"head": (H, workload.O), "head_bias": (workload.O,)}
    return {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}


def _front(rng: np.random.Generator) -> Weights:
    """A windowed Fourier basis, then convolutions that keep the scale of what goes through them."""
    _, channels, window, _, _ = SPEECH_LAYERS[0]
    angles = 2 * np.pi * np.outer(np.arange(SPEECH_BINS), np.arange(window)) / window
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    basis = np.concatenate([np.cos(angles), -np.sin(angles)]) * hann / np.sqrt(window)
    weights: Weights = {"conv0": basis.reshape(channels, 1, window).astype(np.float32)}
    for k, (before, after, window, _, _) in enumerate(SPEECH_LAYERS[1:], 1):
        scale = np.sqrt(2 / (before * window))
        weights[f"conv{k}"] = rng.normal(0, scale, (after, before, window)).astype(np.float32)
        weights[f"conv{k}_bias"] = rng.uniform(-0.1, 0.1, after).astype(np.float32)
    return weights


def make_model(workload: Workload, weights: Weights) -> onnx.ModelProto:
    """The workload's network: recurrent layers alone, speech samples → probability, or tokens → logits."""
    import onnx
    from onnx import helper, numpy_helper

    network = {"speech": _speech, "tokens": _tokens}.get(workload.kind, _stack)
    nodes, inputs, outputs, more = network(workload)
    graph = helper.make_graph(
        nodes,
        workload.kind,
        [_tensor(name, *shape) for name, shape in inputs.items()],
        [_tensor(name, *shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (weights | more).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="bench")
    onnx.checker.check_model(model, full_check=True)
    return model


_Shapes = dict[str, tuple[int | str, ...]]
_Network = tuple[list[Any], _Shapes, _Shapes, Weights]


def _tensor(name: str, *shape: int | str) -> Any:
    from onnx import TensorProto, helper

    integers = {"lengths": TensorProto.INT32, "tokens": TensorProto.INT64}
    return helper.make_tensor_value_info(name, integers.get(name, TensorProto.FLOAT), shape)


def state_names(workload: Workload) -> dict[str, str]:
    """{state input: state output} of all layers."""
    if workload.kind == "speech":
        return {"h": "hn", "c": "cn"}
    layers = [""] if workload.L == 1 else [str(k) for k in range(workload.L)]
    letters = "hc" if workload.cell == "LSTM" else "h"
    return {f"initial_{letter}{k}": f"Y_{letter}{k}" for k in layers for letter in letters}


def _layer(workload: Workload, k: int, x: str, lengths: str, past: list[str], made: list[str]) -> Any:
    from onnx import helper

    direction: Mapping[str, str] = {"direction": "bidirectional"} if workload.D == 2 else {}
    reset: Mapping[str, int] = {"linear_before_reset": 1} if workload.cell == "GRU" else {}
    read = [x, f"W{k}", f"R{k}", f"B{k}", lengths, *past]
    return helper.make_node(
        workload.cell, read, made, f"{workload.cell.lower()}{k}", hidden_size=workload.H, **direction, **reset
    )


def _stack(workload: Workload) -> _Network:
    """X (and lengths), every layer's first states → Y of the last layer, every layer's last states; T and B open."""
    from onnx import helper

    H, D = workload.H, workload.D
    states = state_names(workload)
    each = len(states) // workload.L
    nodes, x = [], "X"
    for k in range(workload.L):
        last = k == workload.L - 1
        past, made = [*states][each * k : each * (k + 1)], [*states.values()][each * k : each * (k + 1)]
        y = "Y" if last else f"y{k}"
        nodes.append(_layer(workload, k, x, "lengths" if workload.kind == "ragged" else "", past, [y, *made]))
        if not last:  # Y [T,D,B,H] → the next layer's X [T,B,D·H]
            nodes.append(helper.make_node("Transpose", [y], [f"turned{k}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"turned{k}", "joined"], [f"x{k + 1}"]))
            x = f"x{k + 1}"
    inputs: _Shapes = {"X": ("T", "B", workload.I)} | ({"lengths": ("B",)} if workload.kind == "ragged" else {})
    inputs |= dict.fromkeys(states, (D, "B", H))
    outputs: _Shapes = {"Y": ("T", D, "B", H)} | dict.fromkeys(states.values(), (D, "B", H))
    more = {"joined": np.array([0, 0, -1], np.int64)} if workload.L > 1 else {}
    return nodes, inputs, outputs, more


def _tokens(workload: Workload) -> _Network:
    """tokens [T, B], every layer's first states → logits [T, B, O], every layer's last states."""
    from onnx import helper

    nodes, inputs, outputs, more = _stack(workload)
    del inputs["X"], outputs["Y"]
    before = helper.make_node("Gather", ["embedding", "tokens"], ["X"])
    behind = [
        helper.make_node("Squeeze", ["Y", "direction"], ["features"]),
        helper.make_node("MatMul", ["features", "head"], ["unbiased"]),
        helper.make_node("Add", ["unbiased", "head_bias"], ["logits"]),
    ]
    inputs = {"tokens": ("T", "B"), **inputs}
    outputs = {"logits": ("T", "B", workload.O), **outputs}
    return [before, *nodes, *behind], inputs, outputs, more | {"direction": np.array([1], np.int64)}


def _speech(workload: Workload) -> _Network:
    """samples [B, 576], h and c → probability [B, 1], hn and cn."""
    from onnx import helper

    more = {
        "channel": np.array([1], np.int64),
        "mirrored": np.array([0, 0, 0, 0, 0, SPEECH_MIRRORED], np.int64),
        "parts": np.array([SPEECH_BINS, SPEECH_BINS], np.int64),
        "last": np.array([2], np.int64),
        "front": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["samples", "channel"], ["mono"]),
        helper.make_node("Pad", ["mono", "mirrored"], ["padded"], mode="reflect"),
        helper.make_node("Conv", ["padded", "conv0"], ["spectrum"], strides=[SPEECH_LAYERS[0][3]]),
        helper.make_node("Split", ["spectrum", "parts"], ["real", "imaginary"], axis=1),
        helper.make_node("Mul", ["real", "real"], ["real2"]),
        helper.make_node("Mul", ["imaginary", "imaginary"], ["imaginary2"]),
        helper.make_node("Add", ["real2", "imaginary2"], ["power"]),
        helper.make_node("Sqrt", ["power"], [f"{_RECTIFIED}0"]),
    ]
    for k, (_, _, window, stride, _) in enumerate(SPEECH_LAYERS[1:], 1):
        padding = [window // 2, window // 2]
        read = [f"{_RECTIFIED}{k - 1}", f"conv{k}", f"conv{k}_bias"]
        nodes.append(helper.make_node("Conv", read, [f"convolved{k}"], strides=[stride], pads=padding))
        nodes.append(helper.make_node("Relu", [f"convolved{k}"], [f"{_RECTIFIED}{k}"]))
    nodes += [
        helper.make_node("Squeeze", [f"{_RECTIFIED}{len(SPEECH_LAYERS) - 1}", "last"], ["features"]),
        helper.make_node("Unsqueeze", ["features", "front"], ["sequence"]),
        _layer(workload, 0, "sequence", "", ["h", "c"], ["", "hn", "cn"]),
        helper.make_node("Squeeze", ["hn", "front"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["positive"]),
        helper.make_node("Gemm", ["positive", "head", "head_bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    state = (1, "B", workload.H)
    outputs: _Shapes = {"probability": ("B", workload.O), "hn": state, "cn": state}
    return nodes, {"samples": ("B", SPEECH_SAMPLES), "h": state, "c": state}, outputs, more
