"""Lowering: a graph and concrete shapes become a Program.

Each tensor gets a place as rows [T][B][width] (passes/axes.py); operators that only regroup or reorder axes
become other views of the same rows; the others become instructions, or host calls where there is no
instruction. A *causal* lowering serves any number of steps, block by block; a *streamed* one moreover keeps its
state from call to call and gives every step what the model gives its last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np

from ..encoding import Copy, Opcode
from ..errors import StreamingError, UnsupportedModelError
from ..graph import Graph, Node, TensorSpec, native
from ..machine import debugging
from ..passes.axes import ELEMENTWISE, Axes, RowForm, assign_roles
from ..passes.shapes import Specialised
from .arena import CANARY_BYTES, Buffer, aligned, place
from .packing import Store, aligned_copy
from .program import Field, HostCall, HostOperand, Instruction, Pinned, Place, Port, Program, Rows, StateSlot, Stretch
from .validate import TAIL, validate

#: Rows (steps × batch) a block of a run aims at: weights beyond the second-level cache are then read seldom enough
#: (bench row `sequence-h512-b16`: 256 rows take 3 % less than 64).
BLOCK_ROWS: Final = 256
MOST_STEPS: Final = 64
MOST_STREAM_STEPS: Final = 16  # a stream's buffers are its own, so they are kept small
FEWEST_STEPS: Final = 4
#: Bounds of an arena: this many bytes, or in a run this many times the bytes fed.
MOST_BYTES: Final = 1 << 30
MOST_BYTES_PER_BYTE_FED: Final = 1024


class NoInstructionError(Exception):
    """This node has no instruction as it stands; it becomes a host call."""


Emitter = Callable[["Lowering", Node], None]
EMITTERS: dict[str, Emitter] = {}


def emits(*operators: str) -> Callable[[Emitter], Emitter]:
    """Register a function as the lowering of ONNX operators."""

    def register(emitter: Emitter) -> Emitter:
        EMITTERS.update(dict.fromkeys(operators, emitter))
        return emitter

    return register


@dataclass(frozen=True)
class Plan:
    """What kind of program is wanted."""

    causal: bool
    streamed: bool
    block: int  # steps there is room for at a time


def block_steps(batch: int, streamed: bool) -> int:
    """Steps in a block of a causal program."""
    most = MOST_STREAM_STEPS if streamed else MOST_STEPS
    return max(FEWEST_STEPS, min(most, BLOCK_ROWS // max(batch, 1)))


class Lowering:
    """One lowering under way: where each tensor lies, and the instructions so far."""

    def __init__(self, graph: Graph, known: Specialised, plan: Plan, store: Store, element: str) -> None:
        self.graph = graph
        self.known = known
        self.plan = plan
        self.store = store
        self.dtype = np.dtype(element)
        self.roles = assign_roles(graph, known)
        self.batch = self.roles.size(self.roles.batch)
        self.steps = self.roles.size(self.roles.time)
        self.block = plan.block if self.roles.time else 1
        self.rows: dict[str, Rows] = {}
        self.buffers: list[Buffer] = []
        self.instructions: list[Instruction] = []
        self.stages: list[Stretch | HostCall] = [Stretch(0)]
        self.slots: list[StateSlot] = []
        self.pairs: list[tuple[str, StateSlot]] = []  # outputs to copy into a state of their own
        self.ports: dict[str, int] = {}
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

    def row_stride(self, width: int, dtype: Any) -> int:
        """Bytes from row to row: the width rounded up to whole vectors of 16."""
        size = np.dtype(dtype).itemsize
        return aligned(-(-width // 16) * 16 * size)

    def new_rows(self, name: str, timed: bool, batched: bool, width: int, dtype: Any, stride: int = 0) -> Rows:
        """A new tensor in the arena."""
        dtype = np.dtype(dtype)
        stride = stride or self.row_stride(width, dtype)
        count = (self.block if timed else 1) * (self.batch if batched else 1)
        return Rows(self.buffer(count * stride, name), stride, timed, batched, width, dtype)

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
        return self.batch if rows.batched else 1

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
        key = ("rows", name, padded.shape, hashlib.blake2b(padded.tobytes()).digest())
        packed = self.store.get(key, lambda: aligned_copy(padded, padded.dtype))
        return Rows(Pinned(packed), stride, timed, batched, width, physical.dtype)

    def uniform(self, rows: Rows, timed: bool, batched: bool) -> Rows:
        """Rows that really repeat over time and batch, for kernels that walk rows at one stride."""
        if (rows.timed or not timed) and (rows.batched or not batched):
            return rows
        copied = self.new_rows("spread", timed or rows.timed, batched or rows.batched, rows.width, rows.dtype)
        self.copy(rows, copied)
        return copied

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

    def slot(self, key: tuple[str, str, int], width: int, stride: int, initial: np.ndarray | None) -> StateSlot:
        """A recurrent state [B][width] at the front of the arena."""
        place_ = self.buffer(self.batch * stride, ".".join(map(str, key)), persistent=True)
        slot = StateSlot(key, place_, stride, self.batch, width, self.dtype, initial)
        self.slots.append(slot)
        return slot

    # --- the graph ---------------------------------------------------------------------------------------------------

    def lower(self, states: Mapping[str, str]) -> Program:
        """The program; ``states`` are inputs kept in the arena and the outputs they are the past of."""
        for spec in self.graph.inputs:
            if spec.name in states:
                self._keep(spec, states[spec.name])
            else:
                self._load(spec)
        for node in self.graph.nodes:
            self._lower_node(node)
        self.node = None
        for spec in self.graph.outputs:
            if spec.name not in states.values():
                self._store(spec)
        for output, slot in self.pairs:
            held = Rows(slot.place, slot.stride, False, True, slot.width, slot.dtype)
            source = self.read(output)
            self.copy(source, held, last=source.timed)
        return self._finish()

    def _keep(self, spec: TensorSpec, output: str) -> None:
        """A state that is no recurrent node's own: rows in the state region, written back after the block."""
        form = self.form(spec.name)
        if form.timed or (self.batch > 1 and not form.batched):
            raise StreamingError(f"state '{spec}' has no batch axis of its own, so streams cannot keep it apart")
        width = self.roles.size(form.width)
        slot = self.slot((spec.name, "", 0), width, self.row_stride(width, self.dtype), None)
        self.rows[spec.name] = Rows(slot.place, slot.stride, False, form.batched, width, self.dtype)
        self.pairs.append((output, slot))
        self.block = 1  # the next step needs this one's output

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
        self.ports[f"out {spec.name}"] = len(self.ports)
        self.emit(
            Opcode.STORE,
            {
                Copy.SOURCE: rows.place,
                Copy.SOURCE_STEP: self.step_stride(rows),
                Copy.SOURCE_ROW: rows.stride,
                Copy.BYTES: rows.row_bytes,
                Copy.ROWS: self.per_step(rows),
                Copy.TIMED: int(self._stepped(rows)),
                Copy.PORT: self.ports[f"out {spec.name}"],
            },
            f"output {spec.name} {rows.dtype}[{_dims(rows, self.batch)}]",
        )

    def _lower_node(self, node: Node) -> None:
        self.node = node
        if all(not name or name in self.known.values for name in node.outputs):
            return
        emitter = EMITTERS.get(node.op)
        mark = len(self.instructions), len(self.slots), len(self.buffers)
        try:
            if emitter is None:
                raise NoInstructionError("no instruction for this operator")
            emitter(self, node)
        except NoInstructionError as reason:
            del self.instructions[mark[0] :], self.slots[mark[1] :], self.buffers[mark[2] :]
            self._host(node, str(reason))

    def _host(self, node: Node, reason: str) -> None:
        """Run a node through its NumPy definition, between two stretches of machine code."""
        operands = [self._host_operand(name) for name in node.inputs]
        lifted = any(
            isinstance(o, HostOperand) and o.rows.timed and not self.roles.form_of(o.axes).timed for o in operands
        )
        if lifted:
            self.block = 1
        if self.plan.causal and self.roles.time:
            _check_steps_apart(self, node)
        outputs: list[HostOperand | None] = []
        for name in node.outputs:
            if not self.is_read(name):
                outputs.append(None)
                continue
            rows = self.out_rows(name, timed=True if lifted else None)
            self.rows[name] = rows
            outputs.append(HostOperand(rows, self.roles.axes[name]))
        self.emit(Opcode.HALT, {}, "end of a stretch")
        self.stages.append(HostCall(node, tuple(operands), tuple(outputs), reason))
        self.stages.append(Stretch(len(self.instructions)))

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
            element=self.dtype.name,
            batch=self.batch,
            block=self.block,
            causal=self.plan.causal,
            streamed=self.plan.streamed,
            stages=tuple(self.stages),
            code=code,
            inputs=tuple(
                self._port(spec, self.ports[spec.name]) for spec in self.graph.inputs if spec.name in self.ports
            ),
            outputs=tuple(
                self._port(spec, self.ports[f"out {spec.name}"])
                for spec in self.graph.outputs
                if f"out {spec.name}" in self.ports
            ),
            slots=tuple(self.slots),
            state_bytes=state_bytes,
            shadow=shadow,
            arena_bytes=end + TAIL,
            canaries=canaries,
            fallible=self.fallible,
            time_sizes=dict(self.roles.sizes),
            time=self.roles.time,
            batch_atoms=self.roles.batch,
            listing=tuple(self.instructions),
        )
        validate(program)
        return program

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
            for operand in (*stage.inputs, *stage.outputs):
                if isinstance(operand, HostOperand) and isinstance(operand.rows.place, Place):
                    operand.rows.place.buffer.touch(self._halt_after(position))

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


def _dims(rows: Rows, batch: int) -> str:
    return ", ".join([*(["T"] if rows.timed else []), *([str(batch)] if rows.batched else []), str(rows.width)])


#: Host operators whose result at a step depends on that step alone, wherever their time axis is kept as it is.
_STEPWISE: Final = ELEMENTWISE | {
    "ArgMax", "ArgMin", "BatchNormalization", "Clip", "Concat", "Gather", "Gemm", "LayerNormalization", "LogSoftmax",
    "MatMul", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Slice", "Softmax", "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


def _check_steps_apart(lowering: Lowering, node: Node) -> None:
    """A causal program may run a host call block by block only if no step of it looks at another."""
    roles = lowering.roles
    timed = [name for name in node.inputs if name and name not in lowering.known.values and roles.form(name).timed]
    if not timed:
        return
    time_axes = {roles.axis_of(name, roles.time) for name in (*timed, *filter(None, node.outputs))}
    axis = node.attributes.get("axis")
    rank = len(lowering.shape(timed[0]))
    along_time = node.op in ("Softmax", "LogSoftmax", "Concat") and (
        "flatten_from" in node.attributes or (-1 if axis is None else axis) % rank in time_axes
    )
    if node.op not in _STEPWISE or None in time_axes or along_time:
        raise StreamingError(f"{node.label} looks at more than one time step, so the model needs the whole sequence")


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
