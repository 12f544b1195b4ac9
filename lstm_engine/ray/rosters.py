"""Roster: which actors are on duty, and which of them is a stream's home."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple


def ranked(key: str, names: Iterable[str]) -> list[str]:
    """Names by their weight for a key (rendezvous hashing): when one goes, only what it was first for moves."""
    return sorted(names, key=lambda name: blake2b(f"{name}\0{key}".encode(), digest_size=8).digest(), reverse=True)


@dataclass(frozen=True)
class Roster:
    """``number`` grows with every change. ``joined``: who is on duty, and the number of the roster with which each
    came; ``pins``: homes that were chosen by hand.
    """

    number: int = 0
    joined: Mapping[str, int] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)

    def home(self, key: str) -> str | None:
        """The member that a stream lives on; None where there is nobody."""
        pinned = self.pins.get(key)
        if pinned in self.joined:
            return pinned
        return next(iter(ranked(key, self.joined)), None)


class Report(NamedTuple):
    """A shard that asks for a lease: the process, its node, the last roster it acts by, and, while its lease holds, the
    number of the roster that it joined with.
    """

    member: str
    incarnation: str
    node: str
    seen: int
    joined: int | None


class Grant(NamedTuple):
    """A lease. ``settled``: all act by this roster, and what acted by an earlier one alone has stopped."""

    roster: Roster
    settled: bool


def shard_name(pool: str, member: str) -> str:
    """What Ray knows a shard by."""
    return f"{pool}.shard.{member}"


def warden_name(pool: str) -> str:
    """What Ray knows a pool's warden by."""
    return f"{pool}.warden"
