"""Helping threads: every share is computed once and right, whoever comes late, sleeps, leaves, forks or exits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba import types

from lstm_engine import workers as room
from lstm_engine.encoding import COMING, Worker
from lstm_engine.errors import InputError
from lstm_engine.kernels.simd import (
    flush_denormals,
    lanes,
    never_inline,
    observe,
    pause,
    restore_denormals,
    set_word,
    ticks,
    word,
)
from lstm_engine.kernels.workers import ask, claim, collect, dismiss, offer
from lstm_engine.workers import Workers

SECOND = int(room.ticks_per_second())
LONG = 20.0  # seconds: a limit that only a failure meets
#: A share of the test's work: sums FACTOR·DATA[i], COUNT of them, into RESULT; TIMES counts how often it was done.
DATA, COUNT, FACTOR, RESULT, TIMES = (8 * k for k in range(5))
RIGHT, ACCEPTED, OFFERED, WITHDRAWN = range(4)
WITHDRAWN_WORD = int(Worker.WITHDRAWN)
FLOATS = lanes("float32")
load = FLOATS.intrinsic(lambda b, at: FLOATS.load(b, at, aligned=False), "a", "v")
store = FLOATS.intrinsic(lambda b, at, x: FLOATS.store(b, x, at, aligned=False), "av", "")
times = FLOATS.intrinsic(lambda b, x, y: b.fmul(x, y), "vv", "v")
job = numba.cfunc(types.int64(types.int64))


@numba.njit(nogil=True)
def total_of(data: int, count: int, factor: int) -> int:
    never_inline()  # so that it is computed each time
    total, i = 0, 0
    while i < count:
        total += word(data + 8 * i) * factor
        i += 1
    return total


@job
def sum_share(share: int) -> int:
    set_word(share + RESULT, total_of(word(share + DATA), word(share + COUNT), word(share + FACTOR)))
    set_word(share + TIMES, word(share + TIMES) + 1)
    return 0


@job
def wait_for_gate(gate: int) -> int:
    """Runs until word 0 is set, then writes word 1."""
    while observe(gate) == 0:
        pause()
    set_word(gate + 8, 7)
    return 0


@numba.njit
def multiply(at: int) -> int:
    """Two vectors and room for their product."""
    store(at + 128, times(load(at), load(at + 64)))
    return 0


@job
def multiply_vectors(at: int) -> int:
    return multiply(at)


@numba.njit(types.void(*[types.int64] * 7, types.int64[::1]), nogil=True)
def calls(block, owner, function, share, count, jobs, patience, tally):  # type: ignore[no-untyped-def]
    """``count`` calls of ``jobs`` jobs each; both shares have the same numbers, so their sum is known."""
    data, length = word(share + DATA), word(share + COUNT)
    expected = 2 * total_of(data, length, 1)
    factor = 0
    for _ in range(count):
        claimed = claim(block, owner)
        if claimed == 0:
            ask(block)
        for _ in range(jobs):
            factor += 1
            if claimed == 0:
                claimed = claim(block, owner)
            set_word(share + FACTOR, factor)
            offered = claimed != 0 and offer(block, function, share) != 0
            own = total_of(data, length, factor)
            withdrawn = word(block + 8 * WITHDRAWN_WORD)
            if offered and collect(block, patience) != 0:
                other = word(share + RESULT)
                tally[ACCEPTED] += 1
            else:
                other = total_of(data, length, factor)
            tally[OFFERED] += offered
            tally[WITHDRAWN] += offered and word(block + 8 * WITHDRAWN_WORD) != withdrawn
            tally[RIGHT] += own + other == expected * factor
        dismiss(block, owner, ticks())


@numba.njit(types.int64(types.int64, types.int64))
def try_claim(block: int, owner: int) -> int:
    return claim(block, owner)


@numba.njit(types.int64(types.int64, types.int64, types.int64))
def try_offer(block: int, function: int, argument: int) -> int:
    return offer(block, function, argument)


@numba.njit(types.int64(types.int64, types.int64), nogil=True)
def try_collect(block: int, patience: int) -> int:
    return collect(block, patience)


@numba.njit(types.void(types.int64, types.int64))
def leave(block: int, owner: int) -> None:
    dismiss(block, owner, ticks())


@numba.njit(types.int64())
def read_clock() -> int:
    return ticks()


def rouse(workers: Workers) -> None:
    """Wake them whether that pays or not."""
    for helper in workers._helpers:
        workers._wake(helper)


class Caller:
    """A caller's memory: its share, and what came of its calls."""

    def __init__(self, size: int = 256) -> None:
        self.data = np.random.default_rng(0).integers(-1000, 1000, size)
        self.share = np.zeros(8, np.int64)
        self.share[:2] = self.data.ctypes.data, size
        self.tally = np.zeros(4, np.int64)
        self.owner = int(self.share.ctypes.data)

    def call(self, block: int, count: int, jobs: int, patience: int = SECOND // 10_000) -> None:
        before = self.tally[RIGHT]
        calls(block, self.owner, sum_share.address, self.owner, count, jobs, patience, self.tally)
        assert self.tally[RIGHT] - before == count * jobs

    def be_helped(self, workers: Workers) -> None:
        """One job that is taken, however long the system lets its worker wait."""
        block = workers.blocks(1)[0]
        self.share[FACTOR // 8] = 3
        self.share[RESULT // 8] = -1
        until(lambda: try_claim(block, self.owner))
        until(lambda: try_offer(block, sum_share.address, self.owner))
        until(idle(workers))
        assert try_collect(block, 0) == 1
        leave(block, self.owner)
        assert self.share[RESULT // 8] == 3 * self.data.sum()


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "it never came to it"
        time.sleep(1e-4)


def words(workers: Workers, index: int = 0) -> memoryview:
    return workers._helpers[index].words


@contextmanager
def awake(spin: float, count: int = 1) -> Iterator[Workers]:
    workers = Workers(count, spin)
    try:
        rouse(workers)
        until(lambda: all(words(workers, k)[Worker.AWAKE] for k in range(count)) or spin < 0.1)
        yield workers
    finally:
        workers.stop()


def idle(workers: Workers) -> Callable[[], bool]:
    return lambda: words(workers)[Worker.DONE] == words(workers)[Worker.TICKET]


# --- jobs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 512])
def test_shares_are_right(size: int) -> None:
    """10⁵ jobs, those that are taken and those that are not."""
    with awake(LONG) as workers:
        caller, block = Caller(size), workers.blocks(1)[0]
        caller.call(block, 1000, 100)
        until(idle(workers))
        assert caller.share[TIMES // 8] + caller.tally[WITHDRAWN] == caller.tally[OFFERED]
        before = words(workers)[Worker.WORKED]
        caller.be_helped(workers)
        assert words(workers)[Worker.WORKED] > before


@pytest.mark.parametrize("patience", [0, 100, 1000, SECOND // 1_000_000])
def test_a_job_is_either_begun_or_withdrawn(patience: int) -> None:
    """With as little patience as a job takes to begin: each offer ends one way, and withdrawn jobs are not done."""
    with awake(LONG) as workers:
        caller, block = Caller(16), workers.blocks(1)[0]
        caller.call(block, 200, 200, patience)
        until(idle(workers))
        assert caller.share[TIMES // 8] + caller.tally[WITHDRAWN] == caller.tally[OFFERED]


def test_one_worker_helps_one_caller() -> None:
    with awake(LONG) as workers:
        block = workers.blocks(1)[0]
        assert try_claim(block, 1) == 1
        assert try_claim(block, 2) == 0
        leave(block, 2)  # it has nothing to leave
        assert words(workers)[Worker.OWNER] == 1
        leave(block, 1)
        assert try_claim(block, 2) == 1
        leave(block, 2)


@pytest.mark.parametrize("blocks", [1, 2])
def test_callers_in_several_threads(blocks: int) -> None:
    """More callers than workers: each is right, whoever gets the help."""
    with awake(LONG, blocks) as workers:
        callers = [Caller() for _ in range(3)]
        faults: list[BaseException] = []

        def run(index: int) -> None:
            try:
                callers[index].call(workers.blocks(blocks)[index % blocks], 3000, 10)
            except BaseException as fault:
                faults.append(fault)

        threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults
        for k in range(blocks):
            assert words(workers, k)[Worker.OWNER] == 0
        for caller in callers:
            workers.quiesce(caller.owner)
            assert caller.share[TIMES // 8] + caller.tally[WITHDRAWN] == caller.tally[OFFERED]


def test_a_late_job_is_left_behind() -> None:
    """The caller goes on without it; nothing else is offered meanwhile; its memory is its own until quiesce()."""
    with awake(LONG) as workers:
        block, gate, caller = workers.blocks(1)[0], np.zeros(2, np.int64), Caller()
        at = int(gate.ctypes.data)
        assert try_claim(block, caller.owner)
        assert try_offer(block, wait_for_gate.address, at)
        until(lambda: words(workers)[Worker.BEGUN] == words(workers)[Worker.TICKET])
        assert not try_collect(block, 1000)
        assert not try_offer(block, wait_for_gate.address, at)
        leave(block, caller.owner)
        caller.call(block, 10, 100)  # alone
        assert caller.tally[OFFERED] == 0
        workers.quiesce(caller.owner + 1)  # others need not wait
        waiting = threading.Thread(target=workers.quiesce, args=(caller.owner,))
        waiting.start()
        time.sleep(0.02)
        assert waiting.is_alive()
        gate[0] = 1
        waiting.join(LONG)
        assert not waiting.is_alive()
        assert gate[1] == 7
        gate[:] = 99
        caller.be_helped(workers)
        assert gate.tolist() == [99, 99]


def test_a_worker_that_is_often_late_rests() -> None:
    with awake(LONG) as workers:
        block, gate = workers.blocks(1)[0], np.zeros(2, np.int64)
        at, rests = int(gate.ctypes.data), []
        assert try_claim(block, at)
        for _ in range(3):
            gate[0] = 0
            until(lambda: try_offer(block, wait_for_gate.address, at))
            until(lambda: words(workers)[Worker.BEGUN] == words(workers)[Worker.TICKET])
            assert not try_collect(block, 1000)
            rests.append(words(workers)[Worker.REST])
            gate[0] = 1
            until(idle(workers))
        assert rests[0] < rests[1] < rests[2]
        until(lambda: try_offer(block, wait_for_gate.address, at))
        until(idle(workers))
        assert try_collect(block, 0)
        assert words(workers)[Worker.REST] == 0
        leave(block, at)


def test_a_worker_on_its_way_is_offered_a_job() -> None:
    workers, caller = Workers(1, LONG), Caller()
    words(workers)[Worker.WANTED] = COMING
    caller.call(workers.blocks(1)[0], 1, 10)
    assert caller.tally[OFFERED] == 1
    words(workers)[Worker.WANTED] = 0
    caller.call(workers.blocks(1)[0], 1, 10)
    assert caller.tally[OFFERED] == 1


def test_a_claimed_worker_watches_longer() -> None:
    workers = Workers(1, 1e-3)
    words(workers)[Worker.RISE] = SECOND // 2
    block = workers.blocks(1)[0]
    try:
        rouse(workers)
        assert try_claim(block, 1)
        until(lambda: words(workers)[Worker.AWAKE])
        start = time.monotonic()
        leave(block, 2)
        until(lambda: not words(workers)[Worker.AWAKE])
        assert time.monotonic() - start > 0.4
        leave(block, 1)
    finally:
        workers.stop()


def test_a_worker_that_is_not_there_costs_one_job() -> None:
    """As when the system has put it aside: what was offered is taken back and never done, nothing more is offered."""
    workers = Workers(1, LONG)
    block, caller = workers.blocks(1)[0], Caller()
    words(workers)[Worker.AWAKE] = 1
    caller.call(block, 10, 10)
    assert caller.tally[OFFERED] == caller.tally[WITHDRAWN] == 1
    workers.quiesce(caller.owner)
    rouse(workers)  # it is back
    try:
        until(idle(workers))
        assert caller.share[TIMES // 8] == 0
        caller.be_helped(workers)
    finally:
        workers.stop()


def test_a_worker_computes_like_its_caller() -> None:
    """Denormals are zero in the engine's calls, so they are in its workers."""
    values = np.repeat(np.array([1e-30, 1e-12, 5], np.float32), 16)
    at = int(values.ctypes.data)

    @numba.njit
    def alone(at: int) -> None:
        control = flush_denormals()
        multiply(at)
        restore_denormals(control)

    alone(at)
    expected = values[32:].copy()
    assert (expected == 0).all()
    values[32:] = 5
    with awake(LONG) as workers:
        block = workers.blocks(1)[0]
        assert try_claim(block, 1)
        assert try_offer(block, multiply_vectors.address, at)
        until(idle(workers))
        assert try_collect(block, 0)
        leave(block, 1)
    assert values[32:].tobytes() == expected.tobytes()


# --- sleeping and waking ----------------------------------------------------------------------------------------------


def test_no_work_no_processor_time() -> None:
    with awake(50e-6) as workers:
        Caller().call(workers.blocks(1)[0], 10, 100)
        until(lambda: not words(workers)[Worker.AWAKE])
        time.sleep(0.01)
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.02


def test_nothing_is_started_before_it_is_wanted() -> None:
    before = threading.active_count()
    workers = Workers(2, 50e-6)
    caller = Caller()
    for _ in range(100):
        caller.call(workers.blocks(1)[0], 1, 2)
        time.sleep(1e-3)
    assert caller.tally[OFFERED] == 0
    assert workers.bell[0] == 0
    assert threading.active_count() == before
    assert len(workers) == len(workers.blocks(5)) == 2
    assert workers.blocks(0) == workers.blocks(-1) == ()


def test_pairs_of_calls_at_a_pace_wake_nobody() -> None:
    """Two channels, one after the other, every millisecond: dense for a moment, yet no burst."""
    workers = Workers(1, 50e-6)
    words(workers)[Worker.RISE] = SECOND // 100  # on a busy machine two calls may take long
    caller = Caller()
    for _ in range(100):
        caller.call(workers.blocks(1)[0], 2, 1)
        time.sleep(1e-3)
    assert workers.bell[0] == 0


def test_a_burst_wakes_a_worker() -> None:
    workers = Workers(1, 50e-6)
    caller = Caller(2000)
    try:
        until(lambda: caller.call(workers.blocks(1)[0], 100, 1) or workers.bell[0])
        assert words(workers)[Worker.AWAKE] == 0
        assert words(workers)[Worker.WANTED] == 1
        workers.answer()
        assert workers.bell[0] == 0
        until(lambda: words(workers)[Worker.WANTED] == 0)  # it is, or was, awake
    finally:
        workers.stop()


def test_wakes_that_do_not_pay_become_rare() -> None:
    workers = Workers(1, 50e-6)
    block = words(workers)
    least, most = (int(seconds * room.ticks_per_second()) for seconds in room.HOLD)
    holds = []
    try:
        for worked in (0, 0, 0, SECOND, *([0] * 12)):
            block[Worker.WORKED] += worked
            block[Worker.WANTED] = 1
            workers.answer()
            holds.append(workers._helpers[0].hold)
            assert block[Worker.HOLD] >= read_clock() + holds[-1] - SECOND
            until(lambda: block[Worker.WANTED] == 0 and block[Worker.AWAKE] == 0)
        assert holds[:6] == [least, 2 * least, 4 * least, 0, least, 2 * least]
        assert holds[-1] == most
        workers.wake(1, LONG)  # held asleep
        assert not block[Worker.WANTED]
        caller = Caller()
        for _ in range(20):
            caller.call(workers.blocks(1)[0], 1000, 1)
        assert not workers.bell[0]
        block[Worker.HOLD] = 0
        workers.wake(1, 100e-6)  # too short a call
        assert not block[Worker.WANTED]
        workers.wake(1, LONG)
        assert workers._helpers[0].hold == most
        workers.answer()  # nobody asked
        until(lambda: block[Worker.WANTED] == 0)
    finally:
        workers.stop()


def test_workers_stop_and_start_again() -> None:
    before = threading.active_count()
    with awake(LONG) as workers:
        caller = Caller()
        for _ in range(5):
            caller.be_helped(workers)
            caller.call(workers.blocks(1)[0], 10, 100)
            assert threading.active_count() == before + 1
            workers.stop()
            assert threading.active_count() == before
            caller.call(workers.blocks(1)[0], 10, 10)
            rouse(workers)


def test_stopping_and_waking_under_calls() -> None:
    """Whatever order they come in, nobody waits for ever and every sum is right."""
    workers = Workers(1, 20e-6)
    caller, ended = Caller(), threading.Event()
    faults: list[BaseException] = []

    def run() -> None:
        try:
            while not ended.is_set():
                caller.call(workers.blocks(1)[0], 20, 5)
                rouse(workers)
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(200):
        workers.stop()
        time.sleep(5e-4)
    ended.set()
    thread.join(LONG)
    workers.stop()
    assert not thread.is_alive()
    assert not faults


def test_a_system_without_threads_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    workers, caller = Workers(1, 50e-6), Caller()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    words(workers)[Worker.WANTED] = 1
    workers.answer()
    workers.wake(1, LONG)
    caller.call(workers.blocks(1)[0], 10, 10)
    assert words(workers)[Worker.WANTED] == 0
    monkeypatch.undo()
    rouse(workers)
    until(lambda: words(workers)[Worker.WANTED] == 0)
    workers.stop()


# --- knobs ------------------------------------------------------------------------------------------------------------


def test_knobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LSTM_ENGINE_THREADS", raising=False)
    assert 1 <= room.threads_allowed() <= (os.cpu_count() or 1)
    monkeypatch.setenv("LSTM_ENGINE_THREADS", "3")
    monkeypatch.setenv("LSTM_ENGINE_SPIN", "200")
    three = room._shared.__wrapped__()
    assert len(three) == 2
    assert words(three)[Worker.SPIN] == int(200e-6 * room.ticks_per_second())
    monkeypatch.setenv("LSTM_ENGINE_THREADS", "1")
    alone = room._shared.__wrapped__()
    assert len(alone) == 0
    assert alone.blocks(3) == ()
    alone.wake(3, LONG)
    alone.answer()
    for bad in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("LSTM_ENGINE_THREADS", bad)
        with pytest.raises(InputError, match=f"LSTM_ENGINE_THREADS.*at least 1, got '{bad}'"):
            room.threads_allowed()
    monkeypatch.undo()
    assert room.shared() is room.shared()


# --- processes --------------------------------------------------------------------------------------------------------

#: Forks while a worker works and a caller calls, again and again. A child leaves at once, or as a script does, or as one
#: does with its worker in the middle of a job that the caller has left behind.
HOT = """
import os, sys, threading
import test_workers as t

workers = t.Workers(1, 1e-3)
block, caller = workers.blocks(1)[0], t.Caller()
hot, faults = threading.Event(), []

def call():
    try:
        while hot.wait():
            caller.call(block, 50, 10)
            t.rouse(workers)
    except BaseException as fault:
        faults.append(fault)

def heat():
    caller.tally[:] = 0
    hot.set()
    threading.Thread(target=call, daemon=True).start()
    heated()

def heated():  # on a busy machine there may be no help to be had
    t.until(lambda: faults or caller.tally[t.ACCEPTED] or caller.tally[t.RIGHT] > 10_000)

def be_late(large):
    t.until(lambda: t.try_claim(block, large.owner) or t.rouse(workers))
    t.until(lambda: t.try_offer(block, t.sum_share.address, large.owner))
    ticket = t.words(workers)[t.Worker.TICKET]
    while t.words(workers)[t.Worker.BEGUN] != ticket:
        t.rouse(workers)
    assert not t.try_collect(block, 0)

heat()
for turn in range(TURNS):
    child = os.fork()
    if child == 0:
        assert threading.active_count() == 1 and not t.words(workers)[t.Worker.AWAKE]
        hot, caller = threading.Event(), t.Caller()
        caller.call(block, 10, 10)
        if turn % 3 == 2:
            large = t.Caller(20_000_000)
            be_late(large)
            sys.exit(0)
        heat()
        (sys.exit if turn % 3 else os._exit)(len(faults))
    hot.clear()
    assert os.waitpid(child, 0)[1] == 0, turn
    hot.set()
    heated()
assert not faults, faults
"""


def script(code: str, environment: dict[str, str], **values: object) -> None:
    own = os.environ.get("LSTM_ENGINE_CACHE")
    kept = {k: v for k, v in environment.items() if own is None or k != "LSTM_ENGINE_CACHE"}
    for name, value in values.items():
        code = code.replace(name, str(value))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept if own is None else {**kept, "LSTM_ENGINE_CACHE": own},
        timeout=500,
        capture_output=True,
        text=True,
        cwd=os.sep,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert not done.stderr


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@forks
def test_forks_and_exits_with_everything_at_work(fresh_environment: dict[str, str]) -> None:
    script(HOT, fresh_environment, TURNS=6)


@contextmanager
def busy_cores() -> Iterator[None]:
    """A process that never sleeps for each core."""
    code = "import os, time\nend = time.time() + 60\nwhile time.time() < end: pass"
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_right_on_a_busy_machine() -> None:
    with busy_cores(), awake(LONG) as workers:
        caller = Caller(2000)
        caller.call(workers.blocks(1)[0], 200, 100)
        until(idle(workers))
        assert caller.share[TIMES // 8] + caller.tally[WITHDRAWN] == caller.tally[OFFERED]


@pytest.mark.nightly
@forks
def test_for_minutes(fresh_environment: dict[str, str]) -> None:
    """Everything at once: several callers, short watches, wakes, stops; then forks and exits by the dozen."""
    workers, callers = Workers(2, 20e-6), [Caller(size) for size in (4, 64, 512, 4096)]
    end, faults = time.monotonic() + 60, []

    def run(index: int) -> None:
        rng = np.random.default_rng(index)
        try:
            while time.monotonic() < end:
                callers[index].call(
                    workers.blocks(2)[int(rng.integers(2))], int(rng.integers(1, 50)), int(rng.integers(1, 50)),
                    int(10 ** rng.uniform(0, 5)),
                )  # fmt: skip
                if workers.bell[0]:
                    workers.answer()
                if rng.random() < 0.1:
                    time.sleep(rng.uniform(0, 2e-3))
                if rng.random() < 0.01:
                    workers.stop() if index == 0 else rouse(workers)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    for caller in callers:
        workers.quiesce(caller.owner)
        assert caller.share[TIMES // 8] + caller.tally[WITHDRAWN] == caller.tally[OFFERED]
    workers.stop()
    script(HOT, fresh_environment, TURNS=60)


def test_the_words_of_a_block_keep_to_their_lines(root: Path) -> None:
    """Whoever writes a word has its cache line to himself."""
    writers = [
        {w for w in Worker if w < Worker.TICKET},
        {Worker.TICKET, Worker.FUNCTION, Worker.ARGUMENT},
        {Worker.BEGUN},
        {Worker.DONE, Worker.LASTED},
    ]
    lines = [{int(w) // 16 for w in group} for group in writers]
    assert all(len(line) == 1 for line in lines)
    assert len(set.union(*lines)) == len(lines)
    others = set(Worker) - set.union(*writers)
    assert {int(w) // 16 for w in others}.isdisjoint(set.union(*lines))
    assert words(Workers(2, 0.0), 1).nbytes == room.WORKER_WORDS * 8


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind threads to cores")
def test_a_helper_is_woken_off_the_callers_core() -> None:
    with awake(0.2) as workers:
        (helper,) = workers._helpers
        assert helper.thread is not None
        core = min(helper.cores)
        helper.keep_off(core)
        left = frozenset(os.sched_getaffinity(helper.thread.native_id or 0))
        assert left == (helper.cores - {core} or helper.cores)
