"""Which inputs are states, and streams that carry them: in any packing, through arithmetic, as contexts, by frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import NodeProto, helper

import lstm_engine as le
from lstm_engine import reference
from lstm_engine.passes.state_names import Likeness, likeness

Arrays = dict[str, np.ndarray]
H, I = 4, 3  # noqa: E741 (the field's own letter)
F32 = np.float32


@dataclass
class Net:
    """A network under construction."""

    nodes: list[NodeProto] = field(default_factory=list)
    inputs: list[builders.Info] = field(default_factory=list)
    outputs: list[builders.Info] = field(default_factory=list)
    arrays: Arrays = field(default_factory=dict)

    def input(self, name: str, *shape: int | str, dtype: Any = F32) -> str:
        self.inputs.append((name, dtype, list(shape)))
        return name

    def output(self, name: str, *shape: int | str | None, dtype: Any = F32) -> None:
        self.outputs.append((name, dtype, list(shape)))

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"k{len(self.arrays)}"
        self.arrays[name] = np.asarray(value, dtype)
        return name

    def weights(self, *shape: int) -> str:
        drawn = np.random.default_rng(len(self.arrays)).uniform(-0.6, 0.6, shape)
        return self.constant(drawn, F32)

    def do(self, op: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        name = to or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def slice(self, x: str, axis: int, start: int, end: int, to: str = "") -> str:
        return self.do("Slice", x, *(self.constant([v]) for v in (start, end, axis)), to=to)

    def squeeze(self, x: str, *axes: int) -> str:
        return self.do("Squeeze", x, self.constant(axes))

    def unsqueeze(self, x: str, *axes: int, to: str = "") -> str:
        return self.do("Unsqueeze", x, self.constant(axes), to=to)

    def lstm(self, x: str, h: str, c: str, inputs: int = I, **attributes: Any) -> tuple[str, str, str]:
        n = len(self.nodes)
        made = [f"Y{n}", f"Yh{n}", f"Yc{n}"]
        places = [x, self.weights(1, 4 * H, inputs), self.weights(1, 4 * H, H), self.weights(1, 8 * H), "", h, c]
        self.nodes.append(helper.make_node("LSTM", places, made, name=f"lstm{n}", hidden_size=H, **attributes))
        return made[0], made[1], made[2]

    def model(self, opset: int = 17) -> bytes:
        made = builders.make_model(self.nodes, self.inputs, self.outputs, self.arrays, opset)
        return bytes(made.SerializeToString())


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(F32)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "weight"),
    [
        ("h0", "hn", 2),
        ("c0", "cn", 2),
        ("h_0", "h_n", 2),
        ("hx", "hy", 2),
        ("state", "stateN", 2),
        ("state", "output_state", 2),
        ("input_h", "output_h", 2),
        ("recurrent_in", "recurrent_out", 2),
        ("conv_cache", "conv_cache_out", 2),
        ("h1_in", "h1_out", 2),
        ("serving_h_prev:0", "serving_h_next:0", 2),
        ("hidden_state", "new_hidden_state", 2),
        ("x_in", "x_out", 1),
        ("past_key", "present_key", 1),
        ("y_prev", "y", 1),
        ("h0", "cn", 0),
        ("h1_in", "h2_out", 0),
        ("tra_cache", "conv_cache_out", 0),
        ("input", "output", 0),
        ("input_1", "output_1", 0),
        ("audio_in", "audio_out", 0),
        ("mask", "mask_out", 0),
        ("x", "y", 0),
        ("state", "state_of_mind", 0),
        ("", "", 0),
    ],
)
def test_what_names_say(before: str, after: str, weight: int) -> None:
    assert likeness(before, after) == Likeness(weight)


# --- packings ---------------------------------------------------------------------------------------------------------


def separate(net: Net, x: str) -> str:
    y, h, c = net.lstm(x, net.input("a", 1, "B", H), net.input("b", 1, "B", H))
    net.do("Identity", h, to="p")
    net.do("Identity", c, to="q")
    net.output("p", 1, "B", H)
    net.output("q", 1, "B", H)
    return y


def stacked(net: Net, x: str) -> str:
    s = net.input("s", 2, "B", H)
    y, h, c = net.lstm(x, net.slice(s, 0, 0, 1), net.slice(s, 0, 1, 2))
    net.do("Concat", h, c, to="p", axis=0)
    net.output("p", 2, "B", H)
    return y


def concatenated(net: Net, x: str) -> str:
    s = net.do("Transpose", net.input("s", "B", 1, 2 * H), perm=[1, 0, 2])
    y, h, c = net.lstm(x, net.slice(s, 2, 0, H), net.slice(s, 2, H, 2 * H))
    net.do("Transpose", net.do("Concat", c, h, axis=2), to="other", perm=[1, 0, 2])  # the same, but exchanged
    net.do("Transpose", net.do("Concat", h, c, axis=2), to="p", perm=[1, 0, 2])
    net.output("other", "B", 1, 2 * H)
    net.output("p", "B", 1, 2 * H)
    return y


def interleaved(net: Net, x: str) -> str:
    """Two layers, [B, L, H, 2]: h and c are neighbours, as DTLN has them."""
    s = net.input("s", "B", 2, H, 2)
    ends = []
    for layer, inputs in enumerate((I, H)):
        state = [net.slice(net.slice(s, 1, layer, layer + 1), 3, k, k + 1) for k in range(2)]
        h0, c0 = (net.do("Transpose", net.squeeze(part, 3), perm=[1, 0, 2]) for part in state)
        y, h, c = net.lstm(x, h0, c0, inputs)
        x = net.squeeze(y, 1)
        both = [net.unsqueeze(net.do("Transpose", end, perm=[1, 0, 2]), 3) for end in (h, c)]
        ends.append(net.do("Concat", *both, axis=3))
    net.do("Concat", *ends, to="p", axis=1)
    net.output("p", "B", 2, H, 2)
    return net.unsqueeze(x, 1)


def scattered(net: Net, x: str) -> str:
    s = net.input("s", 2, "B", H)
    y, h, c = net.lstm(x, net.slice(s, 0, 0, 1), net.slice(s, 0, 1, 2))
    once = net.do("ScatterND", s, net.constant([[0]]), h)
    net.do("ScatterND", once, net.constant([[1]]), c, to="p")
    net.output("p", 2, "B", H)
    return y


def last_of_sequence(net: Net, x: str) -> str:
    """The final h comes as the last step of Y."""
    y, _, c = net.lstm(x, net.input("a", 1, "B", H), net.input("b", 1, "B", H))
    net.do("Squeeze", net.slice(y, 0, -1, 2**40), net.constant([0]), to="p")
    net.do("Identity", c, to="q")
    net.output("p", 1, "B", H)
    net.output("q", 1, "B", H)
    return y


PACKINGS: dict[Callable[[Net, str], str], dict[str, str]] = {
    separate: {"a": "p", "b": "q"},
    stacked: {"s": "p"},
    concatenated: {"s": "p"},
    interleaved: {"s": "p"},
    scattered: {"s": "p"},
    last_of_sequence: {"a": "p", "b": "q"},
}


@cache
def packed(packing: Callable[[Net, str], str], steps: int | str) -> le.Model:
    net = Net()
    y = packing(net, net.input("x", steps, "B", I))
    net.do("Tanh", net.squeeze(y, 1), to="y")
    net.output("y", steps, "B", H)
    return le.load(net.model())


def by_feedback(model: le.Model, pairs: Mapping[str, str], states: Arrays, feeds: list[Arrays]) -> list[Arrays]:
    """What the definition gives, call by call, when the states are fed back by hand."""
    results = []
    for each in feeds:
        results.append(reference.run(model.graph, {**each, **states}, dtype="float64"))
        states = {source: np.asarray(results[-1][output], F32) for source, output in pairs.items()}
    return results


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("steps", ["T", 1])
@pytest.mark.parametrize("packing", PACKINGS, ids=lambda f: f.__name__)
def test_states_are_found_and_carried(packing: Callable[[Net, str], str], steps: int | str, batch: int) -> None:
    model, pairs = packed(packing, steps), PACKINGS[packing]
    assert dict(model.states) == pairs
    stream = model.stream(batch)
    start = {n: drawn(*a.shape, seed=3) for n, a in stream.state.arrays.items() if n in pairs}
    assert set(start) == set(stream.state.arrays)
    stream.state = le.State(stream.state.fingerprint, batch, start)
    x = drawn(6, batch, I)
    expected = by_feedback(model, pairs, start, [{"x": step[None]} for step in x])
    for step, wanted in zip(x, expected, strict=True):
        got = stream.step({stream.inputs[0].name: step.reshape([int(d) for d in stream.inputs[0].shape or ()])})  # type: ignore[arg-type]
        y = got["y"] if isinstance(got, dict) else got
        np.testing.assert_allclose(y.reshape(batch, H), wanted["y"][0], atol=2e-6)
    for source, output in pairs.items():
        assert stream.state.arrays[source].shape == start[source].shape
        np.testing.assert_allclose(stream.state.arrays[source], expected[-1][output], atol=2e-6)


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda f: f.__name__)
def test_snapshots_of_packed_states(packing: Callable[[Net, str], str]) -> None:
    model = packed(packing, "T")
    stream, x = model.stream(2), drawn(9, 2, I)
    stream.feed(x[:4])
    snapshot = le.State.from_bytes(stream.state.to_bytes())
    twin = stream.fork()
    one, other = stream.feed(x[4:]), twin.feed(x[4:])
    stream.state = snapshot
    again = stream.feed(x[4:])
    for name, value in ({"y": one} if isinstance(one, np.ndarray) else one).items():
        np.testing.assert_array_equal(value, other if isinstance(other, np.ndarray) else other[name])
        np.testing.assert_array_equal(value, again if isinstance(again, np.ndarray) else again[name])
    assert stream.state == twin.state


# --- states through arithmetic ----------------------------------------------------------------------------------------


def masked(choice: bool) -> le.Model:
    """A policy that forgets its state where ``keep`` is 0."""
    net = Net()
    x, keep = net.input("x", "B", I), net.input("keep", "B", 1)
    states = [net.input(name, 1, "B", H) for name in ("a", "b")]
    if choice:
        flag = net.do("Greater", keep, net.constant(0.5, F32))
        kept = [net.do("Where", flag, s, net.constant(0.0, F32)) for s in states]
    else:
        kept = [net.do("Mul", s, keep) for s in states]
    y, h, c = net.lstm(net.unsqueeze(x, 0), *kept)
    net.do("Identity", h, to="p")
    net.do("Identity", c, to="q")
    net.do("Relu", net.squeeze(y, 0, 1), to="y")
    for name in "pq":
        net.output(name, 1, "B", H)
    net.output("y", "B", H)
    return le.load(net.model())


@pytest.mark.parametrize("choice", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_states_with_a_mask_on_the_way(choice: bool, batch: int) -> None:
    model = masked(choice)
    assert dict(model.states) == {"a": "p", "b": "q"}
    stream = model.stream(batch)
    keeps = (np.random.default_rng(1).random((7, batch, 1)) < 0.6).astype(F32)
    feeds = [{"x": drawn(batch, I, seed=t), "keep": keep} for t, keep in enumerate(keeps)]
    zeros = {name: np.zeros((1, batch, H), F32) for name in "ab"}
    expected = by_feedback(model, {"a": "p", "b": "q"}, zeros, feeds)
    for each, wanted in zip(feeds, expected, strict=True):
        np.testing.assert_allclose(stream.step(each), wanted["y"], atol=2e-6)
    chunk = {name: np.stack([each[name] for each in feeds]) for name in ("x", "keep")}
    steps = stream.state
    stream.reset()
    np.testing.assert_allclose(stream.feed(chunk), np.stack([w["y"] for w in expected]), atol=2e-6)
    assert stream.state == steps


def average(names: tuple[str, str] = ("ema", "ema_out"), *, also: bool = True) -> bytes:
    """An exponential moving average: nothing but arithmetic joins the input and the output."""
    net = Net()
    x, past = net.input("x", "B", I), net.input(names[0], "B", I)
    net.do("Add", net.do("Mul", past, net.constant(0.9, F32)), net.do("Mul", x, net.constant(0.1, F32)), to=names[1])
    net.output(names[1], "B", I)
    if also:
        net.do("Sub", x, names[1], to="y")
        net.output("y", "B", I)
    return net.model()


@pytest.mark.parametrize("names", [("ema", "ema_out"), ("x_in", "x_out"), ("h_prev", "h"), ("state", "stateN")])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_moving_average_by_its_names(names: tuple[str, str], batch: int) -> None:
    stream, level = le.load(average(names)).stream(batch), np.zeros((batch, I), F32)
    for t in range(5):
        x = drawn(batch, I, seed=t)
        level = (F32(0.9) * level + F32(0.1) * x).astype(F32)
        np.testing.assert_allclose(stream.step(x), x - level, atol=1e-6)
    np.testing.assert_allclose(stream.state.arrays[names[0]], level, atol=1e-6)


@pytest.mark.parametrize("names", [("a", "b"), ("audio_in", "audio_out"), ("input", "output")])
def test_equal_shapes_are_no_pair(names: tuple[str, str]) -> None:
    model = le.load(average(names))
    assert model.states == ()
    assert {spec.name for spec in model.stream().inputs} == {"x", names[0]}
    carried = le.load(average(names), states={names[0]: names[1]}).stream()
    assert [spec.name for spec in carried.inputs] == ["x"]


def test_what_is_said_to_be_no_state_is_fed() -> None:
    model = le.load(average(), states={"ema": None})
    assert model.states == ()
    assert [spec.name for spec in model.stream().inputs] == ["x", "ema"]


def test_a_state_that_is_the_only_output_is_given_too() -> None:
    stream = le.load(average(also=False)).stream()
    x = drawn(1, I)
    np.testing.assert_allclose(stream.step(x), F32(0.1) * x, atol=1e-7)
    np.testing.assert_allclose(stream.step(x), F32(0.19) * x, atol=1e-6)


def test_an_autoencoder_has_no_states() -> None:
    net = Net()
    x = net.input("x_in", "T", "B", H)
    y, _, _ = net.lstm(x, "", "", H)
    net.do("Identity", net.squeeze(y, 1), to="x_out")
    net.do("ReduceMean", net.squeeze(y, 1), to="level", axes=[2])
    net.output("x_out", "T", "B", H)
    net.output("level", "T", "B", 1)
    model = le.load(net.model())
    assert model.states == ()
    assert [str(spec) for spec in model.stream().inputs] == ["x_in: float32[1, 4]"]


def shift_register() -> bytes:
    """Two states without telling names, each the other's next: what is written must not be read again."""
    net = Net()
    x, one, two = net.input("x", "B", I), net.input("u", "B", I), net.input("v", "B", I)
    net.do("Identity", two, to="first")
    net.do("Add", one, x, to="second")
    net.do("Sub", one, two, to="y")
    for name in ("first", "second", "y"):
        net.output(name, "B", I)
    return net.model()


@pytest.mark.parametrize("batch", [1, 3])
def test_states_that_change_places(batch: int) -> None:
    stream = le.load(shift_register(), states={"u": "first", "v": "second"}).stream(batch)
    u = v = np.zeros((batch, I), F32)
    for t in range(6):
        x = drawn(batch, I, seed=t)
        np.testing.assert_allclose(stream.step(x), u - v, atol=1e-6)
        u, v = v, u + x
    np.testing.assert_allclose(stream.state.arrays["u"], u, atol=1e-6)
    np.testing.assert_allclose(stream.state.arrays["v"], v, atol=1e-6)


def rolling(order: tuple[str, str] = ("s", "p")) -> bytes:
    """The last five readings, the newest at the end, beside a count of all."""
    net = Net()
    x, past, count = net.input("x", "B", 1), net.input(order[0], "B", 5), net.input("n_in", "B", 1, dtype=np.int64)
    net.do("Concat", net.slice(past, 1, 1, 5), x, to=order[1], axis=1)
    net.do("Add", count, net.constant([[1]]), to="n_out")
    net.do("ReduceMax", order[1], to="y", axes=[1])
    net.output(order[1], "B", 5)
    net.output("n_out", "B", 1, dtype=np.int64)
    net.output("y", "B", 1)
    return net.model()


@pytest.mark.parametrize("batch", [1, 2])
def test_a_cache_that_moves_on_and_a_count(batch: int) -> None:
    model = le.load(rolling(), states={"n_in": "n_out"})
    assert dict(model.states) == {"s": "p", "n_in": "n_out"}
    stream = model.stream(batch)
    xs = drawn(9, batch, 1)
    for t, x in enumerate(xs):
        window = np.concatenate([np.zeros((5, batch, 1), F32), xs[: t + 1]])[-5:]
        np.testing.assert_array_equal(stream.step(x), window.max(0))
    assert stream.state.arrays["n_in"].dtype == np.int64
    np.testing.assert_array_equal(stream.state.arrays["n_in"], np.full((batch, 1), 9))
    assert le.State.from_bytes(stream.state.to_bytes()) == stream.state


# --- doubts -----------------------------------------------------------------------------------------------------------


def ambiguous() -> bytes:
    net = Net()
    x, state = net.input("x", "B", I), net.input("state", "B", I)
    for k, name in enumerate(("state_out", "new_state")):
        net.do("Add", x, net.do("Mul", state, net.constant(0.5 + k, F32)), to=name)
        net.output(name, "B", I)
    net.do("Tanh", "state_out", to="y")
    net.output("y", "B", I)
    return net.model()


def test_what_is_not_certain_is_asked_for_when_a_stream_is_opened() -> None:
    model = le.load(ambiguous())
    assert model.run({"x": drawn(1, I), "state": drawn(1, I)})
    with pytest.raises(le.StateError) as caught:
        model.stream()
    message = str(caught.value)
    assert "'state'" in message
    assert "'state_out' or 'new_state'" in message
    assert "load(..., states={'state': 'state_out'})" in message
    for chosen in ("state_out", "new_state"):
        assert dict(le.load(ambiguous(), states={"state": chosen}).states) == {"state": chosen}
    assert len(le.load(ambiguous(), states={"state": None}).stream().inputs) == 2


def test_faults_of_declared_states_are_errors_of_load() -> None:
    for states in ({"nothing": "y"}, {"state": "nothing"}, {"x": "y", "state": "nowhere"}):
        with pytest.raises(le.StateError, match=r"not an (in|out)put"):
            le.load(ambiguous(), states=states)
    with pytest.raises(le.StateError, match="int64"):
        le.load(rolling(), states={"x": "n_out"})


# --- windows that look back -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Front:
    """A convolution over time that looks only back, as exporters write it, and perhaps an LSTM behind it."""

    kernel: int = 3
    dilation: int = 1
    channels: int = 4
    group: int = 1
    form: str = "own"  # pad, own, chomp, keras, join
    pool: str = ""  # MaxPool, AveragePool, CumSum
    recurrent: bool = True
    filling: float = 0.0

    @property
    def reach(self) -> int:
        return (self.kernel - 1) * self.dilation

    def model(self) -> bytes:
        net, n = Net(), self.reach
        x = net.input("x", "B", "T", 4) if self.form == "keras" else net.input("x", "B", 4, "T")
        weights = [net.weights(self.channels, 4 // self.group, self.kernel), net.weights(self.channels)]
        window = {"dilations": [self.dilation], "group": self.group}
        if self.form == "pad":
            x = net.do("Pad", x, net.constant([0, 0, n, 0, 0, 0]), net.constant(self.filling, F32))
        elif self.form == "keras":
            padded = net.do("Pad", x, net.constant([0, n, 0, 0, 0, 0]))
            x = net.do("Transpose", padded, perm=[0, 2, 1])
        elif self.form == "join":
            x = net.do("Concat", net.input("cache", "B", 4, n), x, axis=2)
            net.slice(x, 2, -n, 2**40, to="cache_out")
        pads = {"own": [n, 0], "chomp": [n, n]}.get(self.form, [0, 0])
        y = net.do("Conv", x, *weights, pads=pads, **window)
        if self.form == "chomp" and n:
            y = net.slice(y, 2, 0, -n)
        y = net.do("LeakyRelu", y)
        if self.pool == "CumSum":
            y = net.do("CumSum", y, net.constant(2))
        elif self.pool:
            counted = {"count_include_pad": 1} if self.pool == "AveragePool" else {}
            y = net.do(self.pool, y, kernel_shape=[3], pads=[2, 0], **counted)
        if self.recurrent:
            y, _, _ = net.lstm(net.do("Transpose", y, perm=[2, 0, 1]), "", "", self.channels)
            y = net.do("Transpose", net.squeeze(y, 1), perm=[1, 2, 0])
        net.do("Tanh", y, to="y")
        net.output("y", "B", H if self.recurrent else self.channels, "T")
        if self.form == "join":
            net.output("cache_out", "B", 4, n)
        return net.model()


@cache
def front_model(front: Front) -> le.Model:
    return le.load(front.model())


FRONTS = [
    Front(),
    Front(form="pad"),
    Front(form="pad", filling=0.5),
    Front(form="chomp", dilation=3),
    Front(form="keras", kernel=4),
    Front(form="own", kernel=5, dilation=2, group=2),
    Front(form="own", group=4, recurrent=False),
    Front(form="join", dilation=2),
    Front(pool="MaxPool"),
    Front(pool="AveragePool", recurrent=False),
    Front(pool="CumSum"),
    Front(kernel=1),
]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("front", FRONTS, ids=str)
def test_a_stream_carries_what_windows_look_back_at(front: Front, batch: int) -> None:
    assert_chunks_are_the_whole(front, batch, [1, 2, 5, 0, 17, 1, 14])


def assert_chunks_are_the_whole(front: Front, batch: int, chunks: list[int]) -> None:
    model, time = front_model(front), 1 if front.form == "keras" else 2
    x = drawn(batch, *((sum(chunks), 4) if time == 1 else (4, sum(chunks))))
    stream = model.stream(batch)
    feeds = {"x": x, **({"cache": np.zeros((batch, 4, front.reach), F32)} if front.form == "join" else {})}
    expected = reference.run(model.graph, feeds, dtype="float64")
    parts, at = [], 0
    for steps in chunks:
        parts.append(stream.feed(np.take(x, range(at, at + steps), time)))
        at += steps
    got, after = np.concatenate(parts, 2), stream.state
    np.testing.assert_allclose(got, expected["y"], atol=4e-6)
    np.testing.assert_allclose(got, model.run(feeds)["y"], atol=2e-6)
    stream.reset()
    steps_ = np.stack([stream.step(np.take(x, t, time)) for t in range(sum(chunks))], 2)
    np.testing.assert_array_equal(got, steps_)
    assert stream.state == after
    if front.form == "join":
        np.testing.assert_array_equal(after.arrays["cache"], expected["cache_out"].astype(F32))


@given(
    st.builds(
        Front,
        kernel=st.integers(2, 6),
        dilation=st.integers(1, 4),
        channels=st.sampled_from([2, 4, 6]),
        group=st.sampled_from([1, 2]),
        form=st.sampled_from(["pad", "own", "chomp", "keras", "join"]),
        pool=st.sampled_from(["", "MaxPool", "AveragePool", "CumSum"]),
        recurrent=st.booleans(),
    ),
    st.integers(1, 3),
    st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(any),
)
def test_any_window_in_any_chunks(front: Front, batch: int, chunks: list[int]) -> None:
    assert_chunks_are_the_whole(front, batch, chunks)


@pytest.mark.parametrize("front", [front for front in FRONTS if front.pool != "CumSum"], ids=str)
def test_windows_over_time_are_machine_code(front: Front) -> None:
    program = front_model(front).stream(2)._lowered.program
    assert not [f"{call.node.label}: {call.reason}" for call in program.hosts]
    assert program.block > 1


@dataclass(frozen=True)
class Plane:
    """Windows over time and frequency, x[B,2,T,F] or x[B,2,F,T], as audio networks have them."""

    kernel: tuple[int, int] = (3, 3)  # over time, over frequency
    pads: tuple[int, int] = (1, 1)  # of the frequencies
    stride: int = 1
    dilations: tuple[int, int] = (1, 1)
    group: int = 1
    time: int = 2
    pool: str = ""

    @property
    def reach(self) -> int:
        return (self.kernel[0] - 1) * self.dilations[0]

    def ordered(self, over_time: Any, over_frequency: Any) -> list[Any]:
        return [over_time, over_frequency] if self.time == 2 else [over_frequency, over_time]

    def model(self) -> bytes:
        net = Net()
        x = net.input("x", "B", 2, *self.ordered("T", 9))
        window: dict[str, Any] = {
            "pads": [*self.ordered(self.reach, self.pads[0]), *self.ordered(0, self.pads[1])],
            "strides": self.ordered(1, self.stride),
            "dilations": self.ordered(*self.dilations),
        }
        kernel = self.ordered(*self.kernel)
        y = net.do("Conv", x, net.weights(6, 2 // self.group, *kernel), net.weights(6), group=self.group, **window)
        if self.pool:
            counted = {"count_include_pad": 1} if self.pool == "AveragePool" else {}
            pads = [*self.ordered(1, 1), *self.ordered(0, 0)]
            y = net.do(self.pool, y, kernel_shape=[2, 2], pads=pads, **counted)
        net.do("Conv", y, net.weights(3, 6, 1, 1), to="y")
        net.output("y", None, None, None, None)
        return net.model()


PLANES = [
    Plane(),
    Plane(time=3),
    Plane(kernel=(2, 5), pads=(3, 0), stride=2, dilations=(3, 1), group=2),
    Plane(kernel=(4, 2), pads=(0, 0), dilations=(1, 4), time=3),
    Plane(pool="MaxPool"),
    Plane(kernel=(1, 3), pool="MaxPool", time=3),
    Plane(pool="AveragePool", stride=2, time=3),
]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("plane", PLANES, ids=str)
def test_a_stream_carries_what_planes_look_back_at(plane: Plane, batch: int) -> None:
    assert_planes_stream(plane, batch, [1, 2, 5, 17, 1, 14])


@given(
    st.builds(
        Plane,
        kernel=st.tuples(st.integers(2, 4), st.integers(1, 5)),
        pads=st.tuples(st.integers(0, 4), st.integers(0, 3)),
        stride=st.integers(1, 3),
        dilations=st.tuples(st.integers(1, 3), st.integers(1, 2)),
        group=st.sampled_from([1, 2]),
        time=st.sampled_from([2, 3]),
        pool=st.sampled_from(["", "MaxPool", "AveragePool"]),
    ),
    st.integers(1, 3),
    st.lists(st.integers(0, 20), min_size=1, max_size=4).filter(any),
)
def test_any_plane_in_any_chunks(plane: Plane, batch: int, chunks: list[int]) -> None:
    assert_planes_stream(plane, batch, chunks)


def assert_planes_stream(plane: Plane, batch: int, chunks: list[int]) -> None:
    """In chunks as step by step, bit by bit, and as the definition of the whole; each row as if it were alone."""
    model = le.load(plane.model())
    stream = model.stream(batch)
    x = drawn(batch, 2, *plane.ordered(sum(chunks), 9))
    expected = reference.run(model.graph, {"x": x}, dtype="float64")["y"]
    parts = [stream.feed(part) for part in np.split(x, np.cumsum(chunks)[:-1], plane.time)]
    got = np.concatenate(parts, plane.time)
    np.testing.assert_allclose(got, expected, atol=4e-6)
    np.testing.assert_allclose(got, model.run({"x": x})["y"], atol=4e-6)
    snapshot = stream.state
    stream.reset()
    single = [stream.step(np.take(x, t, plane.time)) for t in range(sum(chunks))]
    np.testing.assert_array_equal(got, np.stack(single, plane.time))
    assert stream.state == snapshot
    assert not stream._lowered.program.hosts
    alone = model.stream()
    for row in range(batch):
        alone.reset()
        np.testing.assert_array_equal(alone.feed(x[row : row + 1]), got[row : row + 1])


@pytest.mark.parametrize("front", [Front(form="own", dilation=2), Front(form="join", dilation=2)], ids=str)
def test_snapshots_hold_the_context(front: Front) -> None:
    stream = front_model(front).stream(2)
    x = drawn(2, 4, 20)
    stream.feed(x[:, :, :7])
    snapshot, twin = stream.state, stream.fork()
    assert sum(a.shape == (2, 4, front.reach) for a in snapshot.arrays.values()) == 1
    wanted = stream.feed(x[:, :, 7:])
    stream.state = le.State.from_bytes(snapshot.to_bytes())
    np.testing.assert_array_equal(stream.feed(x[:, :, 7:]), wanted)
    np.testing.assert_array_equal(twin.feed(x[:, :, 7:]), wanted)
    stream.reset()
    assert stream.state == front_model(front).stream(2).state


# --- what needs the whole sequence ------------------------------------------------------------------------------------


def across_time(act: Callable[[Net, str], str]) -> bytes:
    """An LSTM behind something that mixes the steps of x[B,T,H]."""
    net = Net()
    x = act(net, net.input("x", "B", "T", H))
    y, _, _ = net.lstm(net.do("Transpose", x, perm=[1, 0, 2]), "", "", H)
    net.do("Transpose", net.squeeze(y, 1), to="y", perm=[1, 0, 2])
    net.output("y", "B", "T", H)
    return net.model()


def convolved(pads: list[int], **window: Any) -> Callable[[Net, str], str]:
    def act(net: Net, x: str) -> str:
        turned = net.do("Transpose", x, perm=[0, 2, 1])
        return net.do("Transpose", net.do("Conv", turned, net.weights(H, H, 3), pads=pads, **window), perm=[0, 2, 1])

    return act


def backwards(net: Net, x: str) -> str:
    return net.do("Slice", x, *(net.constant([v]) for v in (-1, -(2**40), 1, -1)))


def attended(net: Net, x: str) -> str:
    scores = net.do("MatMul", x, net.do("Transpose", x, perm=[0, 2, 1]))
    return net.do("MatMul", net.do("Softmax", scores, axis=-1), x)


MIXING: dict[str, tuple[Callable[[Net, str], str], str]] = {
    "symmetric padding": (convolved([1, 1]), "Conv"),
    "right padding": (convolved([0, 2]), "Conv"),
    "stride": (convolved([2, 0], strides=[2]), "Conv"),
    "backwards": (backwards, "Slice|backwards"),
    "softmax over time": (lambda net, x: net.do("Softmax", x, axis=1), "Softmax"),
    "mean over time": (lambda net, x: net.do("Sub", x, net.do("ReduceMean", x, axes=[1])), r"LSTM.*ReduceMean"),
    "attention": (attended, "MatMul"),
    "sum from the end": (lambda net, x: net.do("CumSum", x, net.constant(1), reverse=1), "CumSum"),
    "reflected": (
        lambda net, x: convolved([0, 0])(net, net.do("Pad", x, net.constant([0, 2, 0, 0, 0, 0]), mode="reflect")),
        "Conv",
    ),
}


@pytest.mark.parametrize("case", MIXING)
def test_what_mixes_steps_is_refused_by_name(case: str) -> None:
    act, op = MIXING[case]
    model = le.load(across_time(act))
    assert np.isfinite(model.run(drawn(2, 9, H))["y"]).all()
    with pytest.raises(le.StreamingError, match=op):
        model.stream()


def test_steps_that_meet_all_steps_are_refused() -> None:
    """Y[T,1,B,H] * Y[T,B,H] has each step by every other, where the file fixes T too."""
    net = Net()
    y, _, _ = net.lstm(net.input("x", 3, "B", I), "", "")
    net.do("Tanh", net.do("Mul", y, net.squeeze(y, 1)), to="y")
    net.output("y", None, None, None, None)
    with pytest.raises(le.StreamingError, match="Mul"):
        le.load(net.model()).stream(2)


def test_a_batch_of_one_is_not_taken_for_a_sequence_of_one() -> None:
    """Where both would fit, what is left open for the layer's time stays the time."""
    net = Net()
    x = net.input("x", "T", "B", H)
    _, h, _ = net.lstm(x, "", "", H)
    net.do("Add", net.do("Sub", h, net.do("Transpose", h, perm=[1, 0, 2])), x, to="y")
    net.output("y", None, None, None)
    stream = le.load(net.model()).stream()
    assert stream.inputs[0].shape == (1, H)
    assert stream.feed(drawn(5, 1, H)).shape == (5, 1, H)


REPEATING: dict[str, tuple[int, Callable[[Net, tuple[str, str, str]], str], str]] = {
    "two constant steps": (2, lambda net, made: net.do("Div", made[0], net.weights(2, 1, 1, H)), "Div"),
    "twenty constant steps": (20, lambda net, made: net.do("Max", net.weights(20, 1, 1, 1), made[0]), "Max"),
    "steps that are a layer's two states": (
        2,
        lambda net, made: net.do("Sub", made[0], net.unsqueeze(net.do("Concat", *made[1:], axis=0), 2)),
        "Sub",
    ),
    "steps that are units": (
        H,
        lambda net, made: net.do("Add", made[0], net.unsqueeze(net.do("Transpose", made[1], perm=[2, 1, 0]), 1)),
        "Add",
    ),
}


@pytest.mark.parametrize("case", REPEATING)
def test_one_step_that_is_repeated_beside_several_is_refused(case: str) -> None:
    """A file that takes one step or ``steps``, and no other number: on the way to the last it would be none."""
    steps, act, op = REPEATING[case]
    net = Net()
    net.do("Tanh", act(net, net.lstm(net.input("x", "T", "B", I), "", "")), to="y")
    net.outputs.append(("y", F32, None))
    model = le.load(net.model())
    for fitting in (1, steps):
        assert model.run(drawn(fitting, 1, I))["y"].shape[0] == steps
    with pytest.raises(le.LstmEngineError, match=op):
        model.run(drawn(steps + 1, 1, I))
    for batch in (1, 2, steps):
        with pytest.raises(le.StreamingError, match=op):
            model.stream(batch)


def test_a_step_repeated_before_the_layer_is_refused() -> None:
    """Though behind it its steps and rows are one axis, which no step is a part of."""
    net = Net()
    y, _, _ = net.lstm(net.do("Expand", net.input("x", "T", 1, I), net.constant([2, 3, I])), "", "")
    net.do("Reshape", y, net.constant([6, H]), to="y")
    net.output("y", 6, H)
    model = le.load(net.model())
    for fitting in (1, 2):
        assert model.run(drawn(fitting, 1, I))["y"].shape == (6, H)
    with pytest.raises(le.StreamingError, match=r"x: float32\[T, 1, 3\]"):
        model.stream()


def test_a_sequence_that_weights_hold_to_one_step_is_streamed() -> None:
    """However the file declares it: the next step is the next call's."""
    net = Net()
    y, _, _ = net.lstm(net.input("x", "T", 1, I), "", "")
    row = net.do("Reshape", y, net.constant([1, H]))
    net.do("MatMul", row, net.weights(H, 2), to="y")
    net.output("y", None, 2)
    stream, twin = (le.load(net.model()).stream() for _ in range(2))
    chunk = drawn(5, 1, 1, I)
    whole = stream.feed(chunk)
    assert np.array_equal(np.concatenate([twin.step(x) for x in chunk]), whole.reshape(5, 2))
    assert not np.allclose(whole[-1], le.load(net.model()).run(chunk[-1])["y"])


#: What may become of y[T,3,H], the steps of three rows that the file declares.
ROWS: dict[str, Callable[[Net, str], str]] = {
    "apart": lambda net, y: net.do("Tanh", y),
    "their mean": lambda net, y: net.do("ReduceMean", y, axes=[1], keepdims=1),
    "weighed against each other": lambda net, y: net.do("Softmax", y, axis=1),
    "each with constants": lambda net, y: net.do("Add", y, net.weights(3, H)),
    "multiplied by a matrix": lambda net, y: net.do("MatMul", net.weights(2, 3), y),
}


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("states", [False, True])
def test_rows_that_a_file_declares_are_a_step(case: str, states: bool) -> None:
    """A stream of fewer would be of another network; a stream of one such call takes them as they are."""
    net = Net()
    x = net.input("x", "T", 3, I)
    h, c = (net.input(name, 1, 3, H) if states else "" for name in ("h0", "c0"))
    y, hn, cn = net.lstm(x, h, c)
    net.do("Identity", ROWS[case](net, net.squeeze(y, 1)), to="y")
    net.output("y", "T", None, H)
    for source, name in zip((hn, cn), ("hn", "cn"), strict=True):
        if states:
            net.do("Identity", source, to=name)
            net.output(name, 1, 3, H)
    model = le.load(net.model())
    chunk = drawn(5, 3, I)
    zeros = {name: np.zeros((1, 3, H), F32) for name in ("h0", "c0") if states}
    exact = [reference.run(model.graph, {"x": chunk[: t + 1], **zeros})["y"][-1] for t in range(5)]
    stream, same = model.stream(), model.stream(3)
    assert stream.inputs[0].shape == same.inputs[0].shape == (3, I)
    steps = [stream.step(x) for x in chunk[:3]]
    twin = model.stream()
    twin.state = le.State.from_bytes(stream.state.to_bytes())
    steps += [twin.step(x) for x in chunk[3:]]
    assert np.allclose(steps, exact, atol=1e-6)
    assert np.array_equal(same.feed(chunk), steps)
    with pytest.raises(le.StreamingError, match="declares a batch of 3"):
        model.stream(2)


def test_a_batch_without_the_row_that_is_picked_is_refused() -> None:
    net = Net()
    _, h, _ = net.lstm(net.input("x", "T", "B", I), "", "")
    net.do("Gather", h, net.constant(4), to="y", axis=1)
    net.output("y", 1, H)
    model = le.load(net.model())
    with pytest.raises(le.StreamingError, match=r"batch 2.*Gather.*index 4"):
        model.stream(2)
    assert model.stream(5).step(drawn(5, I)).shape == (1, H)


def test_a_layer_norm_over_time_is_refused() -> None:
    net = Net()
    turned = net.do("Transpose", net.input("x", "B", 6, H), perm=[0, 2, 1])
    x = net.do("LayerNormalization", turned, net.weights(6), axis=-1)
    y, _, _ = net.lstm(net.do("Transpose", x, perm=[2, 0, 1]), "", "", H)
    net.do("Identity", net.squeeze(y, 1), to="y")
    net.output("y", 6, "B", H)
    with pytest.raises(le.StreamingError, match="LayerNormalization"):
        le.load(net.model()).stream()


# --- frames -----------------------------------------------------------------------------------------------------------


def framed(size: int | str = "N") -> bytes:
    """Frames of audio [B, N], cut by a strided convolution into steps that an LSTM with states in the file runs over."""
    net = Net()
    x, s = net.input("x", "B", size), net.input("s", 2, "B", H)
    features = net.do("Relu", net.do("Conv", net.unsqueeze(x, 1), net.weights(I, 1, 8), strides=[4]))
    y, h, c = net.lstm(net.do("Transpose", features, perm=[2, 0, 1]), net.slice(s, 0, 0, 1), net.slice(s, 0, 1, 2))
    net.do("Concat", h, c, to="p", axis=0)
    net.do("ReduceMean", net.squeeze(y, 1), to="y", axes=[0], keepdims=0)
    net.output("y", "B", H)
    net.output("p", 2, "B", H)
    return net.model()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_step_is_a_frame_of_any_size(batch: int) -> None:
    model = le.load(framed())
    assert dict(model.states) == {"s": "p"}
    stream = model.stream(batch)
    assert [spec.shape for spec in stream.inputs] == [(batch, None)]
    frames = [drawn(batch, n, seed=n) for n in (64, 64, 32, 100, 64)]
    zeros = {"s": np.zeros((2, batch, H), F32)}
    expected = by_feedback(model, {"s": "p"}, zeros, [{"x": frame} for frame in frames])
    for frame, wanted in zip(frames, expected, strict=True):
        np.testing.assert_allclose(stream.step(frame), wanted["y"], atol=2e-6)
    np.testing.assert_allclose(stream.state.arrays["s"], expected[-1]["p"], atol=2e-6)


def test_chunks_of_frames_are_their_steps() -> None:
    stream = le.load(framed(32)).stream(2)
    frames = drawn(5, 2, 32)
    steps = np.stack([stream.step(frame) for frame in frames])
    after = stream.state
    stream.reset()
    parts = [stream.feed(frames[:2]), stream.feed(frames[2:2]), stream.feed(frames[2:])]
    np.testing.assert_array_equal(np.concatenate(parts), steps)
    assert stream.state == after
    assert le.State.from_bytes(after.to_bytes()) == after


def test_a_failed_frame_leaves_the_state_as_it_was() -> None:
    stream = le.load(framed()).stream()
    stream.step(drawn(1, 64))
    before, twin = stream.state.to_bytes(), stream.fork()
    for wrong in (drawn(1, 3), drawn(2, 64), drawn(64, 1, 1), np.zeros((1, 64), complex)):
        with pytest.raises(le.InputError):
            stream.step(wrong)
        assert stream.state.to_bytes() == before
    np.testing.assert_array_equal(stream.step(drawn(1, 64)), twin.step(drawn(1, 64)))


def test_a_failed_step_leaves_kept_states_as_they_were() -> None:
    """An embedding's token out of range, beside an average that is kept as it is."""
    net = Net()
    token, past = net.input("id", "B", 1, dtype=np.int64), net.input("ema", "B", 1, I)
    row = net.do("Gather", net.weights(5, I), token)
    net.do("Add", net.do("Mul", past, net.constant(0.5, F32)), row, to="ema_out")
    net.do("Tanh", "ema_out", to="y")
    net.output("ema_out", "B", 1, I)
    net.output("y", "B", 1, I)
    stream = le.load(net.model()).stream()
    stream.step(np.array([[3]]))
    before = stream.state.to_bytes()
    with pytest.raises(le.InputError, match="out of range"):
        stream.step(np.array([[5]]))
    with pytest.raises(le.InputError, match="out of range"):
        stream.feed(np.array([[[1]], [[2]], [[7]]]))
    assert stream.state.to_bytes() == before


# --- files of strangers -----------------------------------------------------------------------------------------------

ZOO = Path(__file__).resolve().parent.parent.parent / "shared" / "zoo"
FED_BACK = [
    (entry, case)
    for entry in (json.loads((ZOO / "index.json").read_text()) if (ZOO / "index.json").exists() else [])
    for case in entry.get("cases", [])
    if case.get("feedback")
]


@pytest.mark.skipif(not FED_BACK, reason="the collection of public models is not here")
@pytest.mark.parametrize(("entry", "case"), FED_BACK, ids=[entry["id"] for entry, _ in FED_BACK])
def test_states_of_public_files_are_found_by_themselves(entry: dict[str, Any], case: dict[str, Any]) -> None:
    model = le.load(ZOO / entry["file"])
    with np.load(ZOO / case["file"]) as arrays:
        names = list(map(str, arrays["in_names"]))
        constants = {n: arrays[f"s0_in{k}"] for k, n in enumerate(names) if n not in case["feedback"]}
    constants = {n: x for n, x in constants.items() if x.dtype.kind in "iu" and x.ndim == 0}
    stream = model.stream(constants=constants or None)
    assert set(stream.state.arrays) == set(case["feedback"])
    assert not set(case["feedback"]) & {spec.name for spec in stream.inputs}
    assert not set(case["feedback"].values()) & {spec.name for spec in stream.outputs}
