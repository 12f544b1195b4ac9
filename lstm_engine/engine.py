"""Joins a Program and the executor: an arena, a context, and the call between them."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np

from .encoding import ABSENT, BUSY, FORM_WORDS, INSTRUCTION_BYTES, PORT_WORDS, RUNG, Context, Form, port_word
from .encoding import Port as PortWord
from .errors import InputError, LstmEngineError, StateError
from .graph import Node
from .passes.shapes import measured
from .program.arena import CANARY_BYTES
from .program.packing import aligned_empty
from .program.program import HostCall, HostOperand, Place, Port, Program, Rows, StateSlot, Stretch
from .reference import Work, bind, evaluate, is_control
from .reference.control import bodies as bodies_of
from .reference.control import units_of
from .workers import Workers, shared

#: Programs estimated below this many seconds keep the interpreter lock: giving it up beside a busy Python thread
#: stalls a step by milliseconds, keeping it costs others less than their own switch interval.
TINY: Final = 5e-6
BYTES_PER_SECOND: Final = 60e9  # read bandwidth of a second-level cache, roughly
OPERATIONS_PER_SECOND: Final = 40e9
CANARY: Final = 0xA5
CONTIGUOUS: Final = 0x0001  # NumPy's array flags
WRITABLE: Final = 0x0401  # and C-contiguous
IN_USE: Final = "this stream is in use by another caller; a stream serves one at a time (fork() it, or open another)"


def _left_alone(workers: Workers, owner: int, memory: Any) -> None:
    """Memory that a late helper may still read is freed when it is through."""
    workers.quiesce(owner)
    del memory


def array_form(dtype: np.dtype[Any], shape: tuple[int, ...], lean: tuple[int, ...] | None, flags: int) -> np.ndarray:
    """The words of encoding.Form for arrays of these shapes."""
    words = np.zeros(FORM_WORDS, np.int64)
    words[Form.HEADER] = object.__basicsize__
    words[Form.TYPE], words[Form.DTYPE], words[Form.FLAGS] = id(np.ndarray), id(dtype), flags
    words[Form.AXES] = len(shape)
    words[Form.SIZES : Form.SIZES + len(shape)] = shape
    words[Form.LEAN_AXES] = -1 if lean is None else len(lean)
    if lean is not None:
        words[Form.LEAN_SIZES : Form.LEAN_SIZES + len(lean)] = lean
    return words


def step_seconds(program: Program) -> float:
    """Rough time of one step."""
    weights = sum(i.weight_bytes for i in program.listing)
    operations = sum(i.operations for i in program.listing)
    return max(weights / BYTES_PER_SECOND, operations / OPERATIONS_PER_SECOND)


def slot_rows(memory: np.ndarray, slot: StateSlot) -> np.ndarray:
    """View [rows, width] of a state in memory that begins as an arena does."""
    strides = (slot.stride, slot.dtype.itemsize)
    offset = slot.place.buffer.offset + slot.place.offset
    view: np.ndarray = np.ndarray((slot.rows, slot.width), slot.dtype, memory.data, offset, strides)
    return view


def begin(program: Program, memory: np.ndarray) -> None:
    """Put every state in ``memory``, uint8 as long as the program's state at least, to where the model starts."""
    memory[: program.state_bytes] = 0
    for slot in program.slots:
        if slot.initial is not None:
            slot_rows(memory, slot)[...] = slot.initial


class Runner:
    """One arena and the context that runs a program over it; serves one caller at a time."""

    def __init__(self, program: Program) -> None:
        from . import images

        self.program = program
        self.arena = aligned_empty((program.arena_bytes,), np.uint8)
        self.arena[:] = 0
        self.code = aligned_empty(program.code.shape, np.int64)
        self.code[...] = program.code
        ports = max(2, len(program.inputs) + len(program.outputs))
        self.context = aligned_empty((int(Context.PORTS) + PORT_WORDS * ports,), np.int64)
        self.context[:] = 0
        words = {
            Context.CODE: self.code.ctypes.data,
            Context.ARENA: self.arena.ctypes.data,
            Context.EXECUTOR: images.executor(program.precision, set(program.code[:, 0].tolist())).address("call"),
            Context.BLOCK: program.block,
            Context.STATE_BYTES: program.state_bytes,
            Context.SHADOW: program.shadow,
            **self._helped(program),
        }
        for word, value in words.items():
            self.context[word] = value
        self.forms = np.zeros(2 * FORM_WORDS, np.int64)
        self.forms[Form.HEADER] = object.__basicsize__
        self.context[Context.FORMS] = self.forms.ctypes.data
        self.words = self.context.data  # several times faster to write to than the array
        self.address = int(self.context.ctypes.data)
        self.step_seconds = step_seconds(program)
        self._holding, self._releasing = (images.context_entry(nogil) for nogil in (False, True))
        self._acquire, self._give_up = images.guards()
        self._prepared: dict[int, list[HostRun | None]] = {}
        self._controls = [call.node for call in program.hosts if is_control(call.node)]
        for at in program.canaries:
            self.arena[at : at + CANARY_BYTES] = CANARY
        self.reset()

    def _helped(self, program: Program) -> dict[Context, int]:
        """Words that name the threads which help with a program's steps."""
        workers = shared() if program.parts > 1 else None
        blocks = workers.blocks(program.parts - 1) if workers else ()
        self._workers, self._helpers = workers if blocks else None, len(blocks)
        if self._workers is None:
            return {}
        memory = (self.arena, self.code, self.context, program)
        weakref.finalize(self, _left_alone, self._workers, int(self.context.ctypes.data), memory).atexit = False
        return {
            Context.HELPERS: blocks[0],
            Context.HELPER_COUNT: len(blocks),
            Context.BELL: self._workers.bell_address,
        }

    # --- state -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Put every state back to where the model starts."""
        begin(self.program, self.arena)

    # --- calls -------------------------------------------------------------------------------------------------------

    def bind(self, end: Attachment, array: np.ndarray) -> np.ndarray:
        """Point a port at an array; returns what has to stay alive: a copy, if the array does not lie as it should."""
        if end.plain and end.binder(self.address, *end.words, array):
            return array
        array = end.layout.arranged(array)
        end.binder(self.address, *end.words, array)
        return array

    def bind_new(self, end: Attachment) -> np.ndarray:
        """Point an output port at a new array, which settled() of its layout turns into the result."""
        array = np.empty(end.shape, end.dtype)
        end.binder(self.address, *end.words, array)
        return array

    def unbind(self, port: Port) -> None:
        """An output nobody asks for."""
        self.words[port_word(port.index, PortWord.ADDRESS)] = 0

    @property
    def tiny(self) -> bool:
        """Whether a step is too short to give up the interpreter lock for."""
        return self.step_seconds < TINY

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the arena to oneself.

        Raises StateError if another caller has it: nobody waits.
        """
        if not self._acquire(self.address):
            raise StateError(IN_USE)
        try:
            yield
        finally:
            self._give_up(self.address)

    def enter(self, steps: int) -> int:
        """Run what the context says; the interpreter lock is given up unless the call is too short for that."""
        entry = self._holding if steps * self.step_seconds < TINY else self._releasing
        return int(entry(self.address))

    def done(self, code: int) -> bool:
        """Whether a call with this code was done after all; the helpers it could have used are woken then."""
        if code == RUNG and self._workers is not None:
            self._workers.answer()
        return code == RUNG

    def run(self, steps: int, work: Work | None = None) -> None:
        """All steps of a call, through ports bound before; ``work``: what its control flow may still spend.

        Raises InputError for a token or length out of range; a streamed program's state is then as it was.
        """
        if self.program.hosts:
            self._run_stages(steps, work or self._work(steps))
        else:
            self.words[Context.TOTAL] = steps
            if steps > 1:
                self.expect(steps * self.step_seconds)
            fault = self.enter(steps)
            if fault and not self.done(fault):
                raise self.fault(fault)
        self.check()

    def expect(self, seconds: float) -> None:
        """A call begins that will take about so long: helpers that are of use are woken now, not at its end."""
        if self._workers is not None:
            self._workers.wake(self._helpers, seconds)

    def _work(self, steps: int) -> Work | None:
        """The budget of one call, where there is control flow that needs one."""
        if not self._controls:
            return None
        bodies = [body for node in self._controls for body in bodies_of(node)]
        shapes = [[steps if k == port.time else n for k, n in enumerate(port.shape)] for port in self.program.inputs]
        return Work(sum(map(prod, shapes)), self.program.carried, sum(map(units_of, bodies)), measured)

    def _run_stages(self, steps: int, work: Work | None) -> None:
        """Host calls in between: Python walks the blocks."""
        program, words = self.program, self.words
        before = self.arena[: program.state_bytes].copy()
        words[Context.SHADOW] = 0
        done = 0
        try:
            while done < steps:
                n = min(program.block, steps - done)
                words[Context.TOTAL], words[Context.START], words[Context.STEPS] = n, done, n
                for stage, prepared in zip(program.stages, self._stages(n), strict=True):
                    if isinstance(stage, Stretch):
                        words[Context.CODE] = int(self.code.ctypes.data) + stage.first * INSTRUCTION_BYTES
                        fault = self.enter(n)
                        if fault and not self.done(fault):
                            raise self.fault(fault)
                    elif prepared is not None:
                        prepared.run(work)
                done += n
        except BaseException:
            self.arena[: program.state_bytes] = before
            raise
        finally:
            words[Context.START] = 0
            words[Context.CODE] = self.code.ctypes.data

    def _stages(self, steps: int) -> list[HostRun | None]:
        """The host calls for a block of so many steps, prepared once; None where the stage is machine code."""
        if steps not in self._prepared:
            self._prepared[steps] = [
                self._host_run(stage, steps) if isinstance(stage, HostCall) else None for stage in self.program.stages
            ]
        return self._prepared[steps]

    def _host_run(self, call: HostCall, steps: int) -> HostRun:
        """A host call whose operands are views of this arena."""
        evaluator = None if is_control(call.node) else bind(call.node)
        inputs = [self._logical(o, steps) if isinstance(o, HostOperand) else (o, None) for o in call.inputs]
        outputs = [None if o is None else self._target(o, steps) for o in call.outputs]
        return HostRun(call.node, evaluator, inputs, outputs)

    def _target(self, operand: HostOperand, steps: int) -> tuple[np.ndarray, list[int], list[int]]:
        """Where a result goes: the view, and the sizes and the order of its atoms."""
        view, order = self._physical(operand, steps)
        return view, [self._size(atom, steps) for axis in operand.axes for atom in axis], order

    def _logical(self, operand: HostOperand, steps: int) -> tuple[np.ndarray, tuple[int, ...] | None]:
        """An operand as NumPy sees it: the array itself, or a view and the shape that its copy is to have."""
        view, order = self._physical(operand, steps)
        sizes = [[self._size(atom, steps) for atom in axis] for axis in operand.axes]
        flat = [size for axis in sizes for size in axis]
        back: Any = np.argsort(order) if order else []
        spread = np.broadcast_to(view, self._full(operand, steps, view.shape)).reshape([flat[i] for i in order])
        moved: np.ndarray = spread.transpose(back)
        assert not view.size or np.may_share_memory(moved, view)  # a copy would keep the first call's values
        shape = tuple(prod(axis) for axis in sizes)
        return (moved.reshape(shape), None) if moved.flags.c_contiguous else (moved, shape)

    def _full(self, operand: HostOperand, steps: int, shape: tuple[int, ...]) -> tuple[int, ...]:
        atoms = {atom for axis in operand.axes for atom in axis}
        timed = steps if set(self.program.time) <= atoms else 1
        batched = self.program.batch if set(self.program.batch_atoms) <= atoms else 1
        return (max(timed, shape[0]), max(batched, shape[1]), shape[2])

    def _physical(self, operand: HostOperand, steps: int) -> tuple[np.ndarray, list[int]]:
        """View [T, B, width] of an operand, and its logical atoms in the order of memory."""
        atoms = [atom for axis in operand.axes for atom in axis]
        program = self.program
        leading = [a for a in program.time if a in atoms]
        batch = list(program.batch_atoms) if set(program.batch_atoms) <= set(atoms) else []
        rest = [a for a in atoms if a not in leading and a not in batch]
        return self._view(operand.rows, steps), [atoms.index(a) for a in (*leading, *batch, *rest)]

    def _view(self, rows: Rows, steps: int) -> np.ndarray:
        per_step = self.program.batch if rows.batched else 1
        shape = (steps if rows.timed else 1, per_step, rows.width)
        strides = (per_step * rows.stride, rows.stride, rows.dtype.itemsize)
        memory, offset = self.arena, 0
        if isinstance(rows.place, Place):
            offset = rows.place.buffer.offset + rows.place.offset
        else:
            memory, offset = rows.place.array.reshape(-1).view(np.uint8), rows.place.offset
        view: np.ndarray = np.ndarray(shape, rows.dtype, memory.data, offset, strides)
        return view

    def _size(self, atom: int, steps: int) -> int:
        return steps if atom in self.program.time else self.program.time_sizes[atom]

    def fault(self, code: int) -> LstmEngineError:
        """The error of a fault code, with the place it happened at."""
        if code == BUSY:
            return StateError(IN_USE)
        if code == ABSENT:
            raise AssertionError("the executor was chosen without looking at the program's instructions")
        index = (int(self.context[Context.FAULT_AT]) - int(self.code.ctypes.data)) // INSTRUCTION_BYTES
        node = self.program.listing[index].node
        value, limit = int(self.context[Context.FAULT_VALUE]), int(self.context[Context.FAULT_LIMIT])
        if code == 1:
            where = f"expected {-limit} to {limit - 1}"
            return InputError(f"{node}: index {value} is out of range, {where}; nothing was done")
        return InputError(f"{node}: a sequence length lies outside 0 to T; nothing was done")

    def check(self) -> None:
        """Raise AssertionError if bytes between buffers were written to; there are none but in the debug mode."""
        for at in self.program.canaries:
            if (self.arena[at : at + CANARY_BYTES] != CANARY).any():
                raise AssertionError(f"bytes behind the buffer that ends at {at} were overwritten")


@dataclass(frozen=True, slots=True)
class HostRun:
    """An operator without an instruction at one number of steps: what of a call can be prepared.

    ``inputs``: an array and None, or a view and the shape of the copy that is made of it; ``outputs``: the place of a
    result, the sizes of its atoms and their order there; ``evaluator``: None for control flow, which needs a budget.
    """

    node: Node
    evaluator: Callable[[Sequence[Any]], tuple[Any, ...]] | None
    inputs: Sequence[tuple[np.ndarray | None, tuple[int, ...] | None]]
    outputs: Sequence[tuple[np.ndarray, list[int], list[int]] | None]

    def run(self, work: Work | None) -> None:
        """From the arena to the arena; ``work``: what control flow may still spend."""
        arrays = [
            array if array is None or shape is None else np.ascontiguousarray(array).reshape(shape)
            for array, shape in self.inputs
        ]
        made = self.evaluator(arrays) if self.evaluator else evaluate(self.node, arrays, work=work)
        for target, result in zip(self.outputs, made, strict=False):
            if target is not None:
                view, sizes, order = target
                view[...] = result.reshape(sizes).transpose(order).reshape(view.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array of a logical shape is bound to a port.

    ``step``, ``row``: bytes from one time step, and from one batch row, to the next; ``order``: axes in the order of
    memory (time, batch, width) where the logical array must be copied to have its rows in one piece, else None.
    """

    shape: tuple[int, ...]
    step: int
    row: int
    order: tuple[int, ...] | None

    @staticmethod
    def of(shape: tuple[int, ...], item_bytes: int, time: int | None, batch: tuple[int, ...]) -> Layout:
        """The layout of a C-contiguous array, whose ``batch`` axes are given in row order."""
        leading = (*(() if time is None else (time,)), *batch)
        order = (*leading, *(i for i in range(len(shape)) if i not in leading))
        outer = [i for i in leading if shape[i] > 1]
        inner = [i for i in range(len(shape)) if i not in leading and shape[i] > 1]
        strides = _contiguous_strides(shape, item_bytes)
        several = [i for i in batch if shape[i] > 1]
        in_one_run = all(strides[i] == strides[j] * shape[j] for i, j in itertools.pairwise(several))
        if in_one_run and (not outer or not inner or max(outer) < min(inner)):
            step = strides[time] if time is not None else 0
            return Layout(shape, step, strides[several[-1]] if several else 0, None)
        width = prod(shape[i] for i in range(len(shape)) if i not in leading) * item_bytes
        return Layout(shape, width * prod(shape[i] for i in batch), width, order)

    def arranged(self, array: np.ndarray) -> np.ndarray:
        """The array as it has to lie."""
        return np.ascontiguousarray(array if self.order is None else array.transpose(self.order))

    @property
    def in_memory(self) -> tuple[int, ...]:
        """The shape of an array that is written in this layout."""
        return self.shape if self.order is None else tuple(self.shape[i] for i in self.order)

    def settled(self, array: np.ndarray) -> np.ndarray:
        """The logical array of one written in this layout."""
        if self.order is None:
            return array
        back: Any = np.argsort(self.order)
        return np.ascontiguousarray(array.transpose(back))


@dataclass(frozen=True, slots=True)
class Attachment:
    """A port and how the arrays that are bound to it lie: all that a call needs to know of it.

    ``words``: index of the port's words in the context, and the strides that go there; ``plain``: arrays lie as they
    are; ``shape``: of an array that is written.
    """

    name: str
    dtype: np.dtype[Any]
    layout: Layout
    words: tuple[int, int, int]
    plain: bool
    shape: tuple[int, ...]
    binder: Callable[[int, int, int, int, np.ndarray], int]

    @staticmethod
    def of(port: Port, layout: Layout) -> Attachment:
        """The attachment of a port."""
        from . import images

        words = port_word(port.index, PortWord.ADDRESS), layout.step, layout.row
        plain = layout.order is None
        return Attachment(port.name, port.dtype, layout, words, plain, layout.in_memory, images.binder())


def _contiguous_strides(shape: tuple[int, ...], item_bytes: int) -> list[int]:
    strides = [item_bytes] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * shape[i + 1]
    return strides
