"""What a model is and what it is lowered to: collected as plain values, shown as tables."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..encoding import Opcode, port_word
from ..encoding import Port as PortWord
from ..engine import BYTES_PER_SECOND, OPERATIONS_PER_SECOND, Runner
from ..errors import LstmEngineError, ModelFormatError, TargetError
from ..generation import Vocabulary, score_meaning
from ..precision import sizes
from ..program.plan import lower_run, probe_shapes
from ..program.program import HostCall, Instruction, Program

if TYPE_CHECKING:
    from ..model import Model

_ROUNDS: Final = 5
_TIMED_SECONDS: Final = 0.02 / _ROUNDS  # spent on each instruction in a round


@dataclass(frozen=True)
class _Lowering:
    """The program that inspect shows: that of a stream if there is one, else of a whole sequence."""

    program: Program | None
    streams: bool
    why_not: str  # it does not stream, or cannot be lowered


def described(model: Model, batch: int = 1, timed: bool = False) -> dict[str, Any]:
    """A model and its program as values that JSON can hold.

    ``batch``: rows of the stream whose program is shown. ``timed``: measure each instruction's time instead of
    estimating it. What cannot be lowered, or a vocabulary that cannot be used, is part of the description.
    """
    lowering = _lowered(model, batch)
    return {**_described_model(model), **_described_streaming(lowering), "program": _described_program(lowering, timed)}


def _lowered(model: Model, batch: int) -> _Lowering:
    try:
        return _Lowering(model.streamable(model.graph, batch).program, True, "")
    except TargetError:  # no fault of the model
        raise
    except LstmEngineError as fault:
        why_not = str(fault)
    try:
        lowered = lower_run(model.graph, probe_shapes(model.graph), model.store, model.means)
        return _Lowering(lowered.program, False, why_not)
    except LstmEngineError as fault:
        return _Lowering(None, False, f"{why_not}; and for a whole sequence: {fault}")


def _described_model(model: Model) -> dict[str, Any]:
    parameters, less_precise, size = sizes(model.graph, model.precision)
    return {
        "model": model.graph.origin,
        "fingerprint": model.fingerprint,
        "precision": model.precision,
        "inputs": [_described_spec(spec) for spec in model.inputs],
        "outputs": [_described_spec(spec) for spec in model.outputs],
        "states": [{"input": source, "output": target} for source, target in model.states],
        "nodes": len(model.graph.nodes),
        "parameters": parameters,
        "less_precise": less_precise,
        "parameter_bytes": size,
        "metadata": dict(model.metadata),
        "vocabulary": _described_vocabulary(model),
    }


def _described_spec(spec: Any) -> dict[str, Any]:
    shape = None if spec.shape is None else list(spec.shape)
    return {"name": spec.name, "dtype": str(np.dtype(spec.dtype)), "shape": shape, "optional": spec.optional}


def _described_vocabulary(model: Model) -> dict[str, Any] | None:
    try:
        vocabulary = Vocabulary.of(model)
    except (ModelFormatError, OSError) as fault:  # the file beside the model may be unreadable
        return {"fault": str(fault)}
    if vocabulary is None:
        return None
    special = {"unknown": vocabulary.unknown, "boundary": vocabulary.boundary}
    carried = {target for _, target in model.states}
    scores = [spec.name for spec in model.outputs if spec.name not in carried]
    return {
        "tokens": len(vocabulary),
        "unit": vocabulary.unit,
        **{name: None if token is None else vocabulary.text(token) for name, token in special.items()},
        "scores": {name: score_meaning(model.graph, name) for name in scores},
    }


def _described_streaming(lowering: _Lowering) -> dict[str, Any]:
    return {"streams": lowering.streams, "why_not": lowering.why_not or None}


def _described_program(lowering: _Lowering, timed: bool) -> dict[str, Any] | None:
    program = lowering.program
    if program is None:
        return None
    shares, measured = _shares(program, timed)
    rows = [_described_stage(index, part, shares) for index, part in enumerate(_in_order(program))]
    return {
        "for": "a step of a stream" if lowering.streams else "a whole sequence",
        "batch": program.batch,
        "block": program.block,
        "arena_bytes": program.arena_bytes,
        "state_bytes": program.state_bytes,
        "weight_bytes": sum(instruction.weight_bytes for instruction in program.listing),
        "operations": sum(instruction.operations for instruction in program.listing),
        "measured": measured,
        "instructions": rows,
        "host_calls": [{"node": call.node.label, "reason": call.reason} for call in program.hosts],
    }


def _described_stage(index: int, part: Instruction | HostCall, shares: Mapping[int, float]) -> dict[str, Any]:
    if isinstance(part, HostCall):
        return {
            "index": index,
            "opcode": "host call",
            "node": part.node.label,
            "what": part.reason,
            "bytes": 0,
            "share": None,
        }
    return {
        "index": index,
        "opcode": part.opcode.name,
        "node": part.node,
        "what": part.note,
        "bytes": part.weight_bytes,
        "share": shares.get(id(part)),
    }


def _in_order(program: Program) -> Iterator[Instruction | HostCall]:
    """Instructions and host calls as they run, without what only marks an end."""
    for stage in program.stages:
        if isinstance(stage, HostCall):
            yield stage
            continue
        for instruction in program.listing[stage.first :]:
            if instruction.opcode == Opcode.HALT:
                break
            yield instruction


# --- shares of the time ----------------------------------------------------------------------------------------------


def _shares(program: Program, timed: bool) -> tuple[dict[int, float], bool]:
    """Each instruction's part of the time, by identity; second, whether it was measured.

    A program with host calls is not measured: Python's part of it is most of the time, and none of the table's.
    """
    measured = timed and not program.hosts
    seconds = _measured(program) if measured else [_estimated(instruction) for instruction in program.listing]
    total = sum(seconds)
    if total <= 0:
        return {}, measured
    return {id(i): s / total for i, s in zip(program.listing, seconds, strict=True)}, measured


def _estimated(instruction: Instruction) -> float:
    return max(instruction.weight_bytes / BYTES_PER_SECOND, instruction.operations / OPERATIONS_PER_SECOND)


def _measured(program: Program) -> list[float]:
    """Seconds of each instruction: how much longer the program takes with it than when it halts before it."""
    runner = Runner(program)
    held = _bound_to_zeros(runner)
    whole = runner.code.copy()
    until = [float("inf")] * len(program.listing)
    for _ in range(_ROUNDS):  # a busy moment falls on one round, not on one instruction
        for count in range(len(program.listing)):
            runner.code[...] = whole
            runner.code[count] = 0
            runner.code[count, 0] = int(Opcode.HALT)
            until[count] = min(until[count], _quickest(runner))
    del held
    return [max(after - before, 0.0) for before, after in zip(until, [*until[1:], until[-1]], strict=True)]


def _bound_to_zeros(runner: Runner) -> list[np.ndarray]:
    """Arrays of zeros behind all ports, for one step or one whole sequence; keep them alive."""
    steps, held = _steps(runner.program), []
    for port in (*runner.program.inputs, *runner.program.outputs):
        widths = [size for axis, size in enumerate(port.shape) if axis != port.time and axis not in port.batch]
        rows = math.prod(port.shape[axis] for axis in port.batch)
        array = np.zeros((steps, rows, math.prod(widths)), port.dtype)
        base = port_word(port.index, PortWord.ADDRESS)
        runner.context[base : base + 3] = (array.ctypes.data, array.strides[0], array.strides[1])
        held.append(array)
    return held


def _steps(program: Program) -> int:
    """Steps of the call that is measured."""
    if program.streamed:
        return 1
    return next((port.shape[port.time] for port in program.inputs if port.time is not None), 1)


def _quickest(runner: Runner) -> float:
    """The quickest of many runs, in seconds."""
    steps = _steps(runner.program)
    best = float("inf")
    end = time.perf_counter() + _TIMED_SECONDS
    while True:
        start = time.perf_counter()
        runner.run(steps)
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return best


# --- tables ----------------------------------------------------------------------------------------------------------


def shown(description: Mapping[str, Any]) -> RenderableType:
    """What described() returned, for people."""
    parts: list[RenderableType] = [_summary(description)]
    if description["program"] is not None:
        parts += [_heading(description["program"]), _instructions(description["program"])]
    return Group(*parts)


def _summary(description: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in summary_rows(description):
        table.add_row(name, Text(value))
    return table


def summary_rows(description: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is true of the whole model: names and values."""
    yield "model", description["model"]
    for heading in ("inputs", "outputs"):
        for index, spec in enumerate(description[heading]):
            yield ("" if index else heading), _spec_line(spec)
    states = ", ".join(f"{pair['input']} ← {pair['output']}" for pair in description["states"])
    yield "states", states or "none among the inputs"
    yield "streams", "yes" if description["streams"] else f"no: {description['why_not']}"
    count, size = description["parameters"], description["parameter_bytes"]
    less = f", {description['less_precise']:,} of them" if description["less_precise"] else ""
    yield "parameters", f"{count:,} ({size_text(size)}{less} as {description['precision']})"
    if description["vocabulary"] is not None:
        yield "vocabulary", _vocabulary_line(description["vocabulary"])
    if description["metadata"]:
        yield "metadata", ", ".join(description["metadata"])
    yield "fingerprint", description["fingerprint"][:16]


def _spec_line(spec: Mapping[str, Any]) -> str:
    dims = "?" if spec["shape"] is None else ", ".join("?" if d is None else str(d) for d in spec["shape"])
    return f"{spec['name']}: {spec['dtype']}[{dims}]{' (optional)' if spec['optional'] else ''}"


def _vocabulary_line(vocabulary: Mapping[str, Any]) -> str:
    if "fault" in vocabulary:
        return f"unusable: {vocabulary['fault']}"
    parts = [f"{vocabulary['tokens']} tokens"]
    parts += [f"unit {vocabulary['unit']}"] if vocabulary["unit"] else []
    parts += [f"{name} {vocabulary[name]!r}" for name in ("unknown", "boundary") if vocabulary[name] is not None]
    parts += [f"{name} are {meaning}" for name, meaning in vocabulary["scores"].items()]
    return ", ".join(parts)


def _heading(program: Mapping[str, Any]) -> Text:
    first = f"\nProgram for {program['for']}, batch {program['batch']}"
    first += ", times measured" if program["measured"] else ", times estimated"
    facts = [
        f"weights {size_text(program['weight_bytes'])}",
        f"state {size_text(program['state_bytes'])}",
        f"arena {size_text(program['arena_bytes'])}",
        f"{program['operations']:,} operations a step",
    ]
    return Text.assemble((first, "bold"), "\n" + ", ".join(facts))


def _instructions(program: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for name, right in (("#", True), ("opcode", False), ("node", False), ("what", False), ("weights", True)):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    table.add_column("time" if program["measured"] else "≈ time", justify="right")
    for row in program["instructions"]:
        share = "" if row["share"] is None else f"{row['share']:.1%}"
        cells = [str(row["index"]), row["opcode"], row["node"], row["what"], size_text(row["bytes"], zero=""), share]
        style = "yellow" if row["opcode"] == "host call" else None
        table.add_row(*map(Text, cells), style=style)
    return table


def size_text(count: int, zero: str = "0 B") -> str:
    """A size for people."""
    if count == 0:
        return zero
    size, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{count} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def printed(description: Mapping[str, Any], console: Console) -> None:
    """Print the tables."""
    console.print(shown(description))


__all__: Sequence[str] = ["described", "printed", "shown", "size_text", "summary_rows"]
