"""Rules of the operators that compute element by element, move elements about, multiply matrices or reduce."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ...errors import ModelFormatError, UnsupportedModelError
from ...reference import layer_of
from ...reference.layers import INPUTS
from ...reference.pointwise import element_type
from ...reference.reduction import reduced_axes
from ...reference.shaping import flattened, one_hot_depth, pad_widths, part_sizes, range_length, reshaped, sizes, slices
from .known import (
    BOOL,
    INT64,
    Known,
    Size,
    axis_of,
    broadcast,
    fits,
    one_type,
    optional_value,
    replaced,
    rule,
    value_of,
)

# elementwise


@rule(
    *("Sigmoid", "Tanh", "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "HardSigmoid", "HardSwish", "Softplus"),
    *("Softsign", "ThresholdedRelu", "Gelu", "Mish", "Swish", "Neg", "Abs", "Sqrt", "Exp", "Log", "Reciprocal"),
    *("Erf", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Identity", "Not", "BitwiseNot", "Shrink", "Tan"),
    *("Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh"),
)
def _same(x: Known, **_: Any) -> Known:
    return Known(x.shape, x.dtype)


@rule("IsNaN", "IsInf")
def _test(x: Known, **_: Any) -> Known:
    return Known(x.shape, BOOL)


@rule(
    "Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Sum", "Mean", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift"
)
def _arithmetic(*inputs: Known, **_: Any) -> Known:
    return Known(broadcast(*inputs), one_type(*inputs))


@rule("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor")
def _comparison(a: Known, b: Known) -> Known:
    one_type(a, b)
    return Known(broadcast(a, b), BOOL)


@rule("Pow")
def _pow(base: Known, exponent: Known) -> Known:
    return Known(broadcast(base, exponent), base.dtype)


@rule("Where")
def _where(condition: Known, a: Known, b: Known) -> Known:
    return Known(broadcast(condition, a, b), one_type(a, b))


@rule("PRelu")
def _prelu(x: Known, slope: Known) -> Known:
    fits("slope", slope, "x", x.shape)
    return Known(x.shape, one_type(x, slope))


@rule("Clip")
def _clip(x: Known, least: Known | None = None, most: Known | None = None) -> Known:
    if any(k is not None and math.prod(k.shape) != 1 for k in (least, most)):
        raise ModelFormatError("min and max must be scalars")
    return Known(x.shape, one_type(x, least, most))


@rule("Dropout")
def _dropout(x: Known, ratio: Known | None = None, training_mode: Known | None = None, **_: Any) -> tuple[Known, Known]:
    if training_mode is not None and np.any(value_of(training_mode, "training_mode")):
        raise UnsupportedModelError("training_mode must be false: the engine only infers")
    return Known(x.shape, x.dtype), Known(x.shape, BOOL)


@rule("Cast")
def _cast(x: Known, *, to: int, **_: Any) -> Known:
    return Known(x.shape, element_type(to))


@rule("CastLike")
def _cast_like(x: Known, like: Known, **_: Any) -> Known:
    return Known(x.shape, like.dtype)


@rule("Softmax", "LogSoftmax", "Hardmax")
def _along_axis(x: Known, *, axis: int, flatten_from: int | None) -> Known:
    if flatten_from is None:
        axis_of(axis, x.rank)
    return Known(x.shape, x.dtype)


@rule("CumSum", "CumProd")
def _cum_sum(x: Known, axis: Known, **_: Any) -> Known:
    if axis.value is not None:
        axis_of(int(axis.value.reshape(())), x.rank)
    return Known(x.shape, x.dtype)


# linear


@rule("MatMul")
def matmul(a: Known, b: Known) -> Known:
    """[...,M,K] @ [...,K,N] → [...,M,N]."""
    if not a.rank or not b.rank:
        raise ModelFormatError("MatMul takes no scalars")
    left, right = (a.shape if a.rank > 1 else (1, *a.shape)), (b.shape if b.rank > 1 else (*b.shape, 1))
    if left[-1] != right[-2]:
        raise ModelFormatError(f"[...,M,K] @ [...,K,N] must share K, got {list(a.shape)} @ {list(b.shape)}")
    batch = broadcast(Known(left[:-2], a.dtype), Known(right[:-2], b.dtype))
    rows, columns = (left[-2],) if a.rank > 1 else (), (right[-1],) if b.rank > 1 else ()
    return Known((*batch, *rows, *columns), one_type(a, b))


@rule("Gemm")
def _gemm(a: Known, b: Known, c: Known | None = None, *, transA: int, transB: int, **_: Any) -> Known:
    if a.rank != 2 or b.rank != 2:
        raise ModelFormatError(f"Gemm takes matrices, got {list(a.shape)} and {list(b.shape)}")
    (M, K), (K_b, N) = a.shape[:: -1 if transA else 1], b.shape[:: -1 if transB else 1]
    if K_b != K:
        raise ModelFormatError(f"[M,K] @ [K,N] must share K, got [{M}, {K}] @ [{K_b}, {N}]")
    fits("C", c, "[M, N] =", (M, N))
    return Known((M, N), one_type(a, b, c))


@rule("LayerNormalization")
def _layer_norm(x: Known, scale: Known, bias: Known | None = None, *, axis: int, **_: Any) -> tuple[Known, ...]:
    axis = axis_of(axis, x.rank)
    fits("scale", scale, "x", x.shape)
    fits("bias", bias, "x", x.shape)
    summary = Known((*x.shape[:axis], *(1,) * (x.rank - axis)), x.dtype)
    return Known(x.shape, one_type(x, scale, bias)), summary, summary


@rule("BatchNormalization")
def _batch_norm(x: Known, *channels: Known, **_: Any) -> Known:
    C = x.shape[1] if x.rank > 1 else 1
    wrong = [str(list(k.shape)) for k in channels if k.shape != (C,)]
    if wrong:
        raise ModelFormatError(f"scale, bias, mean and var must be [C] = [{C}], got {', '.join(wrong)}")
    return Known(x.shape, x.dtype)


# makers of constants


@rule("Constant")
def _constant(*, value: np.ndarray) -> Known:
    return Known(np.shape(value), np.asarray(value).dtype)


@rule("ConstantOfShape")
def _constant_of_shape(shape: Known, *, value: np.ndarray | None) -> Known:
    target = sizes(value_of(shape, "the shape"))
    if any(size < 0 for size in target):
        raise ModelFormatError(f"sizes must not be negative, got {list(target)}")
    return Known(target, np.dtype(np.float32) if value is None else np.asarray(value).dtype)


@rule("Range")
def _range(start: Known, limit: Known, delta: Known) -> Known:
    bounds = [value_of(k, "a bound").reshape(()) for k in (start, limit, delta)]
    return Known((range_length(*bounds),), one_type(start, limit, delta))


@rule("Shape")
def _shape(x: Known, *, start: int, end: int | None) -> Known:
    return Known((len(x.shape[start:end]),), INT64)


@rule("Size")
def _size(x: Known) -> Known:
    return Known((), INT64)


# views


@rule("Reshape")
def _reshape(x: Known, shape: Known, *, allowzero: int) -> Known:
    return Known(reshaped(x.shape, sizes(value_of(shape, "the shape")), bool(allowzero)), x.dtype)


@rule("Flatten")
def _flatten(x: Known, *, axis: int) -> Known:
    return Known(flattened(x.shape, axis), x.dtype)


@rule("Transpose")
def _transpose(x: Known, *, perm: Sequence[int] | None) -> Known:
    order = tuple(range(x.rank))[::-1] if perm is None else tuple(perm)
    if sorted(order) != list(range(x.rank)):
        raise ModelFormatError(f"perm {list(order)} does not permute the axes of {list(x.shape)}")
    return Known(tuple(x.shape[axis] for axis in order), x.dtype)


@rule("Squeeze")
def _squeeze(x: Known, axes: Known | None = None) -> Known:
    given = optional_value(axes, "axes")
    ones = [a for a, n in enumerate(x.shape) if n == 1] if given is None else [axis_of(a, x.rank) for a in sizes(given)]
    if any(x.shape[axis] != 1 for axis in ones):
        raise ModelFormatError(f"only axes of size 1 can be squeezed, got axes {ones} of {list(x.shape)}")
    return Known(tuple(n for axis, n in enumerate(x.shape) if axis not in ones), x.dtype)


@rule("Unsqueeze")
def _unsqueeze(x: Known, axes: Known) -> Known:
    given = sizes(value_of(axes, "axes"))
    new = {axis_of(axis, x.rank + len(given)) for axis in given}
    if len(new) < len(given):
        raise ModelFormatError(f"axes {list(given)} name one axis twice")
    old = iter(x.shape)
    return Known(tuple(1 if axis in new else next(old) for axis in range(x.rank + len(given))), x.dtype)


@rule("Expand")
def _expand(x: Known, shape: Known) -> Known:
    return Known(broadcast(x, Known(sizes(value_of(shape, "the shape")), INT64)), x.dtype)


@rule("Tile")
def _tile(x: Known, repeats: Known) -> Known:
    times = sizes(value_of(repeats, "repeats"))
    if len(times) != x.rank or any(n < 0 for n in times):
        raise ModelFormatError(f"repeats {list(times)} do not fit {list(x.shape)}")
    return Known(tuple(n * k for n, k in zip(x.shape, times, strict=True)), x.dtype)


@rule("Slice")
def _slice(x: Known, starts: Known, ends: Known, axes: Known | None = None, steps: Known | None = None) -> Known:
    bounds = value_of(starts, "starts"), value_of(ends, "ends")
    index = slices(x.rank, *bounds, optional_value(axes, "axes"), optional_value(steps, "steps"))
    return Known(tuple(len(range(*s.indices(n))) for s, n in zip(index, x.shape, strict=True)), x.dtype)


@rule("Trilu")
def _trilu(x: Known, k: Known | None = None, **_: Any) -> Known:
    axis_of(1, x.rank)
    return Known(x.shape, x.dtype)


@rule("Pad")
def _pad(x: Known, pads: Known, constant_value: Known | None = None, axes: Known | None = None, *, mode: str) -> Known:
    widths = pad_widths(x.rank, value_of(pads, "pads"), optional_value(axes, "axes"))
    padded = tuple(before + n + after for n, (before, after) in zip(x.shape, widths, strict=True))
    if any(n < 0 for n in padded):
        raise ModelFormatError(f"pads {widths} take more off than {list(x.shape)} has")
    return Known(padded, x.dtype)


@rule("ReverseSequence")
def _reverse_sequence(x: Known, sequence_lens: Known, *, batch_axis: int, **_: Any) -> Known:
    if x.rank < 2 or sequence_lens.shape != (x.shape[batch_axis],):
        raise ModelFormatError(f"sequence_lens {list(sequence_lens.shape)} do not fit {list(x.shape)}")
    return Known(x.shape, x.dtype)


# joins


@rule("Concat")
def _concat(*inputs: Known, axis: int) -> Known:
    first = inputs[0]
    axis = axis_of(axis, first.rank)
    others = {k.shape[:axis] + k.shape[axis + 1 :] if k.rank == first.rank else k.shape for k in inputs}
    if len(others) > 1 or any(k.rank != first.rank for k in inputs):
        shapes = ", ".join(str(list(k.shape)) for k in inputs)
        raise ModelFormatError(f"inputs must agree on every axis but {axis}, got {shapes}")
    return Known(replaced(first.shape, axis, sum(k.shape[axis] for k in inputs)), one_type(*inputs))


@rule("Split")
def _split(x: Known, split: Known | None = None, *, axis: int, num_outputs: int | None) -> list[Known]:
    given = optional_value(split, "split")
    axis = axis_of(axis, x.rank)
    parts = part_sizes(x.shape[axis], None if given is None else sizes(given), num_outputs)
    return [Known(replaced(x.shape, axis, part), x.dtype) for part in parts]


# indexing


@rule("Gather")
def _gather(x: Known, indices: Known, *, axis: int) -> Known:
    axis = axis_of(axis, x.rank)
    return Known((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)


@rule("GatherElements")
def _gather_elements(x: Known, indices: Known, *, axis: int) -> Known:
    _check_elements(x, indices, axis)
    return Known(indices.shape, x.dtype)


@rule("ScatterElements")
def _scatter_elements(x: Known, indices: Known, updates: Known, *, axis: int, **_: Any) -> Known:
    _check_elements(x, indices, axis)
    if updates.shape != indices.shape:
        raise ModelFormatError(f"updates {list(updates.shape)} and indices {list(indices.shape)} must be alike")
    return Known(x.shape, one_type(x, updates))


def _check_elements(x: Known, indices: Known, axis: int) -> None:
    axis = axis_of(axis, x.rank)
    pairs = enumerate(zip(indices.shape, x.shape, strict=False))
    if indices.rank != x.rank or any(i > n for a, (i, n) in pairs if a != axis):
        raise ModelFormatError(f"indices {list(indices.shape)} do not fit {list(x.shape)}")


@rule("GatherND")
def _gather_nd(x: Known, indices: Known, *, batch_dims: int) -> Known:
    return Known((*indices.shape[:-1], *x.shape[batch_dims + _depth(x, indices, batch_dims) :]), x.dtype)


@rule("ScatterND")
def _scatter_nd(x: Known, indices: Known, updates: Known, **_: Any) -> Known:
    expected = (*indices.shape[:-1], *x.shape[_depth(x, indices) :])
    if updates.shape != expected:
        raise ModelFormatError(f"updates must be {list(expected)}, got {list(updates.shape)}")
    return Known(x.shape, one_type(x, updates))


def _depth(x: Known, indices: Known, batch_dims: int = 0) -> int:
    """How many axes each row of indices names."""
    shared = x.shape[:batch_dims] == indices.shape[:batch_dims]
    fitting = batch_dims < indices.rank and 1 <= indices.shape[-1] <= x.rank - batch_dims
    if not fitting or not shared:
        raise ModelFormatError(f"indices {list(indices.shape)} do not fit {list(x.shape)}")
    return indices.shape[-1]


@rule("OneHot")
def _one_hot(indices: Known, depth: Known, values: Known, *, axis: int) -> Known:
    count = one_hot_depth(value_of(depth, "the depth"))
    axis = axis_of(axis, indices.rank + 1)
    return Known((*indices.shape[:axis], count, *indices.shape[axis:]), values.dtype)


@rule("NonZero")
def _non_zero(x: Known) -> Known:
    return Known((x.rank, int(np.count_nonzero(value_of(x, "the input")))), INT64)


# reduction


@rule(
    *("ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"),
    *("ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"),
)
def _reduce(x: Known, axes: Known | None = None, *, keepdims: int, noop_with_empty_axes: int) -> Known:
    given = optional_value(axes, "axes")
    for axis in () if given is None else sizes(given):
        axis_of(axis, x.rank)
    return Known(_without(x.shape, reduced_axes(x.rank, given, bool(noop_with_empty_axes)), keepdims), x.dtype)


@rule("ArgMax", "ArgMin")
def _arg(x: Known, *, axis: int, keepdims: int, **_: Any) -> Known:
    axis = axis_of(axis, x.rank)
    if x.shape[axis] == 0:
        raise ModelFormatError(f"axis {axis} of {list(x.shape)} is empty: it has no greatest element")
    return Known(_without(x.shape, (axis,), keepdims), INT64)


@rule("TopK")
def _top_k(x: Known, K: Known, *, axis: int, **_: Any) -> tuple[Known, Known]:
    count = int(value_of(K, "K").reshape(()))
    axis = axis_of(axis, x.rank)
    if not 0 <= count <= x.shape[axis]:
        raise ModelFormatError(f"K must lie in 0..{x.shape[axis]}, got {count}")
    shape = replaced(x.shape, axis, count)
    return Known(shape, x.dtype), Known(shape, INT64)


def _without(shape: Size, axes: Size, keepdims: int) -> Size:
    if keepdims:
        return tuple(1 if axis in axes else n for axis, n in enumerate(shape))
    return tuple(n for axis, n in enumerate(shape) if axis not in axes)


# recurrent layers


def _recurrent(op: str, *inputs: Known | None, **attributes: Any) -> list[Known]:
    layer = layer_of(op, {**dict(zip(INPUTS[op], inputs, strict=False)), **attributes})
    dtype = one_type(inputs[0])
    return [Known(shape, dtype) for shape in layer.output_shapes()]


for _op in INPUTS:
    rule(_op)(partial(_recurrent, _op))
