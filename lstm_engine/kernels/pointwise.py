"""Elementwise functions and softmax over rows."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..encoding import Function, Join, Map, Operation, Softmax
from ..jit import kernel
from . import maths
from .rows import field, locate, steps
from .simd import WIDTH, Lanes, float64_of_bits, never_inline


def activation(v: Lanes) -> Any:
    """activation(code, x, alpha, beta): one vector through the function of a code (encoding.Function)."""
    names = {"sigmoid": maths.sigmoid, "tanh": maths.tanh, "exp": maths.exp, "log": maths.log}
    sigmoid, tanh, exp, log = (v.intrinsic(_with(v, names[name]), "v", "v") for name in names)
    add = v.intrinsic(lambda b, x, y: b.fadd(x, y), "vv", "v")
    multiply = v.intrinsic(lambda b, x, y: b.fmul(x, y), "vv", "v")
    divide = v.intrinsic(lambda b, x, y: b.fdiv(x, y), "vv", "v")
    expm1 = v.intrinsic(_with(v, maths.expm1), "v", "v")
    softsign = v.intrinsic(_with(v, maths.softsign), "v", "v")
    at_least = v.intrinsic(v.maximum, "vv", "v")
    at_most = v.intrinsic(v.minimum, "vv", "v")
    fma = v.intrinsic(v.fma, "vvv", "v")
    splat = v.intrinsic(v.splat, "s", "v")
    negate = v.intrinsic(lambda b, x: b.fneg(x), "v", "v")
    absolute = v.intrinsic(lambda b, x: v.unary(b, "fabs", x), "v", "v")
    sqrt = v.intrinsic(lambda b, x: v.unary(b, "sqrt", x), "v", "v")
    # NaN is neither above nor below: it takes the second branch, which carries it on.
    above = v.intrinsic(lambda b, x, bound, y, z: b.select(b.fcmp_ordered(">", x, bound), y, z), "vvvv", "v")
    scalar = v.dtype.type
    (
        SIGMOID, TANH, RELU, AFFINE, LEAKY_RELU, THRESHOLDED_RELU, SCALED_TANH, HARD_SIGMOID, ELU, SOFTSIGN,
        SOFTPLUS, EXP, LOG, NEGATE, ABSOLUTE, SQRT, RECIPROCAL, _,
    ) = (int(f) for f in Function)  # fmt: skip

    @kernel
    def activate(code, x, alpha, beta):  # type: ignore[no-untyped-def]
        never_inline()
        zero, one = splat(scalar(0.0)), splat(scalar(1.0))
        a, c = splat(scalar(alpha)), splat(scalar(beta))
        if code == SIGMOID:
            return sigmoid(x)
        if code == TANH:
            return tanh(x)
        if code == RELU:
            return at_least(zero, x)
        if code == AFFINE:
            return fma(x, a, c)
        if code == LEAKY_RELU:
            return above(x, zero, x, multiply(x, a))
        if code == THRESHOLDED_RELU:
            return above(x, a, x, multiply(x, zero))
        if code == SCALED_TANH:
            return multiply(a, tanh(multiply(c, x)))
        if code == HARD_SIGMOID:
            return at_most(one, at_least(zero, fma(x, a, c)))
        if code == ELU:
            return above(x, zero, x, multiply(a, expm1(x)))
        if code == SOFTSIGN:
            return softsign(x)
        if code == SOFTPLUS:  # max(x, 0) + log(1 + e^-|x|)
            return add(at_least(zero, x), log(add(one, exp(negate(absolute(x))))))
        if code == EXP:
            return exp(x)
        if code == LOG:
            return log(x)
        if code == NEGATE:
            return negate(x)
        if code == ABSOLUTE:
            return absolute(x)
        if code == SQRT:
            return sqrt(x)
        if code == RECIPROCAL:
            return divide(one, x)
        return at_most(c, at_least(a, x))  # BOUND

    return activate


def _with(v: Lanes, emit: Any) -> Any:
    def bound(b: ir.IRBuilder, *operands: ir.Value) -> ir.Value:
        return emit(v, b, *operands)

    return bound


def map_rows(v: Lanes, activate: Any) -> Any:
    """out = f(x), row by row."""
    vector_load = v.intrinsic(lambda b, at: v.load(b, at, aligned=False), "a", "v")
    vector_store = v.intrinsic(lambda b, at, x: v.store(b, x, at, aligned=False), "av", "")
    size, stride = v.bytes, v.vector_bytes
    X, X_STRIDE, OUT, OUT_STRIDE, COLUMNS, ROWS, TIMED, FUNCTION, ALPHA, BETA = (int(f) for f in Map)

    @kernel
    def map_(ip, cx):  # type: ignore[no-untyped-def]
        never_inline()
        x, xs = locate(cx, field(ip, X)), field(ip, X_STRIDE)
        out, os = locate(cx, field(ip, OUT)), field(ip, OUT_STRIDE)
        rows, width = steps(ip, cx, TIMED) * field(ip, ROWS), field(ip, COLUMNS) * size
        code = field(ip, FUNCTION)
        alpha, beta = float64_of_bits(field(ip, ALPHA)), float64_of_bits(field(ip, BETA))
        r = 0
        while r < rows:
            j = 0
            while j < width:
                vector_store(out + r * os + j, activate(code, vector_load(x + r * xs + j), alpha, beta))
                j += stride
            r += 1
        return 0

    return map_


def combination(v: Lanes) -> Any:
    """combine(code, x, y): two vectors through the operation of a code (encoding.Operation)."""
    add = v.intrinsic(lambda b, x, y: b.fadd(x, y), "vv", "v")
    subtract = v.intrinsic(lambda b, x, y: b.fsub(x, y), "vv", "v")
    multiply = v.intrinsic(lambda b, x, y: b.fmul(x, y), "vv", "v")
    divide = v.intrinsic(lambda b, x, y: b.fdiv(x, y), "vv", "v")
    least, most = v.intrinsic(v.least, "vv", "v"), v.intrinsic(v.most, "vv", "v")
    rectified = v.intrinsic(
        lambda b, x, y: b.select(b.fcmp_ordered(">", x, v.constant(0.0)), x, b.fmul(x, y)), "vv", "v"
    )
    ADD, SUBTRACT, MULTIPLY, DIVIDE, MINIMUM, MAXIMUM, _ = (int(f) for f in Operation)

    @kernel
    def combine(code, x, y):  # type: ignore[no-untyped-def]
        if code == ADD:
            return add(x, y)
        if code == SUBTRACT:
            return subtract(x, y)
        if code == MULTIPLY:
            return multiply(x, y)
        if code == DIVIDE:
            return divide(x, y)
        if code == MINIMUM:
            return least(x, y)
        if code == MAXIMUM:
            return most(x, y)
        return rectified(x, y)

    return combine


def join_rows(v: Lanes) -> Any:
    """out = f(x, y), row by row; an operand may stand still over time, batch or width."""
    vector_load = v.intrinsic(lambda b, at: v.load(b, at, aligned=False), "a", "v")
    vector_store = v.intrinsic(lambda b, at, x: v.store(b, x, at, aligned=False), "av", "")
    broadcast = v.intrinsic(v.broadcast, "a", "v")
    combine = combination(v)
    size, stride = v.bytes, v.vector_bytes
    (
        X, X_STEP, X_ROW, X_SINGLE, Y, Y_STEP, Y_ROW, Y_SINGLE, OUT, OUT_STEP, OUT_ROW, COLUMNS, ROWS, TIMED, FUNCTION,
    ) = (int(f) for f in Join)  # fmt: skip

    @kernel
    def join(ip, cx):  # type: ignore[no-untyped-def]
        never_inline()
        x, x_step, x_row = locate(cx, field(ip, X)), field(ip, X_STEP), field(ip, X_ROW)
        y, y_step, y_row = locate(cx, field(ip, Y)), field(ip, Y_STEP), field(ip, Y_ROW)
        out, o_step, o_row = locate(cx, field(ip, OUT)), field(ip, OUT_STEP), field(ip, OUT_ROW)
        x_single, y_single = field(ip, X_SINGLE), field(ip, Y_SINGLE)
        code, width, rows = field(ip, FUNCTION), field(ip, COLUMNS) * size, field(ip, ROWS)
        T = steps(ip, cx, TIMED)
        t = 0
        while t < T:
            b = 0
            while b < rows:
                xr, yr, to = x + t * x_step + b * x_row, y + t * y_step + b * y_row, out + t * o_step + b * o_row
                j = 0
                while j < width:
                    left = broadcast(xr) if x_single != 0 else vector_load(xr + j)
                    right = broadcast(yr) if y_single != 0 else vector_load(yr + j)
                    vector_store(to + j, combine(code, left, right))
                    j += stride
                b += 1
            t += 1
        return 0

    return join


def softmax_rows(v: Lanes) -> Any:
    """Softmax or its logarithm along each row; a row without a finite maximum gives NaN."""
    negative_infinity = float("-inf")

    def masked_load(b: ir.IRBuilder, at: ir.Value, count: ir.Value) -> ir.Value:
        return v.first_lanes(b, count, v.load(b, at, aligned=False), v.constant(negative_infinity))

    load = v.intrinsic(masked_load, "aa", "v")
    vector_store = v.intrinsic(lambda b, at, x: v.store(b, x, at, aligned=False), "av", "")
    most = v.intrinsic(v.most, "vv", "v")
    exp = v.intrinsic(_with(v, maths.exp), "v", "v")
    log = v.intrinsic(_with(v, maths.log), "v", "v")
    add = v.intrinsic(lambda b, x, y: b.fadd(x, y), "vv", "v")
    subtract = v.intrinsic(lambda b, x, y: b.fsub(x, y), "vv", "v")
    divide = v.intrinsic(lambda b, x, y: b.fdiv(x, y), "vv", "v")
    splat = v.intrinsic(v.splat, "s", "v")
    highest = v.intrinsic(lambda b, x: v.splat(b, v.reduce_max(b, x)), "v", "v")
    total = v.intrinsic(lambda b, x: v.splat(b, v.reduce_add(b, x)), "v", "v")
    size, lanes_, scalar = v.bytes, WIDTH, v.dtype.type
    X, X_STRIDE, OUT, OUT_STRIDE, COLUMNS, ROWS, TIMED, LOG = (int(f) for f in Softmax)

    @kernel
    def softmax(ip, cx):  # type: ignore[no-untyped-def]
        never_inline()
        x, xs = locate(cx, field(ip, X)), field(ip, X_STRIDE)
        out, os = locate(cx, field(ip, OUT)), field(ip, OUT_STRIDE)
        width, rows = field(ip, COLUMNS), steps(ip, cx, TIMED) * field(ip, ROWS)
        r = 0
        while r < rows:
            at, to = x + r * xs, out + r * os
            peak = load(at, width)
            j = lanes_
            while j < width:
                peak = most(peak, load(at + j * size, width - j))
                j += lanes_
            peak = highest(peak)
            mass = splat(scalar(0.0))
            j = 0
            while j < width:
                e = exp(subtract(load(at + j * size, width - j), peak))
                mass = add(mass, e)
                j += lanes_
            mass = total(mass)
            j = 0
            if field(ip, LOG) != 0:
                offset = log(mass)
                while j < width:
                    vector_store(to + j * size, subtract(subtract(load(at + j * size, width - j), peak), offset))
                    j += lanes_
            else:
                while j < width:
                    vector_store(to + j * size, divide(exp(subtract(load(at + j * size, width - j), peak)), mass))
                    j += lanes_
            r += 1
        return 0

    return softmax


def kernels(v: Lanes, activate: Any) -> dict[str, Any]:
    """The kernels of this file by the name the executor calls them."""
    return {"map_": map_rows(v, activate), "join": join_rows(v), "softmax": softmax_rows(v)}
