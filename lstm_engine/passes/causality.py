"""Which operators keep time steps apart: along which axes an element of a result depends on other elements.

A program that runs block by block, or step by step, may evaluate a node on a few steps only if no step of its result
looks at another. Most operators mix one axis or none; what is not listed here is taken to mix all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

import numpy as np

from ..errors import InputError, StreamingError
from ..graph import Graph, Node
from ..reference import evaluate
from .axes import ELEMENTWISE, Roles
from .context import CAUSAL
from .shapes import Specialised

Value: TypeAlias = Callable[[int], np.ndarray | None]  # value of a node's n-th input, where no feed can change it
Mixing: TypeAlias = Callable[[Node, int, Value], Iterable[int]]


def check_steps_apart(known: Specialised, roles: Roles, node: Node, made: list[str], *, emitted: bool = False) -> None:
    """Raise StreamingError, with the reason, unless each step of a node's results depends on that step alone.

    ``made``: those of its results that anything reads; ``emitted``: by an instruction, and those of layers that keep a
    state, of views and of picked steps see to it themselves.
    """
    if emitted and node.op not in _CONTRACTIONS:
        return
    computed = [name for name in node.inputs if name and name not in known.values]
    timed = [name for name in computed if roles.form(name).timed]
    made = [name for name in made if node.op not in CAUSAL or name == node.output(0)]
    if not timed and not any(roles.form(name).timed for name in made):
        return
    reason = _reason(known, roles, node, timed, made)
    if reason:
        raise StreamingError(f"{node.label} {reason}, so the model needs the whole sequence")


def steps_apart(known: Specialised, roles: Roles, node: Node, made: list[str]) -> bool:
    """Whether each step of these results of a node depends on that step alone."""
    try:
        check_steps_apart(known, roles, node, made)
    except StreamingError:
        return False
    return True


def _reason(known: Specialised, roles: Roles, node: Node, timed: list[str], made: list[str]) -> str:
    if not timed:
        return "makes a time axis that its inputs do not have"
    for name in node.inputs:
        if name in known.values and roles.form(name).timed:
            return f"reads the constant '{name}', which has a time axis"
    if node.op not in ELEMENTWISE and node.op not in _MIXES:
        return "looks at more than one time step"
    rank = len(known.shapes[node.input(0)])
    mixed = set(mixed_axes(node, rank, lambda index: known.values.get(node.input(index))))
    for name in timed if node.op in ("Concat", *ELEMENTWISE) else timed[:1]:
        axes = roles.axes[name]
        if any(set(axes[axis]) & set(roles.time) for axis in mixed if axis < len(axes)):
            return "looks at more than one time step"
    if not all(roles.form(name).timed for name in made) or not _in_step(roles, node, timed):
        return "looks at more than one time step"
    return ""


def _in_step(roles: Roles, node: Node, timed: list[str]) -> bool:
    """Whether several operands that have steps meet step by step: elementwise, or as stacks of matrices."""
    if len(set(timed)) < 2 and timed.count(timed[0]) < 2:
        return True
    places = [_places_of_time(roles, name) for name in timed]
    if any(place != places[0] for place in places):
        return False
    if node.op in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        return min(places[0]) > 2
    return node.op in ELEMENTWISE or node.op in ("Concat", "LayerNormalization", "RMSNormalization")


def _places_of_time(roles: Roles, name: str) -> dict[int, tuple[int, ...]]:
    """The axes of a tensor that steps lie along, by their place from the last."""
    axes = roles.axes[name]
    return {len(axes) - index: axis for index, axis in enumerate(axes) if set(axis) & set(roles.time)}


def picks_earlier_steps(known: Specialised, roles: Roles, node: Node) -> bool:
    """Whether a Gather, Slice or Split takes other steps than the last, or all in another order."""
    time = roles.axis_of(node.input(0), roles.time) if node.op in ("Gather", "Slice", "Split") else None
    others = [known.values.get(name) if name else None for name in node.inputs[1:]]
    if time is None or any(name and value is None for name, value in zip(node.inputs[1:], others, strict=True)):
        return False
    shape = known.shapes[node.input(0)]
    steps = np.arange(shape[time]).reshape([-1 if axis == time else 1 for axis in range(len(shape))])
    try:
        picked = evaluate(node, [np.broadcast_to(steps, shape), *others])
    except InputError:  # so long a sequence has no such step
        return True
    for taken in picked:
        whole = taken.ndim == len(shape) and taken.shape[time] == shape[time] and (taken == steps).all()
        if not whole and (taken != shape[time] - 1).any():
            return True
    return False


def check_no_return(graph: Graph, known: Specialised, roles: Roles) -> None:
    """Raise StreamingError where what the whole sequence came to is handed back to its steps, and remembered.

    At each step a stream gives what the model would give if the sequence ended there. What has no time axis but was
    made from something that has one (a layer's last state, say) is then new at each step; a layer that runs over it
    would have to begin anew with all steps so far.
    """
    late: dict[str, Node] = {}  # and what made it of a sequence
    returned: dict[str, Node] = {}
    for node in graph.nodes:
        read = [name for name in node.inputs if name and name not in known.values]
        back = next((returned[name] for name in read if name in returned), None)
        if back is not None and _remembers(roles, node):
            raise StreamingError(
                f"{node.label} runs over what {back.label} makes of the whole sequence, so the model needs all of it"
            )
        made = [name for name in node.outputs if name in known.shapes]
        timed = {name for name in made if roles.form(name).timed}
        source = next((late[name] for name in read if name in late), back)
        if source is not None:
            returned |= dict.fromkeys(timed, source)
        if source is not None or any(roles.form(name).timed for name in read):
            late |= {name: source or node for name in made if name not in timed}


def _remembers(roles: Roles, node: Node) -> bool:
    """Whether a node carries anything from step to step."""
    if node.op in CAUSAL:
        axis = int(node.attributes["axis"])
    elif node.op in ("LSTM", "GRU", "RNN"):
        axis = 1 if node.attributes.get("layout", 0) else 0
    else:
        return False
    return roles.axes[node.input(0)][axis] == roles.time


def mixed_axes(node: Node, rank: int, value: Value) -> set[int]:
    """Axes of a node's first input along which an element of the result depends on more than its own place."""
    return {axis % rank for axis in _MIXES.get(node.op, _none)(node, rank, value)} if rank else set()


def _none(node: Node, rank: int, value: Value) -> Iterable[int]:
    return ()


def _attribute(default: int) -> Mixing:
    return lambda node, rank, value: [int(node.attributes.get("axis", default))]


def _softmax(node: Node, rank: int, value: Value) -> Iterable[int]:
    if "flatten_from" in node.attributes:
        return range(int(node.attributes["flatten_from"]) % rank, rank)
    return [int(node.attributes.get("axis", -1))]


def _from_axis(node: Node, rank: int, value: Value) -> Iterable[int]:
    return range(int(node.attributes.get("axis", -1)) % rank, rank)


def _slice(node: Node, rank: int, value: Value) -> Iterable[int]:
    axes, starts = value(3), value(1)
    if axes is not None:
        return [int(axis) for axis in axes.ravel()]
    return range(rank if starts is None or node.input(3) else starts.size)


def _last(node: Node, rank: int, value: Value) -> Iterable[int]:
    return [rank - 1]


def _rows_of_quantised(node: Node, rank: int, value: Value) -> Iterable[int]:
    """The axis summed over, and that of the rows where each has a scale of its own."""
    parameters = (value(index) for index in (1, 2, 6, 7))
    single = all(parameter is not None and parameter.size == 1 for parameter in parameters)
    return [rank - 1] if single else [rank - 2, rank - 1]


def _channels(node: Node, rank: int, value: Value) -> Iterable[int]:
    return [1]


def _spatial(node: Node, rank: int, value: Value) -> Iterable[int]:
    return range(2, rank)


def _recurrent(node: Node, rank: int, value: Value) -> Iterable[int]:
    return [1 if node.attributes.get("layout", 0) else 0, 2]


def _windows(node: Node, rank: int, value: Value) -> Iterable[int]:
    """Channels, and the spatial axes along which a window is larger than one element or moves by more."""
    weights = value(1)
    kernel = node.attributes.get("kernel_shape") or (weights.shape[2:] if weights is not None else (2,) * (rank - 2))
    strides = node.attributes.get("strides") or (1,) * len(kernel)
    pads = node.attributes.get("pads") or (0,) * (2 * len(kernel))
    moving = [
        axis + 2
        for axis, (size, stride) in enumerate(zip(kernel, strides, strict=True))
        if size != 1 or stride != 1 or pads[axis] or pads[axis + len(kernel)]
    ]
    return [*([1] if node.op == "Conv" else []), *moving]


def _causal_windows(node: Node, rank: int, value: Value) -> Iterable[int]:
    """All but the axis along which the window carries its own context."""
    return set(range(1, rank)) - {int(node.attributes["axis"])}


def _per_channel(default: int) -> Mixing:
    """The axis along which each place has constants of its own, if there are several."""

    def mixing(node: Node, rank: int, value: Value) -> Iterable[int]:
        scale: Any = value(1)
        return [] if scale is not None and scale.size == 1 else [int(node.attributes.get("axis", default))]

    return mixing


#: What the operators mix that are not elementwise. The reductions take their axes away from the result, which shows.
_MIXES: Final[dict[str, Mixing]] = {
    **dict.fromkeys(
        (
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
        ),
        _none,
    ),
    **dict.fromkeys(("ReduceSum", "ReduceSumSquare", "Squeeze", "Unsqueeze", "Transpose", "Flatten", "Clip"), _none),
    **dict.fromkeys(("OneHot", "Gemm", "Dropout"), _none),
    **dict.fromkeys(("Concat", "Gather", "GatherElements", "Split", "ArgMax", "ArgMin"), _attribute(0)),
    **dict.fromkeys(("TopK", "LpNormalization", "Hardmax"), _attribute(-1)),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _from_axis),
    **dict.fromkeys(("MatMul", "MatMulInteger"), _last),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("Conv", "MaxPool", "AveragePool", "LpPool"), _windows),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _per_channel(1)),
    **dict.fromkeys(sorted(CAUSAL), _causal_windows),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _spatial),
    "BatchNormalization": _channels,
    "QLinearMatMul": _rows_of_quantised,
    "Slice": _slice,
}
#: Operators whose results are the same bits however many steps NumPy is given at a time.
EXACT: Final = (
    ELEMENTWISE
    | CAUSAL
    | {"Concat", "DequantizeLinear", "Gather", "GatherElements", "MatMulInteger", "OneHot", "QLinearMatMul"}
    | {"QuantizeLinear", "Slice", "Split", "Squeeze", "Transpose"}
)
#: Operators with instructions that would mix steps, too.
_CONTRACTIONS: Final = frozenset({"MatMul", "Softmax", "LogSoftmax"})
