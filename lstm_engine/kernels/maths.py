"""Sigmoid, tanh, exp and log on vectors: polynomials, no library calls.

2^y with y = x·log2(e) split into an integer n and a remainder r in [-1/2, 1/2] (in two parts, so that
the product's rounding error does not survive), a polynomial for 2^r, and n added to the exponent bits.
Bounds come first in max/min, so NaN passes through; ±inf saturates.

Held by tests/test_maths.py: float32 sigmoid within 1.1e-7 and tanh within 1.6e-7 absolute, exp within 3e-7 relative;
float64 within 1e-15.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir

from .simd import Lanes

LN2 = math.log(2.0)
# (2^r - 1) / r on [-1/2, 1/2], highest power first: a minimax fit, and for float64 the series itself.
_EXP2M1_OVER_R_32 = (
    0.0001540352471197389,
    0.0013390735536997049,
    0.00961823745479636,
    0.0555035743350674,
    0.24022649795200393,
    0.6931471879268625,
)
_EXP2M1_OVER_R_64 = tuple(LN2 ** (k + 1) / math.factorial(k + 1) for k in range(13, -1, -1))


def _polynomial(v: Lanes, b: ir.IRBuilder, coefficients: tuple[float, ...], r: ir.Value) -> ir.Value:
    total = v.constant(coefficients[0])
    for coefficient in coefficients[1:]:
        total = v.fma(b, total, r, v.constant(coefficient))
    return total


def _split_exponent(v: Lanes, b: ir.IRBuilder, x: ir.Value, factor: float) -> tuple[ir.Value, ir.Value]:
    """x·factor = n + r: n integral, |r| <= 1/2, the product's rounding error kept in r."""
    high = float(v.dtype.type(factor))
    low = factor - high if v.bytes == 4 else _LOG2E_TAIL * (factor / math.log2(math.e))
    n = v.unary(b, "nearbyint", b.fmul(x, v.constant(high)))
    r = v.fma(b, x, v.constant(high), b.fneg(n))
    return n, v.fma(b, x, v.constant(low), r)


#: log2(e) minus its nearest float64.
_LOG2E_TAIL = 2.0355273740931033e-17


def _power_of_two(v: Lanes, b: ir.IRBuilder, n: ir.Value) -> ir.Value:
    """2^n for integral n from one below the smallest exponent (giving 0) to one above the largest (inf)."""
    mantissa, bias = (23, 127) if v.bytes == 4 else (52, 1023)
    shifter = v.constant(1.5 * 2.0**mantissa)  # adding it leaves n + bias in the low bits, NaN without undefined bits
    shifted = b.bitcast(b.fadd(b.fadd(n, v.constant(bias)), shifter), v.bits)
    return b.bitcast(b.shl(shifted, v.bit_pattern(mantissa)), v.vector)


def _bounds(v: Lanes) -> tuple[float, float]:
    """The integral n at which 2^n becomes 0 and inf."""
    return (-127.0, 128.0) if v.bytes == 4 else (-1023.0, 1024.0)


def _scaled(v: Lanes, b: ir.IRBuilder, x: ir.Value, factor: float) -> tuple[ir.Value, ir.Value, ir.Value]:
    """n, r and (2^r - 1)/r for x·factor = n + r, x bounded to where 2^n is 0 or inf."""
    low, high = _bounds(v)
    edge = sorted((low / factor, (high + 0.4) / factor))  # beyond the n that overflows, but still rounding to it
    x = v.minimum(b, v.constant(edge[1]), v.maximum(b, v.constant(edge[0]), x))
    n, r = _split_exponent(v, b, x, factor)
    return n, r, _polynomial(v, b, _EXP2M1_OVER_R_32 if v.bytes == 4 else _EXP2M1_OVER_R_64, r)


LOG2E = math.log2(math.e)


def exp(v: Lanes, b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e^x; exactly 1 at 0, 0 below the normal numbers, inf from where it overflows."""
    n, r, quotient = _scaled(v, b, x, LOG2E)
    power = v.fma(b, r, quotient, v.constant(1.0))
    # 2^n overflows half a binade before e^x does: there, one factor of 2 goes to the other side.
    above = b.fcmp_ordered(">", n, v.constant(_bounds(v)[1] - 1.0))
    n = b.select(above, b.fsub(n, v.constant(1.0)), n)
    power = b.select(above, b.fadd(power, power), power)
    return b.fmul(power, _power_of_two(v, b, n))


def expm1(v: Lanes, b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e^x - 1 for x <= 0, exact near 0."""
    return _expm1_of(v, b, *_scaled(v, b, x, LOG2E))


def _expm1_of(v: Lanes, b: ir.IRBuilder, n: ir.Value, r: ir.Value, quotient: ir.Value) -> ir.Value:
    scale = _power_of_two(v, b, n)
    return v.fma(b, b.fmul(scale, r), quotient, b.fsub(scale, v.constant(1.0)))


def sigmoid(v: Lanes, b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """σ(x) = 1 / (1 + e^-x)."""
    one = v.constant(1.0)
    n, r, quotient = _scaled(v, b, x, -LOG2E)
    power = b.fmul(v.fma(b, r, quotient, one), _power_of_two(v, b, n))
    return b.fdiv(one, b.fadd(one, power))


def tanh(v: Lanes, b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """tanh(x) = -expm1(-2|x|) / (2 + expm1(-2|x|)), with the sign of x: exact near 0."""
    below = _expm1_of(v, b, *_scaled(v, b, v.unary(b, "fabs", x), -2.0 * LOG2E))
    return v.copysign(b, b.fdiv(below, b.fadd(below, v.constant(2.0))), x)


def softsign(v: Lanes, b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """x / (1 + |x|); ±1 at ±inf."""
    one, magnitude = v.constant(1.0), v.unary(b, "fabs", x)
    quotient = b.fdiv(x, b.fadd(one, magnitude))
    return b.select(b.fcmp_ordered("==", magnitude, v.constant(math.inf)), v.copysign(b, one, x), quotient)


def log(v: Lanes, b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """ln x: x = m·2^e with m in [√½, √2), then 2·artanh((m-1)/(m+1)); -inf at 0, NaN below."""
    mantissa = 23 if v.bytes == 4 else 52
    one = v.constant(1.0)
    bits = b.bitcast(x, v.bits)
    # Subtracting √½'s bits rounds the exponent to the nearest power of two in the sense of √½ … √2.
    half_root = int(np.array(math.sqrt(0.5), v.dtype).view(f"i{v.bytes}"))
    moved = b.sub(bits, v.bit_pattern(half_root))
    exponent = b.ashr(moved, v.bit_pattern(mantissa))
    m = b.bitcast(b.sub(bits, b.shl(exponent, v.bit_pattern(mantissa))), v.vector)
    s = b.fdiv(b.fsub(m, one), b.fadd(m, one))
    terms = tuple(2.0 / k for k in range(9 if v.bytes == 4 else 21, 0, -2))
    series = b.fmul(s, _polynomial(v, b, terms, b.fmul(s, s)))
    result = v.fma(b, b.sitofp(exponent, v.vector), v.constant(LN2), series)
    infinity = v.constant(math.inf)
    result = b.select(b.fcmp_ordered("==", x, infinity), infinity, result)
    result = b.select(b.fcmp_ordered("==", x, v.constant(0.0)), v.constant(-math.inf), result)
    return b.select(b.fcmp_ordered(">=", x, v.constant(0.0)), result, v.constant(math.nan))


def cell(
    v: Lanes, b: ir.IRBuilder, z: tuple[ir.Value, ir.Value, ir.Value, ir.Value], c: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """One LSTM cell: pre-activations z = (i, o, f, g) and c_{t-1} to (c_t, h_t)."""
    i, o, f = (sigmoid(v, b, gate) for gate in z[:3])
    g = tanh(v, b, z[3])
    c = v.fma(b, f, c, b.fmul(i, g))
    return c, b.fmul(o, tanh(v, b, c))
