"""A pool against lone streams: the same bits, whatever else happens to the pool meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import lstm_engine as le
from lstm_engine.pool import StreamPool

Arrays = Mapping[str, np.ndarray]


def same(got: np.ndarray, expected: np.ndarray) -> bool:
    """Equal bit by bit; a NaN equals any other. A lone stream may keep an axis of 1 that is its batch."""
    if [n for n in got.shape if n != 1] != [n for n in expected.shape if n != 1] or got.dtype != expected.dtype:
        return False
    expected = expected.reshape(got.shape)
    kind = np.dtype(f"u{got.dtype.itemsize}") if got.dtype.kind == "f" else got.dtype
    equal = np.ascontiguousarray(got).view(kind) == np.ascontiguousarray(expected).view(kind)
    return bool((equal | (got != got) & (expected != expected)).all())


def named(results: Any, outputs: Sequence[le.TensorSpec]) -> Arrays:
    """Results by name."""
    return results if isinstance(results, Mapping) else {outputs[0].name: results}


def drawn(pool: StreamPool, draw: np.random.Generator, n: int, tokens: int = 5) -> dict[str, np.ndarray]:
    """A step's input for n slots; integers from 0 to ``tokens`` - 1."""
    feeds = {}
    for spec in pool.inputs:
        shape = (n, *(size or 512 for size in spec.shape or ()))
        whole = np.dtype(spec.dtype).kind != "f"
        feeds[spec.name] = (draw.integers(0, tokens, shape) if whole else draw.normal(size=shape)).astype(spec.dtype)
    return feeds


def one_of(feeds: Arrays, i: int) -> dict[str, np.ndarray]:
    """What the i-th slot of a step is fed."""
    return {name: array[i] for name, array in feeds.items()}


class Pair:
    """A pool, and for each of its open slots a lone stream that is fed the same."""

    def __init__(self, model: le.Model, count: int, seed: int = 0, tokens: int = 5, time: int = 0) -> None:
        self.model = model
        self.time = time  # axis of a chunk without its batch axis
        self.draw = np.random.default_rng(seed)
        self.tokens = tokens
        self.pool = model.pool(2)
        self.streams = {self.pool.open(): model.stream() for _ in range(count)}

    def chosen(self, least: int = 0) -> list[int]:
        """Some slots in some order."""
        slots = list(self.streams)
        return [slots[i] for i in self.draw.permutation(len(slots))[: self.draw.integers(least, len(slots) + 1)]]

    def step(self, slots: Sequence[int]) -> None:
        """One step of the slots and of their streams."""
        feeds = drawn(self.pool, self.draw, len(slots), self.tokens)
        got = named(self.pool.step(slots, feeds), self.pool.outputs)
        for i, slot in enumerate(slots):
            expected = named(self.streams[slot].step(one_of(feeds, i)), self.pool.outputs)
            for name, array in expected.items():
                assert same(got[name][i], array), f"step, slot {i} of {len(slots)}: {name} differs from its stream's"

    def feed(self, slots: Sequence[int], most: int = 6) -> None:
        """Some steps of the slots, each its own number of them; and of their streams, one by one."""
        counts = [int(self.draw.integers(0, most)) for _ in slots]
        stacked = [drawn(self.pool, self.draw, n, self.tokens) for n in counts]
        chunks = [{k: np.moveaxis(x, 0, self.time) for k, x in each.items()} for each in stacked]
        results = self.pool.feed(slots, chunks)
        for slot, count, each, result in zip(slots, counts, stacked, results, strict=True):
            rows = [named(self.streams[slot].step(one_of(each, t)), self.pool.outputs) for t in range(count)]
            for name, array in named(result, self.pool.outputs).items():
                assert array.shape[self.time] == count, f"feed of {count} steps: {name} is {array.shape}"
                expected = [row[name] for row in rows]
                assert not count or same(array, np.stack(expected, self.time)), f"feed: {name} differs from its steps"

    def states(self) -> None:
        """Snapshots equal those of the streams."""
        for slot, stream in self.streams.items():
            assert self.pool.state(slot) == stream.state, "a slot's snapshot differs from its stream's"

    def anything(self) -> None:
        """Something that is done to a pool, and the same to the streams."""
        slots = self.chosen(1)
        slot = slots[0]
        match int(self.draw.integers(0, 9)):
            case 0:
                self.streams[self.pool.open()] = self.model.stream()
            case 1:
                self.streams[self.pool.fork(slot)] = self.streams[slot].fork()
            case 2 if len(self.streams) > 2:
                self.pool.close(slot)
                del self.streams[slot]
            case 3:
                self.pool.reset(slot)
                self.streams[slot].reset()
            case 4:
                self.pool.restore(slot, self.pool.state(slots[-1]))
                self.streams[slot].state = self.streams[slots[-1]].state
            case 5:
                self.feed(slots)
            case _:
                self.step(slots)
