"""Weights in bfloat16 and int8: held against their definition, saved and loaded, refused where they are none."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from cases import (
    NETS,
    WIDTHS,
    Case,
    Feeds,
    LayerCase,
    NetCase,
    assert_same_bits,
    examples,
    model_of,
    with_activations,
)
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import lstm_engine as le
from lstm_engine import precision, reference
from lstm_engine.encoding import Opcode
from lstm_engine.graph import Graph
from lstm_engine.machine import target
from lstm_engine.model import Model
from lstm_engine.reference.rounded import Bfloat16Weights, Int8Weights, bfloat16_rows, int8_rows
from lstm_engine.report import verify

LESSER = ["bfloat16", "int8"]

# --- rounding ---------------------------------------------------------------------------------------------------------

weights = st.builds(
    lambda seed, rows, depth, scale: np.random.default_rng(seed).normal(size=(rows, depth)).astype(np.float32) * scale,
    st.integers(0, 999),
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from([np.float32(s) for s in (1, 1e-30, 1e30, 3e-39, 1e-3)]),
)


@examples(200)
@given(values=weights, axis=st.integers(0, 1), how=st.sampled_from(LESSER))
def test_rounding_what_was_rounded_changes_nothing(values: np.ndarray, axis: int, how: str) -> None:
    once = precision.ROUNDINGS[how](values, axis)
    assert once.dtype == np.float32
    assert_same_bits(precision.ROUNDINGS[how](once, axis), once)


@examples(100)
@given(values=weights, axis=st.integers(0, 1))
def test_int8_levels_are_the_nearest(values: np.ndarray, axis: int) -> None:
    levels, scales = precision.int8_levels(values, axis)
    assert (levels.dtype, scales.dtype) == (np.int8, np.float32)
    assert levels.min() >= -127
    spread = np.expand_dims(scales.astype(np.float64), axis)
    error = np.abs(levels * spread - values)
    largest = np.abs(values).max(axis=axis)
    normal = largest > 1e-35
    # A scale is rounded to 16 bits, upwards or downwards: at the ends a value may lie that much beyond its level.
    bound = 0.5 * spread + np.abs(values) * 2.0**-16
    assert (error <= bound)[np.broadcast_to(np.expand_dims(normal, axis), error.shape)].all()
    assert (np.abs(levels).max(axis=axis)[normal] == 127).all()
    assert (scales.view(np.uint32) & 0xFF == 0).all()


def test_a_level_times_its_scale_is_exact() -> None:
    draw = np.random.default_rng(0)
    levels, scales = precision.int8_levels(draw.normal(size=(64, 200)).astype(np.float32), 1)
    product = levels.astype(np.float32) * scales[:, None]
    np.testing.assert_array_equal(product.astype(np.float64), levels.astype(np.float64) * scales[:, None].astype(float))


def test_bfloat16_is_the_nearest_with_ties_to_even() -> None:
    draw = np.random.default_rng(1)
    words = draw.integers(0, 2**32, 200_000, np.uint32)
    words[:1000] = (words[:1000] & 0xFFFF0000) | 0x8000  # ties
    values = words.view(np.float32)
    values = values[np.isfinite(values)]
    got = precision.bfloat16(values).astype(np.float64)
    below = (values.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64)
    with np.errstate(over="ignore"):
        above = (values.view(np.uint32) & 0xFFFF0000).astype(np.uint64) + 0x10000
    above = above.astype(np.uint32).view(np.float32).astype(np.float64)
    exact = values.astype(np.float64)
    to_below, to_above = np.abs(exact - below), np.abs(exact - above)
    near = np.isfinite(above)
    even = (values.view(np.uint32) >> 16) & 1 == 0
    expected = np.where((to_below < to_above) | ((to_below == to_above) & even), below, above)
    np.testing.assert_array_equal(got[near], expected[near])
    assert (to_below == to_above)[near].sum() > 900


def test_what_is_no_number_or_nothing_stays_so() -> None:
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -3e-39], np.float32)
    got = precision.bfloat16(special)
    assert np.isnan(got[0])
    assert_same_bits(got[1:5], special[1:5])
    assert np.abs(got[5:]).max() < 1e-38
    levels, scales = precision.int8_levels(np.array([[1, np.nan], [1, np.inf], [0, 0], [1, -1]], np.float32), 1)
    assert np.isnan(scales[:2]).all()
    assert scales[2] == 0
    assert (levels[:3] == 0).all() or (levels[2] == 0).all()
    assert list(levels[3]) == [127, -127]
    assert np.isnan(precision.int8(np.array([[1, np.nan]], np.float32), 1)).all()


def test_rows_are_rounded_to_even_by_their_largest_element() -> None:
    x = np.array([[127.0, 0.5, 1.5, -2.5, -126.5], [0, 0, 0, 0, 0], [1e-35, 0, 0, 0, 0]], np.float32)
    levels, scale = int8_rows(x)
    assert levels[0].tolist() == [127, 0, 2, -2, -126]
    assert scale[:, 0].tolist() == [1.0, 0.0, 0.0]
    assert not levels[1:].any()
    within, scale = int8_rows(np.array([[0.5, -1.0, 0.25]], np.float32), least=1.0)
    assert within.tolist() == [[64, -127, 32]]
    assert scale[0, 0] == np.float32(1) / np.float32(127)
    for bad in (np.nan, np.inf, -np.inf):
        assert np.isnan(int8_rows(np.array([[1, bad]], np.float32))[1]).all()


def test_rows_in_bfloat16_lean_where_they_are_nearly_ties() -> None:
    tie, below = 1 + 2.0**-8, 1 + 2.0**-8 - 2.0**-22
    x = np.array([[tie, below, 1.0, 0.3], [2 * tie, 2 * below, 0.75, 0.3], [np.nan, np.inf, 1.0, 0.3]], np.float32)
    up, exact, down = (bfloat16_rows(x, lean=lean) for lean in (verify.NEAR_TIE, 0.0, -verify.NEAR_TIE))
    assert_same_bits(exact, precision.bfloat16(x))
    for way in (up, down):
        assert_same_bits(way[:, 2:], exact[:, 2:])
        assert_same_bits(way[2], exact[2])
    assert (up[:2, :2] > exact[:2, :2]).all()
    np.testing.assert_array_equal(exact[:2, :2], down[:2, :2])
    assert_same_bits(
        bfloat16_rows(x, least=2.0**13, lean=verify.NEAR_TIE)[0, 2:], precision.bfloat16(x[0, 2:] + 2.0**-7)
    )


# --- which constants --------------------------------------------------------------------------------------------------


def tied_embedding() -> bytes:
    """A table looked up, and its transpose as the weights of the head."""
    draw = np.random.default_rng(3)
    arrays = {"table": draw.normal(size=(40, 16)).astype(np.float32), "axes": np.array([1])}
    arrays |= builders.random_weights(16, 16)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("LSTM", ["x", "W", "R", "B"], ["Y"], hidden_size=16),
        helper.make_node("Squeeze", ["Y", "axes"], ["y"]),
        helper.make_node("Reshape", ["y", "rows"], ["flat"]),
        helper.make_node("Gemm", ["flat", "table"], ["scores"], transB=1),
    ]
    arrays["rows"] = np.array([-1, 16])
    outputs = [("x", np.float32, None), ("scores", np.float32, None)]
    return builders.make_model(nodes, [("ids", np.int64, ["time", 1])], outputs, arrays).SerializeToString()


@pytest.mark.parametrize("how", LESSER)
def test_a_constant_that_is_read_otherwise_too_stays_exact_there(how: str, tmp_path: Path) -> None:
    ids = np.arange(40)[:, None]
    plain, less = le.load(tied_embedding()), le.load(tied_embedding(), precision=how)
    exact, rounded = plain.run({"ids": ids}), less.run({"ids": ids})
    assert_same_bits(rounded["x"], exact["x"])
    assert not np.array_equal(rounded["scores"], exact["scores"])
    less.save(tmp_path / "m.npz")
    again = le.load(tmp_path / "m.npz").run({"ids": ids})
    for name in exact:
        assert_same_bits(again[name], rounded[name])
    (comparison, *others) = verify.compared(less, None, 0, 2)
    assert all(each.holds for each in (comparison, *others))


def defined(model: le.Model, how: str, lean: float = 0.0) -> Graph:
    """What the model computes on this processor, whose bfloat16 products may round rows too."""
    return reference.at_precision(model.graph, how, lean=lean, rows_too=target().bf16)


GEMMS = [
    {},
    {"transB": 1},
    {"alpha": 0.3},
    {"beta": -2.0},
    {"alpha": -1.7, "beta": 0.5, "transB": 1},
]


@pytest.mark.parametrize("how", LESSER)
@pytest.mark.parametrize("attributes", GEMMS, ids=str)
@pytest.mark.parametrize(("depth", "outputs"), [(1, 1), (3, 64), (17, 5), (33, 70), (64, 129), (67, 16)])
def test_dense_layers(how: str, attributes: dict[str, Any], depth: int, outputs: int) -> None:
    draw = np.random.default_rng(depth + outputs)
    W = draw.normal(size=(outputs, depth) if attributes.get("transB") else (depth, outputs)).astype(np.float32)
    arrays = {"W": W, "b": draw.normal(size=outputs).astype(np.float32)}
    node = helper.make_node("Gemm", ["x", "W", "b"], ["y"], **attributes)
    specs = [("x", np.float32, ["n", depth])], [("y", np.float32, None)]
    model = le.load(builders.make_model([node], *specs, arrays).SerializeToString(), precision=how)
    definition = defined(model, how)
    for rows in (1, 2, 5, 7, 200):
        x = rows_of_all_kinds(draw, (rows, depth))
        got, expected = model.run({"x": x})["y"], reference.run(definition, {"x": x})["y"]
        assert_near(got, expected, sum_of_magnitudes(x, W.T if attributes.get("transB") else W), "y")
    opcodes = {part.opcode for program in model.ways()[0] for part in program.listing}
    assert Opcode.DENSE in opcodes


def sum_of_magnitudes(x: np.ndarray, W: np.ndarray) -> np.ndarray:
    """What rounding errors of a sum are in proportion to."""
    with np.errstate(all="ignore"):
        return np.nan_to_num(np.abs(x.astype(np.float64)) @ np.abs(W.astype(np.float64)), posinf=0, nan=0)


def assert_near(got: np.ndarray, expected: np.ndarray, scale: Any, what: str, allowed: Any = 0.0) -> None:
    """Within a few roundings of float32; NaN where the other is."""
    expected, got = np.asarray(expected, np.float64), got.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected), err_msg=what)
    bound = 4e-6 * np.maximum(1.0, np.maximum(np.abs(np.nan_to_num(expected)), scale)) + np.nan_to_num(allowed)
    with np.errstate(invalid="ignore"):
        beyond = np.nan_to_num(np.abs(got - expected)) > bound
    worst = np.unravel_index(np.argmax(beyond), beyond.shape) if beyond.size else ()
    assert not beyond.any(), f"{what}{list(map(int, worst))}: {got[worst]} for {expected[worst]}"


# --- recurrent layers -------------------------------------------------------------------------------------------------

KINDS: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda row: row,
    lambda row: row,
    lambda row: 0 * row,
    lambda row: np.full_like(row, 0.7),
    lambda row: row * 1e30,
    lambda row: row * 1e-35,
    lambda row: row * 1e-42,
    lambda row: np.where(np.arange(row.size) == row.size // 2, 1e30, row),
    lambda row: np.round(row * 4) / 2,  # halves of levels, where the largest is a power of two
]
NO_NUMBERS = [np.nan, np.inf, -np.inf]


def rows_of_all_kinds(draw: np.random.Generator, shape: tuple[int, ...], spoilt: bool = True) -> np.ndarray:
    """x[..., K] whose rows are ordinary, zero, constant, huge, tiny, denormal, or (``spoilt``) hold what is no number."""
    x = draw.normal(size=shape).astype(np.float32)
    with np.errstate(all="ignore"):
        for place in np.ndindex(shape[:-1]):
            kind = draw.integers(len(KINDS) + spoilt)
            if kind < len(KINDS):
                x[place] = KINDS[kind](x[place])
            elif draw.random() < 0.3:
                x[(*place, draw.integers(shape[-1]))] = draw.choice(NO_NUMBERS)
    return x


def lawful(case: LayerCase) -> LayerCase:
    """Without what the operator has no place for."""
    case = replace(case, H=min(case.H, 33) if case.T > 9 else case.H)
    if case.op != "LSTM":
        case = replace(case, peephole=False, input_forget=None)
    if case.op != "GRU":
        case = replace(case, linear_before_reset=None)
    if not case.activations or case.op == "LSTM":
        return case
    return replace(case, activations=case.activations[: 2 if case.op == "GRU" else 1])


SIZES = [1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 64, 67]
narrow_layers = st.builds(
    LayerCase,
    op=st.sampled_from(["LSTM", "LSTM", "GRU", "RNN"]),
    I=st.sampled_from([*SIZES, 200]),
    H=st.sampled_from(SIZES),
    T=st.sampled_from([1, 2, 9, 40]),
    B=st.sampled_from([1, 2, 3, 5, 7]),
    direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
    layout=st.integers(0, 1),
    states=st.sampled_from(["", "inputs"]),
    lengths=st.sampled_from(["", "", "input"]),
    bias=st.booleans(),
    peephole=st.booleans(),
    clip=st.sampled_from([None, None, 0.4]),
    input_forget=st.sampled_from([None, None, 1]),
    linear_before_reset=st.sampled_from([None, 1]),
    seed=st.integers(0, 99),
    precision=st.sampled_from(["bfloat16", "int8", "int8"]),
).map(lawful)


@examples(120)
@given(case=narrow_layers, seed=st.integers(0, 999))
def test_a_layer_is_its_definition(case: LayerCase, seed: int) -> None:
    assert_is_defined(case, feeds_of_all_kinds(case, seed))


ACTIVATED = [
    with_activations(LayerCase(H=17, I=5, T=6, precision="int8"), "HardSigmoid", "Softsign", "Tanh"),
    with_activations(LayerCase(H=17, I=5, T=6, precision="int8"), "Sigmoid", "Relu", "Tanh"),
    with_activations(LayerCase(H=17, I=5, T=6, precision="int8"), "Sigmoid", "Tanh", "Elu"),
    with_activations(LayerCase(op="GRU", H=17, I=5, T=6, precision="int8"), "Sigmoid", "Elu"),
    with_activations(LayerCase(op="RNN", H=17, I=5, T=6, precision="int8"), "Relu"),
    with_activations(LayerCase(op="RNN", H=17, I=5, T=6, states="inputs", precision="int8"), "Softplus"),
]


@pytest.mark.parametrize("case", ACTIVATED, ids=str)
def test_cells_that_leave_one_are_scaled_by_what_they_are(case: LayerCase) -> None:
    for seed in range(5):
        assert_is_defined(case, case.feeds(seed))


def feeds_of_all_kinds(case: LayerCase, seed: int) -> Feeds:
    """Rows of every kind, a start beyond ±1."""
    feeds, draw = case.feeds(seed), np.random.default_rng(seed)
    feeds["X"] = rows_of_all_kinds(draw, feeds["X"].shape, spoilt=seed % 3 == 0)
    return {name: 3 * x if name in ("h0", "c0") and seed % 2 else x for name, x in feeds.items()}


def assert_is_defined(case: LayerCase, feeds: Feeds) -> None:
    """Each step from the engine's own h before it, so that what is rounded is the same; c is the definition's own."""
    model = model_of(case)
    got = model.run(feeds)
    Y = time_first(case, got["Y"])
    exact, up, down = (each_step(case, model, feeds, Y, lean) for lean in (0.0, verify.NEAR_TIE, -verify.NEAR_TIE))
    # A GRU rounds r∘h, which nobody sees: near a tie it may go either way.
    for name, mine in (("Y", Y), *((key, layout_first(case, got[key])) for key in got if key != "Y")):
        ties = 2 * (np.abs(up[name] - exact[name]) + np.abs(down[name] - exact[name]))
        assert_near(mine, exact[name], 0.0, f"{case}: {name}", ties if case.op == "GRU" else 0.0)
    assert not [call for program in model.ways()[0] for call in program.hosts]


def time_first(case: LayerCase, Y: np.ndarray) -> np.ndarray:
    """As [T, D, B, H]."""
    return Y.transpose(1, 2, 0, 3) if case.layout else Y


def layout_first(case: LayerCase, state: np.ndarray) -> np.ndarray:
    """As [D, B, H]."""
    return state.swapaxes(0, 1) if case.layout else state


def each_step(case: LayerCase, model: le.Model, feeds: Feeds, Y: np.ndarray, lean: float) -> dict[str, np.ndarray]:
    """What the definition makes of each step, begun in the h that the engine had."""
    how = case.precision
    graph = defined(model, how, lean)
    (node,) = (node for node in graph.nodes if node.op == case.op)
    W, R, B, P = (graph.constants.get(node.input(index)) for index in (1, 2, 3, 7))
    assert isinstance(W, {"int8": Int8Weights, "bfloat16": Bfloat16Weights if target().bf16 else np.ndarray}[how])
    X = (feeds["X"].swapaxes(0, 1) if case.layout else feeds["X"]).astype(np.float64)
    steps, rows = X.shape[:2]
    lengths = feeds.get("lengths", np.full(rows, steps))
    starts = {k: layout_first(case, feeds[f"{k}0"]) for k in "hc" if f"{k}0" in feeds}
    zeros = np.zeros((case.directions, rows, case.H))
    attributes = {k: v for k, v in node.attributes.items() if k in ("clip", "input_forget", "linear_before_reset")}
    attributes |= {k: v for k, v in node.attributes.items() if k.startswith("activation")}
    made = {"Y": np.zeros(Y.shape), "Y_h": np.zeros(zeros.shape), "Y_c": np.zeros(zeros.shape)}
    for d in range(case.directions):
        own = [None if a is None else a[d : d + 1].astype(np.float64) for a in (W, R, B, P)]
        h, c = (np.array(starts.get(k, zeros)[d], np.float64) for k in "hc")
        backwards = case.direction == "reverse" or d == 1
        for s in range(steps):
            live = np.flatnonzero(s < lengths)
            at = lengths[live] - 1 - s if backwards else np.full(live.size, s)
            if not live.size:
                break
            states = [h[live][None], c[live][None], own[3]] if case.op == "LSTM" else [h[live][None]]
            function = reference.OPERATORS[case.op].function
            y, _, *cell = function(X[at, live][None], *own[:3], None, *states, **attributes)
            made["Y"][at, d, live] = y[0, 0]
            made["Y_h"][d, live] = y[0, 0]
            h[live] = Y[at, d, live]
            if cell:
                c[live] = made["Y_c"][d, live] = cell[0][0]
    if case.lengths != "input":
        return made
    for name in ("Y_h", "Y_c"):
        made[name][:, lengths == 0] = 0
    return made


@pytest.mark.parametrize("how", LESSER)
@pytest.mark.parametrize("shape", [(0, 2, 5), (4, 0, 5)], ids=str)
def test_no_steps_and_no_rows(how: str, shape: tuple[int, ...]) -> None:
    for op in ("LSTM", "GRU", "RNN"):
        results = model_of(LayerCase(op=op, H=17, I=5, precision=how)).run(np.zeros(shape, np.float32))
        assert results["Y"].shape == (shape[0], 1, shape[1], 17)
        assert not results["Y_h"].any()


def projected(directions: int = 1) -> bytes:
    """PyTorch's proj_size: h is a product, and may leave ±1."""
    draw = np.random.default_rng(5)
    arrays = {}
    for suffix in ("", "_reverse")[:directions]:
        shapes = {"weight_ih": (4 * 19, 6), "weight_hh": (4 * 19, 5), "bias_ih": (4 * 19,), "bias_hh": (4 * 19,)}
        shapes["weight_hr"] = (5, 19)
        arrays |= {f"{k}_l0{suffix}": draw.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize("how", LESSER)
@pytest.mark.parametrize("directions", [1, 2])
def test_projections(how: str, directions: int) -> None:
    model = le.load(projected(directions), precision=how)
    assert_compared(model, None)
    graph = defined(model, how)
    (node,) = (node for node in graph.nodes if node.op == "LSTM")
    if how == "int8":
        assert not graph.constants[node.input(2)].least.any()
    assert_same_bits(graph.constants[node.input(8)], model.graph.constants[node.input(8)])


def assert_compared(model: le.Model, allowed: float | None = None) -> None:
    """As ``lstm-engine verify`` does, and that there is nothing to compare with would be a fault too."""
    comparisons = verify.compared(model, None, 0, 2)
    for each in comparisons:
        assert each.holds, f"{model}: {each}"
        assert allowed is None or each.error <= allowed * max(1.0, each.greatest), f"{model}: {each}"
    assert any(each.greatest > 0 for each in comparisons)


FEW_NETS = [case for case in NETS if case.dtype == "float32"][::3]


@pytest.mark.parametrize("how", LESSER)
@pytest.mark.parametrize("case", FEW_NETS, ids=str)
def test_networks_are_their_definition(case: NetCase, how: str) -> None:
    assert_compared(model_of(replace(case, precision=how)), 2e-5 if how == "bfloat16" else None)


@pytest.mark.parametrize("how", LESSER)
def test_a_branch_that_is_taken_has_such_weights_too(how: str) -> None:
    model = le.load(builders.make_with_branches().SerializeToString(), precision=how)
    definition = defined(model, how)
    for flag in (True, False):
        feeds = {"X": np.random.default_rng(0).normal(size=(1, 2, 3)).astype(np.float32), "flag": np.array(flag)}
        got = model.run(feeds)["Y"]
        assert Opcode.LSTM in {part.opcode for program in model.ways()[0] for part in program.listing}
        expected = reference.run(definition, feeds)["Y"]
        plain = reference.run(model.graph, feeds)["Y"]
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)
        assert np.abs(expected - plain).max() > 1e-5


# --- bfloat16 is the engine in float32, or with rows rounded too ------------------------------------------------------

HALVED: list[Case] = [
    *(LayerCase(H=H, I=1 + k, T=5, B=1 + k % 3, precision="bfloat16") for k, H in enumerate(WIDTHS)),
    *(LayerCase(op="GRU", linear_before_reset=k % 2, H=H, I=2 + k, precision="bfloat16") for k, H in enumerate(WIDTHS)),
    *(LayerCase(op="RNN", H=H, I=3, T=40, precision="bfloat16") for H in (1, 17, 64, 70)),
    LayerCase(I=200, H=33, T=37, B=2, precision="bfloat16"),
    LayerCase(I=65, H=48, T=40, B=1, direction="bidirectional", precision="bfloat16"),
    LayerCase(H=17, peephole=True, clip=0.5, lengths="input", precision="bfloat16"),
    *(replace(case, precision="bfloat16") for case in FEW_NETS),
]


@pytest.mark.skipif(target().bf16, reason="products round rows too on this processor")
@pytest.mark.parametrize("case", HALVED, ids=str)
def test_bfloat16_is_float32_with_rounded_weights(case: Case) -> None:
    """Bit by bit: the weights are widened in registers, and nothing else is different."""
    model = model_of(case)
    assert not np.array_equal(*(first_weights(m) for m in (model, model_of(replace(case, precision="")))))
    same = Model(model.graph, "float32")
    for seed in range(2):
        feeds = case.feeds(seed)
        expected = same.run(feeds)
        for name, got in model.run(feeds).items():
            assert_same_bits(got, expected[name], name)


@pytest.mark.parametrize("case", [c for c in HALVED if isinstance(c, LayerCase) and not c.lengths], ids=str)
def test_rows_are_rounded_where_products_are_of_pairs(case: LayerCase) -> None:
    """And nowhere else: rows rounded by the caller give the same bits there."""
    model, feeds = model_of(case), case.feeds()
    rounded = {**feeds, "X": precision.bfloat16(feeds["X"])}
    expected = model.run(rounded)
    alike = [np.array_equal(got, expected[name]) for name, got in model.run(feeds).items()]
    assert all(alike) == target().bf16


def first_weights(model: le.Model) -> np.ndarray:
    """Of the first recurrent layer."""
    node = next(node for node in model.graph.nodes if node.op in ("LSTM", "GRU", "RNN"))
    return model.graph.constants[node.input(1)]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", LESSER)
@pytest.mark.parametrize(
    "case",
    [
        NetCase(head="dense_log_softmax", vocabulary=50, hidden=(64, 33), outputs=50, states="inputs"),
        NetCase(head="last_y_h", hidden=(48,), bidirectional=True),
        LayerCase(op="GRU", H=48, I=17),
        LayerCase(op="RNN", H=48, I=17),
    ],
    ids=str,
)
def test_a_saved_model_is_the_same_and_smaller(case: Case, how: str, tmp_path: Path) -> None:
    full, model = model_of(case), model_of(replace(case, precision=how))
    full.save(tmp_path / "full.npz")
    model.save(tmp_path / "less.npz")
    again = le.load(tmp_path / "less.npz")
    assert (again.precision, again.fingerprint) == (how, model.fingerprint)
    assert dict(again.metadata) == dict(model.metadata)
    feeds, other = case.feeds(), again.run(case.feeds())
    for name, expected in model.run(feeds).items():
        assert_same_bits(other[name], expected, name)
    again.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "less.npz").read_bytes()
    sizes = [(tmp_path / f"{name}.npz").stat().st_size for name in ("full", "less")]
    saved = {"bfloat16": 2, "int8": 3}[how] * weight_count(model)  # bytes; scales and descriptions take a few
    assert sizes[0] - sizes[1] > 0.85 * saved - 2000


def weight_count(model: le.Model) -> int:
    return sum(model.graph.constants[name].size for name in precision.weight_axes(model.graph))


@pytest.mark.parametrize("how", LESSER)
def test_a_saved_model_at_another_precision(how: str, tmp_path: Path) -> None:
    case = LayerCase(H=17, I=5, precision=how)
    model_of(case).save(tmp_path / "less.npz")
    plain = le.load(tmp_path / "less.npz", precision="float32")
    assert plain.precision == "float32"
    assert precision.HELD_IN not in plain.metadata
    expected = Model(replace(model_of(case).graph, metadata={}), "float32").run(case.feeds())
    for name, got in plain.run(case.feeds()).items():
        assert_same_bits(got, expected[name], name)
    plain.save(tmp_path / "plain.npz")
    assert le.load(tmp_path / "plain.npz").precision == "float32"
    again = le.load(tmp_path / "plain.npz", precision=how)  # rounding what was rounded
    assert again.fingerprint == model_of(case).fingerprint


@pytest.mark.parametrize("how", LESSER)
def test_weights_that_the_form_cannot_hold_are_kept_whole(how: str, tmp_path: Path) -> None:
    """NaN among them, for one: there is no level for it."""
    case = LayerCase(H=4, I=3)
    arrays = case.weights()
    arrays["W"][0, 0, 0] = np.nan
    node = helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y"], hidden_size=4)
    specs = [("X", np.float32, ["time", "batch", 3])], [("Y", np.float32, None)]
    model = le.load(builders.make_model([node], *specs, arrays).SerializeToString(), precision=how)
    model.save(tmp_path / "m.npz")
    got, expected = (m.run(case.feeds()["X"])["Y"] for m in (le.load(tmp_path / "m.npz"), model))
    assert np.isnan(expected).any()
    np.testing.assert_array_equal(got, expected)


def rewritten(data: bytes, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None]) -> bytes:
    """A native file with its description and its arrays changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        texts = {name: old.read(name) for name in old.namelist() if name.endswith(".json")}
        arrays = {name: np.load(io.BytesIO(old.read(name))) for name in old.namelist() if name.endswith(".npy")}
    (title,) = texts
    description = json.loads(texts[title])
    change(description, arrays)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as new:
        new.writestr(title, json.dumps(description))
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array)
            new.writestr(name, member.getvalue())
    return stream.getvalue()


@cache
def saved(how: str) -> bytes:
    """A small file with weights in ``how``."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.npz"
        model_of(LayerCase(H=4, I=3, precision=how)).save(path)
        return path.read_bytes()


def weights_of(description: dict[str, Any]) -> dict[str, Any]:
    """How a file describes W."""
    held = description["graph"]["constants"]["W"]
    assert isinstance(held, dict)
    return held


def lie(key: str, value: Any) -> Any:
    return lambda description, arrays: weights_of(description).__setitem__(key, value)


def without(key: str) -> Any:
    return lambda description, arrays: weights_of(description).pop(key)


def remade(member: str, make: Callable[[np.ndarray], np.ndarray]) -> Any:
    def change(description: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        name = f"{weights_of(description)[member]}.npy"
        arrays[name] = make(arrays[name])

    return change


LIES: list[tuple[str, Any, str]] = [
    ("int8", without("scales"), "lacks scales"),
    ("int8", without("levels"), "lacks levels"),
    ("int8", without("axis"), "lacks axis"),
    ("int8", without("precision"), "lacks precision"),
    ("int8", lie("precision", "int4"), r"W\.precision: int8 or bfloat16 expected"),
    ("int8", lie("precision", ["int8"]), r"W\.precision"),
    ("int8", lie("precision", None), r"W\.precision"),
    ("int8", lie("precision", "bfloat16"), "lacks words"),
    ("int8", lie("axis", 3), r"W\.axis"),
    ("int8", lie("axis", -1), r"W\.axis"),
    ("int8", lie("axis", True), r"W\.axis"),
    ("int8", lie("axis", "2"), r"W\.axis"),
    ("int8", lie("axis", 1), r"W\.scales: shape"),
    ("int8", lie("levels", "arrays/99999"), "not in the archive"),
    ("int8", lie("levels", 3), r"W\.levels: a text"),
    ("int8", remade("levels", lambda x: x.astype(np.int16)), r"W\.levels: an array of int8"),
    ("int8", remade("levels", lambda x: x.astype(np.uint8)), r"W\.levels: an array of int8"),
    ("int8", remade("levels", lambda x: x.reshape(-1)[0]), r"W\.levels: an array of int8"),
    ("int8", remade("scales", lambda x: x.astype(np.float64)), r"W\.scales: an array of float32"),
    ("int8", remade("scales", lambda x: x[..., :-1]), r"W\.scales: shape"),
    ("int8", remade("scales", lambda x: x[..., None]), r"W\.scales: shape"),
    ("int8", remade("scales", lambda x: x.reshape(-1)[0]), r"W\.scales: shape"),
    ("bfloat16", without("words"), "lacks words"),
    ("bfloat16", remade("words", lambda x: x.astype(np.int16)), r"W\.words: an array of uint16"),
    ("bfloat16", remade("words", lambda x: x.reshape(-1)[0]), r"W\.words: an array of uint16"),
    ("bfloat16", lie("axis", 7), r"W\.axis"),
]


@pytest.mark.parametrize(("how", "change", "message"), LIES)
def test_descriptions_that_lie(how: str, change: Any, message: str) -> None:
    data = saved(how)
    assert le.load(data).precision == how
    with pytest.raises(le.ModelFormatError, match=message):
        le.load(rewritten(data, change))


def test_weights_of_no_columns_fit_no_input() -> None:
    changed = rewritten(saved("int8"), remade("levels", lambda x: x[..., :0]))
    with pytest.raises(le.LstmEngineError):
        le.load(changed).run(np.ones((3, 2, 3), np.float32))


def test_levels_and_scales_are_taken_as_they_are() -> None:
    """Levels that no rounding would make are weights like others; the engine rounds what it packs."""

    def halved(x: np.ndarray) -> np.ndarray:
        return x // 2

    for change in (
        remade("levels", halved),
        remade("levels", np.zeros_like),
        remade("levels", lambda x: np.full_like(x, -128)),
        remade("scales", lambda x: x * np.float32(1.001)),
        remade("scales", lambda x: np.full_like(x, np.nan)),
        remade("scales", lambda x: np.full_like(x, np.inf)),
    ):
        model = le.load(rewritten(saved("int8"), change))
        got = model.run(np.ones((3, 2, 3), np.float32))["Y"]
        again = le.load(rewritten(saved("int8"), change), precision="int8").run(np.ones((3, 2, 3), np.float32))["Y"]
        np.testing.assert_array_equal(got, again)


@pytest.mark.parametrize("how", LESSER)
def test_loading_needs_no_onnx(how: str, tmp_path: Path) -> None:
    (tmp_path / "m.npz").write_bytes(saved(how))
    code = (
        "import sys, numpy as np, lstm_engine as le\n"
        f"m = le.load({str(tmp_path / 'm.npz')!r})\n"
        f"assert m.precision == {how!r}\n"
        "m.run(np.ones((2, 1, 3), np.float32))\n"
        "assert 'onnx' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


# --- errors, and many at once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["int4", "fp16", "", "INT8", 8, ["int8"]])
def test_a_precision_there_is_not(asked: Any) -> None:
    with pytest.raises(le.UnsupportedModelError, match="expected None or one of float32, bfloat16, int8"):
        le.load(LayerCase().model(), precision=asked)


@pytest.mark.parametrize("asked", ["float32", *LESSER])
def test_float64_runs_in_float64(asked: str) -> None:
    with pytest.raises(le.UnsupportedModelError, match=f"float64.*{asked}"):
        le.load(LayerCase(dtype="float64").model(), precision=asked)


@pytest.mark.parametrize("claim", ["float64", "int4", ""])
def test_a_file_that_claims_another_precision_is_what_its_weights_are(claim: str) -> None:
    model = helper_model(LayerCase(H=4, I=3).model(), claim)
    loaded = le.load(model)
    assert loaded.precision == "float32"
    loaded.run(np.ones((2, 1, 3), np.float32))


def helper_model(data: bytes, claim: str) -> bytes:
    """The file with a precision among its metadata."""
    import onnx

    model = onnx.ModelProto.FromString(data)
    helper.set_model_props(model, {precision.HELD_IN: claim})
    return model.SerializeToString()


def test_a_state_of_another_precision_is_refused() -> None:
    case = LayerCase(H=17, I=5)
    models = [model_of(replace(case, precision=how)) for how in ("", *LESSER)]
    streams = [model.stream() for model in models]
    for stream in streams:
        stream.step(np.ones((1, 5), np.float32))
    for stream in streams:
        for other in streams:
            if stream is other:
                continue
            before = stream.state
            with pytest.raises(le.StateError):
                stream.state = other.state
            assert stream.state == before


def test_models_of_all_precisions_run_side_by_side() -> None:
    """From several threads, each again and again, with the results it has alone."""
    from concurrent.futures import ThreadPoolExecutor

    case = NetCase(head="dense_log_softmax", hidden=(33, 64), I=5)
    models = [model_of(replace(case, precision=how)) for how in ("", *LESSER)]
    feeds = [case.feeds(seed, steps=20) for seed in range(4)]
    alone = {(m, s): models[m].run(feeds[s])["y"] for m in range(3) for s in range(4)}
    jobs = [(m, s) for _ in range(10) for m in range(3) for s in range(4)]

    def run(job: tuple[int, int]) -> np.ndarray:
        return models[job[0]].run(feeds[job[1]])["y"]

    with ThreadPoolExecutor(4) as pool:
        for job, got in zip(jobs, pool.map(run, jobs), strict=True):
            assert_same_bits(got, alone[job], str(job))


# --- public files -----------------------------------------------------------------------------------------------------

ZOO = Path(__file__).resolve().parent.parent.parent / "shared" / "zoo"
#: How far a file's outputs may be from those in float32, in parts of their range: networks of trained scale lose about
#: 2⁻⁹ in bfloat16 and 2⁻⁸ a product in int8, and amplify it a little.
NEAR_FLOAT32 = {"bfloat16": 0.05, "int8": 0.25}


#: Files whose definition takes seconds: loops, hundreds of nodes, hundreds of steps.
LONG = {
    "apple_dash.onnx", "gtcrn.onnx", "ruhm_lstm_nested.onnx", "silero_v3_op13.onnx", "stateful_tf.onnx",
    "weather_pwa.onnx",
}  # fmt: skip


def public() -> Iterator[Any]:
    index = ZOO / "index.json"
    for entry in json.loads(index.read_text()) if index.exists() else []:
        if entry["expect"] != "refuse":
            marks = [pytest.mark.nightly] if entry["file"] in LONG else []
            yield from (pytest.param(entry["file"], how, marks=marks) for how in LESSER)


@pytest.mark.skipif(not (ZOO / "index.json").exists(), reason="the collection of public models is not here")
@pytest.mark.parametrize(("file", "how"), list(public()))
def test_public_files(file: str, how: str) -> None:
    try:
        model = le.load(ZOO / file, precision=how)
    except le.UnsupportedModelError as fault:
        pytest.skip(f"refused in any precision: {str(fault)[:80]}")
    for each in verify.compared(model, None, 0, 1):
        assert each.holds, f"{file}: {each}"
        assert each.random or each.cost is not None
        assert each.random or each.cost <= NEAR_FLOAT32[how] * max(1.0, each.greatest), f"{file}: {each}"
    assert streams(model) == streams(le.load(ZOO / file))


def streams(model: le.Model) -> bool:
    try:
        model.stream()
    except le.StreamingError:
        return False
    return True


# --- reports ----------------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_saved_arrays(tmp_path: Path) -> None:
    """What inspect and convert say of a file is what lies in it."""
    case = NetCase(head="dense_log_softmax", vocabulary=50, hidden=(64, 33), outputs=50)
    for how in ("float32", *LESSER):
        model = model_of(replace(case, precision=how))
        parameters, less, size = precision.sizes(model.graph, how)
        model.save(tmp_path / "m.npz")
        with zipfile.ZipFile(tmp_path / "m.npz") as archive:
            held = [np.load(io.BytesIO(archive.read(n))) for n in archive.namelist() if n.endswith(".npy")]
        assert size == sum(a.nbytes for a in held if a.dtype.kind == "f" or a.dtype in (np.int8, np.uint16))
        assert parameters == sum(x.size for x in model.graph.constants.values() if x.dtype.kind == "f")
        assert less == (0 if how == "float32" else weight_count(model))


@pytest.mark.parametrize("how", LESSER)
def test_commands_say_what_is_held(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(LayerCase(H=17, I=5).model())
    given, target = str(tmp_path / "m.onnx"), str(tmp_path / "m.npz")
    assert f"1,496 of 1,632 parameters in {how}" in called(capsys, "convert", given, target, "--precision", how)
    assert f"1,496 of them as {how}" in called(capsys, "inspect", target)
    described = json.loads(called(capsys, "inspect", target, "--json"))
    assert (described["precision"], described["less_precise"]) == (how, 1496)
    assert any(how in row["what"] for row in described["program"]["instructions"])
    assert "to full" in called(capsys, "verify", given, "--precision", how)
    assert "agrees" in called(capsys, "verify", target)


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that succeeds prints."""
    from lstm_engine import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["lstm-engine", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    said = capsys.readouterr()
    assert not ended.value.code, said.err
    return said.out + said.err


@pytest.mark.parametrize("how", LESSER)
def test_verify_sees_an_engine_that_differs(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that are a few roundings off, not a level."""
    model = model_of(LayerCase(H=17, I=5, precision=how))
    run = model.run

    def shifted(feeds: Any, outputs: Any = None) -> dict[str, np.ndarray]:
        return {name: y * np.float32(1 + 1e-3) for name, y in run(feeds, outputs).items()}

    monkeypatch.setattr(model, "run", shifted)
    assert not any(each.holds for each in verify.compared(model, None, 0, 2))


def test_the_cost_is_that_to_the_files_own_weights(tmp_path: Path) -> None:
    case = LayerCase(H=64, I=64)
    (tmp_path / "m.onnx").write_bytes(case.model())
    path = str(tmp_path / "m.onnx")
    own = verify.definition_of(path, None)
    costs = {
        how: [each.cost for each in verify.compared(le.load(path, precision=how), None, 0, 2, own)]
        for how in ("float32", *LESSER)
    }
    assert set(costs["float32"]) == {None}
    assert all(1e-5 < cost < 0.01 for cost in costs["bfloat16"] if cost is not None)
    assert all(1e-4 < cost < 0.1 for cost in costs["int8"] if cost is not None)
    assert None not in costs["bfloat16"] + costs["int8"]
