"""Small models whose first use compiles whatever the first use of any model would compile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..graph import Graph, Node, TensorSpec
from ..precision import PRECISIONS

if TYPE_CHECKING:
    from ..model import Model

#: Hidden sizes of a step that keeps the interpreter lock and of one that gives it up.
_SIZES: Final = (4, 512)


def rehearse(precision: str) -> None:
    """Use small models of a precision in every way: readings and tokens, short steps and long ones."""
    from ..model import Model

    for hidden in _SIZES:
        for tokens in (None, np.dtype(np.int32), np.dtype(np.int64)):
            _use(Model(_graph(np.dtype(PRECISIONS[precision]), hidden, tokens), precision))


def _use(model: Model) -> None:
    """Whole sequences, chunks, steps of arrays and of numbers, all from rest."""
    x = np.zeros((2, 1, 1) if model.inputs[0].dtype.kind == "f" else (2, 1), model.inputs[0].dtype)
    model.run(x)
    stream = model.stream()
    stream.feed(x)
    stream.step(x[0])
    stream.step(x.dtype.type(0).item())
    stream.state = stream.state


def _graph(dtype: np.dtype[Any], hidden: int, tokens: np.dtype[Any] | None) -> Graph:
    """One LSTM layer that reads a number or a token at a time."""
    constants = {"W": np.zeros((1, 4 * hidden, 1), dtype), "R": np.zeros((1, 4 * hidden, hidden), dtype)}
    nodes = [Node("LSTM", ("x", "W", "R"), ("y",), {"hidden_size": hidden})]
    given = TensorSpec("x", dtype, ("time", "batch", 1))
    if tokens is not None:
        constants["table"] = np.zeros((2, 1), dtype)
        nodes.insert(0, Node("Gather", ("table", "ids"), ("x",)))
        given = TensorSpec("ids", tokens, ("time", "batch"))
    made = TensorSpec("y", dtype, ("time", 1, "batch", hidden))
    return Graph.build(nodes, [given], [made], constants, opset=18)
