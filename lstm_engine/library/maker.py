"""The process that makes a library: an order on standard input, the library on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError, LstmEngineError, StreamingError, UnsupportedModelError, listed
from ..graph import Graph
from ..machine import Target, assume
from ..program.packing import Store
from ..program.program import Means
from ..program.streaming import Frames, Streamable, lower_stream
from .order import MARK, Order


def answer() -> None:
    """Take the order, make the library, tell of it."""
    given = json.load(sys.stdin)
    order = Order(**{**given, "machine": Target(**given["machine"])})
    assume(order.machine)
    try:
        pieces, description = _made(order)
        told: dict[str, Any] = {"sizes": [len(piece) for piece in pieces], "description": description}
    except LstmEngineError as fault:
        pieces, told = [], {"error": type(fault).__name__, "message": str(fault)}
    sys.stdout.buffer.write(MARK + json.dumps(told).encode() + b"\n" + b"".join(pieces))


def _made(order: Order) -> tuple[list[bytes], Mapping[str, Any]]:
    from ..formats import read
    from .emitting import emitted
    from .layout import Layout

    graph = read(order.archive)
    lowered = lowered_for(graph, order)
    refuse_host_calls(graph, lowered)
    layout = Layout(lowered, order.fingerprint, order.apart, order.flushes)
    if layout.copied:
        raise UnsupportedModelError(
            f"{graph.origin}: rows of {', '.join(map(repr, layout.copied))} are not in one piece, so a library cannot "
            "take them as they lie; a batch of 1 can"
        )
    done = emitted(layout, order.machine, order.name, order.assembly)
    return [done.object, done.assembly, done.weights], done.description


def lowered_for(graph: Graph, order: Order) -> Streamable:
    """The program of a library: of steps, of frames, or, where shapes are given, of calls of those shapes.

    Raises StreamingError, InputError, StateError, UnsupportedModelError.
    """
    store, means = Store(), Means(order.precision, 1)
    shapes = {name: tuple(shape) for name, shape in order.shapes.items()}
    try:
        lowered = lower_stream(graph, order.batch, order.declared, store, means, order.block)
    except StreamingError as fault:
        if not shapes:
            raise StreamingError(
                f"{fault}; for a library of whole calls, say what shapes they have (shapes={{name: shape}}, --shape)"
            ) from fault
        return _whole_calls(graph, shapes, store, means)
    if lowered.frames is None:
        if shapes:
            raise InputError(
                f"shapes: {graph.origin} is streamed step by step, and a step's shapes are the file's: "
                f"leave out {', '.join(shapes)}"
            )
        return lowered
    return _of_frames(graph, lowered, lowered.frames, shapes)


def _of_frames(graph: Graph, lowered: Streamable, frames: Frames, shapes: Mapping[str, tuple[int, ...]]) -> Streamable:
    """Calls of one size of frame."""
    probed = {port.name: port.shape for port in lowered.program.inputs}
    open_ = [name for name, shape in frames.frame.items() if None in shape and name not in shapes]
    if open_:
        said = ", ".join(f"'{name}' {_dims(frames.frame[name])}" for name in open_)
        raise InputError(
            f"{graph.origin} takes frames of any size ({said}): say which (shapes={{name: shape}}, --shape)"
        )
    _check_names(graph, shapes, frames.frame)
    program = frames.program({**probed, **shapes})
    return Streamable(lowered.pairs, lowered.state_shapes, program, lowered.batch, frames)


def _whole_calls(graph: Graph, shapes: Mapping[str, tuple[int, ...]], store: Store, means: Means) -> Streamable:
    """Calls that carry nothing from one to the next."""
    _check_names(graph, shapes, {spec.name: () for spec in graph.inputs})
    whole = {spec.name: shapes.get(spec.name, _fixed(spec.shape)) for spec in graph.inputs}
    missing = [str(spec) for spec in graph.inputs if None in whole[spec.name]]
    if missing:
        raise InputError(f"shapes: missing for {'; '.join(missing)}")
    outputs = frozenset(spec.name for spec in graph.outputs)
    frames = Frames(graph, (), {}, whole, outputs, store, means)
    program = frames.program({name: tuple(size or 0 for size in shape) for name, shape in whole.items()})
    return Streamable((), {}, program, 1, frames)


def _fixed(shape: Sequence[int | str | None] | None) -> tuple[int | None, ...]:
    """The sizes that a file fixes, None for the others."""
    return (None,) if shape is None else tuple(size if isinstance(size, int) else None for size in shape)


def _check_names(graph: Graph, shapes: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    unknown = [f"'{name}' is no input (they are {', '.join(known)})" for name in shapes if name not in known]
    if unknown:
        raise InputError(listed(f"shapes of {graph.origin}", unknown))


def _dims(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def refuse_host_calls(graph: Graph, lowered: Streamable) -> None:
    """Raise UnsupportedModelError, naming them, if there are operators without an instruction."""
    calls = lowered.program.hosts
    if calls:
        faults = [f"{call.node.label}: {call.reason}" for call in calls]
        raise UnsupportedModelError(
            listed(f"{graph.origin} cannot be a library: these run in Python, which a library does without", faults)
        )
