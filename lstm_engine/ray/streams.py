"""RayPool: streams that live on actors of a Ray cluster, and survive them.

    pool = RayPool(model, actors=4)
    stream = pool.open("turbine 7")
    y = stream.step(x)

A stream is found by its key from every process that holds the pool. A client keeps what it has sent since the last
snapshot; where an actor is lost, the stream goes on from there on another, and is sent again what came behind: what it
gives is, bit by bit, what it would have given.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from ..errors import StateError
from ..generation import Sampler
from ..generation.stops import Stop
from ..generation.tokens import Ids
from ..model import Model
from ..state import State
from .clients import NAMESPACE, AsyncRayPool, AsyncRayStream, Drawn

T = TypeVar("T")


class RayPool:
    """Streams of one model on actors of a Ray cluster, each an AsyncPool of its own; for callers that block.

    ``model``: goes into the cluster once. ``name``: what attach() finds the pool by. ``actors``: how many; one a node
    without. ``snapshot_every``: steps of a stream between two snapshots: clients keep up to two times so many inputs,
    which a stream that is lost makes again. ``store``: where snapshots go; without, actors on two nodes hold them.
    ``max_batch``: streams of a batched step. ``num_cpus``: of an actor. ``detached``: the pool outlives this process,
    until shutdown(). ``lease``: seconds after which an actor that cannot be reached is given up. ``patience``: seconds
    after which a call that nobody answers is a ClusterError. ``namespace``: Ray's, of the actors.

    May be used by many threads at once. In ``with``, a pool that is not detached is shut down in the end.

    Raises ClusterError where the actors do not come on duty, InputError for keywords out of range.
    """

    def __init__(self, model: Model, **options: Any) -> None:
        self._begin(AsyncRayPool.start(model, **options))

    @classmethod
    def attach(cls, name: str, *, namespace: str = NAMESPACE, patience: float = 60.0) -> RayPool:
        """The pool that another process started under this name. Raises ClusterError where there is none."""
        pool = cls.__new__(cls)
        pool._begin(AsyncRayPool.attach(name, namespace=namespace, patience=patience))
        return pool

    def _begin(self, made: Coroutine[Any, Any, AsyncRayPool]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lstm_engine RayPool", daemon=True)
        self._thread.start()
        try:
            self._pool = self._run(made)
        except BaseException:
            self._end()
            raise

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            coroutine.close()
            raise StateError("RayPool: it is closed")
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __repr__(self) -> str:
        return f"RayPool({self._pool.name!r}, {len(self._pool.roster.joined)} actors)"

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._pool.__aexit__())
        self.close()

    @property
    def name(self) -> str:
        """What attach() finds it by."""
        return self._pool.name

    def open(self, key: str) -> RayStream:
        """As AsyncRayPool.open()."""
        return RayStream(self, self._run(self._pool.open(key)))

    def open_all(self, keys: Sequence[str]) -> list[RayStream]:
        """open() of each of several keys, side by side."""

        async def opened() -> list[AsyncRayStream]:
            return [*await asyncio.gather(*map(self._pool.open, keys))]

        return [RayStream(self, stream) for stream in self._run(opened())]

    def step(self, streams: Sequence[RayStream], X: Sequence[Any]) -> list[Any]:
        """As AsyncRayPool.step()."""
        return self._run(self._pool.step([stream._stream for stream in streams], X))

    def scale(self, actors: int) -> None:
        """As AsyncRayPool.scale()."""
        self._run(self._pool.scale(actors))

    def move(self, key: str, actor: str) -> None:
        """As AsyncRayPool.move()."""
        self._run(self._pool.move(key, actor))

    def actors(self) -> list[str]:
        """The names of those on duty."""
        return self._run(self._pool.actors())

    def home(self, key: str) -> str | None:
        """The actor that a stream lives on, were it opened now."""
        return self._run(self._pool.home(key))

    def close(self) -> None:
        """Leave the pool, which goes on for others; one that is not detached ends with the process that made it."""
        if not self._loop.is_closed():
            self._end()

    def shutdown(self) -> None:
        """End the pool's actors for every client, and leave it. What a store of your own holds stays."""
        self._run(self._pool.shutdown())
        self.close()


class RayStream:
    """A stream of a RayPool; its methods are AsyncRayStream's, and block. Calls of threads wait for each other."""

    def __init__(self, pool: RayPool, stream: AsyncRayStream) -> None:
        self.pool, self._stream = pool, stream

    def __repr__(self) -> str:
        return repr(self._stream).replace("AsyncRayStream", "RayStream")

    def __enter__(self) -> RayStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def key(self) -> str:
        """What it is found by."""
        return self._stream.key

    @property
    def steps(self) -> int:
        """How many it has made."""
        return self._stream.steps

    @property
    def kept(self) -> int:
        """Requests that are kept to be sent again."""
        return self._stream.kept

    def step(self, x: Any, *, number: int | None = None) -> Any:
        """As AsyncRayStream.step()."""
        return self.pool._run(self._stream.step(x, number=number))

    def feed(self, chunk: Any) -> Any:
        """As AsyncRayStream.feed()."""
        return self.pool._run(self._stream.feed(chunk))

    def generate(
        self,
        prompt: str | Ids | None = None,
        *,
        max_tokens: int | None = None,
        sampler: Sampler | None = None,
        stop: Stop = None,
        after: int | None = None,
        piece: int = 8,
    ) -> Iterator[Drawn]:
        """As AsyncRayStream.generate()."""
        pieces = self._stream._pieces(prompt, max_tokens, sampler, stop, after, piece)
        while True:
            drawn = self.pool._run(_next(pieces))
            if drawn is None:
                return
            yield from drawn

    def state(self) -> State:
        """As AsyncRayStream.state()."""
        return self.pool._run(self._stream.state())

    def restore(self, state: State) -> None:
        """As AsyncRayStream.restore()."""
        self.pool._run(self._stream.restore(state))

    def reset(self) -> None:
        """As AsyncRayStream.reset()."""
        self.pool._run(self._stream.reset())

    def close(self) -> None:
        """As AsyncRayStream.close()."""
        self.pool._run(self._stream.close())

    def drop(self) -> None:
        """As AsyncRayStream.drop()."""
        self.pool._run(self._stream.drop())

    def settle(self) -> Any:
        """As AsyncRayStream.settle()."""
        return self.pool._run(self._stream.settle())


async def _next(pieces: AsyncIterator[list[Drawn]]) -> list[Drawn] | None:
    async for drawn in pieces:
        return drawn
    return None
