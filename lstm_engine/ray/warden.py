"""Warden: the actor that says which actors are on duty, so that a stream has one home at a time.

A shard serves only while it holds a lease, which it renews; its own clock starts when it asks, the warden's when it
answers. A shard that does not renew leaves the roster when its lease is over, and is then known not to serve, whether
it is dead or cut off. A new roster is settled when all members act by it; only then do streams begin at a new home.

The warden may die at any time: Ray starts it anew, and it goes on from the roster in the store, one lease later.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from ..errors import InputError, StateError
from .parcels import Parcel
from .rosters import Grant, Report, Roster, shard_name
from .shard import Settings, Shard, failed
from .stores import Store

_MODEL: Final = "pool/model"
_ROSTER: Final = "pool/roster"
_LOG: Final = logging.getLogger(__name__)
_BEATS: Final = 8  # looks at the leases in the time of one


@dataclass
class Lease:
    """Of a shard's ``incarnation`` (a process), on ``node``, until ``ends``; it has ``seen`` this number of roster."""

    incarnation: str
    node: str
    ends: float
    seen: int


class Warden:
    """See above. ``settings``: what its shards are told; ``options``: how Ray is to run them."""

    def __init__(self, store: Store, settings: Settings, options: Mapping[str, Any]) -> None:
        self.store, self.settings, self.options = store, settings, dict(options)
        self.name = settings.name
        self.wanted: list[str] = []
        self.roster = Roster()
        self.leases: dict[str, Lease] = {}
        self._shards: dict[str, Any] = {}
        self._waking: dict[str, asyncio.Task[None]] = {}
        self._begun: asyncio.Task[None] | None = None
        self._first = False  # whether this process is the pool's first warden
        self._quiet_until = 0.0
        self._changing = asyncio.Lock()

    # --- beginning ---------------------------------------------------------------------------------------------------

    async def start(self, parcel: Parcel, actors: int) -> None:
        """Of the first start: keep the model, have actors begin."""
        await asyncio.to_thread(self.store.put, _MODEL, time.time_ns(), parcel.to_bytes())
        self.roster = Roster((await self._saved())["number"] + 1)
        await self._save(self.roster, _members(actors))
        self._first = True
        await self._ready()

    async def _ready(self) -> None:
        if self._begun is None or failed(self._begun):
            self._begun = asyncio.get_running_loop().create_task(self._begin())
        await asyncio.shield(self._begun)

    async def _begin(self) -> None:
        """Go on from the store; after a restart, when what the one before allowed has ended or come back."""
        saved = await self._saved()
        if not saved["wanted"]:
            raise StateError(f"pool '{self.name}': its store holds no roster; it was never started")
        self.wanted = saved["wanted"]
        self.roster = Roster(saved["number"] + 1, {}, saved["pins"])
        model = await asyncio.to_thread(self.store.get, _MODEL)
        self._parcel = ray.put(Parcel.from_bytes(model or b""))
        if not self._first:
            self._quiet_until = time.monotonic() + self.settings.lease
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _saved(self) -> dict[str, Any]:
        data = await asyncio.to_thread(self.store.get, _ROSTER)
        found: dict[str, Any] = json.loads(data) if data else {"number": 0, "wanted": [], "pins": {}}
        return found

    async def _save(self, roster: Roster, wanted: list[str]) -> None:
        """Keep what a restart must know, a roster's number above all: none is given twice."""
        saved = {"number": roster.number, "wanted": wanted, "pins": dict(roster.pins)}
        await asyncio.to_thread(self.store.put, _ROSTER, roster.number, json.dumps(saved).encode())

    # --- asked by shards ---------------------------------------------------------------------------------------------

    async def parcel(self) -> list[Any]:
        """A reference to the model."""
        await self._ready()
        return [self._parcel]

    async def renew(self, report: Report) -> Grant | None:
        """A lease from now on. None: not yet, since a process before may still serve, or not any more."""
        await self._ready()
        member, now = report.member, time.monotonic()
        lease = self.leases.get(member)
        if lease is not None and lease.incarnation != report.incarnation:
            if now <= lease.ends and not await asyncio.to_thread(_certainly_dead, lease):
                return None
            del self.leases[member]
            lease = None
        if lease is None:
            if member not in self.wanted:
                return None
            await self._join(report)
            lease = self.leases.get(member)
            if lease is None:  # the store took so long
                return None
        lease.seen, lease.ends = max(lease.seen, report.seen), time.monotonic() + self.settings.lease
        if member not in self.wanted and lease.seen >= self.roster.number:
            self._retire(member)
            return None
        return self._granted()

    async def _join(self, report: Report) -> None:
        """A member more. One that was a member under the warden before this one stays what it was."""
        ends = time.monotonic() + self.settings.lease
        self.leases[report.member] = Lease(report.incarnation, report.node, ends, -1)
        stays = report.joined is not None and time.monotonic() < self._quiet_until

        def joined(roster: Roster) -> Roster:
            since = report.joined if stays and report.joined is not None else roster.number
            return replace(roster, joined={**roster.joined, report.member: since})

        await self._change(joined)

    def _granted(self) -> Grant:
        acted = all(lease.seen >= self.roster.number for lease in self.leases.values())
        return Grant(self.roster, acted and time.monotonic() >= self._quiet_until)

    # --- asked by clients --------------------------------------------------------------------------------------------

    async def present(self) -> Grant:
        """The roster as it stands."""
        await self._ready()
        return self._granted()

    async def about(self) -> Settings:
        """What the pool was made with."""
        await self._ready()
        return self.settings

    async def scale(self, actors: int) -> None:
        """Have so many shards; streams of those that go are handed over first."""
        await self._ready()
        wanted = _members(actors)

        def staying(roster: Roster) -> Roster:
            joined = {name: since for name, since in roster.joined.items() if name in wanted}
            pins = {key: name for key, name in roster.pins.items() if name in wanted}
            return replace(roster, joined=joined, pins=pins)

        await self._change(staying, wanted)
        self._call_in()

    async def move(self, key: str, member: str) -> None:
        """Have a stream live on this shard."""
        await self._ready()
        if member not in self.wanted:
            raise InputError(f"pool '{self.name}': there is no actor {member!r}; it has {', '.join(self.wanted)}")
        await self._change(lambda roster: replace(roster, pins={**roster.pins, key: member}))

    async def stop(self) -> None:
        """End the shards."""
        if self._begun is not None:
            self._watching.cancel()
        for member in {*self.wanted, *self.leases, *self._shards}:
            with contextlib.suppress(ValueError):
                ray.kill(ray.get_actor(shard_name(self.name, member), namespace=self.settings.namespace))

    # --- who is on duty ----------------------------------------------------------------------------------------------

    async def _change(self, edit: Callable[[Roster], Roster], wanted: list[str] | None = None) -> None:
        """A new roster, which the store has before anybody sees it."""
        async with self._changing:
            wanted = self.wanted if wanted is None else wanted
            roster = edit(replace(self.roster, number=self.roster.number + 1))
            await self._save(roster, wanted)
            self.roster, self.wanted = roster, wanted

    def _retire(self, member: str) -> None:
        """A shard that has handed everything over ends."""
        del self.leases[member]
        shard = self._shards.pop(member, None)
        if shard is not None:
            ray.kill(shard)

    async def _watch(self) -> None:
        """Look at the leases, again and again."""
        tend, turn = getattr(self.store, "tend", None), 0
        while True:
            try:
                await self._lapse()
                if turn % _BEATS == 0:
                    self._call_in()
                    if tend is not None:
                        await asyncio.to_thread(tend)
            except Exception:  # the store's, which may be down for a while: the roster stays as it is until it answers
                _LOG.warning("pool '%s': its store does not answer", self.name, exc_info=True)
            turn += 1
            await asyncio.sleep(self.settings.lease / _BEATS)

    async def _lapse(self) -> None:
        """Whoever did not renew does not serve any more."""
        for member in [name for name, lease in self.leases.items() if lease.ends < time.monotonic()]:
            del self.leases[member]
        if not set(self.roster.joined) <= set(self.leases):

            def living(roster: Roster) -> Roster:
                joined = {name: since for name, since in roster.joined.items() if name in self.leases}
                return replace(roster, joined=joined)

            await self._change(living)

    def _call_in(self) -> None:
        """Have those who should be on duty and are not begin."""
        for member in self.wanted:
            if member not in self.leases and member not in self._waking:
                task = asyncio.get_running_loop().create_task(self._wake(member))
                self._waking[member] = task
                task.add_done_callback(partial(self._woken, member))

    def _woken(self, member: str, _: asyncio.Task[None]) -> None:
        del self._waking[member]

    async def _wake(self, member: str) -> None:
        """Have a shard begin; another one in its place where it is dead for good."""
        shard = self._shards.get(member)
        if shard is None:
            name = shard_name(self.name, member)
            options = {"lifetime": "detached", "max_restarts": -1, "get_if_exists": True, **self.options}
            made = ray.remote(Shard).options(name=name, namespace=self.settings.namespace, **options)
            shard = self._shards[member] = made.remote(member, self.store, self.settings)
        try:
            await shard.wake.remote()
        except ActorDiedError:
            self._shards.pop(member, None)
        except (RayActorError, RayTaskError):
            await asyncio.sleep(self.settings.lease / _BEATS)


def _members(actors: int) -> list[str]:
    return [str(k) for k in range(actors)]


def _certainly_dead(lease: Lease) -> bool:
    """Whether a process before this one has ended: Ray starts another on word of its node, if that still stands."""
    return any(node["Alive"] and node["NodeID"] == lease.node for node in ray.nodes())
