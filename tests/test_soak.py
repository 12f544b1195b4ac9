"""A pool in use for long: slots come and go, in every order and with bad calls between; nothing drifts, nothing grows."""

from __future__ import annotations

import gc
import json
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import pytest
from cases import NetCase, assert_same_bits, model_of

import lstm_engine as le

READINGS: Final = NetCase(I=4, hidden=(32,), head="dense")
TOKENS: Final = NetCase(vocabulary=40, hidden=(32,), head="dense_log_softmax", outputs=40)
SIZES: Final = np.array([1, 2, 5, 16, 40, 100, 256])
MOST_SLOTS: Final = 400
MOST_WATCHED: Final = 40
MOST_SNAPSHOTS: Final = 24
LONGEST_CHUNK: Final = 40
PERCENTILES: Final = (50, 99, 99.9)
MEGABYTE: Final = 1 << 20


@dataclass
class Snapshot:
    """Of a slot, as the pool gave it, and of the lone stream beside it, if it had one."""

    state: le.State
    lone: le.State | None


class Latencies:
    """Seconds of calls, counted in steps of one per cent: the same memory for any number of them."""

    LEAST, RATIO = 1e-7, 1.01

    def __init__(self) -> None:
        self.counts = np.zeros(2_500, np.int64)

    def add(self, seconds: float) -> None:
        index = int(np.log(max(seconds, self.LEAST) / self.LEAST) / np.log(self.RATIO))
        self.counts[min(index, len(self.counts) - 1)] += 1

    def percentiles(self) -> dict[str, float]:
        """In microseconds."""
        summed = np.cumsum(self.counts)
        places = [int(np.searchsorted(summed, summed[-1] * percent / 100)) for percent in PERCENTILES]
        times = [1e6 * self.LEAST * self.RATIO**place for place in places]
        return {f"p{percent}": round(time, 1) for percent, time in zip(PERCENTILES, times, strict=True)}


class Soak:
    """A pool of ``case`` and what is known about its slots.

    Some slots are watched: a Stream of its own is fed what the slot is, from its opening on, through every fork and
    snapshot, and gives the same bits at every step.
    """

    def __init__(self, case: NetCase, seed: int) -> None:
        self.model = model_of(case)
        self.pool = self.model.pool(capacity=8)
        self.draw = np.random.default_rng(seed)
        feeds = case.feeds(seed, 1 << 12, 1)["x"][:, 0]
        self.inputs = feeds  # what steps are fed: rows of it
        self.room = MOST_SLOTS  # how many slots are opened now: the pool fills and empties
        self.slots: list[int] = []
        self.lone: dict[int, le.Stream] = {}  # of the watched
        self.snapshots: deque[Snapshot] = deque(maxlen=MOST_SNAPSHOTS)
        self.latencies = {int(size): Latencies() for size in SIZES}
        self.stepped = self.compared = self.refused = 0
        self.stale = 0  # a handle of a slot since closed

    def run(self, slot_steps: int) -> None:
        """Act until slots have made so many steps more."""
        acts, shares = zip(*self._acts(), strict=True)
        odds = np.array(shares) / sum(shares)
        last = self.stepped + slot_steps
        while self.stepped < last:
            if self.draw.random() < 0.05:
                self.room = int(self.draw.integers(1, MOST_SLOTS + 1))
            if not self.slots:
                self.open()
            for k in self.draw.choice(len(acts), 64, p=odds):
                if self.slots:
                    acts[k]()

    def _acts(self) -> list[tuple[Callable[[], None], float]]:
        return [
            (self.step, 60),
            (self.feed, 3),
            (self.open, 12),
            (self.close, 10),
            (self.fork, 6),
            (self.reset, 2),
            (self.snapshot, 3),
            (self.restore, 3),
            (self.bad_call, 4),
        ]

    # --- acts --------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        if len(self.slots) < self.room:
            slot = self.pool.open()
            self.slots.append(slot)
            self._watch(slot, self.model.stream)

    def fork(self) -> None:
        if len(self.slots) < self.room:
            slot = self._any()
            twin = self.pool.fork(slot)
            self.slots.append(twin)
            if slot in self.lone:
                self._watch(twin, self.lone[slot].fork)

    def _watch(self, slot: int, lone: Callable[[], le.Stream]) -> None:
        if len(self.lone) < MOST_WATCHED:
            self.lone[slot] = lone()

    def close(self) -> None:
        self.stale = slot = self._any()
        self.slots.remove(slot)
        self.pool.close(slot)
        self.lone.pop(slot, None)

    def reset(self) -> None:
        slot = self._any()
        self.pool.reset(slot)
        if slot in self.lone:
            self.lone[slot].reset()

    def snapshot(self) -> None:
        slot = self._any()
        lone = self.lone[slot].state if slot in self.lone else None
        state = self.pool.state(slot)
        assert lone is None or state == lone
        self.snapshots.append(Snapshot(le.State.from_bytes(state.to_bytes()), lone))

    def restore(self) -> None:
        if self.snapshots:
            slot, snapshot = self._any(), self.snapshots[self.draw.integers(len(self.snapshots))]
            self.pool.restore(slot, snapshot.state)
            if slot in self.lone and snapshot.lone is None:
                del self.lone[slot]  # nobody knows how it came there
            elif slot in self.lone and snapshot.lone is not None:
                self.lone[slot].state = snapshot.lone

    def step(self) -> None:
        size = int(self.draw.choice(SIZES[len(self.slots) >= SIZES]))
        slots = self._some(size)
        rows = self.draw.integers(0, len(self.inputs), size)
        X = self.inputs[rows]
        start = perf_counter()
        Y = self.pool.step(slots, X)
        self.latencies[size].add(perf_counter() - start)
        self.stepped += size
        for k, slot in enumerate(slots):
            if slot in self.lone:
                self._compare(Y[k], self.lone[slot].step(X[k : k + 1])[0])

    def feed(self) -> None:
        slots = self._some(int(self.draw.integers(1, min(9, len(self.slots) + 1))))
        lengths = self.draw.integers(0, LONGEST_CHUNK, len(slots))
        starts = self.draw.integers(0, len(self.inputs) - LONGEST_CHUNK, len(slots))
        chunks = [self.inputs[start : start + length] for start, length in zip(starts, lengths, strict=True)]
        results = self.pool.feed(slots, chunks)
        self.stepped += int(lengths.sum())
        for slot, chunk, Y in zip(slots, chunks, results, strict=True):
            if slot in self.lone:
                self._compare(Y, self.lone[slot].feed(chunk[:, None])[:, 0])

    def bad_call(self) -> None:
        """Refused, and nothing has changed: the watched slots will tell."""
        slots = self._some(min(4, len(self.slots)))
        X = self.inputs[: len(slots)]
        calls: list[tuple[type[Exception], Callable[[], Any]]] = [
            (le.StateError, lambda: self.pool.step([*slots, slots[0]], self.inputs[: len(slots) + 1])),
            (le.StateError, lambda: self.pool.step([*slots[1:], self.stale], X)),
            (le.StateError, lambda: self.pool.close(self.stale)),
            (le.StateError, lambda: self.pool.feed([*slots, slots[0]], [X] * (len(slots) + 1))),
            (le.StateError, lambda: self.pool.restore(slots[0], _foreign())),
            (le.InputError, lambda: self.pool.step(slots, self.inputs[: len(slots) + 1])),
            (le.InputError, lambda: self.pool.feed(slots, [X])),
        ]
        if self.inputs.dtype.kind == "i":
            bad = X.copy()
            bad[-1] = TOKENS.vocabulary
            calls.append((le.InputError, lambda: self.pool.step(slots, bad)))
            calls.append((le.InputError, lambda: self.pool.feed(slots, [*[self.inputs[:9]] * (len(slots) - 1), bad])))
        if len(slots) > 1:
            kind, call = calls[self.draw.integers(len(calls))]
            with pytest.raises(kind):
                call()
            self.refused += 1

    # --- what is known -----------------------------------------------------------------------------------------------

    def _any(self) -> int:
        return self.slots[self.draw.integers(len(self.slots))]

    def _some(self, size: int) -> list[int]:
        """Different slots in any order."""
        return [self.slots[k] for k in self.draw.permutation(len(self.slots))[:size]]

    def _compare(self, got: np.ndarray, expected: np.ndarray) -> None:
        self.compared += len(expected) if expected.ndim > 1 else 1
        if got.tobytes() != expected.tobytes():
            assert_same_bits(got, expected)

    def check_states(self) -> None:
        assert len(self.pool) == len(self.slots)
        for slot, lone in self.lone.items():
            assert self.pool.state(slot) == lone.state

    def end(self) -> None:
        self.check_states()
        while self.slots:
            self.close()
        assert len(self.pool) == 0

    def report(self) -> dict[str, Any]:
        return {
            "slot_steps": self.stepped,
            "compared": self.compared,
            "refused": self.refused,
            "capacity": self.pool.capacity,
            "step_microseconds": {size: seen.percentiles() for size, seen in self.latencies.items()},
        }


def _foreign() -> le.State:
    return model_of(NetCase(hidden=(3,))).stream().state


def resident() -> int:
    """Bytes of memory that this process occupies; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    gc.collect()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("case", [READINGS, TOKENS], ids=["readings", "tokens"])
def test_a_pool_in_use(case: NetCase, precision: str) -> None:
    soak = Soak(replace(case, precision=precision), seed=1)
    for _ in range(4):
        soak.run(25_000)
        soak.check_states()
    assert soak.compared > 10_000
    assert soak.refused > 100
    soak.end()


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("case", [READINGS, TOKENS], ids=["readings", "tokens"])
def test_a_pool_in_use_for_long(case: NetCase, precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten million steps of slots; the memory at the end is that after the first million."""
    soak = Soak(replace(case, precision=precision), seed=2)
    soak.run(1_000_000)
    before = resident()
    for _ in range(9):
        soak.run(1_000_000)
        soak.check_states()
    grown = resident() - before
    report = {"model": str(case), "precision": precision, **soak.report(), "grown_bytes": grown}
    with capsys.disabled():
        print("\n" + json.dumps(report))
    assert soak.compared > 500_000
    assert grown < 4 * MEGABYTE
    soak.end()
