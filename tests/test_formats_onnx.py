"""Reading ONNX files, and bringing old operator forms to the one that the engine knows."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace

import builders
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstm_engine import formats
from lstm_engine.errors import ModelFormatError, UnsupportedModelError
from lstm_engine.formats.onnx import OLDEST_OPSET, read_onnx
from lstm_engine.graph import UNKNOWN_DTYPE, Graph
from lstm_engine.passes.modernise import CANONICAL_OPSET, modernise

F4 = np.dtype(np.float32)


def read_model(model: onnx.ModelProto) -> Graph:
    return read_onnx(model.SerializeToString())


def original_outputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def assert_modernised_equal(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> Graph:
    """The modernised graph gives onnxruntime's outputs of the original file, bit by bit."""
    graph = modernise(read_model(model))
    expected = original_outputs(model, feeds)
    got = builders.run_with_onnxruntime(graph, feeds)
    assert list(got) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    return graph


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---------------------------------------------------------------- what a file says


def test_reads_nodes_weights_and_shapes():
    model = builders.make_lstm_model(3, 4, peephole=True, sequence_lens=True, initial_states=True, clip=2.5)
    graph = read_model(model)
    (node,) = graph.nodes
    assert node.op == "LSTM"
    assert node.inputs == ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    assert dict(node.attributes) == {"hidden_size": 4, "direction": "forward", "clip": 2.5}
    assert [str(spec) for spec in graph.inputs] == [
        "X: float32[time, batch, 3]",
        "sequence_lens: int32[batch]",
        "initial_h: float32[1, batch, 4]",
        "initial_c: float32[1, batch, 4]",
    ]
    assert graph.outputs[0].shape == ("time", 1, "batch", 4)
    assert graph.opset == 17
    for tensor in model.graph.initializer:
        np.testing.assert_array_equal(graph.constants[tensor.name], numpy_helper.to_array(tensor))


def test_takes_path_pathlike_and_bytes(tmp_path):
    data = builders.make_lstm_model().SerializeToString()
    path = tmp_path / "model without suffix"
    path.write_bytes(data)
    for source in (path, str(path), data):
        assert formats.read(source).nodes[0].op == "LSTM"
    assert formats.read(path).origin == str(path)


def test_missing_path_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.onnx"):
        formats.read(tmp_path / "no.onnx")


def test_keywords_of_bare_weights_are_refused():
    with pytest.raises(TypeError, match="batch_first"):
        formats.read(builders.make_lstm_model().SerializeToString(), batch_first=True)


def test_onnx_is_imported_only_for_onnx_files(tmp_path):
    path = tmp_path / "m.npz"
    weights = {"W": draw(1, 8, 3), "R": draw(1, 8, 2)}
    np.savez(path, **weights)
    code = f"import sys; from lstm_engine import formats; formats.read({str(path)!r}); assert 'onnx' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8", "c16"])
def test_every_element_type(dtype, raw):
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    if np.dtype(dtype).kind in "if":
        values = -values
    tensor = numpy_helper.from_array(values, "k")
    if not raw:
        flat = values.view(np.uint16) if dtype == "f2" else values
        tensor = helper.make_tensor("k", tensor.data_type, values.shape, flat.flatten().tolist())
        if dtype == "f2":
            tensor = TensorProto(name="k", data_type=TensorProto.FLOAT16, dims=values.shape)
            tensor.int32_data.extend(flat.flatten().tolist())
    model = builders.make_model([helper.make_node("Identity", ["k"], ["y"])], [], [("y", values.dtype, [2, 3])])
    model.graph.initializer.append(tensor)
    constant = read_model(model).constants["k"]
    assert constant.dtype == values.dtype
    np.testing.assert_array_equal(constant, values)
    assert not constant.flags.writeable


@pytest.mark.parametrize("raw", [True, False])
def test_bfloat16_becomes_float32(raw):
    values = np.array([1.0, -2.5, 3.140625, np.inf], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    tensor = TensorProto(name="k", data_type=TensorProto.BFLOAT16, dims=[4])
    if raw:
        tensor.raw_data = bits.tobytes()
    else:
        tensor.int32_data.extend(bits.tolist())
    model = builders.make_model([helper.make_node("Identity", ["k"], ["y"])], [], [("y", np.float32, [4])])
    model.graph.initializer.append(tensor)
    constant = read_model(model).constants["k"]
    assert constant.dtype == F4
    np.testing.assert_array_equal(constant, values)


@pytest.mark.parametrize("kind", ["STRING", "FLOAT8E4M3FN", "INT4", "UINT4"])
def test_other_element_types_are_refused_by_name(kind):
    model = builders.make_lstm_model()
    model.graph.initializer.append(TensorProto(name="odd", data_type=getattr(TensorProto, kind), dims=[0]))
    with pytest.raises(UnsupportedModelError, match=rf"'odd'.*{kind}"):
        read_model(model)


def test_scalar_and_empty_constants_keep_their_shape():
    model = builders.make_model(
        [helper.make_node("Identity", ["s"], ["y"]), helper.make_node("Identity", ["e"], ["z"])],
        [],
        [("y", np.float32, []), ("z", np.int64, [0, 3])],
        {"s": np.float32(2), "e": np.zeros((0, 3), np.int64)},
    )
    graph = read_model(model)
    assert graph.constants["s"].shape == ()
    assert graph.constants["e"].shape == (0, 3)


def test_dimensions_may_be_numbers_names_or_unknown():
    model = builders.make_lstm_model()
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for index, value in enumerate((7, -1, "batch")):
        dims[index].Clear()
        setattr(dims[index], "dim_param" if isinstance(value, str) else "dim_value", value)
    dims.add()
    dims.add().dim_param = "?"
    dims.add().dim_param = "unk__12"
    assert read_model(model).inputs[0].shape == (7, None, "batch", None, None, "unk__12")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert read_model(model).inputs[0].shape is None


def test_initialisers_that_are_also_inputs_are_constants():
    draw_x = builders.random_weights(3, 4)
    node = helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y"], hidden_size=4)
    ports = [("X", np.float32, ["T", "B", 3])]
    outputs = [("Y", np.float32, ["T", 1, "B", 4])]
    graph = read_model(builders.make_model([node], ports, outputs, draw_x, inputs_too=True))
    assert [spec.name for spec in graph.inputs] == ["X"]
    assert set(graph.constants) == {"W", "R", "B"}


def test_unsorted_nodes_are_put_in_order():
    model = builders.make_stacked_like_pytorch()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    made: set[str] = {"input"}
    graph = read_model(model)
    made |= set(graph.constants)
    for node in graph.nodes:
        assert set(node.inputs) - {""} <= made
        made |= set(node.outputs)


def test_metadata_is_kept():
    model = builders.make_lstm_model()
    helper.set_model_props(model, {"vocabulary": "äöü", "author": "x"})
    assert dict(read_model(model).metadata) == {"vocabulary": "äöü", "author": "x"}


def test_attributes_of_every_kind():
    model = builders.make_lstm_model(activations=["Sigmoid", "Tanh", "Tanh"], activation_alpha=[0.5, 0.25], clip=1.5)
    model.graph.node[0].attribute.append(helper.make_attribute("tensor", numpy_helper.from_array(np.arange(3))))
    attributes = read_model(model).nodes[0].attributes
    assert attributes["activations"] == ("Sigmoid", "Tanh", "Tanh")
    assert attributes["activation_alpha"] == (0.5, 0.25)
    assert attributes["clip"] == 1.5
    np.testing.assert_array_equal(attributes["tensor"], [0, 1, 2])


def test_attributes_of_files_that_do_not_say_their_kind():
    model = builders.make_lstm_model(activations=["Sigmoid", "Tanh", "Tanh"])
    for attribute in model.graph.node[0].attribute:
        attribute.ClearField("type")
    attributes = read_model(model).nodes[0].attributes
    assert attributes["hidden_size"] == 4
    assert attributes["activations"] == ("Sigmoid", "Tanh", "Tanh")


def test_bodies_capture_outer_tensors():
    graph = read_model(builders.make_with_branches())
    node = next(node for node in graph.nodes if node.op == "If")
    body = node.attributes["then_branch"]
    assert {"copy", "W", "R", "B"} <= {name for inner in body.nodes for name in inner.inputs}
    assert "then_branch" in body.origin


def test_what_a_body_makes_itself_is_meant_before_what_is_outside():
    """An If and the end of its branch may make tensors of the same name; the branch's nodes come in any order."""
    nodes = [
        helper.make_node("Neg", ["y"], ["z"]),
        helper.make_node("Exp", ["x"], ["y"]),
    ]
    branches = [
        helper.make_graph(order, "branch", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])])
        for order in (nodes, nodes[::-1])
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    model = builders.make_model([node], [("c", bool, []), ("x", np.float32, [2])], [("y", np.float32, [2])], {})
    for body in read_model(model).subgraphs():
        assert [inner.op for inner in body.nodes] == ["Exp", "Neg"]


def test_body_without_types():
    model = builders.make_with_branches()
    for attribute in model.graph.node[1].attribute:
        attribute.g.output[0].ClearField("type")
    body = read_model(model).nodes[1].attributes["else_branch"]
    assert body.outputs[0].dtype == UNKNOWN_DTYPE
    assert body.outputs[0].shape is None


@pytest.mark.torch
def test_real_exports_of_the_installed_torch(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    path = tmp_path / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(5, 1, 3),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["input"],
            dynamic_axes={"input": {0: "time", 1: "batch"}},
        )
    x = draw(6, 2, 3)
    graph = modernise(read_onnx(path))
    assert [node.op for node in graph.nodes].count("LSTM") == 2
    got = list(builders.run_with_onnxruntime(graph, {"input": x}).values())
    with torch.no_grad():
        output, (h, c) = module(torch.from_numpy(x))
    for value, expected in zip(got, (output, h, c), strict=True):
        np.testing.assert_allclose(value, expected.numpy(), atol=1e-6)


# ---------------------------------------------------------------- operator sets, domains, functions


@pytest.mark.parametrize("opset", [1, OLDEST_OPSET - 1, onnx.defs.onnx_opset_version() + 1, -3, 2**40])
def test_operator_sets_out_of_range_are_refused(opset):
    model = builders.make_lstm_model()
    model.opset_import[0].version = opset
    with pytest.raises(UnsupportedModelError, match=str(opset)):
        read_model(model)


def test_no_operator_set_is_refused_with_the_operators():
    model = builders.make_lstm_model()
    del model.opset_import[:]
    with pytest.raises(UnsupportedModelError, match="LSTM"):
        read_model(model)


def test_contradictory_operator_sets():
    model = builders.make_lstm_model()
    model.opset_import.append(helper.make_opsetid("ai.onnx", 12))
    with pytest.raises(ModelFormatError, match="several versions"):
        read_model(model)


def test_long_name_of_the_standard_domain():
    model = builders.make_lstm_model()
    model.graph.node[0].domain = "ai.onnx"
    model.opset_import[0].domain = "ai.onnx"
    assert read_model(model).nodes[0].domain == ""


def test_unknown_domains_are_refused_where_they_are_used():
    model = builders.make_lstm_model()
    model.opset_import.append(helper.make_opsetid("custom.rnn", 1))
    read_model(model)
    model.graph.node[0].domain = "custom.rnn"
    with pytest.raises(UnsupportedModelError, match=r"LSTM of 'custom\.rnn'"):
        read_model(model)


def test_the_engines_own_domain_is_not_taken_from_an_onnx_file():
    model = builders.make_lstm_model()
    model.graph.node[0].domain = "lstm_engine"
    with pytest.raises(UnsupportedModelError, match="lstm_engine"):
        read_model(model)


def function(name: str, nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    return helper.make_function("local", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 17), LOCAL])


LOCAL = helper.make_opsetid("local", 1)


def call(name: str, source: str, target: str) -> onnx.NodeProto:
    return helper.make_node(name, [source], [target], domain="local")


def model_with_functions(*functions: onnx.FunctionProto) -> onnx.ModelProto:
    node = call(functions[0].name, "x", "y")
    ports = [("x", np.float32, [2])], [("y", np.float32, [2])]
    return builders.make_model([node], *ports, functions=functions, domains={"local": 1})


def test_local_functions_are_expanded():
    doubled = function("twice", [helper.make_node("Add", ["a", "a"], ["b"])])
    quadrupled = function("four", [call("twice", "a", "t"), call("twice", "t", "b")])
    graph = read_model(model_with_functions(quadrupled, doubled))
    assert [node.op for node in graph.nodes].count("Add") == 2
    x = np.array([1, 2], np.float32)
    got = builders.run_with_onnxruntime(modernise(graph), {"x": x})
    np.testing.assert_array_equal(got["y"], 4 * x)


def test_functions_that_call_themselves_are_refused():
    first = function("first", [call("second", "a", "b")])
    second = function("second", [call("first", "a", "b")])
    with pytest.raises(ModelFormatError, match="calls itself"):
        read_model(model_with_functions(first, second))


def test_functions_that_multiply_each_other_are_refused():
    chain = [function(f"f{i}", [call(f"f{i + 1}", "a", "t"), call(f"f{i + 1}", "t", "b")]) for i in range(60)]
    chain.append(function("f60", [helper.make_node("Neg", ["a"], ["b"])]))
    with pytest.raises(UnsupportedModelError, match="expand to over"):
        read_model(model_with_functions(*chain))


# ---------------------------------------------------------------- weights beside the model


@pytest.mark.parametrize("location", ["weights.bin", "sub folder/weights.bin"])
@pytest.mark.parametrize(("alignment", "length"), [(1, True), (4096, True), (64, False)])
def test_external_data(tmp_path, location, alignment, length):
    model = builders.make_tagger()
    path = tmp_path / "m.onnx"
    builders.save_with_external_data(model, path, location, alignment=alignment, length=length)
    graph = read_onnx(path)
    for tensor in model.graph.initializer:
        np.testing.assert_array_equal(graph.constants[tensor.name], numpy_helper.to_array(tensor))


def test_external_data_of_a_constant_node(tmp_path):
    value = draw(2, 3)
    (tmp_path / "c.bin").write_bytes(value.tobytes())
    tensor = numpy_helper.from_array(value, "c")
    builders.make_external(tensor, "c.bin")
    model = builders.make_model(
        [helper.make_node("Constant", [], ["y"], value=tensor)], [], [("y", np.float32, [2, 3])]
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    np.testing.assert_array_equal(modernise(read_onnx(path)).constants["y"], value)


def test_external_data_by_a_relative_path(tmp_path, monkeypatch):
    builders.save_with_external_data(builders.make_lstm_model(), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    assert "W" in read_onnx("m.onnx").constants


def test_external_data_from_bytes_says_what_to_do(tmp_path):
    path = tmp_path / "m.onnx"
    builders.save_with_external_data(builders.make_lstm_model(), path)
    with pytest.raises(ModelFormatError, match="load the model by its path"):
        read_onnx(path.read_bytes())


def test_external_file_missing_says_where_to_put_it(tmp_path):
    path = tmp_path / "m.onnx"
    builders.save_with_external_data(builders.make_lstm_model(), path)
    os.unlink(tmp_path / "weights.bin")
    with pytest.raises(ModelFormatError, match=r"'weights\.bin' was not found; put it beside the model"):
        read_onnx(path)


def test_tensors_that_share_a_region(tmp_path):
    model = builders.make_lstm_model(4, 4)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    path = tmp_path / "m.onnx"
    builders.save_with_external_data(model, path)
    model = onnx.ModelProto.FromString(path.read_bytes())
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for index in range(50):
        copy = model.graph.initializer.add()
        copy.CopyFrom(tensors["W"])
        copy.name = f"copy{index}"
    path.write_bytes(model.SerializeToString())
    graph = read_onnx(path)
    np.testing.assert_array_equal(graph.constants["copy49"], graph.constants["W"])
    assert np.shares_memory(graph.constants["copy0"], graph.constants["copy49"])


# ---------------------------------------------------------------- old operator forms


def one_node(op: str, *, opset: int, inputs: int = 1, outputs: int = 1, constants: dict | None = None, **attributes):
    """A model of one operator over x of rank 3 and constants."""
    constants = constants or {}
    names = ["x", *constants][: max(inputs, 1 + len(constants))]
    made = [f"y{index}" for index in range(outputs)]
    node = helper.make_node(op, names, made, name="n", **attributes)
    return builders.make_model(
        [node], [("x", np.float32, None)], [(n, np.float32, None) for n in made], constants, opset
    )


X = draw(1, 6, 4)
OLD_FORMS = [
    ("Squeeze", 11, X, {"axes": [0]}),
    ("Squeeze", 7, X, {}),
    ("Unsqueeze", 9, X, {"axes": [0, 2]}),
    ("Slice", 7, X, {"starts": [1, 0], "ends": [-1, 1000], "axes": [1, 2]}),
    ("Slice", 9, X, {"starts": [0, 1], "ends": [1, 3]}),
    ("Pad", 7, X, {"pads": [0, 1, 0, 0, 2, 3], "value": 1.5}),
    ("Pad", 10, X, {"pads": [0, 1, 0, 0, 2, 3], "mode": "reflect"}),
    ("Clip", 7, X, {"min": -0.5, "max": 0.25}),
    ("Clip", 10, X, {"max": 0.25}),
    ("Clip", 6 + 1, X, {}),
    ("ReduceSum", 11, X, {"axes": [1], "keepdims": 0}),
    ("ReduceMean", 17, X, {"axes": [-1]}),
    ("ReduceMax", 12, X, {"axes": [0, 1], "keepdims": 0}),
    ("ReduceL2", 13, X, {}),
    ("Softmax", 11, X, {"axis": -1}),
    ("Dropout", 7, X, {"ratio": 0.5}),
    ("Dropout", 11, X, {}),
    ("ReduceProd", 9, X, {"keepdims": 0}),
]


@pytest.mark.parametrize(("op", "opset", "x", "attributes"), OLD_FORMS)
def test_attributes_become_inputs(op, opset, x, attributes):
    model = one_node(op, opset=opset, **attributes)
    graph = assert_modernised_equal(model, {"x": x})
    assert graph.opset == CANONICAL_OPSET
    assert op != "Dropout" or [node.op for node in graph.nodes] == ["Identity"]


@pytest.mark.parametrize(("opset", "attributes"), [(7, {"split": [1, 5]}), (11, {"split": [2, 4]}), (13, {}), (11, {})])
def test_split(opset, attributes):
    assert_modernised_equal(one_node("Split", opset=opset, outputs=2, axis=1, **attributes), {"x": X})


def test_top_k_of_set_9():
    model = one_node("TopK", opset=9, outputs=2, k=3, axis=1)
    model.graph.output[1].CopyFrom(builders.value_info("y1", np.int64, None))
    assert_modernised_equal(model, {"x": X})


@pytest.mark.parametrize("opset", [7, 9])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(opset, mode):
    scales = np.array([1, 1, 1.5, 2], np.float32)
    kwargs = {"scales": scales.tolist()} if opset == 7 else {"constants": {"scales": scales}}
    graph = assert_modernised_equal(one_node("Upsample", opset=opset, mode=mode, **kwargs), {"x": draw(1, 2, 4, 3)})
    assert [node.op for node in graph.nodes] == ["Resize"]


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_of_set_10(mode):
    scales = {"scales": np.array([1, 1, 2, 0.5], np.float32)}
    assert_modernised_equal(one_node("Resize", opset=10, mode=mode, constants=scales), {"x": draw(1, 2, 4, 6)})


def test_scatter_and_batch_normalization():
    indices = {"i": np.array([[[0, 1, 0, 0]]]), "u": draw(1, 1, 4)}
    graph = assert_modernised_equal(one_node("Scatter", opset=9, axis=1, constants=indices), {"x": X})
    assert graph.nodes[0].op == "ScatterElements"
    parameters = {name: np.abs(draw(6, seed=i)) for i, name in enumerate("abcd")}
    assert_modernised_equal(one_node("BatchNormalization", opset=8, constants=parameters), {"x": X})


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_old_softmax_says_from_where_it_flattens(op):
    old = modernise(read_model(one_node(op, opset=11)))
    assert dict(old.nodes[0].attributes) == {"flatten_from": 1}
    assert dict(modernise(read_model(one_node(op, opset=11, axis=2))).nodes[0].attributes) == {"flatten_from": 2}
    assert dict(modernise(read_model(one_node(op, opset=11, axis=-1))).nodes[0].attributes) == {"axis": -1}
    assert dict(modernise(read_model(one_node(op, opset=13, axis=1))).nodes[0].attributes) == {"axis": 1}


@pytest.mark.parametrize(
    "attributes",
    [
        {"value": numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3))},
        {"value_float": 1.5},
        {"value_floats": [1.0, 2.0]},
        {"value_int": 3},
        {"value_ints": [3, 4]},
    ],
)
def test_constants(attributes):
    model = builders.make_model(
        [helper.make_node("Constant", [], ["k"], **attributes), helper.make_node("Add", ["k", "k"], ["y"])],
        [],
        [("y", np.float32 if "int" not in next(iter(attributes)) else np.int64, None)],
        opset=13,
    )
    graph = assert_modernised_equal(model, {})
    assert [node.op for node in graph.nodes] == ["Add"]
    assert "k" in graph.constants


def test_constant_fill_of_old_pytorch_exports():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("ConstantFill", ["s"], ["y"], input_as_shape=1, value=0.0),
    ]
    model = builders.make_model(nodes, [("x", np.float32, [2, 3])], [("y", np.float32, [2, 3])], opset=8)
    got = builders.run_with_onnxruntime(modernise(read_model(model)), {"x": draw(2, 3)})
    np.testing.assert_array_equal(got["y"], np.zeros((2, 3), np.float32))


def test_clip_bounds_have_the_models_float_type():
    model = one_node("Clip", opset=10, min=0.0)
    model.graph.input[0].CopyFrom(builders.value_info("x", np.float64, None))
    model.graph.output[0].CopyFrom(builders.value_info("y0", np.float64, None))
    graph = modernise(read_model(model))
    assert [value.dtype for value in graph.constants.values()] == [np.dtype(np.float64)]


@pytest.mark.parametrize(
    ("op", "opset", "attributes", "message"),
    [
        ("BatchNormalization", 8, {"spatial": 0}, "spatial"),
        ("ConstantFill", 8, {"shape": [2]}, "ConstantFill"),
    ],
)
def test_old_forms_without_counterpart_are_refused(op, opset, attributes, message):
    with pytest.raises(UnsupportedModelError, match=message):
        modernise(read_model(one_node(op, opset=opset, **attributes)))


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Squeeze", {"axes": 1.5}),
        ("Clip", {"min": [1.0, 2.0]}),
        ("Slice", {"starts": "0"}),
        ("Softmax", {"axis": numpy_helper.from_array(np.arange(2))}),
        ("BatchNormalization", {"spatial": numpy_helper.from_array(np.arange(2))}),
        ("Pad", {"pads": "x"}),
    ],
)
def test_attributes_of_the_wrong_kind(op, attributes):
    with pytest.raises(ModelFormatError, match=next(iter(attributes))):
        modernise(read_model(one_node(op, opset=9, **attributes)))


def test_operators_it_does_not_know_stay():
    graph = modernise(read_model(one_node("FancyNewThing", opset=12, axes=[1], min=3.0)))
    assert graph.nodes[0].op == "FancyNewThing"
    assert dict(graph.nodes[0].attributes) == {"axes": (1,), "min": 3.0}


# ---------------------------------------------------------------- copies


def chain(*nodes: tuple[str, str, str], outputs: str) -> Graph:
    """Modernised graph of unary nodes (op, input, output) over x."""
    made = [helper.make_node(op, [source], [target]) for op, source, target in nodes]
    infos = [(name, np.float32, [2]) for name in outputs.split()]
    model = builders.make_model(made, [("x", np.float32, [2])], infos, opset=13)
    graph = assert_modernised_equal(model, {"x": draw(2)})
    assert [spec.name for spec in graph.outputs] == outputs.split()
    return graph


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def test_copies_go_and_outputs_keep_their_names():
    assert ops(chain(("Neg", "x", "a"), ("Identity", "a", "b"), ("Identity", "b", "y"), outputs="y")) == ["Neg"]
    assert ops(chain(("Identity", "x", "a"), ("Identity", "a", "b"), ("Neg", "b", "y"), outputs="y")) == ["Neg"]
    assert ops(chain(("Identity", "x", "y"), outputs="y")) == ["Identity"]
    assert ops(chain(("Neg", "x", "a"), ("Identity", "a", "y"), ("Identity", "a", "z"), outputs="y z")) == [
        "Neg",
        "Identity",
    ]
    assert ops(chain(("Neg", "x", "y"), ("Identity", "y", "z"), ("Abs", "z", "w"), outputs="y z w")) == [
        "Neg",
        "Identity",
        "Abs",
    ]
    assert ops(chain(("Neg", "x", "a"), ("Identity", "a", "y"), ("Abs", "a", "w"), outputs="y w")) == ["Neg", "Abs"]
    assert ops(chain(("Neg", "x", "y"), ("Identity", "y", "b"), ("Abs", "b", "w"), outputs="y w")) == ["Neg", "Abs"]


def test_a_constant_may_be_an_output():
    model = builders.make_model(
        [helper.make_node("Constant", [], ["k"], value_float=2.0), helper.make_node("Identity", ["k"], ["y"])],
        [],
        [("y", np.float32, []), ("k", np.float32, [])],
        opset=13,
    )
    graph = assert_modernised_equal(model, {})
    assert graph.nodes == ()
    assert set(graph.constants) == {"y", "k"}


def test_dropout_whose_mask_is_read_stays():
    model = one_node("Dropout", opset=12, outputs=2)
    model.graph.output[1].CopyFrom(builders.value_info("y1", np.bool_, None))
    graph = assert_modernised_equal(model, {"x": X})
    assert ops(graph) == ["Dropout"]


def test_training_dropout_stays():
    constants = {"ratio": np.float32(0.5), "training": np.bool_(True)}
    graph = modernise(read_model(one_node("Dropout", opset=13, constants=constants)))
    assert ops(graph) == ["Dropout"]
    constants["training"] = np.bool_(False)
    assert ops(modernise(read_model(one_node("Dropout", opset=13, constants=constants)))) == ["Identity"]


@pytest.mark.parametrize("flag", [True, False])
def test_copies_around_and_inside_bodies(flag):
    model = builders.make_with_branches()
    graph = assert_modernised_equal(model, {"X": draw(5, 2, 3), "flag": np.array(flag)})
    assert ops(graph) == ["If"]
    for body in graph.subgraphs():
        assert [node.op for node in body.nodes] == ["Mul", "LSTM"]
        assert body.opset == CANONICAL_OPSET


def test_a_name_that_a_body_defines_again_is_not_captured():
    body = helper.make_graph(
        [helper.make_node("Neg", ["copy"], ["a"]), helper.make_node("Mul", ["a", "a"], ["body.y"])],
        "body",
        [],
        [builders.value_info("body.y", np.float32, None)],
    )
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Identity", ["a"], ["copy"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body),
    ]
    ports = [("x", np.float32, [2]), ("flag", np.bool_, [])]
    graph = modernise(read_model(builders.make_model(nodes, ports, [("y", np.float32, [2])])))
    inner = next(graph.subgraphs())
    assert inner.nodes[0].inputs == ("copy",)
    assert "copy" in graph.producers()


def test_whole_networks_stay_the_same():
    x = draw(5, 2, 3)
    for opset in (9, 11, 13, 17, 20):
        for bidirectional in (False, True):
            model = builders.make_stacked_like_pytorch(bidirectional=bidirectional, opset=opset)
            assert_modernised_equal(model, {"input": x})
        assert_modernised_equal(builders.make_with_computed_weights(opset=opset), {"X": x})
        ids = np.array([[1, 2], [3, 10], [0, 5]])
        assert_modernised_equal(builders.make_tagger(opset=opset), {"ids": ids})


def test_modernising_twice_changes_nothing():
    once = modernise(read_model(builders.make_stacked_like_pytorch(opset=9)))
    twice = modernise(once)
    assert [replace(node, attributes={}) for node in twice.nodes] == [replace(n, attributes={}) for n in once.nodes]
    assert set(twice.constants) == set(once.constants)
