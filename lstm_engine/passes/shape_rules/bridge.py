"""Rules of the operators that onnx's evaluator defines: onnx infers their shapes too."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...reference.bridge import BRIDGED, inferred
from .known import DataDependentError, Known, rule


def _bridged(op: str, *inputs: Known | None, **attributes: Any) -> list[Known]:
    results = inferred(op, [None if k is None else (k.shape, k.dtype, k.value) for k in inputs], attributes)
    if any(shape is None for shape, _ in results):
        raise DataDependentError("data-dependent shape: the size of its outputs is computed from the feeds")
    return [Known(shape, dtype) for shape, dtype in results if shape is not None]


for _op in BRIDGED:
    rule(_op)(partial(_bridged, _op))
