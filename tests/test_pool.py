"""StreamPool: each slot is a stream like any other, whatever happens to the others."""

from __future__ import annotations

import gc
import io
import os
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from cases import NetCase, model_of
from pools import Pair, drawn, same
from processes import child

import lstm_engine as le

CASES = [
    NetCase(hidden=(8,)),
    NetCase(hidden=(17, 5), head="dense"),
    NetCase(I=33, hidden=(40,), batch_first=True),
    NetCase(hidden=(16,), vocabulary=7),
    NetCase(hidden=(19, 19), vocabulary=7, token_dtype="int32", batch_first=True),
    NetCase(hidden=(9,), states="inputs"),
    NetCase(hidden=(12,), peephole=True, clip=0.5),
    NetCase(hidden=(10,), dtype="float64"),
    NetCase(I=20, hidden=(31,), precision="int8"),
    NetCase(I=20, hidden=(31,), precision="bfloat16"),
]


def lstm(inputs: int = 4, hidden: int = 8, threads: int | None = 1, precision: str | None = None) -> le.Model:
    arrays = builders.random_weights(inputs, hidden)
    weights = {"W": arrays["W"], "R": arrays["R"], "B": arrays["B"]}
    return le.load(_bare(weights), threads=threads, precision=precision)


def _bare(weights: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **weights)
    return file.getvalue()


def tagger(**changes: Any) -> le.Model:
    return model_of(NetCase(**{"hidden": (16,), "vocabulary": 7, **changes}))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_slots_are_streams(case: NetCase) -> None:
    pair = Pair(model_of(case), 3, case.seed)
    assert pair.pool.together
    for _ in range(60):
        pair.anything()
    pair.states()


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_more_slots_than_run_together(case: NetCase) -> None:
    pair = Pair(model_of(case), 150)
    for _ in range(2):
        pair.step(pair.chosen(140))
        pair.feed(pair.chosen(140), 4)
    pair.states()


def test_a_model_with_host_calls_runs_its_slots_one_by_one() -> None:
    nodes = [
        builders.helper.make_node("LSTM", ["x", "W", "R"], ["", "h"], hidden_size=4),
        builders.helper.make_node("CumSum", ["h", "axis"], ["y"]),
    ]
    arrays = {k: v for k, v in builders.random_weights(3, 4).items() if k in "WR"} | {"axis": np.array(2)}
    infos = [("x", "float32", ["T", "B", 3])], [("y", "float32", [1, "B", 4])]
    pair = Pair(le.load(builders.make_model(nodes, *infos, arrays).SerializeToString()), 3)
    assert not pair.pool.together
    for _ in range(30):
        pair.anything()
    pair.states()


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_two_threads_make_no_difference(precision: str) -> None:
    one, two = (lstm(64, 128, threads, precision) for threads in (1, 2))
    pools = one.pool(), two.pool()
    slots = [[pool.open() for _ in range(100)] for pool in pools]
    for k in range(30):
        X = drawn(pools[0], np.random.default_rng(k), 100)
        results = [pool.step(handles, X) for pool, handles in zip(pools, slots, strict=True)]
        assert same(*results)


# --- handles ---------------------------------------------------------------------------------------------------------


def test_a_closed_slot_is_stale_for_good() -> None:
    pool = lstm().pool(1)
    first = pool.open()
    pool.close(first)
    second = pool.open()
    assert first != second
    assert first not in pool
    assert second in pool
    x = np.zeros((1, 4), np.float32)
    stale = (pool.close, pool.reset, pool.fork, pool.state, lambda slot: pool.step([slot], x))
    for act in (*stale, lambda slot: pool.feed([slot], [x]), lambda slot: pool.restore(slot, pool.state(second))):
        with pytest.raises(le.StateError, match="not open"):
            act(first)
    assert len(pool) == 1


@pytest.mark.parametrize("handle", [0, -1, 1, 5, 1 << 32, (1 << 32) + 1, 2 << 32, (1 << 63) - 1, -(1 << 63)])
def test_what_is_no_handle_is_refused(handle: int) -> None:
    pool = lstm().pool(2)
    slot = pool.open()
    if handle == slot:
        handle += 1 << 33
    for act in (pool.close, pool.state, lambda h: pool.step([slot, h], np.zeros((2, 4), np.float32))):
        with pytest.raises(le.StateError, match="not open"):
            act(handle)
    assert pool.state(slot) == lstm().stream().state


@pytest.mark.parametrize("handles", [[1.5], ["a"], [[1]], 3, None, [None], [1 << 70]])
def test_handles_are_integers(handles: Any) -> None:
    pool = lstm().pool()
    with pytest.raises(le.LstmEngineError, match="slot"):
        pool.step(handles, np.zeros((1, 4), np.float32))


@pytest.mark.parametrize("handle", [True, 1.0, "1", None, np.float32(1)])
def test_a_handle_is_an_integer(handle: Any) -> None:
    with pytest.raises(le.StateError, match="expected a handle"):
        lstm().pool().close(handle)


def test_a_slot_twice_in_one_call_is_refused_and_nothing_runs() -> None:
    pair = Pair(lstm(), 100)
    slots = list(pair.streams)
    x = drawn(pair.pool, pair.draw, 101)
    with pytest.raises(le.StateError, match="twice"):
        pair.pool.step([*slots, slots[0]], x)
    with pytest.raises(le.StateError, match="twice"):
        pair.pool.feed([slots[3], slots[3]], [np.zeros((1, 4), np.float32)] * 2)
    pair.states()
    pair.step(slots)


def test_no_slots_are_no_steps() -> None:
    pool = lstm().pool()
    assert pool.step([], np.zeros((0, 4), np.float32)).shape == (0, *pool.outputs[0].shape)
    assert pool.feed([], []) == []


# --- room ------------------------------------------------------------------------------------------------------------


def test_growing_moves_nobody() -> None:
    pair = Pair(lstm(), 2)
    addresses = pair.pool._way._records.addresses  # type: ignore[union-attr]
    pair.step(list(pair.streams))
    for _ in range(300):
        pair.streams[pair.pool.open()] = pair.model.stream()
    assert pair.pool.capacity >= 302
    assert np.array_equal(pair.pool._way._records.addresses[:2], addresses)  # type: ignore[union-attr]
    pair.step(pair.chosen(250))
    pair.states()


def test_ten_thousand_slots_take_little() -> None:
    model = lstm(128, 128)
    model.stream().step(np.zeros(128, np.float32))
    gc.collect()
    tracemalloc.start()
    try:
        pool = model.pool(10_000)
        slots = np.array([pool.open() for _ in range(10_000)])
        pool.step(slots[:256], np.zeros((256, 128), np.float32))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(pool) == 10_000
    assert taken < 16e6


def test_steps_and_coming_and_going_take_no_more_memory() -> None:
    pool = tagger().pool(8)
    slots = np.array([pool.open() for _ in range(200)])
    X, Y = np.zeros(200, np.int64), np.zeros((200, *pool.outputs[0].shape), np.float32)

    def busy(times: int) -> None:
        for _ in range(times):
            pool.step(slots, X, out=Y)
            pool.close(pool.fork(slots[0]))
            pool.feed(slots[:5], [X[:3]] * 5)

    busy(20)
    gc.collect()
    tracemalloc.start()
    try:
        busy(20)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        busy(1000)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 40_000  # the interpreter keeps some small objects for later


def test_what_is_closed_is_wiped() -> None:
    pool = lstm().pool(1)
    slot = pool.open()
    pool.step([slot], np.ones((1, 4), np.float32))
    record = pool._way._records[0]  # type: ignore[union-attr]
    assert record.any()
    pool.close(slot)
    assert not record.any()


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [7, -8, 1 << 40])
@pytest.mark.parametrize("place", [0, 63, 64, 149])
def test_a_bad_token_leaves_all_slots_as_they_were(bad: int, place: int) -> None:
    pair = Pair(tagger(), 150)
    slots = list(pair.streams)
    pair.step(slots)
    x = drawn(pair.pool, pair.draw, 150)["x"]
    x[place] = bad
    with pytest.raises(le.InputError, match=f"index {bad}"):
        pair.pool.step(slots, x)
    pair.states()
    chunks = [np.zeros(k % 5, np.int64) for k in range(150)]
    chunks[place] = np.array([1, 2, bad, 3])
    with pytest.raises(le.InputError, match=f"index {bad}"):
        pair.pool.feed(slots, chunks)
    pair.states()
    pair.step(slots)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 5), np.float32), r"expected shape \[3, 4\], got \[2, 5\]"),
        (np.zeros(12, np.float32), r"expected shape \[3, 4\], got \[12\]"),
        (np.zeros((3, 4), complex), "feed real numbers"),
        ({"y": 0}, "'y' is not an input"),
        ({}, "is missing"),
    ],
)
def test_feeds_that_do_not_fit(x: Any, message: str) -> None:
    pair = Pair(lstm(), 3)
    with pytest.raises(le.InputError, match=message):
        pair.pool.step(list(pair.streams), x)
    pair.states()


def test_chunks_that_do_not_fit() -> None:
    pool = lstm().pool()
    slots = [pool.open(), pool.open()]
    good = np.zeros((2, 4), np.float32)
    with pytest.raises(le.InputError, match="a chunk for each of 2 slots, got 1"):
        pool.feed(slots, [good])
    with pytest.raises(le.InputError, match=r"chunk 1, .*expected shape \[\?, 4\], got \[2, 5\]"):
        pool.feed(slots, [good, np.zeros((2, 5), np.float32)])


def test_out_is_checked_before_anything_runs() -> None:
    pair = Pair(lstm(), 3)
    slots, x = list(pair.streams), np.zeros((3, 4), np.float32)
    shape = (3, *pair.pool.outputs[0].shape)
    frozen = np.zeros(shape, np.float32)
    frozen.setflags(write=False)
    gaps = np.zeros((*shape, 2), np.float32)[..., 0]
    for out in (np.zeros((3, 7), np.float32), np.zeros(shape), gaps, frozen, [0]):
        with pytest.raises(le.InputError, match="out"):
            pair.pool.step(slots, x, out=out)
    pair.states()
    out = np.zeros(shape, np.float32)
    assert pair.pool.step(slots, x, out=out) is out
    assert same(out[0], next(iter(pair.streams.values())).step(x[0]))


@pytest.mark.parametrize("capacity", [0, -1, 1.5, True, None, 1 << 40])
def test_capacity_is_a_number_of_slots(capacity: Any) -> None:
    with pytest.raises(le.InputError, match="capacity"):
        lstm().pool(capacity)


def test_a_model_that_needs_the_whole_sequence_has_no_pool() -> None:
    with pytest.raises(le.StreamingError):
        model_of(NetCase(bidirectional=True)).pool()


def test_nobody_sees_the_others_numbers() -> None:
    """NaN, infinities and denormals of one slot stay with it."""
    pair = Pair(lstm(), 70)
    slots = list(pair.streams)
    x = drawn(pair.pool, pair.draw, 70)["X"]
    x[1], x[2], x[3], x[40] = np.nan, np.inf, -np.inf, 1e-40
    for _ in range(3):
        Y = pair.pool.step(slots, x)
        for i, slot in enumerate(slots):
            assert same(Y[i], pair.streams[slot].step(x[i]))
    assert np.isnan(Y[1]).all()
    assert np.isfinite(np.delete(Y, [1, 2, 3], 0)).all()


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_snapshots_go_between_slots_and_streams() -> None:
    model = lstm()
    pool, stream = model.pool(), model.stream()
    slot = pool.open()
    x = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)
    stream.step(x[0])
    pool.restore(slot, le.State.from_bytes(stream.state.to_bytes()))
    assert same(pool.step([slot], x)[0], stream.step(x[0]))
    stream.state = pool.state(slot)
    assert same(pool.step([slot], x)[0], stream.step(x[0]))


def test_snapshots_of_others_are_refused() -> None:
    pool = lstm().pool()
    slot = pool.open()
    pool.step([slot], np.ones((1, 4), np.float32))
    before = pool.state(slot)
    for other in (lstm(4, 9).stream().state, lstm().stream(2).state, b"state", None):
        with pytest.raises(le.StateError):
            pool.restore(slot, other)  # type: ignore[arg-type]
    assert pool.state(slot) == before


def test_a_state_that_begins_elsewhere() -> None:
    """Slots begin, and begin again, in the states that the file holds."""
    arrays = builders.random_weights(3, 6) | {"h0": np.full((1, 1, 6), 0.5, np.float32)}
    nodes = [builders.helper.make_node("LSTM", ["x", "W", "R", "B", "", "h0", "h0"], ["y"], hidden_size=6)]
    infos = [("x", "float32", ["T", 1, 3])], [("y", "float32", ["T", 1, 1, 6])]
    pair = Pair(le.load(builders.make_model(nodes, *infos, arrays).SerializeToString()), 3)
    for _ in range(25):
        pair.anything()
    pair.states()


# --- threads and processes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_many_threads_share_a_pool(threads: int) -> None:
    model = lstm(16, 64, threads)
    pool = model.pool(2)
    faults: list[BaseException] = []

    def client(seed: int) -> None:
        try:
            draw = np.random.default_rng(seed)
            mine = {pool.open(): model.stream() for _ in range(4)}
            for _ in range(60):
                slots = [s for s in mine if draw.random() < 0.7]
                x = drawn(pool, draw, len(slots))
                Y = pool.step(slots, x)
                for i, slot in enumerate(slots):
                    assert same(Y[i], mine[slot].step(x["X"][i]))
                old = next(iter(mine))
                twin, stream = pool.fork(old), mine.pop(old)
                pool.close(old)
                mine[twin] = stream
        except BaseException as fault:
            faults.append(fault)

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    if faults:
        raise faults[0]
    assert len(pool) == 32


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_a_copy(warm_environment: dict[str, str]) -> None:
    """Even where another thread was in a call at that moment."""
    code = """
import os, numpy as np, test_pool
pool = test_pool.lstm(16, 64, 2).pool()
slots = [pool.open() for _ in range(70)]
x = np.random.default_rng(0).normal(size=(70, 16)).astype(np.float32)
pool.step(slots, x)
before = [pool.state(slot) for slot in slots]
expected = pool.step(slots, x)
for slot, state in zip(slots, before):
    pool.restore(slot, state)
import threading
held, over = threading.Event(), threading.Event()
def hold():
    with pool._lock:
        held.set()
        over.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(pool.step(slots, x), expected) else 1)
over.set()
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(pool.step(slots, x), expected)
"""
    child(code, warm_environment)


ZOO = Path(__file__).resolve().parent.parent.parent / "shared" / "zoo"


@pytest.mark.skipif(not ZOO.exists(), reason="the collection of public models is not here")
@pytest.mark.parametrize("path", sorted(ZOO.glob("*.onnx")), ids=lambda path: path.stem)
def test_models_of_strangers(path: Path) -> None:
    try:
        model = le.load(path)
        pair = Pair(model, 3, tokens=2)
    except (le.ModelFormatError, le.StreamingError, le.UnsupportedModelError) as fault:
        pytest.skip(str(fault)[:80])
    for _ in range(3):
        pair.step(pair.chosen(1))
    pair.states()
