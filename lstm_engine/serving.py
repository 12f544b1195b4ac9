"""AsyncPool: the steps that clients of an event loop wait for, gathered into batched ones.

A batch is made of what waits at the moment it begins; while it runs, the next one gathers (continuous batching). So a
busy server computes large batches without waiting for any, and a lone client never waits for company.

    async with AsyncPool(model) as pool:

        async def serve(reader, writer):  # a line of numbers in, a line of predictions out
            async with await pool.open() as stream:
                while line := await reader.readline():
                    y = await stream.step([float(number) for number in line.split()])
                    writer.write(" ".join(map(str, y)).encode() + b"\\n")
                    await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "localhost", port)
        async with server:
            await server.serve_forever()
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .errors import BusyError, InputError, StateError, UnsupportedModelError, listed
from .feeds import converted, shown, step_feeds
from .graph import TensorSpec
from .model import Model

if TYPE_CHECKING:
    from .pool import StreamPool
    from .state import State

#: Seconds: a batch that is expected to take less runs on the loop's own thread, since a hop to another takes as long.
HOP: Final = 2e-4
_ENDED: Final = "AsyncPool: it is closed"


class AsyncPool:
    """Streams of one model, stepped together; for one event loop, and for use in ``async with``.

    Takes a model, or a StreamPool that nothing else uses meanwhile. ``max_batch``: most streams a batched step.
    ``max_delay``: seconds that a step may wait for company; it does not where all open streams wait already, and what
    came while a batch ran has waited. ``max_waiting``: most steps that may wait for their batch; one more is a
    BusyError at once (None: callers wait for their turn).

    Leaving the block lets the batch that runs end; what waits then is a StateError, and all streams are closed.
    """

    def __init__(
        self,
        model: Model | StreamPool,
        *,
        max_batch: int = 256,
        max_delay: float = 0.0,
        max_waiting: int | None = None,
    ) -> None:
        faults = [f"max_batch={max_batch!r}: expected a positive number"] if not max_batch >= 1 else []
        if not 0 <= max_delay < math.inf:
            faults.append(f"max_delay={max_delay!r}: expected seconds, 0 or more")
        if max_waiting is not None and not max_waiting >= 1:
            faults.append(f"max_waiting={max_waiting!r}: expected a positive number or None")
        if faults:
            raise InputError(listed("AsyncPool", faults))
        self.pool: StreamPool = model.pool() if isinstance(model, Model) else model
        if faults := [f"'{spec}' may be of any size" for spec in self.pool.inputs if None in (spec.shape or ())]:
            raise UnsupportedModelError(listed("AsyncPool: rows of a batch are of one size", faults))
        self._max_batch, self._max_delay = max_batch, max_delay
        self._max_waiting = math.inf if max_waiting is None else max_waiting
        self._streams: set[AsyncStream] = set()  # the open ones
        self._ready: deque[AsyncStream] = deque()  # those with requests, but for those in the batch
        self._batch: list[tuple[AsyncStream, _Request]] = []
        self._waiting = 0  # steps in queues; the cancelled ones among them until it is their turn
        self._seconds = math.inf  # that the last batch took for each of its steps
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def __repr__(self) -> str:
        return f"AsyncPool({len(self._streams)} streams, {self._waiting} steps waiting)"

    def __len__(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    async def __aenter__(self) -> AsyncPool:
        if self._task is not None:
            raise StateError("AsyncPool: it has been entered before; make another")
        self._loop = asyncio.get_running_loop()
        self._sign = asyncio.Event()  # that the gathering task should look
        self._thread = ThreadPoolExecutor(1, "lstm_engine pool")
        self._task = self._loop.create_task(self._gather(), name="lstm_engine pool")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._ended = True
        self._sign.set()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.result()

    async def open(self) -> AsyncStream:
        """A new stream, at its initial state. Close it, or use it in ``async with``, to give its slot back."""
        self._check_usable()
        stream = AsyncStream(self)
        return await self._born(stream, stream, self.pool.open)

    async def _born(self, parent: AsyncStream, stream: AsyncStream, slot: Callable[[], int]) -> AsyncStream:
        """A stream with a slot of its own, which is closed again if the caller was cancelled meanwhile."""

        def born() -> None:
            stream.slot = slot()
            self._streams.add(stream)

        try:
            await self._put(parent, act=born)
        except asyncio.CancelledError:
            if stream in self._streams and not self._ended:
                stream._close()
            raise
        return stream

    def _check_usable(self) -> None:
        """Raises StateError outside the block, or in another event loop."""
        if self._task is None or self._ended:
            raise StateError(_ENDED if self._ended else "AsyncPool: use it in `async with`")
        if asyncio.get_running_loop() is not self._loop:
            raise StateError("AsyncPool: it belongs to another event loop")

    # --- requests ----------------------------------------------------------------------------------------------------

    def _put(
        self, stream: AsyncStream, feeds: Feeds | None = None, act: Callable[[], Any] | None = None
    ) -> asyncio.Future[Any]:
        """Have a request wait for its turn."""
        if feeds is not None and self._waiting >= self._max_waiting:
            raise BusyError(f"AsyncPool: {self._waiting} steps wait already (max_waiting); try again later")
        self._waiting += feeds is not None
        now = self._loop.time()
        request = _Request(self._loop.create_future(), now if feeds is None else now + self._max_delay, feeds, act)
        stream._queue.append(request)
        if not stream._busy:
            stream._busy = True
            if feeds is None:
                self._ready.appendleft(stream)
            else:
                self._ready.append(stream)
        if not self._sign.is_set() and (feeds is None or len(self._ready) == 1 or self._complete()):
            self._sign.set()
        return request.future

    def _complete(self) -> bool:
        """Whether waiting brings no more company."""
        return len(self._ready) >= min(self._max_batch, len(self._streams))

    # --- the gathering task ------------------------------------------------------------------------------------------

    async def _gather(self) -> None:
        try:
            while True:
                await self._company()
                if self._ended:
                    break
                self._take()
                if self._batch:
                    await self._step()
        finally:  # without waiting, since the loop may be at its end
            self._ended = True
            self._thread.shutdown()  # a batch that still runs ends first
            self._end()

    async def _company(self) -> None:
        """Wait until something waits, and as long as company may come and is worth it."""
        await asyncio.sleep(0)  # those whose steps have just ended may have more
        if not self._ready:
            await self._signed()
        due = self._ready[0]._queue[0].due if self._ready else 0.0
        if not self._complete() and self._loop.time() < due:
            timer = self._loop.call_at(due, self._sign.set)
            await self._signed()
            timer.cancel()

    async def _signed(self) -> None:
        self._sign.clear()
        if not self._ended:
            await self._sign.wait()

    def _take(self) -> None:
        """Of each stream the next step, up to a batch; whoever does not get in is the first next time."""
        for _ in range(len(self._ready)):
            if len(self._batch) == self._max_batch:
                break
            stream = self._ready.popleft()
            request = self._next_step(stream)
            if request is not None:
                self._batch.append((stream, request))
            else:
                stream._busy = False

    def _next_step(self, stream: AsyncStream) -> _Request | None:
        """A stream's next step that nobody has cancelled; what is asked for before it is done at once."""
        while stream._queue:
            request = stream._queue.popleft()
            self._waiting -= request.feeds is not None
            if request.future.cancelled():
                continue
            if request.act is None:
                return request
            try:
                request.future.set_result(request.act())
            except Exception as fault:
                request.settle(fault)
        return None

    async def _step(self) -> None:
        """Run the batch; every caller gets its row, or its own fault."""
        slots = [stream.slot for stream, _ in self._batch]
        X = _stacked(self.pool.inputs, [request.feeds or {} for _, request in self._batch])
        if self._seconds * len(slots) < HOP:
            rows = self._rows(slots, X)
        else:
            rows = await self._loop.run_in_executor(self._thread, self._rows, slots, X)
        for (stream, request), row in zip(self._batch, rows, strict=True):
            stream.steps += not isinstance(row, Exception)
            request.settle(row)
            stream._busy = bool(stream._queue)
            if stream._busy:
                self._ready.append(stream)
        self._batch = []

    def _rows(self, slots: Sequence[int], X: Feeds) -> list[Any]:
        """What each stream of a batch gets. A fault costs only those whose step fails on its own."""
        start = perf_counter()
        try:
            Y = self.pool.step(slots, X if len(X) > 1 else next(iter(X.values())))
        except Exception as fault:
            if len(slots) == 1:
                return [fault]
            half = len(slots) // 2
            first, second = ({name: x[part] for name, x in X.items()} for part in (slice(half), slice(half, None)))
            return self._rows(slots[:half], first) + self._rows(slots[half:], second)
        self._seconds = (perf_counter() - start) / len(slots)
        if isinstance(Y, Mapping):  # rows are copies: one that is kept keeps no other client's numbers
            return [{name: y[k, ...].copy() for name, y in Y.items()} for k in range(len(slots))]
        return [Y[k, ...].copy() for k in range(len(slots))]

    def _end(self) -> None:
        """Nobody waits any longer, no slot stays open."""
        for _, request in self._batch:
            request.settle(StateError(_ENDED))
        for stream in (*self._ready, *self._streams):
            stream._fail(_ENDED)
        for stream in self._streams:
            stream.closed = True
            self.pool.close(stream.slot)
        self._batch, self._waiting = [], 0
        self._ready.clear()
        self._streams.clear()


class AsyncStream:
    """One stream of an AsyncPool. What is asked of it is done in the order asked, each step in a batch of its own.

    A step that is cancelled before its batch begins never runs. Later it does run, and only its result is dropped:
    ``steps`` counts those that have run, and is settled when a later call (``await stream.state()``, say) returns.
    """

    __slots__ = ("_busy", "_queue", "closed", "pool", "slot", "steps")

    def __init__(self, pool: AsyncPool) -> None:
        self.pool = pool
        self.slot = -1
        self.steps = 0  # that have run, in this stream or before it was forked
        self.closed = False
        self._queue: deque[_Request] = deque()
        self._busy = False  # in the pool's line, or in the batch that runs

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        if not (self.closed or self.pool._ended):
            await self.close()

    async def step(self, x: Any) -> Any:
        """One time step: the model's input without time and batch axes; several inputs as {name: array}.

        Returns the output without time and batch axes; {name: array} where there are several. The bits are those of
        a Stream of its own, whoever shares the batch.

        Raises InputError, BusyError, StateError; the state is then as it was.
        """
        self._check_open()
        return await self.pool._put(self, _checked(self.pool.pool.inputs, x))

    async def feed(self, chunk: Any) -> Any:
        """Any number of steps at once, between two batches: what StreamPool.feed() takes and gives for one slot.

        Raises InputError, StateError; the state is then as it was.
        """

        def fed() -> Any:
            (y,) = self.pool.pool.feed([self.slot], [chunk])
            self.steps += len(next(iter(y.values())) if isinstance(y, Mapping) else y)
            return y

        return await self._do(fed)

    async def reset(self) -> None:
        """Back to the initial state."""
        await self._do(lambda: self.pool.pool.reset(self.slot))

    async def state(self) -> State:
        """A snapshot, after the steps asked for so far."""
        state: State = await self._do(lambda: self.pool.pool.state(self.slot))
        return state

    async def restore(self, state: State) -> None:
        """Go on from a snapshot."""
        await self._do(lambda: self.pool.pool.restore(self.slot, state))

    async def fork(self) -> AsyncStream:
        """Another stream, at the state after the steps asked for so far."""
        self._check_open()
        twin = AsyncStream(self.pool)

        def forked() -> int:
            twin.steps = self.steps
            return self.pool.pool.fork(self.slot)

        return await self.pool._born(self, twin, forked)

    async def close(self) -> None:
        """Give the slot back. Steps that wait are a StateError; one in the batch that runs ends first."""
        self._check_open()
        await asyncio.shield(self._close())  # whoever is cancelled here: it is closed all the same

    def _close(self) -> asyncio.Future[Any]:
        self.closed = True
        self.pool._waiting -= self._fail("stream: it has been closed")
        return self.pool._put(self, act=self._closed)

    def _closed(self) -> None:
        self.pool._streams.discard(self)
        self.pool.pool.close(self.slot)

    def _check_open(self) -> None:
        if self.closed:
            raise StateError("stream: it is closed; open another")
        self.pool._check_usable()

    async def _do(self, act: Callable[[], Any]) -> Any:
        self._check_open()
        return await self.pool._put(self, act=act)

    def _fail(self, why: str) -> int:
        """Nothing waits any longer; how many steps did."""
        for request in self._queue:
            request.settle(StateError(why))
        steps = sum(request.feeds is not None for request in self._queue)
        self._queue.clear()
        return steps


Feeds = Mapping[str, np.ndarray]


@dataclass(slots=True, eq=False)
class _Request:
    """A step, of ``feeds``, or an ``act`` between batches; who waits for it; ``due``: when to go without company."""

    future: asyncio.Future[Any]
    due: float
    feeds: Feeds | None
    act: Callable[[], Any] | None

    def settle(self, outcome: Any) -> None:
        if self.future.done():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


def _checked(specs: Sequence[TensorSpec], x: Any) -> Feeds:
    """A stream's feeds of one step, right in dtype and shape."""
    named, arrays, faults = step_feeds("step", specs, x), {}, []
    for spec in specs:
        if spec.name in named:
            try:
                arrays[spec.name] = _fitted(spec, named[spec.name])
            except InputError as fault:
                faults.append(str(fault))
    if faults:
        raise InputError(listed("step", faults))
    return arrays


def _fitted(spec: TensorSpec, value: Any) -> np.ndarray:
    array, shape = converted(spec, value), spec.shape or ()
    if array.shape == shape:
        return array
    if array.ndim == 0 and all(size == 1 for size in shape):
        return array.reshape((1,) * len(shape))
    raise InputError(f"'{spec}': expected shape {shown(shape)}, got {list(array.shape)}")


def _stacked(specs: Sequence[TensorSpec], feeds: Sequence[Feeds]) -> dict[str, np.ndarray]:
    """The feeds of a batch, a row a stream; what a stream leaves out is zeros."""
    stacked = {}
    for spec in specs:
        shape = len(feeds), *map(int, spec.shape or ())  # type: ignore[arg-type]  # (none is of any size)
        stacked[spec.name] = rows = np.zeros(shape, spec.dtype)
        for k, feed in enumerate(feeds):
            if spec.name in feed:
                rows[k] = feed[spec.name]
    return stacked
