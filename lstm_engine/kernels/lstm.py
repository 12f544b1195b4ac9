"""One direction of an LSTM layer over the steps of a block.

``lstm`` is the plain cell, product and gates fused; ``cell`` is every other one ONNX can describe.

Weights are walked forward on even steps and backward on odd ones, so that what a step read last is what
the next reads first: bit-identical, and it keeps part of a matrix larger than the cache inside it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..encoding import Context, Lstm
from ..jit import kernel
from .product import cell_block, lstm_block
from .rows import copy_rows, field, locate, over_rows
from .simd import Lanes, copy_bytes, float64_of_bits, never_inline, word, word32

PARITY = int(Context.PARITY) * 8
(
    _, X_STRIDE, _, Y_STRIDE, _, H_STRIDE, _, C_STRIDE, WEIGHTS, BIAS, INPUTS, RECURRENT, BLOCKS, _, _, REVERSE,
    PRE, HOIST, GATES, PEEPHOLES, CLIP, ACTIVATIONS, PARAMETERS, INPUT_FORGET, LENGTHS, LENGTH_STRIDE, PROJECTION,
    PROJECTED_BLOCKS, HIDDEN, HIDDEN_UNITS, ZEROS, X_STEP, Y_STEP, _, _, _, _,
) = (int(f) for f in Lstm)  # fmt: skip


def plain(v: Lanes, product: Any) -> Any:
    """The cell with sigmoid gates and tanh, and nothing else."""
    fused, cell = lstm_block(v), cell_block(v)
    one = v.vector_bytes
    four = 4 * one

    @kernel
    def sequence(ip, cx, T, B, x, y, h, c):  # type: ignore[no-untyped-def]
        never_inline()
        xs, ys, hs, cs = field(ip, X_STRIDE), field(ip, Y_STRIDE), field(ip, H_STRIDE), field(ip, C_STRIDE)
        x_step, y_step = field(ip, X_STEP), field(ip, Y_STEP)
        W, bias = locate(cx, field(ip, WEIGHTS)), locate(cx, field(ip, BIAS))
        inputs, recurrent, blocks = field(ip, INPUTS), field(ip, RECURRENT), field(ip, BLOCKS)
        pre, gates, room = locate(cx, field(ip, PRE)), locate(cx, field(ip, GATES)), field(ip, HOIST)
        between = x_step if B == 1 else xs  # the rows of several steps lie evenly, or are not projected at once
        if x_step != B * between:
            room = 1
        reverse = field(ip, REVERSE) != 0
        parity = word(cx + PARITY)
        block_bytes, pre_row = (inputs + recurrent) * four, blocks * four
        previous, previous_stride = h, hs
        t = 0
        while t < T:
            n = min(T - t, room) if room > 1 and T > 1 else 1
            hoisted = room > 1 and T > 1
            first = T - t - n if reverse else t
            if hoisted:  # pre = bias + W·x of n steps at once: the weights are read once for all of them
                q = 0
                while q < blocks:
                    product(
                        W + q * block_bytes, x + first * x_step, between, inputs, 0, 0, 0,
                        bias + q * four, 0, pre + q * four, pre_row, n * B,
                    )  # fmt: skip
                    q += 1
            s = 0
            while s < n:
                at = T - 1 - t if reverse else t
                out = y + at * y_step
                k = 0
                while k < blocks:
                    forward = (parity + t) & 1 == 0
                    q = k if forward else blocks - 1 - k
                    if hoisted:
                        w, depth = W + q * block_bytes + inputs * four, 0
                        z, zs = pre + (at - first) * B * pre_row + q * four, pre_row
                    else:
                        w, depth = W + q * block_bytes, inputs
                        z, zs = bias + q * four, 0
                    if B == 1:
                        following = w + block_bytes if forward else w - block_bytes
                        fused(w, x + at * x_step, depth, previous, recurrent, z, c + q * one, out + q * one, following)
                    else:
                        product(
                            w, x + at * x_step, xs, depth, previous, previous_stride, recurrent, z, zs, gates, four, B
                        )
                        b = 0
                        while b < B:
                            cell(gates + b * four, c + b * cs + q * one, out + b * ys + q * one)
                            b += 1
                    k += 1
                previous, previous_stride = out, ys
                s += 1
                t += 1
        if T > 0:
            copy_rows(h, 0, hs, previous, 0, previous_stride, blocks * one, 1, B)
        return 0

    return over_rows(sequence, Lstm)


def general(v: Lanes, product: Any, product_narrow: Any, activate: Any) -> Any:
    """Any cell: peepholes, clip, input_forget, other activations, sequence lengths, projection; a row at a time."""
    vector_load = v.intrinsic(lambda b, at: v.load(b, at), "a", "v")
    vector_store = v.intrinsic(lambda b, at, x: v.store(b, x, at), "av", "")
    splat = v.intrinsic(v.splat, "s", "v")
    fma = v.intrinsic(v.fma, "vvv", "v")
    multiply = v.intrinsic(lambda b, x, y: b.fmul(x, y), "vv", "v")
    subtract = v.intrinsic(lambda b, x, y: b.fsub(x, y), "vv", "v")
    scalar = v.dtype.type
    one = v.vector_bytes
    four = 4 * one

    def emit_clip(b: ir.IRBuilder, bound: ir.Value, x: ir.Value) -> ir.Value:
        return v.minimum(b, bound, v.maximum(b, b.fneg(bound), x))

    clipped = v.intrinsic(emit_clip, "vv", "v")
    load_double = v.intrinsic(lambda b, at: b.load(b.inttoptr(at, ir.PointerType()), typ=ir.IntType(64)), "a", "a")

    @kernel
    def bound(clip, x):  # type: ignore[no-untyped-def]
        if clip > 0.0:
            return clipped(splat(scalar(clip)), x)
        return x

    @kernel
    def gate(ip, cx, index, x):  # type: ignore[no-untyped-def]
        """Activation f (0), g (1) or h (2) of the cell."""
        code = (field(ip, ACTIVATIONS) >> (8 * index)) & 255
        at = locate(cx, field(ip, PARAMETERS)) + 16 * index
        return activate(code, x, float64_of_bits(load_double(at)), float64_of_bits(load_double(at + 8)))

    @kernel
    def block(ip, cx, z, peep, c, out):  # type: ignore[no-untyped-def]
        """16 units of one row: pre-activations z[4][16] and c to the new c and o∘h(c)."""
        never_inline()
        clip = float64_of_bits(field(ip, CLIP))
        cell = vector_load(c)
        zi, zo, zf, zg = (
            vector_load(z),
            vector_load(z + one),
            vector_load(z + 2 * one),
            vector_load(z + 3 * one),
        )
        if peep != 0:
            zi = fma(vector_load(peep), cell, zi)
            zf = fma(vector_load(peep + 2 * one), cell, zf)
        i = gate(ip, cx, 0, bound(clip, zi))
        f = subtract(splat(scalar(1.0)), i) if field(ip, INPUT_FORGET) != 0 else gate(ip, cx, 0, bound(clip, zf))
        g = gate(ip, cx, 1, bound(clip, zg))
        cell = fma(f, cell, multiply(i, g))
        if peep != 0:
            zo = fma(vector_load(peep + one), cell, zo)
        o = gate(ip, cx, 0, bound(clip, zo))
        vector_store(c, cell)
        vector_store(out, multiply(o, gate(ip, cx, 2, cell)))

    @kernel
    def cells(ip, cx, T, B, x, y, h, c):  # type: ignore[no-untyped-def]
        never_inline()
        xs, ys, hs, cs = field(ip, X_STRIDE), field(ip, Y_STRIDE), field(ip, H_STRIDE), field(ip, C_STRIDE)
        x_step, y_step = field(ip, X_STEP), field(ip, Y_STEP)
        W, bias = locate(cx, field(ip, WEIGHTS)), locate(cx, field(ip, BIAS))
        inputs, recurrent, blocks = field(ip, INPUTS), field(ip, RECURRENT), field(ip, BLOCKS)
        gates, reverse = locate(cx, field(ip, GATES)), field(ip, REVERSE) != 0
        peepholes, projection = field(ip, PEEPHOLES), field(ip, PROJECTION)
        projected = field(ip, PROJECTED_BLOCKS)
        lengths = field(ip, LENGTHS)
        units = projected if projection >= 0 else blocks
        block_bytes = (inputs + recurrent) * four
        b = 0
        while b < B:
            valid = T
            if lengths >= 0:
                valid = word32(locate(cx, lengths) + b * field(ip, LENGTH_STRIDE))
                if valid < 0 or valid > T:
                    return 2
            previous = h + b * hs
            s = 0
            while s < valid:
                at = valid - 1 - s if reverse else s
                out = y + at * y_step + b * ys
                made = locate(cx, field(ip, HIDDEN)) if projection >= 0 else out
                q = 0
                while q < blocks:
                    product(
                        W + q * block_bytes, x + at * x_step + b * xs, 0, inputs, previous, 0, recurrent,
                        bias + q * four, 0, gates, 0, 1,
                    )  # fmt: skip
                    peep = locate(cx, peepholes) + q * 3 * one if peepholes >= 0 else 0
                    block(ip, cx, gates, peep, c + b * cs + q * one, made + q * one)
                    q += 1
                if projection >= 0:  # h = P·(o∘h(c)), no bias
                    hidden_units = field(ip, HIDDEN_UNITS)
                    q = 0
                    while q < projected:
                        product_narrow(
                            locate(cx, projection) + q * hidden_units * one, made, 0, hidden_units, 0, 0, 0,
                            locate(cx, field(ip, ZEROS)), 0, out + q * one, 0, 1,
                        )  # fmt: skip
                        q += 1
                previous = out
                s += 1
            if valid > 0:
                copy_bytes(h + b * hs, previous, units * one)
            elif lengths >= 0:  # a row of no steps ends in zeros, not in its initial state
                zeros = locate(cx, field(ip, ZEROS))
                copy_rows(h + b * hs, one, 0, zeros, 0, 0, one, units, 1)
                copy_rows(c + b * cs, one, 0, zeros, 0, 0, one, blocks, 1)
            b += 1
        return 0

    return over_rows(cells, Lstm)


def kernels(v: Lanes, product: Any, product_narrow: Any, activate: Any) -> dict[str, Any]:
    """The kernels of this file by the name the executor calls them."""
    return {"lstm": plain(v, product), "cell": general(v, product, product_narrow, activate)}
