"""The executor: one compiled function that runs any Program over an arena, a whole call at a time.

It takes one address (the context, encoding.Context) and returns 0, or a fault code with the place and
value in the context. A new model compiles nothing: images hold the kernels of sets of instructions (`images.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import FunctionType
from typing import Any, Final

from ..encoding import (
    ABSENT,
    BUSY,
    FORM_WORDS,
    INSTRUCTION_BYTES,
    NOT_FITTING,
    PORT_WORDS,
    RUNG,
    Context,
    Job,
    Opcode,
    Port,
    Share,
)
from ..image import Progress
from ..jit import compile_kernel, kernel
from . import convolution, integers, matmul, pointwise, pool, recurrent, reduction, rows, workers
from . import dense as dense_kernels
from . import lstm as lstm_kernels
from .arrays import data_of, matches
from .product import gathering_rows, product_rows
from .shares import dismissed, rung
from .simd import (
    copy_bytes,
    flush_denormals,
    invoke,
    lanes,
    release,
    restore_denormals,
    set_word,
    try_acquire,
    word,
    word32,
)
from .weights import LINES_AHEAD, Floats, weights_of

(
    HALT,
    LOAD,
    STORE,
    COPY,
    EMBED,
    LSTM,
    CELL,
    DENSE,
    MAP,
    JOIN,
    SOFTMAX,
    RECURRENT,
    CONVOLUTION,
    REARRANGE,
    REDUCE,
    MATMUL,
    CONVERT,
    INTEGERS,
    SELECT,
    PICK,
    TRACED_LSTM,
    TRACED_CELL,
    TRACED_RECURRENT,
) = (int(code) for code in Opcode)
SIZE = INSTRUCTION_BYTES
PLAIN, GENERAL = int(Job.PLAIN), int(Job.GENERAL)
(
    CODE, ARENA, CONSTANTS, EXECUTOR, BUSY_WORD, STEPS, TOTAL, BLOCK, DONE, PARITY, STATE_BYTES, SHADOW, FAULT_AT,
    FAULT_VALUE, FAULT_LIMIT, FORMS, START, _, HELPER_COUNT, _, _, PORTS,
) = (int(w) * 8 for w in Context)  # fmt: skip
KIND, CALLER = int(Share.KIND) * 8, int(Share.CONTEXT) * 8
FORM_BYTES = FORM_WORDS * 8
FIRST_PORT = PORTS + int(Port.ADDRESS) * 8
SECOND_PORT = FIRST_PORT + PORT_WORDS * 8


#: The kernels of each opcode by their names in run() and call().
_NAMES: Final[Mapping[Opcode, tuple[str, ...]]] = {
    Opcode.LOAD: ("load",),
    Opcode.STORE: ("store",),
    Opcode.COPY: ("copy",),
    Opcode.EMBED: ("embed",),
    Opcode.LSTM: ("lstm", "lstm_share", "projection_share"),
    Opcode.CELL: ("cell", "cell_share", "projection_share"),
    Opcode.DENSE: ("dense",),
    Opcode.MAP: ("map_",),
    Opcode.JOIN: ("join",),
    Opcode.SOFTMAX: ("softmax",),
    Opcode.RECURRENT: ("recurrent_",),
    Opcode.CONVOLUTION: ("convolution_",),
    Opcode.REARRANGE: ("rearrange",),
    Opcode.REDUCE: ("reduce",),
    Opcode.MATMUL: ("matmul_",),
    Opcode.CONVERT: ("convert",),
    Opcode.INTEGERS: ("join_integers",),
    Opcode.SELECT: ("select",),
    Opcode.PICK: ("pick",),
    Opcode.TRACED_LSTM: ("traced_lstm",),
    Opcode.TRACED_CELL: ("traced_cell",),
    Opcode.TRACED_RECURRENT: ("traced_recurrent",),
}


def kernels_of(precision: str, lines_ahead: int = LINES_AHEAD) -> dict[str, Any]:
    """The kernels of a precision, not yet compiled, by the names that run() and call() know them by.

    ``lines_ahead``: how many lines of weights are asked for before they are needed.
    """
    v = lanes("float64" if precision == "float64" else "float32")
    weights = weights_of(precision, v, lines_ahead)
    product, product_narrow = product_rows(weights, 4), product_rows(weights, 1)
    floats_narrow = product_narrow if type(weights) is Floats else product_rows(Floats(v), 1)
    activate = pointwise.activation(v)
    parts = {
        **rows.kernels(),
        **lstm_kernels.kernels(weights, product, floats_narrow, activate),
        "recurrent_": recurrent.recurrent_rows(weights, product, product_narrow, activate, False),
        "traced_recurrent": recurrent.recurrent_rows(weights, product, product_narrow, activate, True),
        "convolution_": convolution.convolution_rows(v, gathering_rows(v, 4), gathering_rows(v, 1)),
        "dense": dense_kernels.dense_rows(weights, product, product_narrow),
        **pointwise.kernels(v, activate),
        "reduce": reduction.reduce_rows(v),
        "matmul_": matmul.matmul_rows(v, floats_narrow),
        **integers.kernels(v),
    }
    assert set(parts) == {name for names in _NAMES.values() for name in names}, "a kernel belongs to no opcode"
    return parts


def build(precision: str, opcodes: Collection[Opcode], progress: Progress) -> dict[str, Any]:
    """The executor ("call") of a precision with the kernels of these opcodes, each compiled first."""
    wanted = {name for opcode in opcodes for name in _NAMES.get(opcode, ())}
    chosen = {name: part if name in wanted else absent for name, part in kernels_of(precision).items()}
    for done, name in enumerate(sorted(wanted)):
        progress(name, done, len(wanted) + 1)
        compile_kernel(chosen[name], 2)
    progress("executor", len(wanted), len(wanted) + 1)
    chosen["run"] = kernel(_with_globals(run, chosen))
    return {"call": kernel(_with_globals(call, chosen))}


def kernel_of(opcode: Opcode, parts: Mapping[str, Any]) -> Any:
    """The kernel that runs an instruction."""
    return parts[_NAMES[opcode][0]]


@kernel
def absent(ip, cx):  # type: ignore[no-untyped-def]
    """In the place of a kernel that no program of this image asks for."""
    return ABSENT


def _with_globals(function: Any, names: dict[str, Any]) -> FunctionType:
    """A copy of a function that finds ``names`` among its globals."""
    return FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__)


def call_with(instructions: Any) -> FunctionType:
    """call(), with another run(): that of one program alone."""
    return _with_globals(call, {"run": instructions})


# The names below that no import binds are the kernels that build() puts into the globals.
def run(code, cx):  # type: ignore[no-untyped-def]
    """Run instructions until HALT or a fault."""
    ip = code
    while True:
        op = word(ip)
        fault = 0
        if op == LSTM:
            fault = lstm(ip, cx)  # noqa: F821
        elif op == DENSE:
            fault = dense(ip, cx)  # noqa: F821
        elif op == LOAD:
            fault = load(ip, cx)  # noqa: F821
        elif op == STORE:
            fault = store(ip, cx)  # noqa: F821
        elif op == EMBED:
            fault = embed(ip, cx)  # noqa: F821
        elif op == COPY:
            fault = copy(ip, cx)  # noqa: F821
        elif op == MAP:
            fault = map_(ip, cx)  # noqa: F821
        elif op == JOIN:
            fault = join(ip, cx)  # noqa: F821
        elif op == SOFTMAX:
            fault = softmax(ip, cx)  # noqa: F821
        elif op == CELL:
            fault = cell(ip, cx)  # noqa: F821
        elif op == RECURRENT:
            fault = recurrent_(ip, cx)  # noqa: F821
        elif op == CONVOLUTION:
            fault = convolution_(ip, cx)  # noqa: F821
        elif op == REARRANGE:
            fault = rearrange(ip, cx)  # noqa: F821
        elif op == REDUCE:
            fault = reduce(ip, cx)  # noqa: F821
        elif op == MATMUL:
            fault = matmul_(ip, cx)  # noqa: F821
        elif op == CONVERT:
            fault = convert(ip, cx)  # noqa: F821
        elif op == INTEGERS:
            fault = join_integers(ip, cx)  # noqa: F821
        elif op == SELECT:
            fault = select(ip, cx)  # noqa: F821
        elif op == PICK:
            fault = pick(ip, cx)  # noqa: F821
        elif op == TRACED_LSTM:
            fault = traced_lstm(ip, cx)  # noqa: F821
        elif op == TRACED_CELL:
            fault = traced_cell(ip, cx)  # noqa: F821
        elif op == TRACED_RECURRENT:
            fault = traced_recurrent(ip, cx)  # noqa: F821
        else:
            return 0
        if fault != 0:
            set_word(cx + FAULT_AT, ip)
            return fault
        ip += SIZE


def call(cx):  # type: ignore[no-untyped-def]
    """One call, block after block; on a fault the state is put back as it was. Of a job: a helper's share."""
    if word(cx) == 0:
        caller = word(cx + CALLER)
        kind = word(cx + KIND)
        if kind == PLAIN:
            return lstm_share(cx, caller)  # noqa: F821
        return cell_share(cx, caller) if kind == GENERAL else projection_share(cx, caller)  # noqa: F821
    control = flush_denormals()
    total, block = word(cx + TOTAL), word(cx + BLOCK)
    arena, shadow, state_bytes = word(cx + ARENA), word(cx + SHADOW), word(cx + STATE_BYTES)
    if shadow != 0:
        copy_bytes(arena + shadow, arena, state_bytes)
    parity = word(cx + PARITY)
    start = word(cx + START)
    fault = 0
    done = 0
    while done < total and fault == 0:
        n = min(block, total - done)
        set_word(cx + STEPS, n)
        set_word(cx + DONE, start + done)
        fault = run(word(cx + CODE), cx)
        done += n
        set_word(cx + PARITY, parity + done)
    if fault != 0 and shadow != 0:
        copy_bytes(arena, arena + shadow, state_bytes)
    if word(cx + HELPER_COUNT) != 0:
        dismissed(cx)
    restore_denormals(control)
    return fault


@kernel
def called(cx):  # type: ignore[no-untyped-def]
    """Run; RUNG if a helper is to be woken before the next call."""
    fault = invoke(word(cx + EXECUTOR), cx)
    if fault == 0 and rung(cx):
        return RUNG
    return fault


@kernel
def enter(cx, x, out):  # type: ignore[no-untyped-def]
    """The shortest way from Python: run with two NumPy arrays (their objects' addresses) as the first two ports, both
    with the batch axis or both without.

    NOT_FITTING if the arrays need converting, BUSY if another caller is running here: nothing has then happened.
    """
    forms = word(cx + FORMS)
    kind = matches(x, forms)
    if kind == 0 or matches(out, forms + FORM_BYTES) != kind:
        return NOT_FITTING
    if try_acquire(cx + BUSY_WORD) == 0:
        return BUSY
    set_word(cx + FIRST_PORT, data_of(x, forms))
    set_word(cx + SECOND_PORT, data_of(out, forms))
    fault = called(cx)
    release(cx + BUSY_WORD)
    return fault


@kernel
def acquire(cx):  # type: ignore[no-untyped-def]
    """Have the context to oneself; 1 if so, 0 if another caller has it."""
    return try_acquire(cx + BUSY_WORD)


@kernel
def give_up(cx):  # type: ignore[no-untyped-def]
    """The end of what acquire() began."""
    release(cx + BUSY_WORD)
    return 0


@kernel
def bind(cx, port, step, row, array):  # type: ignore[no-untyped-def]
    """Point a port (the index of its words) at an array with these strides; 1 if the array is C-contiguous, else 0."""
    fields = array + word(word(cx + FORMS))
    at = cx + 8 * port
    set_word(at, word(fields))
    set_word(at + 8, step)
    set_word(at + 16, row)
    return word32(fields + 48) & 1


@kernel
def enter_context(cx):  # type: ignore[no-untyped-def]
    """Run with the ports as the context has them."""
    return called(cx)


def ways_in() -> dict[str, Any]:
    """The ways in from Python, by name."""
    return {
        "enter": enter,
        "enter_context": enter_context,
        "bind": bind,
        "acquire": acquire,
        "give_up": give_up,
        "run_slots": pool.run_slots,
        "step_slots": pool.step_slots,
        "serve": workers.serve,
        "clock": workers.clock,
    }
