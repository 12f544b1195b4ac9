"""Half precision loads, runs in float32 and says so."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import lstm_engine as le
from lstm_engine.graph import Node
from lstm_engine.reference import evaluate
from lstm_engine.vocabulary import COMPUTED_IN

HALVES = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}


def half_model(kind: int, opset: int = 22) -> tuple[bytes, dict[str, np.ndarray]]:
    """An LSTM whose every tensor is of half precision, cast to and fro; and its weights."""
    random = np.random.default_rng(1)
    shapes = {"W": (1, 8, 3), "R": (1, 8, 2), "B": (1, 16)}
    weights = {name: random.standard_normal(shape).astype(HALVES[kind]) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Cast", ["x"], ["x32"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["x32"], ["x16"], to=kind),
        helper.make_node("LSTM", ["x16", "W", "R", "B"], ["Y", "Y_h"], hidden_size=2),
        helper.make_node("ConstantOfShape", ["shape"], ["two"], value=helper.make_tensor("v", kind, [1], [2.0])),
        helper.make_node("Mul", ["Y", "two"], ["y"]),
    ]
    constants = [helper.make_tensor(n, kind, v.shape, v.astype(np.float32).ravel()) for n, v in weights.items()]
    constants.append(helper.make_tensor("shape", TensorProto.INT64, [1], [1]))
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("x", kind, ["T", "B", 3])],
        [helper.make_tensor_value_info("y", kind, None), helper.make_tensor_value_info("Y_h", kind, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return model.SerializeToString(), weights


@pytest.mark.parametrize("kind", HALVES, ids=["float16", "bfloat16"])
def test_half_precision_runs_in_single_and_says_so(kind: int) -> None:
    content, weights = half_model(kind)
    model = le.load(content)
    assert [spec.dtype for spec in (*model.inputs, *model.outputs)] == [np.float32] * 3
    assert "float32" in model.metadata[COMPUTED_IN]
    x = np.random.default_rng(2).standard_normal((4, 2, 3)).astype(HALVES[kind])
    single = {name: value.astype(np.float32) for name, value in weights.items()}
    inputs = [x.astype(np.float32), single["W"], single["R"], single["B"]]
    expected = evaluate(Node("LSTM", tuple("XWRB"), ("Y", "Y_h")), inputs)
    got = model.run({"x": x.astype(np.float32)})
    np.testing.assert_allclose(got["y"], 2 * expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["Y_h"], expected[1], rtol=1e-5, atol=1e-6)


def test_float16_feeds_are_taken() -> None:
    model = le.load(half_model(TensorProto.FLOAT16)[0])
    x = np.random.default_rng(2).standard_normal((4, 2, 3)).astype(np.float16)
    np.testing.assert_array_equal(model.run({"x": x})["y"], model.run({"x": x.astype(np.float32)})["y"])


def test_single_precision_says_nothing() -> None:
    content, _ = half_model(TensorProto.FLOAT16)
    single = onnx.load_from_string(content)
    for each in (*single.graph.input, *single.graph.output):
        each.type.tensor_type.elem_type = TensorProto.FLOAT
    kept = [t for t in single.graph.initializer if t.data_type != TensorProto.FLOAT16]
    made = [
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(t).astype(np.float32), t.name)
        for t in single.graph.initializer
        if t.data_type == TensorProto.FLOAT16
    ]
    del single.graph.initializer[:]
    single.graph.initializer.extend([*kept, *made])
    single.graph.node[1].attribute[0].i = TensorProto.FLOAT
    single.graph.node[3].attribute[0].t.CopyFrom(helper.make_tensor("v", TensorProto.FLOAT, [1], [2.0]))
    assert COMPUTED_IN not in le.load(single.SerializeToString()).metadata
