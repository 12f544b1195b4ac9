"""If, Loop and Scan, and shapes that data decides: against onnxruntime, and bombs against the clock."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import Info, make_model, random_weights, rng, value_info
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import lstm_engine as le
from lstm_engine import reference
from lstm_engine.formats import read
from lstm_engine.graph import Graph, Node, reads
from lstm_engine.passes import shapes as shapes_pass
from lstm_engine.passes.cut import cut, resolved
from lstm_engine.passes.modernise import modernise
from lstm_engine.passes.shape_rules import DataDependentError
from lstm_engine.passes.shapes import fold, specialise
from lstm_engine.reference.control import closed

F, I, B = np.float32, np.int64, np.bool_  # noqa: E741
Feeds = dict[str, np.ndarray]


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; names are parted by blanks, '-' is an absent one."""
    names = [["" if name == "-" else name for name in text.split()] for text in (inputs, outputs)]
    return helper.make_node(op, *names, **attributes)


def body(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Info],
    outputs: Sequence[Info],
    name: str = "body",
    **constants: Any,
) -> onnx.GraphProto:
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    return helper.make_graph(
        list(nodes), name, [value_info(*i) for i in inputs], [value_info(*o) for o in outputs], tensors
    )


def branch(nodes: Sequence[onnx.NodeProto], *outputs: Info, **constants: Any) -> onnx.GraphProto:
    return body(nodes, [], outputs, "branch", **constants)


TRIP: list[Info] = [("trip", I, []), ("on", B, [])]


@dataclass(frozen=True)
class Net:
    """A model with control flow, and feeds for it."""

    name: str
    model: onnx.ModelProto
    feeds: tuple[Feeds, ...]

    def __str__(self) -> str:
        return self.name


def by_onnxruntime(model: onnx.ModelProto, feeds: Feeds) -> Feeds:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def assert_same(got: Feeds, expected: Feeds) -> None:
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        assert got[name].shape == x.shape, name
        if x.dtype.kind in "iub":
            np.testing.assert_array_equal(got[name], x, err_msg=name)
        else:
            np.testing.assert_allclose(got[name], x, rtol=1e-4, atol=1e-5, err_msg=name)


def graph_of(model: onnx.ModelProto) -> Graph:
    return modernise(read(model.SerializeToString()))


def arrays(*shape: int, seed: int = 0) -> np.ndarray:
    return rng(seed).normal(size=shape).astype(F)


# --- the models -------------------------------------------------------------------------------------------------------


def if_on_a_flag() -> Net:
    """Branches of different ranks and types of use, both of which capture."""
    then = branch([node("Mul", "x two", "a"), node("ReduceSum", "a axes", "t", keepdims=0)], ("t", F, None), axes=[1])
    other = branch([node("Neg", "x", "e")], ("e", F, None))
    nodes = [node("If", "flag", "y", then_branch=then, else_branch=other), node("Tanh", "y", "z")]
    model = make_model(nodes, [("x", F, ["n", 3]), ("flag", B, [])], [("z", F, None)], {"two": np.array(2, F)})
    x = arrays(4, 3)
    return Net("if_on_a_flag", model, tuple({"x": x, "flag": np.array(flag)} for flag in (True, False, True)))


def if_on_a_shape() -> Net:
    """What torch writes for squeeze(1)."""
    then = branch([node("Squeeze", "x one", "t")], ("t", F, None), one=[1])
    other = branch([node("Identity", "x", "e")], ("e", F, None))
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape index", "size", axis=0),
        node("Equal", "size index", "alone"),
        node("If", "alone", "y", then_branch=then, else_branch=other),
        node("Exp", "y", "z"),
    ]
    model = make_model(nodes, [("x", F, ["n", "m"])], [("z", F, None)], {"index": np.array([1])})
    return Net("if_on_a_shape", model, ({"x": arrays(4, 1)}, {"x": arrays(4, 3)}, {"x": arrays(2, 1)}))


def if_in_if_with_the_same_names() -> Net:
    """Both branches, and the branches in them, name their inner tensors alike."""

    def inner(factor: float) -> onnx.GraphProto:
        return branch([node("Mul", "v k", "w"), node("Add", "w x", "o")], ("o", F, None), k=np.array(factor, F))

    def outer(sign: str, factors: tuple[float, float]) -> onnx.GraphProto:
        nodes = [
            node(sign, "x", "v"),
            node("If", "second", "r", then_branch=inner(factors[0]), else_branch=inner(factors[1])),
        ]
        return branch(nodes, ("r", F, None))

    def two(condition: str, output: str, factor: float) -> onnx.NodeProto:
        parts = outer("Neg", (factor, 2 * factor)), outer("Abs", (3 * factor, 4 * factor))
        return node("If", condition, output, then_branch=parts[0], else_branch=parts[1])

    nodes = [two("first", "p", 1.0), two("second", "q", 10.0), node("Add", "p q", "y")]
    inputs: list[Info] = [("x", F, ["n"]), ("first", B, []), ("second", B, [])]
    model = make_model(nodes, inputs, [("y", F, None)])
    feeds = [
        {"x": arrays(3), "first": np.array(a), "second": np.array(b)} for a in (True, False) for b in (True, False)
    ]
    return Net("if_in_if_with_the_same_names", model, tuple(feeds))


def if_that_hands_tensors_on() -> Net:
    """Branch outputs that are captured tensors, constants, and one tensor twice."""
    then = branch([node("Neg", "x", "n")], ("n", F, None), ("n2", F, None), ("c", F, None), c=np.array([7.0], F))
    then.node.append(node("Identity", "n", "n2"))
    other = branch(
        [node("Identity", "x", "i"), node("Identity", "x", "j"), node("Abs", "x", "a")],
        *[(name, F, None) for name in "ija"],
    )
    nodes = [node("If", "flag", "u v w", then_branch=then, else_branch=other)]
    model = make_model(nodes, [("x", F, ["n"]), ("flag", B, [1])], [(name, F, None) for name in "uvw"])
    return Net("if_that_hands_tensors_on", model, tuple({"x": arrays(3), "flag": np.array([f])} for f in (True, False)))


def counted_loop() -> Net:
    """For trip in range(M): s += x·trip, stacked; M is fed."""
    inner = body(
        [
            node("Cast", "trip", "t", to=1),
            node("Mul", "x t", "xt"),
            node("Add", "s xt", "s_out"),
            node("Identity", "on", "on_out"),
            node("Neg", "s_out", "stacked"),
        ],
        [*TRIP, ("s", F, None)],
        [("on_out", B, []), ("s_out", F, None), ("stacked", F, [3])],
    )
    model = make_model(
        [node("Loop", "M - x", "last all", body=inner)],
        [("x", F, [3]), ("M", I, [])],
        [("last", F, None), ("all", F, None)],
    )
    return Net("counted_loop", model, tuple({"x": arrays(3), "M": np.array(m)} for m in (4, 0, 1, -2)))


def loop_over_a_shape() -> Net:
    """One trip for each row of x, read by Gather on the trip."""
    inner = body(
        [
            node("Gather", "x trip", "row", axis=0),
            node("Add", "s row", "s_out"),
            node("Identity", "on", "on_out"),
            node("Tanh", "s_out", "stacked"),
        ],
        [*TRIP, ("s", F, [3])],
        [("on_out", B, []), ("s_out", F, [3]), ("stacked", F, [3])],
    )
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "rows", axis=0),
        node("Loop", "rows yes start", "last all", body=inner),
    ]
    constants = {"zero": np.array(0), "yes": np.array(True), "start": np.zeros(3, F)}
    model = make_model(nodes, [("x", F, ["n", 3])], [("last", F, None), ("all", F, None)], constants)
    return Net("loop_over_a_shape", model, ({"x": arrays(5, 3)}, {"x": arrays(1, 3)}, {"x": arrays(5, 3, seed=2)}))


def early_exit() -> Net:
    """While the sum is below a limit, at most M trips."""
    inner = body(
        [
            node("Add", "s x", "s_out"),
            node("ReduceMax", "s_out", "most", keepdims=0),
            node("Less", "most limit", "on_out"),
            node("Identity", "s_out", "stacked"),
        ],
        [*TRIP, ("s", F, None)],
        [("on_out", B, None), ("s_out", F, None), ("stacked", F, None)],
    )
    model = make_model(
        [node("Loop", "M going x", "last all", body=inner)],
        [("x", F, ["n"]), ("M", I, []), ("going", B, []), ("limit", F, [])],
        [("last", F, None), ("all", F, None)],
    )
    x = np.abs(arrays(3)) + 0.1
    feeds = [
        {"x": x, "M": np.array(m), "going": np.array(True), "limit": np.array(limit, F)}
        for m, limit in ((100, 5), (2, 5), (100, -1))
    ]
    return Net("early_exit", model, tuple(feeds))


def endless_but_for_its_condition() -> Net:
    """No M: a while loop on a counter that starts from a constant, as tf2onnx writes it."""
    inner = body(
        [
            node("Add", "k one", "k_out"),
            node("Less", "k_out five", "below"),
            node("And", "below yes", "on_out"),
            node("Add", "s x", "s_out"),
            node("Identity", "s_out", "stacked"),
        ],
        [*TRIP, ("k", np.int32, []), ("s", F, None)],
        [("on_out", B, []), ("k_out", np.int32, []), ("s_out", F, None), ("stacked", F, None)],
        one=np.array(1, np.int32),
        five=np.array(5, np.int32),
    )
    nodes = [node("Loop", "- yes zero x", "k_last last all", body=inner), node("Concat", "all x2", "joined", axis=0)]
    constants = {"yes": np.array(True), "zero": np.array(0, np.int32)}
    outputs: list[Info] = [("k_last", np.int32, None), ("last", F, None), ("joined", F, None)]
    inputs: list[Info] = [("x", F, ["n"]), ("x2", F, ["m", "n"])]
    model = make_model(nodes, inputs, outputs, constants)
    return Net("endless_but_for_its_condition", model, ({"x": arrays(3), "x2": arrays(2, 3)},))


def growing_state() -> Net:
    """A state that grows by Concat: its shape changes from trip to trip."""
    inner = body(
        [
            node("Concat", "s x", "s_out", axis=0),
            node("Identity", "on", "on_out"),
            node("ReduceSum", "s_out", "stacked", keepdims=0),
        ],
        [*TRIP, ("s", F, None)],
        [("on_out", B, []), ("s_out", F, None), ("stacked", F, [])],
    )
    nodes = [node("Loop", "three - x", "last all", body=inner), node("Sigmoid", "last", "y")]
    model = make_model(nodes, [("x", F, ["n", 2])], [("y", F, None), ("all", F, None)], {"three": np.array([3])})
    return Net("growing_state", model, ({"x": arrays(2, 2)}, {"x": arrays(1, 2)}))


def loop_in_loop() -> Net:
    """A triangle: the inner count is the outer trip; the innermost body captures from both."""
    innermost = body(
        [
            node("Add", "u x", "v"),
            node("Cast", "trip", "outer", to=1),
            node("Add", "v outer", "u_out"),
            node("Identity", "on2", "on2_out"),
        ],
        [("trip2", I, []), ("on2", B, []), ("u", F, None)],
        [("on2_out", B, []), ("u_out", F, None)],
    )
    inner = body(
        [
            node("Loop", "trip yes s", "s_out", body=innermost),
            node("Identity", "on", "on_out"),
            node("Identity", "s_out", "stacked"),
        ],
        [*TRIP, ("s", F, None)],
        [("on_out", B, []), ("s_out", F, None), ("stacked", F, None)],
    )
    model = make_model(
        [node("Loop", "four yes x", "last all", body=inner)],
        [("x", F, ["n"])],
        [("last", F, None), ("all", F, None)],
        {"four": np.array(4), "yes": np.array(True)},
    )
    return Net("loop_in_loop", model, ({"x": arrays(3)},))


def if_in_loop() -> Net:
    """A branch taken by the trip, another by data."""
    even = branch([node("Neg", "s", "p")], ("p", F, None))
    odd = branch([node("Mul", "s x", "q")], ("q", F, None))
    large = branch([node("Identity", "r", "g")], ("g", F, None))
    small = branch([node("Add", "r x", "h")], ("h", F, None))
    inner = body(
        [
            node("Mod", "trip two", "rest"),
            node("Cast", "rest", "is_odd", to=9),
            node("If", "is_odd", "r", then_branch=odd, else_branch=even),
            node("ReduceSum", "r", "sum", keepdims=0),
            node("Greater", "sum zero", "is_large"),
            node("If", "is_large", "s_out", then_branch=large, else_branch=small),
            node("Identity", "on", "on_out"),
            node("Identity", "s_out", "stacked"),
        ],
        [*TRIP, ("s", F, None)],
        [("on_out", B, []), ("s_out", F, None), ("stacked", F, None)],
    )
    model = make_model(
        [node("Loop", "four yes x", "last all", body=inner)],
        [("x", F, ["n"])],
        [("last", F, None), ("all", F, None)],
        {"four": np.array(4), "yes": np.array(True), "two": np.array(2), "zero": np.array(0, F)},
    )
    return Net("if_in_loop", model, ({"x": arrays(3)}, {"x": arrays(2, seed=5)}))


def loop_in_if() -> Net:
    inner = body(
        [node("Add", "s x", "s_out"), node("Identity", "on", "on_out")],
        [*TRIP, ("s", F, None)],
        [("on_out", B, []), ("s_out", F, None)],
    )
    then = branch([node("Loop", "M - x", "t", body=inner)], ("t", F, None))
    other = branch([node("ReduceSum", "x", "e", keepdims=1)], ("e", F, None))
    model = make_model(
        [node("If", "flag", "y", then_branch=then, else_branch=other), node("Neg", "y", "z")],
        [("x", F, ["n"]), ("flag", B, []), ("M", I, [])],
        [("z", F, None)],
    )
    feeds = [{"x": arrays(3), "flag": np.array(f), "M": np.array(2)} for f in (True, False)]
    return Net("loop_in_if", model, tuple(feeds))


def scripted_cell() -> Net:
    """torch.jit.script of LSTMCell in a for loop: an LSTM node in the body, its weights sliced on every trip."""
    hidden, inputs = 4, 3
    weights = random_weights(inputs, hidden)
    inner = body(
        [
            node("Gather", "x trip", "row", axis=0),
            node("Unsqueeze", "row zero1", "step"),
            node("Slice", "W2 zero1 all zero1", "Ws"),
            node("Unsqueeze", "Ws zero1", "W"),
            node("Slice", "R2 zero1 all zero1", "Rs"),
            node("Unsqueeze", "Rs zero1", "R"),
            node("LSTM", "step W R B - h c", "Y h_out c_out", hidden_size=hidden),
            node("Squeeze", "Y axes01", "y"),
            node("Identity", "on", "on_out"),
        ],
        [*TRIP, ("h", F, None), ("c", F, None)],
        [("on_out", B, []), ("h_out", F, None), ("c_out", F, None), ("y", F, None)],
    )
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "steps", axis=0),
        node("Loop", "steps yes h0 c0", "hn cn ys", body=inner),
    ]
    constants = {
        "W2": weights["W"][0], "R2": weights["R"][0], "B": weights["B"], "zero": np.array(0), "zero1": np.array([0]),
        "all": np.array([4 * hidden]), "axes01": np.array([0, 1]), "yes": np.array(True),
    }  # fmt: skip
    model = make_model(
        nodes,
        [("x", F, ["time", "batch", inputs]), ("h0", F, [1, "batch", hidden]), ("c0", F, [1, "batch", hidden])],
        [("hn", F, None), ("cn", F, None), ("ys", F, None)],
        constants,
    )
    feeds = [{"x": arrays(t, 2, 3), "h0": arrays(1, 2, 4), "c0": arrays(1, 2, 4, seed=3)} for t in (5, 2)]
    return Net("scripted_cell", model, tuple(feeds))


def scan(
    name: str, *, axes: Sequence[int] = (0,), back: Sequence[int] = (0,), out: Sequence[int] = (0,), out_back: int = 0
) -> Net:
    """h = tanh(h + x_t), stacked."""
    inner = body(
        [node("Add", "h row", "sum"), node("Tanh", "sum", "h_out"), node("Identity", "h_out", "y")],
        [("h", F, ["n", 3]), ("row", F, ["n", 3])],
        [("h_out", F, ["n", 3]), ("y", F, ["n", 3])],
    )
    attributes = {
        "scan_input_axes": list(axes),
        "scan_input_directions": list(back),
        "scan_output_axes": list(out),
        "scan_output_directions": [out_back],
    }
    model = make_model(
        [node("Scan", "h0 x", "hn ys", body=inner, num_scan_inputs=1, **attributes)],
        [("h0", F, [2, 3]), ("x", F, None)],
        [("hn", F, None), ("ys", F, None)],
    )
    x = np.moveaxis(arrays(5, 2, 3), 0, axes[0])
    return Net(name, model, ({"h0": arrays(2, 3, seed=1), "x": x},))


def scan_of_two() -> Net:
    """One input forwards along its last axis and one backwards; two stacks; the body captures."""
    inner = body(
        [
            node("Mul", "a scale", "scaled"),
            node("Add", "scaled b", "sum"),
            node("Add", "h sum", "h_out"),
            node("Neg", "h_out", "y"),
            node("Sub", "a b", "d"),
        ],
        [("h", F, [3]), ("a", F, [3]), ("b", F, [3])],
        [("h_out", F, [3]), ("y", F, [3]), ("d", F, [3])],
    )
    model = make_model(
        [
            node(
                "Scan", "h0 xa xb", "hn ys ds", body=inner, num_scan_inputs=2, scan_input_axes=[-1, 0],
                scan_input_directions=[0, 1], scan_output_axes=[1, 0], scan_output_directions=[0, 1],
            )
        ],
        [("h0", F, [3]), ("xa", F, [3, "t"]), ("xb", F, ["t", 3]), ("scale", F, [])],
        [("hn", F, None), ("ys", F, None), ("ds", F, None)],
    )  # fmt: skip
    feeds = {"h0": arrays(3), "xa": arrays(3, 6), "xb": arrays(6, 3, seed=4), "scale": np.array(0.5, F)}
    return Net("scan_of_two", model, (feeds,))


def rows_that_are_not_zero() -> Net:
    """NonZero decides how many rows go on to the LSTM."""
    nodes = [
        node("NonZero", "keep", "where"),
        node("Squeeze", "where zero", "rows"),
        node("Gather", "x rows", "some", axis=0),
        node("LSTM", "some W R B", "Y Y_h", hidden_size=4),
        node("Squeeze", "Y one", "y"),
        node("Shape", "rows", "count"),
    ]
    constants = {**random_weights(3, 4), "zero": np.array([0]), "one": np.array([1])}
    model = make_model(
        nodes,
        [("x", F, ["time", "batch", 3]), ("keep", F, ["time"])],
        [("y", F, None), ("Y_h", F, None), ("count", I, None)],
        constants,
    )
    masks = ([1, 0, 1, 1, 0], [0, 0, 0, 1, 1], [1, 1, 1, 1, 1])
    return Net("rows_that_are_not_zero", model, tuple({"x": arrays(5, 2, 3), "keep": np.array(m, F)} for m in masks))


def cut_at_the_longest() -> Net:
    """The sequence is cut at the greatest length, runs, and is padded again: Slice, Range, Expand and Pad by data."""
    nodes = [
        node("ReduceMax", "lengths", "longest", keepdims=1),
        node("Slice", "x zero longest zero", "short"),
        node("LSTM", "short W R B lengths32", "Y", hidden_size=4),
        node("Squeeze", "Y one", "y"),
        node("Squeeze", "longest", "limit"),
        node("Range", "start limit step", "places"),
        node("Shape", "y", "shape"),
        node("Unsqueeze", "places two", "column"),
        node("Expand", "column shape", "spread"),
        node("Cast", "spread", "numbers", to=1),
        node("Add", "y numbers", "z"),
        node("Sub", "five longest", "missing"),
        node("Concat", "none missing nor", "pads", axis=0),
        node("Pad", "z pads", "padded"),
    ]
    constants = {
        **random_weights(3, 4), "zero": np.array([0]), "one": np.array([1]), "two": np.array([1, 2]),
        "start": np.array(0), "step": np.array(1), "five": np.array([5]), "none": np.array([0, 0, 0]), "nor": np.array([0, 0]),
    }  # fmt: skip
    model = make_model(
        nodes,
        [("x", F, [5, "batch", 3]), ("lengths", I, ["batch"]), ("lengths32", np.int32, ["batch"])],
        [("z", F, None), ("padded", F, None)],
        constants,
    )
    feeds = [
        {"x": arrays(5, 2, 3), "lengths": np.array(n), "lengths32": np.array(n, np.int32)} for n in ([2, 3], [5, 1])
    ]
    return Net("cut_at_the_longest", model, tuple(feeds))


def reshaped_by_a_feed() -> Net:
    nodes = [node("Reshape", "x shape", "y"), node("Relu", "y", "z"), node("Shape", "z", "s")]
    model = make_model(nodes, [("x", F, ["n"]), ("shape", I, ["r"])], [("z", F, None), ("s", I, None)])
    shapes = ([2, 3], [6], [1, -1, 2])
    return Net("reshaped_by_a_feed", model, tuple({"x": arrays(6), "shape": np.array(s)} for s in shapes))


def sequences() -> Iterator[Net]:
    """Split, picked, inserted, erased, counted and joined, by positions that are constants or fed."""
    inputs: list[Info] = [("x", F, ["n", 4])]
    constants = {"one": np.array(1), "two": np.array(2), "first": np.array(0), "last": np.array(-1)}
    sizes = {"uneven": np.array([1, 3]), "axis": np.array([1])}
    by_hand = [
        node("SplitToSequence", "x two", "halves", axis=1),
        node("SplitToSequence", "x uneven", "parts", axis=1),
        node("SplitToSequence", "x", "columns", axis=1, keepdims=0),
        node("SequenceAt", "parts last", "wide"),
        node("SequenceAt", "halves first", "narrow"),
        node("SequenceInsert", "halves wide one", "more"),
        node("SequenceErase", "more first", "fewer"),
        node("ConcatFromSequence", "fewer", "joined", axis=1),
        node("ConcatFromSequence", "columns", "stacked", axis=-1, new_axis=1),
        node("SequenceLength", "columns", "count"),
        node("Tanh", "joined", "y"),
    ]
    outputs: list[Info] = [(name, F, None) for name in ("y", "stacked", "narrow")] + [("count", I, None)]
    model = make_model(by_hand, inputs, outputs, {**constants, **sizes})
    yield Net("sequences", model, tuple({"x": arrays(n, 4)} for n in (3, 1)))
    by_feed = [
        node("SequenceConstruct", "x twice", "pair"),
        node("SequenceAt", "pair place", "chosen"),
        node("SequenceInsert", "pair chosen place", "three"),
        node("ConcatFromSequence", "three", "joined", axis=0),
        node("SequenceErase", "three place", "two_left"),
        node("SequenceLength", "two_left", "count"),
        node("Exp", "joined", "y"),
    ]
    model = make_model(
        [node("Add", "x x", "twice"), *by_feed],
        [*inputs, ("place", I, [])],
        [("y", F, None), ("chosen", F, None), ("count", I, None)],
    )
    yield Net("sequences_by_a_feed", model, tuple({"x": arrays(2, 4), "place": np.array(p)} for p in (0, 1, -1)))
    grown = helper.make_tensor_sequence_value_info("grown", onnx.TensorProto.FLOAT, None)
    grown_out = helper.make_tensor_sequence_value_info("grown_out", onnx.TensorProto.FLOAT, None)
    inner = body(
        [
            node("Gather", "x trip", "row", axis=0),
            node("Add", "s row", "s_out"),
            node("SequenceInsert", "grown s_out", "grown_out"),
            node("Identity", "on", "on_out"),
        ],
        [*TRIP, ("s", F, None)],
        [("on_out", B, []), ("s_out", F, None)],
    )
    inner.input.append(grown)
    inner.output.append(grown_out)
    looped = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "rows", axis=0),
        node("SequenceEmpty", "", "none"),
        node("Loop", "rows yes start none", "last all", body=inner),
        node("ConcatFromSequence", "all", "ys", axis=0, new_axis=1),
        node("LSTM", "ys4 W R B", "Y", hidden_size=4),
    ]
    looped.insert(5, node("Unsqueeze", "ys one1", "ys4"))
    more = {"zero": np.array(0), "yes": np.array(True), "start": np.zeros(4, F), "one1": np.array([1])}
    model = make_model(
        looped, inputs, [("last", F, None), ("ys", F, None), ("Y", F, None)], {**more, **random_weights(4, 4)}
    )
    yield Net("sequence_in_a_loop", model, tuple({"x": arrays(n, 4)} for n in (3, 1, 5)))


def nets() -> Iterator[Net]:
    yield from (if_on_a_flag(), if_on_a_shape(), if_in_if_with_the_same_names(), if_that_hands_tensors_on())
    yield from (counted_loop(), loop_over_a_shape(), early_exit(), endless_but_for_its_condition(), growing_state())
    yield from (loop_in_loop(), if_in_loop(), loop_in_if(), scripted_cell(), scan_of_two())
    yield scan("scan")
    yield scan("scan_backwards", back=(1,))
    yield scan("scan_middle_axis", axes=(1,), out=(1,))
    yield scan("scan_last_axes", axes=(-1,), out=(-1,), out_back=1)
    yield scan("scan_both_back", back=(1,), out_back=1)
    yield from (rows_that_are_not_zero(), cut_at_the_longest(), reshaped_by_a_feed())
    yield from sequences()


NETS = list(nets())


@pytest.mark.parametrize("net", NETS, ids=str)
def test_a_run_gives_what_onnxruntime_gives(net: Net) -> None:
    model = le.load(net.model.SerializeToString())
    for feeds in net.feeds * 2:
        assert_same(model.run(feeds), by_onnxruntime(net.model, feeds))


@pytest.mark.parametrize("net", NETS, ids=str)
def test_the_definition_gives_what_onnxruntime_gives(net: Net) -> None:
    graph = graph_of(net.model)
    for feeds in net.feeds:
        assert_same(reference.run(graph, feeds, dtype=np.float32), by_onnxruntime(net.model, feeds))


@pytest.mark.parametrize("net", NETS, ids=str)
def test_outputs_one_by_one_are_those_of_the_whole(net: Net) -> None:
    model = le.load(net.model.SerializeToString())
    for feeds in net.feeds:
        whole = model.run(feeds)
        for name, x in whole.items():
            np.testing.assert_array_equal(model.run(feeds, [name])[name], x)


@pytest.mark.parametrize("net", NETS, ids=str)
def test_what_shapes_tell_is_what_the_run_makes(net: Net) -> None:
    """Wherever specialise knows a shape, type or value, it is the one of the run."""
    graph = fold(graph_of(net.model))
    for feeds in net.feeds:
        try:
            known = specialise(graph, {name: x.shape for name, x in feeds.items()})
        except DataDependentError:
            continue
        names = [name for n in graph.nodes for name in n.outputs if name in known.shapes]
        values = reference.run(graph, feeds, dtype=np.float32, outputs=names)
        for name, x in values.items():
            assert (known.shapes[name], known.dtypes[name]) == (x.shape, x.dtype), name
            if name in known.values:
                np.testing.assert_array_equal(known.values[name], x)


@pytest.mark.parametrize("net", NETS, ids=str)
def test_a_closed_node_is_a_function_of_its_inputs(net: Net) -> None:
    graph = graph_of(net.model)
    names = {name for n in graph.nodes for name in (*reads(n), *n.outputs) if name}
    for feeds in net.feeds:
        values = reference.run(graph, feeds, dtype=np.float32, outputs=sorted(names))
        for n in graph.nodes:
            if not reference.is_control(n):
                continue
            shut = closed(n)
            results = reference.evaluate(shut, [values[name] if name else None for name in shut.inputs])
            assert closed(shut) is shut
            for name, x in zip(n.outputs, results, strict=True):
                np.testing.assert_equal(x, values[name])


def program_nodes(model: le.Model) -> set[str]:
    """Operators of all programs that a model and its parts have lowered to machine code."""
    found = set()
    for lowered, _ in model._programs.values():
        hosts = {call.node.label for call in lowered.program.hosts}
        found |= {i.node.split()[0] for i in lowered.program.listing if i.node and i.node not in hosts}
    for part in model._parts._models.values():
        found |= program_nodes(part)
    return found


@pytest.mark.parametrize("net", [rows_that_are_not_zero(), cut_at_the_longest()], ids=str)
def test_recurrent_layers_behind_data_run_in_machine_code(net: Net) -> None:
    model = le.load(net.model.SerializeToString())
    for feeds in net.feeds:
        model.run(feeds)
    assert "LSTM" in program_nodes(model)


def test_a_loop_of_no_trips_stacks_nothing_of_the_right_shape() -> None:
    """The element's shape is that of a trip that would have been; onnxruntime writes 0 for sizes it does not know."""
    inner = body(
        [node("Add", "s x", "s_out"), node("Identity", "on", "on_out"), node("Identity", "s_out", "stacked")],
        [*TRIP, ("s", F, None)],
        [("on_out", B, []), ("s_out", F, None), ("stacked", F, None)],
    )
    model = make_model(
        [node("Loop", "M - x", "last all", body=inner)],
        [("x", F, ["n", 2]), ("M", I, [])],
        [("last", F, None), ("all", F, None)],
    )
    got = le.load(model.SerializeToString()).run({"x": arrays(3, 2), "M": np.array(0)})
    assert got["all"].shape == (0, 3, 2)
    np.testing.assert_array_equal(got["last"], arrays(3, 2))


# --- branches that fold away ------------------------------------------------------------------------------------------


def with_an_unknown_operator(where: str, condition: str) -> onnx.ModelProto:
    strange = branch([node("StringNormalizer", "x", "s")], ("s", F, None))
    plain = branch([node("Neg", "x", "p")], ("p", F, None))
    parts = {"then_branch": plain, "else_branch": plain, where: strange}
    constants = {"yes": np.array(True)} if condition == "yes" else {}
    inputs: list[Info] = [("x", F, ["n"])] + ([("flag", B, [])] if condition == "flag" else [])
    return make_model([node("If", condition, "y", **parts)], inputs, [("y", F, None)], constants)


def test_a_branch_that_is_never_taken_refuses_nothing() -> None:
    model = le.load(with_an_unknown_operator("else_branch", "yes").SerializeToString())
    np.testing.assert_array_equal(model.run(arrays(3))["y"], -arrays(3))
    given = le.load(
        with_an_unknown_operator("else_branch", "flag").SerializeToString(), constants={"flag": np.array(True)}
    )
    np.testing.assert_array_equal(given.run(arrays(3))["y"], -arrays(3))


@pytest.mark.parametrize("condition", ["yes", "flag"])
def test_a_branch_that_may_be_taken_is_refused_by_name(condition: str) -> None:
    with pytest.raises(le.UnsupportedModelError, match="StringNormalizer"):
        le.load(with_an_unknown_operator("then_branch", condition).SerializeToString())


@pytest.mark.parametrize("net", [if_in_if_with_the_same_names(), if_that_hands_tensors_on()], ids=str)
def test_constant_conditions_leave_a_plain_graph(net: Net) -> None:
    flags = [spec.name for spec in graph_of(net.model).inputs if spec.dtype == np.bool_]
    for feeds in net.feeds:
        model = le.load(net.model.SerializeToString(), constants={name: feeds[name] for name in flags})
        assert not any(reference.is_control(n) for n in model.graph.nodes)
        assert_same(model.run({"x": feeds["x"]}), by_onnxruntime(net.model, feeds))
        names = [name for n in model.graph.nodes for name in n.outputs if name]
        assert len(names) == len(set(names))


def test_nothing_is_inferred_in_a_branch_not_taken() -> None:
    """The other branch would not even fit."""
    bad = branch([node("MatMul", "x x", "b")], ("b", F, None))
    good = branch([node("Abs", "x", "g")], ("g", F, None))
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "n", axis=0),
        node("Equal", "n three", "square"),
        node("If", "square", "y", then_branch=bad, else_branch=good),
    ]
    model = make_model(nodes, [("x", F, ["n", 3])], [("y", F, None)], {"zero": np.array(0), "three": np.array(3)})
    loaded = le.load(model.SerializeToString())
    for n in (2, 3, 5, 3):
        assert_same(loaded.run(arrays(n, 3)), by_onnxruntime(model, {"x": arrays(n, 3)}))


def test_branches_on_the_number_of_steps_are_told_apart() -> None:
    """A program that serves any number of steps does not serve those that take another branch."""
    short = branch([node("Neg", "Y", "s")], ("s", F, None))
    long = branch([node("Abs", "Y", "l")], ("l", F, None))
    nodes = [
        node("LSTM", "x W R B", "Y", hidden_size=4),
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "n", axis=0),
        node("Equal", "n five", "exactly"),
        node("If", "exactly", "y", then_branch=short, else_branch=long),
    ]
    constants = {**random_weights(3, 4), "zero": np.array(0), "five": np.array(5)}
    model = make_model(nodes, [("x", F, ["t", "b", 3])], [("y", F, None)], constants)
    loaded = le.load(model.SerializeToString())
    for steps in (7, 5, 6, 5, 9, 1):
        x = arrays(steps, 2, 3)
        assert_same(loaded.run(x), by_onnxruntime(model, {"x": x}))
    with pytest.raises(le.StreamingError, match="branch"):
        le.load(make_step_dependent(model)).stream()


def make_step_dependent(model: onnx.ModelProto) -> bytes:
    """The model with a condition that is true at the steps that streams are planned with."""
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in changed.graph.initializer:
        if tensor.name == "five":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(7), "five"))
    return changed.SerializeToString()


def test_names_of_a_body_hide_those_outside() -> None:
    """Renaming what a body captures leaves alone what it defines for itself."""
    from lstm_engine.passes.control import renamed

    spec = le.graph.TensorSpec
    inner = Graph.build(
        [Node("Add", ("a", "b"), ("c",))], [spec("a", np.dtype(F), None)], [spec("c", np.dtype(F), None)], {}, 21,
        outer={"b"},
    )  # fmt: skip
    scan_node = Node("Scan", ("x",), ("y",), {"body": inner, "num_scan_inputs": 1})
    moved = renamed(scan_node, {"a": "z", "b": "c", "x": "a"})
    assert moved.inputs == ("a",)
    assert set(reads(moved)) == {"a", "c"}
    feeds = {"a": arrays(3, 2), "c": arrays(2, seed=1)}
    (got,) = reference.evaluate(moved, [feeds["a"]], scope=feeds)
    np.testing.assert_array_equal(got, feeds["a"] + feeds["c"])


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_a_long_scan_is_planned_without_walking_it() -> None:
    net = scan("scan")
    graph = graph_of(net.model)
    begin = time.thread_time()
    known = specialise(graph, {"h0": (2, 3), "x": (10**6, 2, 3)})
    assert time.thread_time() - begin < 0.5
    assert known.shapes["ys"] == (10**6, 2, 3)


def test_a_long_counted_loop_is_planned_by_its_condition_alone() -> None:
    net = endless_but_for_its_condition()
    graph = graph_of(net.model)
    known = specialise(graph, {"x": (3,), "x2": (2, 3)})
    assert known.shapes["joined"] == (7, 3)


def test_a_loop_whose_states_keep_their_shapes_is_known_but_for_its_stack() -> None:
    graph = graph_of(early_exit().model)
    shapes = {"x": (3,), "M": (), "going": (), "limit": ()}
    with pytest.raises(DataDependentError, match="how often"):
        specialise(graph, shapes)
    unstacked = graph.with_nodes(
        [Node(n.op, n.inputs, n.outputs[:1], n.attributes, n.name) for n in graph.nodes], outputs=graph.outputs[:1]
    )
    assert specialise(unstacked, shapes).shapes["last"] == (3,)
    assert resolved(unstacked, shapes).graph.nodes[0].attributes["captured"] == ("x", "limit")


def test_a_cut_holds_what_is_known_and_what_decides() -> None:
    graph = fold(graph_of(cut_at_the_longest().model))
    parts = cut(graph, {"x": (5, 2, 3), "lengths": (2,), "lengths32": (2,)})
    assert [n.op for n in parts.head.nodes] == ["ReduceMax", "Squeeze", "Sub", "Concat"]
    assert parts.deciding[0].op == "Slice"
    assert "LSTM" in [n.op for n in parts.rest.nodes]


def test_sequences_known_by_position_leave_a_plain_graph() -> None:
    net = next(sequences())
    graph = fold(graph_of(net.model))
    plain = resolved(graph, {"x": (3, 4)}).graph
    assert {n.op for n in plain.nodes} <= {"Split", "Squeeze", "Unsqueeze", "Concat", "Tanh", "Identity"}


@dataclass(frozen=True)
class Stepped:
    """Nodes between an LSTM's output Y [T, 1, B, H] and y, that look at the number of steps."""

    nodes: tuple[onnx.NodeProto, ...]
    constants: dict[str, np.ndarray]


LENGTH = (node("Shape", "x", "shape"), node("Gather", "shape zero", "n", axis=0))
STEPPED = {
    "the last five steps": Stepped(
        (node("Slice", "Y start end zero1", "y"),), {"start": np.array([-5]), "end": np.array([10**6])}
    ),
    "the first five steps": Stepped(
        (node("Slice", "Y zero1 end zero1", "y"),), {"end": np.array([5])}
    ),
    "at most five": Stepped(
        (*LENGTH, node("Min", "n five", "m"), node("Cast", "m", "f", to=1), node("Mul", "Y f", "y")),
        {"five": np.array(5)},
    ),
    "less than five": Stepped(
        (*LENGTH, node("Less", "n five", "few"), node("Cast", "few", "f", to=1), node("Add", "Y f", "y")),
        {"five": np.array(5)},
    ),
    "the rest by two": Stepped(
        (*LENGTH, node("Mod", "n two", "m"), node("Cast", "m", "f", to=1), node("Add", "Y f", "y")),
        {"two": np.array(2)},
    ),
    "by fours": Stepped(
        (*LENGTH, node("Div", "n eight", "m"), node("Cast", "m", "f", to=1), node("Add", "Y f", "y")),
        {"eight": np.array(8)},
    ),
    "the very number": Stepped(
        (*LENGTH, node("Cast", "n", "f", to=1), node("Mul", "Y f", "y")), {}
    ),
    "padded to eight": Stepped(
        (
            *LENGTH, node("Sub", "eight n", "less"), node("Max", "less zero", "m"),
            node("Unsqueeze", "m zero1", "after"), node("Concat", "none after nor", "pads", axis=0),
            node("Pad", "Y pads", "y"),
        ),
        {"eight": np.array(8), "none": np.zeros(4, np.int64), "nor": np.zeros(3, np.int64)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", STEPPED)
def test_what_two_lengths_have_in_common_is_no_law(what: str) -> None:
    """One program serves all numbers of steps only where nothing it computes may change at a third."""
    stepped = STEPPED[what]
    constants = {**random_weights(3, 4), "zero": np.array(0), "zero1": np.array([0]), **stepped.constants}
    nodes = [node("LSTM", "x W R B", "Y", hidden_size=4), *stepped.nodes]
    model = make_model(nodes, [("x", F, ["t", "b", 3])], [("y", F, None)], constants)
    loaded = le.load(model.SerializeToString())
    for steps in (7, 3, 9, 2, 1, 16, 12, 5, 40):
        x = arrays(steps, 2, 3)
        assert_same(loaded.run(x), by_onnxruntime(model, {"x": x}))


@pytest.mark.parametrize("length", [3, 60, 600])
def test_a_chain_of_decisions_each_on_the_last(length: int) -> None:
    nodes, last = [], "x"
    for k in range(length):
        parts = {
            "then_branch": branch([node("Sub", f"{last} half", "t")], ("t", F, None)),
            "else_branch": branch([node("Add", f"{last} x", "e")], ("e", F, None)),
        }
        nodes += [
            node("ReduceSum", last, f"s{k}", keepdims=0),
            node("Greater", f"s{k} nought", f"c{k}"),
            node("If", f"c{k}", f"y{k}", **parts),
        ]
        last = f"y{k}"
    nodes.append(node("Tanh", last, "y"))
    constants = {"half": np.array(0.5, F), "nought": np.array(0, F)}
    model = make_model(nodes, [("x", F, [3])], [("y", F, None)], constants)
    loaded = le.load(model.SerializeToString())
    for seed in (0, 1):
        x = arrays(3, seed=seed)
        assert_same(loaded.run(x), by_onnxruntime(model, {"x": x}))


def test_programs_are_kept_by_shape_and_bounded() -> None:
    net = rows_that_are_not_zero()
    model = le.load(net.model.SerializeToString())
    x = arrays(40, 2, 3)
    for rows in range(1, 41):
        keep = (np.arange(40) < rows).astype(F)
        assert model.run({"x": x, "keep": keep})["count"] == rows
    parts = list(model._parts._models.values())
    assert len(parts) <= 4
    assert sum(len(part._programs) for part in parts) <= 24


# --- declared shapes that lie -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "shapes"),
    [
        ({"x": ["n"], "u": ["n"], "y": ["n"]}, {"x": (2,), "u": (1,)}),
        ({"x": ["n"], "u": ["n"], "y": [7, 7, 7]}, {"x": (3,), "u": (3,)}),
        ({"x": None, "u": None, "y": None}, {"x": (4, 3), "u": ()}),
        ({"x": None, "u": ["n"], "y": [1]}, {"x": (), "u": (3,)}),
    ],
)
def test_the_feed_decides_where_names_and_outputs_are_declared_wrong(
    declared: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    model = make_model(
        [node("Add", "x u", "y")], [("x", F, declared["x"]), ("u", F, declared["u"])], [("y", F, declared["y"])]
    )
    loaded = le.load(model.SerializeToString())
    feeds = {name: arrays(*shape, seed=k) for k, (name, shape) in enumerate(shapes.items())}
    assert_same(loaded.run(feeds), by_onnxruntime(model, feeds))


def test_names_that_disagree_explain_why_a_network_does_not_fit() -> None:
    model = make_model([node("Add", "x u", "y")], [("x", F, ["n"]), ("u", F, ["n"])], [("y", F, None)])
    with pytest.raises(le.InputError, match="n is 3 here but 2 in 'x'"):
        le.load(model.SerializeToString()).run({"x": arrays(2), "u": arrays(3)})


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_of_a_branch_needs_its_condition() -> None:
    loud = branch([node("Mul", "x two", "l")], ("l", F, None))
    calm = branch([node("Slice", "x zero one two1", "c")], ("c", F, None))
    nodes = [
        node("Equal", "rate fast", "is_fast"),
        node("If", "is_fast", "picked", then_branch=loud, else_branch=calm),
        node("LSTM", "picked W R B", "Y", hidden_size=4),
        node("Squeeze", "Y one1", "y"),
    ]
    constants = {
        **random_weights(3, 4), "fast": np.array(16), "two": np.array(2, F), "zero": np.array([0]),
        "one": np.array([2]), "two1": np.array([2]), "one1": np.array([1]),
    }  # fmt: skip
    model = make_model(nodes, [("x", F, ["time", 1, 3]), ("rate", I, [])], [("y", F, ["time", 1, 4])], constants)
    loaded = le.load(model.SerializeToString())
    x = arrays(6, 1, 3)
    whole = loaded.run({"x": x, "rate": np.array(16)})["y"]
    assert_same({"y": whole}, by_onnxruntime(model, {"x": x, "rate": np.array(16)}))
    stream = loaded.stream(constants={"rate": np.array(16)})
    steps = np.stack([stream.step(row) for row in x])
    np.testing.assert_array_equal(steps, whole)
    with pytest.raises(le.StreamingError, match=r"If .*constants"):
        loaded.stream()


def test_shapes_that_data_decides_cannot_be_streamed() -> None:
    with pytest.raises(le.StreamingError, match="NonZero"):
        le.load(rows_that_are_not_zero().model.SerializeToString()).stream()


# --- bombs ------------------------------------------------------------------------------------------------------------


def bomb_loop(trips: Any, nodes: int = 1) -> onnx.ModelProto:
    """So many trips, every one true."""
    steps = [node("Add", "s one", "s0"), *(node("Add", f"s{k} one", f"s{k + 1}") for k in range(nodes - 1))]
    inner = body(
        [*steps, node("Identity", f"s{nodes - 1}", "s_out"), node("Identity", "on", "on_out")],
        [*TRIP, ("s", F, None)],
        [("on_out", B, []), ("s_out", F, None)],
    )
    constants = {"one": np.array(1, F), "yes": np.array(True), "M": np.array(trips)}
    return make_model([node("Loop", "M yes x", "y", body=inner)], [("x", F, [1])], [("y", F, None)], constants)


def bomb_folded() -> onnx.ModelProto:
    """The same with nothing fed: folding would run it."""
    model = bomb_loop(2**40)
    model.graph.node[0].input[2] = "one"
    model.graph.node.append(node("Add", "y x", "z"))
    model.graph.output[0].name = "z"
    return model


def bomb_never_false() -> onnx.ModelProto:
    inner = body(
        [node("Add", "s x", "s_out"), node("Abs", "s_out", "a"), node("ReduceSum", "a", "sum", keepdims=0),
         node("GreaterOrEqual", "sum zero", "on_out")],
        [*TRIP, ("s", F, None)],
        [("on_out", B, []), ("s_out", F, None)],
    )  # fmt: skip
    constants = {"zero": np.array(0, F), "yes": np.array(True)}
    return make_model([node("Loop", "- yes x", "y", body=inner)], [("x", F, [1])], [("y", F, None)], constants)


def bomb_nested() -> onnx.ModelProto:
    """Loops of a thousand trips, four deep."""
    inner = body(
        [node("Add", "s one", "s_out"), node("Identity", "on", "on_out")],
        [("t0", I, []), ("on", B, []), ("s", F, None)],
        [("on_out", B, []), ("s_out", F, None)],
    )
    for depth in range(1, 4):
        inner = body(
            [node("Loop", f"M yes z{depth}", f"w{depth}", body=inner), node("Identity", f"c{depth}", f"d{depth}")],
            [(f"t{depth}", I, []), (f"c{depth}", B, []), (f"z{depth}", F, None)],
            [(f"d{depth}", B, []), (f"w{depth}", F, None)],
        )
    constants = {"one": np.array(1, F), "yes": np.array(True), "M": np.array(1000)}
    return make_model([node("Loop", "M yes x", "y", body=inner)], [("x", F, [1])], [("y", F, None)], constants)


def bomb_doubling() -> onnx.ModelProto:
    """A state that doubles at every trip."""
    inner = body(
        [node("Concat", "s s", "s_out", axis=0), node("Identity", "on", "on_out")],
        [*TRIP, ("s", F, None)],
        [("on_out", B, []), ("s_out", F, None)],
    )
    constants = {"yes": np.array(True), "M": np.array(60)}
    return make_model([node("Loop", "M yes x", "y", body=inner)], [("x", F, [1])], [("y", F, None)], constants)


def bomb_doubling_by_data() -> onnx.ModelProto:
    """The same, ended by data, so that nothing is known before it runs."""
    inner = body(
        [node("Concat", "s s", "s_out", axis=0), node("ReduceMax", "s_out", "most", keepdims=0),
         node("Less", "most limit", "on_out")],
        [*TRIP, ("s", F, None)],
        [("on_out", B, []), ("s_out", F, None)],
    )  # fmt: skip
    constants = {"yes": np.array(True), "limit": np.array(1e30, F)}
    return make_model([node("Loop", "- yes x", "y", body=inner)], [("x", F, [1])], [("y", F, None)], constants)


def bomb_stack() -> onnx.ModelProto:
    """Ten thousand trips stack a million elements each."""
    inner = body(
        [node("Identity", "on", "on_out"), node("Expand", "x million", "stacked")],
        TRIP,
        [("on_out", B, []), ("stacked", F, None)],
    )
    constants = {"yes": np.array(True), "M": np.array(10**4), "million": np.array([10**6])}
    return make_model([node("Loop", "M yes", "y", body=inner)], [("x", F, [1])], [("y", F, None)], constants)


def bomb_outer_product() -> onnx.ModelProto:
    """A body whose tensors broadcast to 2⁴⁰ elements."""
    inner = body(
        [node("Identity", "on", "on_out"), node("Expand", "s k", "row"), node("Reshape", "row column", "col"),
         node("Mul", "row col", "all"), node("ReduceSum", "all", "sum", keepdims=0), node("Add", "s sum", "s_out")],
        [*TRIP, ("s", F, None)],
        [("on_out", B, []), ("s_out", F, None)],
    )  # fmt: skip
    constants = {"yes": np.array(True), "M": np.array(2), "k": np.array([2**20]), "column": np.array([-1, 1])}
    return make_model([node("Loop", "M yes x", "y", body=inner)], [("x", F, [1])], [("y", F, None)], constants)


def bomb_by_data(op: str) -> onnx.ModelProto:
    """An operator that makes 2⁴⁰ elements because a feed says so."""
    nodes = {
        "Expand": [node("Expand", "x n", "y")],
        "Range": [node("Squeeze", "n", "limit"), node("Range", "zero limit one", "r"), node("Cast", "r", "y", to=1)],
        "ConstantOfShape": [node("ConstantOfShape", "n", "y")],
        "Tile": [node("Tile", "x n", "y")],
        "Pad": [node("Concat", "zero1 n", "pads", axis=0), node("Pad", "x pads", "y")],
    }[op]
    constants = {"zero": np.array(0), "one": np.array(1), "zero1": np.array([0])}
    return make_model(nodes, [("x", F, [1]), ("n", I, [1])], [("y", F, None)], constants)


BOMBS: dict[str, tuple[Callable[[], onnx.ModelProto], Feeds]] = {
    "trips": (lambda: bomb_loop(2**62), {}),
    "wide body": (lambda: bomb_loop(10**6, 300), {}),
    "folded": (bomb_folded, {}),
    "never false": (bomb_never_false, {}),
    "nested": (bomb_nested, {}),
    "doubling": (bomb_doubling, {}),
    "doubling by data": (bomb_doubling_by_data, {}),
    "stack": (bomb_stack, {}),
    "outer product": (bomb_outer_product, {}),
    **{
        f"{op} by data": ((lambda op=op: bomb_by_data(op)), {"n": np.array([2**40])})
        for op in ("Expand", "Range", "ConstantOfShape", "Tile", "Pad")
    },
}


def defuse(name: str) -> str:
    """Load and run a bomb; what the error says."""
    make, more = BOMBS[name]
    with pytest.raises(le.LstmEngineError) as caught:
        le.load(make().SerializeToString()).run({"x": np.ones(1, F), **more})
    return str(caught.value)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_an_error_in_bounded_time(name: str) -> None:
    begin = time.thread_time()
    said = defuse(name)
    assert time.thread_time() - begin < 4  # half of it on a quiet machine
    assert "budget" in said or "limit" in said


@pytest.mark.parametrize("name", [n for n in BOMBS if n.endswith(("doubling", "data", "stack", "product"))])
def test_a_bomb_is_an_error_in_bounded_memory(name: str) -> None:
    tracemalloc.start()
    try:
        defuse(name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 30


def test_a_long_scan_that_is_fed_is_no_bomb() -> None:
    inner = body(
        [node("Mul", "h decay", "kept"), node("Add", "kept row", "h_out"), node("Identity", "h_out", "y")],
        [("h", F, []), ("row", F, [])],
        [("h_out", F, []), ("y", F, [])],
    )
    model = make_model(
        [node("Scan", "h0 x", "hn ys", body=inner, num_scan_inputs=1)],
        [("h0", F, []), ("x", F, ["t"]), ("decay", F, [])],
        [("hn", F, None), ("ys", F, None)],
    )
    x = arrays(30_000)
    feeds = {"h0": np.array(0, F), "x": x, "decay": np.array(0.5, F)}
    got = le.load(model.SerializeToString()).run(feeds)
    assert got["ys"].shape == (30_000,)
    np.testing.assert_allclose(got["hn"], sum(float(v) * 0.5**k for k, v in enumerate(x[::-1][:60])), rtol=1e-4)


# --- what is wrong with a node ----------------------------------------------------------------------------------------


def loop_node(**changes: Any) -> Node:
    return Node(**{**vars_of(graph_of(counted_loop().model).nodes[0]), **changes})


def vars_of(n: Node) -> dict[str, Any]:
    return {key: getattr(n, key) for key in ("op", "inputs", "outputs", "attributes", "name", "domain")}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attributes": {}}, "body must be a graph"),
        ({"inputs": ("M", "", "x", "x")}, "2 carried values"),
        ({"outputs": ("a", "b", "c")}, "3 outputs are asked for"),
    ],
)
def test_a_loop_that_does_not_fit_its_body_is_refused(changes: dict[str, Any], says: str) -> None:
    faults = reference.node_faults(loop_node(**changes))
    assert any(says in fault for fault in faults), faults


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_scan_inputs": 9}, "num_scan_inputs must lie in"),
        ({"scan_input_axes": (0, 1)}, "scan_input_axes must hold 1"),
        ({"scan_output_axes": (7,)}, "axis 7"),
        ({"strange": 1}, "attribute strange"),
    ],
)
def test_a_scan_that_does_not_fit_its_body_is_refused(changes: dict[str, Any], says: str) -> None:
    net = scan("scan")
    graph = graph_of(net.model)
    (n,) = graph.nodes
    changed = Node(n.op, n.inputs, n.outputs, {**n.attributes, **changes}, n.name)
    with pytest.raises(le.LstmEngineError, match=says):
        specialise(graph.with_nodes([changed]), {"h0": (2, 3), "x": (5, 2, 3)})


def test_a_stack_must_keep_its_shape() -> None:
    inner = body(
        [node("Concat", "s x", "s_out", axis=0), node("Identity", "on", "on_out"), node("Neg", "s_out", "stacked")],
        [*TRIP, ("s", F, None)],
        [("on_out", B, []), ("s_out", F, None), ("stacked", F, None)],
    )
    model = make_model(
        [node("Loop", "M - x", "last all", body=inner)],
        [("x", F, ["n"]), ("M", I, [])],
        [("last", F, None), ("all", F, None)],
    )
    loaded = le.load(model.SerializeToString())
    assert loaded.run({"x": arrays(2), "M": np.array(1)})["all"].shape == (1, 4)
    with pytest.raises(le.LstmEngineError, match="stacked over the trips"):
        loaded.run({"x": arrays(2), "M": np.array(3)})


def test_a_condition_must_have_one_element() -> None:
    net = if_that_hands_tensors_on()
    model = onnx.ModelProto.FromString(net.model.SerializeToString())
    model.graph.input[1].CopyFrom(value_info("flag", B, ["k"]))
    loaded = le.load(model.SerializeToString())
    with pytest.raises(le.LstmEngineError, match="one element"):
        loaded.run({"x": arrays(3), "flag": np.array([True, False])})


# --- Scan of operator set 8 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize("lengths", [None, [3, 1]])
def test_scan_of_set_8_runs_row_by_row(backwards: int, lengths: list[int] | None) -> None:
    spec = le.graph.TensorSpec
    dtype = np.dtype(F)
    inner = Graph.build(
        [Node("Add", ("h", "row"), ("next",)), Node("Neg", ("next",), ("y",))],
        [spec("h", dtype, None), spec("row", dtype, None)],
        [spec("next", dtype, None), spec("y", dtype, None)],
        {},
        21,
    )
    attributes = {"body": inner, "num_scan_inputs": 1, "directions": (backwards,)}
    n = Node("BatchScan", ("", "h0", "x"), ("hn", "ys"), attributes, domain="lstm_engine")
    h0, x = arrays(2, 4), arrays(2, 3, 4, seed=1)
    hn, ys = reference.evaluate(n, [None if lengths is None else np.array(lengths), h0, x])
    for b, length in enumerate(lengths or [3, 3]):
        rows = x[b, :length][:: -1 if backwards else 1]
        sums = h0[b] + np.cumsum(rows, axis=0)
        np.testing.assert_allclose(hn[b], sums[-1], rtol=1e-5)
        np.testing.assert_allclose(ys[b, :length], -sums, rtol=1e-5)
        assert not ys[b, length:].any()
    graph = Graph.build([n], [spec("h0", dtype, (None,) * 2), spec("x", dtype, (None,) * 3)],
                        [spec("hn", dtype, None), spec("ys", dtype, None)], {}, 21)  # fmt: skip
    known = specialise(graph, {"h0": (2, 4), "x": (2, 3, 4)})
    assert known.shapes["hn"] == hn.shape
    assert known.shapes["ys"] == ys.shape


# --- random programs --------------------------------------------------------------------------------------------------


class Writer:
    """Writes random nodes over named tensors of shape [3]; control flow nests up to a depth."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.count = 0

    def fresh(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def one_of(self, names: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(names))

    def block(self, known: Sequence[str], depth: int) -> tuple[list[onnx.NodeProto], str]:
        """Some nodes and the last of what they make."""
        names, nodes = list(known), []
        for _ in range(self.draw(st.integers(1, 3))):
            kind = self.one_of(["map", "join", "if", "loop", "scan"] if depth else ["map", "join"])
            made = self.fresh()
            nodes += getattr(self, kind)(names, made, depth)
            names.append(made)
        return nodes, names[-1]

    def map(self, names: Sequence[str], made: str, depth: int) -> list[onnx.NodeProto]:
        return [node(self.one_of(["Neg", "Tanh", "Sigmoid"]), self.one_of(names), made)]

    def join(self, names: Sequence[str], made: str, depth: int) -> list[onnx.NodeProto]:
        return [node(self.one_of(["Add", "Sub", "Mul"]), f"{self.one_of(names)} {self.one_of(names)}", made)]

    def branch(self, names: Sequence[str], depth: int) -> onnx.GraphProto:
        nodes, last = self.block(names, depth - 1)
        return branch(nodes, (last, F, [3]))

    def condition(self, names: Sequence[str], made: str) -> list[onnx.NodeProto]:
        total = self.fresh()
        return [node("ReduceSum", self.one_of(names), total, keepdims=0), node("Greater", f"{total} nought", made)]

    def If(self, names: Sequence[str], made: str, depth: int) -> list[onnx.NodeProto]:  # noqa: N802
        test = self.fresh()
        parts = {"then_branch": self.branch(names, depth), "else_branch": self.branch(names, depth)}
        return [*self.condition(names, test), node("If", test, made, **parts)]

    def loop(self, names: Sequence[str], made: str, depth: int) -> list[onnx.NodeProto]:
        trip, on, state, going = (self.fresh() for _ in range(4))
        nodes, last = self.block([*names, state], depth - 1)
        nodes += (
            self.condition([*names, state, last], going) if self.draw(st.booleans()) else [node("Identity", on, going)]
        )
        inner = body(
            nodes, [(trip, I, []), (on, B, []), (state, F, [3])], [(going, B, []), (last, F, [3])], self.fresh()
        )
        most = self.one_of(["none", "one", "three"])
        return [node("Loop", f"{most} yes {self.one_of(names)}", made, body=inner)]

    def scan(self, names: Sequence[str], made: str, depth: int) -> list[onnx.NodeProto]:
        state, row, summed, final, square = (self.fresh() for _ in range(5))
        nodes, last = self.block([*names, state], depth - 1)
        nodes.append(node("Add", f"{last} {row}", summed))
        inner = body(nodes, [(state, F, [3]), (row, F, [])], [(summed, F, [3])], self.fresh())
        back = [self.draw(st.integers(0, 1))]
        attributes = {"body": inner, "num_scan_inputs": 1, "scan_input_directions": back}
        start, over = self.one_of(names), self.one_of(names)
        return [
            node("Scan", f"{start} {over}", final, **attributes),
            node("Identity", final, square),
            node("Tanh", square, made),
        ]


setattr(Writer, "if", Writer.If)


@st.composite
def programs(draw: st.DrawFn) -> onnx.ModelProto:
    writer = Writer(draw)
    nodes, last = writer.block(["x", "k"], 2)
    constants = {
        "k": np.array([0.5, -1, 2], F), "nought": np.array(0, F), "yes": np.array(True), "none": np.array(0),
        "one": np.array(1), "three": np.array([3]),
    }  # fmt: skip
    nodes.append(node("Identity", last, "y"))
    return make_model(nodes, [("x", F, [3])], [("y", F, None)], constants)


@settings(deadline=None)
@given(programs())
def test_random_programs_give_what_onnxruntime_gives(model: onnx.ModelProto) -> None:
    loaded = le.load(model.SerializeToString())
    for seed in (0, 1):
        x = arrays(3, seed=seed)
        assert_same(loaded.run(x), by_onnxruntime(model, {"x": x}))


def test_the_budget_of_folding_is_one_for_the_whole_file() -> None:
    """Many loops, each within the budget: the file as a whole is not folded beyond it."""
    inner = body(
        [node("Add", "s one", "s_out"), node("Identity", "on", "on_out")],
        [*TRIP, ("s", F, None)],
        [("on_out", B, []), ("s_out", F, None)],
    )
    nodes = [node("Loop", "M yes one", f"y{k}", body=inner) for k in range(20)]
    nodes.append(node("Sum", "x " + " ".join(f"y{k}" for k in range(20)), "y"))
    constants = {"one": np.array([1], F), "yes": np.array(True), "M": np.array(2000)}
    graph = graph_of(make_model(nodes, [("x", F, [1])], [("y", F, None)], constants))
    begin = time.thread_time()
    folded = shapes_pass.fold(graph)
    assert time.thread_time() - begin < 4
    assert 1 < sum(n.op == "Loop" for n in folded.nodes) < 19
