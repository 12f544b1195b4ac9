"""Matrix products and normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters

import numpy as np

from ..errors import ModelFormatError
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


@operator("Einsum")
def einsum(*inputs: Array, equation: str) -> Array:
    """Products of the inputs, summed over the indices that the equation's result leaves out."""
    terms, result = einsum_terms(equation, [x.ndim for x in inputs])
    return np.asarray(np.einsum(f"{','.join(terms)}->{result}", *inputs, optimize="greedy")).astype(inputs[0].dtype)


def einsum_terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The index of each axis of the inputs and of the result; an ellipsis becomes letters of its own.

    Raises ModelFormatError where the equation makes no sense or does not fit the ranks.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    letters = set(equation) - set(" ,.->")
    if len(terms) != len(ranks) or not all(c.isascii() and c.isalpha() for c in letters):
        raise ModelFormatError(f"equation '{equation}' does not fit {len(ranks)} inputs")
    spare = sorted(set(ascii_letters) - letters)
    hidden = [
        rank - len(term.replace("...", "", 1)) if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)
    ]
    widest = max(hidden, default=0)
    if min(hidden, default=0) < 0 or widest > len(spare):
        raise ModelFormatError(f"equation '{equation}' does not fit inputs of ranks {list(ranks)}")
    shared = "".join(spare[:widest])
    terms = [term.replace("...", shared[widest - n :], 1) for term, n in zip(terms, hidden, strict=True)]
    once = "".join(c for c in sorted(letters) if left.count(c) == 1)
    result = right.replace("...", shared, 1) if arrow else shared + once
    faulty = any(len(t) != r for t, r in zip(terms, ranks, strict=True)) or not set(result) <= set("".join(terms))
    if faulty or len(set(result)) < len(result):
        raise ModelFormatError(f"equation '{equation}' does not fit inputs of ranks {list(ranks)}")
    return terms, result


@operator("Det")
def det(x: Array) -> Array:
    """The determinant of the matrices x[...,M,M]."""
    return np.linalg.det(x)


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
) -> Array:
    """Each channel of x[N,C,...] normalised by the recorded mean[C] and var[C]."""
    channel = (-1,) + (1,) * (x.ndim - 2)
    scale, bias, mean, var = (v.reshape(channel) for v in (scale, bias, mean, var))
    return (x - mean) / np.sqrt(var + epsilon) * scale + bias
