"""Program: a graph lowered for one batch size on this machine, as a frozen, printable value."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np

from ..encoding import WORDS, Lstm, Opcode, constant
from ..graph import Node
from ..pages.notes import note
from ..passes.axes import Axes
from .arena import Buffer


@dataclass(frozen=True)
class Place:
    """A byte of a buffer in the arena."""

    buffer: Buffer
    offset: int = 0

    def shifted(self, count: int) -> Place:
        """``count`` bytes further on."""
        return Place(self.buffer, self.offset + count)


@dataclass(frozen=True)
class Pinned:
    """A byte of a packed constant, outside the arena."""

    array: np.ndarray
    offset: int = 0

    def shifted(self, count: int) -> Pinned:
        """``count`` bytes further on."""
        return Pinned(self.array, self.offset + count)

    @property
    def address(self) -> int:
        """Absolute address (the array is kept alive by the program)."""
        return int(self.array.ctypes.data) + self.offset


Field: TypeAlias = int | Place | Pinned


@dataclass(frozen=True)
class Rows:
    """A tensor in memory: [T if timed][B if batched][together][width], rows ``stride`` bytes apart."""

    place: Place | Pinned
    stride: int
    timed: bool
    batched: bool
    width: int
    dtype: np.dtype[Any]
    together: int = 1  # vectors within what is one row of the tensor's form

    def columns(self, first: int, width: int) -> Rows:
        """The view of some neighbouring columns."""
        place = self.place.shifted(first * self.dtype.itemsize)
        return Rows(place, self.stride, self.timed, self.batched, width, self.dtype, self.together)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row without padding."""
        return self.width * self.dtype.itemsize


class RowCount(int):
    """A field that says how many rows of the batch an instruction runs over; fewer may be run, the first ones."""


@dataclass(frozen=True)
class Instruction:
    """One instruction before it has an address: fields are numbers or places."""

    opcode: Opcode
    fields: Mapping[IntEnum, Field]
    node: str  # label of the graph node it comes from
    note: str  # shapes and kernel variant, for people
    weight_bytes: int = 0
    operations: int = 0  # floating-point operations a step

    @property
    def parts(self) -> int:
        """Shares that it is cut into, for helpers and the caller."""
        return int(self.fields.get(Lstm.PARTS, 1)) if self.opcode in (Opcode.LSTM, Opcode.CELL) else 1  # type: ignore[arg-type]

    def encoded(self, place_of: Callable[[Pinned], int] = lambda pinned: pinned.address) -> np.ndarray:
        """The instruction's words, once all buffers have their offsets; ``place_of``: of a constant, its address."""
        words = np.zeros(WORDS, np.int64)
        words[0] = self.opcode
        for index, value in self.fields.items():
            if isinstance(value, Place):
                words[index] = value.buffer.offset + value.offset
            elif isinstance(value, Pinned):
                words[index] = constant(place_of(value))
            else:
                words[index] = value
        return words


@dataclass(frozen=True)
class HostOperand:
    """A tensor as NumPy sees it between two stretches of machine code."""

    rows: Rows
    axes: Axes


@dataclass(frozen=True)
class HostCall:
    """An operator without an instruction: it runs through its NumPy definition."""

    node: Node
    inputs: tuple[HostOperand | np.ndarray | None, ...]
    outputs: tuple[HostOperand | None, ...]
    reason: str


@dataclass(frozen=True)
class Stretch:
    """A run of instructions, HALT at its end: where it begins in the code."""

    first: int


Stage: TypeAlias = Stretch | HostCall


@dataclass(frozen=True)
class Port:
    """One array of the caller: its place among the ports and how its axes lie in rows.

    ``shape``: logical sizes, the time axis's being that of lowering; ``time``, ``batch``: those axes' indices (batch:
    all axes that make up the batch, in row order); ``order``: logical axes in the order of memory (time, batch, width);
    ``stepped``: it advances with the steps of a call; ``optional``: it may be left out and is then zeros.
    """

    name: str
    index: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    time: int | None
    batch: tuple[int, ...]
    order: tuple[int, ...]
    stepped: bool
    optional: bool = False


@dataclass(frozen=True)
class StateSlot:
    """One recurrent state in the arena: rows [B][width] from ``place`` on, and what a reset puts there."""

    key: tuple[str, str, int]  # (node or input, 'h', 'c' or '', direction)
    place: Place
    stride: int
    rows: int
    width: int
    dtype: np.dtype[Any]
    initial: np.ndarray | None  # [B, width]; None: zeros
    elements: np.ndarray | None = None  # places in the flattened array of the file; None: a recurrent node knows


@dataclass(frozen=True)
class Traced:
    """What one direction of a recurrent layer writes down: the output that it comes by, and how it lies there.

    ``output``: rows [T if timed][B if batched] of [units/16][parts][16] (``blockwise``), or of [parts][units padded to
    whole vectors]. ``backwards``: it reads from the last step to the first. ``functions``: of its gates, in ONNX's
    order.
    """

    layer: str
    op: str
    output: str
    parts: tuple[str, ...]
    units: int
    timed: bool
    batched: bool
    blockwise: bool
    backwards: bool
    functions: tuple[str, ...]


@dataclass(frozen=True)
class Means:
    """What programs of a model may use: the precision its weights are held in, and at most so many threads."""

    precision: str
    threads: int = 1


@dataclass(frozen=True)
class Program:
    """Everything the executor needs but an arena.

    ``block``: steps one run of the code has room for; ``streamed``: state outlives a call; ``causal``: any number
    of steps runs block by block; ``fallible``: a call may fail half-way (a token out of range); ``rows_apart``: no
    tensor has the batch among the elements of a row; ``row_words``: the words of the code that count batch rows.
    """

    precision: str  # of the weights
    parts: int  # shares that its largest steps are cut into, one of them the caller's own
    batch: int
    block: int
    causal: bool
    streamed: bool
    stages: tuple[Stage, ...]
    code: np.ndarray  # int64[n, WORDS]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    slots: tuple[StateSlot, ...]
    state_bytes: int
    shadow: int
    arena_bytes: int
    canaries: tuple[int, ...]
    fallible: bool
    rows_apart: bool
    row_words: tuple[int, ...]
    traces: tuple[Traced, ...]
    time_sizes: Mapping[int, int]  # sizes of the atoms at lowering
    time: tuple[int, ...]
    batch_atoms: tuple[int, ...]
    carried: int  # elements that the file holds: what control flow may do is in proportion to it
    listing: tuple[Instruction, ...] = field(repr=False)

    @property
    def hosts(self) -> tuple[HostCall, ...]:
        """The host calls among the stages."""
        return tuple(stage for stage in self.stages if isinstance(stage, HostCall))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = [(index, part.opcode.name, part.node, part.note) for index, part in enumerate(self.listing)]
        sizes = f"batch {self.batch}, {self.arena_bytes:,} bytes of arena, {self.state_bytes:,} of state"
        hosts = f", {len(self.hosts)} host calls" if self.hosts else ""
        return note(f"Program in {self.precision}: {sizes}{hosts}", ("#", "opcode", "node", "what"), rows)

    def structure(self) -> bytes:
        """Digest of all that may not depend on the number of steps a causal program was lowered at."""
        numbers: dict[int, int] = {}
        state = hashlib.sha256()
        for instruction in self.listing:
            state.update(int(instruction.opcode).to_bytes(2, "little"))
            for index, value in sorted(instruction.fields.items()):
                state.update(repr((int(index), _portable(value, numbers))).encode())
        for stage in self.stages:
            state.update(_host_structure(stage, numbers) if isinstance(stage, HostCall) else b"|")
        return state.digest()


def _portable(value: Field, numbers: dict[int, int]) -> tuple[Any, ...]:
    if isinstance(value, Place):
        return ("arena", numbers.setdefault(id(value.buffer), len(numbers)), value.offset)
    if isinstance(value, Pinned):
        return ("constant", hashlib.sha256(value.array.tobytes()).hexdigest(), value.offset)
    return ("number", value)


def _host_structure(call: HostCall, numbers: dict[int, int]) -> bytes:
    parts: list[Any] = [call.node.op, sorted((k, repr(v)) for k, v in call.node.attributes.items())]
    for operand in (*call.inputs, *call.outputs):
        if isinstance(operand, np.ndarray):
            parts.append((operand.shape, operand.tobytes()))
        elif operand is not None:
            parts.append(_portable(operand.rows.place, numbers))
    return repr(parts).encode()
