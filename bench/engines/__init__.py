"""The engines: those that run a model file, and PyTorch and NumPy, which get the same weights as arrays."""

from __future__ import annotations

from typing import Final

from lstm_engine.report.engines import FILE_ENGINES, Engine

_ALL: Final = ("float32", "bfloat16", "int8")
ENGINES: Final = {
    engine.name: engine
    for engine in (
        *FILE_ENGINES,
        Engine("torch", "PyTorch", "torch", f"{__name__}.pytorch", _ALL),
        Engine("torch_cell", "PyTorch, LSTMCell", "torch", f"{__name__}.pytorch", _ALL),
        Engine("numpy", "NumPy", "numpy", f"{__name__}.plain", ("float32",)),
    )
}
