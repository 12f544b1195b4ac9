"""AsyncRayPool: the client of a pool of streams on actors, for an event loop.

Requests to one actor travel together, as they come: what waits while a call is under way goes with the next one.
"""

from __future__ import annotations

import asyncio
import copy
import random
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from ..errors import ClusterError, InputError, LstmEngineError, StateError, listed
from ..generation import Sampler
from ..generation.stops import Stop, parsed_stops
from ..generation.tokens import Ids, TokenModel
from ..model import Model
from ..state import State
from .asks import Answer, Ask, Do, Drawing, Is, packed, unpacked
from .parcels import Parcel
from .rosters import Grant, Roster, shard_name, warden_name
from .shard import RECALLED, Settings
from .stores import ActorStore, Store
from .warden import Warden

NAMESPACE: Final = "lstm_engine"
_MOST_ASKS: Final = 1024  # that one call takes along
_CALLS: Final = 2  # of steps, to one actor, at a time: while one is computed the next one travels
_LONG_CALLS: Final = 16
_LONG: Final = frozenset({Do.FEED, Do.DRAW})  # these would keep steps waiting
_MOST_HOMES: Final = 1 << 16  # that are remembered
_PAUSES: Final = (0.01, 0.5)  # seconds between attempts: the first, the longest
_REMEMBERED: Final = "stream {0!r}: tokens drawn behind step {1} are asked for, the oldest that is known is of step {2}"


class Drawn(NamedTuple):
    """A token that was drawn: of which step of its stream, its id, its text where there is a vocabulary."""

    number: int
    token: int
    text: str | None


@dataclass(frozen=True)
class _Made:
    """What a new pool is made of."""

    name: str
    store: Store
    warden: Any
    detached: bool
    actors: int


class AsyncRayPool:
    """A pool of streams on actors, for one event loop. Get one by start() or attach(), and use it in ``async with``.

    See RayPool, which is the same for callers that block.
    """

    def __init__(self, name: str, namespace: str, warden: Any, settings: Settings, patience: float) -> None:
        self.name, self.namespace, self.settings, self.patience = name, namespace, settings, patience
        self._adopt(Roster())
        self._warden = warden
        self._made: _Made | None = None
        self._shards: dict[str, Any] = {}
        self._lines: dict[tuple[str, bool], _Line] = {}
        self._refreshing: asyncio.Task[Grant] | None = None
        self._tokens: TokenModel | None = None

    def __repr__(self) -> str:
        return f"AsyncRayPool({self.name!r}, {len(self.roster.joined)} actors)"

    @classmethod
    async def start(
        cls,
        model: Model,
        *,
        name: str | None = None,
        actors: int | None = None,
        snapshot_every: int = 32,
        store: Store | None = None,
        max_batch: int = 256,
        num_cpus: float = 1.0,
        detached: bool = False,
        lease: float = 3.0,
        patience: float = 60.0,
        namespace: str = NAMESPACE,
    ) -> AsyncRayPool:
        """A new pool; the keywords are RayPool's."""
        name = f"pool-{uuid.uuid4().hex[:8]}" if name is None else name
        faults = [
            f"{what}={value!r}: expected a positive number"
            for what, value in (("actors", actors), ("snapshot_every", snapshot_every), ("max_batch", max_batch),
                                ("lease", lease), ("patience", patience))
            if value is not None and not value > 0
        ]  # fmt: skip
        if faults:
            raise InputError(listed("RayPool", faults))
        settings = Settings(name, namespace, snapshot_every, max_batch, max(int(num_cpus), 1), lease, patience / 4)
        parcel = await asyncio.to_thread(Parcel.of, model)
        made = await asyncio.to_thread(_start, parcel, settings, actors, store, num_cpus, detached)
        pool = cls(name, namespace, made.warden, settings, patience)
        pool._made = made
        await pool._until_complete(made.actors)
        return pool

    @classmethod
    async def attach(cls, name: str, *, namespace: str = NAMESPACE, patience: float = 60.0) -> AsyncRayPool:
        """The pool that another process started under this name. Raises ClusterError where there is none."""
        try:
            warden = await asyncio.to_thread(ray.get_actor, warden_name(name), namespace)
        except ValueError as fault:
            raise ClusterError(f"pool {name!r}: the cluster has none in namespace {namespace!r}") from fault
        settings = await warden.about.remote()
        return cls(name, namespace, warden, settings, patience)

    async def __aenter__(self) -> AsyncRayPool:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._made is not None and not self._made.detached:
            await self.shutdown()

    # --- streams -----------------------------------------------------------------------------------------------------

    async def open(self, key: str) -> AsyncRayStream:
        """The stream of a key, as this client's: where it stands if there is one, on an actor or in the store, else a
        new one. A client that had it before is refused from now on.
        """
        if not isinstance(key, str):
            raise InputError(f"open: expected a key of text, got {type(key).__name__}")
        stream = AsyncRayStream(self, key)
        await stream._open()
        return stream

    async def step(self, streams: Sequence[AsyncRayStream], X: Sequence[Any]) -> list[Any]:
        """A step of each of several streams, those of an actor in one call; ``X``: what each takes."""
        if len(streams) != len(X):
            raise InputError(f"step: expected a row for each of {len(streams)} streams, got {len(X)}")
        return [*await asyncio.gather(*(stream.step(x) for stream, x in zip(streams, X, strict=True)))]

    # --- actors ------------------------------------------------------------------------------------------------------

    async def scale(self, actors: int) -> None:
        """Have so many actors. Streams whose home changes are handed over, by way of the store."""
        if not isinstance(actors, int) or actors < 1:
            raise InputError(f"scale: actors={actors!r}: expected a positive number")
        await self._asked("scale", actors)
        await self._until_complete(actors)

    async def move(self, key: str, actor: str) -> None:
        """Have a stream live on this actor, one of actors(), as long as it is there."""
        await self._asked("move", key, actor)
        await self._until_complete()

    async def actors(self) -> list[str]:
        """The names of those on duty."""
        return [*(await self._refresh()).roster.joined]

    async def home(self, key: str) -> str | None:
        """The actor that a stream lives on, were it opened now."""
        return (await self._refresh()).roster.home(key)

    async def shutdown(self) -> None:
        """End the pool's actors for every client. What a store of your own holds stays."""
        with suppress(RayActorError):
            await self._warden.stop.remote()
        ray.kill(self._warden)
        if self._made is not None and isinstance(self._made.store, ActorStore):
            await asyncio.to_thread(self._made.store.stop)

    async def _asked(self, method: str, *arguments: Any) -> Any:
        """What the warden says, who may be on its way to another node."""
        ends, why = time.monotonic() + self.patience, ""
        while time.monotonic() < ends:
            try:
                return await asyncio.wait_for(getattr(self._warden, method).remote(*arguments), self.settings.timeout)
            except RayTaskError as fault:
                cause = fault.as_instanceof_cause()
                if isinstance(cause, (InputError, StateError)):
                    raise cause from None
                why = str(cause)
            except (RayActorError, asyncio.TimeoutError) as fault:
                why = repr(fault)
            await asyncio.sleep(_PAUSES[1])
        raise self._gives_up(f"pool {self.name!r}", why)

    def _gives_up(self, what: str, why: str) -> ClusterError:
        return ClusterError(f"{what}: no answer for {self.patience:g} s ({why}); the call may be made again")

    async def _refresh(self) -> Grant:
        """The roster as it stands; one question at a time."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().create_task(self._asked("present"))
        grant = await asyncio.shield(self._refreshing)
        if grant.roster.number >= self.roster.number:
            self._adopt(grant.roster)
        return grant

    def _adopt(self, roster: Roster) -> None:
        self.roster = roster
        self._home = lru_cache(_MOST_HOMES)(roster.home)

    async def _until_complete(self, actors: int = 1) -> None:
        """Wait until the roster is settled, with so many members."""
        ends = time.monotonic() + self.patience
        while True:
            grant = await self._refresh()
            if grant.settled and len(grant.roster.joined) >= actors:
                return
            if time.monotonic() > ends:
                found = f"{len(grant.roster.joined)} of {actors} actors; has the cluster the CPUs for them?"
                raise self._gives_up(f"pool {self.name!r}", found)
            await asyncio.sleep(_PAUSES[0])

    # --- requests ----------------------------------------------------------------------------------------------------

    async def _answer(self, ask: Ask) -> Answer:
        """What the stream's home answers; LATER where it does not."""
        member = self._home(ask.key)
        if member is None:
            return Answer(Is.LATER, "no actor is on duty")
        key = member, ask.do in _LONG
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(self, member, _LONG_CALLS if key[1] else _CALLS)
        return await line.put(ask)

    async def _shard(self, member: str) -> Any:
        if member not in self._shards:
            name = shard_name(self.name, member)
            self._shards[member] = await asyncio.to_thread(ray.get_actor, name, self.namespace)
        return self._shards[member]

    async def _token_model(self) -> TokenModel:
        """How the model generates, as one of the actors says."""
        ends = time.monotonic() + self.patience
        while self._tokens is None:
            roster = (await self._refresh()).roster
            try:
                shard = await self._shard(random.choice([*roster.joined]))
                self._tokens = await asyncio.wait_for(shard.generating.remote(), self.settings.timeout)
            except RayTaskError as fault:
                raise fault.as_instanceof_cause() from None
            except (RayActorError, asyncio.TimeoutError, ValueError, IndexError) as fault:
                if time.monotonic() > ends:
                    raise self._gives_up(f"pool {self.name!r}", repr(fault)) from fault
                await asyncio.sleep(_PAUSES[1])
        return self._tokens


class _Line:
    """Requests on their way to an actor: what waits while calls are under way goes with the next one."""

    def __init__(self, pool: AsyncRayPool, member: str, calls: int) -> None:
        self.pool, self.member, self.calls = pool, member, calls
        self.waiting: deque[tuple[Ask, asyncio.Future[Answer]]] = deque()
        self.under_way = 0
        self._carriers: set[asyncio.Task[None]] = set()  # the loop itself does not keep them alive

    def put(self, ask: Ask) -> asyncio.Future[Answer]:
        """The answer of a request, to wait for."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self.waiting.append((ask, future))
        if self.under_way < self.calls:
            self.under_way += 1
            task = loop.create_task(self._carry())
            self._carriers.add(task)
            task.add_done_callback(self._carriers.discard)
        return future

    async def _carry(self) -> None:
        """Call after call, as long as something waits."""
        try:
            await asyncio.sleep(0)  # those who ask at the same moment go together
            most = 1 if self.calls == _LONG_CALLS else _MOST_ASKS
            while self.waiting:
                batch = [self.waiting.popleft() for _ in range(min(len(self.waiting), most))]
                answers = await self._answers([ask for ask, _ in batch])
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)
        finally:
            self.under_way -= 1  # with nothing between this and the last look at what waits

    async def _answers(self, asks: list[Ask]) -> list[Answer]:
        try:
            data = packed(asks)
        except Exception as fault:  # of what a caller gave, whatever it is
            if len(asks) > 1:
                return [answer for ask in asks for answer in await self._answers([ask])]
            return [Answer(Is.FAULT, InputError(f"stream {asks[0].key!r}: the input cannot be sent: {fault}"))]
        try:
            shard = await self.pool._shard(self.member)
            answers: list[Answer] = unpacked(await self._reached(shard.serve.remote(data)))
        except (RayError, asyncio.TimeoutError, ValueError) as fault:
            self.pool._shards.pop(self.member, None)
            return [Answer(Is.LATER, f"actor {self.member}: {type(fault).__name__}: {fault}")] * len(asks)
        return answers

    async def _reached(self, call: Awaitable[bytes]) -> bytes:
        """What an actor says, as long as it is the one on duty: one that is cut off says nothing for a long time."""
        pool, joined = self.pool, self.pool.roster.joined.get(self.member)
        task = asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait({task}, timeout=pool.settings.lease))[0]:
                await pool._refresh()
                if pool.roster.joined.get(self.member) != joined:
                    raise asyncio.TimeoutError("it has been given up")
            return await task
        finally:
            task.cancel()


class AsyncRayStream:
    """A stream of an AsyncRayPool. What is asked of it is done in the order asked.

    ``steps``: how many it has made. A call that is cancelled, or ends in a ClusterError, may still have been done, or
    be done later: the next call sees to it first; settle() says what it gave.
    """

    def __init__(self, pool: AsyncRayPool, key: str) -> None:
        self.pool, self.key = pool, key
        self.session = uuid.uuid4().hex
        self.steps = 0
        self._kept: deque[tuple[Ask, int]] = deque()  # since the last snapshot, and the step each ended with
        self._open_end: Ask | None = None  # sent, and not answered
        self._recalled: deque[tuple[int, int]] = deque(maxlen=RECALLED)
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.key!r}, {self.steps} steps)"

    async def __aenter__(self) -> AsyncRayStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def kept(self) -> int:
        """Requests that are kept to be sent again: fewer than 2 · snapshot_every + 1."""
        return len(self._kept)

    # --- what is asked -----------------------------------------------------------------------------------------------

    async def step(self, x: Any, *, number: int | None = None) -> Any:
        """One time step: what AsyncStream.step() takes and gives.

        ``number``: of the step, where the stream may have made it already, for a client before this one: it is then
        answered and not made again.

        Raises InputError (the state is then as it was), StateError where another client has opened the stream since or
        the step's answer is not known any more, ClusterError where nobody answers.
        """
        return (await self._advance(Do.STEP, x, number)).value

    async def feed(self, chunk: Any) -> Any:
        """Any number of steps in one request, all of them or none: what StreamPool.feed() takes and gives for one slot.

        Raises what step() raises.
        """
        return (await self._advance(Do.FEED, chunk)).value

    async def generate(
        self,
        prompt: str | Ids | None = None,
        *,
        max_tokens: int | None = None,
        sampler: Sampler | None = None,
        stop: Stop = None,
        after: int | None = None,
        piece: int = 8,
    ) -> AsyncIterator[Drawn]:
        """Token after token, drawn where the stream lives: those of generate() with the same sampler.

        ``prompt``: None goes on behind the token drawn last. ``sampler``: one more begins; None goes on with that of
        the stream where it goes on, else it is Sampler(). ``stop``: token ids.
        ``after``: only those of later steps than this: what a client before had got; the stream may stand before or
        behind it. ``piece``: tokens of one request.

        Raises what step() and generate() raise.
        """
        async for drawn in self._pieces(prompt, max_tokens, sampler, stop, after, piece):
            for each in drawn:
                yield each

    async def state(self) -> State:
        """A snapshot, with the sampler's state where tokens were drawn."""
        return State.from_bytes((await self._asked(Do.STATE)).value)

    async def restore(self, state: State) -> None:
        """Go on from a snapshot; the number of steps stays."""
        await self._asked(Do.RESTORE, state.to_bytes())

    async def reset(self) -> None:
        """Back to the initial state; the number of steps stays."""
        await self._asked(Do.RESTORE)

    async def close(self) -> None:
        """Leave the actor; open() goes on from the store."""
        await self._asked(Do.CLOSE)

    async def drop(self) -> None:
        """End the stream for good: neither an actor nor the store has anything of it."""
        await self._asked(Do.DROP)

    async def settle(self) -> Any:
        """What the call gave that was cancelled or ended in a ClusterError; None where there is none."""
        async with self._turn:
            return await self._settled()

    # --- how it is asked ---------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        answer = await self._until_done(Ask(Do.OPEN, self.key, self.session))
        self.steps = answer.steps
        self._recalled.extend(answer.value)

    async def _asked(self, do: Do, value: Any = None) -> Answer:
        """A request that takes no step."""
        async with self._turn:
            await self._settled()
            answer = await self._until_done(Ask(do, self.key, self.session, 0, value))
            self._forget(answer.durable)
            return answer

    async def _advance(self, do: Do, value: Any, number: int | None = None) -> Answer:
        """A request that takes steps."""
        async with self._turn:
            await self._settled()
            first = self.steps + 1 if number is None else number
            if first > self.steps + 1:
                raise InputError(f"stream {self.key!r}: step {first} cannot be the next, it stands at {self.steps}")
            self._open_end = Ask(do, self.key, self.session, first, value)
            return await self._ended()

    async def _settled(self) -> Any:
        if self._open_end is None:
            return None
        with suppress(InputError):  # nothing was done
            return (await self._ended()).value

    async def _ended(self) -> Answer:
        """The answer of the request that was sent last, which is kept until a snapshot covers it."""
        ask = self._open_end
        assert ask is not None
        try:
            answer = await self._until_done(ask)
        except LstmEngineError as fault:
            if not isinstance(fault, ClusterError):
                self._open_end = None
            raise
        self._open_end = None
        if ask.first > self.steps:
            self._kept.append((ask, answer.steps))
            self.steps = answer.steps
        self._forget(answer.durable)
        return answer

    def _forget(self, durable: int) -> None:
        while self._kept and self._kept[0][1] <= durable:
            self._kept.popleft()

    async def _until_done(self, ask: Ask) -> Answer:
        """Ask until somebody answers, bringing the stream to where it stood where that was lost."""
        ends, pause, why = time.monotonic() + self.pool.patience, _PAUSES[0], "it was lost again and again"
        while time.monotonic() < ends:
            answer = await self.pool._answer(ask)
            if answer.kind is Is.ABSENT:
                answer = await self._resumed()
            if answer.kind is Is.DONE and answer.value is not _RESUMED:
                return answer
            if answer.kind is Is.FAULT:
                raise answer.value
            if answer.kind is Is.LATER:
                why = answer.value
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, _PAUSES[1])
                await self.pool._refresh()
        raise self.pool._gives_up(f"stream {self.key!r}", why)

    async def _resumed(self) -> Answer:
        """Have the stream begin again where it was left, and send again what it has not seen."""
        answer = await self.pool._answer(Ask(Do.RESUME, self.key, self.session))
        if answer.kind is not Is.DONE:
            return answer
        stands = answer.steps
        for ask, last in [*self._kept]:
            if ask.first == stands + 1:
                answer = await self.pool._answer(ask)
                if answer.kind is not Is.DONE:
                    return answer
                stands = last
        if stands < self.steps:
            raise StateError(
                f"stream {self.key!r}: the store has it at step {answer.steps}, older than what this client keeps: "
                f"it stood at {self.steps}"
            )
        return Answer(Is.DONE, _RESUMED, stands)

    async def _pieces(
        self, prompt: Any, max_tokens: int | None, sampler: Sampler | None, stop: Stop, after: int | None, piece: int
    ) -> AsyncIterator[list[Drawn]]:
        tokens = await self.pool._token_model()
        start = [] if prompt is None else tokens.prompt_ids(prompt)
        stops, _ = parsed_stops(stop, tokens.vocabulary, False)
        if prompt is not None:
            sampler = Sampler() if sampler is None else sampler
        sampler = copy.copy(sampler)  # the caller's may draw on
        vocabulary, left = tokens.vocabulary, max_tokens
        spell = None if vocabulary is None else vocabulary.speller(start)

        def told(drawn: Sequence[tuple[int, int]]) -> tuple[list[Drawn], bool]:
            """Those that are asked for, and whether they end here."""
            found: list[Drawn] = []
            for number, token in drawn:
                if token in stops:
                    return found, True
                text = None if spell is None else spell(token)
                if (after is None or number > after) and (left is None or len(found) < left):
                    found.append(Drawn(number, token, text))
            return found, False

        if prompt is None and after is not None and after < self.steps:
            known = [*self._recalled]
            if not known or known[0][0] > after + 1:
                raise StateError(_REMEMBERED.format(self.key, after, known[0][0] if known else "none"))
            found, over = told(known)
            yield found
            left = None if left is None else left - len(found)
            if over:
                return
        while left is None or left > 0:
            behind = 0 if after is None else max(after - self.steps - max(len(start) - 1, 0), 0)
            count = piece if left is None else min(piece, left + behind)
            answer = await self._advance(Do.DRAW, Drawing(start, count, stops, sampler))
            start, sampler = [], None
            drawn = [*enumerate(answer.value.tolist(), answer.steps - len(answer.value) + 1)]
            self._recalled.extend(drawn)
            found, over = told(drawn)
            yield found
            left = None if left is None else left - len(found)
            if over:
                return


_RESUMED: Final = object()


def _start(
    parcel: Parcel, settings: Settings, actors: int | None, store: Store | None, num_cpus: float, detached: bool
) -> _Made:
    """Have the actors of a pool begin."""
    if not ray.is_initialized():
        ray.init()
    count = actors or max(sum(node["Alive"] and node["Resources"].get("CPU", 0) >= num_cpus for node in ray.nodes()), 1)
    if store is None:
        store = ActorStore(settings.name, namespace=settings.namespace)
        store.start(detached)
    options = {
        "name": warden_name(settings.name),
        "namespace": settings.namespace,
        "lifetime": "detached" if detached else None,
        "max_restarts": -1,
        "num_cpus": 0,
    }
    shards = {"num_cpus": num_cpus, "scheduling_strategy": "SPREAD"}
    warden = ray.remote(Warden).options(**options).remote(store, settings, shards)
    ray.get(warden.start.remote(parcel, count))
    return _Made(settings.name, store, warden, detached, count)
