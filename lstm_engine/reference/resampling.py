"""Resize: for each axis the elements that make up each of the results, and their weights; one axis after another.

Coordinates are worked out in float32, as everyone does: where a point falls on the edge between two, rounding decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from .registry import Array, operator

f32 = np.float32


class Target(NamedTuple):
    """One axis as Resize makes it: its size, by how much it is scaled, and the part of the input it shows."""

    size: int
    scale: float
    region: tuple[float, float]


@operator("Resize")
def resize(
    x: Array,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Array:
    """x sampled anew along the axes, by nearest, linear or cubic interpolation."""
    crops = coordinate_transformation_mode == "tf_crop_and_resize"
    targets = resized(x.shape, roi if crops else None, scales, sizes, axes, keep_aspect_ratio_policy)
    place = chosen("coordinate_transformation_mode", COORDINATES, coordinate_transformation_mode)
    weigh = _weigher(mode, nearest_mode, cubic_coeff_a, bool(exclude_outside), bool(antialias))
    outside = np.zeros((), bool)
    y = x
    for axis, target in targets.items():
        length = x.shape[axis]
        if target.size == length and target.scale == 1 and not crops:
            continue
        points = place(np.arange(target.size, dtype=f32), f32(target.scale), length, target)
        y = _weighted(y, *weigh(points, length, target.scale), axis)
        if crops:
            beyond = (points < 0) | (points > length - 1)
            outside = outside | beyond.reshape(-1, *(1,) * (x.ndim - 1 - axis))
    return np.where(outside, extrapolation_value, y).astype(x.dtype) if crops else y.astype(x.dtype)


def _weighted(x: Array, taps: Array, shares: Array, axis: int) -> Array:
    """Σ_k shares[:,k] * x[taps[:,k]] along an axis."""
    if taps.shape[1] == 1:  # the nearest element, whatever its type
        return np.take(x, taps[:, 0], axis)
    dtype = x.dtype if x.dtype.kind == "f" else np.dtype(f32)
    spread = (-1, *(1,) * (x.ndim - 1 - axis))
    parts = (np.take(x, taps[:, k], axis) * shares[:, k].astype(dtype).reshape(spread) for k in range(taps.shape[1]))
    return sum(parts, np.zeros((), dtype))


def resized(
    shape: tuple[int, ...],
    roi: Array | None,
    scales: Array | None,
    sizes: Array | None,
    axes: Sequence[int] | None,
    policy: str,
) -> dict[int, Target]:
    """What becomes of each axis that is named.

    Raises ModelFormatError unless exactly one of scales and sizes is given, for each of the axes.
    """
    rank = len(shape)
    named = tuple(range(rank)) if axes is None else tuple(axis % rank for axis in axes if -rank <= axis < rank)
    given = [v for v in (scales, sizes) if v is not None and v.size]
    if len(given) != 1 or given[0].size != len(named) or len(set(named)) != len(axes or named):
        raise ModelFormatError(f"Resize needs scales or sizes, one for each of {len(axes or named)} axes")
    start, end = np.split(roi, 2) if roi is not None and roi.size else (np.zeros(len(named)), np.ones(len(named)))
    regions = [(float(a), float(b)) for a, b in zip(start, end, strict=True)]
    if scales is not None and scales.size:
        factors = [float(f32(v)) for v in scales]
        if any(not 0 < v < math.inf for v in factors):
            raise ModelFormatError(f"scales must be positive, got {factors}")
        cropped = roi is not None
        made = [
            math.floor(f32(shape[axis]) * f32(factor) * f32(last - first if cropped else 1))
            for axis, factor, (first, last) in zip(named, factors, regions, strict=True)
        ]
        return {a: Target(n, v, r) for a, n, v, r in zip(named, made, factors, regions, strict=True)}
    wanted = [int(v) for v in given[0]]
    if any(n < 0 for n in wanted) or any(shape[axis] == 0 for axis in named):
        raise ModelFormatError(f"sizes {wanted} do not fit {list(shape)}")
    ratios = [float(f32(n) / f32(shape[axis])) for axis, n in zip(named, wanted, strict=True)]
    if policy != "stretch":
        ratio = chosen("keep_aspect_ratio_policy", {"not_larger": min, "not_smaller": max}, policy)(ratios)
        ratios = [ratio] * len(ratios)
        wanted = [math.floor(ratio * shape[axis] + 0.5) for axis in named]
    return {a: Target(n, v, r) for a, n, v, r in zip(named, wanted, ratios, regions, strict=True)}


# --- where an output lies in the input --------------------------------------------------------------------------------


def _half_pixel(i: Array, scale: Any, length: int, target: Target) -> Array:
    return (i + f32(0.5)) / scale - f32(0.5)


def _half_pixel_symmetric(i: Array, scale: Any, length: int, target: Target) -> Array:
    whole = scale * f32(length)
    offset = f32(length) / 2 * (1 - f32(target.size) / whole)
    return f32(offset) + _half_pixel(i, scale, length, target)


def _pytorch_half_pixel(i: Array, scale: Any, length: int, target: Target) -> Array:
    return _half_pixel(i, scale, length, target) if target.size > 1 else np.zeros_like(i)


def _align_corners(i: Array, scale: Any, length: int, target: Target) -> Array:
    return i * f32(length - 1) / f32(target.size - 1) if target.size > 1 else np.zeros_like(i)


def _asymmetric(i: Array, scale: Any, length: int, target: Target) -> Array:
    return i / scale


def _crop(i: Array, scale: Any, length: int, target: Target) -> Array:
    start, end = map(f32, target.region)
    if target.size > 1:
        return start * f32(length - 1) + i * (end - start) * f32(length - 1) / f32(target.size - 1)
    return np.full_like(i, f32(0.5) * (start + end) * f32(length - 1))


COORDINATES: Final[dict[str, Callable[..., Array]]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "align_corners": _align_corners,
    "asymmetric": _asymmetric,
    "tf_crop_and_resize": _crop,
}

# --- what of the input counts there -----------------------------------------------------------------------------------

NEAREST: Final[dict[str, Callable[[Array], Array]]] = {
    "round_prefer_floor": lambda x: np.ceil(x - f32(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + f32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _weigher(
    mode: str, nearest_mode: str, a: float, exclude_outside: bool, antialias: bool
) -> Callable[[Array, int, float], tuple[Array, Array]]:
    """The function that makes taps and their shares, [outputs, taps] both, of points, a length and a scale."""
    nearest = chosen("nearest_mode", NEAREST, nearest_mode)
    kernels = {"nearest": None, "linear": _triangle, "cubic": lambda x: _cubic(x, a)}
    kernel = chosen("mode", kernels, mode)
    if kernel is None:
        if antialias or exclude_outside:
            raise UnsupportedModelError("mode='nearest' with antialias or exclude_outside is not implemented")
        return lambda points, length, scale: _one_each(nearest(points), length)
    if exclude_outside and mode == "linear" and not antialias:
        raise UnsupportedModelError("mode='linear' with exclude_outside but no antialias is not implemented")
    reach = 1 if mode == "linear" else 2

    def weigh(points: Array, length: int, scale: float) -> tuple[Array, Array]:
        stretch = max(1.0, 1 / scale) if antialias else 1.0
        if mode == "linear" and not antialias:
            points = np.clip(points, 0, max(length - 1, 0))
        return _filtered(points, length, kernel, reach, stretch, exclude_outside)

    return weigh


def _one_each(indices: Array, length: int) -> tuple[Array, Array]:
    taps = np.clip(indices, 0, max(length - 1, 0)).astype(np.int64)[:, None]
    return taps, np.ones(taps.shape)


def _filtered(
    points: Array, length: int, kernel: Callable[[Array], Array], reach: int, stretch: float, exclude: bool
) -> tuple[Array, Array]:
    """The kernel about each point; what falls outside counts at the edge, or (exclude) not at all."""
    first = np.floor(points - reach * stretch).astype(np.int64) + 1
    taps = first[:, None] + np.arange(math.ceil(2 * reach * stretch))
    shares = kernel((taps - points[:, None].astype(np.float64)) / stretch)
    if exclude:
        shares = np.where((taps >= 0) & (taps < length), shares, 0)
    if exclude or stretch != 1:
        shares = shares / np.sum(shares, axis=1, keepdims=True)
    return np.clip(taps, 0, max(length - 1, 0)), shares


def _triangle(x: Array) -> Array:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: Array, a: float) -> Array:
    """Keys' kernel; a is its slope at 1."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def chosen(name: str, table: dict[str, Any], value: str) -> Any:
    """The entry of a table of attribute values."""
    if value not in table:
        raise UnsupportedModelError(f"{name}='{value}' is not one of {', '.join(table)}")
    return table[value]
