"""Pooling: what a window of x[N,C,...] amounts to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from ..errors import ModelFormatError
from .reduction import least, mean_over
from .registry import Array, operator
from .windows import Windows, pool_windows


@operator("MaxPool")
def max_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> tuple[Array, Array]:
    """The greatest of each window, and where in the flattened x it is (the first of equals)."""
    places = pool_windows(
        x.shape[2:],
        kernel_shape,
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
    )
    best, found = _greatest_taps(places.view(x, least(x.dtype)), places.kernel)
    return best, _positions(x.shape, found, places, bool(storage_order))


def _greatest_taps(view: Array, kernel: tuple[int, ...]) -> tuple[Array, Array]:
    """The greatest element of each window of view[N,C,outputs...,kernel...] and its number; a NaN is the greatest."""
    first: tuple[Any, ...] = (..., *(0,) * len(kernel))
    best = np.array(view[first])
    found = np.zeros(best.shape, np.int64)
    for number, tap in enumerate(product(*map(range, kernel))):
        place: tuple[Any, ...] = (..., *tap)
        here = view[place]
        better = (here > best) | ((here != here) & (best == best))
        best, found = np.where(better, here, best), np.where(better, number, found)
    return best, found


def _positions(shape: tuple[int, ...], found: Array, places: Windows, column_major: bool) -> Array:
    """Index into the flattened x of the tap ``found`` in each window."""
    spatial = shape[2:]
    taps = np.unravel_index(found, places.kernel)
    strides = np.cumprod([1, *spatial[:-1]]) if column_major else np.cumprod([1, *spatial[:0:-1]])[::-1]
    position = np.arange(math.prod(shape[:2])).reshape(*shape[:2], *(1,) * len(spatial)) * math.prod(spatial)
    for axis, tap in enumerate(taps):
        starts = np.arange(places.outputs[axis]) * places.strides[axis] - places.before[axis]
        ladder = starts.reshape(-1, *(1,) * (len(spatial) - 1 - axis))
        position = position + (ladder + tap * places.dilations[axis]) * int(strides[axis])
    return position.astype(np.int64)


@operator("AveragePool")
def average_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """The mean of each window, its padding left out or (count_include_pad) counted as zeros."""
    places = pool_windows(
        x.shape[2:],
        kernel_shape,
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
    )
    sums = np.sum(places.view(x, 0), axis=_kernel_axes(places))
    counts = places.counts(x.shape[2:], bool(count_include_pad))
    return (sums / np.maximum(counts, 1)).astype(x.dtype)  # dilation may leave a window nothing to count


@operator("LpPool")
def lp_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """The p-norm of each window."""
    places = pool_windows(
        x.shape[2:],
        kernel_shape,
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
    )
    return np.sum(places.view(_raised(x, p), 0), _kernel_axes(places)) ** (1 / p)


@operator("GlobalMaxPool")
def global_max_pool(x: Array) -> Array:
    """The greatest of each channel."""
    return np.max(x, _spatial_axes(x), keepdims=True, initial=least(x.dtype))


@operator("GlobalAveragePool")
def global_average_pool(x: Array) -> Array:
    """The mean of each channel."""
    return mean_over(x, _spatial_axes(x), keepdims=True)


@operator("GlobalLpPool")
def global_lp_pool(x: Array, *, p: int = 2) -> Array:
    """The p-norm of each channel."""
    return np.sum(_raised(x, p), _spatial_axes(x), keepdims=True) ** (1 / p)


def _raised(x: Array, p: int) -> Array:
    if p < 1:
        raise ModelFormatError(f"p must be at least 1, got {p}")
    return np.abs(x) ** p


def _kernel_axes(places: Windows) -> tuple[int, ...]:
    return tuple(range(-len(places.kernel), 0))


def _spatial_axes(x: Array) -> tuple[int, ...]:
    if x.ndim < 3:
        raise ModelFormatError(f"x must be [N, C, ...] with at least one spatial axis, got {list(x.shape)}")
    return tuple(range(2, x.ndim))
