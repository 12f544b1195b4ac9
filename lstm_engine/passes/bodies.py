"""What is known of the outputs of If, Loop and Scan before anything runs.

Of an If whose condition is known only that branch is looked at. A Loop or Scan whose states keep their shapes is
followed for one trip that stands for all; another Loop is followed trip by trip, as long as its condition is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

import numpy as np

from ..errors import LstmEngineError, ModelFormatError, UnsupportedModelError
from ..graph import Graph, Node, TensorSpec, live_nodes, reads
from ..reference import OPERATORS, Work, bind
from ..reference.control import Evaluation, captures, chosen, is_control, number, opened, scan_length, truth
from .shape_rules import DataDependentError, Known
from .shape_rules.known import BOOL, INT64

Scope = Mapping[str, Known]

#: Work units of following one node of a body.
UNITS_PER_NODE: Final = 8


class Follower(Protocol):
    """What walks through the nodes of a body."""

    work: Work

    def body(self, graph: Graph, inputs: Sequence[Known], scope: Scope) -> list[Known]:
        """What is known of a body's outputs."""


def control_known(follower: Follower, node: Node, inputs: Sequence[Known | None], scope: Scope) -> tuple[Known, ...]:
    """Shapes, types and what values are known of a control-flow node's outputs.

    Raises DataDependentError where they hang on data, ModelFormatError where shapes do not fit.
    """
    own, captured = opened(node, inputs)
    results = _RULES[node.op](follower, node, own, {**scope, **captured} if captured else scope)
    return tuple(results[: len(node.outputs)])


def foldable(node: Node) -> bool:
    """Whether a node, bodies included, gives the same whenever it is run, and is no recurrent layer."""
    if not is_control(node):
        return node.op not in ("LSTM", "GRU", "RNN") and (node.op not in OPERATORS or not OPERATORS[node.op].random)
    return all(
        foldable(inner) for value in node.attributes.values() if isinstance(value, Graph) for inner in value.nodes
    )


def _if(follower: Follower, node: Node, inputs: Sequence[Known | None], scope: Scope) -> list[Known]:
    condition = inputs[0]
    if condition is None:
        raise ModelFormatError(f"{node.label}: it has no condition")
    if condition.value is not None:
        return follower.body(chosen(node, condition.value), (), scope)
    branches = []
    for name in ("then_branch", "else_branch"):
        try:
            branches.append(follower.body(node.attributes[name], (), scope)[: len(node.outputs)])
        except LstmEngineError as error:
            raise DataDependentError(f"{node.label}: which branch is taken is computed from the feeds") from error
    for one, other in zip(*branches, strict=True):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            raise DataDependentError(f"{node.label}: its branches give {one} and {other}")
    return [Known(k.shape, k.dtype) for k in branches[0]]


# ---------------------------------------------------------------- Loop


def _loop(follower: Follower, node: Node, inputs: Sequence[Known | None], scope: Scope) -> list[Known]:
    limit, first = (*inputs[:2], None, None)[:2]
    carried = _given(node, inputs[2:])
    most = None if limit is None or limit.value is None else number(node, "M", limit.value)
    start = True if first is None else None if first.value is None else truth(node, first.value)
    open_ended = limit is not None and limit.value is None
    body: Graph = node.attributes["body"]
    if start is False or (most is not None and most <= 0):
        return [*carried, *(Known((0, *k.shape), k.dtype) for k in _elements_unseen(follower, body, carried, scope))]
    general = _general_trip(follower, node, carried, scope)
    if general is None:
        if start is None or open_ended:
            raise DataDependentError(f"{node.label}: how often it runs is computed from the feeds")
        return _trip_by_trip(follower, node, most, carried, scope)
    condition, states, elements = general
    trips = None if start is None or open_ended else _trips(follower, node, most, condition, carried, scope)
    if trips is None and any(node.output(len(states) + k) for k in range(len(elements))):
        raise DataDependentError(f"{node.label}: how often it runs is computed from the feeds")
    follower.work.foresee(node, trips or 0, body, (trips or 0) * sum(math.prod(k.shape) for k in elements))
    return [*states, *(Known((trips or 0, *k.shape), k.dtype) for k in elements)]


def _given(node: Node, carried: Sequence[Known | None]) -> list[Known]:
    if any(k is None for k in carried):
        raise ModelFormatError(f"{node.label}: a carried value is absent")
    return [k for k in carried if k is not None]


def _elements_unseen(follower: Follower, body: Graph, carried: Sequence[Known], scope: Scope) -> list[Known]:
    """One element of each output that is stacked over the trips, none of which is made."""
    inputs = (Known((), INT64, np.array(0)), Known((), BOOL, np.array(True)), *carried)
    try:
        return follower.body(body, inputs, scope)[1 + len(carried) :]
    except ModelFormatError as error:
        raise DataDependentError(f"what a loop of no trips stacks is not known: {error}") from error


def _general_trip(
    follower: Follower, node: Node, carried: Sequence[Known], scope: Scope
) -> tuple[Known, list[Known], list[Known]] | None:
    """Condition, states and stacked elements after a trip that may be any; None where shapes change with the trips."""
    states = [Known(k.shape, k.dtype) for k in carried]
    inputs = (Known((), INT64), Known((), BOOL, np.array(True)), *states)
    try:
        condition, *made = follower.body(node.attributes["body"], inputs, scope)
    except DataDependentError:
        return None
    after = made[: len(states)]
    if any((new.shape, new.dtype) != (old.shape, old.dtype) for new, old in zip(after, states, strict=True)):
        return None
    return condition, states, made[len(states) :]


def _trips(
    follower: Follower, node: Node, most: int | None, condition: Known, carried: Sequence[Known], scope: Scope
) -> int | None:
    """How many trips are made; None if that hangs on data."""
    if condition.value is None:
        return _counted(follower, node, most, carried, scope)
    if not truth(node, condition.value):
        return 1
    if most is None:
        raise UnsupportedModelError(f"{node.label}: its condition never ends it, and it has no M")
    return most


def _counted(follower: Follower, node: Node, most: int | None, carried: Sequence[Known], scope: Scope) -> int | None:
    """The trips of a loop whose condition can be followed by itself: that part of the body is run."""
    body: Graph = node.attributes["body"]
    nodes, kept = _condition_part(body, len(carried))
    read = {name for inner in nodes for name in reads(inner)}
    around = {name: scope[name].value for name in captures(replace(body, nodes=nodes, outputs=_first(body, kept)))}
    states = [carried[k].value for k in kept]
    if any(value is None for value in (*states, *around.values())) or not all(map(foldable, nodes)):
        return None
    part = replace(
        body,
        nodes=nodes,
        inputs=(*body.inputs[:2], *(body.inputs[2 + k] for k in kept)),
        outputs=_first(body, kept),
        constants={name: value for name, value in body.constants.items() if name in read or _is_output(body, name)},
    )
    call = Evaluation(bind, follower.work).body(part, around)
    trips, on = 0, True
    while on and (most is None or trips < most):
        follower.work.spend(node, 1)
        condition, *states = call((np.array(trips), np.array(True), *states))
        on = truth(node, condition)
        trips += 1
    return trips


def _condition_part(body: Graph, carried: int) -> tuple[tuple[Node, ...], list[int]]:
    """The nodes that the condition hangs on from trip to trip, and the carried values among them."""
    places = {spec.name: k for k, spec in enumerate(body.inputs[2 : 2 + carried])}
    kept: set[int] = set()
    while True:
        wanted = {spec.name for spec in _first(body, sorted(kept))}
        nodes = live_nodes(body.nodes, wanted)
        seen = wanted | {name for node in nodes for name in reads(node)}
        more = {places[name] for name in seen if name in places} - kept
        if not more:
            return nodes, sorted(kept)
        kept |= more


def _first(body: Graph, kept: Sequence[int]) -> tuple[TensorSpec, ...]:
    """The condition and some carried values, as outputs of a loop's body."""
    return (body.outputs[0], *(body.outputs[1 + k] for k in kept))


def _is_output(body: Graph, name: str) -> bool:
    return any(spec.name == name for spec in body.outputs)


def _trip_by_trip(follower: Follower, node: Node, most: int | None, carried: list[Known], scope: Scope) -> list[Known]:
    """A loop whose states change their shapes, or whose shapes hang on the trip."""
    body: Graph = node.attributes["body"]
    count = len(carried)
    elements: list[Known] = []
    trip, on = 0, True
    while on and (most is None or trip < most):
        follower.work.spend(node, UNITS_PER_NODE)
        inputs = (Known((), INT64, np.array(trip)), Known((), BOOL, np.array(True)), *carried)
        condition, *made = follower.body(body, inputs, scope)
        if condition.value is None:
            raise DataDependentError(f"{node.label}: how often it runs is computed from the feeds")
        on = truth(node, condition.value)
        if trip and any(new.shape != old.shape for new, old in zip(made[count:], elements, strict=True)):
            raise ModelFormatError(f"{node.label}: an output that is stacked over the trips changes its shape")
        carried, elements = made[:count], made[count:]
        trip += 1
    return [*carried, *(Known((trip, *k.shape), k.dtype) for k in elements)]


# ---------------------------------------------------------------- Scan


def _scan(follower: Follower, node: Node, inputs: Sequence[Known | None], scope: Scope) -> list[Known]:
    given = _given(node, inputs)
    count = node.attributes["num_scan_inputs"]
    states, scanned = given[: len(given) - count], given[len(given) - count :]
    axes = node.attributes.get("scan_input_axes") or (0,) * count
    steps = scan_length(node, [k.shape for k in scanned], axes)
    rows = [Known(_without(k.shape, axis), k.dtype) for k, axis in zip(scanned, axes, strict=True)]
    elements = _one_step(follower, node, states, rows, scope)
    axes = node.attributes.get("scan_output_axes") or (0,) * len(elements)
    stacked = [Known(_with(k.shape, axis, steps, node), k.dtype) for k, axis in zip(elements, axes, strict=True)]
    return [*(Known(k.shape, k.dtype) for k in states), *stacked]


def _batch_scan(follower: Follower, node: Node, inputs: Sequence[Known | None], scope: Scope) -> list[Known]:
    given = _given(node, inputs[1:])
    count = node.attributes["num_scan_inputs"]
    if any(k.rank < 1 for k in given) or any(k.rank < 2 for k in given[len(given) - count :]):
        raise ModelFormatError(f"{node.label}: states are [B, ...], scan inputs [B, T, ...]")
    states, scanned = given[: len(given) - count], given[len(given) - count :]
    batch = scan_length(node, [k.shape for k in given], (0,) * len(given))
    steps = scan_length(node, [k.shape for k in scanned], (1,) * count)
    one = [Known(k.shape[1:], k.dtype) for k in states]
    elements = _one_step(follower, node, one, [Known(k.shape[2:], k.dtype) for k in scanned], scope)
    stacked = [Known((batch, steps, *k.shape), k.dtype) for k in elements]
    return [*(Known(k.shape, k.dtype) for k in states), *stacked]


def _one_step(
    follower: Follower, node: Node, states: Sequence[Known], rows: Sequence[Known], scope: Scope
) -> list[Known]:
    """The elements that a step makes, whose states must keep their shapes."""
    before = [Known(k.shape, k.dtype) for k in states]
    made = follower.body(node.attributes["body"], (*before, *rows), scope)
    for index, (new, old) in enumerate(zip(made, before, strict=False)):
        if new.shape != old.shape:
            raise ModelFormatError(f"{node.label}: state {index} changes its shape from {old} to {new}")
    return made[len(states) :]


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def _with(shape: tuple[int, ...], axis: int, size: int, node: Node) -> tuple[int, ...]:
    rank = len(shape) + 1
    if not -rank <= axis < rank:
        raise ModelFormatError(f"{node.label}: scan_output_axes names axis {axis} of a stack of rank {rank}")
    axis %= rank
    return (*shape[:axis], size, *shape[axis:])


_RULES: Final[Mapping[str, Callable[[Follower, Node, Sequence[Known | None], Scope], list[Known]]]] = {
    "If": _if,
    "Loop": _loop,
    "Scan": _scan,
    "BatchScan": _batch_scan,
}
