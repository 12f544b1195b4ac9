"""Operators that onnx's own evaluator defines, where it has been found to agree with onnxruntime.

onnx is imported when such a node is met, never before: files of the engine's own format do without it. Every operator
of the table has cases in tests/operator_cases.py that hold it against onnxruntime; that evaluator has gaps, so what is
not in the table is not taken from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from .registry import OPERATORS, Array, Operator


@dataclass(frozen=True, slots=True)
class Bridged:
    """What of an operator is taken: how many inputs and outputs, the attributes with their defaults, those of whose
    values only some are right, and which inputs must have one shape (onnx does not look).
    """

    inputs: tuple[int, int]
    results: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 22
    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    alike: tuple[int, ...] = ()


BRIDGED: Final[dict[str, Bridged]] = {
    "CenterCropPad": Bridged((2, 2), attributes={"axes": None}),
    "Col2Im": Bridged((3, 3), attributes={"dilations": None, "pads": None, "strides": None}),
    "DeformConv": Bridged(
        (3, 5),
        attributes={
            "dilations": None,
            "group": 1,
            "kernel_shape": None,
            "offset_group": 1,
            "pads": None,
            "strides": None,
        },
    ),
    "GridSample": Bridged(
        (2, 2),
        attributes={"align_corners": 0, "mode": "linear", "padding_mode": "zeros"},
        values={"mode": ("linear", "nearest")},  # cubic differs from onnxruntime at the border
    ),
    "MaxUnpool": Bridged((2, 3), attributes={"kernel_shape": None, "pads": None, "strides": None}, alike=(0, 1)),
    "RotaryEmbedding": Bridged(
        (3, 4), attributes={"interleaved": 0, "num_heads": None, "rotary_embedding_dim": 0}, opset=23
    ),
    "TensorScatter": Bridged((2, 3), attributes={"axis": -2, "mode": "linear"}, opset=24),
}


def refused(op: str, attributes: Mapping[str, Any]) -> list[str]:
    """Attribute values of a node that are not taken from onnx's evaluator."""
    allowed = BRIDGED[op].values
    return [
        f"{name}='{attributes[name]}' is not one of {', '.join(map(str, values))}"
        for name, values in allowed.items()
        if attributes.get(name, values[0]) not in values
    ]


def evaluated(op: str, *inputs: Array | None, **attributes: Any) -> tuple[Array, ...]:
    """The outputs of an operator by onnx's evaluator. Raises ModelFormatError where the inputs do not fit it."""
    _check_alike(op, [None if x is None else x.shape for x in inputs])
    given = tuple(x is not None for x in inputs)
    feeds = {f"x{k}": x for k, x in enumerate(inputs) if x is not None}
    try:
        results = _evaluator(op, given, _frozen(attributes)).run(None, feeds)
    except Exception as error:  # it raises whatever its Python does
        raise ModelFormatError(f"onnx's evaluator does not take them: {error}") from error
    return tuple(np.asarray(y) for y in results)


def inferred(
    op: str, inputs: Sequence[tuple[tuple[int, ...], np.dtype[Any], Array | None] | None], attributes: Mapping[str, Any]
) -> list[tuple[tuple[int, ...] | None, np.dtype[Any]]]:
    """Shape (None where data decide it) and type of each output, of inputs' shapes, types and values as far as known.

    Raises ModelFormatError where the inputs do not fit, UnsupportedModelError where onnx cannot tell.
    """
    import onnx

    bridged = BRIDGED[op]
    _check_alike(op, [None if known is None else known[0] for known in inputs])
    node = _node_proto(op, tuple(x is not None for x in inputs), _frozen(attributes))
    types, values = {}, {}
    for k, known in enumerate(inputs):
        if known is not None:
            shape, dtype, value = known
            types[f"x{k}"] = onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(dtype), shape)
            if value is not None:
                values[f"x{k}"] = onnx.numpy_helper.from_array(np.ascontiguousarray(value))
    schema = onnx.defs.get_schema(op, bridged.opset, "")
    imports = [onnx.helper.make_opsetid("", bridged.opset)]
    try:
        found = onnx.shape_inference.infer_node_outputs(schema, node, types, values, opset_imports=imports)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise ModelFormatError(f"inputs do not fit: {error}") from error
    results = []
    for name in node.output:
        if name not in found:
            raise UnsupportedModelError("onnx does not tell the shape of its outputs")
        tensor = found[name].tensor_type
        sizes = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        known_shape = (
            None if None in sizes or not tensor.HasField("shape") else tuple(n for n in sizes if n is not None)
        )
        results.append((known_shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))))
    return results


def _check_alike(op: str, shapes: Sequence[tuple[int, ...] | None]) -> None:
    alike = [list(shape) for index, shape in enumerate(shapes) if index in BRIDGED[op].alike and shape is not None]
    if any(shape != alike[0] for shape in alike):
        raise ModelFormatError(f"inputs {' and '.join(map(str, BRIDGED[op].alike))} must have one shape, got {alike}")


@lru_cache(64)
def _evaluator(op: str, given: tuple[bool, ...], attributes: tuple[tuple[str, Any], ...]) -> Any:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(_node_proto(op, given, attributes), opsets={"": BRIDGED[op].opset})


def _node_proto(op: str, given: tuple[bool, ...], attributes: tuple[tuple[str, Any], ...]) -> Any:
    import onnx

    names = [f"x{k}" if there else "" for k, there in enumerate(given)]
    outputs = [f"y{k}" for k in range(BRIDGED[op].results)]
    return onnx.helper.make_node(op, names, outputs, **{k: v for k, v in attributes if v is not None})


def _frozen(attributes: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    items = attributes.items()
    return tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in items if v is not None))


for _op, _bridged in BRIDGED.items():
    OPERATORS[_op] = Operator(
        _op,
        partial(evaluated, _op),
        frozenset(_bridged.attributes),
        dict(_bridged.attributes),
        *_bridged.inputs,
        _bridged.results,
    )
