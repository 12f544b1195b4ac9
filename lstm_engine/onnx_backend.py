"""The engine behind ONNX's backend interface, which onnx's own conformance tests run against.

from lstm_engine.onnx_backend import Backend
y, = Backend.run_model(onnx.load("model.onnx"), [x])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TypeProto, helper, numpy_helper
from onnx.backend.base import Backend as _Backend
from onnx.backend.base import BackendRep as _BackendRep

from .errors import InputError, UnsupportedModelError
from .model import Model, load

__all__ = ["Backend", "PreparedModel"]

_DEVICES: Final = ("CPU",)
_GRAPH_NAME: Final = "node"


class PreparedModel(_BackendRep):  # type: ignore[misc]  # onnx is not typed
    """A loaded model behind ``BackendRep.run``; ``model`` is the engine's own face of it."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def run(self, inputs: Any, **kwargs: Any) -> tuple[np.ndarray, ...]:
        """The outputs in the file's order.

        ``inputs``: arrays or TensorProtos in the file's order (one may stand by itself; optional ones at the end may
        be left out), or {name: array}. ``kwargs``: no effect.

        Raises what Model.run() raises.
        """
        results = self.model.run(self._named(inputs))
        return tuple(results[spec.name] for spec in self.model.outputs)

    def _named(self, inputs: Any) -> dict[str, Any]:
        if isinstance(inputs, Mapping):
            return {name: _array(value) for name, value in inputs.items()}
        given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        specs = self.model.inputs
        if len(given) > len(specs):
            names = ", ".join(spec.name for spec in specs)
            raise InputError(f"{self.model.graph.origin} has {len(specs)} inputs ({names}), got {len(given)} values")
        return {spec.name: _array(value) for spec, value in zip(specs, given, strict=False)}


class Backend(_Backend):  # type: ignore[misc]
    """ONNX's Backend: every model is loaded from its serialised bytes, as one from a file would be."""

    @classmethod
    def is_compatible(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether the device is there and the engine implements all of the model.

        Raises ModelFormatError for a model that contradicts itself.
        """
        if not cls.supports_device(device):
            return False
        try:
            load(model.SerializeToString())
        except UnsupportedModelError:
            return False
        return True

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> PreparedModel:
        """A model ready to run again and again. ``kwargs`` go to ``lstm_engine.load``.

        Raises UnsupportedModelError for another device, and what load() raises.
        """
        if not cls.supports_device(device):
            raise UnsupportedModelError(f"device {device!r} is not available; expected one of {', '.join(_DEVICES)}")
        return PreparedModel(load(model.SerializeToString(), **kwargs))

    @classmethod
    def run_node(
        cls,
        node: NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, Sequence[int]]] | None = None,
        **kwargs: Any,
    ) -> tuple[np.ndarray, ...]:
        """Run one operator on ``inputs``: one array for each of its inputs that has a name, in order.

        ``outputs_info``: (dtype, shape) of each output; inferred from the operator where it is not given.
        ``opset_version`` among ``kwargs``: the operator set (the newest that onnx knows where it is left out).

        Raises InputError where their number differs, and what prepare() and PreparedModel.run() raise.
        """
        opset = int(kwargs.pop("opset_version", onnx.defs.onnx_opset_version()))
        given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        names = [name for name in node.input if name]
        if len(names) != len(given):
            raise InputError(f"{node.op_type} '{node.name}' names {len(names)} inputs, got {len(given)} values")
        feeds = {name: _array(value) for name, value in zip(names, given, strict=True)}
        model = _model_of(node, feeds, opset, outputs_info)
        return cls.prepare(model, device, **kwargs).run(feeds)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether ``device`` ("CPU", "CPU:0", "CUDA"…) is one the engine runs on."""
        return device.split(":")[0] in _DEVICES


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _model_of(
    node: NodeProto,
    feeds: Mapping[str, Any],
    opset: int,
    outputs_info: Sequence[tuple[Any, Sequence[int]]] | None,
) -> ModelProto:
    """A model of one node, its outputs typed as ``outputs_info`` says or as onnx infers."""
    inputs = [helper.make_value_info(name, _type_of(np.asarray(value))) for name, value in feeds.items()]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    if outputs_info is not None:
        types = [helper.make_tensor_type_proto(_element(dtype), list(shape)) for dtype, shape in outputs_info]
        outputs = [helper.make_value_info(info.name, kind) for info, kind in zip(outputs, types, strict=True)]
    graph = helper.make_graph([node], _GRAPH_NAME, inputs, outputs)
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(node.domain, 1)] if node.domain else []
    model = helper.make_model(graph, opset_imports=imports)
    return model if outputs_info is not None else onnx.shape_inference.infer_shapes(model)


def _type_of(array: np.ndarray) -> TypeProto:
    return helper.make_tensor_type_proto(_element(array.dtype), array.shape)


def _element(dtype: Any) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
