"""A step's units shared with helping threads: handed out, gathered, or done by oneself.

A helper writes to memory of its own, from where its results are copied once it is through; one that is late is left
alone, and its share computed here. Every unit's arithmetic is the same wherever it runs.
"""

from __future__ import annotations

from typing import Any

from ..encoding import SHARE_WORDS, WORKER_WORDS, Context, Lstm, Share
from ..jit import kernel
from .rows import copy_rows, field, locate
from .simd import Lanes, never_inline, set_word, ticks, word
from .workers import claim, collect, dismiss, free, offer

BLOCKS, JOBS, STAGED = int(Lstm.BLOCKS), int(Lstm.JOBS), int(Lstm.STAGED)
EXECUTOR, HELPERS, HELPER_COUNT = (
    int(word_) * 8 for word_ in (Context.EXECUTOR, Context.HELPERS, Context.HELPER_COUNT)
)
(
    CODE, KIND, IP, CX, ROWS, FIRST, LAST, FORWARD, W, W_STEP, X, XS, INPUTS, H, HS, RECURRENT, Z, ZS, C, CS, C_NEW,
    OUT, OS, GATES,
) = (int(word_) * 8 for word_ in Share)  # fmt: skip
SHARE_BYTES, WORKER_BYTES = SHARE_WORDS * 8, WORKER_WORDS * 8


@kernel
def claimed(cx, parts):  # type: ignore[no-untyped-def]
    """How many helpers this call has to itself, at most one for each part but its own."""
    helpers = 0
    if parts > 1:
        most = min(parts - 1, word(cx + HELPER_COUNT))
        while helpers < most and claim(word(cx + HELPERS) + helpers * WORKER_BYTES, cx) != 0:
            helpers += 1
    return helpers


@kernel
def dismissed(cx, parts):  # type: ignore[no-untyped-def]
    """The end of what claimed() began."""
    if parts > 1:
        now, most, k = ticks(), min(parts - 1, word(cx + HELPER_COUNT)), 0
        while k < most:
            dismiss(word(cx + HELPERS) + k * WORKER_BYTES, cx, now)
            k += 1


def shares(v: Lanes, stretch: Any, kind: int) -> tuple[Any, Any, Any]:
    """hand_out(…), gather(…) and share(job, cx) for the stretch() of a kind of cell."""
    one = v.vector_bytes

    @kernel
    def hand_out(ip, cx, helpers, B, forward, w, w_step, x, xs, inputs, h, hs, recurrent, z, zs, c, cs):  # type: ignore[no-untyped-def]
        """Offer each helper its part of a step; bit k: the k-th has it."""
        never_inline()
        blocks, jobs, staged = field(ip, BLOCKS), locate(cx, field(ip, JOBS)), locate(cx, field(ip, STAGED))
        row, offered, k = blocks * one, 0, 0
        while k < helpers:
            block, job = word(cx + HELPERS) + k * WORKER_BYTES, jobs + k * SHARE_BYTES
            if free(block) != 0:
                set_word(job + CODE, 0)
                set_word(job + KIND, kind)
                set_word(job + IP, ip)
                set_word(job + CX, cx)
                set_word(job + ROWS, B)
                set_word(job + FIRST, blocks * (k + 1) // (helpers + 1))
                set_word(job + LAST, blocks * (k + 2) // (helpers + 1))
                set_word(job + FORWARD, 1 if forward else 0)
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
                set_word(job + C_NEW, staged)
                set_word(job + OUT, staged + B * row)
                set_word(job + OS, row)
                set_word(job + GATES, staged + 2 * B * row + k * B * 4 * one)
                if offer(block, word(cx + EXECUTOR), job) != 0:
                    offered |= 1 << k
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
            word(job + GATES),
        )  # fmt: skip
        return 0

    @kernel
    def oneself(  # type: ignore[no-untyped-def]
        ip, cx, B, first, last, forward, w, w_step, x, xs, inputs, h, hs, recurrent, z, zs, c, cs, out, os, gates
    ):
        never_inline()
        stretch(
            ip, cx, B, first, last, forward, w, w_step, x, xs, inputs, h, hs, recurrent, z, zs, c, cs, c, cs, out, os,
            gates,
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
        while k < helpers:
            first, last = blocks * (k + 1) // (helpers + 1), blocks * (k + 2) // (helpers + 1)
            made = 0
            if offered >> k & 1 != 0:
                made = collect(word(cx + HELPERS) + k * WORKER_BYTES, patience)
            if made != 0:
                size, at = (last - first) * one, staged + first * one
                copy_rows(c + first * one, 0, cs, at, 0, row, size, 1, B)
                copy_rows(out + first * one, 0, os, at + B * row, 0, row, size, 1, B)
            else:
                oneself(
                    ip, cx, B, first, last, forward, w, w_step, x, xs, inputs, h, hs, recurrent, z, zs, c, cs, out, os,
                    gates,
                )  # fmt: skip
            k += 1

    return hand_out, gather, share
