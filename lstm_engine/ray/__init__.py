"""Beyond one machine, on Ray: data sets scored by many processes, and streams that outlive the machine they run on.

    import ray
    from lstm_engine.ray import score
    score(ray.data.read_parquet("readings/"), "model.onnx", column="x", output="y").write_parquet("scores/")

Nothing else in the package imports Ray; this needs the extra: pip install 'lstm_engine[ray]'.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from .clients import AsyncRayPool, AsyncRayStream, Drawn
    from .scoring import Scorer, score
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
    "Scorer": "scoring",
    "score": "scoring",
}
__all__ = [
    "ActorStore",
    "AsyncRayPool",
    "AsyncRayStream",
    "Drawn",
    "FolderStore",
    "RayPool",
    "RayStream",
    "Scorer",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lstm_engine.ray' has no attribute '{name}'")
    require()
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def require(*modules: str) -> None:
    """Raise MissingExtraError unless Ray and these modules are installed."""
    missing = [name for name in ("ray", *modules) if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"lstm_engine.ray needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'lstm_engine[ray]'"
        )
