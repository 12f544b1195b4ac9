"""onnxruntime's fused operators come apart into nodes that give what onnxruntime gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from operator_cases import f32, i8, scale, u8
from peers import current_peer
from test_reference import SESSION_OPTIONS

from lstm_engine import reference
from lstm_engine.errors import UnsupportedModelError
from lstm_engine.formats.onnx import read_onnx
from lstm_engine.passes.modernise import modernise

pytestmark = current_peer

Inputs = list[np.ndarray | None]


def one_node(op: str, inputs: Inputs, domain: str = "com.microsoft", outputs: int = 1, **attributes: Any) -> bytes:
    """A file of one node, all of whose inputs but the first are weights."""
    names = ["" if x is None else f"x{k}" for k, x in enumerate(inputs)]
    given = {name: x for name, x in zip(names, inputs, strict=True) if x is not None}
    made = [f"y{k}" if k in (0, outputs - 1) else "" for k in range(outputs)]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, names, made, domain=domain, **attributes)],
        "one",
        [onnx.helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, given["x0"].shape)],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in made if name],
        [onnx.numpy_helper.from_array(x, name) for name, x in given.items() if name != "x0"],
    )
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


FUSED: list[tuple[str, Inputs, dict[str, Any]]] = [
    ("Gelu", [f32(2, 3)], {}),
    ("FastGelu", [f32(2, 3)], {}),
    ("FastGelu", [f32(2, 3), f32(3)], {}),
    ("BiasGelu", [f32(2, 3), f32(3)], {}),
    ("QuickGelu", [f32(2, 3)], {}),
    ("QuickGelu", [f32(2, 3)], {"alpha": 0.9}),
    ("FusedMatMul", [f32(2, 3), f32(4, 3)], {"transB": 1, "alpha": 0.3}),
    ("TransposeMatMul", [f32(3, 2), f32(3, 4)], {"transA": 1}),
    ("FusedGemm", [f32(2, 3), f32(3, 4), f32(4)], {"activation": "Relu"}),
    ("FusedGemm", [f32(2, 3), f32(3, 4)], {"activation": "LeakyRelu", "activation_alpha": 0.2, "alpha": 0.5}),
    ("FusedConv", [f32(1, 2, 6), f32(3, 2, 3), f32(3)], {"activation": "Relu", "pads": [1, 1]}),
    ("FusedConv", [f32(1, 2, 6, 5), f32(3, 2, 3, 2), f32(3), f32(1, 3, 4, 4)], {"activation": "Tanh"}),
    ("FusedConv", [f32(1, 2, 6), f32(3, 2, 3)], {"activation": "LeakyRelu", "activation_params": [0.3]}),
    ("FusedConv", [f32(1, 2, 6), f32(3, 2, 3)], {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]}),
    ("FusedConv", [f32(1, 2, 6), f32(3, 2, 3)], {"activation": "Clip", "activation_params": [-1.0, 2.0]}),
    ("SkipLayerNormalization", [f32(2, 3, 4), f32(2, 3, 4), f32(4)], {}),
    ("SkipLayerNormalization", [f32(2, 3, 4), f32(2, 3, 4), f32(4), f32(4), f32(4)], {"outputs": 4, "epsilon": 0.1}),
    ("SkipSimplifiedLayerNormalization", [f32(2, 3, 4), f32(2, 3, 4), f32(4), f32(4)], {"outputs": 4}),
    ("SimplifiedLayerNormalization", [f32(2, 3, 4), f32(4)], {"domain": "", "epsilon": 0.1}),
    ("DynamicQuantizeMatMul", [f32(2, 9), i8(9, 4), scale(1)], {}),
    ("DynamicQuantizeMatMul", [f32(5, 2, 9), u8(9, 4), scale(4), u8(4), f32(4)], {}),
    ("Trilu", [f32(3, 4)], {"upper": 0}),
    ("ExpandDims", [f32(3, 4), np.array(1, np.int32)], {}),
]


@pytest.mark.parametrize(("op", "inputs", "attributes"), FUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_fused_operators_give_what_onnxruntime_gives(op: str, inputs: Inputs, attributes: dict[str, Any]) -> None:
    content = one_node(op, inputs, **attributes)
    graph = modernise(read_onnx(content))
    assert not reference.unsupported(graph)
    assert all(node.domain != "com.microsoft" for node in graph.nodes)
    session = onnxruntime.InferenceSession(content, SESSION_OPTIONS, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x0": inputs[0]})
    got = reference.run(graph, {"x0": inputs[0]}, dtype=np.float32)
    for ours, theirs in zip(got.values(), expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        ("FusedGemm", [f32(2, 3), f32(3, 4)], {"activation": "Affine"}, "activation 'Affine'"),
        ("SkipLayerNormalization", [f32(2, 4), f32(2, 4), f32(4)], {"outputs": 2}, "mean and inv_std_var"),
        ("SimplifiedLayerNormalization", [f32(2, 4), f32(4)], {"outputs": 2, "domain": ""}, "inv_std_var"),
        ("QLinearAveragePool", [f32(1, 4, 2)], {"channels_last": 1}, "channels_last"),
    ],
)
def test_what_they_are_asked_and_the_engine_does_not_do_is_refused(
    op: str, inputs: Inputs, attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        modernise(read_onnx(one_node(op, inputs, **attributes)))


def test_others_are_refused_by_name() -> None:
    graph = modernise(read_onnx(one_node("MatMulNBits", [f32(2, 3)])))
    assert reference.unsupported(graph) == ["MatMulNBits 'y0': operator com.microsoft.MatMulNBits is not implemented"]
