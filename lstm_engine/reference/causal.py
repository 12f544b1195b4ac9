"""Windows that end at the present step, on the steps of a block and the context that the last block left.

The engine's own operators: an ONNX operator that is padded on the left alone looks only back, so a stream can carry
what it will look back at. Each gives the ONNX operator's result on the context and x joined along ``axis``, and the
context of the next block: the joined array's last steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .convolution import convolution_kernel
from .pooling import average_pool, max_pool
from .quantised import qlinear_conv
from .registry import Array, operator
from .windows import Windows, windows


def _joined(context: Array, x: Array, axis: int) -> tuple[Array, Array]:
    """Context and x in one, and the next context."""
    whole = np.concatenate([context, x], axis)
    kept = [slice(None)] * x.ndim
    kept[axis] = slice(whole.shape[axis] - context.shape[axis], None)
    return whole, whole[tuple(kept)]


@operator("CausalConv")
def causal_conv(
    x: Array,
    context: Array,
    W: Array,
    B: Array | None = None,
    *,
    axis: int,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> tuple[Array, Array]:
    """Conv of x[N,C,...T...] W[M,C/group,...] that looks back (k - 1) * dilation steps along T, no padding there.

    context: as x, with as many steps as are looked back at.
    """
    whole, kept = _joined(context, x, axis)
    kernel = convolution_kernel(whole.shape, W.shape, None if B is None else B.shape, group, None)
    places = windows(whole.shape[2:], kernel, strides=strides, dilations=dilations, pads=pads, auto_pad="NOTSET")
    y = _step_by_step(whole, W, group, places, axis)
    return y if B is None else y + B.reshape(-1, *(1,) * len(kernel)), kept


def _step_by_step(x: Array, W: Array, group: int, places: Windows, axis: int) -> Array:
    """Σ_c,k W[m,c,k] x[n,c,places], a product of its own for each row and step: no result depends on its neighbours."""
    view = np.moveaxis(places.view(x, 0), axis, 1)  # [N, T, C, other outputs..., kernel...]
    N, T, M, depth = x.shape[0], view.shape[1], W.shape[0], math.prod(W.shape[1:])
    others = view.shape[3 : 2 + len(places.kernel)]
    taps = np.moveaxis(view.reshape(N, T, group, W.shape[1], *view.shape[3:]), 3, 3 + len(others))
    taps = np.ascontiguousarray(taps.reshape(N, T, group, math.prod(others), depth))
    weights = np.ascontiguousarray(W.reshape(group, M // group, depth).swapaxes(1, 2))
    y = np.matmul(taps, weights).swapaxes(3, 4).reshape(N, T, M, *others)
    return np.ascontiguousarray(np.moveaxis(y, 1, axis))


@operator("CausalQLinearConv")
def causal_qlinear_conv(
    x: Array,
    context: Array,
    x_scale: Array,
    x_zero_point: Array,
    w: Array,
    w_scale: Array,
    w_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    B: Array | None = None,
    *,
    axis: int,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> tuple[Array, Array]:
    """QLinearConv of x[N,C,...T...] that looks back along T, no padding there. Its sums are exact."""
    whole, kept = _joined(context, x, axis)
    quantised = (x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, B)
    return qlinear_conv(whole, *quantised, dilations=dilations, group=group, pads=pads, strides=strides), kept


@operator("CausalMaxPool")
def causal_max_pool(
    x: Array,
    context: Array,
    *,
    axis: int,
    kernel_shape: Sequence[int],
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> tuple[Array, Array]:
    """MaxPool of x[N,C,...T...] over windows that end at the present step."""
    whole, kept = _joined(context, x, axis)
    return max_pool(whole, kernel_shape=kernel_shape, dilations=dilations, pads=pads, strides=strides)[0], kept


@operator("CausalAveragePool")
def causal_average_pool(
    x: Array,
    context: Array,
    *,
    axis: int,
    kernel_shape: Sequence[int],
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> tuple[Array, Array]:
    """AveragePool of x[N,C,...T...] over windows that end at the present step; the context counts."""
    whole, kept = _joined(context, x, axis)
    means = average_pool(
        whole,
        kernel_shape=kernel_shape,
        count_include_pad=count_include_pad,
        dilations=dilations,
        pads=pads,
        strides=strides,
    )
    return means, kept


@operator("CausalCumSum")
def causal_cum_sum(x: Array, context: Array, *, axis: int, exclusive: int = 0) -> tuple[Array, Array]:
    """CumSum along ``axis`` that goes on from the sum so far: context, as x with one step."""
    whole = np.cumsum(np.concatenate([context, x], axis), axis, dtype=x.dtype)
    steps = x.shape[axis]
    places = np.arange(steps) + (0 if exclusive else 1)
    return np.take(whole, places, axis), np.take(whole, [steps], axis)
