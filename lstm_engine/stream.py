"""Stream: one model, its state, and a call a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import empty, ndarray

from . import snapshots
from .encoding import FORM_WORDS, MOST_AXES, NOT_FITTING, Context
from .engine import CONTIGUOUS, IN_USE, WRITABLE, Attachment, Layout, Runner, array_form, slot_rows
from .errors import InputError, StateError
from .feeds import bind_constants, chunk_arrays, lean_shape, step_arrays, target_arrays
from .graph import Shape, TensorSpec
from .passes.shapes import fold
from .program.program import Port, Program, StateSlot
from .program.streaming import Frames, Streamable
from .state import State

if TYPE_CHECKING:
    from .model import Model


class Stream:
    """A model running step by step over ``batch`` rows, carrying its state from call to call.

    Of a file that is made to be called frame by frame, a step is such a call; frames may then be of any size that the
    file allows, and ``inputs`` and ``outputs`` have None for what it leaves open.

    Belongs to one caller at a time: used by two at once it raises StateError. A call that fails leaves the state
    as it was. ``inputs``, ``outputs``: what a step takes and gives, without time axis; ``constants``: the inputs that
    never change.
    """

    __slots__ = (
        "_box", "_enter_step", "_fresh_shape", "_last_chunk", "_lowered", "_out_dtype", "_out_lean", "_out_shape",
        "_ports_in", "_ports_out", "_runner", "_scalar", "_single", "_step_ends", "batch", "constants", "inputs",
        "model", "outputs",
    )  # fmt: skip

    def __init__(self, model: Model, batch: int = 1, constants: Mapping[str, Any] | None = None) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise InputError(f"batch={batch!r}: expected a positive number of rows")
        graph = fold(bind_constants(model.graph, constants)) if constants else model.graph
        lowered = model.streamable(graph, batch, tuple(sorted(constants)) if constants else ())
        self._set_up(model, batch, lowered, dict(constants or {}))

    def _set_up(self, model: Model, batch: int, lowered: Streamable, constants: Mapping[str, Any]) -> None:
        self.model = model
        self.batch = batch
        self.constants = constants
        self._install(lowered, Runner(lowered.program))
        self.inputs = tuple(_step_spec(port) for port in self._ports_in)
        self.outputs = tuple(_step_spec(port) for port in self._ports_out)
        if lowered.frames is not None:
            self.inputs = tuple(_left_open(spec, lowered.frames.frame[spec.name]) for spec in self.inputs)
            if any(None in (spec.shape or ()) for spec in self.inputs):
                declared = {spec.name: spec.shape for spec in model.graph.outputs}
                self.outputs = tuple(_left_open(spec, declared[spec.name]) for spec in self.outputs)

    def _install(self, lowered: Streamable, runner: Runner) -> None:
        """Have a program, and the arena that it runs in."""
        framed = lowered.frames is not None
        self._lowered = lowered
        self._runner = runner
        self._ports_in = tuple(_as_frame(p) if framed else p for p in lowered.program.inputs)
        self._ports_out = tuple(_as_frame(p) if framed else p for p in lowered.program.outputs)
        self._step_ends = {port.name: Attachment.of(port, self._layout(port, 1, True)) for port in self._ports()}
        self._last_chunk: tuple[int, dict[str, Attachment]] = (-1, {})
        self._prepare_short_way()

    # --- one step ----------------------------------------------------------------------------------------------------

    def step(self, x: Any, out: np.ndarray | None = None) -> Any:
        """One time step.

        ``x``: the input without its time axis (the batch axis may be left out with batch 1, and is then left out of
        the result); a token id as an int; a scalar input as a float; several inputs as {name: array}.
        ``out``: an array to write the result to, which is then returned: nothing is allocated.
        Returns the output without time axis; {name: array} where there are several.

        Raises InputError, StateError; the state is then as it was.
        """
        if x.__class__ is not ndarray:
            if not isinstance(x, self._scalar):
                return self._step_any(x, out)
            x = self._boxed(x)
        fresh = out is None
        if fresh:
            out = empty(self._fresh_shape, self._out_dtype)
        fault = self._enter_step(x, out)
        if fault == 0:
            return out
        if fault == NOT_FITTING:
            return self._step_any(x, None if fresh else out)
        if self._runner.done(fault):
            return out
        raise self._runner.fault(fault)

    def _prepare_short_way(self) -> None:
        """The array forms a step takes as they are, and the compiled entry that checks them."""
        program = self._lowered.program
        self._enter_step: Any = _never_fits
        self._scalar: tuple[type, ...] = ()
        self._single = False
        self._out_dtype = np.dtype(np.float32)
        self._out_shape: tuple[int, ...] = ()
        self._out_lean: tuple[int, ...] = ()
        self._fresh_shape: tuple[int, ...] = ()  # of a new result, as the last step that was new in form wanted it
        single = len(program.inputs) == len(program.outputs) == 1
        if not single or program.hosts or program.canaries or self._lowered.frames is not None:
            return
        x, y = program.inputs[0], program.outputs[0]
        plain = all(end.layout.order is None for end in self._step_ends.values())
        if not plain or max(len(x.shape), len(y.shape)) > MOST_AXES:
            return
        from . import images

        self._out_shape, self._out_dtype = step_shape(y), y.dtype
        lean = [lean_shape(step_shape(port), self.batch) for port in (x, y)]
        lean_shapes = [None, None] if None in lean else lean
        self._out_lean = lean_shapes[1] if lean_shapes[1] is not None else self._out_shape
        self._fresh_shape = self._out_lean
        self._runner.forms[:FORM_WORDS] = array_form(x.dtype, step_shape(x), lean_shapes[0], CONTIGUOUS)
        self._runner.forms[FORM_WORDS:] = array_form(y.dtype, step_shape(y), lean_shapes[1], WRITABLE)
        self._single = True
        self._bind_short_way()
        nogil, address = not self._runner.tiny, self._runner.address
        self._enter_step = partial(images.entry(nogil), address)
        if lean_shapes[0] == () or step_shape(x) == ():
            whole = (int, np.integer)
            self._scalar = whole if x.dtype.kind in "iu" else (float, np.floating, *whole)
            self._box = np.zeros(lean_shapes[0] if lean_shapes[0] is not None else step_shape(x), x.dtype)

    @property
    def short_way(self) -> Runner | None:
        """What a step needs no more of than the addresses of its input and its output, None where it is longer."""
        return self._runner if self._single else None

    def _boxed(self, x: Any) -> np.ndarray:
        """A Python number as an array, without allocating."""
        try:
            self._box[()] = x
        except OverflowError as fault:
            raise InputError(f"step: {x} does not fit {self._box.dtype}") from fault
        return self._box

    def _step_any(self, x: Any, out: np.ndarray | None) -> Any:
        """A step with whatever it takes to bring x into shape."""
        feeds, lean = step_arrays(self.inputs, self.batch, x)
        if self._lowered.frames is not None:
            self._resize(self._lowered.frames, {name: array.shape for name, array in feeds.items()})
        self._fresh_shape = self._out_lean if lean else self._out_shape
        shapes = {port.name: self._result_shape(port, lean) for port in self._ports_out}
        dtypes = {port.name: port.dtype for port in self._ports_out}
        targets = {} if out is None else target_arrays(out, shapes, dtypes)
        results = {name: array.reshape(shapes[name]) for name, array in self._fitting_step(feeds).items()}
        if out is None:
            return next(iter(results.values())) if len(results) == 1 else results
        for name, target in targets.items():
            target[...] = results[name]
        return out

    def _fitting_step(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A step with feeds of the right shapes and dtypes: the short way if there is one."""
        if self._single:
            result = empty(self._out_shape, self._out_dtype)
            fault = self._enter_step(np.asarray(next(iter(feeds.values())), order="C"), result)
            if fault == 0 or self._runner.done(fault):
                return {self.outputs[0].name: result}
            if fault != NOT_FITTING:
                raise self._runner.fault(fault)
        return self._call(feeds, 1, stepwise=True)

    def _result_shape(self, port: Port, lean: bool) -> tuple[int, ...]:
        shape = step_shape(port)
        left_out = lean_shape(shape, self.batch) if lean else None
        return shape if left_out is None else left_out

    # --- many steps --------------------------------------------------------------------------------------------------

    def feed(self, chunk: Any) -> Any:
        """Any number of steps in one call; every step's output, stacked.

        ``chunk``: the input with its own time axis (a new leading axis where the model has none).
        Returns the outputs of all steps along the same axis; the results and the state are those of as many step()s.

        Raises InputError, StateError; the state is then as it was before the whole chunk.
        """
        axes = {port.name: time_axis(port) for port in self._ports_in}
        arrays, steps = chunk_arrays(self.inputs, axes, self.batch, chunk)
        if self._lowered.frames is not None:
            self._resize(self._lowered.frames, {name: array.shape[1:] for name, array in arrays.items()})
        results = self._call(arrays, steps, stepwise=False)
        return next(iter(results.values())) if len(results) == 1 else results

    @property
    def time_axes(self) -> dict[str, int | None]:
        """Where the steps lie in what feed() gives, by output; None for one that does not go from step to step."""
        framed = self._lowered.frames is not None
        return {p.name: 0 if framed else chunk_axis(self._lowered.program, p) for p in self._lowered.program.outputs}

    # --- the call ----------------------------------------------------------------------------------------------------

    def _call(self, arrays: Mapping[str, np.ndarray], steps: int, stepwise: bool) -> dict[str, np.ndarray]:
        """Run ``steps`` steps; inputs and results without time axis where ``stepwise``."""
        if self._lowered.frames is not None:
            return self._call_frames(arrays, None if stepwise else steps)
        program, runner = self._lowered.program, self._runner
        ends = self._step_ends if stepwise else self._chunk_ends(steps)
        with runner.alone():
            try:
                held = [runner.bind(ends[port.name], self._fed(ends[port.name], arrays)) for port in program.inputs]
                made = {port.name: runner.bind_new(ends[port.name]) for port in program.outputs}
                if steps:
                    runner.run(steps)
                del held  # the ports pointed at them until here
            finally:
                if self._single:
                    self._bind_short_way()
        return {name: ends[name].layout.settled(array) for name, array in made.items()}

    @staticmethod
    def _fed(end: Attachment, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        array = arrays.get(end.name)
        return np.zeros(end.layout.shape, end.dtype) if array is None else array

    # --- frames ------------------------------------------------------------------------------------------------------

    def _resize(self, frames: Frames, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Have the program for frames of these shapes; the state goes with it.

        Raises InputError for sizes that do not fit the network.
        """
        present = {port.name: port.shape for port in self._ports_in}
        wanted = {**present, **shapes}
        if wanted == present:
            return
        program = frames.program(wanted)
        with self._alone():
            runner = Runner(program)
            slots = {slot.key: slot for slot in program.slots}
            for slot in self._lowered.program.slots:
                if slot.elements is not None:  # those of recurrent nodes live within a call
                    to = slots[slot.key]
                    _transfer(slot_rows(self._runner.arena, slot), slot, slot_rows(runner.arena, to), to)
            self._install(replace(self._lowered, program=program), runner)

    def _call_frames(self, arrays: Mapping[str, np.ndarray], count: int | None) -> dict[str, np.ndarray]:
        """One frame, or ``count`` of them that lie along a leading axis."""
        program = self._lowered.program
        steps = prod(program.time_sizes[atom] for atom in program.time)
        with self._alone() as runner:
            if any(array.shape[count is not None :] != self._step_ends[n].layout.shape for n, array in arrays.items()):
                raise StateError(IN_USE)  # another caller had it resized
            if count is None:
                return self._frame(runner, arrays, steps)
            before = runner.arena[: program.state_bytes].copy()
            results = {p.name: np.empty((count, *p.shape), p.dtype) for p in self._ports_out}
            try:
                for k in range(count):
                    for name, value in self._frame(runner, {n: a[k] for n, a in arrays.items()}, steps).items():
                        results[name][k] = value
            except BaseException:
                runner.arena[: program.state_bytes] = before
                raise
            return results

    def _frame(self, runner: Runner, arrays: Mapping[str, np.ndarray], steps: int) -> dict[str, np.ndarray]:
        ends, program = self._step_ends, self._lowered.program
        held = [runner.bind(ends[port.name], self._fed(ends[port.name], arrays)) for port in program.inputs]
        made = {port.name: runner.bind_new(ends[port.name]) for port in program.outputs}
        runner.run(steps)
        del held  # the ports pointed at them until here
        return {name: ends[name].layout.settled(array) for name, array in made.items()}

    @contextmanager
    def _alone(self) -> Iterator[Runner]:
        """Have the stream to oneself.

        Raises StateError if another caller has it.
        """
        runner = self._runner
        with runner.alone():
            if runner is not self._runner:
                raise StateError(IN_USE)
            yield runner

    # --- how arrays lie ----------------------------------------------------------------------------------------------

    def _bind_short_way(self) -> None:
        """Leave the context as the short way wants it: one step, rows of one step."""
        words = self._runner.words
        for end in self._step_ends.values():
            base, step, row = end.words
            words[base + 1], words[base + 2] = step, row
        words[Context.TOTAL] = 1

    def _ports(self) -> tuple[Port, ...]:
        return (*self._lowered.program.inputs, *self._lowered.program.outputs)

    def _chunk_ends(self, steps: int) -> dict[str, Attachment]:
        """How a chunk is bound; that of the last length is kept, as chunks mostly come in one size."""
        if self._last_chunk[0] != steps:
            self._last_chunk = steps, {p.name: Attachment.of(p, self._layout(p, steps, False)) for p in self._ports()}
        return self._last_chunk[1]

    def _layout(self, port: Port, steps: int, stepwise: bool) -> Layout:
        """How a step, or a chunk of steps, of a port lies."""
        if self._lowered.frames is not None:
            return Layout.of(port.shape, port.dtype.itemsize, port.time, port.batch)
        shape, batch = step_shape(port), step_batch(port)
        axis = None if stepwise else chunk_axis(self._lowered.program, port)
        if axis is None:
            return Layout.of(shape, port.dtype.itemsize, None, batch)
        chunk = (*shape[:axis], steps, *shape[axis:])
        return Layout.of(chunk, port.dtype.itemsize, axis, tuple(i + (i >= axis) for i in batch))

    # --- state -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Back to where the model starts."""
        with self._alone() as runner:
            runner.reset()

    @property
    def state(self) -> State:
        """A snapshot of the state; assigning one continues from there."""
        with self._alone() as runner:
            return snapshots.taken(self.model.fingerprint, self._lowered, runner.arena)

    @state.setter
    def state(self, snapshot: State) -> None:
        with self._alone() as runner:
            snapshots.restore(snapshot, self.model.fingerprint, self._lowered, runner.arena)

    def fork(self) -> Stream:
        """A second stream that continues from here on its own."""
        twin = object.__new__(Stream)
        with self._alone():
            twin._set_up(self.model, self.batch, self._lowered, self.constants)
            size = self._lowered.program.state_bytes
            twin._runner.arena[:size] = self._runner.arena[:size]
        return twin


def _transfer(values: np.ndarray, slot: StateSlot, target: np.ndarray, to: StateSlot) -> None:
    """Put the values of one program's state into another's, which may order them differently."""
    assert slot.elements is not None
    assert to.elements is not None
    flat = np.empty(slot.elements.size, slot.dtype)
    flat[slot.elements] = values
    target[...] = flat[to.elements]


def _as_frame(port: Port) -> Port:
    """A port of a whole frame: its axes are the frame's own, and it advances from frame to frame."""
    return replace(port, time=None, stepped=True)


def _left_open(spec: TensorSpec, shape: Shape | None) -> TensorSpec:
    """The spec with None for sizes that are not certain."""
    known = shape if shape is not None and len(shape) == len(spec.shape or ()) else (None,) * len(spec.shape or ())
    return replace(spec, shape=tuple(d if isinstance(d, int) else None for d in known))


def time_axis(port: Port) -> int | None:
    """Where the time axis of a chunk is: the model's own, or in front; None for what has no time."""
    if port.time is not None:
        return port.time
    return 0 if port.stepped else None


def chunk_axis(program: Program, port: Port) -> int | None:
    """As time_axis(), but what lost its time axis in the model gets it back where the input has it."""
    if port.time is not None or not port.stepped:
        return port.time
    inputs = [p.time for p in program.inputs if p.time is not None]
    return min(inputs[0], len(port.shape)) if inputs else 0


def step_shape(port: Port) -> tuple[int, ...]:
    """The shape of one step of a port."""
    return tuple(size for index, size in enumerate(port.shape) if index != port.time)


def step_batch(port: Port) -> tuple[int, ...]:
    """The batch axes of one step, in row order."""
    return tuple(i - (port.time is not None and i > port.time) for i in port.batch)


def _never_fits(x: np.ndarray, out: np.ndarray) -> int:
    """The short way of a stream that has none."""
    return NOT_FITTING


def _step_spec(port: Port) -> TensorSpec:
    return TensorSpec(port.name, port.dtype, step_shape(port), port.optional)
