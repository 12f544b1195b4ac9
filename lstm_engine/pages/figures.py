"""Pictures by matplotlib, which is not among what the engine needs: heatmaps of a layer's gates over time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from ..errors import LstmEngineError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LABELS: Final = 120  # along an axis, before there are only numbers
#: What a font may lack or a figure take for mathematics.
_UNDRAWN: Final = re.compile(r"[^\x20-\x7e\xa0-\xff]|\$")
_PART_HEIGHT: Final = 1.15  # inches


def heatmaps(
    heading: str,
    arrays: Mapping[str, np.ndarray],
    bounded: Sequence[str],
    labels: Sequence[str] | None,
) -> Figure:
    """A heatmap of units over time for each array [T,H]; those ``bounded`` run from 0 to 1, others are signed.

    Raises LstmEngineError where matplotlib is not installed.
    """
    made = _figure_class()(figsize=(9, 0.8 + _PART_HEIGHT * len(arrays)), layout="constrained")
    panels = np.atleast_1d(made.subplots(len(arrays), 1, sharex=True))
    for axes, (name, values) in zip(panels, arrays.items(), strict=True):
        finite = np.abs(values[np.isfinite(values)])
        most = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
        span = (
            {"vmin": 0.0, "vmax": 1.0, "cmap": "Blues"}
            if name in bounded
            else {"vmin": -most, "vmax": most, "cmap": "RdBu"}
        )
        image = axes.imshow(values.T, aspect="auto", interpolation="nearest", **span)
        axes.set_ylabel(name)
        made.colorbar(image, ax=axes, pad=0.01)
    panels[-1].set_xlabel("step")
    if labels is not None and len(labels) <= MOST_LABELS:
        panels[-1].set_xticks(range(len(labels)), [_UNDRAWN.sub("·", label) for label in labels], fontsize=7)
        if any(len(label) > 1 for label in labels):
            panels[-1].tick_params(axis="x", rotation=90)
    made.suptitle(_UNDRAWN.sub("·", heading), fontsize=11)
    return made


def _figure_class() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as fault:
        raise LstmEngineError(
            "plot: it needs matplotlib, which is not installed: pip install 'lstm-engine[plot]'"
        ) from fault
    return Figure
