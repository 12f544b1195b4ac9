"""Sigmoid, tanh, exp and log on vectors: polynomials, no library calls.

2^y with y = x·log2(e) split into an integer n and a remainder r in [-1/2, 1/2] (in two parts, so that
the product's rounding error does not survive), a polynomial for 2^r, and n added to the exponent bits.
Bounds come first in max/min, so NaN passes through; ±inf saturates.

Held by tests/test_maths.py: float32 sigmoid within 1.1e-7 and tanh within 1.6e-7 absolute, exp within 3e-7 relative;
float64 within 1e-15.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from llvmlite import ir

from .simd import Lanes

LN2 = math.log(2.0)
LOG2E = math.log2(math.e)
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


#: log2(e) minus its nearest float64.
_LOG2E_TAIL = 2.0355273740931033e-17
_LN2_EXACT = Fraction("0.6931471805599453094172321214581765680755001343602552541206800095")


def _in_two(v: Lanes, number: Fraction) -> tuple[float, float]:
    """A number as the sum of two, the first with so few bits that its products with exponents are exact."""
    bits = 15 if v.bytes == 4 else 41
    unit = Fraction(2) ** (bits - math.frexp(float(number))[1])
    high = Fraction(round(number * unit)) / unit
    return float(high), float(number - high)


class _Powers:
    """2^y for y = x·factor, split as n + r: n integral, |r| <= 1/2, the product's rounding error kept in r.

    n comes from adding a number so large that the sum keeps no fraction. It also carries the exponent's bias, so the
    sum's low bits are those of the exponent of 2^n: no conversion, and NaN stays NaN without undefined bits.
    """

    def __init__(self, v: Lanes, b: ir.IRBuilder, x: ir.Value, factor: float) -> None:
        self.v, self.b = v, b
        high = float(v.dtype.type(factor))
        times = round(factor / LOG2E)  # a whole multiple
        low = factor - high if v.bytes == 4 else _LOG2E_TAIL * times
        self.mantissa, bias = (23, 127) if v.bytes == 4 else (52, 1023)
        shifter = v.constant(1.5 * 2.0**self.mantissa + bias)
        self.shifted = v.fma(b, x, v.constant(high), shifter)
        self.n = b.fsub(self.shifted, shifter)
        if v.fused:
            self.r = v.fma(b, x, v.constant(low), v.fma(b, x, v.constant(high), b.fneg(self.n)))
        else:  # a product's rounding error is lost: x gives up n/factor instead, in two parts
            first, second = (b.fmul(self.n, v.constant(part)) for part in _in_two(v, _LN2_EXACT / times))
            self.r = b.fmul(b.fsub(b.fsub(x, first), second), v.constant(factor))

    def quotient(self) -> ir.Value:
        """(2^r - 1) / r."""
        coefficients = _EXP2M1_OVER_R_32 if self.v.bytes == 4 else _EXP2M1_OVER_R_64
        return _polynomial(self.v, self.b, coefficients, self.r)

    def scale(self, shifted: ir.Value | None = None) -> ir.Value:
        """2^n, from one below the smallest exponent (0) to one above the largest (inf)."""
        bits = self.b.bitcast(self.shifted if shifted is None else shifted, self.v.bits)
        return self.b.bitcast(self.b.shl(bits, self.v.bit_pattern(self.mantissa)), self.v.vector)

    def expm1(self) -> ir.Value:
        """2^y - 1, exact near 0."""
        scale = self.scale()
        return self.v.fma(self.b, self.b.fmul(scale, self.r), self.quotient(), self.b.fsub(scale, self.v.constant(1.0)))


def _bounds(v: Lanes) -> tuple[float, float]:
    """The integral n at which 2^n becomes 0 and inf, and a little: beyond, but still rounding to it."""
    return (-127.4, 128.4) if v.bytes == 4 else (-1023.4, 1024.4)


def _bounded(v: Lanes, b: ir.IRBuilder, x: ir.Value, factor: float) -> ir.Value:
    """x where 2^(x·factor) is neither 0 nor inf, else just beyond that."""
    low, high = sorted(edge / factor for edge in _bounds(v))
    return v.minimum(b, v.constant(high), v.maximum(b, v.constant(low), x))


def exp(v: Lanes, b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e^x; exactly 1 at 0, 0 below the normal numbers, inf from where it overflows."""
    powers = _Powers(v, b, _bounded(v, b, x, LOG2E), LOG2E)
    power = v.fma(b, powers.r, powers.quotient(), v.constant(1.0))
    # 2^n overflows half a binade before e^x does: there, one factor of 2 goes to the other side.
    above = b.fcmp_ordered(">", powers.n, v.constant(127.0 if v.bytes == 4 else 1023.0))
    shifted = b.select(above, b.fsub(powers.shifted, v.constant(1.0)), powers.shifted)
    power = b.select(above, b.fadd(power, power), power)
    return b.fmul(power, powers.scale(shifted))


def expm1(v: Lanes, b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e^x - 1 for x <= 0, exact near 0."""
    return _Powers(v, b, v.maximum(b, v.constant(_bounds(v)[0] / LOG2E), x), LOG2E).expm1()


def _sigmoid_denominator(v: Lanes, b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """1 + e^-x, of which σ(x) is the reciprocal; inf where σ(x) is 0."""
    one = v.constant(1.0)
    powers = _Powers(v, b, _bounded(v, b, x, -LOG2E), -LOG2E)
    power = b.fmul(v.fma(b, powers.r, powers.quotient(), one), powers.scale())
    return b.fadd(one, power)


def _tanh_parts(v: Lanes, b: ir.IRBuilder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """e and 2 + e with e = expm1(-2|x|), whose quotient is -tanh|x|, exact near 0."""
    factor = -2.0 * LOG2E
    magnitude = v.minimum(b, v.constant(_bounds(v)[0] / factor), v.unary(b, "fabs", x))
    below = _Powers(v, b, magnitude, factor).expm1()
    return below, b.fadd(below, v.constant(2.0))


def sigmoid(v: Lanes, b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """σ(x) = 1 / (1 + e^-x)."""
    return b.fdiv(v.constant(1.0), _sigmoid_denominator(v, b, x))


def tanh(v: Lanes, b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """tanh(x) = -expm1(-2|x|) / (2 + expm1(-2|x|)), with the sign of x."""
    return v.copysign(b, b.fdiv(*_tanh_parts(v, b, x)), x)


def gated_tanh(v: Lanes, b: ir.IRBuilder, gate: ir.Value, x: ir.Value) -> ir.Value:
    """σ(gate)·tanh(x) in one division: the reciprocal and the quotient share their denominators' product."""
    below, denominator = _tanh_parts(v, b, x)
    return v.copysign(b, b.fdiv(below, b.fmul(_sigmoid_denominator(v, b, gate), denominator)), x)


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
    i, o, f, g = z
    c = v.fma(b, sigmoid(v, b, f), c, gated_tanh(v, b, i, g))
    return c, gated_tanh(v, b, o, c)
