"""Rules of quantised operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from ...errors import ModelFormatError
from ...reference.convolution import convolution_kernel
from ...reference.pointwise import element_type
from ...reference.quantised import check_granularity, quantised_type
from ...reference.windows import windows
from .basic import matmul
from .known import DType, Known, one_type, rule

INT32: Final = np.dtype(np.int32)
UINT8: Final = np.dtype(np.uint8)


@rule("QuantizeLinear")
def _quantize(
    x: Known,
    scale: Known,
    zero_point: Known | None = None,
    *,
    axis: int,
    block_size: int,
    output_dtype: int,
    **_: Any,
) -> Known:
    _check_spread(x, (scale, zero_point), axis, block_size)
    return Known(x.shape, quantised_type(None if zero_point is None else zero_point.dtype, output_dtype))


@rule("DequantizeLinear")
def _dequantize(
    x: Known, scale: Known, zero_point: Known | None = None, *, axis: int, block_size: int, output_dtype: int
) -> Known:
    _check_spread(x, (scale, zero_point), axis, block_size)
    if zero_point is not None:
        one_type(x, zero_point)
    return Known(x.shape, element_type(output_dtype) if output_dtype else scale.dtype)


def _check_spread(x: Known, parameters: Sequence[Known | None], axis: int, block_size: int) -> None:
    for known in parameters:
        if known is not None:
            check_granularity(x.shape, known.shape, axis, block_size)


@rule("DynamicQuantizeLinear")
def _dynamic_quantize(x: Known) -> tuple[Known, Known, Known]:
    return Known(x.shape, UINT8), Known((), x.dtype), Known((), UINT8)


def integer_product(a: Known, b: Known, a_zero: Known | None, b_zero: Known | None, dtype: DType) -> Known:
    """The shape of a product of quantised matrices; zero points are one for all, a's rows or b's columns."""
    result = matmul(Known(a.shape, INT32), Known(b.shape, INT32))
    for name, zero, allowed in (
        ("a_zero_point", a_zero, ((a.shape[-2],) if a.rank > 1 else (), (*a.shape[:-1], 1))),
        ("b_zero_point", b_zero, ((b.shape[-1],), (*b.shape[:-2], 1, b.shape[-1]))),
    ):
        if zero is not None and zero.shape not in ((), (1,), *allowed):
            raise ModelFormatError(f"{name} {list(zero.shape)} does not fit {list((a if name[0] == 'a' else b).shape)}")
    return Known(result.shape, dtype)


@rule("MatMulInteger")
def _matmul_integer(a: Known, b: Known, a_zero: Known | None = None, b_zero: Known | None = None) -> Known:
    return integer_product(a, b, a_zero, b_zero, INT32)


@rule("QLinearMatMul")
def _qlinear_matmul(
    a: Known, _as: Known, a_zero: Known, b: Known, _bs: Known, b_zero: Known, _ys: Known, y_zero: Known
) -> Known:
    return integer_product(a, b, a_zero, b_zero, y_zero.dtype)


@rule("ConvInteger")
def _conv_integer(
    x: Known,
    w: Known,
    x_zero: Known | None = None,
    w_zero: Known | None = None,
    *,
    group: int,
    kernel_shape: Sequence[int] | None,
    **attributes: Any,
) -> Known:
    return Known(_convolved(x, w, None, (x_zero, w_zero), group, kernel_shape, attributes), INT32)


@rule("QLinearConv")
def qlinear_conv(
    x: Known,
    x_scale: Known,
    x_zero: Known,
    w: Known,
    w_scale: Known,
    w_zero: Known,
    y_scale: Known,
    y_zero: Known,
    B: Known | None = None,
    *,
    group: int,
    kernel_shape: Sequence[int] | None,
    **attributes: Any,
) -> Known:
    """y[N,M,...] of x[N,C,...] and w[M,C/group,...], of the type of its zero point."""
    singles = (x_scale, y_scale, y_zero)
    if any(known.shape not in ((), (1,)) for known in singles) or w_scale.shape not in ((), (1,), w.shape[:1]):
        raise ModelFormatError("scales and zero points must be scalars, w's also [M]")
    return Known(_convolved(x, w, B, (x_zero, w_zero), group, kernel_shape, attributes), y_zero.dtype)


def _convolved(
    x: Known,
    w: Known,
    B: Known | None,
    zeros: tuple[Known | None, Known | None],
    group: int,
    kernel_shape: Sequence[int] | None,
    attributes: dict[str, Any],
) -> tuple[int, ...]:
    for zero, allowed in zip(zeros, ((), w.shape[:1]), strict=True):
        if zero is not None and zero.shape not in ((), (1,), allowed):
            raise ModelFormatError(f"a zero point {list(zero.shape)} does not fit w {list(w.shape)}")
    kernel = convolution_kernel(x.shape, w.shape, None if B is None else B.shape, group, kernel_shape)
    return (x.shape[0], w.shape[0], *windows(x.shape[2:], kernel, **attributes).outputs)
