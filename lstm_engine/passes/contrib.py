"""Operators of onnxruntime's own set as nodes of ONNX's or the engine's vocabulary.

Its optimiser writes fused operators into files; here they come apart again, so that every later pass knows the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from ..errors import UnsupportedModelError
from ..graph import ENGINE_DOMAIN, Node

DOMAIN: Final = "com.microsoft"
#: A name for a tensor, from a stem; and a name for a constant, from a stem and its value.
Fresh = Callable[[str], str]
Keep = Callable[[str, np.ndarray], str]
Expansion = Callable[[Node, Fresh, Keep], list[Node]]

#: Operators with a definition of their own in ``reference``, which keep their name.
OWN: Final = frozenset({
    "DynamicQuantizeLSTM", "FusedMatMul", "MatMulIntegerToFloat", "QGemm", "QLinearAdd", "QLinearAveragePool",
    "QLinearConcat", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul",
    "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere",
})  # fmt: skip
#: Operators that are ONNX's under the same or another name.
SAME: Final = {
    "DequantizeLinear": "DequantizeLinear",
    "ExpandDims": "Unsqueeze",
    "GatherND": "GatherND",
    "Gelu": "Gelu",
    "QLinearConv": "QLinearConv",
    "QuantizeLinear": "QuantizeLinear",
    "Trilu": "Trilu",
}
#: Activations that onnxruntime fuses, and the attributes that their parameters are.
ACTIVATIONS: Final[dict[str, tuple[str, ...]]] = {
    "Elu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Selu": ("alpha", "gamma"),
    "Sigmoid": (),
    "Softplus": (),
    "Softsign": (),
    "Tanh": (),
    "ThresholdedRelu": ("alpha",),
}
#: Epsilon of a SkipLayerNormalization that gives none.
SKIP_EPSILON: Final = 1e-12


def expanded(node: Node, fresh: Fresh, keep: Keep) -> list[Node]:
    """The nodes that ``node`` stands for; the node itself if it is not one of onnxruntime's that are known.

    ``fresh`` makes the names of tensors between them, ``keep`` stores a constant.

    Raises UnsupportedModelError for what a known operator is asked and the engine does not do.
    """
    if node.domain != DOMAIN:
        return [node]
    if node.attributes.get("channels_last", 0):
        raise UnsupportedModelError(f"{node.label}: attribute channels_last=1 is not implemented")
    attributes = {name: value for name, value in node.attributes.items() if name != "channels_last"}
    node = replace(node, attributes=attributes)
    if node.op in OWN:
        return [replace(node, domain=ENGINE_DOMAIN)]
    if node.op in SAME:
        return [replace(node, op=SAME[node.op], domain="")]
    return EXPANSIONS[node.op](node, fresh, keep) if node.op in EXPANSIONS else [node]


def _plain(op: str, inputs: tuple[str, ...], output: str, like: Node, **attributes: Any) -> Node:
    """A node of ONNX's own set that keeps the name of the one it comes from."""
    return Node(op, inputs, (output,), attributes, like.name)


def _summed(node: Node, names: list[str], fresh: Fresh, last: str = "") -> tuple[list[Node], str]:
    """Nodes that add tensors up, absent ones ('') left out, and the name of the sum, which may be told."""
    given = [name for name in names if name]
    nodes, total = [], given[0]
    for index, name in enumerate(given[1:], 2):
        made = last if last and index == len(given) else fresh(f"{node.output(0)}.sum")
        nodes.append(_plain("Add", (total, name), made, node))
        total = made
    return nodes, total


def _fast_gelu(node: Node, fresh: Fresh, keep: Keep) -> list[Node]:
    nodes, total = _summed(node, [node.input(0), node.input(1)], fresh)
    return [*nodes, _plain("Gelu", (total,), node.output(0), node, approximate="tanh")]


def _bias_gelu(node: Node, fresh: Fresh, keep: Keep) -> list[Node]:
    nodes, total = _summed(node, [node.input(0), node.input(1)], fresh)
    return [*nodes, _plain("Gelu", (total,), node.output(0), node)]


def _quick_gelu(node: Node, fresh: Fresh, keep: Keep) -> list[Node]:
    return [_plain("Swish", node.inputs, node.output(0), node, alpha=float(node.attributes.get("alpha", 1.702)))]


def _transpose_matmul(node: Node, fresh: Fresh, keep: Keep) -> list[Node]:
    return [replace(node, op="FusedMatMul", domain=ENGINE_DOMAIN)]


def _activated(node: Node, inner: Node, name: str, parameters: dict[str, float], fresh: Fresh) -> list[Node]:
    """``inner`` and the activation that follows it."""
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(f"{node.label}: activation '{name}' is not one of {', '.join(ACTIVATIONS)}")
    between = fresh(f"{node.output(0)}.linear")
    taken = {key: value for key, value in parameters.items() if key in ACTIVATIONS[name]}
    return [replace(inner, outputs=(between,)), _plain(name, (between,), node.output(0), node, **taken)]


def _fused_gemm(node: Node, fresh: Fresh, keep: Keep) -> list[Node]:
    own = {name: value for name, value in node.attributes.items() if not name.startswith("activation")}
    inner = _plain("Gemm", node.inputs, node.output(0), node, **own)
    given = {
        name: float(node.attributes[f"activation_{name}"])
        for name in ("alpha", "beta", "gamma")
        if f"activation_{name}" in node.attributes
    }
    name = str(node.attributes.get("activation", ""))
    return _activated(node, inner, name, given, fresh) if name else [inner]


def _fused_conv(node: Node, fresh: Fresh, keep: Keep) -> list[Node]:
    own = {name: value for name, value in node.attributes.items() if not name.startswith("activation")}
    inner = _plain("Conv", tuple(node.input(k) for k in range(3)), node.output(0), node, **own)
    nodes = [inner]
    if node.input(3):
        nodes = [replace(inner, outputs=(fresh(f"{node.output(0)}.conv"),))]
        nodes.append(_plain("Add", (nodes[0].output(0), node.input(3)), node.output(0), node))
    name = str(node.attributes.get("activation", ""))
    parameters = [float(v) for v in node.attributes.get("activation_params", ())]
    if not name:
        return nodes
    if name == "Clip":
        between = fresh(f"{node.output(0)}.linear")
        least, most = (
            keep(f"{node.output(0)}.bound", np.array(v, np.float32)) for v in (parameters or [-np.inf, np.inf])
        )
        return [
            *nodes[:-1],
            replace(nodes[-1], outputs=(between,)),
            _plain("Clip", (between, least, most), node.output(0), node),
        ]
    given = dict(zip(ACTIVATIONS.get(name, ()), parameters, strict=False))
    return [*nodes[:-1], *_activated(node, nodes[-1], name, given, fresh)]


def _skip_layer_norm(node: Node, fresh: Fresh, keep: Keep) -> list[Node]:
    return _skip_norm(node, fresh, "LayerNormalization", node.input(4), (node.input(2), node.input(3)))


def _skip_rms_norm(node: Node, fresh: Fresh, keep: Keep) -> list[Node]:
    return _skip_norm(node, fresh, "RMSNormalization", node.input(3), (node.input(2),))


def _skip_norm(node: Node, fresh: Fresh, op: str, bias: str, parameters: tuple[str, ...]) -> list[Node]:
    if node.output(1) or node.output(2):
        raise UnsupportedModelError(f"{node.label}: its outputs mean and inv_std_var are not implemented")
    nodes, total = _summed(node, [node.input(0), node.input(1), bias], fresh, node.output(3))
    epsilon = float(node.attributes.get("epsilon", SKIP_EPSILON))
    return [*nodes, _plain(op, (total, *parameters), node.output(0), node, axis=-1, epsilon=epsilon)]


def _dynamic_quantize_matmul(node: Node, fresh: Fresh, keep: Keep) -> list[Node]:
    stem = node.output(0)
    made = tuple(fresh(f"{stem}.{part}") for part in ("quantised", "scale", "zero_point"))
    quantise = Node("DynamicQuantizeLinear", (node.input(0),), made, {}, node.name)
    a, b, b_scale, b_zero, bias = made[0], *(node.input(k) for k in range(1, 5))
    inputs = (a, b, made[1], b_scale, made[2], b_zero, bias)
    return [quantise, Node("MatMulIntegerToFloat", inputs, (stem,), {}, node.name, ENGINE_DOMAIN)]


EXPANSIONS: Final[dict[str, Expansion]] = {
    "BiasGelu": _bias_gelu,
    "DynamicQuantizeMatMul": _dynamic_quantize_matmul,
    "FastGelu": _fast_gelu,
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_norm,
    "SkipSimplifiedLayerNormalization": _skip_rms_norm,
    "TransposeMatMul": _transpose_matmul,
}
