"""Convolutions, pooling and running sums that look only back: what a stream of them must remember.

An exporter writes a causal convolution as a Pad in front, as asymmetric padding of its own, or as padding on both sides
and a Slice that drops the end. All become the engine's Causal… operators (reference/causal.py), which do the same from
a context of constants; where the axis they look back along is time, a stream carries that context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final

import numpy as np

from ..errors import ModelFormatError
from ..graph import ENGINE_DOMAIN, Graph, Node, TensorSpec, sort_nodes
from ..reference import evaluate
from .axes import Roles
from .shapes import Specialised, specialise

#: What stands before the first step when an operator pads by itself.
_FILLING: Final[Mapping[str, float]] = {"Conv": 0.0, "MaxPool": -np.inf, "AveragePool": 0.0}
#: Which input of a convolution its weights are.
_WEIGHTS: Final[Mapping[str, int]] = {"Conv": 1, "QLinearConv": 3}
#: Contexts of more elements are not made.
MOST_ELEMENTS: Final = 1 << 22
MOST_STEPS_DOWN: Final = 4  # views that a Pad is moved over
CAUSAL: Final = frozenset({"CausalConv", "CausalQLinearConv", "CausalMaxPool", "CausalAveragePool", "CausalCumSum"})
#: Operators that map each element by constants, so that padding may as well follow.
_MAPPED: Final = frozenset({"Cast", "DequantizeLinear", "QuantizeLinear"})
#: Attributes that mean the same to the causal operator.
_SHARED: Final = ("count_include_pad", "dilations", "group", "strides")


@dataclass(frozen=True)
class Context:
    """A state of a stream: the input that takes it, the output that gives the next, and what it begins with."""

    input: str
    output: str
    shape: tuple[int, ...]
    initial: float


@dataclass(frozen=True)
class _Window:
    """How an operator's windows lie: its input before any padding, the padding, and what is padded with."""

    source: str
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    filling: float
    result: str  # behind the Slice that drops the end
    joined: tuple[str, int] | None = None  # what the file itself joins in front instead of padding, along which axis

    def reach(self, axis: int) -> int:
        """How many steps a window spans beside its last."""
        return (self.kernel[axis] - 1) * self.dilations[axis]

    def looks_back(self, axis: int) -> bool:
        """Whether each window ends at the step that it is the result of."""
        back = self.reach(axis) > 0 and self.before[axis] == self.reach(axis)
        return back and self.after[axis] == 0 and self.strides[axis] == 1


def causal_forms(graph: Graph, shapes: Mapping[str, tuple[int, ...]], longer: Mapping[str, tuple[int, ...]]) -> Graph:
    """The graph with every window that looks only back along an axis as a Causal… node; it computes the same.

    ``longer``: shapes of another number of steps; an axis that they leave as it is gives way to one that they do not.
    """
    known = specialise(graph, shapes)
    for _ in range(MOST_STEPS_DOWN):
        lower = _pads_further_down(graph, known)
        if lower is graph:
            break
        graph, known = lower, specialise(lower, shapes)
    try:
        beyond = specialise(graph, longer)
    except ModelFormatError:  # the file takes no other number
        beyond = known
    return _Rewriting(graph, known, beyond).graph()


def _pads_further_down(graph: Graph, known: Specialised) -> Graph:
    """The graph with each Pad behind the view, or the quantisation, that alone reads it."""
    readers, outputs = graph.consumers(), {spec.name for spec in graph.outputs}
    constants: dict[str, np.ndarray] = {}
    moved: dict[str, tuple[Node, ...]] = {}  # by what the first of them makes now
    for pad in graph.nodes:
        following = readers.get(pad.output(0), [])
        if pad.op != "Pad" or len(following) != 1 or pad.output(0) in outputs or pad.output(0) in moved:
            continue
        view = following[0]
        widths = _widths(graph, known, pad)
        order = _axes_kept(view, known) if widths is not None else None
        filling = _mapped_filling(graph, known, pad, view) if view.op in _MAPPED else None
        if widths is None or order is None or (view.op in _MAPPED and filling is None):
            continue
        inner, amounts = _fresh(f"{pad.output(0)}.unpadded", known), _fresh(f"{view.output(0)}.pads", known)
        across = [(0, 0) if axis is None else widths[axis] for axis in order]
        constants[amounts] = np.array([w[0] for w in across] + [w[1] for w in across], np.int64)
        value = (pad.input(2),) if pad.input(2) else ()
        if filling is not None:
            value = (_fresh(f"{view.output(0)}.filling", known),)
            constants[value[0]] = filling
        moved[pad.output(0)] = (replace(view, inputs=(pad.input(0), *view.inputs[1:]), outputs=(inner,)),)
        moved[view.output(0)] = (replace(pad, inputs=(inner, amounts, *value), outputs=(view.output(0),)),)
    if not moved:
        return graph
    nodes = tuple(other for node in graph.nodes for other in moved.get(_first(node), (node,)))
    constants |= graph.constants
    ordered, _ = sort_nodes(nodes, {spec.name for spec in graph.inputs} | set(constants))
    return graph.with_nodes(ordered, constants)


def _axes_kept(view: Node, known: Specialised) -> list[int | None] | None:
    """Which of its input's axes each axis of a view is, None for a new one; None for what is no view of whole axes."""
    rank, made = (len(known.shapes.get(name, ())) for name in (view.input(0), view.output(0)))
    if view.op in _MAPPED:
        return [*range(rank)]
    if view.op == "Transpose":
        return [int(axis) for axis in view.attributes.get("perm") or reversed(range(rank))]
    axes = known.values.get(view.input(1)) if view.op in ("Unsqueeze", "Squeeze") and view.input(1) else None
    if axes is None:
        return None
    if view.op == "Unsqueeze":
        new = {int(axis) % made for axis in axes.ravel()}
        old = iter(range(rank))
        return [None if axis in new else next(old) for axis in range(made)]
    gone = {int(axis) % rank for axis in axes.ravel()}
    return [axis for axis in range(rank) if axis not in gone]


def _mapped_filling(graph: Graph, known: Specialised, pad: Node, mapping: Node) -> np.ndarray | None:
    """What a padding's value is mapped to; None where that is not one value for all."""
    others = [graph.constants.get(name) if name else None for name in mapping.inputs[1:]]
    if any(name and (v is None or v.size != 1) for name, v in zip(mapping.inputs[1:], others, strict=True)):
        return None
    value = graph.constants.get(pad.input(2)) if pad.input(2) else np.zeros((), known.dtypes[pad.input(0)])
    if value is None or pad.attributes.get("mode", "constant") != "constant":
        return None
    scalars = [other if other is None else other.reshape(()) for other in others]
    result: np.ndarray = evaluate(replace(mapping, outputs=mapping.outputs[:1]), [value.reshape(()), *scalars])[0]
    return result.reshape(())


def _widths(graph: Graph, known: Specialised, pad: Node) -> list[tuple[int, int]] | None:
    """What a Pad adds before and after each axis, if the file says so once for all."""
    amounts = graph.constants.get(pad.input(1))
    axes = graph.constants.get(pad.input(3)) if pad.input(3) else None
    if amounts is None or (pad.input(3) and axes is None):
        return None
    rank = len(known.shapes[pad.input(0)])
    along = range(rank) if axes is None else [int(axis) % rank for axis in axes]
    widths = [(0, 0)] * rank
    for index, axis in enumerate(along):
        widths[axis] = int(amounts[index]), int(amounts[index + len(along)])
    return widths


def _fresh(name: str, known: Specialised) -> str:
    """A name that no tensor has."""
    while name in known.shapes:
        name += "'"
    return name


class _Rewriting:
    def __init__(self, graph: Graph, known: Specialised, beyond: Specialised) -> None:
        self.old = graph
        self.known = known
        self.beyond = beyond
        self.makers = graph.producers()
        self.readers = graph.consumers()
        self.outputs = {spec.name for spec in graph.outputs}
        self.constants: dict[str, np.ndarray] = {}
        self.tails: dict[str, Node] = {}

    def graph(self) -> Graph:
        """All nodes, the ones that look back rewritten."""
        causal = (self._causal_sum(node) if node.op == "CumSum" else self._causal(node) for node in self.old.nodes)
        made = {node.output(0): node for node in causal if node is not None}  # by the result that they take over
        if not made:
            return self.old
        made |= self.tails
        constants = {**self.old.constants, **self.constants}
        nodes = tuple(made.get(_first(node), node) for node in self.old.nodes)
        ordered, _ = sort_nodes(nodes, {spec.name for spec in self.old.inputs} | set(constants))
        return self.old.with_nodes(ordered, constants)

    def _causal(self, node: Node) -> Node | None:
        """The causal form of a node, if there is one; it makes what the node, or the Slice behind it, makes."""
        window = self._window(node)
        if window is None:
            return None
        axis = self._axis_of_time(window)
        if window.joined is not None and axis != window.joined[1]:
            return None
        padded = any(p for k, p in enumerate((*window.before, *window.after)) if k % len(window.kernel) != axis)
        if axis is None or (padded and window.filling != self._filling(node)):
            return None
        if node.op == "AveragePool" and padded and not node.attributes.get("count_include_pad", 0):
            return None  # it counts what is padded along the other axes, and the context too
        pads = [0 if k % len(window.kernel) == axis else p for k, p in enumerate((*window.before, *window.after))]
        attributes: dict[str, Any] = {k: node.attributes[k] for k in _SHARED if k in node.attributes}
        attributes |= {"axis": axis + 2, "pads": tuple(pads)}
        if node.op not in _WEIGHTS:
            attributes["kernel_shape"] = window.kernel
        context = window.joined[0] if window.joined is not None else ""
        return self._made(node, window, attributes, window.reach(axis), context)

    def _axis_of_time(self, window: _Window) -> int | None:
        """The axis that windows look back along; where any grows with the number of steps, one that does."""
        here, there = (known.shapes[window.source][2:] for known in (self.known, self.beyond))
        growing = [k for k, (size, larger) in enumerate(zip(here, there, strict=True)) if size != larger]
        return next((k for k in growing or range(len(here)) if window.looks_back(k)), None)

    def _causal_sum(self, node: Node) -> Node | None:
        axis = self.known.values.get(node.input(1))
        source = node.input(0)
        rank = len(self.known.shapes[source])
        if axis is None or axis.size != 1 or node.attributes.get("reverse", 0) or not rank:
            return None
        attributes = {"axis": int(axis.reshape(())) % rank, "exclusive": int(node.attributes.get("exclusive", 0))}
        window = _Window(source, (), (), (), (), (), 0.0, node.output(0))
        return self._made(node, window, attributes, 1)

    def _made(
        self, node: Node, window: _Window, attributes: dict[str, Any], steps: int, context: str = ""
    ) -> Node | None:
        """The causal node, with ``context`` or a context of constants."""
        source, result, axis = window.source, window.result, attributes["axis"]
        shape = self.known.shapes[source]
        sizes = (*shape[:axis], steps, *shape[axis + 1 :])
        if prod(sizes) > MOST_ELEMENTS:
            return None
        following = _fresh(f"{result}.next", self.known)
        if context:
            self._take_over_tails(node.input(0), axis, steps, following)
        else:
            context = _fresh(f"{result}.context", self.known)
            self.constants[context] = np.full(sizes, window.filling, self.known.dtypes[source])
        inputs = (source, context, *(node.inputs[1:] if node.op in _WEIGHTS else ()))
        return Node(f"Causal{node.op}", inputs, (result, following), attributes, node.name, ENGINE_DOMAIN)

    def _take_over_tails(self, joined: str, axis: int, steps: int, following: str) -> None:
        """What a file cuts from the end of context and steps joined is the next context."""
        size = self.known.shapes[joined][axis]
        for node in self.readers.get(joined, ()):
            values = [self.known.values.get(name) for name in node.inputs[1:]]
            if node.op != "Slice" or len(values) < 3 or any(value is None or value.size != 1 for value in values):
                continue
            start, end, along, *step = (int(value.reshape(())) for value in values if value is not None)
            fixed = start < 0 or node.input(1) not in self.old.constants  # not a place of this one length
            last = range(size)[slice(start, end)] == range(size - steps, size) and step in ([], [1])
            if fixed and last and along % len(self.known.shapes[joined]) == axis:
                self.tails[node.output(0)] = Node("Identity", (following,), (node.output(0),), name=node.name)

    # --- how windows are written -------------------------------------------------------------------------------------

    def _window(self, node: Node) -> _Window | None:
        filling = self._filling(node)
        if filling is None or len(self.known.shapes[node.input(0)]) < 3 or node.output(1):
            return None
        if node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or node.attributes.get("ceil_mode", 0):
            return None
        shape = self.known.shapes[node.input(0)]
        rank = len(shape) - 2
        weights = self.known.shapes[node.input(_WEIGHTS[node.op])][2:] if node.op in _WEIGHTS else ()
        kernel = tuple(weights or node.attributes["kernel_shape"])
        strides = tuple(node.attributes.get("strides") or (1,) * rank)
        dilations = tuple(node.attributes.get("dilations") or (1,) * rank)
        pads = tuple(node.attributes.get("pads") or (0,) * (2 * rank))
        own = _Window(node.input(0), kernel, strides, dilations, pads[:rank], pads[rank:], filling, node.output(0))
        if node.op == "AveragePool" and any(pads) and not node.attributes.get("count_include_pad", 0):
            return None  # its first results are means of fewer elements
        return self._without_dropped_end(node, self._behind_join(self._behind_pad(own)))

    def _filling(self, node: Node) -> float | None:
        """What an operator pads with; None for those that have no windows."""
        if node.op != "QLinearConv":
            return _FILLING.get(node.op)
        zero = self.known.values.get(node.input(2))
        return float(zero.reshape(())) if zero is not None and zero.size == 1 else None

    def _behind_join(self, window: _Window) -> _Window:
        """With what a Concat puts in front, if a window looks back at all of that."""
        join = self.makers.get(window.source)
        if join is None or join.op != "Concat" or len(join.inputs) != 2:
            return window
        past, source = join.inputs
        axis = int(join.attributes["axis"]) % len(self.known.shapes[source]) - 2
        value = self.known.values.get(past)
        if axis < 0 or window.before[axis] or self.known.shapes[past][axis + 2] != window.reach(axis):
            return window
        if value is not None and (past not in self.old.constants or (value != value.ravel()[:1]).any()):
            return window
        before = tuple(window.reach(axis) if k == axis else p for k, p in enumerate(window.before))
        return replace(window, source=source, before=before, joined=(past, axis))

    def _behind_pad(self, window: _Window) -> _Window:
        """With the padding of a Pad in front, if both pad with the same."""
        pad = self.makers.get(window.source)
        if pad is None or pad.op != "Pad" or pad.attributes.get("mode", "constant") != "constant":
            return window
        widths = _widths(self.old, self.known, pad)
        value = self.old.constants.get(pad.input(2)) if pad.input(2) else np.zeros(())
        if widths is None or value is None or min(map(min, widths)) < 0 or any(map(any, widths[:2])):
            return window
        filling = float(value.reshape(()))
        if any((*window.before, *window.after)) and filling != window.filling:
            return window
        before = tuple(a + b for a, (b, _) in zip(window.before, widths[2:], strict=True))
        after = tuple(a + b for a, (_, b) in zip(window.after, widths[2:], strict=True))
        return replace(window, source=pad.input(0), before=before, after=after, filling=filling)

    def _without_dropped_end(self, node: Node, window: _Window) -> _Window:
        """With less padding at the end, where a Slice drops what that padding makes."""
        following = self.readers.get(node.output(0), [])
        if len(following) != 1 or following[0].op != "Slice" or node.output(0) in self.outputs:
            return window
        cut = following[0]
        parts = [self.old.constants.get(name) for name in cut.inputs[1:]]
        if len(parts) < 3 or any(part is None or part.size != 1 for part in parts):
            return window
        start, end, axis, *step = (int(part.reshape(())) for part in parts if part is not None)
        spatial = axis % len(self.known.shapes[node.output(0)]) - 2
        if start != 0 or end >= 0 or step not in ([], [1]) or spatial < 0 or window.strides[spatial] != 1:
            return window
        if window.after[spatial] < -end:
            return window
        after = tuple(p + end if k == spatial else p for k, p in enumerate(window.after))
        return replace(window, after=after, result=cut.output(0))


def _first(node: Node) -> str:
    return next((name for name in node.outputs if name), "")


def with_context(graph: Graph, roles: Roles, pairs: Mapping[str, str]) -> tuple[Graph, tuple[Context, ...]]:
    """The graph whose Causal… nodes take the context of their time axis from inputs, and give it back.

    ``pairs``: inputs that are the outputs' pasts; one that is such a context already stays the input of that name.
    """
    nodes, contexts = [], []
    inputs, outputs = list(graph.inputs), list(graph.outputs)
    for node in graph.nodes:
        if node.op in CAUSAL and roles.time and roles.axes[node.input(0)][node.attributes["axis"]] == roles.time:
            given, value = node.outputs[1], graph.constants.get(node.input(1))
            if value is not None:
                taken = f"{node.input(1)}.past"
                initial = float(value.ravel()[0]) if prod(value.shape) else 0.0
                contexts.append(Context(taken, given, value.shape, initial))
                inputs.append(TensorSpec(taken, value.dtype, value.shape))
                outputs.append(TensorSpec(given, value.dtype, value.shape))
                node = replace(node, inputs=(node.input(0), taken, *node.inputs[2:]))
            elif _is_its_own(graph, node, pairs):
                spec = next(spec for spec in inputs if spec.name == node.input(1))
                contexts.append(Context(spec.name, given, tuple(roles.size(a) for a in roles.axes[spec.name]), 0.0))
                outputs = [replace(o, name=given) if o.name == pairs[spec.name] else o for o in outputs]
        nodes.append(node)
    return graph.with_nodes(nodes, inputs=inputs, outputs=outputs), tuple(contexts)


def _is_its_own(graph: Graph, node: Node, pairs: Mapping[str, str]) -> bool:
    """Whether a node's context is an input that nothing else reads, and its next one that input's output alone."""
    readers = graph.consumers()
    if node.input(1) not in pairs or readers[node.input(1)] != [node]:
        return False
    following = readers.get(node.output(1), [])
    named = [(each.op, each.output(0)) for each in following] or [("Identity", node.output(1))]
    return named == [("Identity", pairs[node.input(1)])] and pairs[node.input(1)] not in readers
