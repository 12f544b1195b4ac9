"""The machine code of an exported program, but for its way in from C: executor.call() made for one program."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

from llvmlite import ir

from ..encoding import Context
from ..jit import written_as
from ..kernels import executor, simd
from ..kernels.weights import LINES_AHEAD
from ..machine import Target, target
from .layout import ARENA, CODE, CONSTANTS, CONTEXT, Layout
from .moving import cleared, copied
from .translation import INT64, Body, Spaces, Spot, Unit, Value

_POINTER: Final = ir.PointerType()
_BYTE: Final = ir.IntType(8)
_NO: Final = ir.Constant(ir.IntType(1), 0)
MOST_UNROLLED: Final = 128  # bytes moved without a loop
_FAULT_AT: Final = int(Context.FAULT_AT) * 8


class Code:
    """The functions of a program, in a module.

    ``weights``: the global that holds the constants, None where the caller brings them.
    """

    def __init__(self, module: ir.Module, layout: Layout, weights: ir.GlobalVariable | None) -> None:
        self.module = module
        self.layout = layout
        self.weights = weights
        self.parts = _parts(layout.program.precision, 0 if layout.small else LINES_AHEAD, target())
        spaces = Spaces(layout.known, self._address, frozenset({CODE, CONTEXT}))
        self.unit = Unit(
            module,
            spaces,
            {
                simd.word: self._word,
                simd.set_word: self._set_word,
                simd.copy_bytes: self._copy_bytes,
                simd.clear_bytes: self._clear_bytes,
                simd.never_inline: _nothing,
                simd.always_inline: _nothing,
                **({} if layout.flushes else {simd.flush_denormals: _zero, simd.restore_denormals: _nothing}),
                _run: self._run,
            },
        )

    def call(self, body: Body) -> Value:
        """All steps of a call, as executor.call() does them; 0 or a fault."""
        return self.unit.called(body, executor.call_with(_run), [Spot(CONTEXT, 0)])

    def _run(self, body: Body, arguments: Sequence[Value]) -> Value:
        """Every instruction, one after the other, up to a fault."""
        b, ends = body.b, []
        context = Spot(CONTEXT, 0)
        for index, instruction in enumerate(self.layout.listing):
            kernel = written_as(executor.kernel_of(instruction.opcode, self.parts))
            assert kernel is not None
            place = self.layout.spot_of(index)
            fault = self.unit.called(body, kernel, [place, context])
            failed, well = b.append_basic_block("failed"), b.append_basic_block("well")
            b.cbranch(b.icmp_signed("!=", fault, ir.Constant(INT64, 0)), failed, well)
            b.position_at_end(failed)
            self._set_word(body, [Spot(CONTEXT, _FAULT_AT), index])
            ends.append((fault, b.block))
            b.position_at_end(well)
        ends.append((ir.Constant(INT64, 0), b.block))
        end = b.append_basic_block("end")
        for _, block in ends:
            b.position_at_end(block)
            b.branch(end)
        b.position_at_end(end)
        result = b.phi(INT64)
        for value, block in ends:
            result.add_incoming(value, block)
        return result

    # --- memory ------------------------------------------------------------------------------------------------------

    def _address(self, body: Body, spot: Spot) -> ir.Value:
        b, offset = body.b, ir.Constant(INT64, spot.offset)
        if spot.space == CODE:
            return offset
        if spot.space == CONSTANTS:
            assert self.weights is not None
            return b.add(b.ptrtoint(self.weights, INT64), offset)
        begin = self.layout.context_bytes if spot.space == ARENA else 0
        return b.add(body.instance, ir.Constant(INT64, begin + spot.offset))

    def _word(self, body: Body, arguments: Sequence[Value]) -> Value:
        (at,) = arguments
        known = self.layout.known(at) if isinstance(at, Spot) else None
        return simd.word.emitted.emit(body.b, body.machine(at, INT64)) if known is None else known

    def _set_word(self, body: Body, arguments: Sequence[Value]) -> None:
        at, value = arguments
        if not isinstance(at, Spot) or self.layout.known(at) is None:
            simd.set_word.emitted.emit(body.b, body.machine(at, INT64), body.machine(value, INT64))

    def _copy_bytes(self, body: Body, arguments: Sequence[Value]) -> None:
        to, at, count = arguments
        if isinstance(count, ir.Value) or count > MOST_UNROLLED:
            self.unit.called(body, _kernel(copied), arguments)
            return
        places = [simd.pointer(body.b, body.machine(each, INT64)) for each in (to, at)]
        size = ir.Constant(INT64, count)
        simd.call(body.b, "llvm.memcpy.inline.p0.p0.i64", ir.VoidType(), [*places, size, _NO])

    def _clear_bytes(self, body: Body, arguments: Sequence[Value]) -> None:
        at, count = arguments
        if isinstance(count, ir.Value) or count > MOST_UNROLLED:
            self.unit.called(body, _kernel(cleared), arguments)
            return
        place, size = simd.pointer(body.b, body.machine(at, INT64)), ir.Constant(INT64, count)
        simd.call(body.b, "llvm.memset.inline.p0.i64", ir.VoidType(), [place, ir.Constant(_BYTE, 0), size, _NO])


@functools.cache
def _parts(precision: str, lines_ahead: int, _machine: Target) -> dict[str, Any]:
    """The kernels of a precision on a machine, made once: Numba keeps every one that there ever was."""
    return executor.kernels_of(precision, lines_ahead)


def _run(code: int, cx: int) -> int:
    """What executor.call() calls: the program's own instructions."""
    raise NotImplementedError


def _nothing(body: Body, arguments: Sequence[Value]) -> None:
    """LLVM decides what becomes part of what."""


def _zero(body: Body, arguments: Sequence[Value]) -> Value:
    """A control word that nobody looks at: the caller sees to it."""
    return 0


def _kernel(function: Any) -> Any:
    kernel = written_as(function)
    assert kernel is not None
    return kernel
