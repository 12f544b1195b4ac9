"""Many streams in one call: slots' states are gathered into the rows of a program, which runs, and put back.

Rows are slots in the order they are named, ROWS at a time; in a call of several steps the longest come first, so that
those still running are always the first rows. The caller's arrays hold the rows that run, step after step, without a
gap.
"""

from __future__ import annotations

from ..encoding import END_WORDS, FORM_WORDS, NOT_FITTING, PIECE_WORDS, RUNG, SLOT_BITS, STALE, TWICE, Context, Pool
from ..jit import kernel
from .arrays import data_of, rows_of
from .shares import rung
from .simd import copy_bytes, invoke, set_word, word

(
    CONTEXT, HANDLES, COUNT, LENGTHS, RECORDS, OPENED, CALLS, CALL, SLOTS, ROWS, LIVE, PIECES, PIECE_COUNT, PATCHES,
    PATCH_COUNT, ENDS, END_COUNT, KEPT, RECORD_BYTES, BROKEN, FORMS, ROOM,
) = (int(w) * 8 for w in Pool)  # fmt: skip
ARENA, EXECUTOR = int(Context.ARENA) * 8, int(Context.EXECUTOR) * 8
SLOT = (1 << SLOT_BITS) - 1
PIECE_BYTES, END_BYTES, FORM_BYTES = PIECE_WORDS * 8, END_WORDS * 8, FORM_WORDS * 8


@kernel
def slot_of(pool, i):  # type: ignore[no-untyped-def]
    """The slot of the i-th handle."""
    return word(word(pool + HANDLES) + 8 * i) & SLOT


@kernel
def length_of(pool, i):  # type: ignore[no-untyped-def]
    """Steps of the i-th handle."""
    lengths = word(pool + LENGTHS)
    if lengths == 0:
        return 1
    return word(lengths + 8 * i)


@kernel
def refused(pool):  # type: ignore[no-untyped-def]
    """STALE or TWICE if a handle is at fault, else 0."""
    count, slots, call = word(pool + COUNT), word(pool + SLOTS), word(pool + CALL)
    i = 0
    while i < count:
        handle, slot = word(word(pool + HANDLES) + 8 * i), slot_of(pool, i)
        fault = 0
        if slot >= slots or word(word(pool + OPENED) + 8 * slot) != handle >> SLOT_BITS:
            fault = STALE
        elif word(word(pool + CALLS) + 8 * slot) == call:
            fault = TWICE
        if fault != 0:
            set_word(pool + BROKEN, i)
            return fault
        set_word(word(pool + CALLS) + 8 * slot, call)
        i += 1
    return 0


@kernel
def gather(pool, first, rows):  # type: ignore[no-untyped-def]
    """The states of ``rows`` handles from the first on into the rows of the arena."""
    arena, pieces, count = word(word(pool + CONTEXT) + ARENA), word(pool + PIECES), word(pool + PIECE_COUNT)
    size, kept = word(pool + RECORD_BYTES), word(pool + KEPT)
    r = 0
    while r < rows:
        record = word(word(pool + RECORDS) + 8 * slot_of(pool, first + r))
        if kept != 0:
            copy_bytes(kept + (first + r) * size, record, size)
        k = 0
        while k < count:
            piece = pieces + k * PIECE_BYTES
            copy_bytes(arena + word(piece + 8) + r * word(piece + 16), record + word(piece), word(piece + 24))
            k += 1
        r += 1


@kernel
def scatter(pool, first, r):  # type: ignore[no-untyped-def]
    """The state of row ``r`` back to its slot."""
    arena, pieces, count = word(word(pool + CONTEXT) + ARENA), word(pool + PIECES), word(pool + PIECE_COUNT)
    record = word(word(pool + RECORDS) + 8 * slot_of(pool, first + r))
    k = 0
    while k < count:
        piece = pieces + k * PIECE_BYTES
        copy_bytes(record + word(piece), arena + word(piece + 8) + r * word(piece + 16), word(piece + 24))
        k += 1


@kernel
def put_back(pool, count):  # type: ignore[no-untyped-def]
    """The states of the first ``count`` handles as they were before the call."""
    size, kept, i = word(pool + RECORD_BYTES), word(pool + KEPT), 0
    while i < count and kept != 0:
        copy_bytes(word(word(pool + RECORDS) + 8 * slot_of(pool, i)), kept + i * size, size)
        i += 1


@kernel
def limit_rows(pool, rows):  # type: ignore[no-untyped-def]
    """Have the program run its first ``rows`` rows."""
    patches, count, k = word(pool + PATCHES), word(pool + PATCH_COUNT), 0
    if word(pool + LIVE) == rows:
        return
    while k < count:
        set_word(word(patches + 8 * k), rows)
        k += 1
    set_word(pool + LIVE, rows)


@kernel
def point(pool, done):  # type: ignore[no-untyped-def]
    """Have the ports begin ``done`` rows further on in the caller's arrays."""
    ends, count, k = word(pool + ENDS), word(pool + END_COUNT), 0
    while k < count:
        end = ends + k * END_BYTES
        set_word(word(end), word(end + 8) + done * word(end + 16))
        k += 1


@kernel
def run_slots(pool):  # type: ignore[no-untyped-def]
    """All steps of all handles; on a fault every slot is as it was."""
    fault = refused(pool)
    if fault != 0:
        return fault
    cx, count, most = word(pool + CONTEXT), word(pool + COUNT), word(pool + ROWS)
    first = done = 0
    while first < count and fault == 0:
        rows = min(most, count - first)
        gather(pool, first, rows)
        running, t = rows, 0
        while running > 0 and fault == 0:
            while running > 0 and length_of(pool, first + running - 1) <= t:
                running -= 1
                scatter(pool, first, running)
            if running > 0:
                limit_rows(pool, running)
                point(pool, done)
                fault = invoke(word(cx + EXECUTOR), cx)
                done += running
                t += 1
        first += rows
    if fault != 0:
        put_back(pool, first)
    elif rung(cx):
        return RUNG
    return fault


@kernel
def step_slots(pool, handles, x, out):  # type: ignore[no-untyped-def]
    """The shortest way from Python: a step of the slots of an array of handles, from and to arrays of their rows.

    NOT_FITTING if the arrays need converting, or there is no room to keep so many records: nothing has then happened.
    """
    forms = word(pool + FORMS)
    count = rows_of(handles, forms)
    if count < 0 or rows_of(x, forms + FORM_BYTES) != count or rows_of(out, forms + 2 * FORM_BYTES) != count:
        return NOT_FITTING
    if count > word(pool + ROOM):
        return NOT_FITTING
    ends = word(pool + ENDS)
    set_word(pool + HANDLES, data_of(handles, forms))
    set_word(pool + COUNT, count)
    set_word(pool + LENGTHS, 0)
    set_word(pool + CALL, word(pool + CALL) + 1)
    set_word(ends + 8, data_of(x, forms))
    set_word(ends + END_BYTES + 8, data_of(out, forms))
    return run_slots(pool)
