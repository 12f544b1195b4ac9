"""Scaled dot-product attention."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from .pointwise import softmax
from .registry import Array, operator


@operator("Attention")
def attention(
    Q: Array,
    K: Array,
    V: Array,
    attn_mask: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    q_num_heads: int | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
) -> tuple[Array, Array, Array, Array]:
    """softmax(scale Q Kᵀ + mask) V per head; the keys and values after the past ones; scale Q Kᵀ.

    Q[B,N,S,E] K[B,M,L,E] V[B,M,L,F] with N a multiple of M, or [B,S,N*E] and so on with the numbers of heads given.
    attn_mask broadcasts to [B,N,S,past + L]: true, or what is added. is_causal: step s sees the keys up to its own.
    A step that sees no key at all gives 0.
    """
    past = None if past_key is None else past_key.shape
    sizes = attention_sizes(Q.shape, K.shape, V.shape, past, q_num_heads, kv_num_heads)
    if is_causal and sizes.past:
        raise UnsupportedModelError("is_causal=1 with past keys is not implemented")
    q, k, v = _heads(Q, sizes.N), _heads(K, sizes.M), _heads(V, sizes.M)
    if past_key is not None and past_value is not None:
        k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
    root = math.sqrt(1 / math.sqrt(sizes.E) if scale is None else scale)
    shared = sizes.N // sizes.M
    products = (q * root) @ (np.repeat(k, shared, axis=1) * root).swapaxes(-1, -2)
    scores = products
    if softcap:
        if attn_mask is not None or is_causal:
            raise UnsupportedModelError("softcap with a mask is not implemented: engines apply them in either order")
        scores = softcap * np.tanh(scores / softcap)
    bias = _bias(scores, attn_mask, is_causal)
    blind = np.isneginf(bias).all(axis=-1, keepdims=True)
    y = np.where(blind, 0, softmax(scores + bias)) @ np.repeat(v, shared, axis=1)
    out = y if Q.ndim == 4 else y.swapaxes(1, 2).reshape(*Q.shape[:2], -1)
    return out.astype(Q.dtype), k, v, products.astype(Q.dtype)


def _bias(scores: Array, attn_mask: Array | None, is_causal: int) -> Array:
    """What is added to the scores [B,N,S,L]: -inf where a step does not see a key."""
    seen = np.tri(*scores.shape[-2:]) > 0 if is_causal else np.ones(scores.shape[-2:], bool)
    bias = np.where(seen, 0, -np.inf).astype(scores.dtype)
    if attn_mask is None:
        return bias
    return bias + (np.where(attn_mask, 0, -np.inf).astype(bias.dtype) if attn_mask.dtype == bool else attn_mask)


class AttentionSizes(NamedTuple):
    """B rows, N heads of queries and M of keys, S queries, L keys, E and F their and the values' width, past keys."""

    B: int
    N: int
    M: int
    S: int
    L: int
    E: int
    F: int
    past: int


def attention_sizes(
    Q: tuple[int, ...],
    K: tuple[int, ...],
    V: tuple[int, ...],
    past: tuple[int, ...] | None,
    q_heads: int | None,
    kv_heads: int | None,
) -> AttentionSizes:
    """The named sizes of an Attention's inputs. Raises ModelFormatError where these do not fit."""
    parts = []
    for name, shape, heads in (("Q", Q, q_heads), ("K", K, kv_heads), ("V", V, kv_heads)):
        if len(shape) == 3 and heads and shape[2] % heads == 0:
            shape = (shape[0], heads, shape[1], shape[2] // heads)
        if len(shape) != 4:
            raise ModelFormatError(
                f"{name} must be [B, heads, length, width], or [B, length, heads * width] with the "
                f"number of heads, got {list(shape)} and {heads}"
            )
        parts.append(shape)
    (B, N, S, E), (B_k, M, L, E_k), (B_v, M_v, L_v, F) = parts
    if (B_k, E_k) != (B, E) or (B_v, M_v, L_v) != (B, M, L) or not M or N % M:
        raise ModelFormatError(f"Q, K and V do not fit one another: {list(Q)}, {list(K)}, {list(V)}")
    if past is not None and (len(past) != 4 or (past[0], past[1], past[3]) != (B, M, E)):
        raise ModelFormatError(f"past_key must be [B, heads, past, width] = [{B}, {M}, ?, {E}], got {list(past)}")
    return AttentionSizes(B, N, M, S, L, E, F, 0 if past is None else past[2])


def _heads(x: Array, heads: int) -> Array:
    """[B,length,heads*width] as [B,heads,length,width]."""
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)
