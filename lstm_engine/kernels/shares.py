"""A step's units shared with helping threads: handed out, gathered, or done by oneself.

A helper writes to memory of its own, from where its results are copied once it is through; one that is late is left
alone, and its share computed here. Every unit's arithmetic is the same wherever it runs.
"""

from __future__ import annotations

from typing import Any

from ..encoding import SHARE_WORDS, WORKER_WORDS, Context, Job, Lstm, Share
from ..jit import kernel
from .rows import copy_rows, field, locate
from .simd import Lanes, never_inline, set_word, ticks, word
from .workers import ask, claim, collect, dismiss, free, offer

BLOCKS, JOBS, STAGED, PRE_STAGED = (int(field_) for field_ in (Lstm.BLOCKS, Lstm.JOBS, Lstm.STAGED, Lstm.PRE_STAGED))
EXECUTOR, HELPERS, HELPER_COUNT, BELL, CLAIMED = (
    int(w) * 8 for w in (Context.EXECUTOR, Context.HELPERS, Context.HELPER_COUNT, Context.BELL, Context.CLAIMED)
)
(
    CODE, KIND, IP, CX, ROWS, FIRST, LAST, FORWARD, W, W_STEP, X, XS, INPUTS, H, HS, RECURRENT, Z, ZS, C, CS, C_NEW,
    OUT, OS, GATES,
) = (int(word_) * 8 for word_ in Share)  # fmt: skip
SHARE_BYTES, WORKER_BYTES = SHARE_WORDS * 8, WORKER_WORDS * 8
PROJECTIONS = int(Job.PROJECTIONS)


@kernel
def claimed(cx, parts, first):  # type: ignore[no-untyped-def]
    """How many helpers take part: at most one for each part but the caller's own, kept to the end of the call.

    ``first``: an instruction begins, and those that sleep hear that they would be of use.
    """
    most, helpers = min(parts - 1, word(cx + HELPER_COUNT)), word(cx + CLAIMED)
    while helpers < most and claim(word(cx + HELPERS) + helpers * WORKER_BYTES, cx) != 0:
        helpers += 1
        set_word(cx + CLAIMED, helpers)
    k = helpers
    while first and k < most:
        ask(word(cx + HELPERS) + k * WORKER_BYTES)
        k += 1
    return min(helpers, most)


@kernel
def dismissed(cx):  # type: ignore[no-untyped-def]
    """The end of a call that may have claimed helpers."""
    now, count, k = ticks(), word(cx + HELPER_COUNT), 0
    while k < count:
        dismiss(word(cx + HELPERS) + k * WORKER_BYTES, cx, now)
        k += 1
    set_word(cx + CLAIMED, 0)


@kernel
def rung(cx):  # type: ignore[no-untyped-def]
    """Whether a helper that sleeps is to be woken before the next call."""
    bell = word(cx + BELL)
    return bell != 0 and word(bell) != 0


@kernel
def share_of(helpers, blocks, k):  # type: ignore[no-untyped-def]
    """The blocks of the k-th helper: the first, and the one after the last."""
    return blocks * (k + 1) // (helpers + 1), blocks * (k + 2) // (helpers + 1)


@kernel
def offered_share(  # type: ignore[no-untyped-def]
    ip,
    cx,
    kind,
    helpers,
    k,
    B,
    forward,
    w,
    w_step,
    x,
    xs,
    inputs,
    h,
    hs,
    recurrent,
    z,
    zs,
    c,
    cs,
    c_new,
    out,
    os,
    gates,
):
    """Offer the k-th helper its part; whether it has it."""
    never_inline()
    block, job = word(cx + HELPERS) + k * WORKER_BYTES, locate(cx, field(ip, JOBS)) + k * SHARE_BYTES
    if free(block) == 0:
        return 0
    first, last = share_of(helpers, field(ip, BLOCKS), k)
    set_word(job + CODE, 0)
    set_word(job + KIND, kind)
    set_word(job + IP, ip)
    set_word(job + CX, cx)
    set_word(job + ROWS, B)
    set_word(job + FIRST, first)
    set_word(job + LAST, last)
    set_word(job + FORWARD, forward)
    set_word(job + W, w)
    set_word(job + W_STEP, w_step)
    set_word(job + X, x)
    set_word(job + XS, xs)
    set_word(job + INPUTS, inputs)
    set_word(job + H, h)
    set_word(job + HS, hs)
    set_word(job + RECURRENT, recurrent)
    set_word(job + Z, z)
    set_word(job + ZS, zs)
    set_word(job + C, c)
    set_word(job + CS, cs)
    set_word(job + C_NEW, c_new)
    set_word(job + OUT, out)
    set_word(job + OS, os)
    set_word(job + GATES, gates)
    return offer(block, word(cx + EXECUTOR), job)


def shares(v: Lanes, stretch: Any, kind: int) -> tuple[Any, Any, Any]:
    """hand_out(…), gather(…) and share(job, cx) for the stretch() of a kind of cell."""
    one = v.vector_bytes

    @kernel
    def staged_room(B, row):  # type: ignore[no-untyped-def]
        """Bytes of what one helper makes: each has its own, as one that comes late may have been given other units."""
        return B * (2 * row + 4 * one)

    @kernel
    def hand_out(  # type: ignore[no-untyped-def]
        ip, cx, helpers, B, forward, w, w_step, x, xs, inputs, h, hs, recurrent, z, zs, c, cs
    ):
        """Offer each helper its part of a step; bit k: the k-th has it."""
        row, staged = field(ip, BLOCKS) * one, locate(cx, field(ip, STAGED))
        room = staged_room(B, row)
        offered = k = 0
        while k < helpers:
            mine = staged + k * room
            gates = mine + 2 * B * row
            offered |= offered_share(
                ip, cx, kind, helpers, k, B, 1 if forward else 0, w, w_step, x, xs, inputs, h, hs, recurrent, z, zs, c,
                cs, mine, mine + B * row, row, gates,
            ) << k  # fmt: skip
            k += 1
        return offered

    @kernel
    def share(job, cx):  # type: ignore[no-untyped-def]
        """What a helper does."""
        never_inline()
        stretch(
            word(job + IP), cx, word(job + ROWS), word(job + FIRST), word(job + LAST),
            word(job + FORWARD) != 0, word(job + W), word(job + W_STEP), word(job + X), word(job + XS),
            word(job + INPUTS), word(job + H), word(job + HS), word(job + RECURRENT), word(job + Z), word(job + ZS),
            word(job + C), word(job + CS), word(job + C_NEW), word(job + OS), word(job + OUT), word(job + OS),
            word(job + GATES), 4 * one,
        )  # fmt: skip
        return 0

    @kernel
    def oneself(  # type: ignore[no-untyped-def]
        ip, cx, B, first, last, forward, w, w_step, x, xs, inputs, h, hs, recurrent, z, zs, c, cs, out, os, gates
    ):
        never_inline()
        stretch(
            ip, cx, B, first, last, forward, w, w_step, x, xs, inputs, h, hs, recurrent, z, zs, c, cs, c, cs, out, os,
            gates, 4 * one,
        )  # fmt: skip

    @kernel
    def gather(  # type: ignore[no-untyped-def]
        ip, cx, helpers, offered, patience, B, forward, w, w_step, x, xs, inputs, h, hs, recurrent, z, zs, c, cs, out,
        os, gates,
    ):  # fmt: skip
        """Each helper's part: its results, or one's own."""
        never_inline()
        blocks, staged = field(ip, BLOCKS), locate(cx, field(ip, STAGED))
        row, k = blocks * one, 0
        room = staged_room(B, row)
        while k < helpers:
            first, last = share_of(helpers, blocks, k)
            if offered >> k & 1 != 0 and collect(word(cx + HELPERS) + k * WORKER_BYTES, patience) != 0:
                size, at = (last - first) * one, staged + k * room + first * one
                copy_rows(c + first * one, 0, cs, at, 0, row, size, 1, B)
                copy_rows(out + first * one, 0, os, at + B * row, 0, row, size, 1, B)
            else:
                oneself(
                    ip, cx, B, first, last, forward, w, w_step, x, xs, inputs, h, hs, recurrent, z, zs, c, cs, out, os,
                    gates,
                )  # fmt: skip
            k += 1

    return hand_out, gather, share


def projection_shares(v: Lanes, product: Any) -> tuple[Any, Any, Any, Any]:
    """hand_out(…), gather(…), projections(…) and share(job, cx) for the input projections of several steps."""
    four = 4 * v.vector_bytes

    @kernel
    def projections(rows, first, last, w, w_step, x, xs, inputs, z, out, os):  # type: ignore[no-untyped-def]
        """out = z + x·W of blocks first … last - 1 of 16 units."""
        q = first
        while q < last:
            product(w + q * w_step, x, xs, inputs, 0, 0, 0, z + q * four, 0, out + q * four, os, rows)
            q += 1

    @kernel
    def hand_out(ip, cx, helpers, rows, room, w, w_step, x, xs, inputs, z):  # type: ignore[no-untyped-def]
        """Offer each helper its part; bit k: the k-th has it. ``room``: rows there is room for at most."""
        staged, os = locate(cx, field(ip, PRE_STAGED)), field(ip, BLOCKS) * four
        offered = k = 0
        while k < helpers:
            mine = staged + k * room * os
            offered |= offered_share(
                ip, cx, PROJECTIONS, helpers, k, rows, 1, w, w_step, x, xs, inputs, 0, 0, 0, z, 0, 0, 0, 0, mine, os, 0
            ) << k  # fmt: skip
            k += 1
        return offered

    @kernel
    def share(job, cx):  # type: ignore[no-untyped-def]
        """What a helper does."""
        never_inline()
        projections(
            word(job + ROWS), word(job + FIRST), word(job + LAST), word(job + W), word(job + W_STEP), word(job + X),
            word(job + XS), word(job + INPUTS), word(job + Z), word(job + OUT), word(job + OS),
        )  # fmt: skip
        return 0

    @kernel
    def gather(  # type: ignore[no-untyped-def]
        ip, cx, helpers, offered, patience, rows, room, w, w_step, x, xs, inputs, z, out
    ):
        """Each helper's part: its results, or one's own."""
        never_inline()
        blocks, staged, k = field(ip, BLOCKS), locate(cx, field(ip, PRE_STAGED)), 0
        row = blocks * four
        while k < helpers:
            first, last = share_of(helpers, blocks, k)
            if offered >> k & 1 != 0 and collect(word(cx + HELPERS) + k * WORKER_BYTES, patience) != 0:
                made = staged + k * room * row + first * four
                copy_rows(out + first * four, row, 0, made, row, 0, (last - first) * four, rows, 1)
            else:
                projections(rows, first, last, w, w_step, x, xs, inputs, z, out, row)
            k += 1

    return hand_out, gather, projections, share
