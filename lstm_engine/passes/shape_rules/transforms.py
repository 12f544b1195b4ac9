"""Rules of normalisation, resampling, Fourier transforms and the rarer operators that move elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import ModelFormatError, UnsupportedModelError
from ...reference.attention import attention_sizes
from ...reference.linear import einsum_terms
from ...reference.normalisation import check_channels, check_neighbours, grouped
from ...reference.pointwise import element_type
from ...reference.resampling import resized
from ...reference.shaping import compress, unique
from ...reference.signal import dft_sizes, stft_sizes
from .known import Known, axis_of, fits, one_type, optional_value, replaced, rule, value_of


@rule("InstanceNormalization")
def _instance_norm(x: Known, scale: Known, bias: Known, **_: Any) -> Known:
    check_channels(x.shape, scale.shape, bias.shape)
    return Known(x.shape, one_type(x, scale, bias))


@rule("GroupNormalization")
def _group_norm(x: Known, scale: Known, bias: Known, *, num_groups: int, per_group: int, **_: Any) -> Known:
    grouped(x.shape, num_groups)
    if not per_group:
        check_channels(x.shape, scale.shape, bias.shape)
    elif scale.shape != (num_groups,) or bias.shape != (num_groups,):
        raise ModelFormatError(f"scale and bias must be [{num_groups}], got {list(scale.shape)}, {list(bias.shape)}")
    return Known(x.shape, one_type(x, scale, bias))


@rule("RMSNormalization")
def _rms_norm(x: Known, scale: Known, *, axis: int, **_: Any) -> Known:
    axis_of(axis, x.rank)
    fits("scale", scale, "x", x.shape)
    return Known(x.shape, one_type(x, scale))


@rule("MeanVarianceNormalization")
def _mean_variance(x: Known, *, axes: Sequence[int]) -> Known:
    for axis in axes:
        axis_of(axis, x.rank)
    return Known(x.shape, x.dtype)


@rule("LpNormalization")
def _lp_norm(x: Known, *, axis: int, p: int) -> Known:
    axis_of(axis, x.rank)
    return Known(x.shape, x.dtype)


@rule("LRN")
def _lrn(x: Known, *, size: int, **_: Any) -> Known:
    check_neighbours(x.shape, size)
    return Known(x.shape, x.dtype)


@rule("Einsum")
def _einsum(*inputs: Known, equation: str) -> Known:
    terms, result = einsum_terms(equation, [k.rank for k in inputs])
    sizes: dict[str, int] = {}
    for term, known in zip(terms, inputs, strict=True):
        for letter, size in zip(term, known.shape, strict=True):
            if sizes.setdefault(letter, size) == 1:
                sizes[letter] = size
            elif size not in (1, sizes[letter]):
                raise ModelFormatError(f"index '{letter}' of '{equation}' has sizes {sizes[letter]} and {size}")
    return Known(tuple(sizes[letter] for letter in result), one_type(*inputs))


@rule("Det")
def _det(x: Known) -> Known:
    if x.rank < 2 or x.shape[-1] != x.shape[-2]:
        raise ModelFormatError(f"x must be [..., M, M], got {list(x.shape)}")
    return Known(x.shape[:-2], x.dtype)


@rule("Resize")
def _resize(
    x: Known,
    roi: Known | None = None,
    scales: Known | None = None,
    sizes: Known | None = None,
    *,
    axes: Sequence[int] | None,
    coordinate_transformation_mode: str,
    keep_aspect_ratio_policy: str,
    **_: Any,
) -> Known:
    region = optional_value(roi, "roi") if coordinate_transformation_mode == "tf_crop_and_resize" else None
    wanted = optional_value(scales, "scales"), optional_value(sizes, "sizes")
    targets = resized(x.shape, region, *wanted, axes, keep_aspect_ratio_policy)
    return Known(tuple(targets[a].size if a in targets else n for a, n in enumerate(x.shape)), x.dtype)


@rule("Attention")
def _attention(
    Q: Known,
    K: Known,
    V: Known,
    attn_mask: Known | None = None,
    past_key: Known | None = None,
    past_value: Known | None = None,
    *,
    q_num_heads: int | None,
    kv_num_heads: int | None,
    **_: Any,
) -> list[Known]:
    past = None if past_key is None else past_key.shape
    n = attention_sizes(Q.shape, K.shape, V.shape, past, q_num_heads, kv_num_heads)
    total = n.past + n.L
    if (past_key is None) != (past_value is None) or (past_value and past_value.shape != (n.B, n.M, n.past, n.F)):
        raise ModelFormatError(f"past_value must be [{n.B}, {n.M}, {n.past}, {n.F}] beside past_key, got {past_value}")
    scores = (n.B, n.N, n.S, total)
    fits("attn_mask", attn_mask, "the scores", scores)
    dtype = one_type(Q, K, V, past_key, past_value)
    out = (n.B, n.N, n.S, n.F) if Q.rank == 4 else (n.B, n.S, n.N * n.F)
    keys, values = (n.B, n.M, total, n.E), (n.B, n.M, total, n.F)
    return [Known(shape, dtype) for shape in (out, keys, values, scores)]


# signals


def _scalar(known: Known | None, what: str) -> int | None:
    return None if known is None else int(value_of(known, what).reshape(()))


@rule("DFT")
def _dft(x: Known, length: Known | None = None, axis: Known | None = None, *, inverse: int, onesided: int) -> Known:
    points, along = _scalar(length, "the length"), _scalar(axis, "the axis")
    along, points = dft_sizes(x.shape, points, along, bool(inverse and onesided))
    if onesided and not inverse:
        points = points // 2 + 1
    return Known(replaced((*x.shape[:-1], 1 if inverse and onesided else 2), along, points), x.dtype)


@rule("STFT")
def _stft(
    signal: Known, step: Known, window: Known | None = None, length: Known | None = None, *, onesided: int
) -> Known:
    given = _scalar(step, "the step"), None if window is None else window.shape, _scalar(length, "the length")
    _, points, frames = stft_sizes(signal.shape, *given)
    return Known((signal.shape[0], frames, points // 2 + 1 if onesided else points, 2), signal.dtype)


@rule("HannWindow", "HammingWindow", "BlackmanWindow")
def _window(size: Known, *, output_datatype: int, **_: Any) -> Known:
    count = int(value_of(size, "the size").reshape(()))
    if count < 0:
        raise ModelFormatError(f"the size must not be negative, got {count}")
    return Known((count,), element_type(output_datatype))


@rule("MelWeightMatrix")
def _mel(bins: Known, length: Known, rate: Known, low: Known, high: Known, *, output_datatype: int) -> Known:
    count, points = _scalar(bins, "the number of bins"), _scalar(length, "the length")
    if count is None or points is None or count < 0 or points < 0:
        raise ModelFormatError(f"bins and length must not be negative, got {count} and {points}")
    return Known((points // 2 + 1, count), element_type(output_datatype))


# moves


@rule("DepthToSpace")
def _depth_to_space(x: Known, *, blocksize: int, mode: str) -> Known:
    if x.rank != 4 or blocksize < 1 or x.shape[1] % blocksize**2:
        raise ModelFormatError(f"x must be [N, C, H, W] with C divisible by {blocksize}², got {list(x.shape)}")
    if mode not in ("DCR", "CRD"):
        raise UnsupportedModelError(f"mode='{mode}' is neither DCR nor CRD")
    N, C, H, W = x.shape
    return Known((N, C // blocksize**2, H * blocksize, W * blocksize), x.dtype)


@rule("SpaceToDepth")
def _space_to_depth(x: Known, *, blocksize: int) -> Known:
    if x.rank != 4 or blocksize < 1 or x.shape[2] % blocksize or x.shape[3] % blocksize:
        raise ModelFormatError(f"x must be [N, C, H, W] with H and W divisible by {blocksize}, got {list(x.shape)}")
    N, C, H, W = x.shape
    return Known((N, C * blocksize**2, H // blocksize, W // blocksize), x.dtype)


@rule("EyeLike")
def _eye_like(x: Known, *, dtype: int | None, k: int) -> Known:
    if x.rank != 2:
        raise ModelFormatError(f"EyeLike takes a matrix, got {list(x.shape)}")
    return Known(x.shape, x.dtype if dtype is None else element_type(dtype))


@rule("Compress")
def _compress(x: Known, condition: Known, *, axis: int | None) -> Known:
    if axis is not None:
        axis_of(axis, x.rank)
    kept = compress(np.broadcast_to(np.zeros((), bool), x.shape), value_of(condition, "the condition"), axis=axis)
    return Known(kept.shape, x.dtype)


@rule("Unique")
def _unique(x: Known, *, axis: int | None, sorted: int) -> list[Known]:
    if axis is not None:
        axis_of(axis, x.rank)
    return [Known(v.shape, v.dtype) for v in unique(value_of(x, "the input"), axis=axis, sorted=sorted)]
