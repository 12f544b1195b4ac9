"""The way into an exported program from C: what each function checks and does.

Every function returns a code (``Code``) and leaves the instance as it was unless that is 0. None allocates, locks or
keeps anything outside the instance, so instances may be used from as many threads as there are of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from llvmlite import ir

from ..encoding import Context
from ..exported import ALIGNMENT, Result
from ..jit import written_as
from ..state import DIGEST_BYTES, DIGEST_PLACE
from . import moving
from .code import Code as Program
from .layout import ARENA, CONSTANTS, CONTEXT, Layout
from .translation import INT64, Body, Spot, Value

#: What the executor's faults are called here.
_FAULTS: Final = {1: Result.BAD_TOKEN, 2: Result.BAD_LENGTH}
#: The first bytes of a file of weights: this, then 16 that tell them from all others, zeros up to a cache line.
WEIGHTS_MARK: Final = b"LSTMWGT1"
WEIGHTS_HEAD: Final = ALIGNMENT
_INT32: Final = ir.IntType(32)
_POINTER: Final = ir.PointerType()
_TOTAL: Final = int(Context.TOTAL) * 8
_CONSTANTS: Final = int(Context.CONSTANTS) * 8


class Interface:
    """The exported functions of one program.

    ``size``: the type of C's size_t; ``mark``: of instances; ``weights_name``: 16 bytes that tell the weights.
    """

    def __init__(self, program: Program, prefix: str, size: ir.Type, mark: int, weights_name: bytes) -> None:
        self.program = program
        self.layout: Layout = program.layout
        self.prefix = prefix
        self.size = size
        self.mark = ir.Constant(INT64, mark)
        self.weights_name = weights_name
        self.tables = self.layout.constants.add(moving.TABLES)

    def build(self) -> None:
        """All of them."""
        arrays = [_POINTER] * len(self.layout.ends)
        weights = [_POINTER, self.size] if self.layout.apart else []
        self._export("init", [_POINTER, self.size, *weights], self._init)
        self._export("step", [_POINTER, *arrays], self._step)
        self._export("feed", [_POINTER, self.size, *arrays], self._feed)
        self._export("reset", [_POINTER], self._reset)
        self._export("save", [_POINTER, _POINTER, self.size], self._save)
        self._export("load", [_POINTER, _POINTER, self.size], self._load)

    def _export(self, name: str, types: Sequence[ir.Type], write: Callable[[_Entry], None]) -> None:
        function = ir.Function(self.program.module, ir.FunctionType(_INT32, types), f"{self.prefix}_{name}")
        function.attributes.add("nounwind")
        write(_Entry(self.program, function))

    # --- an instance -------------------------------------------------------------------------------------------------

    def _init(self, entry: _Entry) -> None:
        memory, room, *weights = entry.given
        entry.refuse_if_null(memory)
        entry.refuse_if_misaligned(memory)
        entry.refuse_unless(">=", room, self.layout.instance_bytes, Result.TOO_SMALL)
        if weights:
            entry.refuse_if_null(weights[0])
            entry.refuse_if_misaligned(weights[0])
            entry.refuse_unless(">=", weights[1], WEIGHTS_HEAD + self.layout.constants.size, Result.TOO_SMALL)
            for place, word in enumerate(_words(WEIGHTS_MARK + self.weights_name)):
                read = entry.b.load(entry.pointer(weights[0], 8 * place), typ=INT64, align=8)
                entry.refuse_unless("==", read, word, Result.OTHER_WEIGHTS)
        entry.run(moving.cleared, memory, self.layout.instance_bytes)
        if weights:
            at = entry.b.add(weights[0], ir.Constant(INT64, WEIGHTS_HEAD))
            entry.b.store(at, entry.pointer(memory, _CONSTANTS), align=8)
        self._begin(entry)
        entry.b.store(self.mark, entry.pointer(memory), align=8)
        entry.end()

    def _own(self, entry: _Entry) -> None:
        """Refuse what is no instance."""
        memory = entry.given[0]
        entry.refuse_if_null(memory)
        entry.refuse_if_misaligned(memory)
        entry.refuse_unless("==", entry.b.load(entry.pointer(memory), typ=INT64, align=8), self.mark.constant,
                            Result.NOT_AN_INSTANCE)  # fmt: skip

    def _begin(self, entry: _Entry) -> None:
        beginning = self.layout.beginning
        place = 0 if beginning is None else entry.constants(beginning)
        entry.run(moving.begun, Spot(ARENA, 0), self.layout.program.state_bytes, place)

    def _reset(self, entry: _Entry) -> None:
        self._own(entry)
        self._begin(entry)
        entry.end()

    # --- steps -------------------------------------------------------------------------------------------------------

    def _step(self, entry: _Entry) -> None:
        self._own(entry)
        self._bind(entry, entry.given[1:])
        if not self.layout.framed:
            entry.b.store(ir.Constant(INT64, 1), entry.pointer(entry.given[0], _TOTAL), align=8)
        self._call(entry)
        entry.end()

    def _feed(self, entry: _Entry) -> None:
        self._own(entry)
        _, count, *arrays = entry.given
        with entry.b.if_then(entry.b.icmp_unsigned("==", count, ir.Constant(INT64, 0))):
            entry.b.ret(ir.Constant(_INT32, int(Result.OK)))
        self._bind(entry, arrays)
        if self.layout.framed:
            self._frames(entry, count)
        else:
            entry.b.store(count, entry.pointer(entry.given[0], _TOTAL), align=8)
            self._call(entry)
        entry.end()

    def _bind(self, entry: _Entry, arrays: Sequence[ir.Value]) -> None:
        for array in arrays:
            entry.refuse_if_null(array)
        for end, array in zip(self.layout.ends, arrays, strict=True):
            entry.b.store(array, entry.pointer(entry.given[0], end.place), align=8)

    def _call(self, entry: _Entry, before: Callable[[], None] = lambda: None) -> None:
        """Run; a fault becomes a code, after ``before``."""
        fault = self.program.call(entry.body)
        for code, result in _FAULTS.items():
            with entry.b.if_then(entry.b.icmp_signed("==", fault, ir.Constant(INT64, code)), likely=False):
                before()
                entry.b.ret(ir.Constant(_INT32, int(result)))

    def _frames(self, entry: _Entry, count: ir.Value) -> None:
        """Frame after frame; if one is at fault, none has been."""
        b, program = entry.b, self.layout.program
        saved, state = Spot(CONTEXT, self.layout.saved), Spot(ARENA, 0)
        if program.fallible:
            entry.run(moving.copied, saved, state, program.state_bytes)
        before, loop = b.block, b.append_basic_block("frame")
        b.branch(loop)
        b.position_at_end(loop)
        done = b.phi(INT64)
        done.add_incoming(ir.Constant(INT64, 0), before)
        if program.fallible:
            self._call(entry, lambda: entry.run(moving.copied, state, saved, program.state_bytes))
        else:
            self._call(entry)
        for end in self.layout.ends:
            place = entry.pointer(entry.given[0], end.place)
            b.store(b.add(b.load(place, typ=INT64, align=8), ir.Constant(INT64, end.step)), place, align=8)
        following, after = b.add(done, ir.Constant(INT64, 1)), b.append_basic_block("frames")
        done.add_incoming(following, b.block)
        b.cbranch(b.icmp_unsigned("<", following, count), loop, after)
        b.position_at_end(after)

    # --- states ------------------------------------------------------------------------------------------------------

    def _save(self, entry: _Entry) -> None:
        self._own(entry)
        _, to, room = entry.given
        state = self.layout.state
        entry.refuse_if_null(to)
        entry.refuse_unless(">=", room, state.bytes, Result.TOO_SMALL)
        head = DIGEST_PLACE + DIGEST_BYTES
        entry.run(moving.copied, to, entry.constants(self.layout.prefix), len(state.prefix))
        entry.run(moving.copied, entry.further(to, head), entry.constants(self.layout.head), len(state.head))
        self._move(entry, entry.further(to, head + len(state.head)), saving=1)
        made = entry.run(moving.room, 64)
        entry.run(moving.sealed, made, to, state.bytes, entry.constants(self.tables))
        entry.run(moving.copied, entry.further(to, DIGEST_PLACE), made, DIGEST_BYTES)
        entry.end()

    def _load(self, entry: _Entry) -> None:
        self._own(entry)
        _, at, count = entry.given
        state = self.layout.state
        head = DIGEST_PLACE + DIGEST_BYTES
        entry.refuse_if_null(at)
        entry.refuse_unless("==", count, state.bytes, Result.OTHER_STATE)
        made = entry.run(moving.room, 64)
        entry.run(moving.sealed, made, at, state.bytes, entry.constants(self.tables))
        same = entry.run(moving.alike, entry.further(at, DIGEST_PLACE), made, DIGEST_BYTES)
        entry.refuse_unless("!=", same, 0, Result.DAMAGED_STATE)
        for place, known, size in (
            (0, self.layout.prefix, len(state.prefix)),
            (head, self.layout.head, len(state.head)),
        ):
            same = entry.run(moving.alike, entry.further(at, place), entry.constants(known), size)
            entry.refuse_unless("!=", same, 0, Result.OTHER_STATE)
        values = head + len(state.head)
        for first, size in state.truths:
            wrong = entry.run(moving.beyond_truth, entry.further(at, values + first), size)
            entry.refuse_unless("==", wrong, 0, Result.DAMAGED_STATE)
        self._move(entry, entry.further(at, values), saving=0)
        entry.end()

    def _move(self, entry: _Entry, values: ir.Value, saving: int) -> None:
        pieces = entry.constants(self.layout.pieces)
        entry.run(moving.moved, Spot(ARENA, 0), values, pieces, len(self.layout.state.pieces), saving)


class _Entry:
    """An exported function under way: its parameters as 64-bit integers, and how it ends."""

    def __init__(self, program: Program, function: ir.Function) -> None:
        self.function = function
        self.b = ir.IRBuilder(function.append_basic_block())
        self.given = [self._widened(argument) for argument in function.args]
        self.body = Body(program.unit, self.b, self.given[0])
        self.program = program

    def _widened(self, argument: ir.Value) -> ir.Value:
        if argument.type == _POINTER:
            return self.b.ptrtoint(argument, INT64)
        return argument if argument.type == INT64 else self.b.zext(argument, INT64)

    def pointer(self, at: ir.Value, offset: int = 0) -> ir.Value:
        """A place so many bytes behind an address."""
        return self.b.inttoptr(self.further(at, offset), _POINTER)

    def further(self, at: ir.Value, offset: int) -> ir.Value:
        """An address so many bytes behind another."""
        return self.b.add(at, ir.Constant(INT64, offset))

    def constants(self, offset: int) -> Value:
        """Where a constant lies."""
        known = self.program.layout.known(Spot(CONTEXT, _CONSTANTS))
        if known is not None:
            return Spot(CONSTANTS, offset)
        return self.further(self.b.load(self.pointer(self.given[0], _CONSTANTS), typ=INT64, align=8), offset)

    def run(self, kernel: Any, *arguments: Value) -> Value:
        """Call a kernel."""
        written = written_as(kernel)
        if written is None:
            return self.body.call(kernel, list(arguments))
        return self.program.unit.called(self.body, written, arguments)

    def refuse_if_null(self, pointer: ir.Value) -> None:
        """Return if a pointer is NULL."""
        self.refuse_unless("!=", pointer, 0, Result.NULL_POINTER)

    def refuse_if_misaligned(self, pointer: ir.Value) -> None:
        """Return if a piece of memory does not begin at a cache line."""
        rest = self.b.and_(pointer, ir.Constant(INT64, ALIGNMENT - 1))
        self.refuse_unless("==", rest, 0, Result.MISALIGNED)

    def refuse_unless(self, relation: str, value: ir.Value, bound: int, result: Result) -> None:
        """Return with a code unless a number is as it should be."""
        wrong = self.b.not_(self.b.icmp_unsigned(relation, value, ir.Constant(INT64, bound)))
        with self.b.if_then(wrong, likely=False):
            self.b.ret(ir.Constant(_INT32, int(result)))

    def end(self) -> None:
        """All is done."""
        self.b.ret(ir.Constant(_INT32, int(Result.OK)))


def _words(content: bytes) -> list[int]:
    return [int.from_bytes(content[k : k + 8], "little", signed=True) for k in range(0, len(content), 8)]
