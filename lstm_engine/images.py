"""The images there are: the executors, and the ways into them from Python.

Nothing here is compiled or imports a kernel before it is needed (``kernels/executor.py`` then makes it).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Final

from .encoding import Opcode
from .image import Export, Image, Progress

_TRACED: Final = frozenset({Opcode.TRACED_LSTM, Opcode.TRACED_CELL, Opcode.TRACED_RECURRENT})
#: Sets of instructions that an executor is compiled for, smallest first: what a plain model needs is a fraction of all.
KERNEL_SETS: Final[Mapping[str, frozenset[Opcode]]] = MappingProxyType(
    {
        "core": frozenset(
            {
                Opcode.HALT, Opcode.LOAD, Opcode.STORE, Opcode.COPY, Opcode.EMBED, Opcode.LSTM, Opcode.DENSE,
                Opcode.MAP, Opcode.JOIN, Opcode.SOFTMAX,
            }
        ),
        "full": frozenset(Opcode) - _TRACED,
        "traced": frozenset(Opcode),  # nobody else pays for it
    }
)  # fmt: skip
_EXECUTOR: Final = MappingProxyType({"call": Export("call", "i", nogil=True)})
_ENTRIES: Final = MappingProxyType(
    {
        "enter": Export("enter", "ioo"),
        "enter_nogil": Export("enter", "ioo", nogil=True),
        "enter_context": Export("enter_context", "i"),
        "enter_context_nogil": Export("enter_context", "i", nogil=True),
        "bind": Export("bind", "iiiio"),
        "acquire": Export("acquire", "i"),
        "give_up": Export("give_up", "i"),
        "run_slots": Export("run_slots", "i"),
        "run_slots_nogil": Export("run_slots", "i", nogil=True),
        "step_slots": Export("step_slots", "iooo"),
        "step_slots_nogil": Export("step_slots", "iooo", nogil=True),
        "serve": Export("serve", "i", nogil=True),
        "clock": Export("clock", ""),
    }
)

_SAMPLING: Final = MappingProxyType(
    {
        "step_and_draw": Export("step_and_draw", "iii"),
        "step_and_draw_nogil": Export("step_and_draw", "iii", nogil=True),
        "draw_one": Export("draw_one", "iiii"),
        "draw_rows": Export("draw_rows", "iiiiii", nogil=True),
        "read": Export("read", "iii"),
    }
)


@functools.cache
def image(precision: str, kernel_set: str) -> Image:
    """The executor of a precision with a set of instructions, not yet loaded."""

    name = f"executor-{precision}-{kernel_set}"

    def compiled(progress: Progress) -> bytes:
        from .jit import compile_image
        from .kernels.executor import build

        return compile_image(name, _EXECUTOR, lambda: build(precision, KERNEL_SETS[kernel_set], progress))

    return Image(name, _EXECUTOR, compiled)


def executor(precision: str, opcodes: Collection[int]) -> Image:
    """The executor for a program of these opcodes: one in memory, else one from the cache, else the smallest."""
    able = [image(precision, name) for name, codes in KERNEL_SETS.items() if codes.issuperset(opcodes)]
    ready = [found for found in able if found.loaded] or [found for found in able if found.cached]
    return (ready or able)[0]


@functools.cache
def entries() -> Image:
    """The ways into any executor."""

    def compiled(progress: Progress) -> bytes:
        from .jit import compile_image
        from .kernels.executor import ways_in

        return compile_image("entries", _ENTRIES, ways_in)

    return Image("entries", _ENTRIES, compiled)


@functools.cache
def sampling() -> Image:
    """What draws tokens from scores, after a step of any executor."""

    def compiled(progress: Progress) -> bytes:
        from .jit import compile_image
        from .kernels.sampling import ways_in

        return compile_image("sampling", _SAMPLING, ways_in)

    return Image("sampling", _SAMPLING, compiled)


def needed(precision: str) -> list[Image]:
    """All that models of a precision may ask for, but for what only traces need."""
    return [
        entries(),
        sampling(),
        *(image(precision, name) for name, codes in KERNEL_SETS.items() if not codes & _TRACED),
    ]


def entry(nogil: bool) -> Callable[[int, Any, Any], int]:
    """kernels.executor.enter()."""
    return entries().function("enter_nogil" if nogil else "enter")


def context_entry(nogil: bool) -> Callable[[int], int]:
    """kernels.executor.enter_context()."""
    return entries().function("enter_context_nogil" if nogil else "enter_context")


def slots_entry(nogil: bool) -> Callable[[int], int]:
    """kernels.pool.run_slots()."""
    return entries().function("run_slots_nogil" if nogil else "run_slots")


def slots_step(nogil: bool) -> Callable[[int, Any, Any, Any], int]:
    """kernels.pool.step_slots()."""
    return entries().function("step_slots_nogil" if nogil else "step_slots")


def binder() -> Callable[[int, int, int, int, Any], int]:
    """kernels.executor.bind()."""
    return entries().function("bind")


def guards() -> tuple[Callable[[int], int], Callable[[int], int]]:
    """kernels.executor.acquire() and give_up()."""
    return entries().function("acquire"), entries().function("give_up")


def server() -> Callable[[int], int]:
    """kernels.workers.serve()."""
    return entries().function("serve")


def clock() -> Callable[[], int]:
    """kernels.workers.clock()."""
    return entries().function("clock")
