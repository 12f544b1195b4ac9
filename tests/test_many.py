"""Whole sets of sequences: each result is what run() gives the sequence alone, in order, whoever shares its call."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import builders
import numpy as np
import pytest
from cases import LAYERS, NETS, Case, LayerCase, NetCase, assert_same_bits, examples, model_of
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import lstm_engine as le

Arrays = dict[str, np.ndarray]
PLAIN = LayerCase(I=3, H=20)
TOKENS = NetCase(vocabulary=11, hidden=(17,), head="dense", outputs=11)
LENGTHS = [5, 2, 5, 9, 1, 5, 2, 2, 5, 33, 5, 9, 1, 5]


def readings(lengths: list[int], width: int = 3, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.normal(size=(length, width)).astype(np.float32) for length in lengths]


def alone(model: le.Model, x: np.ndarray) -> Arrays:
    """What a sequence [T,I] gives by itself, without the batch axis of PLAIN's outputs [T,D,B,H] and [D,B,H]."""
    results = model.run(x[:, None])
    return {name: array.squeeze(-2) for name, array in results.items()}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Arrays]:
    """The feeds of the calls that runs come to."""
    made: list[Arrays] = []
    run = le.Model.run

    def watched(self: le.Model, feeds: Any, outputs: Any = None) -> Any:
        made.append(feeds)
        return run(self, feeds, outputs)

    monkeypatch.setattr(le.Model, "run", watched)
    return made


# --- the same as alone ------------------------------------------------------------------------------------------------


def drawn_set(case: Case, lengths: list[int]) -> list[Arrays]:
    """Sequences of one row each, as run() takes them."""
    return [case.feeds(seed, steps, 1) for seed, steps in enumerate(lengths)]


def open_batch(case: Case) -> bool:
    return getattr(case, "lengths", "") != "constant" and getattr(case, "states", "") != "constants"


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("case", [c for c in (*LAYERS[::9], *NETS[::2]) if open_batch(c)], ids=str)
def test_a_sequence_gives_what_it_gives_alone(case: Case, precision: str, calls: list[Arrays]) -> None:
    if case.dtype == "float64" and precision == "int8":
        pytest.skip("float64 runs in float64 only")
    model = model_of(case) if precision == "float32" else le.load(case.model(), precision=precision)
    sequences = drawn_set(case, LENGTHS)
    expected = [model.run(feeds) for feeds in sequences]
    calls.clear()
    for got, wanted in zip(model.run_many(sequences), expected, strict=True):
        assert_same_bits(got, wanted, str(case))
    assert len(calls) < len(LENGTHS)  # 5 6 times, 2 3 times, 9 and 1 twice, 33 once: in 7 calls


@given(
    st.lists(st.integers(0, 12), max_size=40),
    st.integers(1, 9),
    st.integers(1, 20),
    st.sampled_from([PLAIN, LayerCase(H=18, direction="bidirectional", layout=1)]),
)
@examples(60)
def test_any_lengths_in_any_window(lengths: list[int], batch: int, ahead: int, case: LayerCase) -> None:
    model = model_of(case)
    sequences = drawn_set(case, lengths)
    got = list(model.run_many(iter(sequences), batch=batch, ahead=ahead))
    assert len(got) == len(lengths)
    for each, feeds in zip(got, sequences, strict=True):
        assert_same_bits(each, model.run(feeds))


def test_without_a_batch_axis_results_have_none() -> None:
    model, sequences = model_of(PLAIN), readings(LENGTHS)
    for got, x in zip(model.run_many(sequences), sequences, strict=True):
        assert got["Y"].shape == (len(x), 1, 20)
        assert_same_bits(got, alone(model, x))
    case = NetCase(hidden=(9,), batch_first=True, head="dense")
    batch_first = model_of(case)
    for got, x in zip(batch_first.run_many(sequences), sequences, strict=True):
        assert_same_bits(got, {name: array[0] for name, array in batch_first.run(x[None]).items()})


def test_tokens_and_numbers_of_any_type() -> None:
    model = model_of(TOKENS)
    sequences: list[Any] = [[1, 2, 3], (4, 5, 6), np.array([7, 8], np.int8), np.array([9, 10])[::-1], np.zeros(0, int)]
    for got, ids in zip(model.run_many(sequences), sequences, strict=True):
        assert_same_bits(got["y"], model.run(np.asarray(ids, np.int64)[:, None])["y"][:, 0])


def test_feeds_with_a_batch_axis_keep_it() -> None:
    model, sequences = model_of(PLAIN), readings(LENGTHS)
    mixed: list[Any] = [x[:, None] if k % 2 else x for k, x in enumerate(sequences)]
    mixed.append(np.stack([sequences[0], sequences[2]], axis=1))  # two rows
    for got, x in zip(model.run_many(mixed), mixed, strict=True):
        assert_same_bits(got, model.run(x) if x.ndim == 3 else alone(model, x))


def test_outputs_are_chosen_and_results_are_the_callers() -> None:
    model, sequences = model_of(PLAIN), readings([4, 4, 4, 7])
    got = list(model.run_many(sequences, ["Y_c"]))
    assert all(set(each) == {"Y_c"} for each in got)
    assert not any(np.shares_memory(got[0]["Y_c"], each["Y_c"]) for each in got[1:])
    assert all(each["Y_c"].base is None for each in got)  # none holds its neighbours' memory


def test_several_inputs_and_optional_ones() -> None:
    case = LayerCase(H=6, states="inputs")
    model = model_of(case)
    sequences = [case.feeds(seed, steps, 1) for seed, steps in enumerate(LENGTHS)]
    lean = [{"X": each["X"][:, 0], "h0": each["h0"][:, 0], "c0": each["c0"][:, 0]} for each in sequences]
    expected = [model.run(each) for each in sequences]
    for got, wanted in zip(model.run_many(lean), expected, strict=True):
        assert_same_bits(got, {name: array.squeeze(-2) for name, array in wanted.items()})


def test_rows_of_one_length_are_one_call(calls: list[Arrays]) -> None:
    model = model_of(PLAIN)
    list(model.run_many(readings([5, 7] * 50), batch=16))
    rows = [next(iter(feeds.values())).shape[1] for feeds in calls]
    assert rows == [16, 16, 16, 16, 16, 16, 2, 2]
    calls.clear()
    list(model.run_many(readings([5, 7] * 5), ahead=1))
    assert len(calls) == 10


# --- networks that mix rows -------------------------------------------------------------------------------------------


def network(act: Callable[[list[Any], Arrays], None], inputs: list[builders.Info] | None = None) -> le.Model:
    """An LSTM over x[T,B,3], and what ``act`` makes of its y[T,B,4]."""
    arrays: Arrays = {**builders.random_weights(3, 4), "one": np.array([1])}
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "B"], ["Y"], hidden_size=4, name="lstm"),
        helper.make_node("Squeeze", ["Y", "one"], ["y"]),
    ]
    act(nodes, arrays)
    specs: list[builders.Info] = [("x", np.float32, ["T", "B", 3]), *(inputs or [])]
    return le.load(builders.make_model(nodes, specs, [("z", np.float32, None)], arrays).SerializeToString())


def softmax(nodes: list[Any], arrays: Arrays) -> None:
    nodes.append(helper.make_node("Softmax", ["y"], ["z"], axis=1))


def mean(nodes: list[Any], arrays: Arrays) -> None:
    nodes.append(helper.make_node("ReduceMean", ["y"], ["m"], axes=[1], keepdims=1))
    nodes.append(helper.make_node("Sub", ["y", "m"], ["z"]))


def count(nodes: list[Any], arrays: Arrays) -> None:
    arrays["axis"] = np.array(1)
    nodes.append(helper.make_node("Shape", ["x"], ["shape"]))
    nodes.append(helper.make_node("Gather", ["shape", "axis"], ["rows"]))
    nodes.append(helper.make_node("Cast", ["rows"], ["float"], to=1))
    nodes.append(helper.make_node("Div", ["y", "float"], ["z"]))


def lonely(nodes: list[Any], arrays: Arrays) -> None:
    """A row by itself is another thing."""
    arrays |= {"axis": np.array(1), "two": np.float32(2), "half": np.float32(0.5)}
    nodes.append(helper.make_node("Shape", ["x"], ["shape"]))
    nodes.append(helper.make_node("Gather", ["shape", "axis"], ["rows"]))
    nodes.append(helper.make_node("Equal", ["rows", "axis"], ["single"]))
    nodes.append(helper.make_node("Where", ["single", "two", "half"], ["factor"]))
    nodes.append(helper.make_node("Mul", ["y", "factor"], ["z"]))


def turned(nodes: list[Any], arrays: Arrays) -> None:
    arrays |= {"start": np.array([-1]), "end": np.array([-(2**40)]), "step": np.array([-1])}
    nodes.append(helper.make_node("Slice", ["y", "start", "end", "one", "step"], ["z"]))


def summed(nodes: list[Any], arrays: Arrays) -> None:
    nodes.append(helper.make_node("CumSum", ["y", "axis1"], ["z"]))
    arrays["axis1"] = np.array(1)


def gram(nodes: list[Any], arrays: Arrays) -> None:
    nodes.append(helper.make_node("Transpose", ["y"], ["t"], perm=[0, 2, 1]))
    nodes.append(helper.make_node("MatMul", ["y", "t"], ["g"]))
    nodes.append(helper.make_node("MatMul", ["g", "y"], ["z"]))


def first(nodes: list[Any], arrays: Arrays) -> None:
    arrays["zero"] = np.array([0])
    nodes.append(helper.make_node("Gather", ["y", "zero"], ["row"], axis=1))
    nodes.append(helper.make_node("Add", ["y", "row"], ["z"]))


@pytest.mark.parametrize("act", [softmax, mean, count, lonely, turned, summed, gram, first], ids=lambda f: f.__name__)
def test_rows_that_meet_go_one_by_one(act: Callable[[list[Any], Arrays], None], calls: list[Arrays]) -> None:
    model, sequences = network(act), readings([4] * 6)
    expected = [model.run(x[:, None])["z"] for x in sequences]
    together = model.run(np.stack(sequences, 1))["z"]
    assert any(not np.array_equal(together[:, k : k + 1], each) for k, each in enumerate(expected))
    calls.clear()
    got = list(model.run_many([x[:, None] for x in sequences]))
    assert len(calls) == 6
    for each, wanted in zip(got, expected, strict=True):
        assert_same_bits(each["z"], wanted)


def attended(nodes: list[Any], arrays: Arrays) -> None:
    """Each row's steps look at each other, as matrices of a stack."""
    nodes.append(helper.make_node("Transpose", ["y"], ["rows"], perm=[1, 0, 2]))
    nodes.append(helper.make_node("Transpose", ["y"], ["keys"], perm=[1, 2, 0]))
    nodes.append(helper.make_node("MatMul", ["rows", "keys"], ["scores"]))
    nodes.append(helper.make_node("Softmax", ["scores"], ["weights"], axis=-1))
    nodes.append(helper.make_node("MatMul", ["weights", "rows"], ["z"]))


@pytest.mark.parametrize("act", [attended], ids=lambda f: f.__name__)
def test_steps_that_meet_are_their_rows_own(act: Callable[[list[Any], Arrays], None]) -> None:
    model, sequences = network(act), readings([4, 6] * 6)
    for got, x in zip(model.run_many([x[:, None] for x in sequences]), sequences, strict=True):
        assert_same_bits(got["z"], model.run(x[:, None])["z"])


def test_an_input_that_all_rows_share_is_theirs_who_have_the_same(calls: list[Arrays]) -> None:
    def scaled(nodes: list[Any], arrays: Arrays) -> None:
        nodes.append(helper.make_node("Mul", ["y", "gain"], ["z"]))

    model = network(scaled, [("gain", np.float32, [1])])
    sequences = [{"x": x, "gain": np.float32([k % 2 + 1])} for k, x in enumerate(readings([4] * 8))]
    expected = [model.run({**each, "x": each["x"][:, None]})["z"][:, 0] for each in sequences]
    calls.clear()
    got = list(model.run_many(sequences))
    assert len(calls) == 2
    for each, wanted in zip(got, expected, strict=True):
        assert_same_bits(each["z"], wanted)


def test_an_input_that_may_be_of_rows_keeps_sequences_apart(calls: list[Arrays]) -> None:
    """Its size is open, and nothing shows that it is not their number."""

    def shifted(nodes: list[Any], arrays: Arrays) -> None:
        arrays["last"] = np.array(-1)
        nodes.append(helper.make_node("Gather", ["shift", "last"], ["own"]))
        nodes.append(helper.make_node("Add", ["y", "own"], ["z"]))

    model = network(shifted, [("shift", np.float32, ["B"])])
    sequences = [{"x": x[:, None], "shift": np.float32([k])} for k, x in enumerate(readings([4] * 5))]
    expected = [model.run(each)["z"] for each in sequences]
    calls.clear()
    for each, wanted in zip(model.run_many(sequences), expected, strict=True):
        assert_same_bits(each["z"], wanted)
    assert len(calls) == 5


@pytest.mark.parametrize("rows", [1, 3])
def test_a_file_that_fixes_its_rows(rows: int, calls: list[Arrays]) -> None:
    model = le.load(builders.make_model(
        [helper.make_node("LSTM", ["x", "W", "R", "B"], ["Y"], hidden_size=4)],
        [("x", np.float32, ["T", rows, 3])], [("Y", np.float32, None)], builders.random_weights(3, 4),
    ).SerializeToString())  # fmt: skip
    sequences = [np.stack([x] * rows, 1) for x in readings(LENGTHS)]
    expected = [model.run(x)["Y"] for x in sequences]
    calls.clear()
    for got, wanted in zip(model.run_many(sequences), expected, strict=True):
        assert_same_bits(got["Y"], wanted)
    assert len(calls) == len(LENGTHS)
    if rows == 1:
        for got, wanted in zip(model.run_many([x[:, 0] for x in sequences]), expected, strict=True):
            assert_same_bits(got["Y"], wanted[:, :, 0])
    else:
        with pytest.raises(le.InputError, match=r"sequence 0.*expected 3 axes, got 2"):
            next(model.run_many([x[:, 0] for x in sequences]))


# --- the window -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [1, 5, 64])
def test_no_more_are_held_than_asked_for(ahead: int) -> None:
    taken = delivered = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal taken
        for x in readings([2 + k % 7 for k in range(200)]):
            assert taken - delivered < ahead
            taken += 1
            yield x

    for _ in model_of(PLAIN).run_many(source(), ahead=ahead):
        delivered += 1
    assert taken == delivered == 200


def test_memory_is_bounded() -> None:
    """Of a source without end."""
    model = model_of(LayerCase(I=3, H=256, outputs=("Y",)))

    def source() -> Iterator[np.ndarray]:
        step = 0
        while True:
            step += 1
            yield np.zeros((20 + step % 5, 3), np.float32)

    results = model.run_many(source(), ahead=40)
    for _ in range(200):
        next(results)
    tracemalloc.start()
    for _ in range(1000):
        next(results)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 40 * 24 * 256 * 4  # of a thousand results, the window's


def test_a_source_may_use_its_array_again() -> None:
    model, sequences = model_of(PLAIN), readings([6] * 9)

    def source() -> Iterator[np.ndarray]:
        buffer = np.empty((6, 3), np.float32)
        for x in sequences:
            buffer[:] = x
            yield buffer

    for got, x in zip(model.run_many(source()), sequences, strict=True):
        assert_same_bits(got, alone(model, x))


def test_progress_is_told() -> None:
    told: list[tuple[int, int | None]] = []
    model, sequences = model_of(PLAIN), readings([3, 4, 3])
    results = model.run_many(sequences, progress=lambda done, total: told.append((done, total)))
    assert told == []
    next(results)
    assert told == [(1, 3)]
    list(results)
    assert told == [(1, 3), (2, 3), (3, 3)]
    list(model.run_many(iter(sequences), progress=lambda done, total: told.append((done, total))))
    assert told[3:] == [(1, None), (2, None), (3, None)]


def test_nothing_gives_nothing() -> None:
    assert list(model_of(PLAIN).run_many([])) == []
    assert list(model_of(PLAIN).run_many(iter(()))) == []


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [3, 0, 7])
def test_a_fault_names_its_sequence_and_comes_in_its_turn(bad: int) -> None:
    model = model_of(TOKENS)
    for wrong, said in (([1, 2, 99], "out of range"), ([1.5, 2.5, 3.5], "expected integers"), ([[1, 2], [3]], "array")):
        sequences: list[Any] = [[1, 2, 3]] * 8
        sequences[bad] = wrong
        results = model.run_many(sequences)
        for _ in range(bad):
            assert_same_bits(next(results)["y"], model.run(np.array([[1], [2], [3]]))["y"][:, 0])
        with pytest.raises(le.InputError, match=rf"sequence {bad}: .*{said}"):
            next(results)
        with pytest.raises(StopIteration):
            next(results)


def test_a_fault_of_the_source_comes_behind_what_it_gave() -> None:
    def source() -> Iterator[np.ndarray]:
        yield from readings([3, 4])
        raise OSError("the disk is gone")

    results = model_of(PLAIN).run_many(source())
    assert [len(next(results)["Y"]), len(next(results)["Y"])] == [3, 4]
    with pytest.raises(OSError, match="the disk is gone"):
        next(results)


def test_what_is_no_set_is_refused_at_once() -> None:
    model = model_of(PLAIN)
    for wrong in (3, None, "abc", {"X": readings([3])}):
        with pytest.raises(le.InputError, match="expected a list or an iterator of sequences"):
            model.run_many(wrong)  # type: ignore[arg-type]
    for keywords in ({"batch": 0}, {"ahead": 0}, {"batch": True}, {"ahead": 2.0}):
        with pytest.raises(le.InputError, match=f"{next(iter(keywords))}="):
            model.run_many([], **keywords)  # type: ignore[arg-type]
    with pytest.raises(le.InputError, match="'nothing' is not an output"):
        model.run_many([], ["nothing"])
