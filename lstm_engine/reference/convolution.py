"""Convolution over any number of spatial axes, and its transpose."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from .registry import Array, operator
from .windows import AUTO_PADS, Given, Sizes, Windows, steps, windows

#: Elements of the windows that are copied out for one matrix product.
BLOCK: Final = 1 << 22


@operator("Conv")
def conv(
    x: Array,
    W: Array,
    B: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """y[n,m,o] = B[m] + Σ_c,k W[m,c,k] x[n,c,o * stride + k * dilation - pad], the channels c of m's group alone.

    x[N,C,...] W[M,C/group,...] B[M] → [N,M,...].
    """
    kernel = convolution_kernel(x.shape, W.shape, None if B is None else B.shape, group, kernel_shape)
    places = windows(x.shape[2:], kernel, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad)
    y = correlated(x, W, group, places)
    return y if B is None else y + B.reshape(-1, *(1,) * len(kernel))


def correlated(x: Array, W: Array, group: int, places: Windows) -> Array:
    """Σ_c,k W[m,c,k] x[n,c,places] in blocks, each a matrix product per group."""
    M, depth = W.shape[0], math.prod(W.shape[1:])
    weights = W.reshape(group, M // group, depth).swapaxes(1, 2)
    view = places.view(x, 0)
    rank = len(places.kernel)
    y = np.empty((x.shape[0], M, *places.outputs), np.result_type(x, W))
    for n, rows in _blocks(x.shape[0], places.outputs, x.shape[1] * math.prod(places.kernel)):
        part = view[n, :, rows]  # [C, outputs..., kernel...]
        outputs = part.shape[1 : 1 + rank]
        taps = part.reshape(group, -1, *part.shape[1:])
        taps = np.moveaxis(taps, 1, 1 + rank).reshape(group, math.prod(outputs), depth)
        y[n, :, rows] = np.matmul(taps, weights).swapaxes(1, 2).reshape(M, *outputs)
    return y


def _blocks(batch: int, outputs: Sizes, taps: int) -> Iterator[tuple[int, slice]]:
    """Rows of the batch, and ranges of the first output axis whose windows together have about BLOCK elements."""
    if not math.prod(outputs):
        return
    count = max(1, BLOCK // max(1, taps * math.prod(outputs[1:])))
    for n in range(batch):
        for first in range(0, outputs[0], count):
            yield n, slice(first, first + count)


def convolution_kernel(x: Sizes, W: Sizes, B: Sizes | None, group: int, kernel_shape: Given) -> Sizes:
    """The kernel of W[M,C/group,...], checked against x[N,C,...] and the other operands."""
    if len(x) < 3 or len(W) != len(x):
        raise ModelFormatError(f"x must be [N, C, ...] and W [M, C/group, ...], got {list(x)} and {list(W)}")
    if group < 1 or x[1] != W[1] * group or W[0] % group:
        raise ModelFormatError(f"x {list(x)} does not fit W [M, C/group, ...] = {list(W)} of {group} groups")
    if B is not None and (W[0],) != B:
        raise ModelFormatError(f"B must be [M] = [{W[0]}], got {list(B)}")
    return _kernel(W, kernel_shape)


def _kernel(W: Sizes, kernel_shape: Given) -> Sizes:
    if kernel_shape is not None and tuple(kernel_shape) != W[2:]:
        raise ModelFormatError(f"kernel_shape {list(kernel_shape)} is not W's {list(W[2:])}")
    return W[2:]


# --- the transpose ----------------------------------------------------------------------------------------------------


@operator("ConvTranspose")
def conv_transpose(
    x: Array,
    W: Array,
    B: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Each input spreads its kernel over the output: y[n,m,i * stride + k * dilation - pad] += W[c,m,k] x[n,c,i].

    x[N,C,...] W[C,M/group,...] B[M] → [N,M,...].
    """
    kernel = transposed_kernel(x.shape, W.shape, None if B is None else B.shape, group, kernel_shape)
    spread = spreading(
        x.shape[2:],
        kernel,
        auto_pad=auto_pad,
        dilations=dilations,
        output_padding=output_padding,
        output_shape=output_shape,
        pads=pads,
        strides=strides,
    )
    N, spatial, channels = x.shape[0], x.shape[2:], W.shape[1]
    whole = np.zeros((N, group, channels, *spread.whole), np.result_type(x, W))
    inputs = x.reshape(N, group, x.shape[1] // group, math.prod(spatial))
    weights = W.reshape(group, W.shape[0] // group, channels, *kernel)
    for k in product(*map(range, kernel)):
        tap: tuple[Any, ...] = (..., *k)
        reached: tuple[Any, ...] = (
            ...,
            *(
                slice(i * d, i * d + (n - 1) * s + 1, s)
                for i, d, n, s in zip(k, spread.dilations, spatial, spread.strides, strict=True)
            ),
        )
        if math.prod(spatial):
            share = np.matmul(weights[tap].swapaxes(1, 2), inputs)
            whole[reached] += share.reshape(N, group, channels, *spatial)
    kept: tuple[Any, ...] = (..., *(slice(b, b + o) for b, o in zip(spread.before, spread.outputs, strict=True)))
    y = whole.reshape(N, group * channels, *spread.whole)[kept]
    return np.ascontiguousarray(y) if B is None else y + B.reshape(-1, *(1,) * len(kernel))


@dataclass(frozen=True, slots=True)
class Spread:
    """How a transposed convolution spreads its inputs: over ``whole``, keeping ``outputs`` from ``before`` on."""

    strides: Sizes
    dilations: Sizes
    before: Sizes
    outputs: Sizes
    whole: Sizes


def spreading(
    spatial: Sizes,
    kernel: Sizes,
    *,
    auto_pad: str,
    dilations: Given,
    output_padding: Given,
    output_shape: Given,
    pads: Given,
    strides: Given,
) -> Spread:
    """Where the inputs of a transposed convolution go. Raises ModelFormatError where the attributes do not fit."""
    kernel, strides, dilations, before, after = steps(spatial, kernel, strides, dilations, pads)
    rank = len(spatial)
    more = tuple(output_padding or (0,) * rank)
    if len(more) != rank or any(not 0 <= p < max(s, d) for p, s, d in zip(more, strides, dilations, strict=False)):
        raise ModelFormatError(f"output_padding {list(more)} must be {rank} numbers below the stride or the dilation")
    if auto_pad not in AUTO_PADS:
        raise UnsupportedModelError(f"auto_pad='{auto_pad}' is not one of {', '.join(AUTO_PADS)}")
    full = tuple(
        s * (n - 1) + p + (k - 1) * d + 1
        for n, k, s, d, p in zip(spatial, kernel, strides, dilations, more, strict=True)
    )
    wanted: Sizes | None = None
    if output_shape:
        wanted = tuple(output_shape)[-rank:]
    elif auto_pad.startswith("SAME"):
        wanted = tuple(n * s for n, s in zip(spatial, strides, strict=True))
    if auto_pad == "VALID":
        before = after = (0,) * rank
    if wanted is not None:
        if not output_shape and any(w > f for f, w in zip(full, wanted, strict=True)):
            raise UnsupportedModelError(f"auto_pad='{auto_pad}' where the inputs do not reach the output's end")
        totals = [max(0, f - w) for f, w in zip(full, wanted, strict=True)]
        before = tuple(t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in totals)
        after = tuple(t - b for t, b in zip(totals, before, strict=True))
    outputs = wanted or tuple(f - b - a for f, b, a in zip(full, before, after, strict=True))
    if any(o < 1 for o in outputs) or len(outputs) != rank:
        raise ModelFormatError(f"pads {list(before)} and {list(after)} take more off than {list(full)} has")
    whole = tuple(max(f, b + o) for f, b, o in zip(full, before, outputs, strict=True))
    return Spread(strides, dilations, before, outputs, whole)


def transposed_kernel(x: Sizes, W: Sizes, B: Sizes | None, group: int, kernel_shape: Given) -> Sizes:
    """The kernel of W[C,M/group,...], checked against x[N,C,...] and the other operands."""
    if len(x) < 3 or len(W) != len(x):
        raise ModelFormatError(f"x must be [N, C, ...] and W [C, M/group, ...], got {list(x)} and {list(W)}")
    if group < 1 or x[1] != W[0] or W[0] % group:
        raise ModelFormatError(f"x {list(x)} does not fit W [C, M/group, ...] = {list(W)} of {group} groups")
    if B is not None and (W[1] * group,) != B:
        raise ModelFormatError(f"B must be [M] = [{W[1] * group}], got {list(B)}")
    return _kernel(W, kernel_shape)
