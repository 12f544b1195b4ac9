"""Rows of integers and booleans in machine code beside their definitions, element for element: conversions, arithmetic,
comparisons, choices, extremes, computed places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from cases import examples
from hypothesis import given
from hypothesis import strategies as st

from lstm_engine import reference
from lstm_engine.errors import InputError, StreamingError
from lstm_engine.graph import Graph, Node, TensorSpec
from lstm_engine.model import Model
from lstm_engine.passes.shapes import specialise

Feeds = Mapping[str, np.ndarray]
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")
WIDTHS = st.sampled_from([1, 2, 7, 15, 16, 17, 33])
SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-40, 1e30, -1e30])
ONNX_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9,
              "float64": 11, "uint32": 12}  # fmt: skip


def model_of(nodes: Sequence[Node], feeds: Feeds, constants: Feeds, element: str = "float32") -> tuple[Graph, Model]:
    """A model whose first axis is open and whose output is the last node's, of the type it has."""
    inputs = [TensorSpec(name, x.dtype, ("batch", *x.shape[1:]) if x.ndim else ()) for name, x in feeds.items()]
    name = nodes[-1].outputs[0]
    bare = Graph.build(nodes, inputs, [TensorSpec(name, np.dtype(np.float32), None)], constants, 21)
    dtype = specialise(bare, {n: x.shape for n, x in feeds.items()}).dtypes[name]
    graph = Graph.build(nodes, inputs, [TensorSpec(name, dtype, None)], constants, 21)
    return graph, Model(graph, element)


def assert_the_same(nodes: Sequence[Node], feeds: Feeds, constants: Feeds, element: str = "float32") -> np.ndarray:
    """Without a host call, what the definition gives, bit for bit (but for which NaN)."""
    graph, model = model_of(nodes, feeds, constants, element)
    ((name, exact),) = reference.run(graph, feeds, dtype=None).items()
    got = model.run(dict(feeds))[name]
    (program, _), *_ = model._programs.values()
    assert not program.program.hosts, [call.reason for call in program.program.hosts]
    assert (got.dtype, got.shape) == (exact.dtype, exact.shape)
    np.testing.assert_array_equal(got, exact)
    if exact.dtype.kind == "f":
        np.testing.assert_array_equal(np.signbit(got), np.signbit(exact))
    return got


def drawn(draw: Any, shape: Sequence[int], dtype: str, small: bool = False) -> np.ndarray:
    """Values of a type: of floats the special ones among them; ``small``: few different ones."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype.startswith("float"):
        x = rng.integers(-3, 4, shape) if small else rng.standard_normal(shape) * 10
        return np.where(rng.random(shape) < 0.3, rng.choice(SPECIAL, shape), x).astype(dtype)
    bounds = np.iinfo(dtype)
    least, most = (max(bounds.min, -3), 4) if small else (bounds.min, bounds.max)
    return rng.integers(least, most, shape, dtype, endpoint=True)


# --- conversions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [*INTEGERS, "bool", "float32", "float64"])
@pytest.mark.parametrize("target", [*INTEGERS, "bool", "float32", "float64"])
def test_a_conversion(source: str, target: str) -> None:
    if {source, target} <= {"float32", "float64"}:
        pytest.skip("a program has one float type")
    element = next((t for t in (source, target) if t.startswith("float")), "float32")
    rng = np.random.default_rng(0)
    for width in (1, 2, 7, 15, 16, 17, 33):
        if source.startswith("float") and target != "bool":
            room = np.iinfo(target)
            x = rng.uniform(room.min / 2, room.max / 2, (3, width))
            x = np.where(rng.random(x.shape) < 0.5, rng.uniform(max(-3, room.min), 3, x.shape), x)
        elif source.startswith("float"):
            x = rng.choice(SPECIAL, (3, width))
            x[np.abs(x) == 1e-40] = 1e-30  # machine code takes what is denormal for 0
        else:
            room = np.iinfo(np.uint8 if source == "bool" else source)
            x = rng.integers(room.min, room.max, (3, width), room.dtype, endpoint=True)
            x = x % 2 if source == "bool" else np.where(rng.random(x.shape) < 0.3, x % 2, x)
        node = Node("Cast", ("x",), ("y",), {"to": ONNX_TYPES[target]})
        assert_the_same([node], {"x": x.astype(source)}, {}, element)


def test_a_conversion_of_what_no_integer_is() -> None:
    """Outside the integers, or NaN: the lowest integer, whatever the CPU."""
    x = np.array([[np.nan, np.inf, -np.inf, 3e38, -3e38, 5.5]], np.float32)
    for target in ("int32", "int64"):
        _, model = model_of([Node("Cast", ("x",), ("y",), {"to": ONNX_TYPES[target]})], {"x": x}, {})
        assert model.run(x)["y"].tolist() == [[np.iinfo(target).min] * 5 + [5]]


# --- arithmetic, comparisons, choices ---------------------------------------------------------------------------------


@st.composite
def operands(draw: st.DrawFn, dtypes: Sequence[str], count: int = 2, small: bool = False) -> tuple[Feeds, Feeds, str]:
    """Feeds and constants that broadcast: whole rows, single columns, one row for all."""
    dtype = draw(st.sampled_from(dtypes))
    shape = (draw(st.integers(1, 4)), *([draw(st.integers(1, 3))] if draw(st.booleans()) else []), draw(WIDTHS))
    feeds, constants = {"a": drawn(draw, shape, dtype, small)}, {}
    for name in "bc"[: count - 1]:
        own = [1 if k and draw(st.integers(0, 3)) == 0 else n for k, n in enumerate(shape)]
        if draw(st.booleans()):
            feeds[name] = drawn(draw, own, dtype, small)
        else:
            constants[name] = drawn(draw, own[draw(st.integers(1, len(own))) :], dtype, small)
    return feeds, constants, dtype


@examples(150)
@given(operands(INTEGERS), st.sampled_from(["Add", "Sub", "Mul", "Min", "Max"]), st.booleans())
def test_arithmetic_of_integers_wraps_around(case: tuple[Feeds, Feeds, str], op: str, swapped: bool) -> None:
    feeds, constants, _ = case
    names = ("b", "a") if swapped else ("a", "b")
    assert_the_same([Node(op, names, ("y",))], feeds, constants)


@examples(150)
@given(
    operands([*INTEGERS, "float32", "float64"], small=True),
    st.sampled_from(["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"]),
    st.booleans(),
)
def test_a_comparison(case: tuple[Feeds, Feeds, str], op: str, swapped: bool) -> None:
    feeds, constants, dtype = case
    element = dtype if dtype.startswith("float") else "float32"
    for x in (*feeds.values(), *constants.values()):
        x[abs(x) < 1e-30] = 0  # machine code takes what is denormal for 0
    names = ("b", "a") if swapped else ("a", "b")
    assert_the_same([Node(op, names, ("y",))], feeds, constants, element)


@examples(60)
@given(operands(["bool"]), st.sampled_from(["And", "Or", "Xor", "Equal"]), st.booleans())
def test_logic(case: tuple[Feeds, Feeds, str], op: str, negated: bool) -> None:
    feeds, constants, _ = case
    nodes = [Node(op, ("a", "b"), ("t",)), *([Node("Not", ("t",), ("y",))] if negated else [])]
    assert_the_same(nodes, feeds, constants)


@examples(150)
@given(operands([*INTEGERS, "bool", "float32", "float64"], count=3), st.data())
def test_a_choice(case: tuple[Feeds, Feeds, str], data: st.DataObject) -> None:
    feeds, constants, dtype = case
    shape = [1 if k and data.draw(st.integers(0, 3)) == 0 else n for k, n in enumerate(feeds["a"].shape)]
    feeds = {**feeds, "if": drawn(data.draw, shape, "bool")}
    names = ("if", *data.draw(st.permutations(["a", "b"])))
    element = dtype if dtype.startswith("float") else "float32"
    kept = {name: x for name, x in feeds.items() if name in names}
    assert_the_same([Node("Where", names, ("y",))], kept, constants, element)


@examples(60)
@given(operands(INTEGERS, count=1, small=True), st.sampled_from([(None, 2), (1, None), (1, 2), (3, 1)]))
def test_bounds_of_integers(case: tuple[Feeds, Feeds, str], bounds: tuple[int | None, int | None]) -> None:
    feeds, _, dtype = case
    constants = {n: np.array(x, dtype) for n, x in zip(("min", "max"), bounds, strict=True) if x is not None}
    names = ("a", *(n if n in constants else "" for n in ("min", "max")))
    assert_the_same([Node("Clip", names, ("y",))], feeds, constants)


# --- extremes ---------------------------------------------------------------------------------------------------------


@examples(150)
@given(st.data())
def test_which_element_is_extreme(data: st.DataObject) -> None:
    rank = data.draw(st.integers(2, 4))
    shape = [data.draw(st.integers(1, 4)), *(data.draw(st.integers(1, 18)) for _ in range(rank - 1))]
    dtype = data.draw(st.sampled_from(["float32", "float64"]))
    attributes = {
        "axis": data.draw(st.integers(1, rank - 1)) - rank * data.draw(st.integers(0, 1)),
        "keepdims": data.draw(st.integers(0, 1)),
        "select_last_index": data.draw(st.integers(0, 1)),
    }
    op = data.draw(st.sampled_from(["ArgMax", "ArgMin"]))
    x = drawn(data.draw, shape, dtype, small=data.draw(st.booleans()))
    x[np.abs(x) < 1e-30] = 0  # machine code takes what is denormal for 0
    assert_the_same([Node(op, ("x",), ("y",), attributes)], {"x": x}, {}, dtype)


# --- computed places --------------------------------------------------------------------------------------------------


@st.composite
def picks(draw: st.DrawFn) -> tuple[Node, Feeds]:
    rank = draw(st.integers(2, 3))
    shape = [draw(st.integers(1, 4)), *(draw(st.integers(1, 6)) for _ in range(rank - 1))]
    axis = draw(st.integers(0, rank - 1))
    op = draw(st.sampled_from(["Gather", "GatherElements"]))
    if op == "Gather":
        indices = [draw(st.integers(1, 4)) for _ in range(draw(st.integers(0, 2)))]
    else:
        indices = [draw(st.integers(1, n + (k == axis))) for k, n in enumerate(shape)]
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    index = rng.integers(-shape[axis], shape[axis], indices, draw(st.sampled_from([np.int32, np.int64])))
    x = drawn(draw, shape, draw(st.sampled_from([*INTEGERS, "bool", "float32"])))
    return Node(op, ("x", "i"), ("y",), {"axis": axis - rank * draw(st.integers(0, 1))}), {"x": x, "i": np.array(index)}


@examples(250)
@given(picks())
def test_computed_places(case: tuple[Node, Feeds]) -> None:
    """Of all that indices may pick: within rows it is machine code, and right however it is done."""
    node, feeds = case
    inputs = [TensorSpec(name, x.dtype, x.shape) for name, x in feeds.items()]
    graph = Graph.build([node], inputs, [TensorSpec("y", feeds["x"].dtype, None)], {}, 21)
    model = Model(graph, "float32")
    np.testing.assert_array_equal(model.run(dict(feeds))["y"], reference.run(graph, feeds, dtype=None)["y"])
    (lowered, _), *_ = model._programs.values()
    assert not lowered.program.hosts, [call.reason for call in lowered.program.hosts]


@pytest.mark.parametrize("op", ["Gather", "GatherElements"])
@pytest.mark.parametrize("wrong", [5, -6, 1 << 40, -(1 << 40)])
def test_an_index_out_of_range_is_refused(op: str, wrong: int) -> None:
    feeds = {"x": np.ones((2, 5, 3), np.float32), "i": np.array([[[0, wrong, 1]], [[2, 3, 4]]])}
    _, model = model_of([Node(op, ("x", "i"), ("y",), {"axis": 1})], feeds, {})
    with pytest.raises(InputError, match=f"index {wrong} is out of range, expected -5 to 4"):
        model.run(feeds)
    feeds["i"][0, 0, 1] = -5
    model.run(feeds)


def recurrent_pick() -> Graph:
    """The step of an LSTM's outputs that a number names, as decoders take it."""
    rng = np.random.default_rng(3)
    constants = {
        "W": rng.uniform(-0.4, 0.4, (1, 20, 3)).astype(np.float32),
        "R": rng.uniform(-0.4, 0.4, (1, 20, 5)).astype(np.float32),
    }
    nodes = [
        Node("LSTM", ("x", "W", "R"), ("Y", "", ""), {"hidden_size": 5}),
        Node("Gather", ("Y", "t"), ("y",), {"axis": 0}),
    ]
    specs = [("x", np.float32, ("time", 2, 3)), ("t", np.int64, ())]
    inputs = [TensorSpec(name, np.dtype(dtype), shape) for name, dtype, shape in specs]
    return Graph.build(nodes, inputs, [TensorSpec("y", np.dtype(np.float32), None)], constants, 21)


def test_a_computed_step_of_any_sequence() -> None:
    graph = recurrent_pick()
    model = Model(graph, "float32")
    for steps in (1, 3, 7, 16, 17, 40):
        x = np.random.default_rng(steps).standard_normal((steps, 2, 3)).astype(np.float32)
        for t in {0, steps // 2, steps - 1, -1, -steps}:
            feeds = {"x": x, "t": np.array(t)}
            np.testing.assert_allclose(model.run(feeds)["y"], reference.run(graph, feeds)["y"], atol=1e-6)
        for t in (steps, -steps - 1):
            with pytest.raises(InputError, match="out of range"):
                model.run({"x": x, "t": np.array(t)})
    assert not any(lowered.program.hosts for lowered, _ in model._programs.values())
    with pytest.raises(StreamingError, match="Gather"):
        model.stream(batch=2)


def test_a_step_whose_index_is_out_of_range_leaves_the_state_as_it_was() -> None:
    rng = np.random.default_rng(4)
    constants = {
        "W": rng.uniform(-0.4, 0.4, (1, 20, 3)).astype(np.float32),
        "R": rng.uniform(-0.4, 0.4, (1, 20, 5)).astype(np.float32),
    }
    constants["axis"] = np.array([1])
    nodes = [
        Node("LSTM", ("x", "W", "R"), ("Y", "", ""), {"hidden_size": 5}),
        Node("Cast", ("x",), ("places",), {"to": ONNX_TYPES["int64"]}),
        Node("Unsqueeze", ("places", "axis"), ("i",)),
        Node("GatherElements", ("Y", "i"), ("y",), {"axis": 3}),
    ]
    inputs = [TensorSpec("x", np.dtype(np.float32), ("time", 1, 3))]
    graph = Graph.build(nodes, inputs, [TensorSpec("y", np.dtype(np.float32), None)], constants, 21)
    x = rng.uniform(-5.9, 4.9, (9, 1, 3)).astype(np.float32)
    model = Model(graph, "float32")
    whole, stream = model.run(x)["y"], model.stream()
    parts = [stream.feed(x[:4])]
    before = stream.state
    with pytest.raises(InputError, match="index 5 is out of range"):
        stream.feed(np.concatenate([x[4:6], np.full((1, 1, 3), 5, np.float32)]))
    assert stream.state == before
    parts += [stream.feed(x[4:7]), stream.feed(x[7:])]
    np.testing.assert_array_equal(np.concatenate(parts).reshape(whole.shape), whole)


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bool", "int8", "int16"])
def test_rows_whose_parts_begin_at_odd_bytes(dtype: str) -> None:
    feeds = {"a": np.array([[1, 0, 1], [0, 0, 1]], dtype), "b": np.array([[1, 1], [0, 1]], dtype)}
    nodes = [
        Node("Concat", ("a", "b"), ("c",), {"axis": 1}),
        Node("Slice", ("c", "from", "to", "axis"), ("d",)),
        Node("Concat", ("d", "a"), ("y",), {"axis": 1}),
    ]
    assert_the_same(nodes, feeds, {"from": np.array([1]), "to": np.array([4]), "axis": np.array([1])})
