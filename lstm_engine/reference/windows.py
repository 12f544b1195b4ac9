"""Where a kernel lies on the spatial axes of x[N,C,...]: what convolution and pooling share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..errors import ModelFormatError, UnsupportedModelError
from .registry import Array

Sizes: TypeAlias = tuple[int, ...]
Given: TypeAlias = Sequence[int] | None

AUTO_PADS: Final = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True, slots=True)
class Windows:
    """A kernel's places along each spatial axis: output o reads before-padded input o * stride + k * dilation."""

    kernel: Sizes
    strides: Sizes
    dilations: Sizes
    before: Sizes
    after: Sizes
    outputs: Sizes

    @property
    def extents(self) -> Sizes:
        """How many inputs a kernel spans."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def widths(self, spatial: Sizes) -> tuple[tuple[int, int], ...]:
        """Padding that makes room for every window, beyond ``after`` where rounding up asks for it."""
        reach = [(o - 1) * s + e for o, s, e in zip(self.outputs, self.strides, self.extents, strict=True)]
        return tuple((b, max(0, r - b - n)) for b, r, n in zip(self.before, reach, spatial, strict=True))

    def view(self, x: Array, filling: float) -> Array:
        """x[N,C,...] as [N,C,outputs...,kernel...], ``filling`` outside; a view of one padded copy."""
        rank = len(self.kernel)
        padded = np.pad(x, ((0, 0), (0, 0), *self.widths(x.shape[2:])), constant_values=filling)
        places = sliding_window_view(padded, self.extents, axis=tuple(range(2, 2 + rank)))
        starts = tuple(slice(0, (o - 1) * s + 1, s) for o, s in zip(self.outputs, self.strides, strict=True))
        taps = tuple(slice(None, None, d) for d in self.dilations)
        index: tuple[slice, ...] = (slice(None), slice(None), *starts, *taps)
        return places[index]

    def counts(self, spatial: Sizes, include_pad: bool) -> Array:
        """How many inputs, with or without the padding, each output's window holds."""
        axes = [self._axis_counts(axis, size, include_pad) for axis, size in enumerate(spatial)]
        total = np.ones((), np.int64)
        for counts in axes:
            total = np.multiply.outer(total, counts)
        return total

    def _axis_counts(self, axis: int, size: int, include_pad: bool) -> Array:
        first, last = (0, self.before[axis] + size + self.after[axis])
        if not include_pad:
            first, last = self.before[axis], self.before[axis] + size
        starts = np.arange(self.outputs[axis])[:, None] * self.strides[axis]
        places = starts + np.arange(self.kernel[axis]) * self.dilations[axis]
        return np.sum((places >= first) & (places < last), axis=1)


def windows(
    spatial: Sizes,
    kernel: Given,
    *,
    strides: Given = None,
    dilations: Given = None,
    pads: Given = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
) -> Windows:
    """The windows on axes of the sizes ``spatial``.

    Raises ModelFormatError where the attributes do not fit the rank, each other or the input.
    """
    kernel, strides, dilations, before, after = steps(spatial, kernel, strides, dilations, pads)
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if auto_pad not in AUTO_PADS:
        raise UnsupportedModelError(f"auto_pad='{auto_pad}' is not one of {', '.join(AUTO_PADS)}")
    if auto_pad == "VALID":
        before = after = (0,) * len(spatial)
    if auto_pad.startswith("SAME"):
        totals = [max(0, (-(-n // s) - 1) * s + e - n) for n, s, e in zip(spatial, strides, extents, strict=True)]
        halves, rests = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
        before, after = (halves, rests) if auto_pad == "SAME_UPPER" else (rests, halves)
    outputs = tuple(map(_places, spatial, extents, strides, before, after, [bool(ceil_mode)] * len(spatial)))
    return Windows(kernel, strides, dilations, before, after, outputs)


def pool_windows(
    spatial: Sizes,
    kernel: Given,
    *,
    strides: Given,
    dilations: Given,
    pads: Given,
    auto_pad: str,
    ceil_mode: int,
) -> Windows:
    """As ``windows``, for pooling. What engines disagree on, and windows that may lie in padding alone, are refused."""
    if auto_pad.startswith("SAME"):
        if ceil_mode or any(d != 1 for d in dilations or ()):
            raise UnsupportedModelError(f"auto_pad='{auto_pad}' with dilations or ceil_mode is not implemented")
        if any(
            (n - 1) % s >= k for n, s, k in zip(spatial, strides or (1,) * len(spatial), kernel or (), strict=False)
        ):
            raise UnsupportedModelError(f"auto_pad='{auto_pad}' where windows leave elements out is not implemented")
    places = windows(
        spatial, kernel, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, ceil_mode=ceil_mode
    )
    if any(p >= k for p, k in zip(places.before + places.after, places.kernel * 2, strict=True)):
        raise ModelFormatError(f"pads {list(pads or ())} must be smaller than the kernel {list(places.kernel)}")
    return places


def _places(size: int, extent: int, stride: int, before: int, after: int, up: bool) -> int:
    """How many windows lie along an axis; rounding up never adds one that starts in the padding behind."""
    room = before + size + after - extent
    if room < 0:
        raise ModelFormatError(f"a kernel over {extent} elements does not fit an axis of {before} + {size} + {after}")
    if not up:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride >= size + before else count


def steps(
    spatial: Sizes, kernel: Given, strides: Given, dilations: Given, pads: Given
) -> tuple[Sizes, Sizes, Sizes, Sizes, Sizes]:
    """Kernel, strides, dilations and the padding before and after, one number per spatial axis each."""
    rank = len(spatial)
    if not rank:
        raise ModelFormatError("x must be [N, C, ...] with at least one spatial axis")
    if kernel is None:
        raise ModelFormatError("attribute kernel_shape is missing")
    kernel = _each("kernel_shape", kernel, rank, 1)
    strides = _each("strides", (1,) * rank if strides is None else strides, rank, 1)
    dilations = _each("dilations", (1,) * rank if dilations is None else dilations, rank, 1)
    both = _each("pads", (0,) * 2 * rank if pads is None else pads, 2 * rank, 0)
    return kernel, strides, dilations, both[:rank], both[rank:]


def _each(name: str, values: Sequence[int], count: int, least: int) -> Sizes:
    numbers = tuple(int(v) for v in values)
    if len(numbers) != count or any(v < least for v in numbers):
        raise ModelFormatError(f"{name} must be {count} numbers of at least {least}, got {list(numbers)}")
    if max(numbers, default=0) >= 1 << 40 or math.prod(n + 1 for n in numbers) >= 1 << 60:
        raise ModelFormatError(f"{name} {list(numbers)} is larger than any memory")
    return numbers
