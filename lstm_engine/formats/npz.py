"""npz files as Graphs: the engine's own, or bare weights of PyTorch, Keras or ONNX's names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ModelFormatError
from ..graph import Graph
from .archive import Archive
from .bare import named, refuse_keywords
from .keras import is_keras, read_keras
from .native import DESCRIPTION, read_native, write_native
from .plain import is_plain, read_plain
from .pytorch import is_state_dict, read_state_dict
from .source import Source

__all__ = ["read_npz", "write_native"]


def read_npz(
    source: str | os.PathLike[str] | bytes | Source,
    *,
    prefix: str | None = None,
    batch_first: bool | None = None,
    nonlinearity: str | None = None,
    layers: Sequence[Mapping[str, Any]] | None = None,
) -> Graph:
    """Read an npz file; what it holds is told by its keys. Never unpickles.

    Raises ModelFormatError for a damaged, unsafe or unknown file, TypeError for keywords its kind has no use for.
    """
    with Archive(source if isinstance(source, Source) else Source.of(source)) as archive:
        keys, origin = archive.keys, archive.origin
        if DESCRIPTION in archive.files:
            refuse_keywords(
                origin,
                "a native file",
                prefix=prefix,
                batch_first=batch_first,
                nonlinearity=nonlinearity,
                layers=layers,
            )
            return read_native(archive)
        _refuse_other_archives(archive)
        if is_state_dict(keys):
            refuse_keywords(origin, "a PyTorch state_dict", layers=layers)
            return read_state_dict(archive, prefix=prefix, batch_first=batch_first, nonlinearity=nonlinearity)
        if is_plain(keys):
            refuse_keywords(
                origin, "an LSTM's W, R, B, P", batch_first=batch_first, nonlinearity=nonlinearity, layers=layers
            )
            return read_plain(archive, prefix=prefix)
        if is_keras(keys):
            refuse_keywords(origin, "Keras weights", batch_first=batch_first, nonlinearity=nonlinearity)
            return read_keras(archive, prefix=prefix, layers=layers)
        if cells := [key for key in keys if key.rpartition(".")[2] == "weight_hh"]:
            raise ModelFormatError(
                f"{origin}: {named(cells)} belongs to a PyTorch cell; rename weight_ih, weight_hh, bias_ih, bias_hh to "
                "weight_ih_l0 … and it is read as a layer, whose step is the cell's"
            )
        raise ModelFormatError(
            f"{origin}: no recurrent weights among the keys {named(keys) or '(none)'}; accepted are a native file, a "
            "PyTorch state_dict (weight_ih_l0, weight_hh_l0 …), ONNX's W, R, B, P, and Keras weights "
            "(kernel, recurrent_kernel, bias)"
        )


def _refuse_other_archives(archive: Archive) -> None:
    """Say what to do with the other kinds of zip archive that hold weights."""
    names = {name.rpartition("/")[2] for name in archive.files}
    if "data.pkl" in names:
        raise ModelFormatError(
            f"{archive.origin}: is a torch.save file, a pickle, which is never loaded; in PyTorch: "
            "numpy.savez(path, **{k: v.numpy() for k, v in module.state_dict().items()})"
        )
    if "model.weights.h5" in names:
        raise ModelFormatError(
            f"{archive.origin}: is a Keras archive; export it to ONNX, or in Keras: "
            "numpy.savez(path, **{w.path: w.numpy() for w in model.weights})"
        )
