"""InferenceSession: the engine in the shape of onnxruntime, so that one import can be swapped.

from lstm_engine import InferenceSession     # was: from onnxruntime import InferenceSession
session = InferenceSession("model.onnx")
y, = session.run(None, {"input": x})
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .errors import InputError
from .graph import TensorSpec

#: onnxruntime's names of element types.
_TYPE_NAMES: Final[Mapping[str, str]] = {
    "float16": "float16", "float32": "float", "float64": "double", "bool": "bool",
    "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
}  # fmt: skip
_PROVIDERS: Final = ("CPUExecutionProvider",)


@dataclass(frozen=True)
class NodeArg:
    """An input or output: ``type`` as onnxruntime writes it ('tensor(float)'), ``shape`` with names and None."""

    name: str
    type: str
    shape: list[int | str | None]

    @staticmethod
    def of(spec: TensorSpec) -> NodeArg:
        """A TensorSpec as onnxruntime would show it."""
        dtype = np.dtype(spec.dtype).name
        return NodeArg(spec.name, f"tensor({_TYPE_NAMES.get(dtype, dtype)})", list(spec.shape or ()))


@dataclass(frozen=True)
class ModelMetadata:
    """What a file says about itself: ``custom_metadata_map``, and its own name as ``graph_name``."""

    custom_metadata_map: dict[str, str]
    graph_name: str
    description: str = ""
    domain: str = ""
    graph_description: str = ""
    producer_name: str = ""
    version: int = 0


class InferenceSession:
    """A model behind onnxruntime's methods; may be used from many threads at once.

    ``path_or_bytes``: an .onnx or .npz file, or its bytes. ``sess_options``, ``providers`` and ``provider_options``
    are there so that a program written for onnxruntime runs: they have no effect, the engine runs on the CPU.

    Raises what load() raises.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Any] | None = None,
    ) -> None:
        from .model import load

        self.model = load(path_or_bytes)

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None
    ) -> list[np.ndarray]:
        """The wanted outputs (None or none named: all), in the order of ``output_names``. ``run_options``: no effect.

        Raises InputError listing every fault of the feeds or names.
        """
        if not isinstance(input_feed, Mapping):
            raise InputError(f"run: input_feed: expected {{name: array}}, got {type(input_feed).__name__}")
        wanted = list(output_names) if output_names else [spec.name for spec in self.model.outputs]
        results = self.model.run(input_feed, wanted)
        return [results[name] for name in wanted]

    def get_inputs(self) -> list[NodeArg]:
        """The inputs that must be fed, in the model's order."""
        return [NodeArg.of(spec) for spec in self.model.inputs if not spec.optional]

    def get_overridable_initializers(self) -> list[NodeArg]:
        """The inputs that may be left out."""
        return [NodeArg.of(spec) for spec in self.model.inputs if spec.optional]

    def get_outputs(self) -> list[NodeArg]:
        """The outputs, in the model's order."""
        return [NodeArg.of(spec) for spec in self.model.outputs]

    def get_modelmeta(self) -> ModelMetadata:
        """The file's metadata."""
        return ModelMetadata(dict(self.model.metadata), os.path.basename(self.model.graph.origin))

    def get_providers(self) -> list[str]:
        """['CPUExecutionProvider']"""
        return list(_PROVIDERS)

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """No options."""
        return {name: {} for name in _PROVIDERS}
