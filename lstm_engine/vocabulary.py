"""The words of the field, defined once: dimension letters, gate orders and how they map on each other.

Dimensions: T time steps, B batch, I inputs, H hidden units, D directions (1 or 2), L layers,
P projected units (LSTMP). ``4H`` are the stacked gates.

Gates: i input, o output, f forget, g candidate (ONNX writes c); ``c`` alone is always the cell state.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np

Framework = Literal["onnx", "pytorch", "keras"]

#: Order of the four gate blocks in the stacked weights. The engine's own order is ONNX's.
GATE_ORDER: Final[dict[Framework, str]] = {"onnx": "iofg", "pytorch": "ifgo", "keras": "ifgo"}
GATES: Final = GATE_ORDER["onnx"]
#: Order of the peephole vectors in ONNX's P.
PEEPHOLES: Final = "iof"
DIRECTIONS: Final = ("forward", "reverse", "bidirectional")


def to_onnx_gates(stacked: np.ndarray, source: Framework, axis: int = 0) -> np.ndarray:
    """Reorder the gate blocks of ``stacked`` (4H along ``axis``) from a framework's order to i, o, f, g."""
    order = GATE_ORDER[source]
    blocks = np.split(stacked, 4, axis=axis)
    return np.concatenate([blocks[order.index(gate)] for gate in GATES], axis=axis)


#: Key of the metadata that say in which type a model of half precision is computed, and what they say.
COMPUTED_IN: Final = "lstm_engine.computed_in"
WIDENED: Final = "float32: the file declares float16 or bfloat16"
