"""Writer: records on their way from a shard to the store, all that are due in one go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from .records import Record
from .stores import Entry, Store, put_all

_AGAIN: Final = 0.3  # seconds before a store that failed is asked again


@dataclass
class _Due:
    record: Record
    safe: list[Callable[[Record], None]] = field(default_factory=list)


class Writer:
    """Keeps records in ``store``, in a thread, the newest of each stream; again and again where the store fails.

    ``fault``: why the last attempt failed.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.fault: Exception | None = None
        self._due: dict[str, _Due] = {}
        self._task: asyncio.Task[None] | None = None

    def put(self, key: str, record: Record, safe: Callable[[Record], None]) -> None:
        """Have a record kept; ``safe`` is called with what is: it, or a later one."""
        due = self._due.get(key)
        waiting = [*due.safe, safe] if due is not None else [safe]
        self._due[key] = _Due(record, waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        while self._due:
            batch, self._due = self._due, {}
            try:
                await asyncio.to_thread(self._keep, batch)
            except Exception as fault:  # the store's own, whatever it is
                self.fault = fault
                for key, due in batch.items():
                    newer = self._due.get(key)
                    if newer is None:
                        self._due[key] = due
                    else:
                        newer.safe[:0] = due.safe
                await asyncio.sleep(_AGAIN)
            else:
                self.fault = None
                for due in batch.values():
                    for safe in due.safe:
                        safe(due.record)

    def _keep(self, batch: dict[str, _Due]) -> None:
        put_all(self.store, [Entry(key, due.record.number, due.record.to_bytes()) for key, due in batch.items()])
