"""Lowering: a graph and concrete shapes become a Program.

Each tensor gets a place as rows [T][B][width] (passes/axes.py); operators that only regroup or reorder axes
become other views of the same rows; the others become instructions, or host calls where there is no
instruction. A *causal* lowering serves any number of steps, block by block; a *streamed* one moreover keeps its
state from call to call and gives every step what the model gives its last.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from math import prod
from typing import Any, Final

import numpy as np

from ..encoding import WORDS, Copy, Opcode
from ..errors import StreamingError, UnsupportedModelError
from ..graph import Graph, Node, TensorSpec, native
from ..machine import debugging
from ..passes.axes import Axes, RowForm, assign_roles
from ..passes.causality import EXACT, check_steps_apart, picks_earlier_steps
from ..passes.shapes import Specialised
from ..passes.states import RECURRENT
from .arena import CANARY_BYTES, Buffer, aligned, place
from .packing import Store
from .program import (
    Field,
    HostCall,
    HostOperand,
    Instruction,
    Means,
    Pinned,
    Place,
    Port,
    Program,
    RowCount,
    Rows,
    StateSlot,
    Stretch,
    Traced,
)
from .validate import TAIL, validate
from .weights import form_of

#: Rows (steps × batch) a block of a run aims at: weights beyond the second-level cache are then read seldom enough
#: (bench row `sequence-h512-b16`: 256 rows take 3 % less than 64).
BLOCK_ROWS: Final = 256
MOST_STEPS: Final = 64
MOST_STREAM_STEPS: Final = 16  # a stream's buffers are its own, so they are kept small
FEWEST_STEPS: Final = 4
#: Bounds of an arena: this many bytes, or in a run this many times the bytes fed.
MOST_BYTES: Final = 1 << 30
MOST_BYTES_PER_BYTE_FED: Final = 1024
NEVER: Final = 1 << 62  # the instruction after which a buffer ends that never does


class NoInstructionError(Exception):
    """This node has no instruction as it stands; it becomes a host call."""


Emitter = Callable[["Lowering", Node], None]
EMITTERS: dict[str, Emitter] = {}
#: Tried where the first finds no instruction.
FALLBACKS: dict[str, Emitter] = {}


def emits(*operators: str) -> Callable[[Emitter], Emitter]:
    """Register a function as the lowering of ONNX operators."""

    def register(emitter: Emitter) -> Emitter:
        EMITTERS.update(dict.fromkeys(operators, emitter))
        return emitter

    return register


def falls_back(*operators: str) -> Callable[[Emitter], Emitter]:
    """Register a function as the more general, slower lowering of ONNX operators."""

    def register(emitter: Emitter) -> Emitter:
        FALLBACKS.update(dict.fromkeys(operators, emitter))
        return emitter

    return register


@dataclass(frozen=True)
class Plan:
    """What kind of program is wanted."""

    causal: bool
    streamed: bool
    block: int  # steps there is room for at a time
    flat: bool = False  # no axis is time: a row holds all steps
    traced: bool = False  # recurrent layers write down what they compute


@dataclass(frozen=True)
class Kept:
    """An input that is an output's past and kept as it is, in the state region.

    ``initial``: what its elements begin with; ``blockwise``: the output is that of a whole block of steps, not of one.
    """

    input: str
    output: str
    initial: float = 0.0
    blockwise: bool = False


def block_steps(batch: int, streamed: bool) -> int:
    """Steps in a block of a causal program."""
    most = MOST_STREAM_STEPS if streamed else MOST_STEPS
    return max(FEWEST_STEPS, min(most, BLOCK_ROWS // max(batch, 1)))


class Lowering:
    """One lowering under way: where each tensor lies, and the instructions so far."""

    def __init__(self, graph: Graph, known: Specialised, plan: Plan, store: Store, means: Means) -> None:
        self.graph = graph
        self.known = known
        self.plan = plan
        self.store = store
        self.means = means
        self.weights = form_of(means.precision)
        self.dtype = self.weights.dtype
        self.roles = assign_roles(graph, known)
        if plan.flat:
            self.roles = replace(self.roles, time=())
        self.batch = self.roles.size(self.roles.batch)
        self.steps = self.roles.size(self.roles.time)
        self.block = plan.block if self.roles.time else 1
        self.rows: dict[str, Rows] = {}
        self.buffers: list[Buffer] = []
        self.instructions: list[Instruction] = []
        self.stages: list[Stretch | HostCall] = [Stretch(0)]
        self.slots: list[StateSlot] = []
        self.held: list[tuple[Kept, Rows]] = []  # states that are no recurrent node's own, and where they lie
        self.contexts: dict[str, Kept] = {}  # what windows remember, for their own instructions to keep
        self.ports: dict[str, int] = {}
        self.traces: list[tuple[Traced, Rows]] = []
        self.fallible = False
        self.consumers = graph.consumers()
        self.node: Node | None = None

    # --- places ------------------------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """The node being lowered, for messages and listings."""
        return self.node.label if self.node is not None else ""

    def is_read(self, name: str) -> bool:
        """Whether any node or the caller reads a tensor."""
        return bool(name) and (name in self.consumers or any(name == spec.name for spec in self.graph.outputs))

    def shape(self, name: str) -> tuple[int, ...]:
        """Concrete shape of a tensor."""
        return self.known.shapes[name]

    def value(self, name: str) -> np.ndarray | None:
        """Value of a tensor that no feed can change."""
        return self.known.values.get(name)

    def form(self, name: str) -> RowForm:
        """Row form of a tensor."""
        return self.roles.form(name)

    def buffer(self, size: int, name: str, persistent: bool = False) -> Place:
        """New bytes in the arena."""
        buffer = Buffer(name, aligned(max(size, 1)), persistent)
        self.buffers.append(buffer)
        return Place(buffer)

    def apart(self, size: int, name: str) -> Place:
        """New bytes in the arena that nothing else ever uses: a helping thread may come late."""
        place = self.buffer(size, name)
        place.buffer.first, place.buffer.last = 0, NEVER
        return place

    def row_stride(self, width: int, dtype: Any) -> int:
        """Bytes from row to row: the width rounded up to whole vectors of 16."""
        size = np.dtype(dtype).itemsize
        return aligned(-(-width // 16) * 16 * size)

    def new_rows(
        self, name: str, timed: bool, batched: bool, width: int, dtype: Any, stride: int = 0, together: int = 1
    ) -> Rows:
        """A new tensor in the arena."""
        dtype = np.dtype(dtype)
        stride = stride or self.row_stride(width, dtype)
        count = (self.block if timed else 1) * (self.batch if batched else 1) * together
        return Rows(self.buffer(count * stride, name), stride, timed, batched, width, dtype, together)

    def out_rows(self, name: str, timed: bool | None = None) -> Rows:
        """A new place for a node's output, in the output's own form."""
        form = self.form(name)
        return self.new_rows(
            name,
            form.timed if timed is None else timed,
            form.batched,
            self.roles.size(form.width),
            self.known.dtypes[name],
        )

    def per_step(self, rows: Rows) -> int:
        """Rows of a time step."""
        if rows.batched and rows.together == 1:
            return RowCount(self.batch)
        return (self.batch if rows.batched else 1) * rows.together

    def step_stride(self, rows: Rows) -> int:
        """Bytes from one step to the next; 0 for what stands still."""
        return self.per_step(rows) * rows.stride if rows.timed else 0

    def read(self, name: str) -> Rows:
        """Where a tensor lies; constants are laid out as rows on first use."""
        if name not in self.rows:
            value = self.value(name)
            if value is None:
                raise UnsupportedModelError(f"{self.label}: tensor '{name}' is not available")
            self.rows[name] = self.constant_rows(name, value)
        return self.rows[name]

    def read_float(self, name: str) -> Rows:
        """As read(), for an operand of the arithmetic kernels: of the program's element type."""
        rows = self.read(name)
        if rows.dtype != self.dtype:
            raise NoInstructionError(f"{rows.dtype} operand in a {self.dtype} program")
        return rows

    def constant_rows(self, name: str, value: np.ndarray) -> Rows:
        """A constant as rows: what is the same at every step or row is stored once."""
        form = self.form(name)
        physical = to_physical(value, self.roles.axes[name], self.roles.sizes, self.roles.time, self.roles.batch, form)
        timed, batched = form.timed, form.batched
        if timed and (physical == physical[:1]).all():
            physical, timed = physical[:1], False
        if batched and (physical == physical[:, :1]).all():
            physical, batched = physical[:, :1], False
        if timed and (self.plan.causal or self.plan.block != self.steps):
            raise StreamingError(
                f"{self.label}: constant '{name}' differs from step to step, so the model needs the whole sequence"
            )
        width = physical.shape[2]
        stride = self.row_stride(width, physical.dtype)
        padded = np.zeros((*physical.shape[:2], stride // physical.dtype.itemsize), physical.dtype)
        padded[:, :, :width] = physical
        packed = self.store.shared(padded, padded.dtype)
        return Rows(Pinned(packed), stride, timed, batched, width, physical.dtype)

    def uniform(self, rows: Rows, timed: bool, batched: bool) -> Rows:
        """Rows that really repeat over time and batch, for kernels that walk rows at one stride."""
        if (rows.timed or not timed) and (rows.batched or not batched):
            return rows
        copied = self.new_rows("spread", timed or rows.timed, batched or rows.batched, rows.width, rows.dtype)
        self.copy(rows, copied)
        return copied

    def sole_makers(self, name: str, opcode: Opcode, out: IntEnum) -> list[int]:
        """The instructions of this opcode that write a tensor, by the field ``out``, if one node alone reads it.

        None where another tensor that is read elsewhere lies in the same memory: what is made may then be changed.
        """
        rows = self.rows.get(name)
        if rows is None or not isinstance(rows.place, Place):
            return []
        shared = [n for n, r in self.rows.items() if isinstance(r.place, Place) and r.place.buffer is rows.place.buffer]
        shown = {spec.name for spec in self.graph.outputs}
        if any(n in shown or len(self.consumers.get(n, ())) != 1 for n in shared):
            return []
        makers = enumerate(self.instructions)
        return [i for i, made in makers if made.opcode == opcode and made.fields.get(out) == rows.place]

    # --- instructions ------------------------------------------------------------------------------------------------

    def emit(
        self,
        opcode: Opcode,
        fields: Mapping[Any, Field],
        note: str,
        weight_bytes: int = 0,
        operations: int = 0,
    ) -> None:
        """Append an instruction."""
        self.instructions.append(Instruction(opcode, dict(fields), self.label, note, weight_bytes, operations))

    def copy(self, source: Rows, target: Rows, *, last: bool = False, once: bool = False) -> None:
        """COPY rows; ``last``: of a timed source its last step; ``once``: at the beginning of a call."""
        timed = target.timed and not last
        self.emit(
            Opcode.COPY,
            {
                Copy.SOURCE: source.place,
                Copy.SOURCE_STEP: self.step_stride(source),
                Copy.SOURCE_ROW: source.stride if source.batched else 0,
                Copy.TARGET: target.place,
                Copy.TARGET_STEP: self.step_stride(target) if timed else 0,
                Copy.TARGET_ROW: target.stride,
                Copy.BYTES: source.row_bytes,
                Copy.ROWS: self.per_step(target),
                Copy.TIMED: int(timed),
                Copy.LAST: int(last),
                Copy.ONCE: int(once),
            },
            f"{self.per_step(target)} rows of {source.row_bytes} bytes"
            + (", last step" if last else ", at the start" if once else ""),
        )

    def slot(
        self,
        key: tuple[str, str, int],
        width: int,
        stride: int,
        initial: np.ndarray | None,
        elements: np.ndarray | None = None,
        dtype: Any = None,
    ) -> StateSlot:
        """A state at the front of the arena: [B][width], or rows of the places that ``elements`` tells."""
        count = self.batch if elements is None else len(elements)
        place_ = self.buffer(count * stride, ".".join(map(str, key)), persistent=True)
        slot = StateSlot(key, place_, stride, count, width, np.dtype(dtype or self.dtype), initial, elements)
        self.slots.append(slot)
        return slot

    # --- the graph ---------------------------------------------------------------------------------------------------

    def lower(self, kept: Iterable[Kept] = (), shown: Container[str] | None = None) -> Program:
        """The program; ``kept`` inputs stay in the arena; ``shown``: the outputs the caller gets, None for all."""
        states = {state.input: state for state in kept}
        for spec in self.graph.inputs:
            if spec.name in states and states[spec.name].blockwise:
                self.contexts[spec.name] = states[spec.name]
            elif spec.name in states:
                self._keep(spec.name, states[spec.name])
            else:
                self._load(spec)
        for node in self.graph.nodes:
            self._lower_node(node)
        self.node = None
        for spec in self.graph.outputs:
            if shown is None or spec.name in shown:
                self._store(spec)
        for trace, rows in self.traces:
            self._store_rows(trace.output, rows)
        self._write_back()
        return self._finish()

    def _keep(self, name: str, state: Kept) -> None:
        """A state that is no recurrent node's own: rows in the state region, written back after the block."""
        form = self.form(name)
        if form.timed and self.plan.streamed:
            raise StreamingError(f"state '{name}' runs along the time axis, so no single step can keep it")
        dtype = native(self.known.dtypes[name])
        elements = self._elements(name)
        stride = self.row_stride(elements.shape[1], dtype)
        slot = self.kept_slot(state, elements, stride, dtype)
        rows = Rows(slot.place, stride, form.timed, form.batched, elements.shape[1], dtype)
        self.rows[name] = rows
        self.held.append((state, rows))
        if not state.blockwise:
            self.block = self.block if not self.plan.streamed else 1  # the next step needs this one's output

    def kept_slot(self, state: Kept, elements: np.ndarray, stride: int, dtype: Any) -> StateSlot:
        """The slot of a kept state; ``elements``: which place of the flattened state each element of its rows is."""
        initial = np.full(elements.shape, state.initial, dtype) if state.initial else None
        return self.slot((state.input, "", 0), elements.shape[1], stride, initial, elements, dtype)

    def _elements(self, name: str) -> np.ndarray:
        """Which place of a flattened tensor each element of its rows is: [rows, width]."""
        places = np.arange(prod(self.shape(name)), dtype=np.int64).reshape(self.shape(name))
        roles = self.roles
        physical = to_physical(places, roles.axes[name], roles.sizes, roles.time, roles.batch, self.form(name))
        return physical.reshape(-1, physical.shape[2])

    def _write_back(self) -> None:
        """Put each kept state's next value where the next step looks for it."""
        kept = {_memory(rows) for _, rows in self.held}
        sources = []
        for state, held in self.held:  # all are read before any is overwritten
            source = self.read(state.output)
            if _memory(source) in kept - {_memory(held)}:
                apart = self.new_rows(state.output, source.timed, source.batched, source.width, source.dtype)
                self.copy(source, apart)
                source = apart
            sources.append(source)
        for (state, held), source in zip(self.held, sources, strict=True):
            if np.array_equal(self._elements(state.input), self._elements(state.output)):
                if _memory(source) != _memory(held):
                    self.copy(source, held, last=source.timed and not held.timed)
            else:
                self._reorder(state, source, held)

    def _reorder(self, state: Kept, source: Rows, held: Rows) -> None:
        """A next value whose elements lie in another order than the state's."""
        axes = self.roles.axes
        node = Node("Identity", (state.output,), (state.input,), name=f"{state.input} ← {state.output}")
        operands = HostOperand(source, axes[state.output]), HostOperand(held, axes[state.input])
        self._call(HostCall(node, operands[:1], operands[1:], "it reorders the elements of a row"))

    def _call(self, call: HostCall) -> None:
        self.emit(Opcode.HALT, {}, "end of a stretch")
        self.stages.append(call)
        self.stages.append(Stretch(len(self.instructions)))

    def _load(self, spec: TensorSpec) -> None:
        name = spec.name
        self.ports[name] = len(self.ports)
        if not self.is_read(name):
            return
        rows = self.out_rows(name)
        self.rows[name] = rows
        stepped = self._stepped(rows)
        self.emit(
            Opcode.LOAD,
            {
                Copy.TARGET: rows.place,
                Copy.TARGET_STEP: self.step_stride(rows),
                Copy.TARGET_ROW: rows.stride,
                Copy.BYTES: rows.row_bytes,
                Copy.ROWS: self.per_step(rows),
                Copy.TIMED: int(stepped),
                Copy.PORT: self.ports[name],
            },
            f"input {name} {rows.dtype}[{_dims(rows, self.batch)}]",
        )

    def _stepped(self, rows: Rows) -> bool:
        """Whether a port advances from step to step: with the time axis, or, in a stream without one, always."""
        return rows.timed or (self.plan.streamed and not self.roles.time)

    def _store(self, spec: TensorSpec) -> None:
        rows = self.read(spec.name)
        form = self.form(spec.name)
        rows = self.uniform(rows, form.timed, form.batched)
        self.rows[spec.name] = rows
        self._store_rows(spec.name, rows)

    def _store_rows(self, name: str, rows: Rows) -> None:
        """Give the caller rows, through a port."""
        self.ports[f"out {name}"] = len(self.ports)
        self.emit(
            Opcode.STORE,
            {
                Copy.SOURCE: rows.place,
                Copy.SOURCE_STEP: self.step_stride(rows),
                Copy.SOURCE_ROW: rows.stride,
                Copy.BYTES: rows.row_bytes,
                Copy.ROWS: self.per_step(rows),
                Copy.TIMED: int(self._stepped(rows)),
                Copy.PORT: self.ports[f"out {name}"],
            },
            f"output {name} {rows.dtype}[{_dims(rows, self.batch)}]",
        )

    def _lower_node(self, node: Node) -> None:
        self.node = node
        if all(not name or name in self.known.values for name in node.outputs):
            return
        emitters = [table[node.op] for table in (EMITTERS, FALLBACKS) if node.op in table]
        reasons = [] if emitters else ["no instruction for this operator"]
        mark = len(self.instructions), len(self.slots), len(self.buffers)
        for emitter in emitters:
            try:
                if emitter is EMITTERS.get(node.op) and self._begins_anew(node):
                    raise NoInstructionError("it begins anew at every step")
                if self.plan.causal and self.roles.time and picks_earlier_steps(self.known, self.roles, node):
                    raise NoInstructionError("it takes other steps than the last")
                emitter(self, node)
                self._check_forms(node)
                if self.plan.causal and self.roles.time:
                    made = [name for name in node.outputs if self.is_read(name)]
                    check_steps_apart(self.known, self.roles, node, made, emitted=True)
                return
            except NoInstructionError as reason:
                del self.instructions[mark[0] :], self.slots[mark[1] :], self.buffers[mark[2] :]
                reasons.append(str(reason))
        self._host(node, "; ".join(dict.fromkeys(reasons)))

    def _begins_anew(self, node: Node) -> bool:
        """Whether a recurrent node of a stream has a time axis of its own, so that no state goes from step to step."""
        if node.op not in RECURRENT or not self.plan.streamed or not self.roles.time:
            return False
        return self.roles.axes[node.input(0)][1 if node.attributes.get("layout", 0) else 0] != self.roles.time

    def _check_forms(self, node: Node) -> None:
        """An instruction's results must lie as their axes say: rows of one axis may not pass for columns of another.

        In a stream a result may have a step's rows where the axes of a whole run have only the last.
        """
        for name in node.outputs:
            if not name or name not in self.rows:
                continue
            rows, form = self.rows[name], self.form(name)
            more = (rows.timed and not form.timed and not self.plan.streamed) or (rows.batched and not form.batched)
            if more or rows.width != self.roles.size(form.width):
                del self.rows[name]
                raise NoInstructionError("it makes columns into steps or rows, or the reverse")

    def _host(self, node: Node, reason: str) -> None:
        """Run a node through its NumPy definition, between two stretches of machine code."""
        for name in self.contexts.keys() & set(node.inputs):
            self._keep(name, self.contexts.pop(name))
        operands = [self._host_operand(name) for name in node.inputs]
        lifted = any(
            isinstance(o, HostOperand) and o.rows.timed and not self.roles.form_of(o.axes).timed for o in operands
        )
        if lifted:
            self.block = 1
        if self.plan.causal and self.roles.time:
            made = [name for name in node.outputs if self.is_read(name)]
            check_steps_apart(self.known, self.roles, node, made)
            if self.plan.streamed and node.op not in EXACT:
                self.block = 1  # NumPy may add up many steps in another order than one
        elif self.plan.streamed and node.op in RECURRENT and not node.input(5):
            raise StreamingError(f"{node.label} has no instruction ({reason}), so a stream cannot carry its state")
        outputs: list[HostOperand | None] = []
        for name in node.outputs:
            if not self.is_read(name):
                outputs.append(None)
                continue
            rows = self.out_rows(name, timed=True if lifted else None)
            self.rows[name] = rows
            outputs.append(HostOperand(rows, self.roles.axes[name]))
        self._call(HostCall(node, tuple(operands), tuple(outputs), reason))

    def _host_operand(self, name: str) -> HostOperand | np.ndarray | None:
        if not name:
            return None
        value = self.value(name)
        return value if value is not None else HostOperand(self.rows[name], self.roles.axes[name])

    # --- the end -----------------------------------------------------------------------------------------------------

    def _finish(self) -> Program:
        self.emit(Opcode.HALT, {}, "end")
        self._touch()
        gap = CANARY_BYTES if debugging() else 0
        state = [buffer for buffer in self.buffers if buffer.persistent]
        end = 0
        for buffer in state:
            buffer.offset = end
            end += buffer.size
        state_bytes = end
        shadow = state_bytes if self.fallible and self.plan.streamed else 0
        start = state_bytes * (2 if shadow else 1)
        others = [buffer for buffer in self.buffers if not buffer.persistent and buffer.first >= 0]
        end = place(others, start + gap, gap)
        canaries = tuple(buffer.offset + buffer.size for buffer in others) if gap else ()
        self._check_size(end)
        code = np.stack([instruction.encoded() for instruction in self.instructions])
        program = Program(
            precision=self.weights.precision,
            parts=max((i.parts for i in self.instructions), default=1),
            batch=self.batch,
            block=self.block,
            causal=self.plan.causal,
            streamed=self.plan.streamed,
            stages=tuple(self.stages),
            code=code,
            inputs=tuple(
                self._port(spec, self.ports[spec.name]) for spec in self.graph.inputs if spec.name in self.ports
            ),
            outputs=tuple(self._outputs()),
            slots=tuple(self.slots),
            state_bytes=state_bytes,
            shadow=shadow,
            arena_bytes=end + TAIL,
            canaries=canaries,
            fallible=self.fallible,
            rows_apart=self._rows_apart(),
            row_words=tuple(
                index * WORDS + int(word)
                for index, instruction in enumerate(self.instructions)
                for word, value in instruction.fields.items()
                if isinstance(value, RowCount)
            ),
            traces=tuple(trace for trace, _ in self.traces),
            time_sizes=dict(self.roles.sizes),
            time=self.roles.time,
            batch_atoms=self.roles.batch,
            carried=self.graph.carried,
            listing=tuple(self.instructions),
        )
        validate(program)
        return program

    def _outputs(self) -> Iterator[Port]:
        """The ports of the results, and of what recurrent layers wrote down."""
        for spec in self.graph.outputs:
            if f"out {spec.name}" in self.ports:
                yield self._port(spec, self.ports[f"out {spec.name}"])
        for trace, rows in self.traces:
            yield _trace_port(trace.output, self.ports[f"out {trace.output}"], rows, self.steps, self.batch)

    def _rows_apart(self) -> bool:
        """Whether every tensor that is computed has the batch as its rows, or not at all."""
        names = {name for node in self.graph.nodes for name in node.outputs if self.is_read(name)}
        names |= {spec.name for spec in self.graph.inputs}
        computed = [name for name in names if name not in self.known.values and name in self.roles.axes]
        return not any(set(self.form(name).width) & set(self.roles.batch) for name in computed)

    def _check_size(self, arena_bytes: int) -> None:
        """No file may ask for buffers out of all proportion to what is fed."""
        fed = sum(prod(self.shape(s.name)) * np.dtype(s.dtype).itemsize for s in self.graph.inputs)
        limit = MOST_BYTES if self.plan.streamed else max(MOST_BYTES, MOST_BYTES_PER_BYTE_FED * fed)
        if arena_bytes > limit:
            largest = max(self.buffers, key=lambda buffer: buffer.size)
            raise UnsupportedModelError(
                f"{self.graph.origin}: its buffers would take {arena_bytes} bytes, {largest.size} of them for "
                f"'{largest.name}'; the limit is {limit}"
            )

    def _touch(self) -> None:
        """Lifetimes: instructions count by index, host calls as the HALT before them."""
        for index, instruction in enumerate(self.instructions):
            for value in instruction.fields.values():
                if isinstance(value, Place):
                    value.buffer.touch(index)
        position = 0
        for stage in self.stages:
            if isinstance(stage, Stretch):
                position = stage.first
                continue
            halt = self._halt_after(position)
            for operand in (*stage.inputs, *stage.outputs):
                if isinstance(operand, HostOperand) and isinstance(operand.rows.place, Place):
                    operand.rows.place.buffer.touch(halt)

    def _halt_after(self, position: int) -> int:
        while self.instructions[position].opcode != Opcode.HALT:
            position += 1
        return position

    def _port(self, spec: TensorSpec, index: int) -> Port:
        axes = self.roles.axes[spec.name]
        rows = self.rows.get(spec.name)
        time = self.roles.axis_of(spec.name, self.roles.time)
        batch = tuple(
            i for i, axis in enumerate(axes) if axis and self.roles.batch and set(axis) <= set(self.roles.batch)
        )
        if not self.roles.form(spec.name).batched:
            batch = ()
        leading = (*(() if time is None else (time,)), *batch)
        order = (*leading, *(i for i in range(len(axes)) if i not in leading))
        stepped = rows is not None and self._stepped(rows)
        return Port(
            spec.name,
            index,
            native(self.known.dtypes[spec.name]),
            self.shape(spec.name),
            time,
            batch,
            order,
            stepped,
            spec.optional,
        )


def _trace_port(name: str, index: int, rows: Rows, steps: int, batch: int) -> Port:
    """A port of rows as they lie: [T if timed][B if batched][width]."""
    shape = (*([steps] if rows.timed else []), *([batch] if rows.batched else []), rows.width)
    time = 0 if rows.timed else None
    at = (int(rows.timed),) if rows.batched else ()
    return Port(name, index, rows.dtype, shape, time, at, tuple(range(len(shape))), rows.timed)


def _memory(rows: Rows) -> int:
    """What tells the buffer or constant that rows lie in from all others."""
    return id(rows.place.buffer if isinstance(rows.place, Place) else rows.place.array)


def _dims(rows: Rows, batch: int) -> str:
    return ", ".join([*(["T"] if rows.timed else []), *([str(batch)] if rows.batched else []), str(rows.width)])


def to_physical(
    value: np.ndarray,
    axes: Axes,
    sizes: Mapping[int, int],
    time: tuple[int, ...],
    batch: tuple[int, ...],
    form: RowForm,
) -> np.ndarray:
    """A logical array as [T or 1, B or 1, width]."""
    atoms = [atom for axis in axes for atom in axis]
    spread = value.reshape([sizes[atom] for atom in atoms])
    order = [*(time if form.timed else ()), *(batch if form.batched else ()), *form.width]
    moved = spread.transpose([atoms.index(atom) for atom in order])
    steps = prod(sizes[atom] for atom in time) if form.timed else 1
    rows = prod(sizes[atom] for atom in batch) if form.batched else 1
    physical: np.ndarray = moved.reshape(steps, rows, prod(sizes[atom] for atom in form.width))
    return physical
