"""Numbers as small integers: x is about (q - zero_point) * scale.

Rounding goes to the nearest integer, halves to the even one, and saturates. Products are summed exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from .convolution import convolution_kernel, correlated
from .pointwise import element_type
from .registry import Array, operator
from .windows import windows

QUANTISED: Final = frozenset({"uint8", "int8", "uint16", "int16"})


@operator("QuantizeLinear")
def quantize_linear(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Array:
    """round(x / scale) + zero_point; scale and zero_point for all, for each slice of ``axis``, or for its blocks."""
    dtype = quantised_type(None if zero_point is None else zero_point.dtype, output_dtype)
    scale, zero_point = _spread(x, scale, axis, block_size), _spread(x, zero_point, axis, block_size)
    return saturated(x / scale, 0 if zero_point is None else zero_point, dtype)


@operator("DequantizeLinear")
def dequantize_linear(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Array:
    """(x - zero_point) * scale; scale and zero_point for all, for each slice of ``axis``, or for its blocks."""
    dtype = element_type(output_dtype) if output_dtype else scale.dtype
    whole = x.astype(np.int64)
    if zero_point is not None:
        whole = whole - _spread(x, zero_point, axis, block_size)
    return (whole.astype(scale.dtype) * _spread(x, scale, axis, block_size)).astype(dtype)


def _spread(x: Array, v: Any, axis: int, block_size: int) -> Any:
    """A scale or zero point as it broadcasts to x."""
    if v is None or (v.size == 1 and v.ndim < 2):
        return None if v is None else v.reshape(())
    check_granularity(x.shape, v.shape, axis, block_size)
    if block_size:
        return np.take(np.repeat(v, block_size, axis), range(x.shape[axis]), axis)
    return v.reshape(-1, *(1,) * (x.ndim - 1 - axis % x.ndim))


def check_granularity(x: tuple[int, ...], v: tuple[int, ...], axis: int, block_size: int) -> None:
    """Refuse a scale or zero point that is neither for all of x nor for each slice or block of ``axis``."""
    if v in ((), (1,)) and not block_size:
        return
    if not -len(x) <= axis < len(x):
        raise ModelFormatError(f"axis {axis} does not exist in {list(x)}")
    axis %= len(x)
    blocks = -(-x[axis] // block_size) if block_size > 0 else x[axis]
    expected = (*x[:axis], blocks, *x[axis + 1 :]) if block_size else (blocks,)
    if v != expected or block_size < 0:
        raise ModelFormatError(f"scale and zero_point must be [1] or {list(expected)}, got {list(v)}")


def quantised_type(zero_point: np.dtype[Any] | None, output_dtype: int = 0) -> np.dtype[Any]:
    """The integer type that QuantizeLinear makes."""
    dtype = zero_point if zero_point is not None else element_type(output_dtype or 2)
    if str(dtype) not in QUANTISED or (output_dtype and element_type(output_dtype) != dtype):
        raise UnsupportedModelError(f"quantised type {dtype} is not one of {', '.join(sorted(QUANTISED))}")
    return dtype


def saturated(x: Array, zero_point: Any, dtype: np.dtype[Any]) -> Array:
    """round(x) + zero_point within what dtype holds; NaN is the zero point."""
    bounds = np.iinfo(dtype)
    whole = np.rint(np.where(np.isnan(x), 0, x)) + np.asarray(zero_point).astype(np.float64)
    return np.clip(whole, bounds.min, bounds.max).astype(dtype)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Array) -> tuple[Array, Array, Array]:
    """x as uint8 over its own range (0 always within it), the scale, the zero point."""
    low = np.minimum(np.min(x, initial=np.inf), 0).astype(x.dtype)
    high = np.maximum(np.max(x, initial=-np.inf), 0).astype(x.dtype)
    scale = ((high - low) / x.dtype.type(255) if high != low else np.ones((), x.dtype)).astype(x.dtype)
    zero_point = saturated(-low / scale, 0, np.dtype(np.uint8))
    return saturated(x / scale, zero_point, np.dtype(np.uint8)), scale, zero_point


# --- products ---------------------------------------------------------------------------------------------------------


@operator("MatMulInteger")
def matmul_integer(a: Array, b: Array, a_zero_point: Array | None = None, b_zero_point: Array | None = None) -> Array:
    """(a - a_zero_point) @ (b - b_zero_point) in int32; zero points for all, for a's rows, for b's columns."""
    return exact_product(centred_rows(a, a_zero_point), centred_columns(b, b_zero_point)).astype(np.int32)


@operator("QLinearMatMul")
def qlinear_matmul(
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
) -> Array:
    """a @ b of quantised matrices, quantised by y's scale and zero point."""
    product = exact_product(centred_rows(a, a_zero_point), centred_columns(b, b_zero_point))
    scale = _rows(a_scale) * b_scale / _rows(y_scale)
    return saturated(product.astype(scale.dtype) * scale, _rows(y_zero_point), y_zero_point.dtype)


def centred_rows(a: Array, zero_point: Array | None) -> Array:
    """a[...,M,K] less its zero point, which is one for all or [M]."""
    return a.astype(np.float64) - (0 if zero_point is None else _rows(zero_point))


def centred_columns(b: Array, zero_point: Array | None) -> Array:
    """b[...,K,N] less its zero point, which is one for all, [N] or [...,1,N]."""
    return b.astype(np.float64) - (0 if zero_point is None else zero_point)


def exact_product(a: Array, b: Array) -> Array:
    """A product of small whole numbers held as float64: exact below 2^53, wrapped to 32 bits as sums of int32 are."""
    return np.matmul(a, b).astype(np.int64).astype(np.int32)


def _rows(v: Array) -> Array:
    """One number for all, or one for each row of a matrix."""
    return v[:, None] if v.ndim == 1 and v.size > 1 else v


@operator("ConvInteger")
def conv_integer(
    x: Array,
    w: Array,
    x_zero_point: Array | None = None,
    w_zero_point: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """The convolution of x - x_zero_point with w - w_zero_point in int32."""
    kernel = convolution_kernel(x.shape, w.shape, None, group, kernel_shape)
    places = windows(x.shape[2:], kernel, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad)
    centred = _centred(x, x_zero_point), _centred(w, _per_kernel(w_zero_point, w.ndim))
    return correlated(*centred, group, places).astype(np.int64).astype(np.int32)


@operator("QLinearConv")
def qlinear_conv(
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    w: Array,
    w_scale: Array,
    w_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    B: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """The convolution of quantised x and w, quantised by y's scale and zero point; B[M] counts in x_scale * w_scale."""
    kernel = convolution_kernel(x.shape, w.shape, None if B is None else B.shape, group, kernel_shape)
    places = windows(x.shape[2:], kernel, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad)
    centred = _centred(x, x_zero_point), _centred(w, _per_kernel(w_zero_point, w.ndim))
    sums = correlated(*centred, group, places)
    if B is not None:
        sums = sums + B.reshape(-1, *(1,) * len(kernel))
    scale = x_scale * w_scale / y_scale
    scale = scale.reshape(-1, *(1,) * len(kernel)) if scale.size > 1 else scale.reshape(())
    return saturated(sums.astype(scale.dtype) * scale, y_zero_point.reshape(()), y_zero_point.dtype)


def _centred(x: Array, zero_point: Array | None) -> Array:
    return x.astype(np.float64) - (0 if zero_point is None else zero_point)


def _per_kernel(v: Array | None, rank: int) -> Array | None:
    """One number for all, or one for each kernel of w[M,C,...]."""
    return v if v is None or v.size == 1 else v.reshape(-1, *(1,) * (rank - 1))
