"""Bytes that move between an instance and its caller, written as kernels: copies, and a state's bytes with their seal.

The seal is BLAKE2b (RFC 7693) of 16 bytes, as state.py has it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir

from ..kernels.simd import clear_bytes, copy_bytes, int64, integer_lanes, pointer, set_word, word
from ..state import DIGEST_BYTES, DIGEST_PLACE

_BYTE: Final = ir.IntType(8)
_LINE: Final = ir.VectorType(ir.IntType(32), 16)
INT64: Final = ir.IntType(64)
LINE: Final = 64


def _intrinsic(emit: Any, arguments: str, result: str) -> Any:
    return integer_lanes.intrinsic(emit, arguments, result)


def _room(b: ir.IRBuilder, count: ir.Constant) -> ir.Value:
    with b.goto_entry_block():
        place = b.alloca(_BYTE, size=count)
        place.align = 16
        return b.ptrtoint(place, INT64)


byte = _intrinsic(lambda b, at: b.zext(b.load(pointer(b, at), typ=_BYTE, align=1), INT64), "a", "a")
set_byte = _intrinsic(lambda b, at, x: b.store(b.trunc(x, _BYTE), pointer(b, at), align=1) and None, "aa", "")
move_word = _intrinsic(
    lambda b, to, at: b.store(b.load(pointer(b, at), typ=INT64, align=1), pointer(b, to), align=1) and None, "aa", ""
)
move_line = _intrinsic(
    lambda b, to, at: b.store(b.load(pointer(b, at), typ=_LINE, align=1), pointer(b, to), align=1) and None, "aa", ""
)
clear_word = _intrinsic(lambda b, at: b.store(int64(0), pointer(b, at), align=1) and None, "a", "")
#: x turned right by n bits, 0 < n < 64.
turned = _intrinsic(lambda b, x, n: b.or_(b.lshr(x, n), b.shl(x, b.sub(int64(64), n))), "aa", "a")
#: Bytes of the stack, their number known when the code is made.
room = _intrinsic(_room, "a", "a")


def copied(to, at, count):  # type: ignore[no-untyped-def]
    """``count`` bytes, from front to back."""
    i = 0
    while count - i >= LINE:
        move_line(to + i, at + i)
        i += LINE
    while count - i >= 8:
        move_word(to + i, at + i)
        i += 8
    while i < count:
        set_byte(to + i, byte(at + i))
        i += 1


def cleared(at, count):  # type: ignore[no-untyped-def]
    """``count`` bytes of zero."""
    i = 0
    while count - i >= 8:
        clear_word(at + i)
        i += 8
    while i < count:
        set_byte(at + i, 0)
        i += 1


def alike(x, y, count):  # type: ignore[no-untyped-def]
    """Whether two pieces of memory hold the same bytes."""
    i = 0
    while i < count:
        if byte(x + i) != byte(y + i):
            return 0
        i += 1
    return 1


# --- BLAKE2b ---------------------------------------------------------------------------------------------------------

_BEGINNING: Final = (
    0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
    0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179,
)  # fmt: skip
_ORDER: Final = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    (14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3),
    (11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4),
    (7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8),
    (9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13),
    (2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9),
    (12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11),
    (13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10),
    (6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5),
    (10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0),
)
#: First the words a hash begins with, then each round's order of the words of a block, a byte each.
TABLES: Final = np.concatenate([np.array(_BEGINNING, np.uint64).view(np.uint8), np.array(_ORDER, np.uint8).ravel()])
ORDERS: Final = len(_BEGINNING) * 8
ROUNDS: Final = 12
BLOCK: Final = 128
#: Of the first word: no key, a digest of DIGEST_BYTES.
PARAMETERS: Final = 0x01010000 ^ DIGEST_BYTES
GAP: Final = DIGEST_BYTES


def mixed(v, a, b, c, d, x, y):  # type: ignore[no-untyped-def]
    """The function G of four of the sixteen words at v."""
    a, b, c, d = v + 8 * a, v + 8 * b, v + 8 * c, v + 8 * d
    set_word(a, word(a) + word(b) + x)
    set_word(d, turned(word(d) ^ word(a), 32))
    set_word(c, word(c) + word(d))
    set_word(b, turned(word(b) ^ word(c), 24))
    set_word(a, word(a) + word(b) + y)
    set_word(d, turned(word(d) ^ word(a), 16))
    set_word(c, word(c) + word(d))
    set_word(b, turned(word(b) ^ word(c), 63))


def compressed(h, block, done, last, tables):  # type: ignore[no-untyped-def]
    """The function F: a block into the hash h; ``done``: bytes up to its end."""
    v = room(128)
    i = 0
    while i < 8:
        set_word(v + 8 * i, word(h + 8 * i))
        set_word(v + 64 + 8 * i, word(tables + 8 * i))
        i += 1
    set_word(v + 96, word(v + 96) ^ done)
    if last != 0:
        set_word(v + 112, word(v + 112) ^ -1)
    r = 0
    while r < ROUNDS:
        order = tables + ORDERS + 16 * (r if r < 10 else r - 10)
        i = 0
        while i < 8:  # four columns, then four diagonals
            j, turn = i & 3, i >> 2
            x, y = word(block + 8 * byte(order + 2 * i)), word(block + 8 * byte(order + 2 * i + 1))
            mixed(v, j, 4 + ((j + turn) & 3), 8 + ((j + 2 * turn) & 3), 12 + ((j + 3 * turn) & 3), x, y)
            i += 1
        r += 1
    i = 0
    while i < 8:
        set_word(h + 8 * i, word(h + 8 * i) ^ word(v + 8 * i) ^ word(v + 64 + 8 * i))
        i += 1


def sealed(h, at, total, tables):  # type: ignore[no-untyped-def]
    """The digest, at h, of a state's bytes: all ``total`` of them but the place of the digest itself."""
    block = room(BLOCK)
    i = 0
    while i < 8:
        set_word(h + 8 * i, word(tables + 8 * i))
        i += 1
    set_word(h, word(h) ^ PARAMETERS)
    count = total - GAP
    done = 0
    while done < count:
        n = min(count - done, BLOCK)
        i = 0
        while i < BLOCK:
            place = done + i
            if place >= DIGEST_PLACE:
                place += GAP
            set_byte(block + i, byte(at + place) if i < n else 0)
            i += 1
        done += n
        compressed(h, block, done, 1 if done == count else 0, tables)


# --- a state's bytes -------------------------------------------------------------------------------------------------


def moved(arena, values, pieces, count, saving):  # type: ignore[no-untyped-def]
    """The pieces of a state, to its values or back."""
    k = 0
    while k < count:
        piece = pieces + 24 * k
        value, place = values + word(piece), arena + word(piece + 8)
        if saving != 0:
            copy_bytes(value, place, word(piece + 16))
        else:
            copy_bytes(place, value, word(piece + 16))
        k += 1


def beyond_truth(arena_bytes, count):  # type: ignore[no-untyped-def]
    """Whether one of so many bytes is neither 0 nor 1."""
    i = 0
    while i < count:
        if byte(arena_bytes + i) > 1:
            return 1
        i += 1
    return 0


def begun(arena, count, beginning):  # type: ignore[no-untyped-def]
    """Every state as the model starts; ``beginning``: where that lies, 0: zeros."""
    if beginning != 0:
        copy_bytes(arena, beginning, count)
    else:
        clear_bytes(arena, count)
