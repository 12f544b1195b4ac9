"""Steps shared with helping threads: the same bits, whether help comes, comes late or never."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from cases import Case, LayerCase, NetCase, assert_same_bits, named, steps_of, with_activations

import lstm_engine as le
from lstm_engine import engine
from lstm_engine import model as model_module
from lstm_engine.encoding import Worker
from lstm_engine.program import recurrent
from lstm_engine.workers import Workers

#: Layers of every kind that can be shared, in three parts at most: as many blocks of units, one more, one less.
SHARED: list[Case] = [
    LayerCase(H=17, I=5, T=9, B=1),
    LayerCase(H=48, I=3, T=5, B=1),
    LayerCase(H=65, I=33, T=40, B=1),
    LayerCase(H=80, I=7, T=21, B=7),
    LayerCase(H=33, I=9, T=12, B=3, layout=1),
    LayerCase(H=40, I=9, T=12, B=2, direction="reverse"),
    LayerCase(H=48, I=9, T=12, B=2, direction="bidirectional"),
    LayerCase(H=48, I=70, T=130, B=2, states="inputs"),
    LayerCase(H=49, I=4, T=9, B=2, peephole=True, clip=0.5, states="inputs"),
    LayerCase(H=49, I=4, T=9, B=5, lengths="input"),
    with_activations(LayerCase(H=40, I=5), "HardSigmoid", "Elu", "Softsign"),
    LayerCase(H=40, I=5, T=9, dtype="float64"),
    NetCase(head="dense_softmax", hidden=(33, 48), outputs=17),
    NetCase(head="dense_log_softmax", vocabulary=50, hidden=(40, 70), outputs=50),
]
PRECISIONS = ["float32", "bfloat16", "int8"]


@pytest.fixture
def helpers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    """Two helpers for every layer, however small; asleep until the test wakes them."""
    workers = Workers(2, 10.0)
    monkeypatch.setattr(engine, "shared", lambda: workers)
    monkeypatch.setattr(model_module, "threads_allowed", lambda: 3)
    monkeypatch.setattr(recurrent, "SECONDS_A_SHARE", 1e-12)
    yield workers
    gc.collect()
    workers.close()


def watching(workers: Workers) -> None:
    """Have all helpers awake."""
    for helper in workers._helpers:
        workers._wake(helper)
    until = time.monotonic() + 60
    while not all(helper.words[Worker.AWAKE] for helper in workers._helpers):
        assert time.monotonic() < until
        time.sleep(0.001)


def jobs(workers: Workers) -> int:
    """How many jobs helpers have been offered and have begun."""
    return sum(helper.words[Worker.TICKET] for helper in workers._helpers)


def precisions_of(case: Case) -> list[str | None]:
    return [None] if getattr(case, "dtype", "float32") == "float64" else [*PRECISIONS]


def loaded(case: Case, precision: str | None, threads: int) -> le.Model:
    return le.load(case.model(), precision=precision, threads=threads)


def assert_shared_alike(case: Case, precision: str | None) -> None:
    """Runs, chunks and steps on three threads are those on one, bit by bit."""
    alone, shared = loaded(case, precision, 1), loaded(case, precision, 3)
    feeds = case.feeds(seed=3)
    for _ in range(2):
        assert_same_bits(shared.run(feeds), alone.run(feeds), str(case))
    if not case.streams:
        return
    data = {name: x for name, x in feeds.items() if name in ("X", "x")}
    batch = next(iter(data.values())).shape[1 - case.time_axis]
    one, other = alone.stream(batch=batch), shared.stream(batch=batch)
    for x in steps_of(case, data):
        assert_same_bits(named(other, other.step(x)), named(one, one.step(x)), str(case))
    assert_same_bits(named(other, other.feed(data)), named(one, one.feed(data)), str(case))


@pytest.mark.parametrize("case", SHARED, ids=str)
def test_help_changes_no_bit(case: Case, helpers: Workers) -> None:
    for precision in precisions_of(case):
        loaded(case, precision, 1).run(case.feeds())  # compiles what it needs, while helpers sleep
        watching(helpers)
        assert_shared_alike(case, precision)
    assert jobs(helpers) > 0


@pytest.mark.parametrize("case", SHARED[::3], ids=str)
def test_help_that_never_comes_is_done_without(case: Case, helpers: Workers) -> None:
    for helper in helpers._helpers:  # no thread, but they seem to watch
        helper.words[Worker.AWAKE] = 1
    assert_shared_alike(case, precisions_of(case)[0])
    assert jobs(helpers) > 0


@pytest.mark.parametrize("case", SHARED[::3], ids=str)
def test_help_that_comes_late_harms_nothing(case: Case, helpers: Workers) -> None:
    """A job that seems begun and never ends: the share is computed anew, no other is offered."""
    for helper in helpers._helpers:
        helper.words[Worker.AWAKE] = 1
        helper.words[Worker.TICKET], helper.words[Worker.BEGUN], helper.words[Worker.DONE] = 7, 7, 6
    assert_shared_alike(case, precisions_of(case)[0])
    assert all(helper.words[Worker.TICKET] == 7 for helper in helpers._helpers)


def test_one_thread_asks_nobody(helpers: Workers) -> None:
    watching(helpers)
    case = SHARED[2]
    loaded(case, None, 1).run(case.feeds())
    assert jobs(helpers) == 0


def test_a_process_without_helpers_runs_what_could_be_shared(helpers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    none = Workers(0, 1.0)
    monkeypatch.setattr(engine, "shared", lambda: none)
    case = SHARED[2]
    feeds = case.feeds()
    assert_same_bits(loaded(case, None, 3).run(feeds), loaded(case, None, 1).run(feeds))


def test_small_layers_are_not_shared() -> None:
    model = le.load(LayerCase(H=16, I=16).model())
    model.run(LayerCase(H=16, I=16).feeds())
    programs, _ = model.ways()
    assert [program.parts for program in programs] == [1]


def test_threads_are_bounded_by_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "threads_allowed", lambda: 2)
    content = LayerCase().model()
    assert le.load(content).threads == 2
    assert le.load(content, threads=1).threads == 1
    assert le.load(content, threads=99).threads == 2


def test_a_fault_on_shared_steps_leaves_the_state(helpers: Workers) -> None:
    watching(helpers)
    model = le.load(NetCase(head="dense", vocabulary=11, hidden=(48,)).model(), threads=3)
    stream = model.stream()
    tokens = np.arange(6).reshape(1, 6) if model.inputs[0].shape[0] == 1 else np.arange(6)[:, None]
    stream.feed(tokens)
    before = stream.state
    with pytest.raises(le.InputError, match="out of range"):
        stream.feed(np.where(tokens == 4, 99, tokens))
    assert stream.state == before


def test_models_go_while_helpers_are_awake(helpers: Workers) -> None:
    """Memory is given back only when no helper reads it."""
    case = LayerCase(H=80, I=7, T=21, B=7)
    feeds = case.feeds()
    expected = loaded(case, None, 1).run(feeds)
    watching(helpers)
    for _ in range(40):
        assert_same_bits(loaded(case, None, 3).run(feeds), expected)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_callers_in_many_threads_share_helpers_and_weights(precision: str, helpers: Workers) -> None:
    """Each with streams of its own, and runs of the model: whoever gets the help, every bit is as alone."""
    content = NetCase(I=8, hidden=(80, 49), head="dense", outputs=5).model()
    x = np.random.default_rng(1).normal(size=(30, 1, 8)).astype(np.float32)
    alone, model = (le.load(content, precision=precision, threads=threads) for threads in (1, 3))
    expected = alone.run(x)["y"]
    watching(helpers)
    faults: list[BaseException] = []
    begin = threading.Barrier(8)

    def call(index: int) -> None:
        begin.wait()
        for turn in range(6):
            stream = model.stream()
            first = 1 + (index + turn) % 9
            parts = [np.stack([stream.step(step) for step in x[:first]])]
            twin = stream.fork()
            twin.state = le.State.from_bytes(stream.state.to_bytes())
            rest = stream.feed(x[first:])
            assert_same_bits(np.concatenate([*parts, rest]), expected)
            assert_same_bits(twin.feed(x[first:]), rest)
            assert_same_bits(model.run(x[: 20 + index])["y"], expected[: 20 + index])
            for got in model.run_many([x[:first, 0], x[:, 0], x[:first, 0]]):
                assert_same_bits(got["y"], expected[: len(got["y"]), 0])

    def caller(index: int) -> None:
        try:
            call(index)
        except BaseException as fault:
            faults.append(fault)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads are put aside in the middle of anything
    try:
        threads = [threading.Thread(target=caller, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
            assert not thread.is_alive()
    finally:
        sys.setswitchinterval(interval)
    assert not faults, faults
    assert jobs(helpers) > 0
