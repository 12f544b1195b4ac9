"""From a graph and shapes to the Program that serves them best."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..errors import ModelFormatError, StreamingError, UnsupportedModelError
from ..graph import Graph, TensorSpec
from ..passes.axes import assign_roles
from ..passes.cut import resolved
from ..passes.shapes import specialise
from ..passes.steps import settles
from . import convolution as convolution
from . import integers as integers
from . import layers as layers
from . import looking_back as looking_back
from . import picking as picking
from . import pointwise as pointwise
from . import rearranging as rearranging
from . import recurrent as recurrent
from . import reducing as reducing
from . import shaping as shaping
from . import within as within
from .lower import Kept, Lowering, Plan, block_steps
from .packing import Store
from .program import Means, Program

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


def lower_run(graph: Graph, shapes: Shapes, store: Store, means: Means, traced: bool = False) -> Lowered:
    """A program for whole sequences; ``traced``: its recurrent layers write down what they compute.

    Block by block where the model looks only back; else with room for up to capacity() steps; else, where the network
    itself depends on the number of steps, for exactly these shapes.

    Raises DataDependentError naming the node where data decides a shape or a branch.
    """
    now = resolved(graph, shapes).graph
    known = specialise(now, shapes)
    roles = assign_roles(now, known)
    time_axes = {spec.name: roles.axis_of(spec.name, roles.time) for spec in graph.inputs}
    steps = roles.size(roles.time)
    if any(axis is not None for axis in time_axes.values()):  # else the network itself makes its steps
        batch = roles.size(roles.batch)
        for plan in _plans(batch, steps, traced):
            with suppress(StreamingError, ModelFormatError, UnsupportedModelError):
                program = independent_of_steps(graph, shapes, time_axes, store, means, plan)
                if program is not None:
                    return Lowered(program, time_axes, True)
    program = Lowering(now, known, Plan(False, False, steps, traced=traced), store, means).lower()
    if (
        program.hosts and not traced
    ):  # a time axis that convolutions or attention run along as well is better one of the row's
        flat = Lowering(now, known, Plan(False, False, 1, flat=True), store, means).lower()
        if len(flat.hosts) < len(program.hosts):
            return Lowered(flat, dict.fromkeys(time_axes), False)
    return Lowered(program, time_axes, False)


def _plans(batch: int, steps: int, traced: bool) -> tuple[Plan, ...]:
    """Block by block; with room for all steps."""
    causal = Plan(True, False, block_steps(batch, False), traced=traced)
    return causal, Plan(False, False, capacity(steps), traced=traced)


def independent_of_steps(
    graph: Graph,
    shapes: Shapes,
    time_axes: Mapping[str, int | None],
    store: Store,
    means: Means,
    plan: Plan,
    kept: Sequence[Kept] = (),
    shown: Container[str] | None = None,
) -> Program | None:
    """A program for any number of steps, or None if lowering for another number gives a different one."""
    longer = {
        name: tuple(size + OTHER_STEPS if index == time_axes[name] else size for index, size in enumerate(shape))
        for name, shape in shapes.items()
    }
    here, there = (resolved(graph, each, join=plan.streamed) for each in (shapes, longer))
    if here.choices != there.choices:
        return None
    known, beyond = specialise(here.graph, shapes), specialise(there.graph, longer)
    if settles(here.graph, known, beyond) is not None:
        return None
    one = Lowering(here.graph, known, plan, store, means).lower(kept, shown)
    other = Lowering(there.graph, beyond, plan, store, means).lower(kept, shown)
    return one if one.structure() == other.structure() else None


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


def element_type(graph: Graph) -> str:
    """The type the model computes in: float64 if its weights or inputs are, else float32."""
    floats = {value.dtype for value in _constants(graph) if value.dtype.kind == "f" and value.size > 1}
    floats |= {spec.dtype for spec in graph.inputs if np.dtype(spec.dtype).kind == "f"}
    return "float64" if floats and all(d == np.float64 for d in floats) else "float32"


def _constants(graph: Graph) -> Iterator[np.ndarray]:
    """All constants, those of bodies included."""
    yield from graph.constants.values()
    for body in graph.subgraphs():
        yield from _constants(body)
