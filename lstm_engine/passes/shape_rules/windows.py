"""Rules of convolution and pooling, and of the operators that draw at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import ModelFormatError
from ...reference.convolution import convolution_kernel, spreading, transposed_kernel
from ...reference.pointwise import element_type
from ...reference.windows import pool_windows, windows
from .known import INT64, Known, one_type, rule


@rule("Conv")
def _conv(
    x: Known, W: Known, B: Known | None = None, *, group: int, kernel_shape: Sequence[int] | None, **attributes: Any
) -> Known:
    kernel = convolution_kernel(x.shape, W.shape, None if B is None else B.shape, group, kernel_shape)
    outputs = windows(x.shape[2:], kernel, **attributes).outputs
    return Known((x.shape[0], W.shape[0], *outputs), one_type(x, W, B))


@rule("ConvTranspose")
def _conv_transpose(
    x: Known, W: Known, B: Known | None = None, *, group: int, kernel_shape: Sequence[int] | None, **attributes: Any
) -> Known:
    kernel = transposed_kernel(x.shape, W.shape, None if B is None else B.shape, group, kernel_shape)
    outputs = spreading(x.shape[2:], kernel, **attributes).outputs
    return Known((x.shape[0], W.shape[1] * group, *outputs), one_type(x, W, B))


def pooled(x: Known, attributes: dict[str, Any]) -> tuple[int, ...]:
    """The shape that pooling makes of x[N,C,...]."""
    kernel = attributes.pop("kernel_shape")
    return (*x.shape[:2], *pool_windows(x.shape[2:], kernel, **attributes).outputs)


@rule("MaxPool")
def _max_pool(x: Known, *, storage_order: int, **attributes: Any) -> tuple[Known, Known]:
    shape = pooled(x, attributes)
    return Known(shape, x.dtype), Known(shape, INT64)


@rule("AveragePool")
def _average_pool(x: Known, *, count_include_pad: int, **attributes: Any) -> Known:
    return Known(pooled(x, attributes), x.dtype)


@rule("LpPool")
def _lp_pool(x: Known, *, p: int, **attributes: Any) -> Known:
    return Known(pooled(x, attributes), x.dtype)


@rule("GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool")
def _global_pool(x: Known, **_: Any) -> Known:
    if x.rank < 3:
        raise ModelFormatError(f"x must be [N, C, ...] with at least one spatial axis, got {list(x.shape)}")
    return Known((*x.shape[:2], *(1,) * (x.rank - 2)), x.dtype)


# draws


@rule("Multinomial")
def _multinomial(x: Known, *, dtype: int, sample_size: int, **_: Any) -> Known:
    if x.rank != 2 or sample_size < 1 or not x.shape[1]:
        raise ModelFormatError(f"x must be [B, C] with classes to draw {sample_size} of, got {list(x.shape)}")
    return Known((x.shape[0], sample_size), element_type(dtype))


@rule("RandomUniform", "RandomNormal")
def _random(*, shape: Sequence[int], dtype: int, **_: Any) -> Known:
    if any(size < 0 for size in shape):
        raise ModelFormatError(f"sizes must not be negative, got {list(shape)}")
    return Known(tuple(shape), element_type(dtype))


@rule("RandomUniformLike", "RandomNormalLike", "Bernoulli")
def _random_like(x: Known, *, dtype: int | None, **_: Any) -> Known:
    return Known(x.shape, x.dtype if dtype is None else element_type(dtype))
