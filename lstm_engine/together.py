"""How the slots of a pool keep their states and run: as the rows of one program, or each by a stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from . import snapshots
from .encoding import (
    END_WORDS,
    FORM_WORDS,
    MOST_AXES,
    NOT_FITTING,
    PIECE_WORDS,
    POOL_WORDS,
    STALE,
    TWICE,
    WORD_BYTES,
    Context,
    Form,
    port_word,
)
from .encoding import Pool as Word
from .encoding import Port as PortWord
from .engine import CONTIGUOUS, TINY, WRITABLE, Runner, array_form, begin
from .errors import InputError, LstmEngineError, listed
from .feeds import converted, fits, rows_of, shown
from .graph import Graph, TensorSpec
from .program.packing import aligned_empty
from .program.program import Port, Program, StateSlot
from .program.streaming import Streamable
from .slots import MOST_SLOTS, Records, Slots, stale, twice
from .state import State
from .stream import Stream, chunk_axis, step_batch, step_shape, time_axis

if TYPE_CHECKING:
    from .model import Model

#: Slots that run as the rows of one program (bench row `streams-h128-b256`: with more a row takes no less time).
ROWS: Final = 64

Arrays = Mapping[str, np.ndarray]


# --- the rows of one program -----------------------------------------------------------------------------------------


def joined(model: Model, graph: Graph, constants: Mapping[str, Any] | None, slots: Slots) -> Together | None:
    """The way of slots that run as the rows of one program; None where the model has none for several rows.

    Raises what streaming the model raises.
    """
    key = tuple(sorted(constants or ()))
    alone = model.streamable(graph, 1, key)
    if alone.frames is not None or alone.program.hosts:
        return None
    with suppress(LstmEngineError):
        several = model.streamable(graph, ROWS, key)
        pieces = _pieces(alone, several)
        if pieces is not None:
            return Together(model.fingerprint, alone, several.program, pieces, slots)
    return None


def _pieces(alone: Streamable, several: Streamable) -> list[tuple[int, int, int, int]] | None:
    """Where each piece of a slot's state lies: place in its record, in the arena, from row to row there, bytes.

    None where rows cannot be told apart: a port or a state that belongs to all of them, say.
    """
    program = several.program
    if several.frames is not None or program.hosts or not program.rows_apart:
        return None
    if any(len(port.batch) != 1 for port in (*program.inputs, *program.outputs)):
        return None
    records, found = {slot.key: slot for slot in alone.program.slots}, []
    if {slot.key for slot in program.slots} != set(records):
        return None
    for slot in program.slots:
        record = records[slot.key]
        if not _has_rows_of(slot, record, several.state_shapes, alone.state_shapes):
            return None
        for k in range(record.rows):
            places = _offset(record) + k * record.stride, _offset(slot) + k * ROWS * slot.stride
            found.append((*places, slot.stride, record.stride))
    return found


def _offset(slot: StateSlot) -> int:
    return slot.place.buffer.offset + slot.place.offset


def _has_rows_of(
    slot: StateSlot, record: StateSlot, shapes: Mapping[str, tuple[int, ...]], alone: Mapping[str, tuple[int, ...]]
) -> bool:
    """Whether ``slot`` is [k][ROWS] rows of what is [k] rows in a record of one stream."""
    if (slot.rows, slot.width, slot.dtype) != (record.rows * ROWS, record.width, record.dtype):
        return False
    if slot.elements is None or record.elements is None:
        return slot.elements is record.elements and record.rows == 1
    shape, single = shapes[slot.key[0]], alone[slot.key[0]]
    axes = [axis for axis, sizes in enumerate(zip(shape, single, strict=True)) if sizes == (ROWS, 1)]
    if len(axes) != 1 or any(a != b for axis, (a, b) in enumerate(zip(shape, single, strict=True)) if axis != axes[0]):
        return False
    at = list(np.unravel_index(record.elements[:, np.newaxis, :], single))
    at[axes[0]] = at[axes[0]] + np.arange(ROWS)[:, np.newaxis]
    expected = np.ravel_multi_index(tuple(np.broadcast_arrays(*at)), shape)
    return np.array_equal(slot.elements, expected.reshape(slot.elements.shape))


class Together:
    """Slots keep their states in records, laid out as the state of a stream of one row; a call runs ROWS at a time."""

    def __init__(
        self,
        fingerprint: str,
        alone: Streamable,
        program: Program,
        pieces: Sequence[tuple[int, int, int, int]],
        slots: Slots,
    ) -> None:
        from . import images

        self._fingerprint, self._alone, self._program, self._slots = fingerprint, alone, program, slots
        self.inputs = tuple(_slot_spec(port) for port in program.inputs)
        self.outputs = tuple(_slot_spec(port) for port in program.outputs)
        self._records = Records(alone.program.state_bytes, slots.capacity)
        self._runner = Runner(program)
        self._row_seconds = self._runner.step_seconds / ROWS
        self._entries = [images.slots_entry(nogil) for nogil in (False, True)]
        self._steps = [images.slots_step(nogil) for nogil in (False, True)]
        self._pieces = np.array(pieces, np.int64).reshape(-1, PIECE_WORDS)
        self._patches = int(self._runner.code.ctypes.data) + np.array(program.row_words, np.int64) * WORD_BYTES
        self._ends = np.zeros((len(program.inputs) + len(program.outputs), END_WORDS), np.int64)
        self._kept = np.empty((0, self._records.size), np.uint8)
        self._pool = aligned_empty((POOL_WORDS,), np.int64)
        self._pool[:] = 0
        self._address = int(self._pool.ctypes.data)
        self._forms = self._shortest_way()
        self.words = self._pool.data
        self._write(
            {
                Word.CONTEXT: self._runner.address,
                Word.ROWS: ROWS,
                Word.LIVE: ROWS,
                Word.PIECES: self._pieces.ctypes.data,
                Word.PIECE_COUNT: len(self._pieces),
                Word.PATCHES: self._patches.ctypes.data,
                Word.PATCH_COUNT: len(self._patches),
                Word.ENDS: self._ends.ctypes.data,
                Word.END_COUNT: len(self._ends),
                Word.RECORD_BYTES: self._records.size,
                Word.FORMS: self._forms.ctypes.data,
                Word.ROOM: 0 if program.fallible else MOST_SLOTS,
            }
        )
        self._point_at_slots()
        self._bind()

    def _write(self, words: Mapping[Word, int]) -> None:
        for word, value in words.items():
            self.words[word] = value

    def _bind(self) -> None:
        """What of the context no call changes: one step, rows without gaps, no state of its own to put back."""
        words = self._runner.words
        words[Context.TOTAL], words[Context.SHADOW] = 1, 0
        for k, port in enumerate((*self._program.inputs, *self._program.outputs)):
            size = prod(_row_shape(port)) * port.dtype.itemsize
            address = port_word(port.index, PortWord.ADDRESS)
            words[port_word(port.index, PortWord.STEP)], words[port_word(port.index, PortWord.ROW)] = 0, size
            self._ends[k] = self._runner.address + WORD_BYTES * address, 0, size

    def _shortest_way(self) -> np.ndarray:
        """Forms of the arrays that a step takes as they are; of none, where it has several inputs or outputs."""
        forms = np.zeros((3, FORM_WORDS), np.int64)
        forms[:, Form.HEADER] = object.__basicsize__
        program = self._program
        if len(program.inputs) == len(program.outputs) == 1 and not program.canaries:
            x, y = program.inputs[0], program.outputs[0]
            if max(len(_row_shape(x)), len(_row_shape(y))) < MOST_AXES:
                forms[0] = array_form(np.dtype(np.int64), (0,), None, CONTIGUOUS)
                forms[1] = array_form(x.dtype, (0, *_row_shape(x)), None, CONTIGUOUS)
                forms[2] = array_form(y.dtype, (0, *_row_shape(y)), None, WRITABLE)
        return forms

    def _point_at_slots(self) -> None:
        slots = self._slots
        self._write(
            {
                Word.RECORDS: self._records.addresses.ctypes.data,
                Word.OPENED: slots.opened.ctypes.data,
                Word.CALLS: slots.calls.ctypes.data,
                Word.SLOTS: slots.capacity,
            }
        )

    # --- slots -------------------------------------------------------------------------------------------------------

    def grow(self, more: int) -> None:
        """Room for more records."""
        self._records.grow(more)
        self._point_at_slots()

    def begin(self, slot: int) -> None:
        """Where the model starts."""
        begin(self._alone.program, self._records[slot])

    def wipe(self, slot: int) -> None:
        """Leave nothing of a stream."""
        self._records[slot][:] = 0

    def copy(self, source: int, target: int) -> None:
        """What one slot is, the other is too."""
        self._records[target][:] = self._records[source]

    def state(self, slot: int) -> State:
        """A snapshot."""
        return snapshots.taken(self._fingerprint, self._alone, self._records[slot])

    def restore(self, slot: int, state: State) -> None:
        """Continue from a snapshot."""
        snapshots.restore(state, self._fingerprint, self._alone, self._records[slot])

    # --- running -----------------------------------------------------------------------------------------------------

    def step_at_once(self, slots: np.ndarray, x: Any, out: np.ndarray) -> bool:
        """One step of each, from arrays to an array, if they are as machine code takes them; else nothing is done."""
        seconds = len(slots) * self._row_seconds
        if seconds >= TINY:
            self._runner.expect(seconds)
        fault = self._steps[seconds >= TINY](self._address, slots, x, out)
        if fault == NOT_FITTING:
            return False
        if fault:
            self._judge(fault, slots)
        return True

    def step(self, handles: np.ndarray, feeds: Arrays, targets: Arrays | None) -> Arrays:
        """One step of each."""
        n = len(handles)
        results = targets or {spec.name: np.empty((n, *known(spec)), spec.dtype) for spec in self.outputs}
        self._run(handles, None, n, feeds, results)
        return results

    def feed(self, handles: np.ndarray, chunks: Sequence[Mapping[str, Any]]) -> list[Arrays]:
        """All steps of each, the longest first: those that run at a time lie one after the other."""
        program = self._program
        rows, lengths = _chunk_rows(program, self.inputs, chunks)
        order = np.argsort(-lengths, kind="stable")
        packed = _packing(lengths, order)
        feeds = {name: array[packed] for name, array in rows.items()}
        made = {spec.name: np.empty((len(packed), *known(spec)), spec.dtype) for spec in self.outputs}
        self._run(np.ascontiguousarray(handles[order]), np.ascontiguousarray(lengths[order]), len(packed), feeds, made)
        results = {}
        for name, array in made.items():
            results[name] = np.empty_like(array)
            results[name][packed] = array
        ends = np.cumsum(lengths)
        return [
            {port.name: _along(program, port, results[port.name][end - length : end]) for port in program.outputs}
            for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)
        ]

    def _run(self, handles: np.ndarray, lengths: np.ndarray | None, steps: int, feeds: Arrays, results: Arrays) -> None:
        """``steps`` of all handles together, from and to arrays of as many rows."""
        n, runner, words = len(handles), self._runner, self.words
        if self._program.fallible and len(self._kept) < n:
            self._kept = np.empty((n, self._records.size), np.uint8)
            words[Word.KEPT], words[Word.ROOM] = self._kept.ctypes.data, n
        arrays = [feeds[port.name] for port in self._program.inputs]
        arrays += [results[port.name] for port in self._program.outputs]
        for k, array in enumerate(arrays):
            self._ends[k, 1] = array.ctypes.data
        words[Word.HANDLES], words[Word.COUNT] = handles.ctypes.data, n
        words[Word.LENGTHS] = 0 if lengths is None else lengths.ctypes.data
        words[Word.CALL] += 1
        seconds = steps * self._row_seconds
        runner.expect(seconds)
        fault = self._entries[seconds >= TINY](self._address)
        if fault:
            self._judge(fault, handles)
        runner.check()

    def _judge(self, fault: int, handles: np.ndarray) -> None:
        """Raise the error of a fault; one that is none wakes helpers."""
        if fault in (STALE, TWICE):
            raise (stale if fault == STALE else twice)(handles[self.words[Word.BROKEN]])
        if not self._runner.done(fault):
            raise self._runner.fault(fault)


def _chunk_rows(
    program: Program, specs: Sequence[TensorSpec], chunks: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Each input's rows of all steps, chunk after chunk; and the steps of each chunk.

    Raises InputError listing what does not fit.
    """
    faults: list[str] = []
    found: dict[str, list[np.ndarray]] = {spec.name: [] for spec in specs}
    lengths = []
    for i, chunk in enumerate(chunks):
        arrays, counts = {}, {}
        for spec, port in zip(specs, program.inputs, strict=True):
            axis = _slot_axis(port, time_axis(port))
            wanted = _with_steps(spec.shape or (), axis)
            if chunk.get(spec.name) is None:
                continue
            try:
                array = converted(spec, chunk[spec.name])
            except InputError as fault:
                faults.append(f"chunk {i}: {fault}")
                continue
            if not fits(wanted, array.shape):
                faults.append(f"chunk {i}, '{spec}': expected shape {shown(wanted)}, got {list(array.shape)}")
                continue
            arrays[spec.name] = array[np.newaxis] if axis is None else np.moveaxis(array, axis, 0)
            if axis is not None:
                counts[spec.name] = array.shape[axis]
        if len(set(counts.values())) > 1:
            faults.append(f"chunk {i}: inputs of different lengths: {counts}")
        steps = next(iter(counts.values()), 1)
        lengths.append(steps)
        for spec in specs:
            rows = arrays.get(spec.name, np.zeros((1, *known(spec)), spec.dtype))
            found[spec.name].append(rows if spec.name in counts else np.repeat(rows, steps, axis=0))
    if faults:
        raise InputError(listed("feed", faults))
    empty = {spec.name: np.zeros((0, *known(spec)), spec.dtype) for spec in specs}
    return {name: np.concatenate([empty[name], *arrays]) for name, arrays in found.items()}, np.array(lengths, np.int64)


def _packing(lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The rows of all steps, numbered chunk after chunk, as they run: ROWS chunks of ``order``, step by step."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    begins = np.cumsum(lengths) - lengths
    chunk = np.repeat(np.arange(len(lengths)), lengths)
    step = np.arange(len(chunk)) - begins[chunk]
    return np.lexsort((place[chunk], step, place[chunk] // ROWS))


def _row_shape(port: Port) -> tuple[int, ...]:
    """One step of one slot."""
    batch = step_batch(port)
    return tuple(size for axis, size in enumerate(step_shape(port)) if axis not in batch)


def _slot_axis(port: Port, axis: int | None) -> int | None:
    """Where an axis of steps is once the batch axis is gone."""
    return None if axis is None else axis - sum(1 for each in step_batch(port) if each < axis)


def _with_steps(shape: tuple[Any, ...], axis: int | None) -> tuple[Any, ...]:
    return shape if axis is None else (*shape[:axis], None, *shape[axis:])


def _along(program: Program, port: Port, rows: np.ndarray) -> np.ndarray:
    """A slot's results, steps first, as its stream would give them: along the time axis, or of the last step alone."""
    axis = _slot_axis(port, chunk_axis(program, port))
    if axis is None:
        return rows[-1].copy() if len(rows) else np.zeros(rows.shape[1:], rows.dtype)
    return np.ascontiguousarray(np.moveaxis(rows, 0, axis))


def _slot_spec(port: Port) -> TensorSpec:
    return TensorSpec(port.name, port.dtype, _row_shape(port), port.optional)


def known(spec: TensorSpec) -> tuple[int, ...]:
    """A shape of which every size is known."""
    return tuple(int(size) for size in spec.shape or ())  # type: ignore[arg-type]


# --- a stream for each -----------------------------------------------------------------------------------------------


class OneByOne:
    """Each slot is a stream of its own: for models whose rows cannot run as one program."""

    def __init__(self, model: Model, constants: Mapping[str, Any] | None, slots: Slots) -> None:
        self._new = Stream(model, 1, constants)
        self._slots = slots
        self._streams: dict[int, Stream] = {}
        self._lean = any((spec.shape or ())[:1] == (1,) for spec in self._new.inputs)
        self.inputs = tuple(self._of_a_slot(spec) for spec in self._new.inputs)
        self.outputs = tuple(self._of_a_slot(spec) for spec in self._new.outputs)

    def _of_a_slot(self, spec: TensorSpec) -> TensorSpec:
        shape = spec.shape or ()
        lean = shape[1:] if self._lean and shape[:1] == (1,) else shape
        return TensorSpec(spec.name, spec.dtype, lean, spec.optional)

    def grow(self, more: int) -> None:
        """Streams are made as slots are opened."""

    def step_at_once(self, slots: np.ndarray, x: Any, out: np.ndarray) -> bool:
        """There is no shorter way."""
        return False

    def begin(self, slot: int) -> None:
        """Where the model starts."""
        self._streams[slot] = self._new.fork()

    def wipe(self, slot: int) -> None:
        """Leave nothing of a stream."""
        self._streams.pop(slot).reset()

    def copy(self, source: int, target: int) -> None:
        """What one slot is, the other is too."""
        self._streams[target] = self._streams[source].fork()

    def state(self, slot: int) -> State:
        """A snapshot."""
        return self._streams[slot].state

    def restore(self, slot: int, state: State) -> None:
        """Continue from a snapshot."""
        self._streams[slot].state = state

    def step(self, handles: np.ndarray, feeds: Arrays, targets: Arrays | None) -> Arrays:
        """One step of each."""
        rows = [{name: array[i] for name, array in feeds.items()} for i in range(len(handles))]
        made = self._each(handles, [partial(_stepped, x) for x in rows])
        results = {spec.name: self._stacked(spec, made) for spec in self.outputs}
        for name, target in (targets or {}).items():
            target[...] = results[name]
        return results

    def _stacked(self, spec: TensorSpec, made: Sequence[Any]) -> np.ndarray:
        """A row for each slot."""
        if not made:
            return rows_of(spec, None, 0)
        return np.stack([self._named(each)[spec.name] for each in made])

    def feed(self, handles: np.ndarray, chunks: Sequence[Mapping[str, Any]]) -> list[Arrays]:
        """All steps of each."""
        made = self._each(handles, [partial(_fed, chunk) for chunk in chunks])
        return [{name: self._lean_chunk(name, array) for name, array in self._named(each).items()} for each in made]

    def _each(self, handles: np.ndarray, calls: Sequence[Callable[[Stream], Any]]) -> list[Any]:
        """A call of each stream; all of them, or none."""
        streams = [self._streams[slot] for slot in self._slots.each(handles)]
        before = [stream.state for stream in streams]
        try:
            return [call(stream) for stream, call in zip(streams, calls, strict=True)]
        except BaseException:
            for stream, state in zip(streams, before, strict=True):
                stream.state = state
            raise

    def _named(self, made: Any) -> Mapping[str, np.ndarray]:
        return made if isinstance(made, Mapping) else {self.outputs[0].name: made}

    def _lean_chunk(self, name: str, array: np.ndarray) -> np.ndarray:
        """A stream's results of several steps without its batch axis, as those of one step are."""
        axis, own = self._new.time_axes[name], next(spec for spec in self._new.outputs if spec.name == name)
        if not self._lean or (own.shape or ())[:1] != (1,):
            return array
        return array.squeeze(1 if axis == 0 else 0)


def _stepped(x: Arrays, stream: Stream) -> Any:
    return stream.step(x)


def _fed(chunk: Mapping[str, Any], stream: Stream) -> Any:
    return stream.feed(chunk)


Way: TypeAlias = "Together | OneByOne"
