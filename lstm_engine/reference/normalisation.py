"""Normalisation over axes, channels or neighbouring channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from .reduction import mean_over
from .registry import Array, operator


@operator("InstanceNormalization")
def instance_normalization(x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-5) -> Array:
    """Each channel of each row of x[N,C,...] with mean 0 and variance 1, scaled[C] and shifted[C]."""
    check_channels(x.shape, scale.shape, bias.shape)
    return _standardised(x, tuple(range(2, x.ndim)), epsilon) * channels(scale, x.ndim) + channels(bias, x.ndim)


@operator("GroupNormalization")
def group_normalization(
    x: Array,
    scale: Array,
    bias: Array,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    per_group: int = 0,
    stash_type: int = 1,
) -> Array:
    """Each group of channels of each row of x[N,C,...] with mean 0 and variance 1, scaled[C] and shifted[C].

    per_group, an extension for operator set 18: scale and bias are of the groups.
    """
    groups = grouped(x.shape, num_groups)
    if per_group:
        scale, bias = (np.repeat(v, x.shape[1] // groups) for v in (scale, bias))
    check_channels(x.shape, scale.shape, bias.shape)
    spread = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    even = _standardised(spread, tuple(range(2, spread.ndim)), epsilon).reshape(x.shape)
    return even * channels(scale, x.ndim) + channels(bias, x.ndim)


@operator("RMSNormalization")
def rms_normalization(x: Array, scale: Array, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Array:
    """x over its root mean square on the axes from ``axis`` on, scaled."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    return x / np.sqrt(mean_over(x * x, axes, keepdims=True) + epsilon) * scale


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Array, *, axes: Sequence[int] = (0, 2, 3)) -> Array:
    """x with mean 0 and variance 1 over some axes."""
    over = tuple(axes)
    centred = x - mean_over(x, over, keepdims=True)
    return centred / (np.sqrt(mean_over(centred**2, over, keepdims=True)) + 1e-9)


@operator("LpNormalization")
def lp_normalization(x: Array, *, axis: int = -1, p: int = 2) -> Array:
    """x over its p-norm along ``axis``; 0 where that is 0."""
    if p not in (1, 2):
        raise ModelFormatError(f"p must be 1 or 2, got {p}")
    norm = np.sum(np.abs(x) ** p, axis, keepdims=True) ** (1 / p)
    return np.where(norm == 0, 0, x / norm)


@operator("LRN")
def local_response_normalization(
    x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Array:
    """x[N,C,...] over a power of the squares of ``size`` neighbouring channels."""
    check_neighbours(x.shape, size)
    reach, C = min(size // 2, x.shape[1]), x.shape[1]
    squares = np.pad(x * x, [(0, 0), (reach, reach), *[(0, 0)] * (x.ndim - 2)])
    sums = np.sum([squares[:, k : k + C] for k in range(2 * reach + 1)], axis=0)
    return x / (bias + alpha / size * sums) ** beta


def check_neighbours(x: tuple[int, ...], size: int) -> None:
    """Refuse what has no channels, and a neighbourhood without a middle, which engines place differently."""
    if len(x) < 2:
        raise ModelFormatError(f"x must be [N, C, ...], got {list(x)}")
    if size < 1 or size % 2 == 0:
        raise UnsupportedModelError(f"size={size} is not odd and positive")


def channels(v: Array, rank: int) -> Array:
    """v[C] as it broadcasts to x[N,C,...]."""
    return v.reshape(-1, *(1,) * (rank - 2))


def check_channels(x: tuple[int, ...], *others: tuple[int, ...]) -> None:
    """Refuse what is not [C] beside x[N,C,...]."""
    if len(x) < 2 or any(other != x[1:2] for other in others):
        got = ", ".join(str(list(other)) for other in others)
        raise ModelFormatError(f"scale and bias must be [C] beside x [N, C, ...] = {list(x)}, got {got}")


def grouped(x: tuple[int, ...], num_groups: int) -> int:
    """The number of groups, if it divides the channels of x[N,C,...]."""
    if len(x) < 2 or num_groups < 1 or x[1] % num_groups:
        raise ModelFormatError(f"num_groups={num_groups} does not divide the channels of {list(x)}")
    return num_groups


def _standardised(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    centred = x - mean_over(x, axes, keepdims=True)
    return centred / np.sqrt(mean_over(centred**2, axes, keepdims=True) + epsilon)
