"""BatchNormalization of a trained network is a scale and a shift of each channel: part of the layer beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ...graph import Graph, Node
from .writing import Writer, names_of

EPSILON: Final = 1e-5


@dataclass(frozen=True)
class Affinity:
    """y = a·x + d for each channel."""

    a: np.ndarray
    d: np.ndarray


@dataclass(frozen=True)
class Linear:
    """A layer of constant weights. ``channels``: which axis of the weights the output's (or input's) channels are."""

    weights: np.ndarray
    bias: np.ndarray | None
    channels: int


def without_normalisation(graph: Graph) -> Graph:
    """The graph whose BatchNormalization nodes are folded into the Conv, ConvTranspose or Gemm before or after them."""
    if not any(node.op == "BatchNormalization" for node in graph.nodes):
        return graph
    folding = _Folding(graph)
    for place, node in enumerate(graph.nodes):
        scaling = _scaling(graph, node)
        if scaling is not None and not folding.into_maker(place, scaling):
            folding.into_reader(place, scaling)
    return folding.result()


class _Folding:
    """The nodes of a graph while normalisations leave it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.writer = Writer(names_of(graph))
        self.nodes: list[Node | None] = list(graph.nodes)
        self.places = {name: place for place, node in enumerate(graph.nodes) for name in node.outputs if name}
        self.readers = graph.consumers()
        self.outputs = {spec.name for spec in graph.outputs}

    def result(self) -> Graph:
        """The graph as it has become."""
        kept = [node for node in self.nodes if node is not None]
        return self.graph.with_nodes(kept, {**self.graph.constants, **self.writer.constants})

    def into_maker(self, place: int, scaling: Affinity) -> bool:
        """Fold the normalisation at a place into the layer before it."""
        node = self.nodes[place]
        before = None if node is None else self.places.get(node.inputs[0])
        if node is None or before is None or not self._is_read_once(node.inputs[0]):
            return False
        return self._merge(before, place, scaling, _scaled_outputs, node.output(0))

    def into_reader(self, place: int, scaling: Affinity) -> bool:
        """Fold the normalisation at a place into the layer after it."""
        node = self.nodes[place]
        if node is None or not self._is_read_once(node.output(0)):
            return False
        made = [name for name in self.readers[node.output(0)][0].outputs if name]
        after = self.places.get(made[0]) if made else None
        reader = None if after is None else self.nodes[after]
        if after is None or reader is None or reader.input(0) != node.output(0) or not _unpadded(reader):
            return False
        return self._merge(after, place, scaling, _scaled_inputs, reader.output(0), node.inputs[0])

    def _is_read_once(self, name: str) -> bool:
        return len(self.readers.get(name, ())) == 1 and name not in self.outputs

    def _merge(
        self,
        layer: int,
        normalisation: int,
        scaling: Affinity,
        rule: Callable[[Node, Linear, Affinity], Linear | None],
        output: str,
        x: str = "",
    ) -> bool:
        """Give the layer other weights, the name ``output`` for what it makes and ``x`` for what it reads."""
        node = self.nodes[layer]
        merged = None if node is None else _merged(self.graph, self.writer, node, scaling, rule, output)
        if merged is None:
            return False
        self.nodes[layer] = replace(merged, inputs=(x or merged.inputs[0], *merged.inputs[1:]))
        self.nodes[normalisation] = None
        self.places[output] = layer
        return True


def _scaling(graph: Graph, node: Node) -> Affinity | None:
    """What a BatchNormalization with constant statistics does to each channel."""
    constants = [graph.constants.get(name) for name in node.inputs[1:5]]
    training = node.attributes.get("training_mode", 0) or any(node.outputs[1:])
    shapes = {None if constant is None else constant.shape for constant in constants}
    if node.op != "BatchNormalization" or node.domain or training or len(constants) < 4:
        return None
    if len(shapes) != 1 or len(next(iter(shapes)) or ()) != 1:
        return None
    scale, bias, mean, variance = (np.asarray(c, np.float64) for c in constants)
    with np.errstate(all="ignore"):
        a = scale / np.sqrt(variance + float(node.attributes.get("epsilon", EPSILON)))
        d = bias - mean * a
    return Affinity(a, d) if np.isfinite(a).all() and np.isfinite(d).all() else None


def _merged(
    graph: Graph,
    writer: Writer,
    node: Node,
    scaling: Affinity,
    rule: Callable[[Node, Linear, Affinity], Linear | None],
    output: str,
) -> Node | None:
    """The layer with other weights and the name of its output; None if it is no layer of constant weights."""
    layer = _layer(node, {**graph.constants, **writer.constants})
    changed = None if layer is None else rule(node, layer, scaling)
    if layer is None or changed is None or changed.bias is None:
        return None
    dtype = layer.weights.dtype
    weights = writer.constant(changed.weights.astype(dtype), f"{output}.weights")
    bias = writer.constant(changed.bias.astype(dtype), f"{output}.bias")
    attributes = {k: v for k, v in node.attributes.items() if k not in ("alpha", "beta")}
    return replace(node, inputs=(node.inputs[0], weights, bias), outputs=(output,), attributes=attributes)


def _layer(node: Node, constants: Mapping[str, np.ndarray]) -> Linear | None:
    weights, bias = constants.get(node.input(1)), constants.get(node.input(2))
    if node.domain or weights is None or weights.dtype.kind != "f" or (node.input(2) and bias is None):
        return None
    channels = {"Conv": 0, "ConvTranspose": 1}.get(node.op)
    if channels is not None:
        fits = weights.ndim > 2 and (bias is None or bias.shape == (weights.shape[channels],))
        fits = fits and (channels == 0 or node.attributes.get("group", 1) == 1)
        return Linear(weights, bias, channels) if fits else None
    if node.op == "Gemm" and not node.attributes.get("transA", 0) and weights.ndim == 2:
        alpha, beta = (float(node.attributes.get(key, 1.0)) for key in ("alpha", "beta"))
        axis = 0 if node.attributes.get("transB", 0) else 1
        if bias is not None and (
            bias.size not in (1, weights.shape[axis]) or bias.shape[-1:] not in ((), (bias.size,))
        ):
            return None
        whole = None if bias is None else np.broadcast_to(bias.ravel() * beta, (weights.shape[axis],))
        return Linear(weights * alpha, whole, axis)
    return None


def _scaled_outputs(node: Node, layer: Linear, scaling: Affinity) -> Linear | None:
    """a·(W x + b) + d."""
    shape = [1] * layer.weights.ndim
    shape[layer.channels] = -1
    if layer.weights.shape[layer.channels] != len(scaling.a):
        return None
    bias = scaling.d if layer.bias is None else scaling.a * layer.bias + scaling.d
    return Linear(layer.weights * scaling.a.reshape(shape), bias, layer.channels)


def _scaled_inputs(node: Node, layer: Linear, scaling: Affinity) -> Linear | None:
    """W (a·x + d) + b."""
    if node.op == "ConvTranspose" or (node.op == "Conv" and node.attributes.get("group", 1) != 1):
        return None
    W = np.moveaxis(layer.weights, layer.channels, 0).astype(np.float64)
    if W.shape[1] != len(scaling.a):
        return None
    shape = (1, -1, *(1,) * (W.ndim - 2))
    shift = (W * scaling.d.reshape(shape)).reshape(len(W), -1).sum(axis=1)
    scaled = np.moveaxis(W * scaling.a.reshape(shape), 0, layer.channels)
    return Linear(scaled, shift if layer.bias is None else layer.bias + shift, layer.channels)


def _unpadded(node: Node) -> bool:
    """Whether no zeros are put around what a layer reads: they would have to be shifted too."""
    return node.attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(
        node.attributes.get("pads") or ()
    )
