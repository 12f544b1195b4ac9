"""Matrix products and normalisation."""

from __future__ import annotations

import numpy as np

from ..errors import UnsupportedModelError
from .reduction import mean_over
from .registry import Array, operator


@operator("MatMul")
def matmul(a: Array, b: Array) -> Array:
    """a[...,M,K] @ b[...,K,N] → [...,M,N], with broadcasting before the last two axes."""
    return np.matmul(a, b)


@operator("Gemm")
def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    """α a[M,K] b[K,N] + β c → [M,N]; a or b may be given transposed."""
    product = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    out = product if c is None else product + beta * c
    return out.astype(a.dtype)


@operator("LayerNormalization")
def layer_normalization(
    x: Array, scale: Array, bias: Array | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Array, Array, Array]:
    """x with mean 0 and variance 1 over the axes from ``axis`` on, scaled and shifted; the mean; 1 / deviation."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean = mean_over(x, axes, keepdims=True)
    centred = x - mean
    inverse = 1 / np.sqrt(mean_over(centred**2, axes, keepdims=True) + epsilon)
    y = centred * inverse * scale
    return y if bias is None else y + bias, mean, inverse


@operator("BatchNormalization")
def batch_normalization(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    var: Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Array:
    """Each channel of x[N,C,...] normalised by the recorded mean[C] and var[C]."""
    if training_mode:
        raise UnsupportedModelError("training_mode must be 0: the engine only infers")
    channel = (-1,) + (1,) * (x.ndim - 2)
    scale, bias, mean, var = (v.reshape(channel) for v in (scale, bias, mean, var))
    return (x - mean) / np.sqrt(var + epsilon) * scale + bias
