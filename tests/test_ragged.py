"""Whole columns of sequences: each row is what run() gives its sequence alone, to the last bit."""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import pytest
from cases import LAYERS, NETS, Case, LayerCase, NetCase, assert_same_bits, examples, model_of
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import lstm_engine as le
from lstm_engine import Ragged
from lstm_engine.blocks import MOST_ROWS, Blocks, shares_of

LENGTHS = [5, 2, 5, 0, 9, 1, 5, 2, 2, 5, 33, 5, 9, 1, 5, 70]
PLAIN = LayerCase(I=3, H=20)
TOKENS = NetCase(vocabulary=11, hidden=(17,), head="dense", outputs=11)


def open_batch(case: Case) -> bool:
    return getattr(case, "lengths", "") != "constant" and getattr(case, "states", "") != "constants"


def columns_of(model: le.Model, feeds: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """The feeds of single rows, as columns."""
    forms = _forms(model)[0]
    columns: dict[str, Any] = {}
    for name in feeds[0]:
        rows = [forms[name].from_call(each[name])[0] for each in feeds]
        columns[name] = np.stack(rows) if forms[name].steps is None else Ragged.of(rows)
    return columns


def _forms(model: le.Model) -> Any:
    from lstm_engine.ragged import forms_of

    return forms_of(model.graph, model._arranged())


def assert_rows(model: le.Model, feeds: list[dict[str, np.ndarray]], got: dict[str, Any]) -> None:
    """That the columns hold what each row gives alone."""
    forms = _forms(model)[1]
    for name, column in got.items():
        assert len(column) == len(feeds)
        for k, each in enumerate(feeds):
            alone = forms[name].from_call(model.run(each)[name])[0]
            if alone.size or len(alone):
                assert_same_bits(np.asarray(column[k]), alone, f"{name} {k}")
            else:
                assert len(column[k]) == 0


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("case", [c for c in (*LAYERS[::7], *NETS[::2]) if open_batch(c)], ids=str)
def test_a_row_is_what_it_is_alone(case: Case, precision: str) -> None:
    if case.dtype == "float64" and precision == "int8":
        pytest.skip("float64 runs in float64 only")
    model = model_of(case) if precision == "float32" else le.load(case.model(), precision=precision)
    refused = isinstance(case, NetCase) and (case.bidirectional or "last" in case.head)  # by run(), of no steps
    feeds = [case.feeds(seed, steps, 1) for seed, steps in enumerate(LENGTHS) if steps or not refused]
    assert_rows(model, feeds, model.run_ragged(columns_of(model, feeds)))


def test_what_run_refuses_is_refused_with_its_row() -> None:
    model = model_of(NetCase(hidden=(9,), head="last_gather"))
    with pytest.raises(le.InputError, match=r"row 1: .*outside an axis of size 0"):
        model.run_ragged(Ragged.of([np.ones((2, 3), np.float32), np.ones((0, 3), np.float32)]))
    nothing = model_of(NetCase(hidden=(9,), head="last_slice"))
    with pytest.raises(le.LstmEngineError, match="row 1: "):
        nothing.run_ragged(Ragged.of([np.ones((2, 3), np.float32), np.ones((0, 3), np.float32)]))


@given(
    st.lists(st.integers(0, 12), max_size=90),
    st.sampled_from([PLAIN, LayerCase(H=18, direction="bidirectional", layout=1), NetCase(hidden=(9,), head="dense")]),
)
@examples(40)
def test_any_lengths(lengths: list[int], case: Case) -> None:
    model = model_of(case)
    feeds = [case.feeds(seed, steps, 1) for seed, steps in enumerate(lengths)]
    if feeds:
        assert_rows(model, feeds, model.run_ragged(columns_of(model, feeds)))


def test_rows_of_a_length_run_together_and_no_length_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(PLAIN)
    calls: list[int] = []
    run = Blocks.run
    monkeypatch.setattr(Blocks, "run", lambda self, rows, *rest: calls.append(rows) or run(self, rows, *rest))
    monkeypatch.setattr(le.Model, "run", lambda *_: pytest.fail("a call of its own"))
    model.run_ragged(Ragged.of([np.ones((3 + k % 4, 3), np.float32) for k in range(400)]))
    assert calls == [100] * 4
    assert shares_of(100) == [MOST_ROWS] * 3 + [4]


def test_no_rows_and_no_steps() -> None:
    model = model_of(PLAIN)
    got = model.run_ragged(Ragged(np.zeros((0, 3), np.float32), np.zeros(1, np.int64)))
    assert len(got["Y"]) == 0
    assert got["Y_h"].shape == (0, 1, 20)
    empty = model.run_ragged(Ragged(np.zeros((0, 3), np.float32), np.zeros(4, np.int64)))
    assert empty["Y"].lengths.tolist() == [0, 0, 0]
    assert not empty["Y_h"].any()


def test_flat_values_arrays_and_other_numbers() -> None:
    model = model_of(PLAIN)
    x = np.arange(60).reshape(4, 5, 3) % 7
    expected = model.run_ragged(Ragged.of(x.astype(np.float32)))
    flat = Ragged(x.reshape(-1).astype(np.float64), np.arange(5) * 15)
    for column in (x, x.astype(np.float64), flat):
        assert_same_bits(model.run_ragged(column)["Y_h"], expected["Y_h"])
    within = Ragged(np.concatenate([np.zeros(6), x.reshape(-1)]), np.arange(5) * 15 + 6)
    assert_same_bits(model.run_ragged({"X": within}, ["Y_c"])["Y_c"], expected["Y_c"])


def test_tokens_and_the_row_of_a_wrong_one() -> None:
    model = model_of(TOKENS)
    ids = Ragged.of([[1, 2, 3], [4], [5, 6, 7]])
    got = model.run_ragged(ids)["y"]
    assert_same_bits(got[1], model.run(np.array([[4]]))["y"][:, 0])
    wrong = Ragged.of([[1, 2, 3], [4], [5, 11, 7], [12], [1, 1, 1]])
    with pytest.raises(le.InputError, match=r"row 2: .*index 11 is out of range"):
        model.run_ragged(wrong)


def test_padding_is_cut_off() -> None:
    padded = Ragged.of(np.arange(24).reshape(3, 8))
    short = padded.shortened([2, 0, 8])
    assert [each.tolist() for each in short] == [[0, 1], [], list(range(16, 24))]
    with pytest.raises(le.InputError, match=r"row 1: length 9 lies outside 0 to its 8 steps"):
        padded.shortened([1, 9, 1])
    with pytest.raises(le.InputError, match="expected one for each of 3 rows"):
        padded.shortened([1])


def test_faults_are_named() -> None:
    model = model_of(PLAIN)
    with pytest.raises(le.InputError, match=r"'x' is not an input") as fault:
        model.run_ragged({"x": np.zeros((1, 2, 3))})
    assert "is missing" in str(fault.value)
    with pytest.raises(le.InputError, match=r"row 1: .*7 numbers are no whole steps of 3"):
        model.run_ragged(Ragged(np.zeros(13), [0, 6, 13]))
    with pytest.raises(le.InputError, match=r"expected steps of shape \[3\], got \[4\]"):
        model.run_ragged(Ragged(np.zeros((2, 4)), [0, 2]))
    with pytest.raises(le.InputError, match="feed real numbers"):
        model.run_ragged(Ragged(np.array(["a"]), [0, 1]))
    with pytest.raises(le.InputError, match="Ragged, or an array"):
        model.run_ragged(np.zeros(3))
    with pytest.raises(le.InputError, match="is not an output"):
        model.run_ragged(np.zeros((1, 2, 3)), ["z"])
    states = model_of(LayerCase(H=6, states="inputs"))
    with pytest.raises(le.InputError, match="different numbers of rows"):
        states.run_ragged({"X": np.zeros((2, 4, 3)), "h0": np.zeros((3, 1, 6)), "c0": np.zeros((2, 1, 6))})
    with pytest.raises(le.InputError, match=r"row 0: .*expected 6 numbers"):
        states.run_ragged({"X": np.zeros((2, 4, 3)), "h0": np.zeros((2, 1, 5)), "c0": np.zeros((2, 1, 6))})


@pytest.mark.parametrize("offsets", [[], [0.0, 1.0], [[0]], [0, 5], [1, 0], [-1, 0]])
def test_offsets_are_checked(offsets: Any) -> None:
    with pytest.raises(le.InputError, match="Ragged"):
        Ragged(np.zeros(3), np.array(offsets))
    with pytest.raises(le.InputError, match="steps of one shape"):
        Ragged.of([np.zeros((2, 3)), np.zeros((2, 4))])


def test_an_input_that_all_rows_share() -> None:
    arrays = {**builders.random_weights(3, 4), "one": np.array([1])}
    model = le.load(builders.make_model(
        [helper.make_node("LSTM", ["x", "W", "R", "B"], ["Y"], hidden_size=4),
         helper.make_node("Squeeze", ["Y", "one"], ["y"]), helper.make_node("Mul", ["y", "gain"], ["z"])],
        [("x", np.float32, ["T", "B", 3]), ("gain", np.float32, [1])], [("z", np.float32, None)], arrays,
    ).SerializeToString())  # fmt: skip
    x = Ragged.of([np.full((steps, 3), steps, np.float32) for steps in (2, 4, 2)])
    got = model.run_ragged({"x": x, "gain": np.float32([3])})["z"]
    for k in range(3):
        assert_same_bits(got[k], model.run({"x": x[k][:, None], "gain": np.float32([3])})["z"][:, 0])


@pytest.mark.parametrize("rows", [1, 3])
def test_a_file_that_fixes_its_rows(rows: int) -> None:
    model = le.load(builders.make_model(
        [helper.make_node("LSTM", ["x", "W", "R", "B"], ["Y"], hidden_size=4)],
        [("x", np.float32, ["T", rows, 3])], [("Y", np.float32, None)], builders.random_weights(3, 4),
    ).SerializeToString())  # fmt: skip
    draw = np.random.default_rng(0)
    shape = (3,) if rows == 1 else (rows, 3)
    x = Ragged.of([draw.normal(size=(steps, *shape)).astype(np.float32) for steps in (4, 2, 4)])
    got = model.run_ragged(x)["Y"]
    for k in range(3):
        whole = model.run(x[k].reshape(-1, rows, 3))["Y"]
        assert_same_bits(got[k], whole[:, :, 0] if rows == 1 else whole)


def test_results_of_several_open_sizes_are_refused() -> None:
    arrays = {**builders.random_weights(3, 4), "one": np.array([1])}
    model = le.load(builders.make_model(
        [helper.make_node("LSTM", ["x", "W", "R", "B"], ["Y"], hidden_size=4),
         helper.make_node("Squeeze", ["Y", "one"], ["y"]),
         helper.make_node("Transpose", ["y"], ["rows"], perm=[1, 0, 2]),
         helper.make_node("Transpose", ["y"], ["keys"], perm=[1, 2, 0]),
         helper.make_node("MatMul", ["rows", "keys"], ["scores"])],
        [("x", np.float32, ["T", "B", 3])], [("scores", np.float32, None), ("rows", np.float32, None)], arrays,
    ).SerializeToString())  # fmt: skip
    x = Ragged.of([np.ones((steps, 3), np.float32) for steps in (2, 4)])
    with pytest.raises(le.UnsupportedModelError, match="scores are of several open sizes; choose other outputs"):
        model.run_ragged(x)
    assert model.run_ragged(x, ["rows"])["rows"].lengths.tolist() == [2, 4]
