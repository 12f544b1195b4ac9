"""Rows: moved between the caller's arrays, the arena and an embedding table, and walked by recurrent layers."""

from __future__ import annotations

from typing import Any

from ..encoding import CONSTANT, PORT_WORDS, Context, Copy, Embed, Pick, Port, Rearrange
from ..jit import kernel
from .simd import copy_bytes, half, never_inline, set_half, set_word, word, word32

WORD = 8
ARENA, CONSTANTS, STEPS, DONE = (int(w) * WORD for w in (Context.ARENA, Context.CONSTANTS, Context.STEPS, Context.DONE))
FAULT_VALUE, FAULT_LIMIT = int(Context.FAULT_VALUE) * WORD, int(Context.FAULT_LIMIT) * WORD
PORTS, PORT_BYTES = int(Context.PORTS) * WORD, PORT_WORDS * WORD
PORT_STEP, PORT_ROW = int(Port.STEP) * WORD, int(Port.ROW) * WORD


@kernel
def field(ip: int, index: int) -> int:
    """A word of the instruction."""
    return word(ip + index * 8)


@kernel
def locate(cx: int, operand: int) -> int:
    """Address of an operand: in the constants where it says so, else in the arena."""
    if operand & CONSTANT:
        return word(cx + CONSTANTS) + (operand ^ CONSTANT)
    return word(cx + ARENA) + operand


@kernel
def scratch(ip: int, cx: int, index: int) -> int:
    """Address of scratch memory that an instruction may lack: 0 then."""
    operand = field(ip, index)
    if operand < 0:
        return 0
    return locate(cx, operand)


@kernel
def steps(ip: int, cx: int, timed: int) -> int:
    """Time steps an instruction runs over: those of the block, or one."""
    if field(ip, timed) != 0:
        return word(cx + STEPS)
    return 1


def over_rows(sequence: Any, fields: Any) -> Any:
    """The kernel that runs sequence(ip, cx, T, B, x, y, h, c) over the program's steps, or an axis within each row.

    ``fields``: the instruction's (Lstm or Recurrent). Rows that hold one batch row each go together as a batch;
    rows that hold several go one by one.
    """
    TIMED, ROWS, INNER, INNER_ROWS = int(fields.TIMED), int(fields.ROWS), int(fields.INNER), int(fields.INNER_ROWS)
    X, Y, H, H_STRIDE = int(fields.X), int(fields.Y), int(fields.H), int(fields.H_STRIDE)
    X_OUTER, Y_OUTER = int(fields.X_OUTER), int(fields.Y_OUTER)
    C, C_STRIDE = (int(fields.C), int(fields.C_STRIDE)) if hasattr(fields, "C") else (H, H_STRIDE)

    @kernel
    def run(ip, cx):  # type: ignore[no-untyped-def]
        T, B, inner, together = steps(ip, cx, TIMED), field(ip, ROWS), field(ip, INNER), field(ip, INNER_ROWS)
        x, y, h, c = (
            locate(cx, field(ip, X)),
            locate(cx, field(ip, Y)),
            locate(cx, field(ip, H)),
            locate(cx, field(ip, C)),
        )
        count = 1  # of runs: one by one, or all at once
        if inner > 0:
            count, B = (T * B, together) if together > 1 else (1, T * B)
            T = inner
        hs, cs = B * field(ip, H_STRIDE), B * field(ip, C_STRIDE)
        fault = r = 0
        while r < count and fault == 0:
            at, to = x + r * field(ip, X_OUTER), y + r * field(ip, Y_OUTER)
            fault = sequence(ip, cx, T, B, at, to, h + r * hs, c + r * cs)
            r += 1
        return fault

    return run


def ragged(sequence: Any, fields: Any, clear: Any) -> Any:
    """sequence(), row by row over each row's own number of steps where there are lengths.

    clear(ip, cx, h, c) zeroes a row's state: a row of no steps ends in zeros, not in its initial state.
    """
    LENGTHS, LENGTH_STRIDE = int(fields.LENGTHS), int(fields.LENGTH_STRIDE)
    X_STRIDE, Y_STRIDE, H_STRIDE = int(fields.X_STRIDE), int(fields.Y_STRIDE), int(fields.H_STRIDE)
    C_STRIDE = int(fields.C_STRIDE) if hasattr(fields, "C_STRIDE") else H_STRIDE

    @kernel
    def by_lengths(ip, cx, T, B, x, y, h, c):  # type: ignore[no-untyped-def]
        lengths = field(ip, LENGTHS)
        alone = 1 if lengths >= 0 else B
        b = 0
        while b < B:
            valid = T
            if lengths >= 0:
                valid = word32(locate(cx, lengths) + b * field(ip, LENGTH_STRIDE))
                if valid < 0 or valid > T:
                    return 2
            row, cell = h + b * field(ip, H_STRIDE), c + b * field(ip, C_STRIDE)
            sequence(ip, cx, valid, alone, x + b * field(ip, X_STRIDE), y + b * field(ip, Y_STRIDE), row, cell)
            if valid == 0 and lengths >= 0:
                clear(ip, cx, row, cell)
            b += alone
        return 0

    return by_lengths


@kernel
def copy_rows(to, to_step, to_row, at, at_step, at_row, count, steps_, rows):  # type: ignore[no-untyped-def]
    """``count`` bytes of each of steps × rows places; at once where they lie in one piece on both sides."""
    if rows > 1 and to_row == count and at_row == count:
        count, rows = count * rows, 1
    if rows == 1 and steps_ > 1 and to_step == count and at_step == count:
        count, steps_ = count * steps_, 1
    t = 0
    while t < steps_:
        b = 0
        while b < rows:
            copy_bytes(to + t * to_step + b * to_row, at + t * at_step + b * at_row, count)
            b += 1
        t += 1


SOURCE, SOURCE_STEP, SOURCE_ROW = int(Copy.SOURCE), int(Copy.SOURCE_STEP), int(Copy.SOURCE_ROW)
TARGET, TARGET_STEP, TARGET_ROW = int(Copy.TARGET), int(Copy.TARGET_STEP), int(Copy.TARGET_ROW)
BYTES, ROWS, TIMED, LAST, PORT, ONCE = (
    int(f) for f in (Copy.BYTES, Copy.ROWS, Copy.TIMED, Copy.LAST, Copy.PORT, Copy.ONCE)
)


@kernel
def load(ip: int, cx: int) -> int:
    """Rows of the caller's array, from the first step of this block on."""
    never_inline()
    port = cx + PORTS + field(ip, PORT) * PORT_BYTES
    at = word(port) + (word(cx + DONE) * word(port + PORT_STEP) if field(ip, TIMED) != 0 else 0)
    to = locate(cx, field(ip, TARGET))
    to_step, to_row = field(ip, TARGET_STEP), field(ip, TARGET_ROW)
    copy_rows(
        to, to_step, to_row, at, word(port + PORT_STEP), word(port + PORT_ROW),
        field(ip, BYTES), steps(ip, cx, TIMED), field(ip, ROWS),
    )  # fmt: skip
    return 0


@kernel
def store(ip: int, cx: int) -> int:
    """Rows to the caller's array, from the first step of this block on."""
    never_inline()
    port = cx + PORTS + field(ip, PORT) * PORT_BYTES
    to = word(port)
    if to == 0:  # an output nobody asked for
        return 0
    to += word(cx + DONE) * word(port + PORT_STEP) if field(ip, TIMED) != 0 else 0
    at = locate(cx, field(ip, SOURCE))
    copy_rows(
        to, word(port + PORT_STEP), word(port + PORT_ROW), at, field(ip, SOURCE_STEP), field(ip, SOURCE_ROW),
        field(ip, BYTES), steps(ip, cx, TIMED), field(ip, ROWS),
    )  # fmt: skip
    return 0


@kernel
def copy(ip: int, cx: int) -> int:
    """Rows from one place to another; the block's last step alone with LAST, at the call's beginning with ONCE."""
    never_inline()
    if field(ip, ONCE) != 0 and word(cx + DONE) != 0:
        return 0
    at, at_step = locate(cx, field(ip, SOURCE)), field(ip, SOURCE_STEP)
    if field(ip, LAST) != 0:
        at += (word(cx + STEPS) - 1) * at_step
    to = locate(cx, field(ip, TARGET))
    copy_rows(
        to, field(ip, TARGET_STEP), field(ip, TARGET_ROW), at, at_step, field(ip, SOURCE_ROW),
        field(ip, BYTES), steps(ip, cx, TIMED), field(ip, ROWS),
    )  # fmt: skip
    return 0


TOKENS, TOKEN_STRIDE, TOKEN_BYTES = int(Embed.TOKENS), int(Embed.TOKEN_STRIDE), int(Embed.TOKEN_BYTES)
PER_ROW, EMBEDDED, EMBEDDED_STRIDE = int(Embed.PER_ROW), int(Embed.OUT), int(Embed.OUT_STRIDE)
TABLE, TABLE_STRIDE, ENTRY_BYTES = int(Embed.TABLE), int(Embed.TABLE_STRIDE), int(Embed.ENTRY_BYTES)
VOCABULARY, EMBED_ROWS, EMBED_TIMED = int(Embed.VOCABULARY), int(Embed.ROWS), int(Embed.TIMED)


@kernel
def embed(ip: int, cx: int) -> int:
    """out[r] = table[tokens[r]]; -V … V-1 are token ids, anything else is a fault."""
    never_inline()
    tokens, stride, size = locate(cx, field(ip, TOKENS)), field(ip, TOKEN_STRIDE), field(ip, TOKEN_BYTES)
    out, out_stride = locate(cx, field(ip, EMBEDDED)), field(ip, EMBEDDED_STRIDE)
    table, table_stride = locate(cx, field(ip, TABLE)), field(ip, TABLE_STRIDE)
    entry, vocabulary, per_row = field(ip, ENTRY_BYTES), field(ip, VOCABULARY), field(ip, PER_ROW)
    rows = steps(ip, cx, EMBED_TIMED) * field(ip, EMBED_ROWS)
    r = 0
    while r < rows:
        j = 0
        while j < per_row:
            at = tokens + r * stride + j * size
            token = word32(at) if size == 4 else word(at)
            if token < -vocabulary or token >= vocabulary:
                set_word(cx + FAULT_VALUE, token)
                set_word(cx + FAULT_LIMIT, vocabulary)
                return 1
            if token < 0:
                token += vocabulary
            copy_bytes(out + r * out_stride + j * entry, table + token * table_stride, entry)
            j += 1
        r += 1
    return 0


(
    FROM, FROM_STEP, FROM_ROW, TO, TO_STEP, TO_ROW, PIECES, PIECE_COUNT, PIECE_ROWS, PIECES_TIMED,
) = (int(f) for f in Rearrange)  # fmt: skip


@kernel
def copy_piece(to: int, at: int, count: int) -> None:
    """``count`` bytes, mostly those of one element."""
    if count == 4:
        set_half(to, half(at))
    elif count == 8:
        set_word(to, word(at))
    else:
        copy_bytes(to, at, count)


@kernel
def rearrange(ip: int, cx: int) -> int:
    """Pieces of each row to other places of another."""
    never_inline()
    pieces, count = locate(cx, field(ip, PIECES)), field(ip, PIECE_COUNT)
    at, to = locate(cx, field(ip, FROM)), locate(cx, field(ip, TO))
    t = 0
    while t < steps(ip, cx, PIECES_TIMED):
        b = 0
        while b < field(ip, PIECE_ROWS):
            source = at + t * field(ip, FROM_STEP) + b * field(ip, FROM_ROW)
            target = to + t * field(ip, TO_STEP) + b * field(ip, TO_ROW)
            piece = pieces
            while piece < pieces + count * 48:
                from_, into, size = source + word(piece), target + word(piece + 8), word(piece + 16)
                alike, from_step, into_step = word(piece + 24), word(piece + 32), word(piece + 40)
                if size == 4:
                    i = 0
                    while i < alike:
                        set_half(into + i * into_step, half(from_ + i * from_step))
                        i += 1
                else:
                    i = 0
                    while i < alike:
                        copy_piece(into + i * into_step, from_ + i * from_step, size)
                        i += 1
                piece += 48
            b += 1
        t += 1
    return 0


(
    PICKED, PICKED_STEP, INDEX, INDEX_STEP, INDEX_BYTES, MADE, MADE_STEP, PICKS, PICK_COUNT, ALONG, LIMIT, PICK_TIMED,
) = (int(f) for f in Pick)  # fmt: skip


@kernel
def pick(ip: int, cx: int) -> int:
    """Pieces of each step's rows from where indices say; one that is out of range is a fault."""
    never_inline()
    at, index, to = locate(cx, field(ip, PICKED)), locate(cx, field(ip, INDEX)), locate(cx, field(ip, MADE))
    pieces, size, along = locate(cx, field(ip, PICKS)), field(ip, INDEX_BYTES), field(ip, ALONG)
    limit = field(ip, LIMIT)
    if limit == 0:
        limit = word(cx + STEPS)
    t = 0
    while t < steps(ip, cx, PICK_TIMED):
        piece = pieces
        while piece < pieces + field(ip, PICK_COUNT) * 32:
            named = index + word(piece + 8)
            place = word32(named) if size == 4 else word(named)
            if place < -limit or place >= limit:
                set_word(cx + FAULT_VALUE, place)
                set_word(cx + FAULT_LIMIT, limit)
                return 1
            if place < 0:
                place += limit
            copy_piece(to + word(piece + 16), at + word(piece) + place * along, word(piece + 24))
            piece += 32
        at += field(ip, PICKED_STEP)
        index += field(ip, INDEX_STEP)
        to += field(ip, MADE_STEP)
        t += 1
    return 0


def kernels() -> dict[str, Any]:
    """The kernels of this file by the name the executor calls them."""
    return {"load": load, "store": store, "copy": copy, "embed": embed, "rearrange": rearrange, "pick": pick}
