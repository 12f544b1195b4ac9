"""The proof that a Program touches nothing but its own memory: machine code checks no address.

For every instruction, the bytes each operand may read or write are worked out from its fields and held against
the buffer or constant it names. Kernels read whole vectors, so a read may run up to fifteen elements past the
last row; a write may not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np

from ..encoding import (
    PLACES_AT_ONCE,
    PREPARED_AT_ONCE,
    SHARE_WORDS,
    TRACED_PARTS,
    WORD_BYTES,
    Cell,
    Convert,
    Convolution,
    Copy,
    Dense,
    Embed,
    Extreme,
    Integers,
    Join,
    Kind,
    Lstm,
    Map,
    Matmul,
    Opcode,
    Pick,
    Rearrange,
    Recurrent,
    Reduce,
    Select,
    Softmax,
)
from .packing import LANES, WIDE
from .program import Field, Instruction, Pinned, Place, Program
from .weights import Form, form_of

#: Bytes at the end of an arena that reads may run into: fifteen float64, to whole cache lines.
TAIL: Final = 128


class Extent(NamedTuple):
    """An operand and how many bytes from its place on the instruction may touch."""

    field: IntEnum
    size: int
    written: bool


def validate(program: Program) -> None:
    """Every byte an instruction may touch lies in the buffer or constant it names, every buffer in the arena.

    Raises AssertionError: a program that fails here is a fault of the engine, never of a model.
    """
    for index, instruction in enumerate(program.listing):
        for field, size, written in extents(instruction, program):
            place = instruction.fields.get(field, -1)
            fault = _fault(place, size, written, program)
            if fault:
                raise AssertionError(
                    f"instruction {index} {instruction.opcode.name} ({instruction.node}), {field!r}: {fault}"
                )


def _fault(place: Field, size: int, written: bool, program: Program) -> str:
    if size == 0 or (isinstance(place, int) and place < 0):
        return ""
    if isinstance(place, Place):
        room = place.buffer.size - place.offset
        inside = place.buffer.offset >= 0 and place.buffer.offset + place.buffer.size + TAIL <= program.arena_bytes
        slack = 0 if written else TAIL
        if not inside or place.offset < 0 or size > room + slack:
            return f"{size} bytes at {place.offset} of buffer '{place.buffer.name}' of {place.buffer.size}"
        return ""
    if isinstance(place, Pinned):
        if written or place.offset < 0 or place.offset + size > place.array.nbytes:
            return f"{size} bytes at {place.offset} of a constant of {place.array.nbytes}"
        return ""
    return "no place"


def extents(instruction: Instruction, program: Program) -> Iterator[Extent]:
    """What an instruction may touch, operand by operand."""
    f: dict[Any, Any] = dict(instruction.fields)
    form = form_of(program.precision)
    element = form.dtype.itemsize
    vector = LANES * element
    steps = program.block if f.get(_TIMED.get(instruction.opcode)) else 1
    yield from _RULES[instruction.opcode](f, steps, element, vector, program.block)
    if instruction.opcode in _WEIGHTS:
        yield from _WEIGHTS[instruction.opcode](f, steps, form)


def _span(steps: int, step: int, rows: int, row: int, size: int) -> int:
    """Bytes from the first to behind the last of steps × rows pieces."""
    return (steps - 1) * step + (rows - 1) * row + size


def _load(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    size = _span(steps, f[Copy.TARGET_STEP], f[Copy.ROWS], f[Copy.TARGET_ROW], f[Copy.BYTES])
    yield Extent(Copy.TARGET, size, True)


def _store(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    size = _span(steps, f[Copy.SOURCE_STEP], f[Copy.ROWS], f[Copy.SOURCE_ROW], f[Copy.BYTES])
    yield Extent(Copy.SOURCE, size, False)


def _copy(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    yield from _load(f, steps, element, vector, block)
    yield from _store(f, block if f[Copy.LAST] else steps, element, vector, block)


def _embed(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    rows = steps * f[Embed.ROWS]
    tokens = f[Embed.PER_ROW] * f[Embed.TOKEN_BYTES]
    yield Extent(Embed.TOKENS, _span(rows, f[Embed.TOKEN_STRIDE], 1, 0, tokens), False)
    yield Extent(Embed.OUT, _span(rows, f[Embed.OUT_STRIDE], 1, 0, f[Embed.PER_ROW] * f[Embed.ENTRY_BYTES]), True)
    yield Extent(Embed.TABLE, _span(f[Embed.VOCABULARY], f[Embed.TABLE_STRIDE], 1, 0, f[Embed.ENTRY_BYTES]), False)


def _rows_at_once(f: Any, words: Any, steps: int) -> int:
    """Batch rows of a recurrent instruction that run side by side."""
    together: int = f[words.INNER_ROWS]
    rows: int = f[words.ROWS]
    return rows if not f[words.INNER] else together if together > 1 else steps * rows


def _all_rows(f: Any, words: Any, steps: int) -> int:
    """Batch rows whose state a recurrent instruction keeps."""
    rows: int = f[words.ROWS]
    return rows if not f[words.INNER] else steps * rows * int(f[words.INNER_ROWS])


def _walked(f: Any, words: Any, step: IntEnum, row: IntEnum, outer: IntEnum, steps: int, size: int) -> int:
    """Bytes from the first row it reads or writes to behind the last."""
    length = f[words.INNER] or steps
    span = _span(length, f[step], _rows_at_once(f, words, steps), f[row], size)
    apart = steps * f[words.ROWS] if f[words.INNER] and f[words.INNER_ROWS] > 1 else 1
    return _span(apart, f[outer], 1, 0, span)


def _lstm(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    rows, blocks = _rows_at_once(f, Lstm, steps), f[Lstm.BLOCKS]
    projected = f[Lstm.PROJECTION] != -1
    made = f[Lstm.PROJECTED_BLOCKS] * vector if projected else blocks * vector
    traced = f[Lstm.TRACE] + TRACED_PARTS * blocks * vector if f.get(Lstm.TRACE) else made
    yield Extent(
        Lstm.X, _walked(f, Lstm, Lstm.X_STEP, Lstm.X_STRIDE, Lstm.X_OUTER, steps, f[Lstm.INPUTS] * element), False
    )
    yield Extent(Lstm.Y, _walked(f, Lstm, Lstm.Y_STEP, Lstm.Y_STRIDE, Lstm.Y_OUTER, steps, traced), True)
    yield Extent(Lstm.H, _span(_all_rows(f, Lstm, steps), f[Lstm.H_STRIDE], 1, 0, made), True)
    yield Extent(Lstm.C, _span(_all_rows(f, Lstm, steps), f[Lstm.C_STRIDE], 1, 0, blocks * vector), True)
    yield Extent(Lstm.BIAS, blocks * 4 * vector, False)
    yield Extent(Lstm.GATES, rows * 4 * vector, True)
    if f[Lstm.PARTS] > 1:
        yield Extent(Lstm.JOBS, (f[Lstm.PARTS] - 1) * SHARE_WORDS * WORD_BYTES, True)
        yield Extent(Lstm.STAGED, (f[Lstm.PARTS] - 1) * rows * (2 * blocks + 4) * vector, True)
    if f[Lstm.HOIST] > 1:
        pre = f[Lstm.HOIST] * rows * blocks * 4 * vector
        yield Extent(Lstm.PRE, pre, True)
        yield Extent(Lstm.PRE_STAGED, (f[Lstm.PARTS] - 1) * pre, True)


def _cell(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    yield from _lstm(f, steps, element, vector, block)
    yield Extent(Lstm.PARAMETERS, 3 * 16, False)
    yield Extent(Lstm.ZEROS, vector, False)
    yield Extent(Lstm.PEEPHOLES, f[Lstm.BLOCKS] * 3 * vector, False)
    if f[Lstm.LENGTHS] != -1:
        yield Extent(Lstm.LENGTHS, _span(f[Lstm.ROWS], f[Lstm.LENGTH_STRIDE], 1, 0, 4), False)
    if f[Lstm.PROJECTION] != -1:
        yield Extent(Lstm.PROJECTION, f[Lstm.PROJECTED_BLOCKS] * f[Lstm.HIDDEN_UNITS] * vector, False)
        yield Extent(Lstm.HIDDEN, _rows_at_once(f, Lstm, steps) * f[Lstm.BLOCKS] * vector, True)


def _recurrent(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    r = Recurrent
    rows, plane = _rows_at_once(f, r, steps), f[Recurrent.VECTORS] * vector
    planes = 1 if f[Recurrent.CELL] == Cell.RNN else 4
    yield Extent(r.X, _walked(f, r, r.X_STEP, r.X_STRIDE, r.X_OUTER, steps, f[Recurrent.INPUTS] * element), False)
    made = f[r.TRACE] + planes * plane if f.get(r.TRACE) else plane
    yield Extent(r.Y, _walked(f, r, r.Y_STEP, r.Y_STRIDE, r.Y_OUTER, steps, made), True)
    yield Extent(r.H, _span(_all_rows(f, r, steps), f[r.H_STRIDE], 1, 0, plane), True)
    yield Extent(Recurrent.BIAS, planes * plane, False)
    yield Extent(Recurrent.SUMS, f[Recurrent.HOIST] * rows * planes * plane, True)
    yield Extent(Recurrent.PARAMETERS, 16 if planes == 1 else 32, False)
    if f[Recurrent.CELL] == Cell.GRU:
        yield Extent(Recurrent.RESET, rows * plane, True)
    if f[Recurrent.LENGTHS] != -1:
        yield Extent(Recurrent.LENGTHS, _span(rows, f[Recurrent.LENGTH_STRIDE], 1, 0, 4), False)


#: More than any memory: what a table that is not what it should be makes of an extent.
NOWHERE: Final = 1 << 61


def _table(place: Any, count: int) -> np.ndarray:
    """The first ``count`` offsets of a table; one that reaches beyond everything if it is no table."""
    offsets = place.array.reshape(-1)
    if offsets.dtype != np.int64 or place.offset or offsets.size < count or (offsets[:count] < 0).any():
        return np.array([NOWHERE])
    table: np.ndarray = offsets[:count]
    return table


def _farthest(offsets: np.ndarray) -> int:
    return int(offsets.max(initial=0))


def _rearrange(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    count, rows = f[Rearrange.COUNT], f[Rearrange.ROWS]
    pieces = _table(f[Rearrange.PIECES], 6 * count)
    whole = len(pieces) == 6 * count
    from_, into, size, alike, from_step, into_step = pieces.reshape(-1, 6).T if whole else [pieces] * 6
    read, written = (_farthest(at + (alike - 1) * step + size) for at, step in ((from_, from_step), (into, into_step)))
    source = _span(steps, f[Rearrange.SOURCE_STEP], rows, f[Rearrange.SOURCE_ROW], read)
    target = _span(steps, f[Rearrange.TARGET_STEP], rows, f[Rearrange.TARGET_ROW], written)
    yield Extent(Rearrange.SOURCE, source, False)
    yield Extent(Rearrange.TARGET, target, True)


def _reduce(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    rows, size = steps * f[Reduce.ROWS], 8 if f[Reduce.FUNCTION] in tuple(Extreme) else element
    groups = _table(f[Reduce.GROUPS], 3 * f[Reduce.COUNT])
    whole = len(groups) == 3 * f[Reduce.COUNT]
    place, first, apart = groups.reshape(-1, 3).T if whole else [groups] * 3
    read = _farthest(place + ((LANES - 1) * apart + 1) * element) + _farthest(
        _table(f[Reduce.OFFSETS], f[Reduce.DEPTH])
    )
    written = _farthest((first + np.where(apart > 0, LANES, 1)) * size)
    yield Extent(Reduce.X, _span(rows, f[Reduce.X_STRIDE], 1, 0, read), False)
    yield Extent(Reduce.OUT, _span(rows, f[Reduce.OUT_STRIDE], 1, 0, written), True)


def _matmul(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    rows, last = steps * f[Matmul.ROWS], f[Matmul.COUNT] - 1
    height, depth, width = f[Matmul.HEIGHT], f[Matmul.DEPTH], f[Matmul.WIDTH]
    x = last * f[Matmul.X_MATRIX] + height * depth * element
    y = last * f[Matmul.Y_MATRIX] + depth * width * element
    yield Extent(Matmul.X, _span(rows, f[Matmul.X_STRIDE], 1, 0, x), False)
    yield Extent(Matmul.Y, _span(rows, f[Matmul.Y_STRIDE], 1, 0, y), False)
    out = (last + 1) * height * width * element
    yield Extent(Matmul.OUT, _span(rows, f[Matmul.OUT_STRIDE], 1, 0, out), True)
    yield Extent(Matmul.PACKED, depth * vector, True)
    yield Extent(Matmul.TILE, height * vector, True)
    yield Extent(Matmul.ZEROS, vector, False)


def _convolution(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    rows, groups, outputs = steps * f[Convolution.ROWS], f[Convolution.GROUPS], f[Convolution.OUTPUTS]
    depth, spans = f[Convolution.DEPTH], f[Convolution.SPAN_COUNT]
    if spans:
        table = _table(f[Convolution.SPANS], 2 * spans)
        place, target = _farthest(table[::2]) + vector, _farthest(table[-1::-2]) + vector
        sums = groups * outputs * element
    else:
        tables = [_table(f[name], f[Convolution.COUNT]) for name in (Convolution.PLACES, Convolution.TARGETS)]
        place, target = (_farthest(table) + element for table in tables)
        sums = groups * f[Convolution.VECTORS] * vector
        yield Extent(Convolution.TILES, PLACES_AT_ONCE * 4 * vector, True)
    read = place + _farthest(_table(f[Convolution.OFFSETS], depth)) + (groups - 1) * f[Convolution.GROUP_BYTES]
    written = (groups * outputs - 1) * f[Convolution.PLANE] + target
    lines, line = f[Convolution.LINE_COUNT], f[Convolution.LINE_BYTES]
    if lines:
        to = _farthest(_table(f[Convolution.LINES], lines)) + line
        yield Extent(Convolution.PADDED, max(read, to), True)
        yield Extent(Convolution.PADDED, f[Convolution.PADDED_BYTES], True)
        read = lines * line
    yield Extent(Convolution.X, _span(rows, f[Convolution.X_STRIDE], 1, 0, read), False)
    yield Extent(Convolution.OUT, _span(rows, f[Convolution.OUT_STRIDE], 1, 0, written), True)
    yield Extent(Convolution.WEIGHTS, sums * depth, False)
    yield Extent(Convolution.BIAS, sums, False)


def _dense(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    rows, outputs = steps * f[Dense.ROWS], f[Dense.WIDE] * WIDE + f[Dense.NARROW] * LANES
    yield Extent(Dense.X, _span(rows, f[Dense.X_STRIDE], 1, 0, f[Dense.DEPTH] * element), False)
    yield Extent(Dense.OUT, _span(rows, f[Dense.OUT_STRIDE], 1, 0, outputs * element), True)
    yield Extent(Dense.BIAS, outputs * element, False)


def _map(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    rows, size = steps * f[Map.ROWS], -(-f[Map.WIDTH] // LANES) * vector
    yield Extent(Map.X, _span(rows, f[Map.X_STRIDE], 1, 0, size), False)
    yield Extent(Map.OUT, _span(rows, f[Map.OUT_STRIDE], 1, 0, size), True)


def _bytes(kind: int, element: int) -> int:
    """Bytes of an element of a kind."""
    sizes = {Kind.FLOAT: element, Kind.INT16: 2, Kind.UINT16: 2, Kind.INT32: 4, Kind.UINT32: 4, Kind.INT64: 8}
    return sizes.get(Kind(kind), 1)


def _convert(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    rows, lanes = steps * f[Convert.ROWS], -(-f[Convert.WIDTH] // LANES) * LANES
    x, out = (lanes * _bytes(f[kind], element) for kind in (Convert.FROM, Convert.TO))
    yield Extent(Convert.X, _span(rows, f[Convert.X_STRIDE], 1, 0, x), False)
    yield Extent(Convert.OUT, _span(rows, f[Convert.OUT_STRIDE], 1, 0, out), True)


def _integers(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    kinds = f[Integers.KIND], f[Integers.KIND], f[Integers.OUT_KIND]
    yield from _broadcast(f, Integers, (Integers.X, Integers.Y), [_bytes(kind, element) for kind in kinds], steps)


def _select(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    size = _bytes(f[Select.KIND], element)
    yield from _broadcast(f, Select, (Select.CONDITION, Select.X, Select.Y), [1, size, size, size], steps)


def _broadcast(f: Any, words: Any, operands: Sequence[Any], sizes: Sequence[int], steps: int) -> Iterator[Extent]:
    """Operands whose fields are place, step, row and single, and the result; ``sizes`` of an element of each."""
    lanes = -(-f[words.WIDTH] // LANES) * LANES
    for place, size in zip((*operands, words.OUT), sizes, strict=True):
        count = 1 if place != words.OUT and f[place + 3] else lanes
        span = _span(steps, f[place + 1], f[words.ROWS], f[place + 2], count * size)
        yield Extent(words(place), span, place == words.OUT)


def _pick(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    pieces = _table(f[Pick.PIECES], 4 * f[Pick.COUNT])
    whole = len(pieces) == 4 * f[Pick.COUNT]
    source, index, target, size = pieces.reshape(-1, 4).T if whole else [pieces] * 4
    last = ((f[Pick.LIMIT] or block) - 1) * f[Pick.ALONG]
    yield Extent(Pick.X, _span(steps, f[Pick.X_STEP], 1, 0, last + _farthest(source + size)), False)
    yield Extent(Pick.INDEX, _span(steps, f[Pick.INDEX_STEP], 1, 0, _farthest(index) + f[Pick.INDEX_BYTES]), False)
    yield Extent(Pick.OUT, _span(steps, f[Pick.OUT_STEP], 1, 0, _farthest(target + size)), True)


def _softmax(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    rows, size = steps * f[Softmax.ROWS], -(-f[Softmax.WIDTH] // LANES) * vector
    yield Extent(Softmax.X, _span(rows, f[Softmax.X_STRIDE], 1, 0, size), False)
    yield Extent(Softmax.OUT, _span(rows, f[Softmax.OUT_STRIDE], 1, 0, size), True)


def _join(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    size = -(-f[Join.WIDTH] // LANES) * vector
    for place, step, row, single in (
        (Join.X, Join.X_STEP, Join.X_ROW, f[Join.X_SINGLE]),
        (Join.Y, Join.Y_STEP, Join.Y_ROW, f[Join.Y_SINGLE]),
        (Join.OUT, Join.OUT_STEP, Join.OUT_ROW, 0),
    ):
        span = _span(steps, f[step], f[Join.ROWS], f[row], element if single else size)
        yield Extent(place, span, place == Join.OUT)


def _nothing(f: Any, steps: int, element: int, vector: int, block: int) -> Iterator[Extent]:
    yield from ()


def _lstm_weights(f: Any, steps: int, form: Form) -> Iterator[Extent]:
    inputs, recurrent, rows = f[Lstm.INPUTS], f[Lstm.RECURRENT], _rows_at_once(f, Lstm, steps)
    yield Extent(Lstm.WEIGHTS, f[Lstm.BLOCKS] * (form.part_bytes(inputs, 4) + form.part_bytes(recurrent, 4)), False)
    yield Extent(Lstm.X_ROOM, max(1, f[Lstm.HOIST]) * rows * form.row_bytes(inputs), True)
    yield Extent(Lstm.H_ROOM, rows * form.row_bytes(recurrent), True)


def _recurrent_weights(f: Any, steps: int, form: Form) -> Iterator[Extent]:
    r, inputs, units, vectors = Recurrent, f[Recurrent.INPUTS], f[Recurrent.UNITS], f[Recurrent.VECTORS]
    from_x, from_h = {Cell.RNN: (1, 1), Cell.GRU: (3, 2), Cell.GRU_LINEAR: (3, 3)}[f[Recurrent.CELL]]
    yield Extent(r.W, _outputs(form, inputs, from_x * vectors), False)
    yield Extent(r.R, _outputs(form, units, from_h * vectors), False)
    if f[Recurrent.CELL] == Cell.GRU:
        yield Extent(r.R_CANDIDATE, _outputs(form, units, vectors), False)
    yield Extent(r.ROOM, PREPARED_AT_ONCE * form.row_bytes(max(inputs, units)), True)


def _dense_weights(f: Any, steps: int, form: Form) -> Iterator[Extent]:
    yield Extent(Dense.WEIGHTS, _outputs(form, f[Dense.DEPTH], 4 * f[Dense.WIDE] + f[Dense.NARROW]), False)
    yield Extent(Dense.ROOM, PREPARED_AT_ONCE * form.row_bytes(f[Dense.DEPTH]), True)


def _outputs(form: Form, depth: int, vectors: int) -> int:
    """Bytes of a dense layer's weights."""
    return vectors // 4 * form.part_bytes(depth, 4) + vectors % 4 * form.part_bytes(depth, 1)


#: What the precision of the weights decides.
_WEIGHTS: Final[dict[Opcode, Any]] = {
    **dict.fromkeys((Opcode.LSTM, Opcode.CELL, Opcode.TRACED_LSTM, Opcode.TRACED_CELL), _lstm_weights),
    Opcode.DENSE: _dense_weights,
    **dict.fromkeys((Opcode.RECURRENT, Opcode.TRACED_RECURRENT), _recurrent_weights),
}
_RULES: Final[dict[Opcode, Any]] = {
    Opcode.HALT: _nothing,
    Opcode.LOAD: _load,
    Opcode.STORE: _store,
    Opcode.COPY: _copy,
    Opcode.EMBED: _embed,
    **dict.fromkeys((Opcode.LSTM, Opcode.TRACED_LSTM), _lstm),
    **dict.fromkeys((Opcode.CELL, Opcode.TRACED_CELL), _cell),
    Opcode.DENSE: _dense,
    Opcode.MAP: _map,
    Opcode.JOIN: _join,
    Opcode.SOFTMAX: _softmax,
    **dict.fromkeys((Opcode.RECURRENT, Opcode.TRACED_RECURRENT), _recurrent),
    Opcode.CONVOLUTION: _convolution,
    Opcode.REARRANGE: _rearrange,
    Opcode.REDUCE: _reduce,
    Opcode.MATMUL: _matmul,
    Opcode.CONVERT: _convert,
    Opcode.INTEGERS: _integers,
    Opcode.SELECT: _select,
    Opcode.PICK: _pick,
}
_TIMED: Final[dict[Opcode, IntEnum]] = {
    Opcode.LOAD: Copy.TIMED,
    Opcode.STORE: Copy.TIMED,
    Opcode.COPY: Copy.TIMED,
    Opcode.EMBED: Embed.TIMED,
    **dict.fromkeys((Opcode.LSTM, Opcode.CELL, Opcode.TRACED_LSTM, Opcode.TRACED_CELL), Lstm.TIMED),
    Opcode.DENSE: Dense.TIMED,
    Opcode.MAP: Map.TIMED,
    Opcode.JOIN: Join.TIMED,
    Opcode.SOFTMAX: Softmax.TIMED,
    **dict.fromkeys((Opcode.RECURRENT, Opcode.TRACED_RECURRENT), Recurrent.TIMED),
    Opcode.CONVOLUTION: Convolution.TIMED,
    Opcode.REARRANGE: Rearrange.TIMED,
    Opcode.REDUCE: Reduce.TIMED,
    Opcode.MATMUL: Matmul.TIMED,
    Opcode.CONVERT: Convert.TIMED,
    Opcode.INTEGERS: Integers.TIMED,
    Opcode.SELECT: Select.TIMED,
    Opcode.PICK: Pick.TIMED,
}
