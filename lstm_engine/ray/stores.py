"""Where records of streams are kept: in actors on several nodes, or in a folder on a shared disk.

A store of your own is any object that can be pickled and has the methods of `Store`.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import ray
from ray.exceptions import RayActorError
from ray.util import get_placement_group, placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..errors import ClusterError, InputError
from .rosters import ranked


class Entry(NamedTuple):
    """A record on its way to a store."""

    key: str
    number: int
    data: bytes


class Store(Protocol):
    """What survives actors and nodes. Methods block, are called from several processes at once, and raise what they
    like when they fail: they are called again.

    ``put``: keep ``data`` for ``key`` unless a higher number is held already; when it returns, they are safe.
    ``get``: the data with the highest number, None where there are none. ``drop``: forget a key.

    One that has ``put_many(entries)``, too, gets all that is due at once; ``tend()`` is called now and then.
    """

    def put(self, key: str, number: int, data: bytes) -> None:
        """Keep."""

    def get(self, key: str) -> bytes | None:
        """Look up."""

    def drop(self, key: str) -> None:
        """Forget."""


def put_all(store: Store, entries: Sequence[Entry]) -> None:
    """Keep all of these."""
    together = getattr(store, "put_many", None)
    if together is not None:
        together(entries)
    else:
        for entry in entries:
            store.put(*entry)


# --- a folder --------------------------------------------------------------------------------------------------------

_SAFE: Final = re.compile(r"[^A-Za-z0-9_-]")
_READABLE: Final = 40  # characters of a key that a file's name shows


class FolderStore:
    """A file for each stream below ``path``, which every node sees under that name.

    A file's name holds its number, and files are renamed into place: a late writer replaces nothing newer, a crash
    leaves no half of one. ``sync``: wait for the disk, so that records survive a machine that loses power.
    """

    def __init__(self, path: str | os.PathLike[str], *, sync: bool = True) -> None:
        self.path = Path(path).absolute()
        self.sync = sync

    def __repr__(self) -> str:
        return f"FolderStore({str(self.path)!r})"

    def put(self, key: str, number: int, data: bytes) -> None:
        """Keep ``data``, unless a higher number is held."""
        folder, stem = self._place(key)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{stem}.{number:032x}"
        fresh = folder / f"new.{uuid.uuid4().hex}"
        try:
            with open(fresh, "wb") as file:
                file.write(data)
                if self.sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(fresh, path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        if self.sync:
            _sync_folder(folder)
        for older in self._files(folder, stem)[:-1]:
            older.unlink(missing_ok=True)

    def get(self, key: str) -> bytes | None:
        """The data with the highest number."""
        folder, stem = self._place(key)
        while files := self._files(folder, stem):
            try:
                return files[-1].read_bytes()
            except FileNotFoundError:  # a newer one has just replaced it
                continue
        return None

    def drop(self, key: str) -> None:
        """Forget a key."""
        folder, stem = self._place(key)
        for path in self._files(folder, stem):
            path.unlink(missing_ok=True)

    def _place(self, key: str) -> tuple[Path, str]:
        """A folder of few files, and a name that is safe and no other key's."""
        digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return self.path / digest[:3], f"{_SAFE.sub('_', key)[:_READABLE]}.{digest}"

    @staticmethod
    def _files(folder: Path, stem: str) -> list[Path]:
        """A key's files, the newest last."""
        try:
            names = sorted(name for name in os.listdir(folder) if name.startswith(f"{stem}."))
        except FileNotFoundError:
            return []
        return [folder / name for name in names]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- actors ----------------------------------------------------------------------------------------------------------

_CALL: Final = 10.0  # seconds that a keeper may take
_AGAIN: Final = 0.5  # seconds
_CPUS: Final = 0.01  # a keeper waits more than it computes


class ActorStore:
    """Records in the memory of ``actors`` actors, each in ``copies`` of them, on nodes of their own as far as there
    are so many. An actor that is lost comes back on another node and takes its copies from the others; what is lost is
    what all copies of were lost at once.
    """

    def __init__(self, name: str, *, actors: int = 2, copies: int = 2, namespace: str = "lstm_engine") -> None:
        if not 1 <= copies <= actors:
            raise InputError(f"ActorStore: expected 1 ≤ copies ≤ actors, got copies={copies}, actors={actors}")
        self.name, self.copies, self.namespace = name, copies, namespace
        self.keepers = [f"{name}.store.{i}" for i in range(actors)]
        self._handles: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"ActorStore({self.name!r}, actors={len(self.keepers)}, copies={self.copies})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _actor_store, (self.name, len(self.keepers), self.copies, self.namespace)

    def start(self, detached: bool) -> None:
        """Have the actors begin, empty. ``detached``: they outlive this process, until stop()."""
        lifetime = "detached" if detached else None
        bundles = [{"CPU": _CPUS} for _ in self.keepers]
        group = placement_group(bundles, strategy="SPREAD", name=f"{self.name}.store", lifetime=lifetime)
        made = [
            ray.remote(Keeper)
            .options(
                name=keeper,
                namespace=self.namespace,
                lifetime=lifetime,
                max_restarts=-1,
                num_cpus=_CPUS,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i),
            )
            .remote(keeper, self)
            for i, keeper in enumerate(self.keepers)
        ]
        ray.get([keeper.begin.remote() for keeper in made])
        self._handles = dict(zip(self.keepers, made, strict=True))
        self._group: PlacementGroup = group  # kept as long as the actors

    def stop(self) -> None:
        """End the actors; what they hold is gone."""
        for keeper in self.keepers:
            try:
                ray.kill(self._handle(keeper))
            except ValueError:
                continue
        try:
            ray.util.remove_placement_group(get_placement_group(f"{self.name}.store"))
        except ValueError:
            return

    def put(self, key: str, number: int, data: bytes) -> None:
        """Keep a record in all its copies that are there."""
        self.put_many([Entry(key, number, data)])

    def put_many(self, entries: Sequence[Entry]) -> None:
        """Keep records, each keeper's in one call."""
        parts: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            for keeper in self.homes(entry.key):
                parts[keeper].append(entry)
        lost = self._failing({keeper: ("put", part) for keeper, part in parts.items()})
        if lost:  # it may have come back meanwhile
            time.sleep(_AGAIN)
            lost = self._failing({keeper: ("put", parts[keeper]) for keeper in lost})
        unsafe = [entry.key for entry in entries if set(self.homes(entry.key)) <= lost]
        if unsafe:
            raise ClusterError(f"{self}: {len(unsafe)} records have no living copy; actors down: {sorted(lost)}")

    def get(self, key: str) -> bytes | None:
        """The newest of a key's copies. Raises ClusterError where none of the actors that answer is sure."""
        answers, sure = [], False
        for answer in self._answers(dict.fromkeys(self.homes(key), ("get", key))).values():
            if not isinstance(answer, Exception):
                found, complete = answer
                sure = sure or complete or found is not None
                answers += [found] if found is not None else []
        if not sure:
            raise ClusterError(f"{self}: no actor can say what is held for {key!r}: they start, or all were lost")
        return max(answers)[1] if answers else None

    def drop(self, key: str) -> None:
        """Forget a key."""
        lost = self._failing(dict.fromkeys(self.homes(key), ("drop", key)))
        if len(lost) == self.copies:
            raise ClusterError(f"{self}: no actor answers that holds {key!r}")

    def tend(self) -> None:
        """Have actors that were lost catch up before another is."""
        self._answers(dict.fromkeys(self.keepers, ("size", None)))

    def homes(self, key: str) -> list[str]:
        """The keepers of a key."""
        return ranked(key, self.keepers)[: self.copies]

    def _failing(self, calls: dict[str, tuple[str, Any]]) -> set[str]:
        return {keeper for keeper, answer in self._answers(calls).items() if isinstance(answer, Exception)}

    def _answers(self, calls: dict[str, tuple[str, Any]]) -> dict[str, Any]:
        """What each keeper says, all asked at once; why it does not."""
        made = {}
        for keeper, (method, argument) in calls.items():
            try:
                made[keeper] = getattr(self._handle(keeper), method).remote(argument)
            except ValueError as fault:  # no actor of this name
                made[keeper] = fault
        return {keeper: _settled(reference) for keeper, reference in made.items()}

    def _handle(self, keeper: str) -> Any:
        if keeper not in self._handles:
            self._handles[keeper] = ray.get_actor(keeper, namespace=self.namespace)
        return self._handles[keeper]


def _actor_store(name: str, actors: int, copies: int, namespace: str) -> ActorStore:
    return ActorStore(name, actors=actors, copies=copies, namespace=namespace)


def _settled(reference: Any) -> Any:
    if isinstance(reference, Exception):
        return reference
    try:
        return reference.future().result(_CALL)  # (ray.get() warns in threads of actors with an event loop)
    except (RayActorError, FutureTimeoutError) as fault:
        return fault


class Keeper:
    """An actor that holds records. One that begins a second time takes what it lost from the others that hold it;
    until then it vouches for what it has, and not for what it has not.
    """

    def __init__(self, name: str, store: ActorStore) -> None:
        self.name, self.store = name, store
        self.held: dict[str, tuple[int, bytes]] = {}
        self.dropped: set[str] = set()  # since it began to catch up
        self.complete = False
        self.catching_up: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Of the first start: there is nothing to catch up with."""
        self.complete = True

    async def put(self, entries: Iterable[Entry]) -> None:
        """Keep records, but for those that are older than what is held."""
        self._catch_up()
        for key, number, data in entries:
            self.dropped.discard(key)
            self._keep(key, number, data)

    async def get(self, key: str) -> tuple[tuple[int, bytes] | None, bool]:
        """What is held for a key, and whether None means that there is nothing."""
        self._catch_up()
        return self.held.get(key), self.complete

    async def drop(self, key: str) -> None:
        """Forget a key."""
        self._catch_up()
        self.held.pop(key, None)
        if not self.complete:
            self.dropped.add(key)

    async def copies(self, asking: str) -> list[Entry] | None:
        """What another keeper should hold, too; None where that is not known in full."""
        self._catch_up()
        if not self.complete:
            return None
        return [Entry(key, *held) for key, held in self.held.items() if asking in self.store.homes(key)]

    async def size(self, _: None = None) -> tuple[int, int]:
        """How many records are held, and their bytes."""
        self._catch_up()
        return len(self.held), sum(len(data) for _, data in self.held.values())

    def _keep(self, key: str, number: int, data: bytes) -> None:
        if number >= self.held.get(key, (-1, b""))[0]:
            self.held[key] = number, data

    def _catch_up(self) -> None:
        if not self.complete and self.catching_up is None:
            self.catching_up = asyncio.get_running_loop().create_task(self._copy())

    async def _copy(self) -> None:
        """Of every other keeper what belongs here, too."""
        waiting = {keeper for keeper in self.store.keepers if keeper != self.name}
        while waiting:
            for keeper in sorted(waiting):
                try:
                    entries = await ray.get_actor(keeper, self.store.namespace).copies.remote(self.name)
                except (RayActorError, ValueError):
                    continue
                if entries is not None:
                    waiting.discard(keeper)
                    for key, number, data in entries:
                        if key not in self.dropped:
                            self._keep(key, number, data)
            if waiting:
                await asyncio.sleep(_AGAIN)
        self.complete = True
        self.dropped.clear()
