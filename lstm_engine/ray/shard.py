"""Shard: the actor that streams live on; an AsyncPool, so that requests which arrive together are one batched step.

Each stream counts its steps, and a request says which step it is. One that was taken in already is answered again and
not run again; one too far ahead tells the client to send again what the stream has not seen. A snapshot is taken when
a request arrives, and so never covers an answer that the client may not have; where one must (a stream that moves, or
gets another client), the answer is part of it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

import numpy as np
import ray
from ray.exceptions import ActorDiedError

from ..errors import InputError, LstmEngineError, StateError
from ..generation import Sampler
from ..generation.tokens import TokenModel, rows_for
from ..serving import AsyncPool, AsyncStream
from ..state import State
from .asks import Answer, Ask, Do, Drawing, Is, packed, unpacked
from .records import Record, Reply
from .rosters import Grant, Report, Roster, warden_name
from .stores import Store
from .writing import Writer

_LOG: Final = logging.getLogger(__name__)
_BEATS: Final = 6  # renewals in the time of a lease
_UNSETTLED: Final = 0.03  # seconds between them while a roster settles
RECALLED: Final = 256  # drawn tokens that a stream remembers
_TOKENS: Final = "tokens"  # the name of drawn tokens among a reply's outputs


@dataclass(frozen=True)
class Settings:
    """What a pool was made with. ``lease``: seconds; ``timeout``: seconds that a request waits for the store."""

    name: str
    namespace: str
    snapshot_every: int
    max_batch: int
    threads: int
    lease: float
    timeout: float


@dataclass(eq=False)
class Held:
    """A stream that lives here. ``captured``: step of the last snapshot, ``durable``: of the last in the
    store, which has ``number``."""

    key: str
    epoch: int
    session: str
    stream: AsyncStream
    lock: asyncio.Lock
    steps: int = 0
    captured: int = 0
    durable: int = -1
    number: int = -1
    reply: Reply | None = None
    sampler: Sampler | None = None
    drawn: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=RECALLED))
    safe: asyncio.Event = field(default_factory=asyncio.Event)

    def kept(self, record: Record) -> None:
        """The store has it as it stood then."""
        self.number = max(self.number, record.number)
        self.durable = max(self.durable, record.steps)
        self.safe.set()

    def answer(self, outputs: Mapping[str, np.ndarray] | None = None, value: Any = None) -> Answer:
        """What a client is told."""
        said = _plain(outputs) if outputs is not None else value
        return Answer(Is.DONE, said, self.steps, self.durable)


class _NotNow(Exception):  # noqa: N818 (it is no error, and says when to come again)
    """The request is to be made again."""


class Shard:
    """See above. ``member``: its name in the pool's roster."""

    def __init__(self, member: str, store: Store, settings: Settings) -> None:
        self.member, self.store, self.settings = member, store, settings
        self.incarnation = uuid.uuid4().hex
        self.node = ray.get_runtime_context().get_node_id()
        self.roster = Roster()
        self.settled = False
        self.joined: int | None = None
        self.seen = -1
        self.serves_until = -1.0
        self.held: dict[str, Held] = {}
        self.leaving: set[str] = set()  # keys of those whose home is elsewhere by now
        self.writer = Writer(store)
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._begun: asyncio.Task[None] | None = None
        self._tokens: TokenModel | None = None

    # --- beginning ---------------------------------------------------------------------------------------------------

    async def wake(self) -> None:
        """Begin, where that has not been done."""
        if self._begun is None or failed(self._begun):
            self._begun = asyncio.get_running_loop().create_task(self._begin())
        await asyncio.shield(self._begun)

    async def _begin(self) -> None:
        name, namespace = warden_name(self.settings.name), self.settings.namespace
        self._warden = await asyncio.to_thread(ray.get_actor, name, namespace)
        (reference,) = await self._warden.parcel.remote()
        parcel = await reference
        model = await asyncio.to_thread(parcel.model, self.settings.threads)
        pool = await asyncio.to_thread(model.pool)
        self.pool = AsyncPool(pool, max_batch=self.settings.max_batch)
        await self.pool.__aenter__()
        gc.freeze()  # what has been imported stays: looking through it again and again would take as long as the steps
        self._renewing = asyncio.get_running_loop().create_task(self._renew())

    # --- being on duty -----------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        """Keep the lease, as long as there is a pool."""
        while True:
            try:
                await self._renewed()
            except ActorDiedError:  # for good: the pool is no more
                ray.kill(ray.get_runtime_context().current_actor)
                return
            except Exception:  # the warden is on its way to another node, or has trouble with the store: ask again
                _LOG.debug("actor %s has no lease", self.member, exc_info=True)
                await asyncio.sleep(_UNSETTLED)
                continue
            await asyncio.sleep(self.settings.lease / _BEATS if self.settled else _UNSETTLED)

    async def _renewed(self) -> None:
        """Ask for a lease, which counts from when it was asked for, and act by the roster that comes with it."""
        asked = time.monotonic()
        joined = self.joined if asked < self.serves_until else None
        report = Report(self.member, self.incarnation, self.node, self.seen, joined)
        grant = await asyncio.wait_for(self._warden.renew.remote(report), self.settings.lease)
        if grant is None:
            await self._adopt(Roster(self.roster.number), False)
        else:
            await self._granted(grant, asked)

    async def _granted(self, grant: Grant, asked: float) -> None:
        joined = grant.roster.joined.get(self.member)
        if self.joined is not None and joined is not None and joined != self.joined:
            await self._forget()  # others may have had these streams meanwhile
        self.serves_until = asked + self.settings.lease
        self.joined = joined
        if grant.roster.number != self.seen:
            await self._adopt(grant.roster, grant.settled)
        self.settled = grant.settled

    async def _adopt(self, roster: Roster, settled: bool) -> None:
        """Act by a roster: hand over whose home is elsewhere."""
        self.roster, self.settled = roster, settled
        self.leaving = {key for key in self.held if roster.home(key) != self.member}
        await asyncio.gather(*(self._hand_over(self.held[key]) for key in self.leaving))
        self.seen = roster.number

    async def _hand_over(self, held: Held) -> None:
        async with held.lock:
            if self.held.get(held.key) is held:
                with suppress(_NotNow):  # the last snapshot it is then, and clients send again what came behind
                    await self._make_durable(held)
                await self._let_go(held)

    async def _forget(self) -> None:
        for held in [*self.held.values()]:
            async with held.lock:
                await self._let_go(held)

    async def _let_go(self, held: Held) -> None:
        if self.held.get(held.key) is held:
            del self.held[held.key]
            await held.stream.close()

    def _on_duty(self, key: str) -> bool:
        if time.monotonic() >= self.serves_until:
            return False
        return key not in self.leaving if key in self.held else self.roster.home(key) == self.member

    # --- requests ----------------------------------------------------------------------------------------------------

    async def serve(self, asks: bytes) -> bytes:
        """Answers to requests, in their order; those of different streams run side by side."""
        await self.wake()
        return packed([*await asyncio.gather(*map(self._answer, unpacked(asks)))])

    async def generating(self) -> TokenModel:
        """How the model generates. Raises InputError where it does not."""
        await self.wake()
        return self.tokens

    async def streams(self) -> list[str]:
        """Keys of the streams that live here."""
        return [*self.held]

    async def process(self) -> tuple[str, int]:
        """The node that this runs on, and the process."""
        return self.node, os.getpid()

    async def _answer(self, ask: Ask) -> Answer:
        if not self._on_duty(ask.key):
            return Answer(Is.LATER, f"actor {self.member} is not its home, or not on duty")
        lock = self._locks.setdefault(ask.key, asyncio.Lock())
        try:
            async with lock:
                answer = await self._done(ask, lock)
        except _NotNow as why:
            return Answer(Is.LATER, str(why))
        except LstmEngineError as fault:
            held = self.held.get(ask.key)
            return Answer(Is.FAULT, fault, 0 if held is None else held.steps, -1 if held is None else held.durable)
        if not self._on_duty(ask.key):  # it may live elsewhere by now; what was computed is not said
            return Answer(Is.LATER, f"actor {self.member} is not on duty any more")
        return answer

    async def _done(self, ask: Ask, lock: asyncio.Lock) -> Answer:
        held = self.held.get(ask.key)
        if ask.do in (Do.OPEN, Do.RESUME):
            return await self._opened(held, ask, lock)
        if held is None:
            return await self._dropped(ask) if ask.do is Do.DROP else Answer(Is.ABSENT)
        if held.session != ask.session:
            raise another_client(ask.key)
        if ask.do in (Do.STEP, Do.FEED, Do.DRAW):
            return await self._advance(held, ask)
        if ask.do is Do.STATE:
            return held.answer(value=(await self._state(held)).to_bytes())
        if ask.do is Do.RESTORE:
            await self._restored(held, ask.value)
        elif ask.do is Do.CLOSE:
            await self._make_durable(held)
            await self._let_go(held)
        elif ask.do is Do.DROP:
            await self._make_durable(held)  # nothing of it is on its way to the store any more
            await self._let_go(held)
            return await self._dropped(ask)
        return held.answer()

    async def _dropped(self, ask: Ask) -> Answer:
        data = await self._stored("get", ask.key)
        if data is not None:
            if Record.from_bytes(data).session != ask.session:
                raise another_client(ask.key)
            await self._stored("drop", ask.key)
        return Answer(Is.DONE)

    # --- opening -----------------------------------------------------------------------------------------------------

    async def _opened(self, held: Held | None, ask: Ask, lock: asyncio.Lock) -> Answer:
        """The stream of a key, from here, from the store or new, as the client's own."""
        if held is None:
            held = await self._begun_here(ask, lock)
        elif ask.do is Do.RESUME and held.session != ask.session:
            raise another_client(ask.key)
        held.session = ask.session
        if held.number < 0 or ask.do is Do.OPEN:
            await self._make_durable(held)
        return held.answer(value=[*held.drawn])

    async def _begun_here(self, ask: Ask, lock: asyncio.Lock) -> Held:
        number = self.roster.number
        if not self.settled:
            raise _NotNow("the roster has changed, and is not settled yet")
        data = await self._stored("get", ask.key)
        record = None if data is None else Record.from_bytes(data)
        if ask.do is Do.RESUME and record is None:
            raise StateError(f"stream {ask.key!r}: the store has nothing of it: it was dropped, or the store lost it")
        if ask.do is Do.RESUME and record is not None and record.session != ask.session:
            raise another_client(ask.key)
        stream = await self.pool.open()
        try:
            held = await self._revived(ask, record, stream, lock)
            if self.roster.number != number or not self._on_duty(ask.key):
                raise _NotNow("the roster has changed")
        except BaseException:
            await stream.close()
            raise
        self.held[ask.key] = held
        return held

    async def _revived(self, ask: Ask, record: Record | None, stream: AsyncStream, lock: asyncio.Lock) -> Held:
        if record is None:
            return Held(ask.key, 0, ask.session, stream, lock)
        await stream.restore(record.state)
        steps = record.steps
        held = Held(ask.key, record.epoch, ask.session, stream, lock, steps, steps, steps, reply=record.reply)
        held.drawn.extend(map(tuple, record.drawn.T.tolist()))
        if record.sampler is not None:
            held.sampler = Sampler(**record.sampler)
            held.sampler.restore(record.state.sampler)
        return held

    # --- the store ---------------------------------------------------------------------------------------------------

    async def _stored(self, method: str, key: str) -> Any:
        try:
            return await asyncio.to_thread(getattr(self.store, method), _place(key))
        except Exception as fault:  # the store's own, whatever it is
            raise _NotNow(f"the store fails: {fault!r}") from fault

    async def _state(self, held: Held) -> State:
        state = await held.stream.state()
        return state if held.sampler is None else replace(state, sampler=held.sampler.state)

    async def _capture(self, held: Held, reply: Reply | None) -> Record:
        """A snapshot on its way to the store."""
        settings = None if held.sampler is None else _settings(held.sampler)
        drawn = np.array(held.drawn, np.int64).reshape(-1, 2).T
        state = await self._state(held)
        record = Record(held.epoch, held.steps, held.session, state, settings, drawn, reply)
        held.captured = held.steps
        self.writer.put(_place(held.key), record, held.kept)
        return record

    async def _make_durable(self, held: Held) -> None:
        """A snapshot that is in the store, with the last answer."""
        held.epoch += 1
        record = await self._capture(held, held.reply)
        await self._until(held, lambda: held.number >= record.number)

    async def _until(self, held: Held, so: Callable[[], bool]) -> None:
        """Wait for the store. Raises _NotNow."""
        ends = time.monotonic() + self.settings.timeout
        while not so():
            held.safe.clear()
            try:
                await asyncio.wait_for(held.safe.wait(), max(ends - time.monotonic(), 0))
            except asyncio.TimeoutError:
                raise _NotNow(f"the store takes longer than {self.settings.timeout} s: {self.writer.fault!r}") from None

    # --- steps -------------------------------------------------------------------------------------------------------

    async def _advance(self, held: Held, ask: Ask) -> Answer:
        """Steps from ``ask.first`` on, once."""
        if held.reply is not None and held.reply.first == ask.first <= held.steps:
            return held.answer(held.reply.outputs)
        if ask.first > held.steps + 1:
            return Answer(Is.ABSENT)
        if ask.first <= held.steps:
            raise StateError(
                f"stream {held.key!r}: step {ask.first} was taken in, it stands at {held.steps}; what it gave is not "
                "known any more"
            )
        await self._keep_up(held)
        if ask.do is Do.STEP:
            outputs, steps = self._named(await held.stream.step(ask.value)), 1
        elif ask.do is Do.FEED:
            outputs = self._named(await held.stream.feed(ask.value))
            steps = len(next(iter(outputs.values())))
        else:
            outputs, steps = await self._drawn(held, ask.value)
        held.steps += steps
        held.reply = Reply(ask.first, outputs)
        return held.answer(outputs)

    async def _keep_up(self, held: Held) -> None:
        """Snapshots when they are due; the client keeps no more than two times so many steps."""
        every = self.settings.snapshot_every
        if held.steps - held.captured >= every:
            await self._capture(held, None)
        if held.steps - held.durable >= 2 * every:
            await self._until(held, lambda: held.durable >= held.captured)

    async def _restored(self, held: Held, data: bytes | None) -> None:
        if data is None:
            await held.stream.reset()
        else:
            state = State.from_bytes(data)
            await held.stream.restore(state)
            if held.sampler is not None and state.sampler:
                held.sampler.restore(state.sampler)
        held.reply = None
        await self._make_durable(held)

    def _named(self, y: Any) -> Mapping[str, np.ndarray]:
        return y if isinstance(y, Mapping) else {"": y}

    # --- tokens ------------------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> TokenModel:
        """How the model generates. Raises InputError where it does not."""
        if self._tokens is None:
            self._tokens = TokenModel.of_pool(self.pool.pool)
            self._table = self._tokens.table()
        return self._tokens

    async def _drawn(self, held: Held, drawing: Drawing) -> tuple[Mapping[str, np.ndarray], int]:
        """Tokens that were drawn, and how many steps that took; all of them, or none."""
        tokens, before = self.tokens, held.sampler
        sampler = before if drawing.sampler is None else drawing.sampler
        start = [*drawing.start] or [token for _, token in [*held.drawn][-1:]]
        if sampler is None or not start:
            raise InputError(f"stream {held.key!r}: it has drawn nothing yet; begin with a prompt and a sampler")
        sampler.make_room(tokens.count)
        state, random = await held.stream.state(), sampler.state
        try:
            drawn = await self._draw(held, sampler, start, drawing)
        except BaseException:
            await held.stream.restore(state)
            sampler.restore(random)
            raise
        held.sampler = sampler
        first = held.steps + len(start)
        held.drawn.extend(zip(range(first, first + len(drawn)), drawn, strict=True))
        return {_TOKENS: np.array(drawn, np.int64)}, len(start) - 1 + len(drawn)

    async def _draw(self, held: Held, sampler: Sampler, start: list[int], drawing: Drawing) -> list[int]:
        if start[:-1]:
            await held.stream.feed(rows_for(self.pool.pool, start[:-1]))
            sampler.read(start[:-1])
        token, drawn = start[-1], []
        for _ in range(drawing.most):
            scores = await held.stream.step(rows_for(self.pool.pool, [token])[0])
            self._table.place[...] = np.reshape(scores, -1)
            token = sampler.choose_after(self._table, token)
            drawn.append(token)
            if token in drawing.stop:
                break
        return drawn


def failed(task: asyncio.Task[None]) -> bool:
    """Whether what a task was to do is to be tried again."""
    return task.done() and (task.cancelled() or task.exception() is not None)


def another_client(key: str) -> StateError:
    """The error of a client whose stream another has opened since."""
    return StateError(f"stream {key!r}: another client has opened it since; open() it to have it back")


def _place(key: str) -> str:
    return f"stream/{key}"


def _plain(outputs: Mapping[str, np.ndarray]) -> Any:
    """An output by itself, several by name."""
    return next(iter(outputs.values())) if len(outputs) == 1 else dict(outputs)


def _settings(sampler: Sampler) -> dict[str, Any]:
    return {entry.name: getattr(sampler, entry.name) for entry in fields(sampler) if entry.init}
