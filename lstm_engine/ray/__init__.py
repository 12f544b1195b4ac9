"""lstm_engine.ray: beyond one machine, on Ray (`pip install 'lstm_engine[ray]'`).

Importing it imports nothing else; what a name needs is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clients import AsyncRayPool, AsyncRayStream, Drawn
    from .stores import ActorStore, FolderStore
    from .streams import RayPool, RayStream

_HOMES = {
    "ActorStore": "stores",
    "AsyncRayPool": "clients",
    "AsyncRayStream": "clients",
    "Drawn": "clients",
    "FolderStore": "stores",
    "RayPool": "streams",
    "RayStream": "streams",
}
__all__ = ["ActorStore", "AsyncRayPool", "AsyncRayStream", "Drawn", "FolderStore", "RayPool", "RayStream"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lstm_engine.ray' has no attribute '{name}'")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
