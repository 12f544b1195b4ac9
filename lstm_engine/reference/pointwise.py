"""Operators that treat every element alike: arithmetic, comparison, activations.

NaN in gives NaN out, infinities saturate, dtypes are kept.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from .registry import Array, operator

# --- activations ------------------------------------------------------------------------------------------------------


@operator("Sigmoid")
def sigmoid(x: Array) -> Array:
    """σ(x) = 1 / (1 + e^-x), from e^-|x| so that nothing overflows."""
    decay = np.exp(-np.abs(x))
    return np.where(x < 0, decay, 1) / (1 + decay)


@operator("Tanh")
def tanh(x: Array) -> Array:
    """Hyperbolic tangent."""
    return np.tanh(x)


@operator("Relu")
def relu(x: Array) -> Array:
    """max(x, 0)."""
    return np.maximum(x, 0)


@operator("LeakyRelu")
def leaky_relu(x: Array, *, alpha: float = 0.01) -> Array:
    """x, or αx where negative."""
    return np.where(x < 0, alpha * x, x)


@operator("PRelu")
def prelu(x: Array, slope: Array) -> Array:
    """x, or slope * x where negative."""
    return np.where(x < 0, slope * x, x)


@operator("Elu")
def elu(x: Array, *, alpha: float = 1.0) -> Array:
    """x, or α(e^x - 1) where negative."""
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


@operator("Selu")
def selu(x: Array, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Array:
    """γ x, or γα(e^x - 1) where negative."""
    return gamma * elu(x, alpha=alpha)


@operator("Celu")
def celu(x: Array, *, alpha: float = 1.0) -> Array:
    """x, or α(e^(x/α) - 1) where negative."""
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0) / alpha), x)


@operator("HardSigmoid")
def hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """αx + β within 0..1."""
    return np.clip(alpha * x + beta, 0, 1)


@operator("HardSwish")
def hard_swish(x: Array) -> Array:
    """x * hard_sigmoid(x) with α = 1/6."""
    return x * hard_sigmoid(x, alpha=1 / 6)


@operator("Softplus")
def softplus(x: Array) -> Array:
    """log(1 + e^x)."""
    return np.logaddexp(x, np.zeros((), x.dtype))


@operator("Softsign")
def softsign(x: Array) -> Array:
    """x / (1 + |x|), ±1 at ±∞."""
    return np.where(np.isinf(x), np.sign(x), x / (1 + np.abs(x)))


@operator("ThresholdedRelu")
def thresholded_relu(x: Array, *, alpha: float = 1.0) -> Array:
    """x where it exceeds α, else 0."""
    return np.where(x <= alpha, 0, x)


@operator("Gelu")
def gelu(x: Array, *, approximate: str = "none") -> Array:
    """x Φ(x), with the normal distribution Φ by erf or by the usual tanh."""
    if approximate == "none":
        return x / 2 * (1 + erf(x / math.sqrt(2)))
    if approximate == "tanh":
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    raise UnsupportedModelError(f"approximate='{approximate}' is neither 'none' nor 'tanh'")


@operator("Mish")
def mish(x: Array) -> Array:
    """x tanh(softplus(x))."""
    return x * np.tanh(softplus(x))


@operator("Swish")
def swish(x: Array, *, alpha: float = 1.0) -> Array:
    """x σ(αx)."""
    return x * sigmoid(alpha * x)


@operator("Shrink")
def shrink(x: Array, *, bias: float = 0.0, lambd: float = 0.5) -> Array:
    """0 within ±lambd; beyond it x, by ``bias`` nearer to 0."""
    near = np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0))
    return np.where(np.isnan(x), x, near).astype(x.dtype)


@operator("Clip")
def clip(x: Array, min: Array | None = None, max: Array | None = None) -> Array:
    """x within min..max; max where the two cross."""
    if min is not None:
        x = np.maximum(x, min.reshape(()))
    if max is not None:
        x = np.minimum(x, max.reshape(()))
    return x


@operator("Softmax")
def softmax(x: Array, *, axis: int = -1, flatten_from: int | None = None) -> Array:
    """e^x normalised to sum 1 along ``axis``."""
    if flatten_from is not None:
        return softmax(_rows(x, flatten_from)).reshape(x.shape)
    raised = np.exp(x - _peak(x, axis))
    return raised / np.sum(raised, axis, keepdims=True)


@operator("LogSoftmax")
def log_softmax(x: Array, *, axis: int = -1, flatten_from: int | None = None) -> Array:
    """log(softmax(x)), exact where softmax is tiny."""
    if flatten_from is not None:
        return log_softmax(_rows(x, flatten_from)).reshape(x.shape)
    shifted = x - _peak(x, axis)
    return shifted - np.log(np.sum(np.exp(shifted), axis, keepdims=True))


@operator("Hardmax")
def hardmax(x: Array, *, axis: int = -1, flatten_from: int | None = None) -> Array:
    """1 at the first maximum along ``axis``, else 0."""
    if flatten_from is not None:
        return hardmax(_rows(x, flatten_from)).reshape(x.shape)
    if x.size == 0:
        return x
    out = np.zeros_like(x)
    np.put_along_axis(out, np.argmax(x, axis, keepdims=True), 1, axis)
    return out


def _rows(x: Array, axis: int) -> Array:
    """x as a matrix whose rows are what Softmax before opset 13 normalised: everything from ``axis`` on."""
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _peak(x: Array, axis: int) -> Array:
    return np.max(x, axis, keepdims=True, initial=-np.inf)


# --- functions of one argument ----------------------------------------------------------------------------------------


@operator("Neg")
def neg(x: Array) -> Array:
    """-x."""
    return np.negative(x)


@operator("Abs")
def absolute(x: Array) -> Array:
    """|x|."""
    return np.abs(x)


@operator("Sqrt")
def sqrt(x: Array) -> Array:
    """√x."""
    return np.sqrt(x)


@operator("Exp")
def exp(x: Array) -> Array:
    """e^x."""
    return np.exp(x)


@operator("Log")
def log(x: Array) -> Array:
    """Natural logarithm."""
    return np.log(x)


@operator("Reciprocal")
def reciprocal(x: Array) -> Array:
    """1 / x."""
    return 1 / x


@operator("Erf")
def erf(x: Array) -> Array:
    """The error function; NumPy has none."""
    return _erf(x).astype(x.dtype)


_erf: Final = np.vectorize(math.erf, otypes=[np.float64])


@operator("Floor")
def floor(x: Array) -> Array:
    """The next integer at or below."""
    return np.floor(x)


@operator("Ceil")
def ceil(x: Array) -> Array:
    """The next integer at or above."""
    return np.ceil(x)


@operator("Round")
def nearest(x: Array) -> Array:
    """The nearest integer, halves to the even one."""
    return np.rint(x)


@operator("Sign")
def sign(x: Array) -> Array:
    """-1, 0 or 1."""
    return np.sign(x)


@operator("Sin")
def sin(x: Array) -> Array:
    """Sine."""
    return np.sin(x)


@operator("Cos")
def cos(x: Array) -> Array:
    """Cosine."""
    return np.cos(x)


@operator("Tan")
def tan(x: Array) -> Array:
    """Tangent."""
    return np.tan(x)


@operator("Asin")
def arcsin(x: Array) -> Array:
    """Inverse sine."""
    return np.arcsin(x)


@operator("Acos")
def arccos(x: Array) -> Array:
    """Inverse cosine."""
    return np.arccos(x)


@operator("Atan")
def arctan(x: Array) -> Array:
    """Inverse tangent."""
    return np.arctan(x)


@operator("Sinh")
def sinh(x: Array) -> Array:
    """Hyperbolic sine."""
    return np.sinh(x)


@operator("Cosh")
def cosh(x: Array) -> Array:
    """Hyperbolic cosine."""
    return np.cosh(x)


@operator("Asinh")
def arcsinh(x: Array) -> Array:
    """Inverse hyperbolic sine."""
    return np.arcsinh(x)


@operator("Acosh")
def arccosh(x: Array) -> Array:
    """Inverse hyperbolic cosine."""
    return np.arccosh(x)


@operator("Atanh")
def arctanh(x: Array) -> Array:
    """Inverse hyperbolic tangent."""
    return np.arctanh(x)


@operator("Not")
def logical_not(x: Array) -> Array:
    """Logical negation."""
    return np.logical_not(x)


@operator("BitwiseNot")
def bitwise_not(x: Array) -> Array:
    """Every bit negated."""
    return np.bitwise_not(x)


@operator("IsNaN")
def is_nan(x: Array) -> Array:
    """Where x is not a number."""
    return np.isnan(x)


@operator("IsInf")
def is_inf(x: Array, *, detect_negative: int = 1, detect_positive: int = 1) -> Array:
    """Where x is infinite, of the signs asked for."""
    return np.isinf(x) & np.where(x > 0, bool(detect_positive), bool(detect_negative))


@operator("Identity")
def identity(x: Array) -> Array:
    """x itself."""
    return x


@operator("Dropout")
def dropout(
    x: Array, ratio: Array | None = None, training_mode: Array | None = None, *, seed: int | None = None
) -> tuple[Array, Array]:
    """x itself and a mask of ones: nothing is dropped at inference."""
    if training_mode is not None and np.any(training_mode):
        raise UnsupportedModelError("training_mode must be false: the engine only infers")
    return x, np.ones(x.shape, bool)


# --- arithmetic and comparison, with broadcasting ---------------------------------------------------------------------


@operator("Add")
def add(a: Array, b: Array) -> Array:
    """a + b."""
    return np.add(a, b)


@operator("Sub")
def sub(a: Array, b: Array) -> Array:
    """a - b."""
    return np.subtract(a, b)


@operator("Mul")
def mul(a: Array, b: Array) -> Array:
    """a * b."""
    return np.multiply(a, b)


@operator("Div")
def div(a: Array, b: Array) -> Array:
    """a / b; integers are divided towards zero."""
    if not np.issubdtype(a.dtype, np.integer):
        return np.divide(a, b)
    floored = np.floor_divide(a, b)
    inexact = (a - floored * b != 0) & ((a < 0) != (b < 0)) & (b != 0)
    return floored + inexact.astype(a.dtype)


@operator("Mod")
def mod(a: Array, b: Array, *, fmod: int = 0) -> Array:
    """The remainder of a / b, with the sign of b, or with fmod of a."""
    return np.fmod(a, b) if fmod else np.mod(a, b)


@operator("Pow")
def power(base: Array, exponent: Array) -> Array:
    """base ^ exponent, in the type of the base."""
    whole = np.issubdtype(base.dtype, np.integer) and np.issubdtype(exponent.dtype, np.integer)
    if np.issubdtype(base.dtype, np.integer) and not (whole and np.all(exponent >= 0)):
        base_float = base.astype(np.float64)
        return np.power(base_float, exponent).astype(base.dtype)
    return np.power(base, exponent).astype(base.dtype)


@operator("Min")
def minimum(first: Array, *others: Array) -> Array:
    """The least of the inputs."""
    for other in others:
        first = np.minimum(first, other)
    return first


@operator("Max")
def maximum(first: Array, *others: Array) -> Array:
    """The greatest of the inputs."""
    for other in others:
        first = np.maximum(first, other)
    return first


@operator("Sum")
def total(first: Array, *others: Array) -> Array:
    """The sum of the inputs."""
    for other in others:
        first = first + other
    return first


@operator("Mean")
def mean(first: Array, *others: Array) -> Array:
    """The mean of the inputs."""
    return total(first, *others) / (1 + len(others))


@operator("Equal")
def equal(a: Array, b: Array) -> Array:
    """a = b."""
    return np.equal(a, b)


@operator("Less")
def less(a: Array, b: Array) -> Array:
    """a < b."""
    return np.less(a, b)


@operator("LessOrEqual")
def less_or_equal(a: Array, b: Array) -> Array:
    """a ≤ b."""
    return np.less_equal(a, b)


@operator("Greater")
def greater(a: Array, b: Array) -> Array:
    """a > b."""
    return np.greater(a, b)


@operator("GreaterOrEqual")
def greater_or_equal(a: Array, b: Array) -> Array:
    """a ≥ b."""
    return np.greater_equal(a, b)


@operator("And")
def logical_and(a: Array, b: Array) -> Array:
    """Both."""
    return np.logical_and(a, b)


@operator("Or")
def logical_or(a: Array, b: Array) -> Array:
    """Either."""
    return np.logical_or(a, b)


@operator("Xor")
def logical_xor(a: Array, b: Array) -> Array:
    """One but not both."""
    return np.logical_xor(a, b)


@operator("BitwiseAnd")
def bitwise_and(a: Array, b: Array) -> Array:
    """Bits set in both."""
    return np.bitwise_and(a, b)


@operator("BitwiseOr")
def bitwise_or(a: Array, b: Array) -> Array:
    """Bits set in either."""
    return np.bitwise_or(a, b)


@operator("BitwiseXor")
def bitwise_xor(a: Array, b: Array) -> Array:
    """Bits set in one but not both."""
    return np.bitwise_xor(a, b)


@operator("BitShift")
def bit_shift(a: Array, b: Array, *, direction: str) -> Array:
    """The bits of a moved b places; those that leave are lost, zeros come in, or the sign from the left."""
    if direction not in ("LEFT", "RIGHT"):
        raise ModelFormatError(f"direction must be LEFT or RIGHT, got '{direction}'")
    width = a.dtype.itemsize * 8
    if direction == "LEFT":
        return np.where(b < width, np.left_shift(a, np.minimum(b, width - 1)), 0).astype(a.dtype)
    gone = -1 if a.dtype.kind == "i" else 0  # the sign of a negative number comes in
    return np.where(b < width, np.right_shift(a, np.minimum(b, width - 1)), np.where(a < 0, gone, 0)).astype(a.dtype)


@operator("Where")
def where(condition: Array, a: Array, b: Array) -> Array:
    """a where the condition holds, else b."""
    return np.where(condition, a, b)


# --- types ------------------------------------------------------------------------------------------------------------

#: Element types by their number in ONNX's TensorProto.
DTYPES: Final[dict[int, np.dtype[Any]]] = {
    number: np.dtype(name)
    for number, name in {
        1: "float32",
        2: "uint8",
        3: "int8",
        4: "uint16",
        5: "int16",
        6: "int32",
        7: "int64",
        9: "bool",
        10: "float16",
        11: "float64",
        12: "uint32",
        13: "uint64",
    }.items()
}


def element_type(number: int | None) -> np.dtype[Any]:
    """The dtype of a TensorProto element type."""
    if number is None:
        raise ModelFormatError("attribute 'to' is missing")
    if not isinstance(number, int) or number not in DTYPES:
        raise UnsupportedModelError(f"element type {number} is not one of {', '.join(map(str, DTYPES.values()))}")
    return DTYPES[number]


@operator("Cast")
def cast(x: Array, *, to: int | None = None, saturate: int = 1) -> Array:
    """x as another type; fractions are cut off (saturate concerns 8-bit floats only)."""
    return x.astype(element_type(to))


@operator("CastLike")
def cast_like(x: Array, like: Array, *, saturate: int = 1) -> Array:
    """x as the type of ``like``."""
    return x.astype(like.dtype)
