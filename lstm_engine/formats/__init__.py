"""File → Graph. The only rooms that know a file format; onnx is imported only when an ONNX file is read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ModelFormatError
from ..graph import Graph
from .source import Source

ZIP_MAGIC = b"PK"
#: Files that people hand over by mistake: where their mark is, the mark, what they are and what to do.
STRANGERS = (
    (0, b"\x93NUMPY", "a single npy array; save the weights with numpy.savez, under their names"),
    (0, b"\x89HDF", "an HDF5 file; in Keras: numpy.savez(path, **{w.path: w.numpy() for w in model.weights})"),
    (0, b"\x80", "a pickle, which is never loaded; save a state_dict with numpy.savez"),
    (4, b"TFL3", "a TensorFlow Lite model; convert it to ONNX"),
)


def read(
    source: str | os.PathLike[str] | bytes,
    *,
    prefix: str | None = None,
    batch_first: bool | None = None,
    nonlinearity: str | None = None,
    layers: Sequence[Mapping[str, Any]] | None = None,
) -> Graph:
    """Read a model file, told by its content: a zip archive is an npz file, anything else must be ONNX.

    The keywords say what a file of bare weights cannot: ``prefix`` of the module wanted, ``batch_first``
    and ``nonlinearity`` ("tanh" or "relu") of a PyTorch module, ``layers`` of a Keras network.

    Raises OSError if the file cannot be opened, ModelFormatError if it is no readable model,
    UnsupportedModelError naming what is not implemented, TypeError for keywords the file has no use for.
    """
    opened = Source.of(source)
    keywords = {"prefix": prefix, "batch_first": batch_first, "nonlinearity": nonlinearity, "layers": layers}
    head = opened.head(16)
    _refuse_strangers(head, opened.origin)
    if head[:2] == ZIP_MAGIC:
        from .npz import read_npz

        return read_npz(opened, prefix=prefix, batch_first=batch_first, nonlinearity=nonlinearity, layers=layers)
    if given := [name for name, value in keywords.items() if value is not None]:
        raise TypeError(f"{opened.origin}: {', '.join(given)} describe npz files of bare weights, this is none")
    from .onnx import read_onnx

    return read_onnx(opened)


def _refuse_strangers(head: bytes, origin: str) -> None:
    if not head:
        raise ModelFormatError(f"{origin}: is empty")
    for place, mark, advice in STRANGERS:
        if head[place:].startswith(mark):
            raise ModelFormatError(f"{origin}: is {advice}")
