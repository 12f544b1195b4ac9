"""Shape rules are what the definitions really return; what a file names is never allocated unseen."""

from __future__ import annotations

import time
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import CASES, Case, f32, i64

from lstm_engine import reference
from lstm_engine.errors import InputError, LstmEngineError, ModelFormatError, UnsupportedModelError
from lstm_engine.graph import Graph, Node, TensorSpec
from lstm_engine.passes.shapes import RULES, Known, constant, fold, infer, specialise
from lstm_engine.reference.kinds import KINDS
from lstm_engine.reference.layers import INPUTS
from lstm_engine.reference.registry import SEQUENCES

FLOAT = np.dtype(np.float32)


def graph_of(
    nodes: list[Node], feeds: dict[str, np.ndarray] | None = None, constants: dict[str, Any] | None = None
) -> Graph:
    inputs = [TensorSpec(name, x.dtype, (None,) * x.ndim) for name, x in (feeds or {}).items()]
    made = {name for node in nodes for name in node.outputs if name}
    read = {name for node in nodes for name in node.inputs}
    outputs = [TensorSpec(name, FLOAT, None) for name in sorted(made - read)]
    return Graph.build(nodes, inputs, outputs, constants or {}, 21)


def shapes_of(arrays: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: x.shape for name, x in arrays.items()}


# --- rules ------------------------------------------------------------------------------------------------------------

#: Inputs, by operator and position, whose value decides a shape.
SHAPE_INPUTS = {
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Clip": (),
    "Col2Im": (1, 2),
    "Compress": (1,),
    "ConstantOfShape": (0,),
    "CumSum": (),
    "DFT": (1, 2),
    "Dropout": (2,),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MelWeightMatrix": (0, 1),
    "NonZero": (0,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unique": (0,),
    "Unsqueeze": (1,),
}


def shape_inputs(op: str) -> tuple[int, ...]:
    return (1,) if op.startswith("Reduce") else SHAPE_INPUTS.get(op, ())


def test_every_operator_has_a_rule() -> None:
    assert RULES.keys() == reference.OPERATORS.keys() - SEQUENCES


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shapes_and_types_are_those_of_the_run(case: Case) -> None:
    """Once with only the shape-deciding inputs known, once with all."""
    expected = reference.evaluate(case.node, case.inputs)
    named = dict(zip(case.node.inputs, case.inputs, strict=True))
    arrays = {name: x for name, x in named.items() if x is not None}
    fixed = {name: arrays[name] for k, name in enumerate(case.node.inputs) if k in shape_inputs(case.op) and name}
    fed = {name: x for name, x in arrays.items() if name not in fixed}
    for feeds, constants in ((fed, fixed), ({}, arrays)):
        known = specialise(graph_of([case.node], feeds, constants), shapes_of(feeds))
        for name, value in zip(case.node.outputs, expected, strict=False):
            assert known.shapes[name] == value.shape
            assert known.dtypes[name] == value.dtype
            if (not feeds or case.op in ("Shape", "Size")) and not reference.OPERATORS[case.op].random:
                np.testing.assert_array_equal(known.values[name], value)
            else:
                assert name not in known.values


def test_what_is_drawn_at_random_is_never_folded() -> None:
    node = Node("RandomNormalLike", ("x",), ("y",))
    graph = graph_of([node], {}, {"x": f32(3)})
    assert "y" not in specialise(graph, {}).values
    assert fold(graph).nodes == (node,)


def has_shape_input(case: Case) -> bool:
    return any(k < len(case.inputs) and case.inputs[k] is not None for k in shape_inputs(case.op))


@pytest.mark.parametrize("case", [c for c in CASES if has_shape_input(c)], ids=str)
def test_a_shape_that_depends_on_data_is_refused(case: Case) -> None:
    named = dict(zip(case.node.inputs, case.inputs, strict=True))
    arrays = {name: x for name, x in named.items() if x is not None}
    with pytest.raises(UnsupportedModelError, match=f"{case.op} 'y0': data-dependent shape"):
        specialise(graph_of([case.node], arrays), shapes_of(arrays))


MISFITS = [
    ("Add", [f32(2, 3), f32(4)], {}, r"\[2, 3\] and \[4\] do not broadcast"),
    ("Add", [f32(2), i64(1, 2)], {}, "one type, got float32 and int64"),
    ("MatMul", [f32(2, 3), f32(4, 5)], {}, r"share K, got \[2, 3\] @ \[4, 5\]"),
    ("Gemm", [f32(2, 3), f32(4, 3)], {}, "share K"),
    (
        "Gemm",
        [f32(2, 3), f32(3, 4), f32(2, 3, 4)],
        {},
        r"C float32\[2, 3, 4\] does not broadcast to \[M, N\] = \[2, 4\]",
    ),
    ("Concat", [f32(2, 3), f32(3, 4)], {"axis": 0}, "every axis but 0"),
    ("Concat", [f32(2, 3), f32(3)], {"axis": 0}, "every axis but 0"),
    ("Concat", [f32(2, 3), f32(2, 3)], {"axis": 2}, "axis 2 does not exist"),
    ("Transpose", [f32(2, 3)], {"perm": (0, 0)}, "does not permute"),
    ("Squeeze", [f32(2, 1), i64(0)], {}, "axes of size 1"),
    ("Unsqueeze", [f32(2, 1), i64(0, 0)], {}, "twice"),
    ("Reshape", [f32(2, 3), i64(4, -1)], {}, "changes the number of elements"),
    ("Reshape", [f32(2, 3), i64(-1, -1)], {}, "ambiguous"),
    ("Reshape", [f32(2, 3), i64(-7, 3)], {}, "ambiguous"),
    ("Split", [f32(4), i64(1, 2)], {}, "does not fit an axis of 4"),
    ("Slice", [f32(4), i64(0), i64(2), i64(0), i64(0)], {}, "step"),
    ("Slice", [f32(4), i64(0), i64(2), i64(3)], {}, "do not fit"),
    ("Gather", [f32(4), i64(0)], {"axis": 1}, "axis 1 does not exist"),
    ("GatherND", [f32(4, 3), i64([0, 1, 2])], {}, "do not fit"),
    ("ScatterND", [f32(4, 3), i64([0]), f32(2)], {}, r"updates must be \[1, 3\]"),
    ("PRelu", [f32(3), f32(2, 3)], {}, "does not broadcast to x"),
    ("TopK", [f32(3), i64(4)], {}, r"0\.\.3"),
    ("ConstantOfShape", [i64(-1)], {}, "negative"),
    ("Range", [np.array(0), np.array(4), np.array(0)], {}, "delta"),
    ("Expand", [f32(3), i64(2)], {}, "broadcast"),
    ("Tile", [f32(3), i64(2, 2)], {}, "do not fit"),
    ("Pad", [f32(3), i64(-2, -2)], {}, "more off"),
    ("BatchNormalization", [f32(2, 3), f32(3), f32(3), f32(2), f32(3)], {}, r"\[C\] = \[3\], got \[2\]"),
    ("ReverseSequence", [f32(4, 3), i64(1, 2)], {}, "do not fit"),
    ("ReduceSum", [f32(4, 3), i64(2)], {}, "axis 2 does not exist"),
    ("Softmax", [f32(4, 3)], {"axis": 2}, "axis 2 does not exist"),
    ("ArgMax", [f32(0, 3)], {}, "empty"),
]


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"), MISFITS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_what_does_not_fit_is_refused_before_it_runs(
    op: str, inputs: list[np.ndarray], attributes: dict[str, Any], message: str
) -> None:
    node = Node(op, tuple(f"x{k}" for k in range(len(inputs))), ("y",), attributes)
    with pytest.raises(ModelFormatError, match=f"^{op} 'y': .*{message}"):
        infer(node, [Known(x.shape, x.dtype, x) for x in inputs])


@st.composite
def damaged(draw: st.DrawFn) -> Case:
    """A case with one input cut, grown, unstacked or shifted, or on another axis."""
    case = draw(st.sampled_from([c for c in CASES if c.inputs]))
    k = draw(st.sampled_from([k for k, x in enumerate(case.inputs) if x is not None]))
    x = case.inputs[k]
    damage = draw(st.sampled_from(["cut", "grow", "unstack", "shift"]))
    if damage == "cut" and x.ndim:
        x = x[..., : draw(st.integers(0, x.shape[-1]))]
    if damage == "grow":
        x = x[None]
    if damage == "unstack" and x.ndim and len(x):
        x = np.asarray(x[0])
    if damage == "shift" and x.dtype != bool:
        by = draw(st.integers(-2, 2))
        x = np.asarray(x + by if x.dtype.kind == "f" else x.astype(np.int64) + by).astype(x.dtype)
    attributes = dict(case.attributes)
    if "axis" in attributes:
        attributes["axis"] = draw(st.integers(-4, 4))
    inputs = [x if j == k else other for j, other in enumerate(case.inputs)]
    return replace(case, inputs=inputs, attributes=attributes)


@settings(max_examples=500, deadline=None)
@given(damaged())
def test_rules_and_definitions_never_disagree(case: Case) -> None:
    """Both refuse what does not fit with an error of the engine's; where both answer, they answer alike."""
    known = [None if x is None else Known(x.shape, x.dtype, x) for x in case.inputs]
    try:
        expected = reference.evaluate(case.node, case.inputs)
        inferred = infer(case.node, known)
    except LstmEngineError:
        return
    assert [(k.shape, k.dtype) for k in inferred] == [(x.shape, x.dtype) for x in expected]


# --- recurrent layers -------------------------------------------------------------------------------------------------

T, B, I, H, P = 5, 3, 4, 2, 6  # noqa: E741
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(op: str, D: int = 1, layout: int = 0, projected: bool = False) -> dict[str, np.ndarray]:
    G, width = GATES[op], P if projected else H
    swap = (lambda *s: (s[1], s[0], s[2])) if layout else (lambda *s: s)
    inputs = {
        "X": f32(*swap(T, B, I)),
        "W": f32(D, G * H, I),
        "R": f32(D, G * H, width),
        "B": f32(D, 2 * G * H),
        "sequence_lens": np.full(B, T, np.int32),
        "initial_h": f32(*swap(D, B, width)),
    }
    if op == "LSTM":
        inputs |= {"initial_c": f32(*swap(D, B, H)), "P": f32(D, 3 * H)}
    if projected:
        inputs["projection"] = f32(D, P, H)
    return inputs


def recurrent_node(op: str, inputs: dict[str, Any], **attributes: Any) -> Node:
    return Node(op, tuple(inputs), ("Y", "Y_h", "Y_c")[: 3 if op == "LSTM" else 2], attributes)


@pytest.mark.parametrize(("op", "projected"), [("LSTM", False), ("LSTM", True), ("GRU", False), ("RNN", False)])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("layout", [0, 1])
def test_recurrent_shapes(op: str, direction: str, layout: int, projected: bool) -> None:
    inputs = recurrent(op, 1 + (direction == "bidirectional"), layout, projected)
    node = recurrent_node(op, inputs, direction=direction, layout=layout)
    known = specialise(graph_of([node], inputs), shapes_of(inputs))
    for name, value in zip(node.outputs, reference.evaluate(node, list(inputs.values())), strict=True):
        assert (known.shapes[name], known.dtypes[name]) == (value.shape, value.dtype)


@pytest.mark.parametrize("op", GATES)
def test_a_recurrent_layer_of_constants_is_not_folded(op: str) -> None:
    inputs = recurrent(op)
    graph = graph_of([recurrent_node(op, inputs)], {}, inputs)
    assert not {"Y", "Y_h"} & specialise(graph, {}).values.keys()
    assert len(fold(graph).nodes) == 1


WRONG = [
    ("X", f32(T, I), r"X must be \[T, B, I\], got rank 2: \[5, 4\]"),
    ("X", f32(T, B, 7), r"W must be \[D, 4H, I\] = \[1, 8, 7\], got \[1, 8, 4\]"),
    ("W", f32(8, I), r"W must be \[D, 4H, I\], got rank 2"),
    ("W", f32(2, 8, I), r"W must be \[D, 4H, I\] = \[1, 8, 4\], got \[2, 8, 4\]"),
    ("R", f32(1, 8, 3), r"R must be \[D, 4H, H\] = \[1, 8, 2\], got \[1, 8, 3\]"),
    ("B", f32(1, 8), r"B must be \[D, 8H\] = \[1, 16\], got \[1, 8\]"),
    ("sequence_lens", np.ones(4, np.int32), r"sequence_lens must be \[B\] = \[3\], got \[4\]"),
    ("sequence_lens", f32(3), "sequence_lens must be integers, got float32"),
    ("initial_h", f32(1, 1, H), r"initial_h must be \[D, B, H\] = \[1, 3, 2\], got \[1, 1, 2\]"),
    ("initial_c", f32(B, H), r"initial_c must be \[D, B, H\], got rank 2"),
    ("P", f32(1, 8), r"P must be \[D, 3H\] = \[1, 6\], got \[1, 8\]"),
    ("W", f32(1, 8, I).astype(np.float64), "all inputs must have one type, got float32 and float64"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_weights_that_do_not_fit_are_named(name: str, value: np.ndarray, message: str) -> None:
    inputs = recurrent("LSTM") | {name: value}
    with pytest.raises(ModelFormatError, match=f"LSTM 'Y': inputs do not fit: {message}"):
        specialise(graph_of([recurrent_node("LSTM", inputs, hidden_size=H)], inputs), shapes_of(inputs))


def test_all_faults_of_a_layer_are_listed_at_once() -> None:
    inputs = recurrent("LSTM") | {"W": f32(8, 4), "P": f32(1, 8), "initial_c": f32(1, 1, H)}
    with pytest.raises(ModelFormatError, match="3 faults") as caught:
        specialise(graph_of([recurrent_node("LSTM", inputs)], inputs), shapes_of(inputs))
    assert all(f"- {name} must be" in str(caught.value) for name in ("W", "P", "initial_c"))


def test_the_dropped_projection_of_some_exporters_is_found() -> None:
    """hidden_size is the projected size, the states have the true one."""
    inputs = {"X": f32(T, B, I), "W": f32(1, 16, I), "R": f32(1, 16, 4), "B": f32(1, 32)}
    inputs |= {"sequence_lens": np.full(B, T), "initial_h": f32(1, B, 4), "initial_c": f32(1, B, 16)}
    with pytest.raises(ModelFormatError, match=r"initial_c must be \[D, B, H\] = \[1, 3, 4\], got \[1, 3, 16\]"):
        specialise(graph_of([recurrent_node("LSTM", inputs, hidden_size=4)], inputs), shapes_of(inputs))


def test_hidden_size_0_is_refused() -> None:
    inputs = {"X": f32(T, B, I), "W": f32(1, 0, I), "R": f32(1, 0, 0)}
    with pytest.raises(ModelFormatError, match="hidden_size must be positive"):
        specialise(graph_of([recurrent_node("LSTM", inputs)], inputs), shapes_of(inputs))


@pytest.mark.parametrize("op", GATES)
def test_no_steps_and_no_rows_have_shapes(op: str) -> None:
    inputs = recurrent(op)
    inputs = {name: inputs[name] for name in ("X", "W", "R")}
    node = Node(op, tuple(inputs), ("Y", "Y_h"), {})
    for shape in ((0, 3, 4), (5, 0, 4)):
        known = specialise(graph_of([node], inputs), shapes_of(inputs) | {"X": shape})
        assert known.shapes["Y"] == (shape[0], 1, shape[1], H)
        assert known.shapes["Y_h"] == (1, shape[1], H)


# --- chains -----------------------------------------------------------------------------------------------------------


def exporter_chain() -> Graph:
    """Zero states from the batch size, weights from slices: what exporters write."""
    nodes = [
        Node("Shape", ("x",), ("s",)),
        Node("Gather", ("s", "one"), ("batch",)),
        Node("Unsqueeze", ("batch", "axis0"), ("batch1",)),
        Node("Concat", ("layers", "batch1", "hidden"), ("state_shape",), {"axis": 0}),
        Node("ConstantOfShape", ("state_shape",), ("zeros",)),
        Node("Slice", ("raw", "axis0", "eight"), ("half",)),
        Node("Unsqueeze", ("half", "axis0"), ("W",)),
        Node("LSTM", ("x", "W", "R", "", "", "zeros", "zeros"), ("Y", "Y_h", "Y_c"), {"hidden_size": 2}),
        Node("Squeeze", ("Y", "ones"), ("y",)),
    ]
    constants = {"one": np.array(1), "axis0": i64(0), "layers": i64(1), "hidden": i64(2), "ones": i64(1)}
    constants |= {"raw": f32(12, 4), "eight": i64(8), "R": f32(1, 8, 2)}
    x = TensorSpec("x", FLOAT, ("T", "B", 4))
    return Graph.build(nodes, [x], [TensorSpec("y", FLOAT, ("T", "B", 2))], constants, 21)


def test_values_follow_from_shapes() -> None:
    graph = exporter_chain()
    known = specialise(graph, {"x": (7, 3, 4)})
    assert known.values["state_shape"].tolist() == [1, 3, 2]
    assert known.values["zeros"].shape == (1, 3, 2)
    np.testing.assert_array_equal(known.values["W"], graph.constants["raw"][None, :8])
    assert known.shapes["y"] == (7, 3, 2)
    assert not {"x", "Y", "y"} & known.values.keys()


def test_fold_replaces_weight_chains_and_nothing_else() -> None:
    graph = exporter_chain()
    folded = fold(graph)
    assert [node.op for node in folded.nodes if node.op in ("Slice", "Unsqueeze")] == ["Unsqueeze"]
    np.testing.assert_array_equal(folded.constants["W"], graph.constants["raw"][None, :8])
    assert "raw" not in folded.constants
    x = f32(7, 3, 4)
    np.testing.assert_array_equal(reference.run(folded, {"x": x})["y"], reference.run(graph, {"x": x})["y"])
    assert fold(folded).nodes == folded.nodes


def test_a_graph_of_constants_folds_to_its_outputs() -> None:
    nodes = [Node("Constant", (), ("a",), {"value": f32(3)}), Node("Neg", ("a",), ("b",))]
    folded = fold(graph_of(nodes))
    assert not folded.nodes
    assert folded.constants.keys() == {"b"}


def test_fold_leaves_what_it_does_not_know() -> None:
    nodes = [Node("Frobnicate", ("w",), ("a",)), Node("Neg", ("w",), ("b",)), Node("Add", ("a", "b"), ("c",))]
    folded = fold(graph_of(nodes, {}, {"w": f32(3)}))
    assert [node.op for node in folded.nodes] == ["Frobnicate", "Add"]
    with pytest.raises(UnsupportedModelError, match="Frobnicate 'a'"):
        specialise(folded, {})


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_optional_inputs_take_their_size_from_the_others() -> None:
    specs = [TensorSpec("x", FLOAT, ("T", "B", 4)), TensorSpec("h", FLOAT, (1, "B", 2), optional=True)]
    graph = Graph.build([Node("Neg", ("h",), ("y",))], specs, [TensorSpec("y", FLOAT, None)], {}, 21)
    assert specialise(graph, {"x": (5, 3, 4)}).shapes["y"] == (1, 3, 2)
    assert specialise(graph, {"x": (5, 3, 4), "h": (1, 9, 2)}).shapes["y"] == (1, 9, 2)


def test_an_optional_scalar_needs_no_size() -> None:
    rate = TensorSpec("rate", FLOAT, (), optional=True)
    graph = Graph.build([Node("Neg", ("rate",), ("y",))], [rate], [TensorSpec("y", FLOAT, ())], {}, 21)
    assert specialise(graph, {}).shapes["y"] == ()
    assert reference.run(graph, {})["y"] == 0


def test_missing_and_unknown_inputs_are_listed() -> None:
    with pytest.raises(InputError, match="2 faults"):
        specialise(exporter_chain(), {"z": (1,)})


# --- bombs ------------------------------------------------------------------------------------------------------------

HUGE = i64(1 << 20, 1 << 20)


def bomb(*nodes: Node, **constants: np.ndarray) -> Graph:
    return graph_of(list(nodes), {}, constants)


def doubled(times: int) -> list[Node]:
    return [Node("Concat", (f"d{k}", f"d{k}"), (f"d{k + 1}",), {"axis": 0}) for k in range(times)]


BOMBS = {
    "ConstantOfShape": bomb(Node("ConstantOfShape", ("s",), ("y",)), s=HUGE),
    "Expand": bomb(Node("Expand", ("x", "s"), ("y",)), x=f32(1), s=HUGE),
    "Range": bomb(Node("Range", ("a", "b", "c"), ("y",)), a=np.array(0), b=np.array(1 << 40), c=np.array(1)),
    "Range of floats": bomb(
        Node("Range", ("a", "b", "c"), ("y",)), a=np.array(0, "f4"), b=np.array(1e30, "f4"), c=np.array(1e-30, "f4")
    ),
    "Tile": bomb(Node("Tile", ("x", "s"), ("y",)), x=f32(1, 1), s=HUGE),
    "Pad": bomb(Node("Pad", ("x", "s"), ("y",)), x=f32(1), s=HUGE),
    "OneHot": bomb(Node("OneHot", ("x", "s", "v"), ("y",)), x=i64(0), s=np.array(1 << 50), v=f32(2)),
    "MatMul": bomb(
        Node("ConstantOfShape", ("s",), ("a",)),
        Node("Transpose", ("a",), ("b",)),
        Node("MatMul", ("a", "b"), ("y",)),
        s=i64(1 << 20, 1),
    ),
    "broadcast": bomb(
        Node("ConstantOfShape", ("s",), ("a",)),
        Node("Transpose", ("a",), ("b",)),
        Node("Add", ("a", "b"), ("y",)),
        s=i64(1 << 20, 1),
    ),
    "doubling": bomb(*doubled(60), d0=f32(1)),
    "copies": bomb(
        Node("ConstantOfShape", ("s",), ("c0",)),
        *(Node("Neg", (f"c{k}",), (f"c{k + 1}",)) for k in range(2000)),
        s=i64(1 << 16),
    ),
    "Range without end": bomb(
        Node("Range", ("a", "b", "c"), ("y",)), a=np.array(0.0), b=np.array(np.inf), c=np.array(1.0)
    ),
    "sizes beyond 64 bits": bomb(Node("ConstantOfShape", ("s",), ("y",)), s=i64(*[1 << 40] * 4)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_unexploded(name: str) -> None:
    began = time.thread_time()
    tracemalloc.start()
    try:
        with pytest.raises(LstmEngineError, match=r"budget of|do not fit: cannot convert float infinity"):
            specialise(BOMBS[name], {}, budget=1 << 21)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    assert time.thread_time() - began < 1


@pytest.mark.parametrize("name", sorted(BOMBS.keys() - {"Range without end"}))
def test_fold_leaves_bombs_alone(name: str) -> None:
    assert fold(BOMBS[name], budget=1 << 21).nodes


def test_an_absurd_size_is_refused_without_an_own_budget() -> None:
    with pytest.raises(UnsupportedModelError, match=r"ConstantOfShape 'y': makes float32.* more than the budget of"):
        specialise(BOMBS["ConstantOfShape"], {})


def test_a_file_may_fold_as_much_as_it_carries() -> None:
    graph = graph_of([Node("Neg", ("w",), ("y",))], {}, {"w": f32(1000)})
    assert "y" in specialise(graph, {}, budget=10).values


# --- kinds ------------------------------------------------------------------------------------------------------------


def kinds_of(types) -> str:
    """The kinds among onnx's names of types, as reference/kinds.py writes them."""
    prefixes = {"b": "tensor(bool", "i": ("tensor(int", "tensor(uint"), "f": ("tensor(float", "tensor(double"), "c": "tensor(complex", "O": "tensor(string"}  # fmt: skip
    return "".join(letter for letter, prefix in prefixes.items() if any(t.startswith(prefix) for t in types))


def schema_of(op: str):
    for opset in (23, 24):  # TensorScatter is younger than the rest
        with suppress(Exception):
            return onnx.defs.get_schema(op, opset, "")
    return None


@pytest.mark.parametrize("op", sorted(op for op in RULES.keys() - INPUTS.keys() if schema_of(op) is not None))
def test_operators_take_the_kinds_of_numbers_that_onnx_says(op):
    inputs = schema_of(op).inputs
    expected = [kinds_of(each.types) for each in inputs]
    taken = KINDS.get(op, ("bifcO",) * len(inputs))
    assert [kinds for kinds in taken if kinds != "*"] == expected
    assert ("*" in taken) == (op in KINDS and inputs[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic)


WRONG_KINDS = {
    "Sigmoid": ((np.int64,), 0),
    "Relu": ((bool,), 0),
    "Not": ((np.float32,), 0),
    "Mean": ((np.float32, np.float32, np.uint8), 2),
    "MatMul": ((bool, bool), 0),
    "Gather": ((np.float32, np.float32), 1),
    "Add": ((np.complex64, np.complex64), 0),
}


@pytest.mark.parametrize(("op", "dtypes", "wrong"), [(op, *case) for op, case in WRONG_KINDS.items()], ids=WRONG_KINDS)
def test_other_kinds_are_refused(op, dtypes, wrong):
    """NumPy would compute something, and a buffer of the declared type would cut it off."""
    arrays = [np.zeros((2, 2), dtype) for dtype in dtypes]
    node = Node(op, tuple(f"x{k}" for k in range(len(arrays))), ("y",), {}, "here")
    for act in (lambda: infer(node, [constant(x) for x in arrays]), lambda: reference.evaluate(node, arrays)):
        with pytest.raises(ModelFormatError, match=f"{op} 'here': input {wrong} must be"):
            act()


def test_a_negative_depth_is_refused():
    node = Node("OneHot", ("x", "depth", "values"), ("y",), {"axis": -1}, "here")
    arrays = [i64(0, 1), np.array(-3), f32(2)]
    for act in (lambda: infer(node, [constant(x) for x in arrays]), lambda: reference.evaluate(node, arrays)):
        with pytest.raises(ModelFormatError, match="depth must not be negative, got -3"):
            act()
