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
        ClusterError,
        InputError,
        LstmEngineError,
        MissingExtraError,
        ModelFormatError,
        StateError,
        StreamingError,
        TargetError,
        UnsupportedModelError,
    )
    from .generation import (
        Beam,
        Likelihood,
        Piece,
        Sampler,
        Vocabulary,
        beam_search,
        generate,
        generate_many,
        score,
        stream_generate,
    )
    from .graph import TensorSpec
    from .library import Library, export
    from .model import Model, load
    from .pool import StreamPool
    from .ragged import Ragged
    from .serving import AsyncPool, AsyncStream
    from .session import InferenceSession
    from .state import State
    from .stream import Stream
    from .trace import Trace

__version__ = "0.1.0"

_HOMES = {
    "AsyncPool": "serving",
    "AsyncStream": "serving",
    "Beam": "generation",
    "BusyError": "errors",
    "ClusterError": "errors",
    "InferenceSession": "session",
    "InputError": "errors",
    "Likelihood": "generation",
    "Library": "library",
    "LstmEngineError": "errors",
    "MissingExtraError": "errors",
    "Model": "model",
    "ModelFormatError": "errors",
    "Piece": "generation",
    "Ragged": "ragged",
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
    "Vocabulary": "generation",
    "beam_search": "generation",
    "export": "library",
    "generate": "generation",
    "generate_many": "generation",
    "load": "model",
    "score": "generation",
    "stream_generate": "generation",
}
__all__ = [
    "AsyncPool",
    "AsyncStream",
    "Beam",
    "BusyError",
    "ClusterError",
    "InferenceSession",
    "InputError",
    "Library",
    "Likelihood",
    "LstmEngineError",
    "MissingExtraError",
    "Model",
    "ModelFormatError",
    "Piece",
    "Ragged",
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
    "Vocabulary",
    "__version__",
    "beam_search",
    "export",
    "generate",
    "generate_many",
    "load",
    "score",
    "stream_generate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lstm_engine' has no attribute '{name}'")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
