"""Convolution of each row, over any number of axes.

The lowering turns kernel, strides, dilations and padding into tables: where in the (padded) row each place of the
output reads, how far from there each weight's element lies, and where the place goes. What is left is a dense
product whose rows are places.
"""

from __future__ import annotations

from typing import Any

from ..encoding import PLACES_AT_ONCE, Convolution
from ..jit import kernel
from .rows import field, locate, steps
from .simd import Lanes, clear_bytes, copy_bytes, never_inline, pointer, word

(
    X, X_STRIDE, OUT, OUT_STRIDE, WEIGHTS, BIAS, DEPTH, GROUPS, GROUP_BYTES, OUTPUTS, VECTORS, PLACES, COUNT, OFFSETS,
    TARGETS, PLANE, LINES, LINE_COUNT, LINE_BYTES, PADDED, PADDED_BYTES, TILES, ROWS, TIMED,
) = (int(f) for f in Convolution)  # fmt: skip
AT_ONCE = PLACES_AT_ONCE


def convolution_rows(v: Lanes, gather: Any, gather_narrow: Any) -> Any:
    """The kernel of CONVOLUTION."""
    one, size = v.vector_bytes, v.bytes
    four = 4 * one
    move = v.intrinsic(
        lambda b, to, at: b.store(b.load(pointer(b, at), typ=v.scalar, align=size), pointer(b, to), align=size),
        "aa",
        "",
    )

    @kernel
    def padded(ip, cx, x):  # type: ignore[no-untyped-def]
        """A row with zeros around its lines, where there is padding; else the row itself."""
        count = field(ip, LINE_COUNT)
        if count == 0:
            return x
        to, lines, line_bytes = locate(cx, field(ip, PADDED)), locate(cx, field(ip, LINES)), field(ip, LINE_BYTES)
        clear_bytes(to, field(ip, PADDED_BYTES))
        i = 0
        while i < count:
            copy_bytes(to + word(lines + 8 * i), x + i * line_bytes, line_bytes)
            i += 1
        return to

    @kernel
    def deliver(tiles, valid, out, plane, targets, count):  # type: ignore[no-untyped-def]
        """tiles[place][output] to out[output][place], the first ``valid`` outputs."""
        if count == 1:
            at = out + word(targets)
            if plane == size:
                copy_bytes(at, tiles, valid * size)
                return
        j = 0
        while j < valid:
            p = 0
            while p < count:
                move(out + j * plane + word(targets + 8 * p), tiles + p * four + j * size)
                p += 1
            j += 1

    @kernel
    def group(ip, cx, w, bias, x, out):  # type: ignore[no-untyped-def]
        """All outputs of one group of channels."""
        never_inline()
        places, targets, offsets = (
            locate(cx, field(ip, PLACES)),
            locate(cx, field(ip, TARGETS)),
            locate(cx, field(ip, OFFSETS)),
        )
        depth, plane, total = field(ip, DEPTH), field(ip, PLANE), field(ip, COUNT)
        tiles = locate(cx, field(ip, TILES))
        left, vectors = field(ip, OUTPUTS), field(ip, VECTORS)
        while vectors > 0:
            wide = vectors >= 4
            taken = 4 if wide else 1
            valid = min(left, taken * (one // size))
            p = 0
            while p < total:
                n = min(AT_ONCE, total - p)
                if wide:
                    gather(w, x, places + 8 * p, offsets, depth, bias, tiles, four, n)
                else:
                    gather_narrow(w, x, places + 8 * p, offsets, depth, bias, tiles, four, n)
                deliver(tiles, valid, out, plane, targets + 8 * p, n)
                p += n
            w += depth * taken * one
            bias += taken * one
            out += valid * plane
            left -= valid
            vectors -= taken

    @kernel
    def convolution(ip, cx):  # type: ignore[no-untyped-def]
        never_inline()
        rows = steps(ip, cx, TIMED) * field(ip, ROWS)
        x, xs = locate(cx, field(ip, X)), field(ip, X_STRIDE)
        out, os = locate(cx, field(ip, OUT)), field(ip, OUT_STRIDE)
        weights, bias = locate(cx, field(ip, WEIGHTS)), locate(cx, field(ip, BIAS))
        groups, group_bytes, vectors = field(ip, GROUPS), field(ip, GROUP_BYTES), field(ip, VECTORS)
        group_weights = vectors * field(ip, DEPTH) * one
        group_out = field(ip, OUTPUTS) * field(ip, PLANE)
        r = 0
        while r < rows:
            source = padded(ip, cx, x + r * xs)
            g = 0
            while g < groups:
                group(
                    ip, cx, weights + g * group_weights, bias + g * vectors * one,
                    source + g * group_bytes, out + r * os + g * group_out,
                )  # fmt: skip
                g += 1
            r += 1
        return 0

    return convolution
