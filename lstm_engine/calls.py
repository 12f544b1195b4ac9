"""One run of a program for whole sequences: what its shapes decide, prepared once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from .engine import Attachment, Layout, Runner
from .program.plan import Lowered
from .program.program import Port
from .reference import Work

MOST_RUNNERS: Final = 4  # idle arenas kept a program


@dataclass(frozen=True)
class Call:
    """Everything about a run that its shapes decide: program, steps, how each array lies."""

    lowered: Lowered
    runners: list[Runner]  # idle ones, shared by all calls of the program
    absent: Mapping[str, np.ndarray]  # zeros for the optional inputs that are not fed
    steps: int
    inputs: tuple[Attachment, ...]
    outputs: tuple[Attachment, ...]
    unwanted: tuple[Port, ...]

    @staticmethod
    def prepare(
        lowered: Lowered,
        runners: list[Runner],
        arrays: Mapping[str, np.ndarray],
        absent: Mapping[str, np.ndarray],
        wanted: tuple[str, ...],
    ) -> Call:
        """Work the layouts out."""
        program = lowered.program
        steps = next((arrays[n].shape[a] for n, a in lowered.time_axes.items() if a is not None), program.block)

        def attached(port: Port) -> Attachment:
            shape = tuple(steps if i == port.time else size for i, size in enumerate(port.shape))
            return Attachment.of(port, Layout.of(shape, port.dtype.itemsize, port.time, port.batch))

        ports = {port.name: port for port in program.outputs}
        return Call(
            lowered,
            runners,
            absent,
            steps,
            tuple(attached(port) for port in program.inputs),
            tuple(attached(ports[name]) for name in wanted),
            tuple(port for port in program.outputs if port.name not in wanted),
        )

    def run(self, feeds: Mapping[str, np.ndarray], work: Work | None = None) -> dict[str, np.ndarray]:
        """The results, by an idle runner or a new one."""
        runner = self._idle() or Runner(self.lowered.program)
        try:
            return self._run(runner, feeds, work)
        finally:
            if len(self.runners) < MOST_RUNNERS:
                self.runners.append(runner)

    def _idle(self) -> Runner | None:
        try:
            return self.runners.pop()
        except IndexError:  # other threads have them all
            return None

    def _run(self, runner: Runner, feeds: Mapping[str, np.ndarray], work: Work | None) -> dict[str, np.ndarray]:
        """Bind, run, and give the results in their logical shapes."""
        if self.absent:
            feeds = {**self.absent, **feeds}
        bind, bind_new = runner.bind, runner.bind_new
        held = [bind(end, feeds[end.name]) for end in self.inputs]
        made = [bind_new(end) for end in self.outputs]
        for port in self.unwanted:
            runner.unbind(port)
        runner.run(self.steps, work)
        del held  # the ports pointed at them until here
        ends = zip(self.outputs, made, strict=True)
        return {end.name: array if end.plain else end.layout.settled(array) for end, array in ends}
