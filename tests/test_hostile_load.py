"""Hostile and contradictory models beyond the file format: through load, run and stream."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from test_hostile import little_memory, quick, sample

import lstm_engine as le


def with_weights(**arrays: np.ndarray) -> bytes:
    weights = builders.random_weights(3, 4, 1, bias=True, peephole=True, seed=0, dtype=np.float32)
    return builders.make_lstm_model(3, 4, peephole=True, weights={**weights, **arrays}).SerializeToString()


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


WRONG = {
    "W rank": ({"W": zeros(16, 3)}, r"W must be \[D, 4H, I\]"),
    "W gates": ({"W": zeros(1, 12, 3)}, r"W must be \[D, 4H, I\] = \[1, 16, "),
    "W directions": ({"W": zeros(2, 16, 3)}, r"W must be"),
    "R rank": ({"R": zeros(1, 16)}, r"R must be \[D, 4H, H\]"),
    "R columns": ({"R": zeros(1, 16, 5)}, r"R must be .* = \[1, 16, 4\], got \[1, 16, 5\]"),
    "B": ({"B": zeros(1, 16)}, r"B must be \[D, 8H\] = \[1, 32\], got \[1, 16\]"),
    "B rank": ({"B": zeros(32)}, r"B must be"),
    "P": ({"P": zeros(1, 8)}, r"P must be \[D, 3H\] = \[1, 12\]"),
    "types": ({"R": np.zeros((1, 16, 4))}, "one type"),
}


@pytest.mark.parametrize(("arrays", "match"), WRONG.values(), ids=WRONG.keys())
def test_weights_that_do_not_fit_are_refused_at_load(arrays, match):
    with quick(), pytest.raises(le.ModelFormatError, match=match) as caught:
        le.load(with_weights(**arrays))
    assert "LSTM 'lstm'" in str(caught.value)


def test_all_faults_of_a_layer_at_once():
    with pytest.raises(le.ModelFormatError) as caught:
        le.load(with_weights(B=zeros(1, 16), P=zeros(1, 8)))
    assert "B must be" in str(caught.value)
    assert "P must be" in str(caught.value)


def test_hidden_size_zero():
    weights = {"W": zeros(1, 0, 3), "R": zeros(1, 0, 0), "B": zeros(1, 0)}
    with quick(), pytest.raises(le.LstmEngineError):
        le.load(builders.make_lstm_model(3, 0, weights=weights).SerializeToString()).run(zeros(2, 1, 3))


def model_of(nodes, inputs, outputs, constants=None) -> bytes:
    """Nodes over float inputs and outputs {name: dims}."""
    infos = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in each.items()] for each in (inputs, outputs)
    ]
    initialisers = [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()]
    graph = helper.make_graph(nodes, "bomb", *infos, initialisers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


BOMBS = {
    "Expand": model_of(
        [helper.make_node("Expand", ["x", "s"], ["y"])], {"x": [1, 1]}, {"y": None}, {"s": np.array([1 << 20, 1 << 20])}
    ),
    "Tile": model_of([helper.make_node("Tile", ["x", "s"], ["y"])], {"x": [1, 1]}, {"y": None}, {"s": np.array([1 << 18, 1 << 18])}),
    "ConstantOfShape": model_of(
        [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])],
        {"x": [1]}, {"y": None}, {"s": np.array([1 << 40])},
    ),
    "Expand doubling": model_of(
        [helper.make_node("Concat", [f"x{i}", f"x{i}"], [f"x{i + 1}"], axis=0) for i in range(60)],
        {"x0": [1, 1]}, {"x60": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS.keys())
def test_sizes_a_file_asks_for_are_bounded(content):
    with quick(), little_memory(64 << 20), pytest.raises(le.LstmEngineError):
        load_and_run(content)


def load_and_run(content: bytes) -> None:
    model = le.load(content)
    model.run(np.zeros([d if d else 1 for d in model.inputs[0].shape], np.float32))


def body_of(inputs: dict[str, int], nodes, outputs) -> onnx.GraphProto:
    ins = [helper.make_tensor_value_info(n, kind, []) for n, kind in inputs.items()]
    return helper.make_graph(nodes, "body", ins, [onnx.ValueInfoProto(name=n) for n in outputs])


PAIR = helper.make_node("SequenceConstruct", ["x", "x"], ["pair"])
PUT_IN = body_of(
    {"i": TensorProto.INT64, "go": TensorProto.BOOL, "held": TensorProto.FLOAT},
    [helper.make_node("SequenceInsert", ["held", "x"], ["more"]), helper.make_node("Identity", ["go"], ["on"])],
    ["on", "more"],
)
SEQUENCES = {
    "constructed": [helper.make_node("SequenceConstruct", ["x", "x"], ["y"])],
    "split": [helper.make_node("SplitToSequence", ["x"], ["y"], axis=0)],
    "handed on": [PAIR, helper.make_node("Identity", ["pair"], ["y"])],
    "of a branch": [
        helper.make_node("If", ["yes"], ["y"], then_branch=body_of({}, [PAIR], ["pair"]), else_branch=body_of({}, [PAIR], ["pair"]))
    ],
    "captured": [
        PAIR,
        helper.make_node("If", ["yes"], ["y"], then_branch=body_of({}, [], ["pair"]), else_branch=body_of({}, [], ["pair"])),
    ],
    "of a loop": [
        helper.make_node("SequenceEmpty", [], ["none"]),
        helper.make_node("Loop", ["two", "", "none"], ["y"], body=PUT_IN),
    ],
}  # fmt: skip


@pytest.mark.parametrize("nodes", SEQUENCES.values(), ids=SEQUENCES)
def test_a_sequence_is_no_output(nodes):
    """The file says that the output is a tensor."""
    content = model_of(nodes, {"x": [2, 3]}, {"y": None}, {"yes": np.array(True), "two": np.array(2)})
    with quick(), pytest.raises(le.UnsupportedModelError, match="output 'y': a sequence of tensors"):
        le.load(content)


def test_a_sequence_within_is_taken():
    nodes = [*SEQUENCES["handed on"][:1], helper.make_node("ConcatFromSequence", ["pair"], ["y"], axis=0)]
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(le.load(model_of(nodes, {"x": [2, 3]}, {"y": None})).run(x)["y"], [*x, *x])


FLOAT_INDICES = {
    "MaxUnpool": ([2, 1, 1, 1], {"kernel_shape": (2, 2)}, 1),
    "RotaryEmbedding": ([1, 2, 3, 4], {}, 3),
}


@pytest.mark.parametrize("op", FLOAT_INDICES)
def test_operands_of_a_type_that_the_operator_does_not_take(op):
    dims, attributes, wrong = FLOAT_INDICES[op]
    node = helper.make_node(op, ["x"] * (wrong + 1), ["y"], **attributes)
    model = onnx.load_from_string(model_of([node], {"x": dims}, {"y": None}))
    model.opset_import[0].version = 23
    with quick(), pytest.raises(le.InputError, match=f"{op}.*: input {wrong} must be integers, got float32"):
        load_and_run(model.SerializeToString())


def test_an_input_of_an_absurd_declared_size_is_not_allocated():
    node = helper.make_node("Relu", ["x"], ["y"])
    content = model_of([node], {"x": [1, 1 << 34]}, {"y": [1, 1 << 34]})
    with quick(), little_memory(64 << 20), pytest.raises(le.LstmEngineError):
        le.load(content).stream()


def test_an_empty_sequence():
    model = le.load(builders.make_lstm_model(3, 4, initial_states=True).SerializeToString())
    rng = np.random.default_rng(0)
    h, c = rng.standard_normal((2, 1, 2, 4)).astype(np.float32)
    result = model.run({"X": zeros(0, 2, 3), "initial_h": h, "initial_c": c})
    assert result["Y"].shape == (0, 1, 2, 4)
    np.testing.assert_array_equal(result["Y_h"], h)
    np.testing.assert_array_equal(result["Y_c"], c)


def exercise(content: bytes) -> None:
    """Load, stream and run a few rows; only the engine's own errors may come out."""
    try:
        with quick():
            model = le.load(content)
            dims = {s.name: [d if isinstance(d, int) else 2 for d in s.shape or ()] for s in model.inputs}
            if sum(int(np.prod(shape)) for shape in dims.values()) > 1 << 16:
                return
            feeds = {s.name: np.zeros(dims[s.name], s.dtype) for s in model.inputs}
            for attempt in (lambda: model.run(feeds), lambda: model.stream().feed(feeds), lambda: model.states):
                try:
                    attempt()
                except le.LstmEngineError:
                    continue
    except le.LstmEngineError:
        return


@pytest.mark.parametrize("kind", ["lstm", "tagger"])
@settings(max_examples=60, deadline=None, database=None)
@given(data=st.data())
def test_flipped_bits_never_crash_the_machine_code(kind, data):
    content = bytearray(sample(kind))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    exercise(bytes(content))


@settings(max_examples=100, deadline=None, database=None)
@given(data=st.data())
def test_changed_numbers_in_a_graph_never_crash_the_machine_code(data):
    """Attributes and constants changed within a readable file: the mutations that reach the kernels."""
    model = onnx.load_model_from_string(sample("tagger"))
    number = st.one_of(st.integers(-5, 300), st.sampled_from([-(1 << 31), 1 << 31, (1 << 62) - 1]))
    for _ in range(data.draw(st.integers(1, 3))):
        node = data.draw(st.sampled_from(list(model.graph.node)))
        integers = [a for a in node.attribute if a.type in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS)]
        tensors = [t for t in model.graph.initializer if t.name in node.input]
        if integers:
            attribute = data.draw(st.sampled_from(integers))
            value = data.draw(number)
            if attribute.type == onnx.AttributeProto.INT:
                attribute.i = value
            else:
                attribute.ints[:] = [value, *attribute.ints[1:]]
        elif tensors:
            tensor = data.draw(st.sampled_from(tensors))
            array = np.array(numpy_helper.to_array(tensor))
            if array.dtype.kind == "i" and array.size:
                array.reshape(-1)[0] = data.draw(number)
            else:
                array = array[..., : max(0, array.shape[-1] - 1)] if array.ndim else array
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    exercise(model.SerializeToString())
