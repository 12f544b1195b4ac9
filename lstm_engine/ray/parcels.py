"""Parcel: a model as the object store holds it, its weights apart, so that processes of a node look at one copy."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from ..graph import Graph, native
from ..model import Model


@dataclass(frozen=True)
class Parcel:
    """``head``: everything but arrays; ``arrays``: bytes of those, which the object store hands out without a copy."""

    head: bytes
    arrays: tuple[np.ndarray, ...]

    @staticmethod
    def of(model: Model) -> Parcel:
        """A model's parcel."""
        buffers: list[pickle.PickleBuffer] = []
        file = io.BytesIO()
        _Pickler(file, 5, buffer_callback=buffers.append).dump((model.graph, model.precision, model.declared))
        return Parcel(file.getvalue(), tuple(np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers))

    def model(self, threads: int) -> Model:
        """The model again; its weights are views of the parcel's arrays."""
        graph, precision, states = pickle.loads(self.head, buffers=self.arrays)
        return Model(_with_known_types(graph), precision, states, threads=threads)

    def to_bytes(self) -> bytes:
        """One piece, for a store."""
        return pickle.dumps((self.head, [array.tobytes() for array in self.arrays]), protocol=5)

    @staticmethod
    def from_bytes(data: bytes) -> Parcel:
        """What to_bytes() wrote, within one cluster: no bytes of strangers."""
        head, arrays = pickle.loads(data)
        return Parcel(head, tuple(np.frombuffer(array, np.uint8) for array in arrays))


class _Pickler(pickle.Pickler):
    """Takes a graph's frozen mappings as dictionaries."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, MappingProxyType):
            return dict, (dict(value),)
        return NotImplemented


def _with_known_types(graph: Graph) -> Graph:
    """The graph with NumPy's own objects of types, which machine code knows by their addresses."""
    return replace(
        graph,
        nodes=tuple(replace(node, attributes=_known(node.attributes)) for node in graph.nodes),
        inputs=tuple(replace(spec, dtype=native(spec.dtype)) for spec in graph.inputs),
        outputs=tuple(replace(spec, dtype=native(spec.dtype)) for spec in graph.outputs),
        constants=_known(graph.constants),
    )


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _known_value(value) for name, value in values.items()}


def _known_value(value: Any) -> Any:
    if isinstance(value, Graph):
        return _with_known_types(value)
    return value.view(native(value.dtype)) if isinstance(value, np.ndarray) else value
