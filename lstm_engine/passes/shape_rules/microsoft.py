"""Rules of onnxruntime's own operators."""

from __future__ import annotations

import math
from typing import Any

from ...errors import ModelFormatError
from ...reference.cells import cell_attributes
from ...reference.microsoft import check_quantised_lstm, triples
from .basic import matmul
from .known import Known, Size, axis_of, broadcast, fits, one_type, replaced, rule
from .quantised import INT32, integer_product
from .windows import pooled


@rule("FusedMatMul")
def _fused_matmul(
    a: Known, b: Known, *, transA: int, transB: int, transBatchA: int, transBatchB: int, **_: Any
) -> Known:
    left = Known(_turned(a.shape, transA, transBatchA), a.dtype)
    return matmul(left, Known(_turned(b.shape, transB, transBatchB), b.dtype))


def _turned(shape: Size, swapped: int, batched: int) -> Size:
    if batched and len(shape) > 2:
        shape = (*shape[1:-1], shape[0], shape[-1])
    return (*shape[:-2], shape[-1], shape[-2]) if swapped and len(shape) > 1 else shape


@rule("MatMulIntegerToFloat")
def _integer_to_float(
    a: Known,
    b: Known,
    a_scale: Known,
    b_scale: Known,
    a_zero: Known | None = None,
    b_zero: Known | None = None,
    bias: Known | None = None,
) -> Known:
    _for_all(a_scale)
    _for_columns(b_scale, b.shape[-1:])
    product = integer_product(a, b, a_zero, b_zero, a_scale.dtype)
    fits("bias", bias, "the product", product.shape)
    return product


@rule("QGemm")
def _qgemm(
    a: Known,
    a_scale: Known,
    a_zero: Known,
    b: Known,
    b_scale: Known,
    b_zero: Known,
    c: Known | None = None,
    y_scale: Known | None = None,
    y_zero: Known | None = None,
    *,
    transA: int,
    transB: int,
    **_: Any,
) -> Known:
    if a.rank != 2 or b.rank != 2:
        raise ModelFormatError(f"QGemm takes matrices, got {list(a.shape)} and {list(b.shape)}")
    left, right = Known(_turned(a.shape, transA, 0), INT32), Known(_turned(b.shape, transB, 0), INT32)
    result = matmul(left, right)
    _for_all(a_scale, a_zero, y_scale, y_zero)
    _for_columns(b_scale, result.shape[1:])
    _for_columns(b_zero, result.shape[1:])
    fits("C", c, "[M, N] =", result.shape)
    return Known(result.shape, a_scale.dtype if y_zero is None else y_zero.dtype)


def _for_all(*parameters: Known | None) -> None:
    wrong = [str(list(k.shape)) for k in parameters if k is not None and math.prod(k.shape) != 1]
    if wrong:
        raise ModelFormatError(f"scales and zero points must be scalars, got {', '.join(wrong)}")


def _for_columns(parameter: Known, columns: Size) -> None:
    if parameter.shape not in ((), (1,), columns):
        raise ModelFormatError(
            f"scales and zero points must be scalars or {list(columns)}, got {list(parameter.shape)}"
        )


@rule("QLinearAdd", "QLinearMul")
def _joined(
    a: Known,
    a_scale: Known,
    a_zero: Known | None,
    b: Known,
    b_scale: Known,
    b_zero: Known | None,
    y_scale: Known,
    y_zero: Known | None = None,
) -> Known:
    _for_all(a_scale, a_zero, b_scale, b_zero, y_scale, y_zero)
    return Known(broadcast(a, b), (a if y_zero is None else y_zero).dtype)


@rule("QLinearWhere")
def _where(
    condition: Known,
    a: Known,
    a_scale: Known,
    a_zero: Known,
    b: Known,
    b_scale: Known,
    b_zero: Known,
    y_scale: Known,
    y_zero: Known,
) -> Known:
    _for_all(a_scale, a_zero, b_scale, b_zero, y_scale, y_zero)
    return Known(broadcast(condition, a, b), y_zero.dtype)


def _like(x: Known, shape: Size, *parameters: Known | None) -> Known:
    """A quantised result in the type of its zero point, the last of the parameters."""
    _for_all(*parameters)
    zero = parameters[-1]
    return Known(shape, (x if zero is None else zero).dtype)


@rule("QLinearSigmoid", "QLinearLeakyRelu")
def _mapped(
    x: Known, x_scale: Known, x_zero: Known | None, y_scale: Known, y_zero: Known | None = None, **_: Any
) -> Known:
    return _like(x, x.shape, x_scale, x_zero, y_scale, y_zero)


@rule("QLinearSoftmax")
def _softmax(
    x: Known,
    x_scale: Known,
    x_zero: Known | None,
    y_scale: Known,
    y_zero: Known | None = None,
    *,
    axis: int,
    opset: int,
) -> Known:
    if opset >= 13:
        axis_of(axis, x.rank)
    return _like(x, x.shape, x_scale, x_zero, y_scale, y_zero)


@rule("QLinearConcat")
def _concat(y_scale: Known, y_zero: Known, *inputs: Known, axis: int) -> Known:
    parts = triples(inputs)
    first = parts[0][0]
    axis = axis_of(axis, first.rank)
    for tensor, scale, zero in parts:
        _for_all(scale, zero)
        if tensor.rank != first.rank or replaced(tensor.shape, axis, 0) != replaced(first.shape, axis, 0):
            raise ModelFormatError(f"inputs must agree on every axis but {axis}, got {tensor} and {first}")
    return Known(replaced(first.shape, axis, sum(tensor.shape[axis] for tensor, _, _ in parts)), y_zero.dtype)


@rule("QLinearAveragePool")
def _average_pool(
    x: Known,
    x_scale: Known,
    x_zero: Known | None,
    y_scale: Known,
    y_zero: Known | None = None,
    *,
    count_include_pad: int,
    **attributes: Any,
) -> Known:
    return _like(x, pooled(x, {**attributes, "dilations": None}), x_scale, x_zero, y_scale, y_zero)


@rule("QLinearGlobalAveragePool")
def _global_pool(x: Known, x_scale: Known, x_zero: Known, y_scale: Known, y_zero: Known) -> Known:
    if x.rank < 3:
        raise ModelFormatError(f"x must be [N, C, ...] with at least one spatial axis, got {list(x.shape)}")
    return _like(x, (*x.shape[:2], *(1,) * (x.rank - 2)), x_scale, x_zero, y_scale, y_zero)


@rule("DynamicQuantizeLSTM")
def _quantised_lstm(
    X: Known,
    W: Known,
    R: Known,
    B: Known | None,
    sequence_lens: Known | None,
    initial_h: Known | None,
    initial_c: Known | None,
    P: Known | None,
    W_scale: Known,
    W_zero: Known,
    R_scale: Known,
    R_zero: Known,
    **attributes: Any,
) -> list[Known]:
    cell = cell_attributes("LSTM", {name: value for name, value in attributes.items() if value is not None})
    H = check_quantised_lstm(cell, X.shape, W.shape, R.shape, W_scale.shape, R_scale.shape)
    D, (T, rows, _) = len(cell.directions), X.shape
    expected: list[tuple[str, Known | None, Size]] = [
        ("B", B, (D, 8 * H)),
        ("sequence_lens", sequence_lens, (rows,)),
        ("initial_h", initial_h, (D, rows, H)),
        ("initial_c", initial_c, (D, rows, H)),
        ("P", P, (D, 3 * H)),
        ("W_zero_point", W_zero, W_scale.shape),
        ("R_zero_point", R_zero, R_scale.shape),
    ]
    wrong = [f"{name} must be {list(size)}, got {list(k.shape)}" for name, k, size in expected if k and k.shape != size]
    if wrong:
        raise ModelFormatError("; ".join(wrong))
    one_type(X, B, initial_h, initial_c, P, W_scale, R_scale)
    state = Known((D, rows, H), X.dtype)
    return [Known((T, D, rows, H), X.dtype), state, state]
