"""From a graph and shapes to the Program that serves them best."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..errors import ModelFormatError, StreamingError, UnsupportedModelError
from ..graph import Graph, TensorSpec
from ..passes.axes import assign_roles
from ..passes.shapes import Specialised, specialise
from ..passes.states import StatePair, pair_states, without_states
from . import layers as layers
from . import pointwise as pointwise
from . import shaping as shaping
from .lower import Lowering, Plan, block_steps
from .packing import Store
from .program import Program

Shapes = Mapping[str, tuple[int, ...]]

#: Sizes that stand in for dimensions a file leaves open: primes, so that none is taken for another.
PROBES: Final = (7, 3, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43)
OTHER_STEPS: Final = 4  # a second number of steps: probe + this
SMALLEST_CAPACITY: Final = 16  # steps


@dataclass(frozen=True)
class Lowered:
    """A program and, for each input, the axis that is time in it.

    ``any_steps``: it serves other numbers of steps than it was lowered at: all if it is causal, else up to its block.
    """

    program: Program
    time_axes: Mapping[str, int | None]
    any_steps: bool


def capacity(steps: int) -> int:
    """Room for steps in a program that needs them all at once: few sizes, so that few programs serve all lengths."""
    return max(SMALLEST_CAPACITY, 1 << (steps - 1).bit_length())


def lower_run(graph: Graph, shapes: Shapes, store: Store, element: str) -> Lowered:
    """A program for whole sequences.

    Block by block where the model looks only back; else with room for up to capacity() steps; else, where the network
    itself depends on the number of steps, for exactly these shapes.
    """
    known = specialise(graph, shapes)
    roles = assign_roles(graph, known)
    time_axes = {spec.name: roles.axis_of(spec.name, roles.time) for spec in graph.inputs}
    steps = roles.size(roles.time)
    if roles.time:
        batch = roles.size(roles.batch)
        for plan in (Plan(True, False, block_steps(batch, False)), Plan(False, False, capacity(steps))):
            with suppress(StreamingError, ModelFormatError, UnsupportedModelError):
                program = _independent_of_steps(graph, shapes, time_axes, store, element, plan, {})
                if program is not None:
                    return Lowered(program, time_axes, True)
    program = Lowering(graph, known, Plan(False, False, steps), store, element).lower({})
    return Lowered(program, time_axes, False)


def _independent_of_steps(
    graph: Graph,
    shapes: Shapes,
    time_axes: Mapping[str, int | None],
    store: Store,
    element: str,
    plan: Plan,
    states: Mapping[str, str],
) -> Program | None:
    """A program for any number of steps, or None if lowering for another number gives a different one."""
    longer = {
        name: tuple(size + OTHER_STEPS if index == time_axes[name] else size for index, size in enumerate(shape))
        for name, shape in shapes.items()
    }
    one, other = (
        Lowering(graph, specialise(graph, each), plan, store, element).lower(states) for each in (shapes, longer)
    )
    return one if one.structure() == other.structure() else None


@dataclass(frozen=True)
class Streamable:
    """A model as a stream sees it: the graph without the states it carries, and the program of one block."""

    graph: Graph
    pairs: tuple[StatePair, ...]
    program: Program
    has_time: bool


def probe_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Concrete shapes for all inputs: declared sizes where there are any, distinct primes where not.

    Raises UnsupportedModelError for an input whose rank is unknown.
    """
    sizes: dict[str, int] = {}
    shapes = {}
    for spec in graph.inputs:
        if spec.shape is None:
            raise UnsupportedModelError(f"input '{spec.name}': its rank is unknown, so it cannot be planned for")
        shapes[spec.name] = tuple(_probed(spec, index, dim, sizes) for index, dim in enumerate(spec.shape))
    return shapes


def _probed(spec: TensorSpec, index: int, dim: int | str | None, sizes: dict[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    key = dim if dim is not None else f"{spec.name}[{index}]"
    return sizes.setdefault(key, PROBES[len(sizes) % len(PROBES)])


def probe(graph: Graph, batch: int) -> tuple[Shapes, Specialised]:
    """Shapes that the network takes, and what is known at them.

    Weights or stored states may fix a dimension that the file declares open (a batch of 1, most often): where the
    distinct sizes do not fit, each open dimension in turn is given the batch that is asked for.

    Raises ModelFormatError as specialise() does, for the first attempt.
    """
    shapes = probe_shapes(graph)
    try:
        return shapes, specialise(graph, shapes)
    except ModelFormatError:
        for symbol in sorted({dim for spec in graph.inputs for dim in spec.shape or () if isinstance(dim, str)}):
            tried = {
                spec.name: tuple(
                    batch if dim == symbol else size
                    for dim, size in zip(spec.shape or (), shapes[spec.name], strict=True)
                )
                for spec in graph.inputs
            }
            with suppress(ModelFormatError):
                return tried, specialise(graph, tried)
        raise


def find_states(graph: Graph, declared: Mapping[str, str] | None) -> tuple[StatePair, ...]:
    """Inputs that are outputs' pasts, at probing shapes."""
    return pair_states(graph, probe(graph, 1)[1], declared)


def lower_stream(
    graph: Graph, batch: int, declared: Mapping[str, str] | None, store: Store, element: str
) -> Streamable:
    """The program of a stream of ``batch`` rows.

    Raises StreamingError if the model needs the whole sequence, naming the node; UnsupportedModelError.
    """
    try:
        probed, known = probe(graph, batch)
    except ModelFormatError as fault:
        raise StreamingError(f"{graph.origin} takes no stream of batch {batch}: {fault}") from fault
    roles = assign_roles(graph, known)
    time_axes = {spec.name: roles.axis_of(spec.name, roles.time) for spec in graph.inputs}
    shapes = {
        name: tuple(
            batch if roles.batch and axis == roles.batch else size
            for axis, size in zip(roles.axes[name], shape, strict=True)
        )
        for name, shape in probed.items()
    }
    if not roles.batch and batch != 1:
        _refuse_batch(graph, known, batch)
    known = specialise(graph, shapes)
    pairs = pair_states(graph, known, declared)
    inner = without_states(graph, pairs)
    states = {pair.input: pair.output for pair in pairs if not pair.cells}
    shapes = {spec.name: shapes[spec.name] for spec in inner.inputs}
    if roles.time and _open(graph, time_axes):
        plan = Plan(True, True, block_steps(batch, True))
        program = _independent_of_steps(inner, shapes, time_axes, store, element, plan, states)
        if program is None:
            raise StreamingError(f"{graph.origin}: what it computes depends on the number of steps")
    else:
        known = specialise(inner, shapes)
        roles = assign_roles(inner, known)
        plan = Plan(True, True, block_steps(batch, True))
        program = Lowering(inner, known, plan, store, element).lower(states)
    return Streamable(inner, pairs, program, bool(roles.time))


def _open(graph: Graph, time_axes: Mapping[str, int | None]) -> bool:
    """Whether the file leaves the number of steps open."""
    return all(
        axis is None or not isinstance((spec.shape or ())[axis], int)
        for spec in graph.inputs
        for axis in [time_axes[spec.name]]
    )


def _refuse_batch(graph: Graph, known: Specialised, batch: int) -> None:
    """Say why a file that declares a batch of 1 runs one row a stream."""
    for node in graph.nodes:
        if node.op in ("LSTM", "GRU", "RNN"):
            shape = list(known.shapes[node.input(0)])
            raise StreamingError(
                f"{graph.origin} declares a batch of 1 ({node.label} reads {shape}); "
                f"it cannot run {batch} rows in one stream: open {batch} streams"
            )
    raise StreamingError(f"{graph.origin} has no batch axis: open {batch} streams")


def element_type(graph: Graph) -> str:
    """The type the model computes in: float64 if its weights or inputs are, else float32."""
    floats = {value.dtype for value in graph.constants.values() if value.dtype.kind == "f" and value.size > 1}
    floats |= {spec.dtype for spec in graph.inputs if np.dtype(spec.dtype).kind == "f"}
    return "float64" if floats and all(d == np.float64 for d in floats) else "float32"
