"""Recurrent layers that were written out are recognised, give what onnxruntime gives, and near misses stay as they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import Info, make_model, rng
from onnx import helper
from test_zoo import INDEX, ZOO

import lstm_engine as le
from lstm_engine.formats import read
from lstm_engine.graph import Graph
from lstm_engine.passes.modernise import modernise
from lstm_engine.passes.recognise import recognise
from lstm_engine.passes.shapes import fold

INPUTS, H = 3, 4
CELLS = ("LSTM", "GRU", "RNN")
CONTROL = ("Loop", "Scan")


class Writing:
    """Nodes and constants of a graph or body, written one after the other."""

    def __init__(self, prefix: str = "", seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.prefix = prefix
        self.draw = rng(seed)
        self.count = itertools.count()

    def __call__(self, op: str, *inputs: Any, output: str = "", outputs: int = 1, **attributes: Any) -> Any:
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        made = [output] if output else [f"{self.prefix}{op}_{next(self.count)}" for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, names, made, **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        name = f"{self.prefix}constant_{next(self.count)}"
        self.constants[name] = array.astype(np.float32) if array.dtype == np.float64 else array
        return name

    def weights(self, *shape: int) -> np.ndarray:
        return self.draw.uniform(-0.6, 0.6, shape).astype(np.float32)

    def model(self, inputs: Sequence[Info], outputs: Sequence[Info], opset: int = 17) -> bytes:
        return make_model(self.nodes, inputs, outputs, self.constants, opset).SerializeToString()


X: Info = ("x", np.float32, ["B", INPUTS])
STATES: list[Info] = [("h", np.float32, ["B", H]), ("c", np.float32, ["B", H])]
NEW: list[Info] = [("h_new", np.float32, ["B", H]), ("c_new", np.float32, ["B", H])]


def loaded(data: bytes) -> Graph:
    return fold(modernise(read(data)))


def operators(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes if node.op in (*CELLS, *CONTROL)]


def feeds_of(data: bytes, seed: int = 1, **sizes: int) -> dict[str, np.ndarray]:
    draw = rng(seed)
    model = onnx.load_from_string(data)
    feeds = {}
    for spec in model.graph.input:
        shape = [d.dim_value or sizes.get(d.dim_param, 2) for d in spec.type.tensor_type.shape.dim]
        feeds[spec.name] = draw.normal(size=shape).astype(np.float32)
    return feeds


def check_recognised(data: bytes, expected: Sequence[str], **sizes: int) -> Graph:
    """The model has just these layers, and gives what onnxruntime gives for the file."""
    model = le.load(data)
    assert operators(model.graph) == list(expected)
    check_same(data, model, **sizes)
    return model.graph


def check_same(data: bytes, model: le.Model, **sizes: int) -> None:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for seed, scale in ((1, 1.0), (2, 30.0)):
        feeds = {name: x * np.float32(scale) for name, x in feeds_of(data, seed, **sizes).items()}
        got = model.run(feeds)
        for spec, value in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            np.testing.assert_allclose(got[spec.name], value, rtol=2e-5, atol=2e-5, err_msg=spec.name)


def check_untouched(data: bytes) -> None:
    """Nothing is recognised; and where the engine runs the model as it is, it is right."""
    graph = loaded(data)
    assert recognise(graph) is graph
    if not operators(graph):
        check_same(data, le.load(data))


# --- cells ------------------------------------------------------------------------------------------------------------


def projection(w: Writing, x: str, h: str, gates: int, spelling: str = "gemm", biases: int = 2) -> str:
    """The sum of both products [B, gates·H]."""
    b = [w.weights(gates * H) for _ in range(biases)]
    if spelling == "gemm":
        parts = [
            w("Gemm", name, w.weights(gates * H, size), *b[k : k + 1], transB=1)
            for k, (name, size) in enumerate(((x, INPUTS), (h, H)))
        ]
        return w("Add", *parts)
    if spelling == "concat":
        total = w("MatMul", w("Concat", x, h, axis=1), w.weights(INPUTS + H, gates * H))
    else:
        total = w("Add", w("MatMul", h, w.weights(H, gates * H)), w("MatMul", x, w.weights(INPUTS, gates * H)))
    for bias in b:
        total = w("Add", total, bias)
    return total


def lstm_cell(
    w: Writing,
    x: str,
    h: str,
    c: str,
    order: str = "ifgo",
    spelling: str = "gemm",
    biases: int = 2,
    sigmoid: Callable[[Writing, str], str] | None = None,
    names: tuple[str, str] = ("", ""),
) -> tuple[str, str, dict[str, str]]:
    """h', c' and the gates of a step, the gates stacked in some order."""
    stacked = projection(w, x, h, 4, spelling, biases)
    pre = dict(zip(order, w("Split", stacked, np.array([H] * 4), outputs=4, axis=1), strict=True))
    squash = sigmoid or (lambda w, x: w("Sigmoid", x))
    gates = {name: w("Tanh", pre[name]) if name == "g" else squash(w, pre[name]) for name in "ifgo"}
    new = w("Add", w("Mul", gates["f"], c), w("Mul", gates["g"], gates["i"]), output=names[1])
    return w("Mul", gates["o"], w("Tanh", new), output=names[0]), new, gates


def lstm_step(**options: Any) -> bytes:
    w = Writing()
    lstm_cell(w, "x", "h", "c", names=("h_new", "c_new"), **options)
    return w.model([X, *STATES], NEW)


@pytest.mark.parametrize("order", ["".join(order) for order in itertools.permutations("ifgo")])
def test_an_lstm_cell_in_every_gate_order(order: str) -> None:
    graph = check_recognised(lstm_step(order=order), ["LSTM"], B=5)
    assert not any(node.op in ("Sigmoid", "Tanh", "MatMul", "Gemm") for node in graph.nodes)


@pytest.mark.parametrize("spelling", ["gemm", "matmul", "concat"])
@pytest.mark.parametrize("biases", [0, 1, 2])
def test_an_lstm_cell_in_every_spelling(spelling: str, biases: int) -> None:
    check_recognised(lstm_step(spelling=spelling, biases=biases), ["LSTM"], B=3)


def clipped(w: Writing, x: str) -> str:
    return w("Clip", w("Add", w("Mul", x, 0.2), 0.5), 0.0, 1.0)


def keras3_hard_sigmoid(w: Writing, x: str) -> str:
    return w("Mul", w("Clip", w("Add", x, 3.0), 0.0, 6.0), 1 / 6)


def logistic(w: Writing, x: str) -> str:
    return w("Div", 1.0, w("Add", 1.0, w("Exp", w("Neg", x))))


def twice_negated(w: Writing, x: str) -> str:
    return w("Sub", 1.0, w("Sigmoid", w("Neg", x)))


@pytest.mark.parametrize(
    "sigmoid",
    [
        clipped,
        keras3_hard_sigmoid,
        logistic,
        twice_negated,
        lambda w, x: w("HardSigmoid", x, alpha=0.3, beta=0.4),
        lambda w, x: w("Min", w("Max", w("Add", w("Mul", x, 0.2), 0.5), 0.0), 1.0),
        lambda w, x: w("Relu", x),
        lambda w, x: w("Elu", x, alpha=0.7),
    ],
)
def test_gate_functions_as_they_are_spelled(sigmoid: Callable[[Writing, str], str]) -> None:
    check_recognised(lstm_step(sigmoid=sigmoid), ["LSTM"], B=2)


def test_coupled_gates_and_peepholes() -> None:
    w = Writing()
    pre = dict(zip("fgo", w("Split", projection(w, "x", "h", 3), np.array([H] * 3), outputs=3, axis=1), strict=True))
    f = w("Sigmoid", w("Add", pre["f"], w("Mul", "c", w.weights(H))))
    c = w("Add", w("Mul", "c", f), w("Mul", w("Sub", 1.0, f), w("Tanh", pre["g"])), output="c_new")
    o = w("Sigmoid", w("Add", w("Mul", w.weights(H), c), pre["o"]))
    w("Mul", w("Tanh", c), o, output="h_new")
    graph = check_recognised(w.model([X, *STATES], NEW), ["LSTM"], B=3)
    node = next(node for node in graph.nodes if node.op == "LSTM")
    P = graph.constants[node.inputs[7]]
    assert np.count_nonzero(P) == 3 * H


@pytest.mark.parametrize("blend", ["weighted", "towards_n", "away_from_n", "swapped"])
@pytest.mark.parametrize("reset", ["before", "after", "before_concat"])
def test_gru_cells(blend: str, reset: str) -> None:
    w = Writing()
    z, r = (w("Sigmoid", projection(w, "x", "h", 1, "matmul")) for _ in range(2))
    if reset == "after":
        past = w("Gemm", "h", w.weights(H, H), w.weights(H), transB=1)
        n = w("Tanh", w("Add", w("Gemm", "x", w.weights(INPUTS, H), w.weights(H)), w("Mul", r, past)))
    elif reset == "before":
        n = w("Tanh", w("Add", w("MatMul", w("Mul", "h", r), w.weights(H, H)), w("MatMul", "x", w.weights(INPUTS, H))))
    else:
        n = w("Tanh", w("MatMul", w("Concat", "x", w("Mul", r, "h"), axis=-1), w.weights(INPUTS + H, H)))
    if blend == "weighted":
        w("Add", w("Mul", w("Sub", 1.0, z), n), w("Mul", z, "h"), output="h_new")
    elif blend == "swapped":
        w("Add", w("Mul", z, n), w("Mul", "h", w("Sub", 1.0, z)), output="h_new")
    elif blend == "towards_n":
        w("Add", n, w("Mul", z, w("Sub", "h", n)), output="h_new")
    else:
        w("Sub", n, w("Mul", w("Sub", n, "h"), z), output="h_new")
    graph = check_recognised(w.model([X, STATES[0]], NEW[:1]), ["GRU"], B=3)
    node = next(node for node in graph.nodes if node.op == "GRU")
    assert node.attributes.get("linear_before_reset", 0) == (reset == "after")


def test_a_recognised_step_is_a_stream_that_carries_its_state() -> None:
    data = lstm_step()
    model = le.load(data)
    assert dict(model.states) == {"h": "h_new", "c": "c_new"}
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    stream = model.stream()
    h, c = np.zeros((2, 1, H), np.float32)
    for x in rng(5).normal(size=(6, 1, INPUTS)).astype(np.float32):
        h, c = session.run(["h_new", "c_new"], {"x": x, "h": h, "c": c})
        stream.step(x)
        for name, state in (("h", h), ("c", c)):
            np.testing.assert_allclose(stream.state.arrays[name].reshape(1, H), state, atol=1e-6)


def test_the_state_is_told_from_an_input_of_the_same_size() -> None:
    """x and h both have H elements a row: h is what is cut from the tensor that c is cut from."""
    w = Writing()
    h, c = (w("Gather", "state", np.array(k), axis=0) for k in (0, 1))
    x = w("Relu", "x")
    stacked = w("Add", w("Gemm", h, w.weights(H, 4 * H)), w("Gemm", x, w.weights(H, 4 * H)))
    i, f, g, o = w("Split", stacked, np.array([H] * 4), outputs=4, axis=1)
    new = w("Add", w("Mul", w("Sigmoid", f), c), w("Mul", w("Sigmoid", i), w("Tanh", g)))
    out = w("Mul", w("Sigmoid", o), w("Tanh", new))
    w("Concat", *(w("Unsqueeze", part, np.array([0])) for part in (out, new)), output="state_new", axis=0)
    inputs: list[Info] = [("x", np.float32, ["B", H]), ("state", np.float32, [2, "B", H])]
    data = w.model(inputs, [("state_new", np.float32, [2, "B", H])])
    check_recognised(data, ["LSTM"], B=3)
    assert dict(le.load(data).states) == {"state": "state_new"}


# --- cells that are none ----------------------------------------------------------------------------------------------


def test_a_state_that_cannot_be_told_from_the_input_is_left() -> None:
    w = Writing()
    stacked = w("Add", w("Gemm", "h", w.weights(H, 4 * H)), w("Gemm", "x", w.weights(H, 4 * H)))
    i, f, g, o = w("Split", stacked, np.array([H] * 4), outputs=4, axis=1)
    c = w("Add", w("Mul", w("Sigmoid", f), "c"), w("Mul", w("Sigmoid", i), w("Tanh", g)), output="c_new")
    w("Mul", w("Sigmoid", o), w("Tanh", c), output="h_new")
    check_untouched(w.model([("x", np.float32, ["B", H]), *STATES], NEW))


def test_weights_that_are_fed_are_none() -> None:
    w = Writing()
    stacked = w("Add", w("MatMul", "h", "R"), w("MatMul", "x", w.weights(INPUTS, 4 * H)))
    i, f, g, o = w("Split", stacked, np.array([H] * 4), outputs=4, axis=1)
    c = w("Add", w("Mul", w("Sigmoid", f), "c"), w("Mul", w("Sigmoid", i), w("Tanh", g)), output="c_new")
    w("Mul", w("Sigmoid", o), w("Tanh", c), output="h_new")
    check_untouched(w.model([X, *STATES, ("R", np.float32, [H, 4 * H])], NEW))


def test_a_gate_that_is_read_elsewhere_keeps_the_cell() -> None:
    w = Writing()
    *_, gates = lstm_cell(w, "x", "h", "c", names=("h_new", "c_new"))
    w("Identity", gates["f"], output="forget")
    check_untouched(w.model([X, *STATES], [*NEW, ("forget", np.float32, ["B", H])]))


@pytest.mark.parametrize("wrong", ["function", "masked", "scaled", "mixed_rows", "squared", "late_input"])
def test_what_is_almost_an_lstm_cell_is_none(wrong: str) -> None:
    w = Writing()
    i, f, g, o = w("Split", projection(w, "x", "h", 4), np.array([H] * 4), outputs=4, axis=1)
    forget = w("HardSigmoid" if wrong == "function" else "Sigmoid", f)
    old = w("ReduceMax", "c", axes=[0], keepdims=1) if wrong == "mixed_rows" else "c"
    if wrong == "scaled":
        old = w("Mul", "c", 0.9)
    c = w("Add", w("Mul", forget, old), w("Mul", w("Sigmoid", i), w("Tanh", g)))
    if wrong == "masked":
        c = w("Where", w("Greater", w("ReduceMax", "x", axes=[1], keepdims=1), 0.0), c, "c")
    c = w("Identity", c, output="c_new")
    if wrong == "late_input":
        o = w("Add", o, w("MatMul", c, w.weights(H, H)))
    out = w("Tanh", c)
    w("Mul", w("Sigmoid", o), w("Mul", out, out) if wrong == "squared" else out, output="h_new")
    data = w.model([X, *STATES], NEW, opset=13)
    model = le.load(data)
    if operators(model.graph):  # what is not the cell's own may still be worked out before it
        assert wrong in ("scaled", "mixed_rows")
    check_same(data, model, B=3)


def test_a_highway_layer_is_no_gru() -> None:
    """y = t ∘ g + (1 - t) ∘ x has no reset gate."""
    w = Writing()
    t, g = w("Sigmoid", w("Gemm", "x", w.weights(INPUTS, INPUTS))), w("Tanh", w("Gemm", "x", w.weights(INPUTS, INPUTS)))
    w("Add", w("Mul", t, g), w("Mul", w("Sub", 1.0, t), "x"), output="y")
    check_untouched(w.model([X], [("y", np.float32, ["B", INPUTS])]))


def test_a_dense_layer_is_no_rnn() -> None:
    w = Writing()
    y = "x"
    for size in (INPUTS, H, H, H):
        y = w("Tanh", w("Gemm", y, w.weights(size, H), w.weights(H)))
    w("Identity", y, output="y")
    check_untouched(w.model([X], [("y", np.float32, ["B", H])]))


# --- cells one after the other ----------------------------------------------------------------------------------------


def shared(w: Writing) -> Writing:
    """A writer that writes the same weights again."""
    again = Writing(f"{w.prefix}{next(w.count)}.", seed=7)
    again.nodes, again.constants = w.nodes, w.constants
    return again


def unrolled(steps: int, *, last: bool = False, odd: int = -1, backwards: bool = False) -> bytes:
    """LSTM cells over x[B,T,INPUTS]; the weights of step ``odd`` differ."""
    w = Writing()
    h, c = "h", "c"
    ys = []
    for t in reversed(range(steps)) if backwards else range(steps):
        x = w("Gather", "x", np.array(t), axis=1)
        writer = shared(w)
        if t == odd:
            writer.draw = rng(8)
        h, c, _ = lstm_cell(writer, x, h, c)
        ys.append(w("Unsqueeze", h, np.array([1])))
    w("Identity", h, output="h_new")
    w("Identity", c, output="c_new")
    outputs = list(NEW)
    if not last:
        w("Concat", *(reversed(ys) if backwards else ys), axis=1, output="y")
        outputs.append(("y", np.float32, ["B", steps, H]))
    return w.model([("x", np.float32, ["B", steps, INPUTS]), *STATES], outputs)


@pytest.mark.parametrize("last", [True, False])
def test_an_unrolled_lstm_is_one_layer(last: bool) -> None:
    graph = check_recognised(unrolled(5, last=last), ["LSTM"], B=3)
    assert not any(node.op in ("Concat", "Gather", "Slice") for node in graph.nodes)


def test_an_lstm_unrolled_from_the_end_runs_backward() -> None:
    graph = check_recognised(unrolled(4, backwards=True), ["LSTM"], B=3)
    assert next(node for node in graph.nodes if node.op == "LSTM").attributes["direction"] == "reverse"
    assert not any(node.op in ("Concat", "Gather", "Slice") for node in graph.nodes)


def test_a_step_with_other_weights_is_another_layer() -> None:
    check_recognised(unrolled(5, odd=2), ["LSTM"] * 3, B=2)


def test_an_input_that_waits_for_an_earlier_step_keeps_steps_apart() -> None:
    """A decoder feeds what it said back."""
    w = Writing()
    x, h, c = "x", "h", "c"
    head = w.weights(H, INPUTS)
    for _ in range(3):
        h, c, _ = lstm_cell(shared(w), x, h, c)
        x = w("MatMul", h, head)
    w("Identity", h, output="h_new")
    w("Identity", c, output="c_new")
    check_recognised(w.model([X, *STATES], NEW), ["LSTM"] * 3, B=2)


def test_two_layers_that_wait_for_each_other() -> None:
    """The second layer's last state is part of what the first reads next: neither can run before the other."""
    w = Writing()
    one, two = ("h", "c"), ("h", "c")
    x = "x"
    for _ in range(3):
        h, c, _ = lstm_cell(shared(w), x, *one)
        one = (h, c)
        other = Writing(f"{next(w.count)}.other.", seed=9)
        other.nodes, other.constants = w.nodes, w.constants
        h, c, _ = lstm_cell(other, w("MatMul", one[0], np.eye(H, INPUTS, dtype=np.float32)), *two)
        two = (h, c)
        x = w("Slice", two[0], np.array([0]), np.array([INPUTS]), np.array([1]))
    w("Identity", two[0], output="h_new")
    w("Identity", one[1], output="c_new")
    data = w.model([X, *STATES], NEW)
    model = le.load(data)
    check_same(data, model, B=2)


@pytest.mark.parametrize("layers", [1, 2])
def test_an_unrolled_rnn_is_one_layer_of_several_steps(layers: int) -> None:
    w = Writing()
    xs = [w("Gather", "x", np.array(t), axis=0) for t in range(4)]
    for layer in range(layers):
        h = "h"
        size = INPUTS if layer == 0 else H
        W, R, b = w.weights(size, H), w.weights(H, H), w.weights(H)
        for t, x in enumerate(xs):
            h = xs[t] = w("Tanh", w("Add", w("Gemm", x, W, b), w("MatMul", h, R)))
    w("Concat", *(w("Unsqueeze", y, np.array([0])) for y in xs), axis=0, output="y")
    data = w.model([("x", np.float32, [4, "B", INPUTS]), STATES[0]], [("y", np.float32, [4, "B", H])])
    check_recognised(data, ["RNN"] * layers, B=3)


def test_an_unrolled_rnn_whose_inputs_are_projected_all_at_once() -> None:
    """As PyTorch's dynamo exporter writes nn.RNN, states and steps [1,B,H]."""
    w = Writing()
    projected = w("Add", w("MatMul", "x", w.weights(INPUTS, H)), w.weights(H))
    h, R, b = "h", w.constant(w.weights(H, H)), w.constant(w.weights(H))
    ys = []
    for t in range(4):
        x = w("Squeeze", w("Slice", projected, np.array([t]), np.array([t + 1]), np.array([0])), np.array([0]))
        h = w("Tanh", w("Add", w("Add", w("MatMul", h, R), b), x))
        ys.append(h)
    w("Concat", *ys, axis=0, output="y")
    state: Info = ("h", np.float32, [1, "B", H])
    data = w.model([("x", np.float32, [4, "B", INPUTS]), state], [("y", np.float32, [4, "B", H])])
    graph = check_recognised(data, ["RNN"], B=3)
    assert not any(node.op in ("Concat", "Gather", "Slice", "MatMul") for node in graph.nodes)


# --- loops ------------------------------------------------------------------------------------------------------------

SEQUENCE: Info = ("x", np.float32, ["T", "B", INPUTS])


def body_of(w: Writing, name: str, inputs: Sequence[Info], outputs: Sequence[Info]) -> onnx.GraphProto:
    model = onnx.load_from_string(w.model(inputs, outputs))
    body = model.graph
    body.name = name
    return body


def tf_loop(**wrong: Any) -> bytes:
    """A Loop as tf2onnx writes it: a counter beside the iteration number, a condition of both, y collected."""
    outer, w = Writing(), Writing("body.")
    one = np.array(1, np.int32)
    total = outer("Gather", outer("Shape", "x"), np.array(wrong.get("counted", 0)), axis=0)
    limit = outer("Sub", total, np.array(wrong["short"])) if "short" in wrong else total
    if "most" in wrong:
        limit = outer("Min", limit, np.array(wrong["most"]))
    counter = w("Add", "counter", one if "stride" not in wrong else np.array(wrong["stride"], np.int32))
    index = "counter" if "ahead" not in wrong else w("Min", counter, w("Cast", total, to=6))
    if wrong.get("backwards"):
        index = w("Sub", w("Sub", w("Cast", total, to=6), one), "counter")
    if "clamped" in wrong:
        index = w("Mul", "counter", np.array(0, np.int32))
    x = w("Gather", "x", index, axis=0)
    h, c, gates = lstm_cell(w, x, "old.h", "old.c")
    if "masked" in wrong:
        mask = w("Greater", w("ReduceMax", x, axes=[1], keepdims=1), 0.0)
        h, c = w("Where", mask, h, "old.h"), w("Where", mask, c, "old.c")
    if "doubled" in wrong:
        h = w("Add", h, "old.h")
    if "until" in wrong:
        go_on = w("Less", w("ReduceMax", h, keepdims=0), 0.5)
    else:
        less = w("Less", w("Cast", counter, to=1), w("Cast", limit, to=1))
        go_on = w("And", less, w("Less", w("Cast", "step", to=1), w("Cast", total, to=1)))
    w("Identity", gates["f"] if "gate" in wrong else h, output="y.t")
    for source, name in ((go_on, "again"), (counter, "counted"), (h, "new.h"), (c, "new.c")):
        w("Identity", source, output=name)
    state: list[int | str | None] = ["B", H]
    body = body_of(
        w,
        "body",
        [("step", np.int64, []), ("go", np.bool_, []), ("counter", np.int32, [])]
        + [(f"old.{k}", np.float32, state) for k in "hc"],
        [("again", np.bool_, []), ("counted", np.int32, [])]
        + [(name, np.float32, state) for name in ("new.h", "new.c", "y.t")],
    )
    start = np.array(wrong.get("start", 0), np.int32)
    trips = total if wrong.get("trips") else np.array(2**63 - 1)
    names = [n if isinstance(n, str) else outer.constant(n) for n in (trips, np.array(True), start, "h", "c")]
    final = "count"  # onnxruntime crashes where this output has no name
    outer.nodes.append(helper.make_node("Loop", names, [final, "h_new", "c_new", "y"], name="layer", body=body))
    outputs: list[Info] = [*NEW, ("y", np.float32, ["T", "B", H])]
    if "count" in wrong:
        outputs.append((final, np.int32, []))
    return outer.model([SEQUENCE, *STATES], outputs)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_loop_over_a_sequence_is_a_layer(backwards: bool) -> None:
    graph = check_recognised(tf_loop(backwards=backwards), ["LSTM"], T=6, B=3)
    assert next(node for node in graph.nodes if node.op == "LSTM").name == "layer"


def test_a_loop_of_one_step() -> None:
    check_recognised(tf_loop(), ["LSTM"], T=1, B=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"short": 1},  # one step less than there are
        {"counted": 1},  # as many steps as there are rows
        {"most": 100},  # never more than a hundred
        {"stride": 2},
        {"start": 1},
        {"ahead": True},
        {"clamped": True},
        {"masked": True},
        {"doubled": True},
        {"until": True},
        {"gate": True},
        {"count": True},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_loop_that_is_almost_a_layer_is_left(wrong: dict[str, Any]) -> None:
    check_untouched(tf_loop(**wrong))


@pytest.mark.parametrize(("into", "out"), list(itertools.product([0, 1], [0, 1])))
def test_scans_in_both_directions(into: int, out: int) -> None:
    w, outer = Writing("body."), Writing()
    h, c, _ = lstm_cell(w, "x.t", "old.h", "old.c")
    for source, name in ((h, "new.h"), (c, "new.c"), (h, "y.t")):
        w("Identity", source, output=name)
    state: list[int | str | None] = ["B", H]
    body = body_of(
        w,
        "body",
        [*((f"old.{k}", np.float32, state) for k in "hc"), ("x.t", np.float32, ["B", INPUTS])],
        [(name, np.float32, state) for name in ("new.h", "new.c", "y.t")],
    )
    attributes = {"num_scan_inputs": 1, "scan_input_directions": [into], "scan_output_directions": [out]}
    node = helper.make_node("Scan", ["h", "c", "x"], ["h_new", "c_new", "y"], body=body, **attributes)
    outer.nodes.append(node)
    data = outer.model([SEQUENCE, *STATES], [*NEW, ("y", np.float32, ["T", "B", H])])
    check_recognised(data, ["LSTM"], T=5, B=2)


def test_cells_on_top_of_each_other_in_one_scan() -> None:
    w, outer = Writing("body."), Writing()
    new = []
    x = "x.t"
    for layer in range(2):
        stacked = w(
            "Add", w("MatMul", x, w.weights(INPUTS if layer == 0 else H, H)), w("MatMul", f"h{layer}", w.weights(H, H))
        )
        x = w("Tanh", stacked)
        new.append(w("Identity", x, output=f"h{layer}.new"))
    w("Identity", x, output="y.t")
    state: list[int | str | None] = ["B", H]
    body = body_of(
        w,
        "body",
        [("h0", np.float32, state), ("h1", np.float32, state), ("x.t", np.float32, ["B", INPUTS])],
        [(name, np.float32, state) for name in (*new, "y.t")],
    )
    outer.nodes.append(helper.make_node("Scan", ["h", "c", "x"], ["h_new", "c_new", "y"], body=body, num_scan_inputs=1))
    data = outer.model([SEQUENCE, *STATES], [*NEW, ("y", np.float32, ["T", "B", H])])
    check_recognised(data, ["RNN", "RNN"], T=5, B=2)


# --- directions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["slice", "sequence"])
def test_a_layer_between_two_reversals_runs_backward(by: str) -> None:
    w = Writing()

    def reversed_(x: str, axis: int) -> str:
        if by == "slice":
            return w("Slice", x, np.array([-1]), np.array([-(2**63) + 1]), np.array([axis]), np.array([-1]))
        shape = w("Shape", x)
        lengths = w("Expand", w("Gather", shape, np.array([axis])), w("Gather", shape, np.array([1 - axis])))
        return w("ReverseSequence", x, lengths, time_axis=axis, batch_axis=1 - axis)

    x = w("Transpose", reversed_("x", 1), perm=[1, 0, 2])
    Y = w("LSTM", x, w.weights(1, 4 * H, INPUTS), w.weights(1, 4 * H, H), w.weights(1, 8 * H), hidden_size=H)
    back = reversed_(w("Transpose", w("Squeeze", Y, np.array([1])), perm=[1, 0, 2]), 1)
    w("Identity", back, output="y")
    data = w.model([("x", np.float32, ["B", "T", INPUTS])], [("y", np.float32, ["B", "T", H])])
    graph = check_recognised(data, ["LSTM"], B=3, T=5)
    assert next(node for node in graph.nodes if node.op == "LSTM").attributes["direction"] == "reverse"
    assert not any(node.op in ("Slice", "ReverseSequence") for node in graph.nodes)


def test_a_reversal_of_part_of_each_row_stays() -> None:
    w = Writing()
    x = w("ReverseSequence", "x", np.array([2, 3]), time_axis=0, batch_axis=1)
    w("LSTM", x, w.weights(1, 4 * H, INPUTS), w.weights(1, 4 * H, H), hidden_size=H, output="y")
    data = w.model([("x", np.float32, [3, 2, INPUTS])], [("y", np.float32, [3, 1, 2, H])])
    check_untouched(data)


# --- normalisation ----------------------------------------------------------------------------------------------------


def batch_normalised(w: Writing, x: str, channels: int, output: str = "") -> str:
    statistics = w.weights(channels), w.weights(channels), w.weights(channels), np.abs(w.weights(channels)) + 0.1
    return str(w("BatchNormalization", x, *statistics, epsilon=1e-3, output=output))


@pytest.mark.parametrize("layer", ["gemm", "gemm_transposed", "conv", "conv_transpose"])
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_normalisation_is_part_of_the_layer_beside_it(layer: str, where: str, bias: bool) -> None:
    w = Writing()
    x = batch_normalised(w, "x", INPUTS) if where == "before" else "x"
    b = [w.weights(H)] if bias else []
    if layer == "gemm":
        y = w("Gemm", x, w.weights(INPUTS, H), *b, alpha=0.5, beta=2.0)
    elif layer == "gemm_transposed":
        y = w("Gemm", x, w.weights(H, INPUTS), *b, transB=1)
    elif layer == "conv":
        y = w("Conv", x, w.weights(H, INPUTS, 2), *b)
    else:
        y = w("ConvTranspose", x, w.weights(INPUTS, H, 2), *b)
    y = batch_normalised(w, y, H) if where == "after" else y
    w("Identity", y, output="y")
    length: list[int | str | None] = ["L"] if layer.startswith("conv") else []
    data = w.model(
        [("x", np.float32, ["B", INPUTS, *length])], [("y", np.float32, ["B", H, *([None] if length else [])])]
    )
    model = le.load(data)
    folded = (where, layer) != ("before", "conv_transpose")
    assert [node.op for node in model.graph.nodes].count("BatchNormalization") == (not folded)
    check_same(data, model, B=3, L=5)


@pytest.mark.parametrize("why", ["padded", "read twice", "an output"])
def test_batch_normalisation_that_must_stay(why: str) -> None:
    w = Writing()
    x = batch_normalised(w, "x", INPUTS, output="normal")
    y = w("Conv", x, w.weights(H, INPUTS, 3), pads=[1, 1])
    if why == "read twice":
        y = w("Add", y, w("ReduceMax", x, axes=[1], keepdims=1))
    w("Identity", y, output="y")
    shape: list[int | str | None] = ["B", INPUTS, "L"]
    outputs: list[Info] = [("y", np.float32, ["B", H, "L"])]
    if why == "an output":
        outputs.append(("normal", np.float32, shape))
    data = w.model([("x", np.float32, shape)], outputs)
    model = le.load(data)
    assert "BatchNormalization" in [node.op for node in model.graph.nodes]
    check_same(data, model, B=2, L=5)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not INDEX, reason="the collection of public models is not here")
@pytest.mark.parametrize(("file", "layers"), [("quant_sentinel_loop3", ["LSTM"] * 3), ("precise_jarvis", ["GRU"])])
def test_loops_of_public_models_are_layers(file: str, layers: list[str]) -> None:
    assert operators(le.load(ZOO / f"{file}.onnx").graph) == layers


@pytest.mark.timeout(20)
def test_sums_of_sums_take_no_endless_time() -> None:
    """Every summand twice, sixty times over: 2^60 summands in sixty nodes."""
    w = Writing()
    pre = w("Gemm", "x", w.weights(INPUTS, H))
    for _ in range(60):
        pre = w("Add", pre, pre)
    for _ in range(600):
        pre = w("Sub", 1.0, pre)
    gate = w("Sigmoid", pre)
    w("Mul", gate, w("Tanh", w("Add", w("Mul", gate, "h"), w("Mul", gate, gate))), output="h_new")
    data = w.model([X, STATES[0]], NEW[:1])
    graph = loaded(data)
    assert recognise(graph) is graph
