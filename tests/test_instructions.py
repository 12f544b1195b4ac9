"""Machine code beside definitions: convolution, pooling, reductions, products, moved elements, recurrences within rows.

Each model is lowered and must have no host call left, so that what is compared is the machine code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from cases import LAYERS, LayerCase, examples, model_of
from hypothesis import assume, given
from hypothesis import strategies as st

from lstm_engine import reference
from lstm_engine.errors import ModelFormatError, UnsupportedModelError
from lstm_engine.graph import Graph, Node, TensorSpec
from lstm_engine.model import Call, Model
from lstm_engine.passes.shapes import specialise
from lstm_engine.program.lower import Lowering, Plan
from lstm_engine.program.packing import Store
from lstm_engine.program.plan import Lowered, element_type
from lstm_engine.program.program import Means

Feeds = Mapping[str, np.ndarray]
DTYPES = st.sampled_from([np.float32, np.float64])


def graph_of(nodes: Sequence[Node], feeds: Feeds, constants: Feeds) -> Graph:
    """A graph whose inputs have the feeds' shapes, the first axis open, and whose output is the last node's first."""
    inputs = [TensorSpec(name, x.dtype, ("batch", *x.shape[1:])) for name, x in feeds.items()]
    outputs = [TensorSpec(nodes[-1].outputs[0], np.dtype(np.float32), None)]
    return Graph.build(nodes, inputs, outputs, constants, 21)


def assert_in_machine_code(graph: Graph, feeds: Feeds, flat: bool = False) -> dict[str, np.ndarray]:
    """Lowered without a host call, the graph gives what its definition gives in float64."""
    exact = reference.run(graph, feeds)
    if flat:
        known = specialise(graph, {name: x.shape for name, x in feeds.items()})
        plan = Plan(False, False, 1, flat=True)
        program = Lowering(graph, known, plan, Store(), Means(element_type(graph))).lower()
        call = Call.prepare(Lowered(program, dict.fromkeys(feeds), False), [], feeds, {}, tuple(exact))
        got = call.run(feeds)
    else:
        model = Model(graph, element_type(graph))
        got = model.run(dict(feeds))
        program = next(iter(model._programs.values()))[0].program
    assert not program.hosts, [call.reason for call in program.hosts]
    for name, x in exact.items():
        assert got[name].shape == x.shape
        single = got[name].dtype == np.float32
        reach = max(1.0, float(np.abs(x[np.isfinite(x)]).max(initial=0)))
        np.testing.assert_allclose(got[name], x, rtol=0, atol=(2e-6 if single else 1e-13) * 8 * reach)
    return got


def drawn(draw: st.DrawFn, shape: Sequence[int], dtype: Any) -> np.ndarray:
    seed = draw(st.integers(0, 1 << 30))
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# --- convolution and pooling ------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Node, Feeds, Feeds]:
    rank = draw(st.integers(1, 3))
    group = draw(st.sampled_from([1, 1, 2, 3]))
    inputs = group * draw(st.integers(1, 5))
    outputs = group * draw(st.sampled_from([1, 2, 5, 15, 16, 17, 33, 64, 70] if rank < 3 else [1, 3, 16]))
    kernel = draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    spatial = draw(st.lists(st.integers(1, 9), min_size=rank, max_size=rank))
    strides = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    dilations = draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    attributes: dict[str, Any] = {"group": group, "strides": tuple(strides), "dilations": tuple(dilations)}
    attributes["pads"] = tuple(draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank)))
    op = draw(st.sampled_from(["Conv", "ConvTranspose"]))
    if op == "ConvTranspose" and draw(st.booleans()):
        most = [max(s, d) for s, d in zip(strides, dilations, strict=True)]
        attributes["output_padding"] = tuple(draw(st.integers(0, m - 1)) for m in most)
    dtype = draw(DTYPES)
    W = (outputs, inputs // group, *kernel) if op == "Conv" else (inputs, outputs // group, *kernel)
    constants = {"W": drawn(draw, W, dtype) / dtype(np.sqrt(np.prod(W[1:])))}
    names = ["x", "W"]
    if draw(st.booleans()):
        constants["B"] = drawn(draw, (outputs,), dtype)
        names.append("B")
    feeds = {"x": drawn(draw, (draw(st.integers(1, 3)), inputs, *spatial), dtype)}
    return Node(op, tuple(names), ("y",), attributes), feeds, constants


@examples(120)
@given(convolutions())
def test_a_convolution(drawn_case: tuple[Node, Feeds, Feeds]) -> None:
    node, feeds, constants = drawn_case
    graph = graph_of([node], feeds, constants)
    try:
        whole = reference.run(graph, feeds)["y"]
    except ModelFormatError:
        assume(False)
    assume(whole.size)
    assert_in_machine_code(graph, feeds)


def test_a_convolution_is_the_same_whoever_shares_its_batch() -> None:
    rng = np.random.default_rng(0)
    W = {"W": rng.standard_normal((20, 3, 5)).astype(np.float32)}
    feeds = {"x": rng.standard_normal((7, 3, 31)).astype(np.float32)}
    model = Model(graph_of([Node("Conv", ("x", "W"), ("y",), {"pads": (2, 2)})], feeds, W), "float32")
    together = model.run(feeds)["y"]
    for row in range(7):
        alone = model.run({"x": feeds["x"][row : row + 1]})["y"]
        np.testing.assert_array_equal(alone.view(np.int32), together[row : row + 1].view(np.int32))


@st.composite
def images(draw: st.DrawFn) -> tuple[list[Node], Feeds, Feeds]:
    """Lines of 16 places and more, so that places may lie abreast; a Relu, a bias or neither behind."""
    height, width = draw(st.integers(1, 5)), draw(st.sampled_from([16, 17, 24, 31, 32, 33, 48, 50]))
    group = draw(st.sampled_from([1, 1, 3]))
    kernel = (min(height, draw(st.integers(1, 3))), draw(st.integers(1, 3)))
    M, channels = group * draw(st.sampled_from([1, 2, 3, 4, 7, 8, 9, 16, 19])), group * draw(st.integers(1, 3))
    attributes = {"group": group, "pads": (kernel[0] // 2, kernel[1] // 2) * 2, "strides": (draw(st.integers(1, 2)), 1)}
    dtype = draw(DTYPES)
    constants = {"W": drawn(draw, (M, channels // group, *kernel), dtype), "B": drawn(draw, (M,), dtype)}
    feeds = {"x": drawn(draw, (draw(st.integers(1, 2)), channels, height, width), dtype)}
    names = ("x", "W", "B") if draw(st.booleans()) else ("x", "W")
    nodes = [Node("Conv", names, ("y",), attributes)]
    if draw(st.booleans()):
        nodes.append(Node("Relu", ("y",), ("z",)))
    return nodes, feeds, constants


@examples(100)
@given(images())
def test_lanes_are_places_or_outputs(case: tuple[list[Node], Feeds, Feeds]) -> None:
    """The same bits whichever the lanes of a convolution are."""
    nodes, feeds, constants = case
    graph = graph_of(nodes, feeds, constants)
    made = []
    for gain, kind in ((0.0, "outputs abreast"), (np.inf, "places abreast")):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("lstm_engine.program.convolution.SPAN_GAIN", gain)
            made.append(assert_in_machine_code(graph, feeds))
            model = Model(graph, element_type(graph))
            model.run(dict(feeds))
            (lowered, _), *_ = model._programs.values()
            assert any(kind in instruction.note for instruction in lowered.program.listing)
    for name, y in made[0].items():
        np.testing.assert_array_equal(y, made[1][name])


@pytest.mark.parametrize("width", [5, 32])
def test_a_relu_keeps_nan_and_leaves_what_others_read(width: int) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 3, width)).astype(np.float32)
    x[1, 0, 2] = np.nan
    constants = {"W": rng.standard_normal((4, 3, 1)).astype(np.float32)}
    nodes = [Node("Conv", ("x", "W"), ("y",)), Node("Relu", ("y",), ("z",)), Node("Neg", ("y",), ("n",))]
    inputs = [TensorSpec("x", x.dtype, ("batch", 3, width))]
    for names in (("z",), ("z", "y"), ("z", "n")):
        outputs = [TensorSpec(name, x.dtype, None) for name in names]
        graph = Graph.build(nodes, inputs, outputs, constants, 21)
        for name, got in Model(graph, "float32").run(x).items():
            np.testing.assert_allclose(got, reference.run(graph, {"x": x})[name], atol=1e-5)


def test_a_bias_that_is_added_to_a_view_of_a_product_leaves_the_product() -> None:
    x, W = np.ones((2, 3), np.float32), np.ones((3, 2), np.float32)
    constants = {"W": W, "b": np.full(2, 100, np.float32), "shape": np.array([-1, 1, 2])}
    nodes = [
        Node("MatMul", ("x", "W"), ("y",)),
        Node("Reshape", ("y", "shape"), ("r",)),
        Node("Add", ("r", "b"), ("z",)),
    ]
    outputs = [TensorSpec(name, np.dtype(np.float32), None) for name in ("y", "z")]
    graph = Graph.build(nodes, [TensorSpec("x", x.dtype, ("batch", 3))], outputs, constants, 21)
    got = Model(graph, "float32").run(x)
    assert (got["y"] == 3).all()
    assert (got["z"] == 103).all()


@st.composite
def pools(draw: st.DrawFn) -> tuple[Node, Feeds]:
    rank = draw(st.integers(1, 2))
    op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
    kernel = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    attributes: dict[str, Any] = {"kernel_shape": tuple(kernel), "ceil_mode": draw(st.integers(0, 1))}
    attributes["strides"] = tuple(draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank)))
    attributes["pads"] = tuple(draw(st.integers(0, k - 1)) for k in kernel * 2)
    if op == "AveragePool":
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    sizes = [draw(st.integers(3, 9)) for _ in range(rank)]
    sizes[-1] = draw(st.sampled_from([sizes[-1], 16, 31, 40, 67]))
    x = drawn(draw, (draw(st.integers(1, 3)), draw(st.integers(1, 20)), *sizes), draw(DTYPES))
    return Node(op, ("x",), ("y",), attributes), {"x": x}


@examples(80)
@given(pools())
def test_a_pool(drawn_case: tuple[Node, Feeds]) -> None:
    node, feeds = drawn_case
    graph = graph_of([node], feeds, {})
    try:
        reference.run(graph, feeds)
    except (ModelFormatError, UnsupportedModelError):
        assume(False)
    assert_in_machine_code(graph, feeds)


# --- reductions, products, softmax ------------------------------------------------------------------------------------


@examples(80)
@given(st.data())
def test_a_reduction(data: st.DataObject) -> None:
    rank = data.draw(st.integers(2, 4))
    shape = [data.draw(st.integers(1, 20)) for _ in range(rank)]
    op = data.draw(st.sampled_from(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"]))
    axes = data.draw(st.lists(st.integers(1, rank - 1), min_size=1, unique=True))
    signed = [axis - rank * data.draw(st.integers(0, 1)) for axis in axes]
    node = Node(op, ("x", "axes"), ("y",), {"keepdims": data.draw(st.integers(0, 1))})
    feeds = {"x": drawn(data.draw, shape, data.draw(DTYPES))}
    assert_in_machine_code(graph_of([node], feeds, {"axes": np.array(signed)}), feeds)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin", "ReduceSum"])
def test_a_reduction_keeps_nan(op: str) -> None:
    x = np.ones((2, 20, 3), np.float32)
    x[0, 7, 1] = np.nan
    y = Model(graph_of([Node(op, ("x", "a"), ("y",))], {"x": x}, {"a": np.array([1])}), "float32").run({"x": x})["y"]
    assert np.isnan(y).sum() == 1
    assert np.isnan(y[0, 0, 1])


@examples(60)
@given(st.data())
def test_a_product_of_computed_matrices(data: st.DataObject) -> None:
    M, K, N = (data.draw(st.sampled_from([1, 2, 3, 15, 16, 17, 40])) for _ in range(3))
    batch, heads = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    dtype = data.draw(DTYPES)
    feeds = {
        "x": drawn(data.draw, (batch, heads, M, K), dtype),
        "y": drawn(data.draw, (batch, heads, K, N), dtype),
    }
    assert_in_machine_code(graph_of([Node("MatMul", ("x", "y"), ("z",))], feeds, {}), feeds)


@examples(60)
@given(st.data())
def test_what_runs_along_the_last_axis_of_a_row(data: st.DataObject) -> None:
    shape = [data.draw(st.integers(1, 4)), data.draw(st.integers(1, 7)), data.draw(st.sampled_from([1, 3, 16, 17, 33]))]
    dtype = data.draw(DTYPES)
    feeds = {"x": drawn(data.draw, shape, dtype)}
    W = drawn(data.draw, (shape[-1], data.draw(st.sampled_from([1, 5, 16, 65]))), dtype)
    nodes = [
        Node("MatMul", ("x", "W"), ("y",)),
        Node(data.draw(st.sampled_from(["Softmax", "LogSoftmax"])), ("y",), ("z",)),
    ]
    assert_in_machine_code(graph_of(nodes, feeds, {"W": W}), feeds)


# --- moved elements ---------------------------------------------------------------------------------------------------


@examples(150)
@given(st.data())
def test_elements_that_move_within_rows(data: st.DataObject) -> None:
    """A chain of moves that leave the first axis alone, then one elementwise operator with a broadcast operand."""
    dtype = data.draw(DTYPES)
    shape = [data.draw(st.integers(1, 3)), *(data.draw(st.integers(1, 5)) for _ in range(data.draw(st.integers(1, 3))))]
    feeds = {"x": drawn(data.draw, shape, dtype)}
    constants: dict[str, np.ndarray] = {}
    nodes: list[Node] = []
    for k in range(data.draw(st.integers(1, 4))):
        source, made = (f"t{k - 1}" if k else "x"), f"t{k}"
        nodes.append(_move(data, source, made, shape, constants, k, dtype))
        shape = list(reference.run(graph_of(nodes, feeds, constants), feeds)[made].shape)
    repeated = [1 if data.draw(st.booleans()) else size for size in shape[1:]]
    constants["y"] = drawn(data.draw, repeated, dtype)
    nodes.append(Node(data.draw(st.sampled_from(["Add", "Mul", "Sub", "PRelu"])), (nodes[-1].outputs[0], "y"), ("z",)))
    assert_in_machine_code(graph_of(nodes, feeds, constants), feeds)


def _move(
    data: st.DataObject, source: str, made: str, shape: list[int], constants: dict[str, np.ndarray], k: int, dtype: Any
) -> Node:
    rank = len(shape)
    axis = data.draw(st.integers(1, rank - 1))
    op = data.draw(st.sampled_from(["Transpose", "Slice", "Gather", "Pad", "Tile", "Concat", "Reshape"]))
    if op == "Transpose":
        return Node(
            op, (source,), (made,), {"perm": (0, *(1 + p for p in data.draw(st.permutations(range(rank - 1)))))}
        )
    if op == "Slice":
        step = data.draw(st.sampled_from([1, 2, -1, -2]))
        start, end = (0, shape[axis]) if step > 0 else (shape[axis] - 1, -shape[axis] - 1)
        constants |= {f"{n}{k}": np.array([v]) for n, v in (("s", start), ("e", end), ("a", axis), ("p", step))}
        return Node(op, (source, f"s{k}", f"e{k}", f"a{k}", f"p{k}"), (made,))
    if op == "Gather":
        count = data.draw(st.integers(1, 4))
        constants[f"i{k}"] = np.array([data.draw(st.integers(-shape[axis], shape[axis] - 1)) for _ in range(count)])
        return Node(op, (source, f"i{k}"), (made,), {"axis": axis})
    if op == "Pad":
        pads = [0] * (2 * rank)
        pads[axis], pads[rank + axis] = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
        constants |= {f"w{k}": np.array(pads), f"v{k}": np.array(0.5, dtype)}
        mode = data.draw(st.sampled_from(["constant", "edge"]))
        return Node(
            op, (source, f"w{k}", f"v{k}") if mode == "constant" else (source, f"w{k}"), (made,), {"mode": mode}
        )
    if op == "Tile":
        constants[f"r{k}"] = np.array([1, *(data.draw(st.integers(1, 2)) for _ in range(rank - 1))])
        return Node(op, (source, f"r{k}"), (made,))
    if op == "Concat":
        return Node(op, (source, source), (made,), {"axis": axis})
    constants[f"n{k}"] = np.array([0, -1, 1])
    return Node(op, (source, f"n{k}"), (made,))


def test_what_hangs_on_shapes_goes_with_its_program() -> None:
    """Programs of many shapes come and go; their tables are not kept, the packed weights are packed once."""
    rng = np.random.default_rng(1)
    constants = {
        "W": rng.standard_normal((4, 3, 3)).astype(np.float32),
        "R": rng.standard_normal((4, 5)).astype(np.float32),
    }
    nodes = [
        Node("Conv", ("x", "W"), ("a",), {"pads": (1, 1)}),
        Node("Transpose", ("a",), ("b",), {"perm": (0, 2, 1)}),
        Node("MatMul", ("b", "R"), ("y",)),
    ]
    inputs = [TensorSpec("x", np.dtype(np.float32), ("batch", 3, "width"))]
    graph = Graph.build(nodes, inputs, [TensorSpec("y", np.dtype(np.float32), None)], constants, 21)
    model = Model(graph, "float32")
    held = []
    for width in range(40, 100):
        x = rng.standard_normal((2, 3, width)).astype(np.float32)
        np.testing.assert_allclose(model.run(x)["y"], reference.run(graph, {"x": x})["y"], atol=1e-4)
        held.append(model.store.nbytes)
    assert max(held[40:]) < 2 * max(held[:20])


# --- recurrences within rows ------------------------------------------------------------------------------------------

#: Lengths need the program's time, and activations of every kind amplify.
WITHIN = [case for case in LAYERS if not case.lengths and not case.activations]


@pytest.mark.parametrize("case", WITHIN, ids=str)
def test_a_recurrence_within_rows(case: LayerCase) -> None:
    """The same layers where no axis is the program's time: every row runs its own sequence."""
    assert_in_machine_code(model_of(case).graph, case.feeds(), flat=True)


def test_rows_of_one_input_that_begin_in_states_of_their_own() -> None:
    rng = np.random.default_rng(5)
    constants = {
        "W": rng.uniform(-0.4, 0.4, (1, 20, 3)).astype(np.float32),
        "R": rng.uniform(-0.4, 0.4, (1, 20, 5)).astype(np.float32),
        "shape": np.array([6, 2, 3]),
    }
    nodes = [
        Node("Expand", ("x", "shape"), ("wide",)),
        Node("LSTM", ("wide", "W", "R", "", "", "h", "h"), ("Y", "", "Y_c"), {"hidden_size": 5}),
    ]
    feeds = {
        "x": rng.standard_normal((6, 1, 3)).astype(np.float32),
        "h": rng.standard_normal((1, 2, 5)).astype(np.float32),
    }
    inputs = [TensorSpec(name, x.dtype, x.shape) for name, x in feeds.items()]
    outputs = [TensorSpec(name, np.dtype(np.float32), None) for name in ("Y", "Y_c")]
    assert_in_machine_code(Graph.build(nodes, inputs, outputs, constants, 21), feeds, flat=True)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_a_state_whose_rows_are_another_axis(op: str) -> None:
    """B = H: the axis that is the batch of x is the units of the initial state, which no row may take for its own."""
    rng = np.random.default_rng(6)
    G = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    constants = {
        "W": rng.uniform(-0.4, 0.4, (1, G * 3, 1)).astype(np.float32),
        "R": rng.uniform(-0.4, 0.4, (1, G * 3, 3)).astype(np.float32),
    }
    nodes = [
        Node("Transpose", ("h",), ("x",), {"perm": (1, 2, 0)}),
        Node(op, ("x", "W", "R", "", "", "h"), ("Y", "Y_h"), {"hidden_size": 3}),
    ]
    feeds = {"h": rng.standard_normal((1, 3, 3)).astype(np.float32)}
    outputs = [TensorSpec(name, np.dtype(np.float32), None) for name in ("Y", "Y_h")]
    graph = Graph.build(nodes, [TensorSpec("h", np.dtype(np.float32), (1, 3, 3))], outputs, constants, 21)
    exact, known = reference.run(graph, feeds), specialise(graph, {"h": (1, 3, 3)})
    for flat in (True, False):
        program = Lowering(
            graph, known, Plan(False, False, 1 if flat else 3, flat=flat), Store(), Means("float32")
        ).lower()
        call = Call.prepare(Lowered(program, {"h": None}, False), [], feeds, {}, ("Y", "Y_h"))
        for name, x in call.run(feeds).items():
            np.testing.assert_allclose(x, exact[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_a_dual_path(op: str, direction: str) -> None:
    """A recurrence over frequencies inside each step, then one over steps: chunks give the whole run's bits."""
    rng = np.random.default_rng(3)
    F, C, H = 5, 3, 6
    G, D = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2 if direction == "bidirectional" else 1

    def weights(inputs: int, hidden: int, count: int, name: str) -> dict[str, np.ndarray]:
        shapes = {"W": (count, G * hidden, inputs), "R": (count, G * hidden, hidden)}
        return {f"{k}{name}": rng.uniform(-0.4, 0.4, s).astype(np.float32) for k, s in shapes.items()}

    constants = {**weights(C, H, D, "1"), **weights(F * D * H, 8, 1, "2")}
    constants |= {"s1": np.array([F, -1, C]), "s2": np.array([-1, 2, F * D * H])}
    nodes = [  # x [T, B, F, C] → [F, T·B, C] → over F → [T·B, F, D·H] → [T, B, F·D·H] → over T
        Node("Transpose", ("x",), ("a",), {"perm": (2, 0, 1, 3)}),
        Node("Reshape", ("a", "s1"), ("b",)),
        Node(op, ("b", "W1", "R1"), ("c", "", ""), {"hidden_size": H, "direction": direction}),
        Node("Transpose", ("c",), ("d",), {"perm": (2, 0, 1, 3)}),
        Node("Reshape", ("d", "s2"), ("e",)),
        Node(op, ("e", "W2", "R2"), ("Y",), {"hidden_size": 8}),
    ]
    inputs = [TensorSpec("x", np.dtype(np.float32), ("time", 2, F, C))]
    graph = Graph.build(nodes, inputs, [TensorSpec("Y", np.dtype(np.float32), None)], constants, 21)
    feeds = {"x": rng.standard_normal((9, 2, F, C)).astype(np.float32)}
    whole = assert_in_machine_code(graph, feeds)["Y"]
    stream = Model(graph, "float32").stream(batch=2)
    parts = [stream.feed(feeds["x"][:4]), stream.feed(feeds["x"][4:5]), stream.feed(feeds["x"][5:])]
    np.testing.assert_array_equal(np.concatenate(parts).view(np.int32), whole.view(np.int32))
