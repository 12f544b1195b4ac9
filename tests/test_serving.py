"""AsyncPool: batches gathered from waiting steps; order, cancellation, limits, faults apart, shutdown."""

from __future__ import annotations

import ast
import asyncio
import gc
import json
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import builders
import numpy as np
import pytest
from cases import NetCase, assert_same_bits, model_of, steps_of
from onnx import helper

import lstm_engine as le
from lstm_engine import serving
from lstm_engine.serving import AsyncPool, AsyncStream

READINGS = NetCase(hidden=(17, 9), head="dense")
TOKENS = NetCase(vocabulary=11, hidden=(16,), head="dense_softmax")
LONG = 3600.0  # seconds that no test waits
LIMIT = 120.0  # seconds after which a test hangs


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, LIMIT))


def rows(case: NetCase, steps: int, seed: int = 0) -> list[np.ndarray]:
    """What a stream is fed, step by step, without batch axis."""
    return [feeds["x"][0] for feeds in steps_of(case, case.feeds(seed, steps, 1))]


def alone(case: NetCase, xs: list[np.ndarray]) -> list[np.ndarray]:
    """What a stream of its own makes of them."""
    stream = model_of(case).stream()
    return [np.reshape(stream.step(x), (case.outputs,)) for x in xs]


async def until(so: Callable[[], bool]) -> None:
    while not so():
        await asyncio.sleep(1e-3)


async def turns(count: int = 20) -> None:
    """Let everything that can go on without time passing go on."""
    for _ in range(count):
        await asyncio.sleep(0)


class Held:
    """A pool whose steps wait to be let: what gathers meanwhile is the test's to say."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.batches: list[list[int]] = []
        self._let = threading.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def __len__(self) -> int:
        return len(self._pool)

    def let(self, count: int = 1) -> None:
        self._let.release(count)

    def step(self, slots: list[int], X: Any) -> Any:
        self.batches.append(list(slots))
        assert self._let.acquire(timeout=LIMIT)
        return self._pool.step(slots, X)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """A held pool, of which no slot is open when the test is over."""
    monkeypatch.setattr(serving, "HOP", 0.0)  # every batch on the other thread
    pool = Held(model_of(READINGS).pool())
    yield pool
    assert len(pool) == 0
    assert not pool_threads()


def pool_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lstm_engine pool")]


@contextmanager
def nothing_unheard() -> Iterator[None]:
    """No task, future or coroutine that nobody listens to is left for the collector to complain about."""
    gc.collect()
    complaints: list[Any] = []
    hook, log = asyncio.BaseEventLoop.call_exception_handler, complaints.append
    asyncio.BaseEventLoop.call_exception_handler = lambda self, context: log(context)  # type: ignore[method-assign]
    try:
        yield
        gc.collect()
    finally:
        asyncio.BaseEventLoop.call_exception_handler = hook  # type: ignore[method-assign]
    assert not complaints


# --- what streams give ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hop", [0.0, 1e9], ids=["threads", "inline"])
@pytest.mark.parametrize("max_batch", [1, 3, 256])
@pytest.mark.parametrize("case", [READINGS, TOKENS, NetCase(hidden=(33,), head="dense", precision="int8")], ids=str)
def test_every_stream_gives_the_bits_of_a_stream_of_its_own(
    case: NetCase, max_batch: int, hop: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "HOP", hop)
    fed = {seed: rows(case, 5 + seed, seed) for seed in range(11)}

    async def client(pool: AsyncPool, xs: list[np.ndarray]) -> list[np.ndarray]:
        async with await pool.open() as stream:
            return [await stream.step(x) for x in xs]

    async def main() -> list[list[np.ndarray]]:
        async with AsyncPool(model_of(case), max_batch=max_batch) as pool:
            results = await asyncio.gather(*(client(pool, xs) for xs in fed.values()))
            assert len(pool) == 0
            assert len(pool.pool) == 0
            return results

    for got, xs in zip(run(main()), fed.values(), strict=True):
        for y, expected in zip(got, alone(case, xs), strict=True):
            assert_same_bits(y, expected)
            assert y.base is None  # it keeps no other client's row


def test_a_streams_requests_are_done_in_the_order_asked() -> None:
    """Steps, snapshots, resets and forks asked for at once, without waiting for any."""
    xs = rows(READINGS, 12)

    async def main() -> None:
        async with AsyncPool(model_of(READINGS)) as pool:
            stream = await pool.open()
            first = [asyncio.ensure_future(stream.step(x)) for x in xs[:6]]
            await asyncio.sleep(0)
            snapshot, twin = asyncio.ensure_future(stream.state()), asyncio.ensure_future(stream.fork())
            rest = [asyncio.ensure_future(stream.step(x)) for x in xs[6:]]
            again = [asyncio.ensure_future(stream.reset()), *(asyncio.ensure_future(stream.step(x)) for x in xs)]
            expected = alone(READINGS, xs)
            assert_same_bits(np.array(await asyncio.gather(*first, *rest)), np.array(expected))
            assert_same_bits(np.array((await asyncio.gather(*again))[1:]), np.array(expected))
            fork = await twin
            assert (fork.steps, stream.steps) == (6, 24)
            assert_same_bits(np.array([await fork.step(x) for x in xs[6:]]), np.array(expected[6:]))
            await stream.restore(await snapshot)
            assert_same_bits(np.array([await stream.step(x) for x in xs[6:]]), np.array(expected[6:]))

    run(main())


def test_several_inputs_and_outputs() -> None:
    arrays = builders.random_weights(3, 4)
    nodes = [
        helper.make_node("Add", ["a", "b"], ["x"]),
        helper.make_node("LSTM", ["x", "W", "R", "B"], ["y3"], hidden_size=4),
        helper.make_node("Squeeze", ["y3", "one"], ["y"]),
        helper.make_node("Neg", ["y"], ["z"]),
    ]
    arrays["one"] = np.array([1], np.int64)
    ends = [(name, np.float32, ["time", "batch", 4]) for name in ("y", "z")]
    ins = [(name, np.float32, ["time", "batch", 3]) for name in ("a", "b")]
    model = le.load(builders.make_model(nodes, ins, ends, arrays).SerializeToString())
    fed = [{"a": np.full(3, k, np.float32), "b": np.arange(3.0)} for k in range(4)]

    async def main() -> None:
        async with AsyncPool(model) as pool:
            streams = [await pool.open() for _ in fed]
            results = await asyncio.gather(*(stream.step(x) for stream, x in zip(streams, fed, strict=True)))
            for got, x in zip(results, fed, strict=True):
                expected = model.stream().step({name: value[None] for name, value in x.items()})
                assert_same_bits(got, {name: value[0] for name, value in expected.items()})
                assert all(y.base is None for y in got.values())
            with pytest.raises(le.InputError, match=r"'b.*missing"):
                await streams[0].step({"a": np.zeros(3)})
            with pytest.raises(le.InputError, match=r"expected \{name: array\}"):
                await streams[0].step(np.zeros(3))
            with pytest.raises(le.InputError, match="'c' is not an input"):
                await streams[0].step({"a": np.zeros(3), "b": np.zeros(3), "c": 0})

    run(main())


# --- batches ----------------------------------------------------------------------------------------------------------


def test_what_waits_while_a_batch_runs_is_the_next_batch(held: Held) -> None:
    async def main() -> None:
        async with AsyncPool(held) as pool:
            streams = [await pool.open() for _ in range(9)]
            xs = rows(READINGS, 2)
            first = asyncio.ensure_future(streams[0].step(xs[0]))
            await until(lambda: len(held.batches) == 1)
            rest = [asyncio.ensure_future(stream.step(xs[k])) for k in (0, 1) for stream in streams[1:]]
            await turns()
            assert len(held.batches) == 1
            held.let(3)
            await asyncio.gather(first, *rest)
            others = [stream.slot for stream in streams[1:]]
            assert held.batches == [[streams[0].slot], others, others]

    run(main())


def test_batches_are_bounded_and_nobody_is_passed_over(held: Held) -> None:
    async def main() -> None:
        async with AsyncPool(held, max_batch=2) as pool:
            streams = [await pool.open() for _ in range(5)]
            xs = rows(READINGS, 2)
            steps = [asyncio.ensure_future(stream.step(x)) for x in xs for stream in streams]
            held.let(10)
            await asyncio.gather(*steps)
            served = [[stream.slot for stream in streams].index(slot) for batch in held.batches for slot in batch]
            assert max(map(len, held.batches)) == 2
            assert sorted(served[:5]) == sorted(served[5:]) == [0, 1, 2, 3, 4]

    run(main())


def test_a_step_waits_for_company_but_not_for_more_than_all() -> None:
    async def main() -> None:
        async with AsyncPool(model_of(READINGS), max_delay=LONG) as pool:
            a, b = await pool.open(), await pool.open()
            x, *_ = rows(READINGS, 1)
            first = asyncio.ensure_future(a.step(x))
            await asyncio.sleep(0.02)
            assert not first.done()
            assert_same_bits(await b.step(x), await first)  # everyone waits: no reason to go on waiting
            await b.close()
            await a.step(x)  # the only one

    run(main())


def test_a_step_waits_for_company_no_longer_than_it_may() -> None:
    async def main() -> None:
        async with AsyncPool(model_of(READINGS), max_delay=0.03) as pool:
            stream, _idle = await pool.open(), await pool.open()
            x, *_ = rows(READINGS, 1)
            start = time.perf_counter()
            for _ in range(3):
                await stream.step(x)
            assert time.perf_counter() - start >= 3 * 0.02

    run(main())


def test_what_is_no_step_waits_for_nobody() -> None:
    async def main() -> None:
        async with AsyncPool(model_of(READINGS), max_delay=LONG) as pool:
            a, b, _idle = [await pool.open() for _ in range(3)]
            for _ in range(3):
                await a.state()
                await (await b.fork()).close()
            step = asyncio.ensure_future(a.step(rows(READINGS, 1)[0]))
            await asyncio.ensure_future(b.state())  # nor for that step, which came before it
            await step

    run(main())


def test_the_loop_lives_on_while_steps_keep_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that run on the loop's own thread let others have their turn between any two."""
    monkeypatch.setattr(serving, "HOP", 1e9)

    async def main() -> None:
        async with AsyncPool(model_of(READINGS)) as pool:
            stream = await pool.open()
            xs = rows(READINGS, 100)
            await stream.step(xs[0])
            steps = asyncio.gather(*(stream.step(x) for x in xs))
            seen = []
            while not steps.done():
                seen.append(stream.steps)
                await asyncio.sleep(0)
            assert len(set(seen)) >= 100

    run(main())


# --- back-pressure ----------------------------------------------------------------------------------------------------


def test_more_steps_than_may_wait_are_refused_at_once(held: Held) -> None:
    async def main() -> None:
        async with AsyncPool(held, max_waiting=3) as pool:
            a, b = await pool.open(), await pool.open()
            xs = rows(READINGS, 8)
            running = asyncio.ensure_future(a.step(xs[0]))
            await until(lambda: len(held.batches) == 1)
            waiting = [asyncio.ensure_future(s.step(x)) for s, x in ((a, xs[1]), (a, xs[2]), (b, xs[0]))]
            await turns()
            for stream in (a, b):
                with pytest.raises(le.BusyError, match="3 steps wait"):
                    await stream.step(xs[3])
            assert (await asyncio.gather(a.step([1]), return_exceptions=True))[0].__class__ is le.InputError
            held.let(20)
            await asyncio.gather(running, *waiting)
            got = [await a.step(x) for x in xs[3:]]  # there is room again, and the state is as it was
            assert_same_bits(np.array(got), np.array(alone(READINGS, xs)[3:]))

    run(main())


def test_what_is_cancelled_or_closed_makes_room(held: Held) -> None:
    async def main() -> None:
        async with AsyncPool(held, max_waiting=2) as pool:
            a, b = await pool.open(), await pool.open()
            x, *_ = rows(READINGS, 1)
            running = asyncio.ensure_future(a.step(x))
            await until(lambda: len(held.batches) == 1)
            for round in range(3):
                waiting = [asyncio.ensure_future(b.step(x)) for _ in range(2)]
                await turns()
                for task in waiting:
                    task.cancel()
                held.let()
                await asyncio.wait([running, *waiting])
                running = asyncio.ensure_future(a.step(x))
                await until(lambda: len(held.batches) == 2 + round)  # noqa: B023 (awaited here)
            waiting = [asyncio.ensure_future(b.step(x)) for _ in range(2)]
            await turns()
            closing = asyncio.ensure_future(b.close())
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(result) for result in results] == [le.StateError, le.StateError]
            waiting = [asyncio.ensure_future(a.step(x)) for _ in range(2)]
            held.let(3)
            await asyncio.gather(running, closing, *waiting)

    run(main())


# --- cancellation -----------------------------------------------------------------------------------------------------


def test_a_step_cancelled_before_its_batch_never_runs(held: Held) -> None:
    async def main() -> None:
        async with AsyncPool(held) as pool:
            stream = await pool.open()
            xs = rows(READINGS, 4)
            steps = [asyncio.ensure_future(stream.step(x)) for x in xs]
            await until(lambda: len(held.batches) == 1)
            steps[1].cancel()
            held.let(3)
            results = await asyncio.gather(*steps, return_exceptions=True)
            assert isinstance(results.pop(1), asyncio.CancelledError)
            assert_same_bits(np.array(results), np.array(alone(READINGS, [xs[0], *xs[2:]])))
            assert stream.steps == 3

    run(main())


def test_a_step_cancelled_in_its_batch_has_run(held: Held) -> None:
    async def main() -> None:
        async with AsyncPool(held) as pool:
            stream, other = await pool.open(), await pool.open()
            xs = rows(READINGS, 2)
            lost, kept = asyncio.ensure_future(stream.step(xs[0])), asyncio.ensure_future(other.step(xs[0]))
            await until(lambda: len(held.batches) == 1)
            lost.cancel()
            with pytest.raises(asyncio.CancelledError):  # without waiting for the batch
                await lost
            after = asyncio.ensure_future(stream.step(xs[1]))
            held.let(2)
            expected = alone(READINGS, xs)
            assert_same_bits(await after, expected[1])
            assert_same_bits(await kept, expected[0])
            assert (stream.steps, other.steps) == (2, 1)

    run(main())


@pytest.mark.parametrize("hop", [0.0, 1e9], ids=["threads", "inline"])
def test_a_client_may_be_cancelled_at_any_point(hop: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is left, and a client beside it is none the wiser."""
    monkeypatch.setattr(serving, "HOP", hop)
    xs = rows(READINGS, 6)
    expected = np.array(alone(READINGS, xs))

    async def client(pool: AsyncPool, log: list[int]) -> None:
        async with await pool.open() as stream:
            await stream.step(xs[0])
            await asyncio.gather(*(stream.step(x) for x in xs[1:]))
            async with await stream.fork() as twin:
                await twin.restore(await stream.state())
                await asyncio.gather(twin.step(xs[0]), stream.step(xs[0]))
                await stream.reset()
            log.append(stream.steps)

    async def main() -> None:
        finished: list[int] = []
        point = 0
        async with AsyncPool(model_of(READINGS)) as pool:
            beside = await pool.open()
            while not finished:
                task = asyncio.ensure_future(client(pool, finished))
                other = [asyncio.ensure_future(beside.step(x)) for x in xs]
                for _ in range(point):
                    await asyncio.sleep(0)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                assert_same_bits(np.array(await asyncio.gather(*other)), expected)
                await beside.reset()
                assert len(pool) == len(pool.pool) == 1
                point += 1 if point < 60 else point // 8
        assert finished == [7]
        assert point > 8

    with nothing_unheard():
        run(main())


def test_a_stream_that_nobody_waits_for_any_more_is_not_opened(held: Held) -> None:
    async def main() -> None:
        async with AsyncPool(held) as pool:
            stream = await pool.open()
            x, *_ = rows(READINGS, 1)
            step = asyncio.ensure_future(stream.step(x))
            await until(lambda: len(held.batches) == 1)
            born = [asyncio.ensure_future(make()) for make in (pool.open, stream.fork)]
            await turns()
            for task in born:
                task.cancel()
            held.let()
            await asyncio.wait([step, *born])
            await stream.state()
            assert all(task.cancelled() for task in born)
            assert len(pool) == len(held) == 1

    run(main())


def test_closing_goes_on_when_the_closer_is_cancelled(held: Held) -> None:
    async def main() -> None:
        async with AsyncPool(held) as pool:
            stream, other = await pool.open(), await pool.open()
            x, *_ = rows(READINGS, 1)
            step = asyncio.ensure_future(stream.step(x))
            await until(lambda: len(held.batches) == 1)
            closing = asyncio.ensure_future(stream.close())
            await turns()
            closing.cancel()
            await asyncio.wait([closing])
            held.let()
            assert_same_bits(await step, alone(READINGS, [x])[0])  # it was in the batch
            await other.state()
            assert len(held) == 1
            with pytest.raises(le.StateError, match="closed"):
                await stream.close()
            for call in (stream.step(x), stream.state(), stream.reset(), stream.fork()):
                with pytest.raises(le.StateError, match="closed"):
                    await call

    run(main())


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_fault_is_the_fault_of_one() -> None:
    """Feeds that cannot be right are told at once; token ids that are none, when the batch runs."""
    model = model_of(TOKENS)

    async def main() -> None:
        async with AsyncPool(model) as pool:
            streams = [await pool.open() for _ in range(13)]
            tokens: list[Any] = [k % 11 for k in range(13)]
            bad: dict[int, Any] = {0: 11, 4: 0.5, 5: -1_000, 6: [1, 2], 11: 10**30, 12: "a"}
            for k, token in bad.items():
                tokens[k] = token
            results = await asyncio.gather(
                *(stream.step(token) for stream, token in zip(streams, tokens, strict=True)), return_exceptions=True
            )
            for k, result in enumerate(results):
                if k in bad:
                    assert isinstance(result, le.InputError), (k, result)
                    assert streams[k].steps == 0
                else:
                    assert_same_bits(result, np.reshape(model.stream().step(tokens[k]), -1))
            again = await asyncio.gather(*(stream.step(3) for stream in streams))
            for k, result in enumerate(again):
                lone = model.stream()
                if k not in bad:
                    lone.step(tokens[k])
                assert_same_bits(result, np.reshape(lone.step(3), -1))

    run(main())


def test_a_fault_of_the_whole_batch_is_tried_apart(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is: memory that is short for many may do for one."""
    step = held.step

    def short(slots: list[int], X: Any) -> Any:
        if len(slots) > 2:
            raise MemoryError
        held.let()
        return step(slots, X)

    monkeypatch.setattr(held, "step", short)

    async def main() -> None:
        async with AsyncPool(held) as pool:
            streams = [await pool.open() for _ in range(7)]
            x, *_ = rows(READINGS, 1)
            for got in await asyncio.gather(*(stream.step(x) for stream in streams)):
                assert_same_bits(got, alone(READINGS, [x])[0])
            foreign = await pool.open()
            with pytest.raises(le.StateError):
                await foreign.restore(model_of(TOKENS).stream().state)
            assert_same_bits(await foreign.step(x), alone(READINGS, [x])[0])

    run(main())


@pytest.mark.parametrize(
    "options", [{"max_batch": 0}, {"max_delay": -1.0}, {"max_delay": float("inf")}, {"max_waiting": 0}], ids=str
)
def test_limits_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(le.InputError, match=next(iter(options))):
        AsyncPool(model_of(READINGS), **options)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_leaving_lets_the_batch_end_and_fails_what_waits(held: Held) -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        async with AsyncPool(held) as pool:
            a, b = await pool.open(), await pool.open()
            xs = rows(READINGS, 2)
            running = asyncio.ensure_future(a.step(xs[0]))
            await until(lambda: len(held.batches) == 1)
            waiting: list[Awaitable[Any]] = [
                asyncio.ensure_future(call) for call in (a.step(xs[1]), b.step(xs[0]), a.fork(), b.state(), pool.open())
            ]
            await turns()
            threading.Timer(0.02, held.let).start()
        assert running.done()
        assert_same_bits(await running, alone(READINGS, xs)[0])
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, le.StateError)
        del running, waiting
        assert (len(held.batches), len(held), len(pool)) == (1, 0, 0)
        assert asyncio.all_tasks() == before
        assert not pool_threads()
        for call in (pool.open(), b.step(xs[0])):
            with pytest.raises(le.StateError, match="closed"):
                await call
        with pytest.raises(le.StateError, match="entered before"):
            await pool.__aenter__()

    with nothing_unheard():
        run(main())


def test_what_is_asked_while_the_pool_closes_is_refused(held: Held) -> None:
    async def main() -> None:
        pool = await AsyncPool(held, max_delay=LONG).__aenter__()
        a, _idle = await pool.open(), await pool.open()
        x, *_ = rows(READINGS, 1)
        waiting = asyncio.ensure_future(a.step(x))
        await turns()
        leaving = asyncio.ensure_future(pool.__aexit__())
        await asyncio.sleep(0)  # told, but not yet done
        assert len(pool) == 2
        for call in (a.close(), a.step(x), a.fork(), pool.open()):
            with pytest.raises(le.StateError, match="it is closed"):
                await call
        await leaving
        with pytest.raises(le.StateError, match="it is closed"):
            await waiting
        assert not held.batches

    with nothing_unheard():
        run(main())


def test_leaving_by_an_error_or_a_cancel_closes_too(held: Held) -> None:
    async def erring(pool: AsyncPool) -> None:
        async with pool:
            await pool.open()
            raise ZeroDivisionError

    async def failing(pool: AsyncPool, entered: list[AsyncStream]) -> None:
        async with pool:
            entered.append(await pool.open())
            x, *_ = rows(READINGS, 1)
            await entered[0].step(x)

    async def main() -> None:
        before = asyncio.all_tasks()
        with pytest.raises(ZeroDivisionError):
            await erring(AsyncPool(held))
        assert len(held) == 0
        entered: list[AsyncStream] = []
        task = asyncio.ensure_future(failing(AsyncPool(held), entered))
        await until(lambda: len(held.batches) == 1)
        task.cancel()
        await turns()
        assert not task.done()  # the batch runs on, and is waited for
        held.let()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == before

    with nothing_unheard():
        run(main())


def test_a_loop_that_ends_leaves_nothing_behind(held: Held) -> None:
    """Without the block being left: the loop's runner cancels all tasks, in no particular order."""

    async def main() -> None:
        pool = await AsyncPool(held).__aenter__()
        streams = [await pool.open() for _ in range(3)]
        xs = rows(READINGS, 2)
        lost.extend(asyncio.ensure_future(stream.step(x)) for x in xs for stream in streams)
        await until(lambda: len(held.batches) == 1)
        threading.Timer(0.02, held.let).start()

    lost: list[asyncio.Future[Any]] = []
    with nothing_unheard():
        run(main())
        assert all(task.done() for task in lost)
        assert len(held) == 0
        assert not pool_threads()


def test_a_gathering_task_that_is_cancelled_ends_the_pool(held: Held) -> None:
    async def main() -> None:
        async with AsyncPool(held) as pool:
            a, b = await pool.open(), await pool.open()
            x, *_ = rows(READINGS, 1)
            steps = [asyncio.ensure_future(stream.step(x)) for stream in (a, b, b)]
            await until(lambda: len(held.batches) == 1)
            (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "lstm_engine pool")
            task.cancel()
            threading.Timer(0.02, held.let).start()
            for result in await asyncio.gather(*steps, return_exceptions=True):
                assert isinstance(result, le.StateError)
            with pytest.raises(le.StateError, match="closed"):
                await a.step(x)

    with nothing_unheard():
        run(main())


def test_it_belongs_to_one_loop_and_one_block() -> None:
    async def elsewhere(stream: AsyncStream) -> None:
        with pytest.raises(le.StateError, match="another event loop"):
            await stream.state()

    async def main() -> None:
        with pytest.raises(le.StateError, match="async with"):
            await AsyncPool(model_of(READINGS)).open()
        async with AsyncPool(model_of(READINGS)) as pool:
            stream = await pool.open()
            await asyncio.to_thread(lambda: asyncio.run(elsewhere(stream)))

    run(main())


# --- a server ---------------------------------------------------------------------------------------------------------


def test_the_server_of_the_documentation() -> None:
    """Clients talk to it over TCP at once, and each gets the numbers of a stream of its own."""
    text = serving.__doc__ or ""
    code = textwrap.dedent(text[text.index("    async with") :])
    program = compile(code, "serving.__doc__", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, Any] = {"asyncio": asyncio, "AsyncPool": AsyncPool, "model": model_of(READINGS), "port": 0}

    async def client(port: int, xs: list[np.ndarray]) -> list[list[float]]:
        reader, writer = await asyncio.open_connection("localhost", port)
        got = []
        for x in xs:
            writer.write(json.dumps(x.tolist()).strip("[]").replace(",", " ").encode() + b"\n")
            got.append([float(number) for number in (await reader.readline()).split()])
        writer.close()
        await writer.wait_closed()
        return got

    async def main() -> None:
        server = asyncio.ensure_future(eval(program, names))
        await until(lambda: "server" in names or server.done())
        port = names["server"].sockets[0].getsockname()[1]
        fed = [rows(READINGS, 3 + seed, seed) for seed in range(8)]
        for got, xs in zip(await asyncio.gather(*(client(port, xs) for xs in fed)), fed, strict=True):
            assert_same_bits(np.array(got, np.float32), np.array(alone(READINGS, xs)))
        await until(lambda: len(names["pool"]) == 0)
        server.cancel()
        await asyncio.wait([server])
        assert server.cancelled()

    run(main())
