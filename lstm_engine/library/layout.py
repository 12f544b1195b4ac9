"""Where everything of an exported program lies: its instance, its constants, its states as bytes.

An instance is one piece of the caller's memory: the context (encoding.Context), then the arena. The constants are one
piece too, in the object or in a file of their own. Both begin at a cache line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np

from ..encoding import INSTRUCTION_BYTES, PORT_WORDS, WORD_BYTES, Context, Opcode
from ..encoding import Port as PortWord
from ..engine import Layout as Rows
from ..engine import begin
from ..program.arena import aligned
from ..program.program import Instruction, Pinned, Port
from ..program.streaming import Streamable
from ..snapshots import cells, taken
from ..state import DIGEST_BYTES, DIGEST_PLACE, State
from ..stream import chunk_axis, step_batch, step_shape, time_axis
from .translation import Spot

CODE, CONTEXT, ARENA, CONSTANTS = "code", "context", "arena", "constants"
#: Weights that fit a first-level cache are read forwards at every step, and not asked for ahead.
SMALL: Final = 16 << 10
#: Words that are always zero: a library has no threads.
_NEVER: Final = (Context.START, Context.HELPERS, Context.HELPER_COUNT, Context.BELL, Context.CLAIMED)


@dataclass(frozen=True)
class End:
    """One array of the caller: what a step of it is.

    ``axis``: where Python's chunks have their steps, None for what does not go from step to step; ``optional``: zeros
    stand for it where the network is not given it.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    place: int  # bytes from the start of the context to the word that holds its address
    step: int  # bytes from what a call takes (a step, or a frame) to what the next takes
    axis: int | None
    optional: bool

    @property
    def count(self) -> int:
        """Elements."""
        return prod(self.shape)


class Layout:
    """A program of a stream, laid out for a library.

    ``apart``: the constants come in a file of their own; ``framed``: a call of step() is one of the whole file, of
    ``steps`` steps of the program; ``ends``: inputs, then outputs.
    """

    def __init__(self, lowered: Streamable, fingerprint: str, apart: bool) -> None:
        program = lowered.program
        self.program = program
        self.batch = lowered.batch
        self.fingerprint = fingerprint
        self.framed = lowered.frames is not None
        self.steps = prod(program.time_sizes[atom] for atom in program.time) if self.framed else 1
        self.apart = apart
        self.constants = Constants()
        self._words = np.stack([each.encoded(self.constants.offset) for each in self.listing]).reshape(-1)
        layouts = {port.name: self._rows(port) for port in (*program.inputs, *program.outputs)}
        self.inputs = tuple(self._end(port, time_axis(port)) for port in program.inputs)
        self.outputs = tuple(self._end(port, chunk_axis(program, port)) for port in program.outputs)
        self.context_bytes = aligned((int(Context.PORTS) + PORT_WORDS * max(2, len(layouts))) * WORD_BYTES)
        self.saved = self.context_bytes + aligned(program.arena_bytes)
        keeps = self.framed and program.fallible
        self.instance_bytes = self.saved + (aligned(program.state_bytes) if keeps else 0)
        self.weight_bytes = self.constants.size
        self._known = self._known_words(layouts)
        self.state = StateBytes(lowered, fingerprint)
        beginning = np.zeros(aligned(program.state_bytes), np.uint8)
        begin(program, beginning)
        self.beginning = self.constants.add(beginning) if beginning.any() else None
        self.prefix = self.constants.add(np.frombuffer(self.state.prefix, np.uint8))
        self.head = self.constants.add(np.frombuffer(self.state.head, np.uint8))
        self.pieces = self.constants.add(self.state.pieces.reshape(-1).view(np.uint8))

    @property
    def listing(self) -> Sequence[Instruction]:
        """The instructions."""
        return [each for each in self.program.listing if each.opcode != Opcode.HALT]

    @property
    def small(self) -> bool:
        """Whether the weights stay in a first-level cache by themselves."""
        return self.weight_bytes <= SMALL

    @property
    def ends(self) -> tuple[End, ...]:
        """Inputs, then outputs."""
        return self.inputs + self.outputs

    def known(self, spot: Spot) -> int | Spot | None:
        """The word at a spot, if it is always the same."""
        if spot.space == CODE:
            return int(self._words[spot.offset // WORD_BYTES])
        if spot.space == CONTEXT:
            return self._known.get(spot.offset)
        return None

    def spot_of(self, index: int) -> Spot:
        """An instruction."""
        return Spot(CODE, index * INSTRUCTION_BYTES)

    def _known_words(self, layouts: Mapping[str, Rows]) -> dict[int, int | Spot]:
        program = self.program
        words: dict[int, int | Spot] = {
            **dict.fromkeys(map(int, _NEVER), 0),
            Context.CODE: 1,
            Context.ARENA: Spot(ARENA, 0),
            Context.BLOCK: program.block,
            Context.STATE_BYTES: program.state_bytes,
            Context.SHADOW: program.shadow,
        }
        if not self.apart:
            words[Context.CONSTANTS] = Spot(CONSTANTS, 0)
        if self.framed:
            words[Context.TOTAL] = self.steps
        if program.block == 1:
            words[Context.STEPS] = 1
        if self.small:
            words[Context.PARITY] = 0
        for port in (*program.inputs, *program.outputs):
            at, rows = int(Context.PORTS) + PORT_WORDS * port.index, layouts[port.name]
            words[at + PortWord.STEP], words[at + PortWord.ROW] = rows.step, rows.row
        return {int(word) * WORD_BYTES: value for word, value in words.items()}

    def _rows(self, port: Port) -> Rows:
        """How an array lies: a frame as the file has it, or steps one behind the other."""
        if self.framed:
            return Rows.of(port.shape, port.dtype.itemsize, port.time, port.batch)
        shape, batch = step_shape(port), step_batch(port)
        if not port.stepped:
            return Rows.of(shape, port.dtype.itemsize, None, batch)
        return Rows.of((1, *shape), port.dtype.itemsize, 0, tuple(axis + 1 for axis in batch))

    def _end(self, port: Port, axis: int | None) -> End:
        shape = port.shape if self.framed else step_shape(port)
        place = (int(Context.PORTS) + PORT_WORDS * port.index) * WORD_BYTES
        size = prod(shape) * port.dtype.itemsize
        step = size if self.framed or port.stepped else 0
        return End(port.name, port.dtype, shape, place, step, 0 if self.framed else axis, port.optional)

    @property
    def copied(self) -> list[str]:
        """Arrays whose rows are not in one piece: a library takes them as they lie, and cannot."""
        return [
            port.name for port in (*self.program.inputs, *self.program.outputs) if self._rows(port).order is not None
        ]


class Constants:
    """All that a program reads and never writes, packed into one array of bytes."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._places: dict[int, int] = {}
        self.size = 0

    def offset(self, pinned: Pinned) -> int:
        """Where a constant lies."""
        key = id(pinned.array)
        if key not in self._places:
            self._places[key] = self.add(np.ascontiguousarray(pinned.array).reshape(-1).view(np.uint8))
        return self._places[key] + pinned.offset

    def add(self, content: np.ndarray) -> int:
        """Where new bytes lie."""
        place = self.size
        self._parts.append(content)
        self.size += aligned(content.size)
        return place

    def packed(self) -> bytes:
        """All bytes; what is read beyond an array's end is there too."""
        return b"".join(part.tobytes().ljust(aligned(part.size), b"\0") for part in self._parts)


class StateBytes:
    """The form of a state's bytes (state.py) that this stream has: all but the digest and the values is fixed.

    ``prefix``, ``head``: the bytes before the digest, and those behind it up to the values; ``count``: bytes of values;
    ``truths``: where among them truth values lie, and how many.
    """

    def __init__(self, lowered: Streamable, fingerprint: str) -> None:
        memory = np.zeros(lowered.program.state_bytes, np.uint8)
        begin(lowered.program, memory)
        example = taken(fingerprint, lowered, memory)
        written = example.to_bytes()
        self.bytes = len(written)
        self.count = sum(array.nbytes for array in example.arrays.values())
        self.prefix, self.head = written[:DIGEST_PLACE], written[DIGEST_PLACE + DIGEST_BYTES : self.bytes - self.count]
        self.pieces = _pieces(lowered)
        self.truths = [*_truths(example)]


def _truths(state: State) -> Iterator[tuple[int, int]]:
    begun = 0
    for array in state.arrays.values():
        if array.dtype == bool:
            yield begun, array.size
        begun += array.nbytes


def _pieces(lowered: Streamable) -> np.ndarray:
    """[n, 3]: where bytes of a state lie among the values, where in the arena, how many they are."""
    found, begun = [], 0
    for parts in cells(lowered).values():
        item = parts[0][0].dtype.itemsize
        for slot, elements in parts:
            rows, columns = np.indices(elements.shape)
            places = slot.place.buffer.offset + slot.place.offset + rows * slot.stride + columns * item
            values = begun + elements * item
            found.append(np.stack([values.ravel(), places.ravel(), np.full(elements.size, item)], axis=1))
        begun += sum(elements.size for _, elements in parts) * item
    if not found:
        return np.zeros((0, 3), np.int64)
    pieces: np.ndarray = np.concatenate(found).astype(np.int64)
    pieces = pieces[np.argsort(pieces[:, 0], kind="stable")]
    gaps = (np.diff(pieces[:, :2], axis=0) != pieces[:-1, 2:]).any(axis=1)
    first = np.concatenate([[0], np.flatnonzero(gaps) + 1])
    return np.stack([pieces[first, 0], pieces[first, 1], np.add.reduceat(pieces[:, 2], first)], axis=1)
