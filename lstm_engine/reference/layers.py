"""The named dimensions of a recurrent layer, checked against every input it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from ..errors import ModelFormatError, listed
from .cells import CellAttributes, cell_attributes

Axes: TypeAlias = tuple[str, ...]

#: Gate blocks in the stacked weights.
BLOCKS: Final = {"LSTM": 4, "GRU": 3, "RNN": 1}
#: Names of the inputs, in order; an LSTM's projection is the engine's extension.
INPUTS: Final = {
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P", "projection"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
}


class Shaped(Protocol):
    """An array, or what is known of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A recurrent layer whose inputs fit. ``dims``: T, B, I, H, D, and P where it has a projection."""

    cell: CellAttributes
    dims: Mapping[str, int]
    outputs: Mapping[str, Axes]

    def sized(self, *axes: str) -> tuple[int, ...]:
        """Axes as numbers."""
        return tuple(self.dims[axis] for axis in axes)

    def output_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of Y, Y_h and an LSTM's Y_c."""
        return tuple(self.sized(*axes) for axes in self.outputs.values())


def layer_of(op: str, given: Mapping[str, Any]) -> Layer:
    """The layer that inputs and attributes make, both by name, absent ones None.

    Raises ModelFormatError listing every input that does not fit: ranks before sizes, then types.
    """
    inputs: dict[str, Shaped] = {name: given[name] for name in INPUTS[op] if given.get(name) is not None}
    cell = cell_attributes(op, {name: v for name, v in given.items() if v is not None and name not in inputs})
    expected, outputs = _axes(op, cell.layout == 1, "projection" in inputs)
    dims = _dims(op, cell, inputs, expected, given.get("hidden_size"))
    faults = [f for name, tensor in inputs.items() for f in _shape_faults(name, tensor, expected[name], dims)]
    faults += _type_faults(inputs)
    if faults:
        raise ModelFormatError(listed("inputs do not fit", faults))
    return Layer(cell, dims, outputs)


def _axes(op: str, batch_first: bool, projected: bool) -> tuple[dict[str, Axes], dict[str, Axes]]:
    """The axes of each input and output."""
    G, out = BLOCKS[op], "P" if projected else "H"

    def state(last: str) -> Axes:
        return ("B", "D", last) if batch_first else ("D", "B", last)

    inputs = {
        "X": ("B", "T", "I") if batch_first else ("T", "B", "I"),
        "W": ("D", _times(G), "I"),
        "R": ("D", _times(G), out),
        "B": ("D", _times(2 * G)),
        "sequence_lens": ("B",),
        "initial_h": state(out),
        "initial_c": state("H"),
        "P": ("D", "3H"),
        "projection": ("D", "P", "H"),
    }
    outputs = {"Y": ("B", "T", "D", out) if batch_first else ("T", "D", "B", out), "Y_h": state(out)}
    return inputs, outputs | ({"Y_c": state("H")} if op == "LSTM" else {})


def _dims(
    op: str, cell: CellAttributes, inputs: Mapping[str, Shaped], axes: Mapping[str, Axes], hidden_size: int | None
) -> dict[str, int]:
    """The dimensions that X, R and the projection bind; an input of the wrong rank binds none."""
    dims = {"D": len(cell.directions)}
    if hidden_size is None and len(inputs["R"].shape) == 3:
        hidden_size = inputs["R"].shape[1] // BLOCKS[op]
    if hidden_size is not None and hidden_size <= 0:
        raise ModelFormatError(f"hidden_size must be positive, got {hidden_size}")
    if hidden_size is not None:
        dims |= {_times(k): k * hidden_size for k in (1, 2, 3, 4, 6, 8)}
    if "projection" in inputs and len(inputs["projection"].shape) == 3:
        dims["P"] = inputs["projection"].shape[1]
    if len(inputs["X"].shape) == 3:
        dims |= dict(zip(axes["X"], inputs["X"].shape, strict=True))
    return dims


def _shape_faults(name: str, tensor: Shaped, axes: Axes, dims: Mapping[str, int]) -> list[str]:
    wanted = [dims.get(axis) for axis in axes]
    if len(tensor.shape) != len(axes):
        return [f"{name} must be [{', '.join(axes)}], got rank {len(tensor.shape)}: {list(tensor.shape)}"]
    if any(size not in (None, got) for size, got in zip(wanted, tensor.shape, strict=True)):
        sized = ", ".join("?" if size is None else str(size) for size in wanted)
        return [f"{name} must be [{', '.join(axes)}] = [{sized}], got {list(tensor.shape)}"]
    return []


def _type_faults(inputs: Mapping[str, Shaped]) -> list[str]:
    dtypes = sorted({str(tensor.dtype) for name, tensor in inputs.items() if name != "sequence_lens"})
    faults = [f"all inputs must have one type, got {' and '.join(dtypes)}"] if len(dtypes) > 1 else []
    if any(np.dtype(tensor.dtype).kind in "iubc" for name, tensor in inputs.items() if name != "sequence_lens"):
        faults.append(f"inputs must be floating-point numbers, got {' and '.join(dtypes)}")
    lengths = inputs.get("sequence_lens")
    if lengths is not None and not np.issubdtype(lengths.dtype, np.integer):
        faults.append(f"sequence_lens must be integers, got {lengths.dtype}")
    return faults


def _times(count: int) -> str:
    return f"{count}H" if count > 1 else "H"
