"""Operators that draw at random.

A node with a seed draws the same numbers at every call; without one, or with seed 0, new ones each time. The numbers
of other engines are never reproduced: their generators are their own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .pointwise import element_type
from .registry import Array, operator


def generator(seed: float | None) -> np.random.Generator:
    """The source of a node's numbers: ``seed`` is a float in ONNX, and any of its bit patterns counts."""
    return _unseeded(os.getpid()) if seed is None else np.random.default_rng(np.float32(seed).view(np.uint32).item())


@functools.lru_cache(maxsize=1)
def _unseeded(process: int) -> np.random.Generator:
    """The source without a seed, one for all nodes and threads (it locks itself): a fork draws other numbers."""
    return np.random.default_rng()


@operator("Multinomial", random=True)
def multinomial(x: Array, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None) -> Array:
    """Classes drawn by the unnormalised log-probabilities x[B,C] → [B,sample_size]."""
    weights = np.exp(x.astype(np.float64) - np.max(x, axis=1, keepdims=True, initial=-np.inf))
    reach = np.cumsum(weights, axis=1)
    drawn = generator(seed).random((x.shape[0], sample_size)) * reach[:, -1:]
    return np.sum(drawn[:, :, None] >= reach[:, None, :-1], axis=2).astype(element_type(dtype))


@operator("RandomUniform", random=True)
def random_uniform(
    *, shape: Sequence[int], dtype: int = 1, high: float = 1.0, low: float = 0.0, seed: float | None = None
) -> Array:
    """Numbers evenly between low and high."""
    return generator(seed).uniform(low, high, tuple(shape)).astype(element_type(dtype))


@operator("RandomNormal", random=True)
def random_normal(
    *, shape: Sequence[int], dtype: int = 1, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Array:
    """Numbers of the normal distribution."""
    return generator(seed).normal(mean, scale, tuple(shape)).astype(element_type(dtype))


@operator("RandomUniformLike", random=True)
def random_uniform_like(
    x: Array, *, dtype: int | None = None, high: float = 1.0, low: float = 0.0, seed: float | None = None
) -> Array:
    """Numbers evenly between low and high, in the shape (and type) of x."""
    return generator(seed).uniform(low, high, x.shape).astype(_type_like(x, dtype))


@operator("RandomNormalLike", random=True)
def random_normal_like(
    x: Array, *, dtype: int | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Array:
    """Numbers of the normal distribution, in the shape (and type) of x."""
    return generator(seed).normal(mean, scale, x.shape).astype(_type_like(x, dtype))


@operator("Bernoulli", random=True)
def bernoulli(x: Array, *, dtype: int | None = None, seed: float | None = None) -> Array:
    """1 with the probability x, else 0."""
    return (generator(seed).random(x.shape) < x).astype(_type_like(x, dtype))


def _type_like(x: Array, dtype: int | None) -> np.dtype[Any]:
    return x.dtype if dtype is None else element_type(dtype)
