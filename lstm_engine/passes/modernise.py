"""One form for every operator: that of recent operator sets, whatever set a file was written for.

What old sets keep in attributes (axes, starts, pads, min, max …) becomes constant inputs; operators that
only carry a value along (Constant, Identity, Dropout at inference) go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from ..graph import ENGINE_DOMAIN, Graph, Node, reads
from .contrib import expanded
from .widen import widened

#: Operator set whose forms a modernised graph uses. No form changed in a later one, so a newer file keeps its number.
CANONICAL_OPSET: Final = 21

FLOAT: Final = "float"  # stands for the float type of the model
#: Attributes of old sets that are inputs now: (attribute, index of the input, its dtype, its rank).
MOVED_TO_INPUTS: Final[dict[str, tuple[tuple[str, int, str, int], ...]]] = {
    "Squeeze": (("axes", 1, "i8", 1),),
    "Unsqueeze": (("axes", 1, "i8", 1),),
    "Slice": (("starts", 1, "i8", 1), ("ends", 2, "i8", 1), ("axes", 3, "i8", 1)),
    "Split": (("split", 1, "i8", 1),),
    "Pad": (("pads", 1, "i8", 1), ("value", 2, FLOAT, 0)),
    "Clip": (("min", 1, FLOAT, 0), ("max", 2, FLOAT, 0)),
    "TopK": (("k", 1, "i8", 1),),
    "Upsample": (("scales", 1, "f4", 1),),
    "DFT": (("axis", 2, "i8", 0),),
    **{
        f"Reduce{kind}": (("axes", 1, "i8", 1),)
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}
CONSTANT_VALUES: Final = {
    "value": None,
    "value_float": "f4",
    "value_floats": "f4",
    "value_int": "i8",
    "value_ints": "i8",
}


def modernise(graph: Graph) -> Graph:
    """The same network in the operator forms of CANONICAL_OPSET, subgraphs included, half precision in float32.

    Softmax, LogSoftmax and Hardmax of sets before 13 that flatten their input get the engine's attribute
    ``flatten_from`` instead of ``axis``. Operators this pass does not know stay as they are.

    Raises UnsupportedModelError for old forms with no counterpart, ModelFormatError for contradictory ones.
    """
    graph = widened(graph)
    taken = set(_defined_names(graph))
    return _modernised(graph, _Context(graph.opset, graph.origin, _float_type(graph), taken))


@dataclass(slots=True)
class _Context:
    opset: int
    origin: str
    float_type: str
    taken: set[str]

    def fresh(self, stem: str) -> str:
        name, count = stem, 1
        while name in self.taken:
            count += 1
            name = f"{stem}.{count}"
        self.taken.add(name)
        return name


def _modernised(graph: Graph, context: _Context) -> Graph:
    constants = dict(graph.constants)
    nodes = []
    for node in graph.nodes:
        node = _with_modern_bodies(node, context)
        folded = _constant_value(node, context)
        if folded is not None:
            constants[node.output(0)] = folded
            continue
        if node.domain == "":
            nodes.append(_modern_form(node, context, constants))
        else:
            nodes += _expanded(node, context, constants)
    plain = replace(graph, opset=max(graph.opset, CANONICAL_OPSET))
    kept = _without_copies(plain, nodes, constants)
    return plain.with_nodes(kept, constants)


def _with_modern_bodies(node: Node, context: _Context) -> Node:
    if not any(isinstance(value, Graph) for value in node.attributes.values()):
        return node
    bodies = {k: _modernised(v, context) if isinstance(v, Graph) else v for k, v in node.attributes.items()}
    return replace(node, attributes=bodies)


# ---------------------------------------------------------------- forms


def _expanded(node: Node, context: _Context, constants: dict[str, np.ndarray]) -> list[Node]:
    """What a node of onnxruntime's own operators stands for."""

    def keep(stem: str, value: np.ndarray) -> str:
        name = context.fresh(stem)
        constants[name] = value
        return name

    try:
        return expanded(node, context.fresh, keep)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{context.origin}: {error}") from error


def _modern_form(node: Node, context: _Context, constants: dict[str, np.ndarray]) -> Node:
    if node.op == "DFT" and context.opset < 20 and "axis" not in node.attributes:
        node = _with(node, axis=1)  # the default then; now it is the last but one
    node = _move_attributes(node, context, constants)
    rule = FORMS.get(node.op)
    return node if rule is None else rule(node, context)


def _move_attributes(node: Node, context: _Context, constants: dict[str, np.ndarray]) -> Node:
    moves = [move for move in MOVED_TO_INPUTS.get(node.op, ()) if move[0] in node.attributes]
    if not moves:
        return node
    inputs = list(node.inputs)
    for attribute, index, dtype, rank in moves:
        value = node.attributes[attribute]
        if node.input(index):
            raise ModelFormatError(f"{context.origin}: {node.label} has {attribute} both as attribute and as input")
        array = _as_constant(value, context.float_type if dtype == FLOAT else dtype, rank)
        if array is None:
            raise ModelFormatError(f"{context.origin}: {node.label}: attribute {attribute} is {value!r:.80}")
        name = context.fresh(f"{node.output(0)}.{attribute}")
        constants[name] = array
        inputs += [""] * (index + 1 - len(inputs))
        inputs[index] = name
    return replace(node, inputs=tuple(inputs), attributes=_without(node, *(move[0] for move in moves)))


def _as_constant(value: Any, dtype: str, rank: int) -> np.ndarray | None:
    items = value if isinstance(value, tuple) else (value,)
    kinds = int if dtype == "i8" else (int, float)
    if not all(isinstance(item, kinds) for item in items) or (rank == 0 and len(items) != 1):
        return None
    array = np.array(items, dtype)
    return array.reshape(()) if rank == 0 else array


def _flattening(node: Node, context: _Context) -> Node:
    """Before set 13 the axes from ``axis`` on were one; with the last axis alone that changes nothing."""
    if context.opset >= 13:
        return node
    axis = _integer(node, "axis", 1, context)
    if axis == -1:
        return node
    return replace(node, attributes={**_without(node, "axis"), "flatten_from": axis})


def _split(node: Node, context: _Context) -> Node:
    if context.opset >= 18 or node.input(1) or "num_outputs" in node.attributes:
        return node
    return _with(node, num_outputs=len(node.outputs))


def _upsample(node: Node, context: _Context) -> Node:
    inputs = (node.input(0), "", node.input(1))
    return _as_asymmetric(replace(node, op="Resize", inputs=inputs))


def _resize(node: Node, context: _Context) -> Node:
    if context.opset >= 11:
        return node
    return _as_asymmetric(replace(node, inputs=(node.input(0), "", node.input(1))))


def _as_asymmetric(node: Node) -> Node:
    """Up to set 10, output pixel i came from input pixel i / scale, rounded down."""
    return _with(node, coordinate_transformation_mode="asymmetric", nearest_mode="floor")


def _batch_normalization(node: Node, context: _Context) -> Node:
    if _integer(node, "spatial", 1, context) != 1:
        raise UnsupportedModelError(f"{context.origin}: {node.label}: attribute spatial=0 is not implemented")
    node = replace(node, attributes=_without(node, "spatial"))
    # Up to set 13 more than one output meant training; a trained model does not ask for them.
    return replace(node, outputs=node.outputs[:1]) if context.opset < 14 else node


def _roi_align(node: Node, context: _Context) -> Node:
    old = context.opset < 16 and "coordinate_transformation_mode" not in node.attributes
    return _with(node, coordinate_transformation_mode="output_half_pixel") if old else node


def _grid_sample(node: Node, context: _Context) -> Node:
    names = {"bilinear": "linear", "bicubic": "cubic"}
    mode = node.attributes.get("mode")
    return _with(node, mode=names[mode]) if isinstance(mode, str) and mode in names else node


def _scan(node: Node, context: _Context) -> Node:
    """The form of set 8 scans the rows of a batch, each over its own length."""
    return replace(node, op="BatchScan", domain=ENGINE_DOMAIN) if context.opset < 9 else node


def _group_normalization(node: Node, context: _Context) -> Node:
    """Before set 21 scale and bias were of the groups, not of the channels: the engine's attribute says so."""
    return _with(node, per_group=1) if context.opset < 21 else node


def _constant_fill(node: Node, context: _Context) -> Node:
    """Dropped from the standard, but PyTorch writes it up to set 8 for states of zeros."""
    if _integer(node, "input_as_shape", 0, context) != 1 or "extra_shape" in node.attributes:
        raise UnsupportedModelError(
            f"{context.origin}: {node.label}: only ConstantFill of a given shape is implemented"
        )
    value = _as_constant(node.attributes.get("value", 0.0), "f4", 0)
    if _integer(node, "dtype", 1, context) != 1 or value is None:
        raise UnsupportedModelError(f"{context.origin}: {node.label}: only ConstantFill of float32 is implemented")
    return replace(node, op="ConstantOfShape", attributes={"value": value.reshape(1)})


def _simplified_layer_norm(node: Node, context: _Context) -> Node:
    """How onnxruntime writes an RMSNormalization."""
    if node.output(1):
        raise UnsupportedModelError(f"{context.origin}: {node.label}: its output inv_std_var is not implemented")
    return replace(node, op="RMSNormalization", outputs=node.outputs[:1])


def _dropout(node: Node, context: _Context) -> Node:
    if context.opset >= 12:
        return node
    return replace(node, inputs=node.inputs[:1], attributes=_without(node, "ratio"))


FORMS: Final[dict[str, Callable[[Node, _Context], Node]]] = {
    "Softmax": _flattening,
    "LogSoftmax": _flattening,
    "Hardmax": _flattening,
    "Split": _split,
    "Upsample": _upsample,
    "Resize": _resize,
    "BatchNormalization": _batch_normalization,
    "RoiAlign": _roi_align,
    "GridSample": _grid_sample,
    "Scan": _scan,
    "Scatter": lambda node, context: replace(node, op="ScatterElements"),
    "GroupNormalization": _group_normalization,
    "ConstantFill": _constant_fill,
    "Dropout": _dropout,
    "SimplifiedLayerNormalization": _simplified_layer_norm,
}


def _integer(node: Node, name: str, default: int, context: _Context) -> int:
    value = node.attributes.get(name, default)
    if not isinstance(value, int):
        raise ModelFormatError(f"{context.origin}: {node.label}: attribute {name} must be a number, got {value!r:.80}")
    return value


def _with(node: Node, **attributes: Any) -> Node:
    return replace(node, attributes={**node.attributes, **attributes})


def _without(node: Node, *names: str) -> dict[str, Any]:
    return {name: value for name, value in node.attributes.items() if name not in names}


# ---------------------------------------------------------------- nodes that only carry a value along


def _constant_value(node: Node, context: _Context) -> np.ndarray | None:
    """The array a Constant node stands for; None for other nodes and for text."""
    if node.op != "Constant" or node.domain or not node.output(0):
        return None
    given = [name for name in CONSTANT_VALUES if name in node.attributes]
    if len(given) != 1 or len(node.attributes) != 1:
        if any(name.startswith("value_string") for name in node.attributes):
            return None
        raise ModelFormatError(f"{context.origin}: {node.label}: one value expected, got {sorted(node.attributes)}")
    value = node.attributes[given[0]]
    if given[0] == "value":
        if not isinstance(value, np.ndarray):
            raise ModelFormatError(f"{context.origin}: {node.label}: its value is not a tensor")
        return value
    array = _as_constant(value, CONSTANT_VALUES[given[0]] or "", 1 if given[0].endswith("s") else 0)
    if array is None:
        raise ModelFormatError(f"{context.origin}: {node.label}: {given[0]} is {value!r:.80}")
    return array


def _without_copies(graph: Graph, nodes: list[Node], constants: dict[str, np.ndarray]) -> list[Node]:
    """``nodes`` without Identity and inference Dropout. Outputs keep their names and bodies what they capture.

    Adds to ``constants`` the outputs that copy one.
    """
    outputs = {spec.name for spec in graph.outputs}
    makers = {name for node in nodes for name in node.outputs if name}
    inner = {name for node in nodes for body in _bodies(node) for name in _defined_names(body)}
    used = outputs | {name for node in nodes for name in reads(node)}
    renames: dict[str, str] = {}
    kept = []
    for node in nodes:
        if not _is_copy(node, constants, used):
            kept.append(node)
            continue
        source, target = _final(renames, node.input(0)), node.output(0)
        # A body may define one of the names for itself: after renaming it would capture the wrong tensor.
        movable = source not in inner and target not in inner
        if movable and target not in outputs:
            renames[target] = source
        elif target in outputs and source in constants:
            constants[target] = constants[source]
        elif movable and source in makers and source not in outputs:
            renames[source] = target
        else:
            kept.append(replace(node, op="Identity", inputs=(source,), outputs=(target,), attributes={}))
    return [_renamed(node, renames) for node in kept] if renames else kept


def _is_copy(node: Node, constants: Mapping[str, np.ndarray], used: set[str]) -> bool:
    if node.domain or not node.input(0) or not node.output(0):
        return False
    if node.op == "Identity":
        return True
    if node.op != "Dropout" or any(name in used for name in node.outputs[1:]):
        return False
    training = node.input(2)
    return not training or (training in constants and not np.any(constants[training]))


def _final(renames: Mapping[str, str], name: str) -> str:
    while name in renames:
        name = renames[name]
    return name


def _renamed(node: Node, renames: Mapping[str, str]) -> Node:
    """``node`` with other names for what it reads and makes, captures of its bodies included."""
    attributes = node.attributes
    if any(True for _ in _bodies(node)):
        attributes = {k: _renamed_body(v, renames) if isinstance(v, Graph) else v for k, v in attributes.items()}
    inputs = tuple(_final(renames, name) for name in node.inputs)
    outputs = tuple(_final(renames, name) for name in node.outputs)
    return replace(node, inputs=inputs, outputs=outputs, attributes=attributes)


def _renamed_body(body: Graph, renames: Mapping[str, str]) -> Graph:
    outputs = tuple(replace(spec, name=_final(renames, spec.name)) for spec in body.outputs)
    return replace(body, nodes=tuple(_renamed(node, renames) for node in body.nodes), outputs=outputs)


def _bodies(node: Node) -> Iterator[Graph]:
    yield from (value for value in node.attributes.values() if isinstance(value, Graph))


def _defined_names(graph: Graph) -> Iterator[str]:
    """Every name the graph and the bodies inside it give to something."""
    yield from (spec.name for spec in graph.inputs)
    yield from graph.constants
    for node in graph.nodes:
        yield from (name for name in node.outputs if name)
        for body in _bodies(node):
            yield from _defined_names(body)


def _float_type(graph: Graph) -> str:
    """The float type the model computes in: that of its inputs, else that of most of its weights."""
    for spec in graph.inputs:
        if spec.dtype.kind == "f":
            return str(spec.dtype.str)
    sizes: dict[str, int] = {}
    for value in graph.constants.values():
        if value.dtype.kind == "f":
            sizes[value.dtype.str] = sizes.get(value.dtype.str, 0) + value.size
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else "f4"
