"""Rules of the engine's own operators on windows that end at the present step."""

from __future__ import annotations

from typing import Any

from ...errors import ModelFormatError
from ...reference.convolution import convolution_kernel
from ...reference.windows import pool_windows, windows
from .known import Known, Size, one_type, rule
from .quantised import qlinear_conv


def _joined(x: Known, context: Known, axis: int) -> Size:
    """The shape of context and x in one."""
    others = [k for k in range(x.rank) if k != axis]
    if not 0 <= axis < x.rank or context.rank != x.rank or any(x.shape[k] != context.shape[k] for k in others):
        raise ModelFormatError(f"context {list(context.shape)} is not like x {list(x.shape)} but for axis {axis}")
    return (*x.shape[:axis], context.shape[axis] + x.shape[axis], *x.shape[axis + 1 :])


def _given(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: attributes[name] for name in ("dilations", "pads", "strides")}


@rule("CausalConv")
def _causal_conv(
    x: Known, context: Known, W: Known, B: Known | None = None, *, axis: int, group: int, **attributes: Any
) -> tuple[Known, Known]:
    whole = _joined(x, context, axis)
    kernel = convolution_kernel(whole, W.shape, None if B is None else B.shape, group, None)
    outputs = windows(whole[2:], kernel, auto_pad="NOTSET", **_given(attributes)).outputs
    return Known((x.shape[0], W.shape[0], *outputs), one_type(x, W, B)), Known(context.shape, one_type(x, context))


@rule("CausalQLinearConv")
def _causal_qlinear_conv(
    x: Known, context: Known, *quantised: Known, axis: int, group: int, **attributes: Any
) -> tuple[Known, Known]:
    whole = Known(_joined(x, context, axis), x.dtype)
    given = {**_given(attributes), "auto_pad": "NOTSET", "kernel_shape": None}
    return qlinear_conv(whole, *quantised, group=group, **given), Known(context.shape, one_type(x, context))


@rule("CausalMaxPool", "CausalAveragePool")
def _causal_pool(x: Known, context: Known, *, axis: int, kernel_shape: Size, **attributes: Any) -> tuple[Known, Known]:
    whole = _joined(x, context, axis)
    outputs = pool_windows(whole[2:], kernel_shape, auto_pad="NOTSET", ceil_mode=0, **_given(attributes)).outputs
    return Known((*x.shape[:2], *outputs), x.dtype), Known(context.shape, one_type(x, context))


@rule("CausalCumSum")
def _causal_cum_sum(x: Known, context: Known, *, axis: int, exclusive: int) -> tuple[Known, Known]:
    _joined(x, context, axis)
    if context.shape[axis] != 1:
        raise ModelFormatError(f"the sum so far must be one step, got {list(context.shape)}")
    return Known(x.shape, x.dtype), Known(context.shape, one_type(x, context))
