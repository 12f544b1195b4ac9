"""Operators of onnxruntime's own set that its quantiser and optimiser write. Here they belong to the engine's domain.

Quantised ones compute in the real numbers that their operands stand for and round once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from . import pointwise
from .cells import CellAttributes, cell_attributes
from .pooling import average_pool, global_average_pool
from .quantised import (
    centred_columns,
    centred_rows,
    dynamic_quantize_linear,
    exact_product,
    saturated,
)
from .recurrent import Gates, LstmCell, Peepholes, State, scan, stacked
from .registry import Array, operator


@operator("FusedMatMul")
def fused_matmul(
    a: Array,
    b: Array,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Array:
    """α a @ b; each may be given with its last two axes swapped, or with the first before the last."""
    left, right = turned(a, bool(transA), bool(transBatchA)), turned(b, bool(transB), bool(transBatchB))
    return (alpha * np.matmul(left, right)).astype(a.dtype)


def turned(x: Array, swapped: bool, batched: bool) -> Array:
    """An operand of FusedMatMul as MatMul takes it."""
    if batched and x.ndim > 2:
        x = np.moveaxis(x, 0, -2)
    return x.swapaxes(-1, -2) if swapped and x.ndim > 1 else x


@operator("MatMulIntegerToFloat")
def matmul_integer_to_float(
    a: Array,
    b: Array,
    a_scale: Array,
    b_scale: Array,
    a_zero_point: Array | None = None,
    b_zero_point: Array | None = None,
    bias: Array | None = None,
) -> Array:
    """The product of quantised matrices as real numbers; b's scale and zero point for all or for each column."""
    product = exact_product(centred_rows(a, a_zero_point), centred_columns(b, b_zero_point))
    y = product.astype(a_scale.dtype) * (a_scale.reshape(()) * b_scale)
    return y if bias is None else y + bias


@operator("QGemm")
def qgemm(
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    c: Array | None = None,
    y_scale: Array | None = None,
    y_zero_point: Array | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    """α a b + c of quantised matrices, quantised if y's scale is given; b's parameters for all or for each column."""
    left, right = (a.T if transA else a), (b.T if transB else b)
    product = exact_product(centred_rows(left, a_zero_point), centred_columns(right, b_zero_point))
    whole = product if c is None else product + c
    scale = a_scale.dtype.type(alpha) * a_scale.reshape(()) * b_scale
    if y_scale is None:
        return whole.astype(scale.dtype) * scale
    if y_zero_point is None:
        raise ModelFormatError("y_scale needs a y_zero_point")
    return saturated(whole.astype(scale.dtype) * (scale / y_scale.reshape(())), y_zero_point, y_zero_point.dtype)


# --- quantised functions of real numbers ------------------------------------------------------------------------------


def _real(q: Array, scale: Array, zero_point: Array | None) -> Array:
    """What a quantised tensor stands for; scale and zero point are one for all."""
    whole = q.astype(np.int32) - (0 if zero_point is None else zero_point.reshape(()).astype(np.int32))
    return whole.astype(scale.dtype) * scale.reshape(())


def _quantised(x: Array, scale: Array, zero_point: Array | None, like: Array) -> Array:
    """x in the scale and zero point given, of the type of ``like`` if it has no zero point of its own."""
    dtype = like.dtype if zero_point is None else zero_point.dtype
    return saturated(x / scale.reshape(()), 0 if zero_point is None else zero_point.reshape(()), dtype)


def _join(name: str, function: Callable[[Array, Array], Array], words: str) -> None:
    def joined(
        a: Array,
        a_scale: Array,
        a_zero_point: Array | None,
        b: Array,
        b_scale: Array,
        b_zero_point: Array | None,
        y_scale: Array,
        y_zero_point: Array | None = None,
    ) -> Array:
        y = function(_real(a, a_scale, a_zero_point), _real(b, b_scale, b_zero_point))
        return _quantised(y, y_scale, y_zero_point, a)

    joined.__doc__ = words
    operator(name)(joined)


_join("QLinearAdd", np.add, "a + b of quantised tensors.")
_join("QLinearMul", np.multiply, "a * b of quantised tensors.")


@operator("QLinearSigmoid")
def qlinear_sigmoid(
    x: Array, x_scale: Array, x_zero_point: Array | None, y_scale: Array, y_zero_point: Array | None = None
) -> Array:
    """σ(x) of a quantised tensor."""
    return _quantised(pointwise.sigmoid(_real(x, x_scale, x_zero_point)), y_scale, y_zero_point, x)


@operator("QLinearLeakyRelu")
def qlinear_leaky_relu(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array | None = None,
    *,
    alpha: float = 0.01,
) -> Array:
    """x, or αx where negative, of a quantised tensor."""
    return _quantised(pointwise.leaky_relu(_real(x, x_scale, x_zero_point), alpha=alpha), y_scale, y_zero_point, x)


@operator("QLinearSoftmax")
def qlinear_softmax(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array | None = None,
    *,
    axis: int = -1,
    opset: int,
) -> Array:
    """Softmax of a quantised tensor, as ONNX's operator set ``opset`` has it."""
    flattening = {} if opset >= 13 else {"flatten_from": axis}
    real = pointwise.softmax(_real(x, x_scale, x_zero_point), axis=axis, **flattening)
    return _quantised(real, y_scale, y_zero_point, x)


@operator("QLinearConcat")
def qlinear_concat(y_scale: Array, y_zero_point: Array, *inputs: Array, axis: int) -> Array:
    """Quantised tensors (each with its scale and zero point) one after another along ``axis``."""
    parts = [_real(*triple) for triple in triples(inputs)]
    return _quantised(np.concatenate(parts, axis), y_scale, y_zero_point, y_zero_point)


def triples(inputs: Sequence[Any]) -> list[tuple[Any, Any, Any]]:
    """Variadic inputs as (tensor, scale, zero point)."""
    if len(inputs) % 3 or not inputs:
        raise ModelFormatError(f"expected a tensor, a scale and a zero point for each, got {len(inputs)} inputs")
    return [(inputs[k], inputs[k + 1], inputs[k + 2]) for k in range(0, len(inputs), 3)]


@operator("QLinearWhere")
def qlinear_where(
    condition: Array,
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
) -> Array:
    """a where the condition holds, else b, of quantised tensors."""
    y = np.where(condition, _real(a, a_scale, a_zero_point), _real(b, b_scale, b_zero_point))
    return _quantised(y, y_scale, y_zero_point, a)


@operator("QLinearAveragePool")
def qlinear_average_pool(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array | None = None,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """The mean of each window of a quantised tensor."""
    y = average_pool(
        _real(x, x_scale, x_zero_point),
        kernel_shape=kernel_shape,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        pads=pads,
        strides=strides,
    )
    return _quantised(y, y_scale, y_zero_point, x)


@operator("QLinearGlobalAveragePool")
def qlinear_global_average_pool(
    x: Array, x_scale: Array, x_zero_point: Array, y_scale: Array, y_zero_point: Array
) -> Array:
    """The mean of each channel of a quantised tensor."""
    return _quantised(global_average_pool(_real(x, x_scale, x_zero_point)), y_scale, y_zero_point, x)


# --- the quantised LSTM -----------------------------------------------------------------------------------------------


@operator("DynamicQuantizeLSTM")
def dynamic_quantize_lstm(
    X: Array,
    W: Array,
    R: Array,
    B: Array | None,
    sequence_lens: Array | None,
    initial_h: Array | None,
    initial_c: Array | None,
    P: Array | None,
    W_scale: Array,
    W_zero_point: Array,
    R_scale: Array,
    R_zero_point: Array,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
) -> tuple[Array, Array, Array]:
    """An LSTM whose products are of 8-bit integers.

    X[T,B,I] W[D,I,4H] R[D,H,4H] in 8 bits, their scales and zero points [D] or [D,4H], the rest as an LSTM's. All of X,
    and at each step all rows of h, are quantised together, over their own range.
    """
    cell = cell_attributes("LSTM", {k: v for k, v in locals().items() if v is not None})
    if sequence_lens is not None and X.shape[1] > 1 and np.ptp(sequence_lens):
        raise UnsupportedModelError("rows of different sequence_lens share one quantisation; run them one by one")
    H = check_quantised_lstm(cell, X.shape, W.shape, R.shape, W_scale.shape, R_scale.shape)
    shape = (len(cell.directions), X.shape[1], H)
    h0 = np.zeros(shape, X.dtype) if initial_h is None else initial_h
    c0 = np.zeros(shape, X.dtype) if initial_c is None else initial_c
    runs = []
    for d, way in enumerate(cell.directions):
        flat = X.reshape(-1, X.shape[2])
        inputs = _dynamic_product(flat, W[d], W_scale[d], W_zero_point[d]).reshape(*X.shape[:2], 4 * H)
        bias = np.zeros(4 * H, X.dtype) if B is None else np.add(*np.split(B[d], 2))
        step = partial(
            _quantised_step,
            recur=partial(_dynamic_product, b=R[d], b_scale=R_scale[d], b_zero_point=R_zero_point[d]),
            peepholes=Peepholes.of(None if P is None else P[d]),
            cell=LstmCell.of(cell, d),
        )
        runs.append(scan(step, inputs + bias, (h0[d], c0[d]), sequence_lens, way))
    Y, (Y_h, Y_c) = stacked(runs, 0)
    return Y, Y_h, Y_c


def check_quantised_lstm(
    cell: CellAttributes,
    X: tuple[int, ...],
    W: tuple[int, ...],
    R: tuple[int, ...],
    W_scale: tuple[int, ...],
    R_scale: tuple[int, ...],
) -> int:
    """The hidden size of a DynamicQuantizeLSTM whose inputs fit. Raises ModelFormatError naming those that do not."""
    D = len(cell.directions)
    if len(X) != 3 or len(R) != 3 or R[2] != 4 * R[1] or R[0] != D:
        raise ModelFormatError(f"X must be [T, B, I] and R [{D}, H, 4H], got {list(X)} and {list(R)}")
    H = R[1]
    if (D, X[2], 4 * H) != W:
        raise ModelFormatError(f"W must be [D, I, 4H] = [{D}, {X[2]}, {4 * H}], got {list(W)}")
    for name, scale in (("W", W_scale), ("R", R_scale)):
        if scale not in ((D,), (D, 4 * H)):
            raise ModelFormatError(f"{name}_scale must be [D] or [D, 4H] = [{D}, {4 * H}], got {list(scale)}")
    return H


def _dynamic_product(a: Array, b: Array, b_scale: Array, b_zero_point: Array) -> Array:
    """a[M,K], quantised over its own range, times quantised b[K,N]."""
    q, scale, zero_point = dynamic_quantize_linear(a)
    product = exact_product(centred_rows(q, zero_point), centred_columns(b, b_zero_point))
    return product.astype(a.dtype) * (scale * b_scale)


def _quantised_step(
    pre: Array, state: State, recur: Callable[[Array], Array], peepholes: Peepholes, cell: LstmCell
) -> State:
    """One time step: pre[B,4H] is what the input and the bias add to the gates."""
    h, c = state
    p, σ, bounded = peepholes, cell.gate, cell.bounded
    gates = Gates(*np.split(pre + recur(h), 4, axis=1))
    i = σ(bounded(gates.i + p.i(c)))
    f = 1 - i if cell.input_forget else σ(bounded(gates.f + p.f(c)))
    c = f * c + i * cell.candidate(bounded(gates.g))
    o = σ(bounded(gates.o + p.o(c)))
    return o * cell.output(c), c
