"""The same-bits law: however a sequence is cut, whoever shares the batch, whatever is saved and restored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from cases import (
    Case,
    Feeds,
    LayerCase,
    NetCase,
    assert_same_bits,
    cut,
    examples,
    model_of,
    named,
    steps_of,
    with_activations,
)
from hypothesis import given
from hypothesis import strategies as st

import lstm_engine as le

#: Models that stream, of every cell and every kind of head; states from inputs are what a stream carries itself.
STREAMS: list[Case] = [
    LayerCase(H=4, I=3),
    LayerCase(H=17, I=5),
    LayerCase(H=1, I=1),
    LayerCase(H=64, I=33),
    LayerCase(H=48, I=200),  # projected ahead of the steps
    LayerCase(H=33, I=9, layout=1),
    LayerCase(H=17, I=5, outputs=("Y",)),
    LayerCase(H=17, I=5, outputs=("", "Y_h")),
    LayerCase(H=17, I=5, outputs=("", "", "Y_c")),
    LayerCase(H=17, I=5, states="inputs"),
    LayerCase(H=17, I=5, states="inputs", layout=1),
    LayerCase(H=16, I=5, states="zeros", B=1),
    LayerCase(H=16, I=5, states="constants", B=1),
    LayerCase(H=17, I=5, peephole=True),
    LayerCase(H=17, I=5, clip=0.25),
    LayerCase(H=17, I=5, input_forget=1, bias=False),
    LayerCase(H=19, I=4, peephole=True, clip=0.5, input_forget=1, states="inputs"),
    with_activations(LayerCase(H=17, I=5), "HardSigmoid", "Elu", "Softsign"),
    LayerCase(H=17, I=5, dtype="float64"),
    LayerCase(H=9, I=40, dtype="float64", outputs=("Y",)),
    LayerCase(H=9, I=4, dtype="float64", peephole=True, states="inputs"),
    LayerCase(op="GRU", H=17, I=5),
    LayerCase(op="GRU", linear_before_reset=1, H=33, I=5, states="inputs"),
    LayerCase(op="GRU", linear_before_reset=1, H=48, I=100),  # projected ahead of the steps
    LayerCase(op="GRU", H=9, I=4, dtype="float64", clip=0.5),
    LayerCase(op="RNN", H=70, I=5),
    with_activations(LayerCase(op="RNN", H=17, I=5, states="inputs"), "Relu"),
    NetCase(head="none", hidden=(16, 7)),
    NetCase(head="dense_softmax", hidden=(33,), outputs=17),
    NetCase(head="dense_log_softmax", hidden=(9, 10, 11), batch_first=True),
    NetCase(head="two_layers", hidden=(8, 9), batch_first=True, states="inputs"),
    NetCase(head="residual", hidden=(20,)),
    NetCase(head="gates", hidden=(7,)),
    NetCase(head="dense_tanh", hidden=(8,), peephole=True, clip=0.4),
    NetCase(head="last_gather_softmax", hidden=(17,)),
    NetCase(head="last_slice", hidden=(17, 3), batch_first=True),
    NetCase(head="last_y_h", hidden=(6, 5)),
    NetCase(head="dense", vocabulary=11, hidden=(16,)),
    NetCase(head="dense_log_softmax", vocabulary=50, hidden=(17, 8), batch_first=True, outputs=50, states="inputs"),
    NetCase(head="last_gather", vocabulary=7, hidden=(5,), token_dtype="int32"),
    NetCase(head="dense_sigmoid", hidden=(9, 4), dtype="float64"),
    NetCase(head="last_y_h_softmax", hidden=(9,), dtype="float64", vocabulary=5),
]
#: The same laws hold for weights of lesser precision: each kernel that reads such weights, each kind of row it rounds.
STREAMS += [
    replace(case, precision=precision)
    for precision in ("bfloat16", "int8")
    for case in (
        LayerCase(H=17, I=5, states="inputs"),
        LayerCase(H=67, I=33),
        LayerCase(H=48, I=200),
        LayerCase(H=19, I=4, peephole=True, clip=0.5, layout=1),
        LayerCase(op="GRU", H=17, I=5),
        LayerCase(op="GRU", linear_before_reset=1, H=48, I=100),
        LayerCase(op="RNN", H=70, I=5),
        with_activations(LayerCase(op="RNN", H=17, I=5), "Relu"),
        NetCase(head="dense_log_softmax", vocabulary=50, hidden=(17, 8), batch_first=True, outputs=50, states="inputs"),
        NetCase(head="last_gather_softmax", hidden=(17,)),
    )
]
one_stream = st.sampled_from(STREAMS)


def batch_of(case: Case, batch: int) -> int:
    """The batch a test may use: a file with stored states fixes it."""
    return case.B if getattr(case, "states", "") in ("zeros", "constants") else batch


def without_states(case: Case, feeds: Feeds) -> Feeds:
    """The feeds of a stream: what it carries by itself left out."""
    return {name: x for name, x in feeds.items() if name in ("X", "x")}


def output_axis(case: Case, array: np.ndarray, stepped: np.ndarray) -> int:
    """Where feed() stacked the steps."""
    assert array.ndim == stepped.ndim + 1
    return case.time_axis


def stacked(case: Case, model: le.Model, results: Sequence[Any]) -> dict[str, np.ndarray]:
    """Results of single steps as feed() gives them."""
    each = [named_outputs(model, result) for result in results]
    return {name: np.stack([one[name] for one in each], axis=case.time_axis) for name in each[0]}


def named_outputs(model: le.Model, result: Any) -> dict[str, np.ndarray]:
    """A stream's result by name; one output comes bare."""
    if isinstance(result, dict):
        return result
    carried = {output for _, output in model.states}
    (name,) = (spec.name for spec in model.outputs if spec.name not in carried)
    return {name: result}


def chunked(case: Case, stream: le.Stream, feeds: Feeds, cuts: Sequence[int], by_step: int) -> dict[str, np.ndarray]:
    """The whole sequence through a stream: piece by piece, the pieces in ``by_step``'s bits step by step."""
    steps = next(iter(feeds.values())).shape[case.time_axis]
    bounds = [0, *sorted(cuts), steps]
    pieces = []
    for index, (first, last) in enumerate(pairwise(bounds)):
        piece = cut(case, feeds, first, last)
        if by_step >> (index % 8) & 1 and last > first:
            pieces.append(stacked(case, stream.model, [stream.step(x) for x in steps_of(case, piece)]))
        else:
            pieces.append(named_outputs(stream.model, stream.feed(piece)))
    return {name: np.concatenate([piece[name] for piece in pieces], axis=case.time_axis) for name in pieces[0]}


def whole(case: Case, stream: le.Stream, feeds: Feeds) -> dict[str, np.ndarray]:
    return named_outputs(stream.model, stream.feed(feeds))


# --- chunking ---------------------------------------------------------------------------------------------------------


@examples(150)
@given(
    case=one_stream,
    batch=st.sampled_from([1, 1, 2, 3, 5, 6, 7, 16]),
    steps=st.integers(1, 12) | st.sampled_from([31, 32, 33, 64, 65, 100]),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    by_step=st.integers(0, 255),
    seed=st.integers(0, 99),
)
def test_any_cut_is_one_shot(case: Case, batch: int, steps: int, cuts: list[float], by_step: int, seed: int) -> None:
    batch = batch_of(case, batch)
    model, feeds = model_of(case), case.feeds(seed, steps, batch)
    feeds = without_states(case, feeds)
    one, other = model.stream(batch), model.stream(batch)
    expected = whole(case, one, feeds)
    got = chunked(case, other, feeds, [round(at * steps) for at in cuts], by_step)
    assert_same_bits(got, expected)
    assert other.state == one.state


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_a_stream_is_a_run(case: Case) -> None:
    """Model.run from the same start: the same bits as a stream, and the same end."""
    for steps, batch in ((1, 1), (7, 3), (70, 1), (40, 2)):
        batch = batch_of(case, batch)
        model, feeds = model_of(case), case.feeds(3, steps, batch)
        carried = dict(model.states)
        feeds |= {name: np.zeros_like(x) for name, x in feeds.items() if name in carried}
        stream = model.stream(batch)
        got = whole(case, stream, without_states(case, feeds))
        expected = model.run(feeds)
        for name, x in got.items():
            if x.ndim == expected[name].ndim:
                assert_same_bits(x, expected[name], name)
            else:  # the model gives its last step alone
                assert_same_bits(np.take(x, -1, axis=case.time_axis), expected[name], name)
        for source, result in carried.items():
            assert_same_bits(stream.state.arrays[source], expected[result], source)


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_states_fed_to_a_run_are_states_of_a_stream(case: Case) -> None:
    model = model_of(case)
    if not model.states:
        pytest.skip("the model takes no states")
    feeds = case.feeds(4, 9, 2)
    expected = model.run(feeds)
    stream = model.stream(2)
    carried = dict(model.states)
    stream.state = le.State(model.fingerprint, 2, {name: feeds[name] for name in stream.state.arrays})
    got = whole(case, stream, without_states(case, feeds))
    for name, x in got.items():
        reference = expected[name]
        assert_same_bits(x if x.ndim == reference.ndim else np.take(x, -1, axis=case.time_axis), reference, name)
    for source, result in carried.items():
        assert_same_bits(stream.state.arrays[source], expected[result])


def test_a_run_that_begins_where_another_ended() -> None:
    """Model.run is cut anywhere too, states handed over by the caller."""
    for case in (LayerCase(H=17, states="inputs", T=50), LayerCase(H=17, states="inputs", T=50, peephole=True)):
        model, feeds = model_of(case), case.feeds()
        expected = model.run(feeds)
        for at in (1, 31, 32, 33, 49):
            first = model.run({**feeds, **cut(case, feeds, 0, at)})
            second = model.run({**cut(case, feeds, at, 50), "h0": first["Y_h"], "c0": first["Y_c"]})
            assert_same_bits(np.concatenate([first["Y"], second["Y"]]), expected["Y"])
            assert_same_bits(second["Y_c"], expected["Y_c"])


# --- batch ------------------------------------------------------------------------------------------------------------


@examples(60)
@given(case=one_stream, batch=st.integers(2, 17), steps=st.integers(1, 40), seed=st.integers(0, 99))
def test_rows_are_independent(case: Case, batch: int, steps: int, seed: int) -> None:
    """Each row of a batch is bit for bit the stream alone."""
    if getattr(case, "states", "") in ("zeros", "constants"):
        return
    model = model_of(case)
    feeds = without_states(case, case.feeds(seed, steps, batch))
    together = whole(case, model.stream(batch), feeds)
    row_axis = 1 - case.time_axis
    for row in {0, batch // 2, batch - 1}:
        lone = {name: np.take(x, [row], axis=row_axis) for name, x in feeds.items()}
        alone = whole(case, model.stream(), lone)
        for name, x in together.items():
            axis = next(a for a in range(x.ndim) if x.shape[a] == batch and alone[name].shape[a] == 1)
            assert_same_bits(np.take(x, [row], axis=axis), alone[name], f"row {row} of {name}")


@pytest.mark.parametrize(
    "case",
    [
        LayerCase(H=17, direction="reverse"),
        LayerCase(H=17, direction="bidirectional", I=130),
        LayerCase(H=17, direction="bidirectional", peephole=True, states="inputs"),
        LayerCase(H=17, lengths="input", direction="bidirectional"),
        LayerCase(op="GRU", H=17, lengths="input", direction="bidirectional"),
        LayerCase(H=17, direction="bidirectional", I=130, precision="int8"),
        LayerCase(op="GRU", H=17, lengths="input", direction="bidirectional", precision="int8"),
        NetCase(hidden=(16, 5), bidirectional=True, head="dense_softmax"),
    ],
    ids=str,
)
def test_rows_of_a_run_are_independent(case: Case) -> None:
    """Of whole sequences too, where the model looks both ways."""
    model, batch = model_of(case), 7
    feeds = case.feeds(5, 40, batch)
    together = model.run(feeds)
    for row in range(batch):
        lone = {name: np.take(x, [row], axis=0 if x.ndim == 1 else 1) for name, x in feeds.items()}
        for name, x in model.run(lone).items():
            axis = next(a for a in range(x.ndim) if together[name].shape[a] == batch and x.shape[a] == 1)
            assert_same_bits(np.take(together[name], [row], axis=axis), x, name)


def test_padding_steps_change_nothing() -> None:
    """A row of a ragged batch is bit for bit its own valid part."""
    for direction, precision in product(("forward", "reverse", "bidirectional"), ("", "bfloat16", "int8")):
        case = LayerCase(H=17, lengths="input", direction=direction, precision=precision)
        feeds = case.feeds(1, 9, 5)
        feeds["lengths"] = np.array([9, 1, 5, 8, 3], np.int32)
        together = model_of(case).run(feeds)
        for row, length in enumerate(feeds["lengths"]):
            alone = model_of(case).run(
                {"X": feeds["X"][:length, row : row + 1], "lengths": np.array([length], np.int32)}
            )
            assert_same_bits(together["Y"][:length, :, row : row + 1], alone["Y"])
            assert_same_bits(together["Y_h"][:, row : row + 1], alone["Y_h"])


# --- snapshots --------------------------------------------------------------------------------------------------------


@examples(60)
@given(
    case=one_stream,
    batch=st.sampled_from([1, 2, 5]),
    before=st.integers(0, 9),
    after=st.integers(1, 9),
    way=st.sampled_from(["restore", "fork", "bytes", "other stream", "copy"]),
)
def test_a_snapshot_continues_exactly(case: Case, batch: int, before: int, after: int, way: str) -> None:
    batch = batch_of(case, batch)
    model = model_of(case)
    feeds = without_states(case, case.feeds(7, before + after, batch))
    stream = model.stream(batch)
    stream.feed(cut(case, feeds, 0, before))
    snapshot = stream.state
    twin = stream.fork()
    expected = whole(case, stream, cut(case, feeds, before, before + after))
    if way == "restore":
        continued = stream
        continued.state = snapshot
    elif way == "fork":
        continued = twin
    else:
        continued = model.stream(batch)
        continued.feed(feeds)  # whatever it held before counts for nothing
        continued.state = {
            "bytes": lambda: le.State.from_bytes(snapshot.to_bytes()),
            "other stream": lambda: snapshot,
            "copy": snapshot.copy,
        }[way]()
    assert continued.state == snapshot
    assert_same_bits(whole(case, continued, cut(case, feeds, before, before + after)), expected)
    assert continued.state == stream.state


@examples(40)
@given(case=one_stream, batch=st.sampled_from([1, 3]), steps=st.integers(1, 9))
def test_reset_is_a_new_stream(case: Case, batch: int, steps: int) -> None:
    batch = batch_of(case, batch)
    model = model_of(case)
    feeds = without_states(case, case.feeds(8, steps, batch))
    stream = model.stream(batch)
    fresh = stream.state
    expected = whole(case, stream, feeds)
    assert stream.state != fresh
    stream.reset()
    assert stream.state == fresh
    assert_same_bits(whole(case, stream, feeds), expected)


def test_a_snapshot_is_no_view() -> None:
    stream = model_of(STREAMS[0]).stream()
    snapshot = stream.state
    data = snapshot.to_bytes()
    stream.step(np.ones((1, 3), np.float32))
    assert snapshot.to_bytes() == data
    assert stream.state != snapshot
    twin = stream.fork()
    before = twin.state
    stream.step(np.ones((1, 3), np.float32))
    assert twin.state == before
    for array in stream.state.arrays.values():
        array[...] = 7  # a caller's own copy
    assert twin.state == before


def test_states_of_another_kind_are_refused() -> None:
    one, other = model_of(LayerCase(H=4)), model_of(LayerCase(H=4, seed=1))
    stream = one.stream()
    good = stream.state
    bad: list[Any] = [
        other.stream().state,
        one.stream(2).state,
        None,
        good.to_bytes(),
        le.State(good.fingerprint, 1, {}),
        le.State(good.fingerprint, 1, {**good.arrays, "more": np.zeros(1, np.float32)}),
        le.State(good.fingerprint, 1, {n: x.astype(np.float64) for n, x in good.arrays.items()}),
        le.State(good.fingerprint, 1, {n: x[..., :-1] for n, x in good.arrays.items()}),
    ]
    for state in bad:
        with pytest.raises(le.StateError):
            stream.state = state
        assert stream.state == good


@examples(150)
@given(st.data())
def test_damaged_bytes_are_refused(data: st.DataObject) -> None:
    """Any flipped bit, any cut: StateError, nothing else."""
    good = model_of(LayerCase(H=4)).stream().state.to_bytes()
    damaged = bytearray(good)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(good) * 8 - 1))
        damaged[at // 8] ^= 1 << (at % 8)
    else:
        del damaged[data.draw(st.integers(0, len(good) - 1)) :]
    with pytest.raises(le.StateError):
        le.State.from_bytes(bytes(damaged))


def test_states_compare_bit_by_bit() -> None:
    state = model_of(LayerCase(H=4)).stream().state
    negative = le.State(state.fingerprint, 1, {name: -x for name, x in state.arrays.items()})
    assert state == state.copy()
    assert hash(state) == hash(state.copy())
    assert state != negative  # -0.0 and 0.0 are different bits
    assert state != 0


# --- failures ---------------------------------------------------------------------------------------------------------

TOKENS = [case for case in STREAMS if isinstance(case, NetCase) and case.vocabulary]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("case", TOKENS, ids=str)
def test_a_token_out_of_range_changes_nothing(case: NetCase, batch: int) -> None:
    """In a step, at any place of a long feed, in any row."""
    model = model_of(case)
    stream, twin = model.stream(batch), model.stream(batch)
    feeds = case.feeds(9, 100, batch)
    feeds = without_states(case, feeds)
    start = cut(case, feeds, 0, 5)
    stream.feed(start)
    twin.feed(start)
    rest = cut(case, feeds, 5, 100)
    for at, bad in ((0, case.vocabulary), (1, -case.vocabulary - 1), (40, 2**31 - 1), (94, -(2**31))):
        broken = {"x": rest["x"].copy()}
        place = [slice(None)] * 2
        place[case.time_axis], place[1 - case.time_axis] = at, batch - 1
        broken["x"][tuple(place)] = bad
        with pytest.raises(le.InputError, match="out of range"):
            stream.feed(broken)
        assert stream.state == twin.state
        with pytest.raises(le.InputError, match="out of range"):
            stream.step(steps_of(case, broken)[at])
        assert stream.state == twin.state
    assert_same_bits(whole(case, stream, rest), whole(case, twin, rest))


@pytest.mark.parametrize("case", TOKENS, ids=str)
def test_negative_tokens_count_from_the_end(case: NetCase) -> None:
    """As ONNX's Gather has it."""
    model = model_of(case)
    feeds = without_states(case, case.feeds(9, 20, 1))
    negative = {"x": feeds["x"] - feeds["x"].dtype.type(case.vocabulary)}
    assert_same_bits(whole(case, model.stream(), negative), whole(case, model.stream(), feeds))


WRONG: list[Any] = [
    np.zeros((2, 5), np.float32),
    np.zeros((1, 6), np.float32),
    np.zeros((1, 1, 1, 5), np.float32),
    np.zeros((1, 5), complex),
    np.array([["a"] * 5]),
    np.array([[None] * 5]),
    {"y": np.zeros((1, 5), np.float32)},
    {},
    None,
    "12345",
    [[1.0, 2.0], [3.0]],
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda x: str(x)[:40])
@pytest.mark.parametrize("case", [LayerCase(I=5, H=17), LayerCase(I=5, H=17, states="inputs", peephole=True)], ids=str)
def test_a_wrong_feed_changes_nothing(case: LayerCase, wrong: Any) -> None:
    stream = model_of(case).stream()
    stream.feed(case.feeds(1, 4, 1)["X"])
    before = stream.state
    with pytest.raises(le.InputError):
        stream.step(wrong)
    assert stream.state == before
    if getattr(wrong, "shape", ()) == (2, 5):
        return  # two steps of a single row: a chunk may leave the batch axis out
    with pytest.raises(le.InputError):
        stream.feed(wrong)
    assert stream.state == before


@pytest.mark.parametrize(
    "case",
    [
        LayerCase(H=17, I=5),
        LayerCase(H=17, I=5, peephole=True),
        LayerCase(H=17, I=5, dtype="float64"),
        LayerCase(H=17, I=5, precision="int8"),
    ],
    ids=str,
)
def test_a_nan_step_stays_in_its_row_until_reset(case: LayerCase) -> None:
    model = model_of(case)
    stream, clean = model.stream(3), model.stream(3)
    x = case.feeds(0, 6, 3)["X"]
    spoilt = x.copy()
    spoilt[2, 1, 4] = np.nan
    y, expected = named(model, stream.feed(spoilt))["Y"], named(model, clean.feed(x))["Y"]
    assert np.isnan(y[2:, :, 1]).all()
    assert_same_bits(y[:2], expected[:2])
    assert_same_bits(y[:, :, [0, 2]], expected[:, :, [0, 2]])
    stream.reset()
    assert_same_bits(named(model, stream.feed(x))["Y"], expected)


def test_a_snapshot_with_nan_round_trips() -> None:
    case = LayerCase(H=17, I=5)
    stream = model_of(case).stream()
    stream.step(np.full((1, 5), np.nan, np.float32))
    state = stream.state
    assert np.isnan(state.arrays[next(iter(state.arrays))]).all()
    again = le.State.from_bytes(state.to_bytes())
    assert again == state
    stream.state = again
    assert stream.state == state


@pytest.mark.parametrize("case", [replace(STREAMS[0], H=20), NetCase(hidden=(8, 20), head="dense")], ids=str)
def test_nothing_is_a_feed_too(case: Case) -> None:
    """A feed of no steps gives no results and leaves the state."""
    model = model_of(case)
    stream = model.stream(2)
    stream.feed(without_states(case, case.feeds(0, 3, 2)))
    before = stream.state
    for result in named_outputs(model, stream.feed(without_states(case, case.feeds(0, 0, 2)))).values():
        assert result.shape[case.time_axis] == 0
    assert stream.state == before
