"""lstm_engine: a CPU inference engine for trained LSTM networks.

    import lstm_engine as le
    model = le.load("model.onnx")
    stream = model.stream()
    y = stream.step(x)

Importing the package imports nothing else; what a name needs is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import (
        BusyError,
        InputError,
        LstmEngineError,
        ModelFormatError,
        StateError,
        StreamingError,
        TargetError,
        UnsupportedModelError,
    )
    from .generation import Sampler, generate
    from .graph import TensorSpec
    from .model import Model, load
    from .pool import StreamPool
    from .serving import AsyncPool, AsyncStream
    from .session import InferenceSession
    from .state import State
    from .stream import Stream
    from .trace import Trace

__version__ = "0.1.0"

_HOMES = {
    "AsyncPool": "serving",
    "AsyncStream": "serving",
    "BusyError": "errors",
    "InferenceSession": "session",
    "InputError": "errors",
    "LstmEngineError": "errors",
    "Model": "model",
    "ModelFormatError": "errors",
    "Sampler": "generation",
    "State": "state",
    "StateError": "errors",
    "Stream": "stream",
    "StreamPool": "pool",
    "StreamingError": "errors",
    "TargetError": "errors",
    "TensorSpec": "graph",
    "Trace": "trace",
    "UnsupportedModelError": "errors",
    "generate": "generation",
    "load": "model",
}
__all__ = [
    "AsyncPool",
    "AsyncStream",
    "BusyError",
    "InferenceSession",
    "InputError",
    "LstmEngineError",
    "Model",
    "ModelFormatError",
    "Sampler",
    "State",
    "StateError",
    "Stream",
    "StreamPool",
    "StreamingError",
    "TargetError",
    "TensorSpec",
    "Trace",
    "UnsupportedModelError",
    "__version__",
    "generate",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lstm_engine' has no attribute '{name}'")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
