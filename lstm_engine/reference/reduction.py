"""Operators that reduce axes, order them or accumulate along them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from .registry import Array, operator
from .shaping import sizes


def least(dtype: np.dtype[Any]) -> Any:
    """What is at most everything of that type: the maximum of nothing."""
    if np.issubdtype(dtype, np.floating):
        return -np.inf
    return np.iinfo(dtype).min if np.issubdtype(dtype, np.integer) else False


def greatest(dtype: np.dtype[Any]) -> Any:
    """What is at least everything of that type: the minimum of nothing."""
    if np.issubdtype(dtype, np.floating):
        return np.inf
    return np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else True


def mean_over(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    """The mean over some axes; NaN, without NumPy's warning, where there is nothing to take it of."""
    if x.size == 0:
        return np.divide(np.sum(x, axis, keepdims=keepdims), 0)
    return np.mean(x, axis, keepdims=keepdims)


def _log_sum_exp(x: Array, **over: Any) -> Array:
    peak = np.max(x, initial=-np.inf, **(over | {"keepdims": True}))
    peak = np.where(np.isfinite(peak), peak, 0)
    return np.log(np.sum(np.exp(x - peak), **over)) + (
        peak if over["keepdims"] else peak.reshape(np.sum(x, **over).shape)
    )


_REDUCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "ReduceSum": lambda x, **over: np.sum(x, dtype=x.dtype, **over),
    "ReduceMean": mean_over,
    "ReduceProd": lambda x, **over: np.prod(x, dtype=x.dtype, **over),
    "ReduceMax": lambda x, **over: np.max(x, initial=least(x.dtype), **over),
    "ReduceMin": lambda x, **over: np.min(x, initial=greatest(x.dtype), **over),
    "ReduceL1": lambda x, **over: np.sum(np.abs(x), dtype=x.dtype, **over),
    "ReduceL2": lambda x, **over: np.sqrt(np.sum(np.square(x), **over)),
    "ReduceSumSquare": lambda x, **over: np.sum(np.square(x), dtype=x.dtype, **over),
    "ReduceLogSum": lambda x, **over: np.log(np.sum(x, **over)),
    "ReduceLogSumExp": _log_sum_exp,
}


def _register(name: str, function: Callable[..., Any]) -> None:
    def reduce(x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
        over = reduced_axes(x.ndim, axes, bool(noop_with_empty_axes))
        return np.asarray(function(x, axis=over, keepdims=bool(keepdims))).astype(x.dtype)

    operator(name)(reduce)


for _name, _function in _REDUCTIONS.items():
    _register(_name, _function)


def reduced_axes(rank: int, axes: Array | None, noop: bool) -> tuple[int, ...]:
    """The axes a Reduce* node reduces: those given, else all of them, or with noop_with_empty_axes none."""
    if axes is None or axes.size == 0:
        return () if noop else tuple(range(rank))
    return tuple(axis % rank for axis in sizes(axes))


@operator("ArgMax")
def arg_max(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """Where x is greatest along ``axis``: the first place, or the last."""
    return _arg(np.argmax, x, axis, keepdims, select_last_index)


@operator("ArgMin")
def arg_min(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """Where x is least along ``axis``: the first place, or the last."""
    return _arg(np.argmin, x, axis, keepdims, select_last_index)


def _arg(find: Callable[..., Any], x: Array, axis: int, keepdims: int, last: int) -> Array:
    if last:
        found = x.shape[axis] - 1 - find(np.flip(x, axis), axis, keepdims=bool(keepdims))
    else:
        found = find(x, axis, keepdims=bool(keepdims))
    return np.asarray(found, np.int64)


@operator("TopK")
def top_k(x: Array, K: Array, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Array, Array]:
    """The K greatest (else least) along ``axis`` in order, and where they are; of equals the first comes first."""
    if largest:
        backwards = np.argsort(np.flip(x, axis), axis, kind="stable")
        order = x.shape[axis] - 1 - np.flip(backwards, axis)
    else:
        order = np.argsort(x, axis, kind="stable")
    order = np.take(order, np.arange(int(K.reshape(()))), axis)
    return np.take_along_axis(x, order, axis), order.astype(np.int64)


@operator("CumSum")
def cum_sum(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """Running sum along an axis, with or without the element itself, from either end."""
    along = int(axis.reshape(()))
    if reverse:
        x = np.flip(x, along)
    out = np.cumsum(x, along, dtype=x.dtype)
    if exclusive:
        out = out - x
    return np.flip(out, along) if reverse else out


@operator("CumProd")
def cum_prod(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """Running product along an axis, with or without the element itself, from either end."""
    along = int(axis.reshape(()))
    if reverse:
        x = np.flip(x, along)
    out = np.cumprod(x, along, dtype=x.dtype)
    if exclusive:
        out = np.roll(out, 1, along)
        out[(slice(None),) * (along % x.ndim) + (slice(0, 1),)] = 1
    return np.flip(out, along) if reverse else out
