"""One direction of an LSTM layer over the steps of a block.

``lstm`` is the plain cell, product and gates fused where one row runs alone; ``cell`` is every other one ONNX can
describe: peepholes, clip, input_forget, other activations, sequence lengths, projection.

Weights are walked forward on even steps and backward on odd ones, so that what a step read last is what
the next reads first: bit-identical, and it keeps part of a matrix larger than the cache inside it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..encoding import TRACED_PARTS, Context, Job, Lstm
from ..jit import kernel
from ..machine import target
from .product import AHEAD_ROWS, cell_block, lstm_block, lstm_block_ahead, traced_cell_block
from .rows import copy_rows, field, locate, over_rows, ragged, scratch
from .shares import claimed, projection_shares, shares
from .simd import Lanes, always_inline, clear_bytes, float64_of_bits, never_inline, ticks, word
from .weights import Floats

PARITY = int(Context.PARITY) * 8
(
    _, X_STRIDE, _, Y_STRIDE, _, H_STRIDE, _, C_STRIDE, WEIGHTS, BIAS, INPUTS, RECURRENT, BLOCKS, _, _, REVERSE,
    PRE, HOIST, GATES, PEEPHOLES, CLIP, ACTIVATIONS, PARAMETERS, INPUT_FORGET, _, _, PROJECTION,
    PROJECTED_BLOCKS, HIDDEN, HIDDEN_UNITS, ZEROS, X_STEP, Y_STEP, _, _, _, _, X_ROOM, H_ROOM, UNIT, PARTS, _, _, _,
    TRACE,
) = (int(f) for f in Lstm)  # fmt: skip


def layer(
    weights: Floats, product: Any, floats_narrow: Any, ahead: tuple[Any, Any, Any], general: Any, traced: bool
) -> tuple[Any, Any]:
    """sequence(ip, cx, T, B, x, y, h, c): B rows over T steps, with the plain cell or (not None) a ``general`` one.

    ``traced``: gates, c and h of each step are written behind y.

    Second, share(job, cx): what a helper does of a step. ``floats_narrow``: the product of a projection of h, whose
    weights are of the element type in every precision. ``ahead``: those of projection_shares().
    """
    v = weights.v
    prepare, prepared_stride = weights.activations()
    part_bytes = weights.part_bytes(4)
    one = v.vector_bytes
    four = 4 * one
    plain = general is None
    stretch = stretch_of(weights, product, general, traced)
    hand_out, gather, share = shares(v, stretch, int(Job.PLAIN if plain else Job.GENERAL))
    hand_out_projections, gather_projections, projections = ahead

    @kernel
    def project(ip, cx, B, hidden, stride, out, ys):  # type: ignore[no-untyped-def]
        """h = P·(o∘h(c)), no bias."""
        units, P, zeros = field(ip, HIDDEN_UNITS), locate(cx, field(ip, PROJECTION)), locate(cx, field(ip, ZEROS))
        q = 0
        while q < field(ip, PROJECTED_BLOCKS):
            floats_narrow(P + q * units * one, hidden, stride, units, 0, 0, 0, zeros, 0, out + q * one, ys, B)
            q += 1

    @kernel
    def hoist(ip, cx, x, stride, rows, room, helpers):  # type: ignore[no-untyped-def]
        """pre = bias + W·x of the rows of several steps, ``room`` at most: the weights are read once for all."""
        W, bias, pre = locate(cx, field(ip, WEIGHTS)), locate(cx, field(ip, BIAS)), locate(cx, field(ip, PRE))
        inputs, blocks = field(ip, INPUTS), field(ip, BLOCKS)
        w_step = part_bytes(inputs) + part_bytes(field(ip, RECURRENT))
        made = prepare(scratch(ip, cx, X_ROOM), x, stride, inputs, 0, rows)
        made_stride = prepared_stride(stride, inputs)
        own, offered, since = blocks, 0, ticks()
        if helpers > 0:
            own = blocks // (helpers + 1)
            offered = hand_out_projections(ip, cx, helpers, rows, room, W, w_step, made, made_stride, inputs, bias)
        projections(rows, 0, own, W, w_step, made, made_stride, inputs, bias, pre, blocks * four)
        if helpers > 0:
            gather_projections(
                ip, cx, helpers, offered, ticks() - since, rows, room, W, w_step, made, made_stride, inputs, bias, pre
            )

    in_step = plain and not traced and runs_ahead(weights)
    ahead_of: Any = projecting_ahead(weights, projections) if in_step else None

    @kernel
    def sequence(ip, cx, T, B, x, y, h, c):  # type: ignore[no-untyped-def]
        never_inline()
        xs, ys, hs, cs = field(ip, X_STRIDE), field(ip, Y_STRIDE), field(ip, H_STRIDE), field(ip, C_STRIDE)
        x_step, y_step = field(ip, X_STEP), field(ip, Y_STEP)
        W, bias = locate(cx, field(ip, WEIGHTS)), locate(cx, field(ip, BIAS))
        inputs, recurrent, blocks = field(ip, INPUTS), field(ip, RECURRENT), field(ip, BLOCKS)
        pre, gates, room = locate(cx, field(ip, PRE)), locate(cx, field(ip, GATES)), field(ip, HOIST)
        x_room, h_room, unit = scratch(ip, cx, X_ROOM), scratch(ip, cx, H_ROOM), field(ip, UNIT)
        between = x_step if B == 1 else xs  # the rows of several steps lie evenly, or are not projected at once
        hoisted = room > 1 and T > 1 and x_step == B * between
        reverse = field(ip, REVERSE) != 0
        projected = not plain and field(ip, PROJECTION) >= 0
        parity = word(cx + PARITY)
        x_bytes = part_bytes(inputs)
        w_step, pre_row = x_bytes + part_bytes(recurrent), blocks * four
        w, depth = (W + x_bytes, 0) if hoisted else (W, inputs)
        parts, helpers = field(ip, PARTS), 0
        if in_step and hoisted and B == 1 and parts == 1 and FEWEST_AHEAD <= T and room >= T:
            ahead_of(ip, cx, T, x, y, h, c, w, w_step)
            return 0
        previous, previous_stride = h, hs
        t = 0
        while t < T:
            n = min(T - t, room) if hoisted else 1
            first = T - t - n if reverse else t
            if hoisted:
                if parts > 1:
                    helpers = claimed(cx, parts, t == 0)
                hoist(ip, cx, x + first * x_step, between, n * B, room * B, helpers)
            s = 0
            while s < n:
                at = T - 1 - t if reverse else t
                out = y + at * y_step
                made, made_stride = (locate(cx, field(ip, HIDDEN)), blocks * one) if projected else (out, ys)
                x_rows, x_between = x + at * x_step, prepared_stride(xs, inputs)
                if not hoisted:
                    x_rows = prepare(x_room, x_rows, xs, inputs, 0, B)
                h_rows = prepare(h_room, previous, previous_stride, recurrent, unit, B)
                h_between = prepared_stride(previous_stride, recurrent)
                z, zs = (pre + (at - first) * B * pre_row, pre_row) if hoisted else (bias, 0)
                forward = (parity + t) & 1 == 0
                own, offered, since = blocks, 0, 0
                if parts > 1:
                    helpers = claimed(cx, parts, t == 0 and not hoisted)
                if helpers > 0:
                    own, since = blocks // (helpers + 1), ticks()
                    offered = hand_out(
                        ip, cx, helpers, B, forward, w, w_step, x_rows, x_between, depth, h_rows, h_between, recurrent,
                        z, zs, c, cs,
                    )  # fmt: skip
                kept, kept_stride = (out + field(ip, TRACE), ys) if traced else (gates, four)
                stretch(
                    ip, cx, B, 0, own, forward, w, w_step, x_rows, x_between, depth, h_rows, h_between, recurrent,
                    z, zs, c, cs, c, cs, made, made_stride, kept, kept_stride,
                )  # fmt: skip
                if helpers > 0:
                    gather(
                        ip, cx, helpers, offered, ticks() - since, B, forward, w, w_step, x_rows, x_between, depth,
                        h_rows, h_between, recurrent, z, zs, c, cs, made, made_stride, gates,
                    )  # fmt: skip
                if projected:
                    project(ip, cx, B, made, made_stride, out, ys)
                previous, previous_stride = out, ys
                s += 1
                t += 1
        if T > 0:
            units = field(ip, PROJECTED_BLOCKS) if projected else blocks
            copy_rows(h, 0, hs, previous, 0, previous_stride, units * one, 1, B)
        return 0

    return sequence, share


#: Steps from which on input projections are made beside the steps before.
FEWEST_AHEAD = 3 * AHEAD_ROWS


def runs_ahead(weights: Floats) -> bool:
    """Whether registers hold what a recurrent product and the projections of rows to come need at once."""
    return type(weights) is Floats and weights.v.vector_bytes == target().vector_bytes


def projecting_ahead(weights: Floats, projections: Any) -> Any:
    """run(ip, cx, T, x, y, h, c, r, r_step): one row over T steps; each step's blocks make projections of later ones.

    AHEAD_ROWS rows take four steps, a vector of their outputs a block: that is more than four steps use up.
    """
    v = weights.v
    block, fused = lstm_block_ahead(weights), lstm_block(weights)
    one = v.vector_bytes
    four, rows = 4 * one, AHEAD_ROWS

    @kernel
    def run(ip, cx, T, x, y, h, c, r, r_step):  # type: ignore[no-untyped-def]
        never_inline()
        x_step, y_step = field(ip, X_STEP), field(ip, Y_STEP)
        if field(ip, REVERSE) != 0:
            x, y = x + (T - 1) * x_step, y + (T - 1) * y_step
            x_step, y_step = -x_step, -y_step
        W, bias, pre = locate(cx, field(ip, WEIGHTS)), locate(cx, field(ip, BIAS)), locate(cx, field(ip, PRE))
        inputs, recurrent, blocks = field(ip, INPUTS), field(ip, RECURRENT), field(ip, BLOCKS)
        parity, row = word(cx + PARITY), blocks * four
        projections(rows, 0, blocks, W, r_step, x, x_step, inputs, bias, pre, row)
        done, job, previous = rows, 0, h  # rows projected, and vectors of the rows after them
        t = 0
        while t < T:
            out, k = y + t * y_step, 0
            forward = (parity + t) & 1 == 0
            while k < blocks:
                q = k if forward else blocks - 1 - k
                here = r + q * r_step
                following = here + r_step if forward else here - r_step
                z, cell = pre + t * row + q * four, c + q * one
                if done < T:
                    first = min(done, T - rows)
                    column = (job >> 2) * four + (job & 3) * one
                    w = W + (job >> 2) * r_step + (job & 3) * one
                    block(
                        here, previous, recurrent, z, cell, cell, out + q * one, following, w, inputs,
                        x + first * x_step, x_step, bias + column, pre + first * row + column, row,
                    )  # fmt: skip
                    job += 1
                    if job == 4 * blocks:
                        done, job = first + rows, 0
                else:
                    fused(here, 0, 0, previous, recurrent, z, cell, cell, out + q * one, following)
                k += 1
            previous = out
            t += 1
        copy_rows(h, 0, 0, previous, 0, 0, blocks * one, 1, 1)

    return run


def stretch_of(weights: Floats, product: Any, general: Any, traced: bool) -> Any:
    """stretch(ip, cx, B, first, last, …): blocks first … last - 1 of 16 units of one step of B rows, back and forth.

    The block at w has its products with x and h added to z; its cells take c and make c_new and out. ``gates`` has room
    for the pre-activations of a block; ``traced``: of all blocks, and they become what is written down of a step.
    """
    v = weights.v
    fused, cell = lstm_block(weights), traced_cell_block(v) if traced else cell_block(v)
    one = v.vector_bytes
    four = 4 * one
    apart = TRACED_PARTS * one if traced else 0
    plain = general is None
    one_row = cell if plain else general

    @kernel
    def cells(ip, cx, B, q, gates, gs, c, cs, c_new, ns, out, os):  # type: ignore[no-untyped-def]
        """The q-th 16 units of B rows, from their pre-activations."""
        b = 0
        while b < B:
            z, old, new, to = gates + b * gs, c + b * cs + q * one, c_new + b * ns + q * one, out + b * os + q * one
            if plain:
                one_row(z, old, new, to)
            else:
                peepholes = field(ip, PEEPHOLES)
                peep = locate(cx, peepholes) + q * 3 * one if peepholes >= 0 else 0
                one_row(ip, cx, z, peep, old, new, to)
            b += 1

    @kernel
    def stretch(  # type: ignore[no-untyped-def]
        ip, cx, B, first, last, forward, w, w_step, x, xs, inputs, h, hs, recurrent, z, zs, c, cs, c_new, ns, out, os,
        gates, gs,
    ):  # fmt: skip
        always_inline()
        k = first
        while k < last:
            q = k if forward else first + last - 1 - k
            here, bias = w + q * w_step, z + q * four
            if plain and not traced and B == 1:
                following = here + w_step if forward else here - w_step
                old, new = c + q * one, c_new + q * one
                fused(here, x, inputs, h, recurrent, bias, old, new, out + q * one, following)
            else:
                to = gates + q * apart
                product(here, x, xs, inputs, h, hs, recurrent, bias, zs, to, gs, B)
                cells(ip, cx, B, q, to, gs, c, cs, c_new, ns, out, os)
            k += 1

    return stretch


def state_clearing(v: Lanes) -> Any:
    """clear(ip, cx, h, c) of one row."""
    one = v.vector_bytes

    @kernel
    def clear(ip, cx, h, c):  # type: ignore[no-untyped-def]
        blocks = field(ip, BLOCKS)
        clear_bytes(h, (field(ip, PROJECTED_BLOCKS) if field(ip, PROJECTION) >= 0 else blocks) * one)
        clear_bytes(c, blocks * one)

    return clear


def general_cell(v: Lanes, activate: Any, traced: bool) -> Any:
    """block(ip, cx, z, peep, c, c_new, out): 16 units of one row, any cell; ``traced``: z becomes i, o, f, g, c, h."""
    vector_load = v.intrinsic(lambda b, at: v.load(b, at), "a", "v")
    vector_store = v.intrinsic(lambda b, at, x: v.store(b, x, at), "av", "")
    splat = v.intrinsic(v.splat, "s", "v")
    fma = v.intrinsic(v.fma, "vvv", "v")
    multiply = v.intrinsic(lambda b, x, y: b.fmul(x, y), "vv", "v")
    subtract = v.intrinsic(lambda b, x, y: b.fsub(x, y), "vv", "v")
    scalar = v.dtype.type
    one = v.vector_bytes

    def emit_clip(b: ir.IRBuilder, bound: ir.Value, x: ir.Value) -> ir.Value:
        return v.minimum(b, bound, v.maximum(b, b.fneg(bound), x))

    clipped = v.intrinsic(emit_clip, "vv", "v")

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
        return activate(code, x, float64_of_bits(word(at)), float64_of_bits(word(at + 8)))

    @kernel
    def block(ip, cx, z, peep, c, c_new, out):  # type: ignore[no-untyped-def]
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
        hidden = multiply(o, gate(ip, cx, 2, cell))
        vector_store(c_new, cell)
        vector_store(out, hidden)
        if traced:
            vector_store(z, i)
            vector_store(z + one, o)
            vector_store(z + 2 * one, f)
            vector_store(z + 3 * one, g)
            vector_store(z + 4 * one, cell)
            vector_store(z + 5 * one, hidden)

    return block


def kernels(weights: Floats, product: Any, floats_narrow: Any, activate: Any) -> dict[str, Any]:
    """The kernels of this file by the name the executor calls them."""
    v = weights.v
    *ahead, ahead_share = projection_shares(v, product)

    def made(general: bool, traced: bool) -> tuple[Any, Any]:
        cell = general_cell(v, activate, traced) if general else None
        return layer(weights, product, floats_narrow, tuple(ahead), cell, traced)

    (plain, plain_share), (general, general_share) = made(False, False), made(True, False)
    (traced_plain, _), (traced_general, _) = made(False, True), made(True, True)
    clear = state_clearing(v)
    return {
        "lstm": over_rows(plain, Lstm),
        "cell": over_rows(ragged(general, Lstm, clear), Lstm),
        "lstm_share": plain_share,
        "cell_share": general_share,
        "projection_share": ahead_share,
        "traced_lstm": over_rows(traced_plain, Lstm),
        "traced_cell": over_rows(ragged(traced_general, Lstm, clear), Lstm),
    }
