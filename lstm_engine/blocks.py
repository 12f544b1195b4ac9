"""Runs of several sequences of one length that lie one after the other in memory: [rows][steps][width].

Programs of a few numbers of rows serve them all. Nothing is prepared for a length but where a model needs all steps at
once: a call binds addresses and runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final, TypeAlias

import numpy as np

from .calls import MOST_RUNNERS
from .encoding import Port as PortWord
from .encoding import port_word
from .engine import Runner
from .program.plan import Lowered, capacity
from .program.program import Port, Program

MOST_ROWS: Final = 32  # of a call; others are powers of two, so that few programs serve all
MOST_KINDS: Final = 48  # of numbers of rows and room for steps; all go when there are more

Arrays: TypeAlias = Mapping[str, np.ndarray]
#: The program for this many rows of this many steps; None where there is none.
Lower: TypeAlias = Callable[[int, int], Lowered | None]


def shares_of(count: int) -> list[int]:
    """A number of rows as rows of calls."""
    whole, rest = divmod(count, MOST_ROWS)
    return [MOST_ROWS] * whole + [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]


@dataclass(frozen=True)
class _End:
    """A port as it lies in rows: its words in the context, the shape of a step of a row, whether it has steps."""

    name: str
    word: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    timed: bool

    @staticmethod
    def of(port: Port, axis: int) -> _End | None:
        """None where a row of this axis is not in one piece, step after step."""
        inner = [k for k in range(len(port.shape)) if k not in (port.time, axis)]
        apart = port.batch == (axis,) or (not port.batch and port.shape[axis] == 1)
        if not apart or port.time == axis or inner != [k for k in port.order if k in inner]:
            return None
        shape = tuple(port.shape[axis] for axis in inner)
        return _End(port.name, port_word(port.index, PortWord.ADDRESS), shape, port.dtype, port.time is not None)

    def empty(self, rows: int, steps: int) -> np.ndarray:
        """Room for rows of so many steps."""
        return np.empty((rows, *((steps,) if self.timed else ()), *self.shape), self.dtype)

    def bind(self, runner: Runner, array: np.ndarray | None, steps: int) -> None:
        """Point the port at rows of so many steps; None: nobody asks for them."""
        words, step = runner.words, prod(self.shape) * self.dtype.itemsize
        words[self.word] = 0 if array is None else array.ctypes.data
        words[self.word + 1], words[self.word + 2] = step, step * (steps if self.timed else 1)


@dataclass(frozen=True)
class _Block:
    """A program of so many rows, the ends of its ports and its idle runners."""

    program: Program
    inputs: tuple[_End, ...]
    outputs: tuple[_End, ...]
    runners: list[Runner] = field(default_factory=list)

    @staticmethod
    def of(lowered: Lowered | None, axes: Mapping[str, int]) -> _Block | None:
        """None where rows of some port do not lie as blocks have them, or NumPy takes part."""
        if lowered is None or not lowered.any_steps or lowered.program.hosts:
            return None
        program = lowered.program
        inputs, outputs = (
            tuple(_End.of(port, axes[port.name]) for port in ports) for ports in (program.inputs, program.outputs)
        )
        return None if None in inputs + outputs else _Block(program, inputs, outputs)  # type: ignore[arg-type]

    def run(self, steps: int, feeds: Arrays, results: Arrays) -> None:
        """All rows of this block, from arrays to arrays."""
        try:
            runner = self.runners.pop()
        except IndexError:  # other threads have them all
            runner = Runner(self.program)
        try:
            for end in self.inputs:
                end.bind(runner, feeds[end.name], steps)
            for end in self.outputs:
                end.bind(runner, results.get(end.name), steps)
            runner.run(steps)
        finally:
            if len(self.runners) < MOST_RUNNERS:
                self.runners.append(runner)


class Blocks:
    """The programs of a model by which rows of several sequences run."""

    def __init__(self, lower: Lower, axes: Mapping[str, int]) -> None:
        """``axes``: that of the rows in each input and output of a call."""
        self._lower, self._axes = lower, axes
        self._made: dict[tuple[int, int, bool], _Block | None] = {}

    def run(self, rows: int, steps: int, feeds: Arrays, wanted: Collection[str]) -> dict[str, np.ndarray] | None:
        """The results [rows, steps, …] (or [rows, …]) of sequences of so many steps, from arrays of such forms.

        Those are C-contiguous and of the model's types. None if the model has no programs for that.
        """
        shares = shares_of(rows)
        blocks = [block for share in shares if (block := self._block(share, steps)) is not None]
        if len(blocks) < len(shares):
            return None
        results = {end.name: end.empty(rows, steps) for end in blocks[0].outputs if end.name in wanted}
        first = 0
        for share, block in zip(shares, blocks, strict=True):
            mine = slice(first, first + share)
            block.run(steps, _cut(feeds, mine), _cut(results, mine))
            first += share
        return results

    def prepare(self) -> None:
        """Lower the program that most calls take."""
        self._block(MOST_ROWS, 2)

    def _block(self, rows: int, steps: int) -> _Block | None:
        """The program for these; that of a single step is its own: one step may be another network."""
        single = steps == 1
        for key in ((rows, 0, single), (rows, capacity(steps), single)):
            if key in self._made:
                return self._made[key]
        block = _Block.of(self._lower(rows, steps), self._axes)
        if len(self._made) >= MOST_KINDS:
            self._made.clear()
        self._made[rows, 0 if block is not None and block.program.causal else capacity(steps), single] = block
        return block


def _cut(arrays: Arrays, rows: slice) -> dict[str, np.ndarray]:
    return {name: array[rows] for name, array in arrays.items()}
