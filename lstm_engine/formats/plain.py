"""One LSTM's weights under ONNX's own names: W, R, B and P."""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np

from ..errors import ModelFormatError, listed
from ..graph import Graph, Node, TensorSpec
from .archive import Archive
from .bare import Sketch, chosen_module, common_float, named

KEY: Final = re.compile(r"(?P<prefix>(?:.*[./_])?)(?P<part>[WRBP])")


def is_plain(keys: list[str]) -> bool:
    """Whether some prefix has both a W and an R."""
    parts = {(match["prefix"], match["part"]) for key in keys if (match := KEY.fullmatch(key))}
    return any((prefix, "R") in parts for prefix, part in parts if part == "W")


def read_plain(archive: Archive, *, prefix: str | None) -> Graph:
    """The LSTM with weights W [D, 4H, I], R [D, 4H, H] and optional B [D, 8H], P [D, 3H], gates in order i, o, f, g.

    Input ``X`` [T, B, I], optional ``initial_h`` and ``initial_c`` [D, B, H]; outputs ``Y`` [T, D, B, H],
    ``Y_h``, ``Y_c`` [D, B, H]. One direction runs forward, two are a bidirectional LSTM.

    Raises ModelFormatError listing what is missing, misshapen or unclaimed.
    """
    parsed = {key: match for key in archive.keys if (match := KEY.fullmatch(key))}
    found = list(dict.fromkeys(match["prefix"] for match in parsed.values()))
    chosen = chosen_module(found, prefix, archive.origin, "LSTMs")
    mine = {match["part"]: key for key, match in parsed.items() if match["prefix"] == chosen}
    strangers = [key for key in archive.keys if key not in mine.values()]
    if strangers and prefix is None:
        remedy = f"; prefix={chosen!r} leaves them out" if chosen else ""
        raise ModelFormatError(f"{archive.origin}: no layer claims {named(strangers)}{remedy}")
    weights = archive.arrays(mine.values())
    return _graph({part: weights[key] for part, key in mine.items()}, chosen, archive.origin)


def _graph(weights: dict[str, np.ndarray], prefix: str, origin: str) -> Graph:
    directions, inputs, hidden = _sizes(weights, prefix, origin)
    dtype = common_float(weights.items(), origin)
    sketch = Sketch(origin)
    names = {
        part: sketch.constant(f"{prefix}{part}", value.astype(dtype, copy=False)) for part, value in weights.items()
    }
    attributes: dict[str, Any] = {"hidden_size": hidden}
    if directions == 2:
        attributes["direction"] = "bidirectional"
    reads = ["X", names["W"], names["R"], names.get("B", ""), "", "initial_h", "initial_c"]
    if "P" in names:
        reads.append(names["P"])
    sketch.nodes.append(Node("LSTM", tuple(reads), ("Y", "Y_h", "Y_c"), attributes, prefix.rstrip("./_") or "lstm"))
    state = (directions, "batch", hidden)
    return sketch.graph(
        [
            TensorSpec("X", dtype, ("time", "batch", inputs)),
            TensorSpec("initial_h", dtype, state, optional=True),
            TensorSpec("initial_c", dtype, state, optional=True),
        ],
        [
            TensorSpec("Y", dtype, ("time", directions, "batch", hidden)),
            TensorSpec("Y_h", dtype, state),
            TensorSpec("Y_c", dtype, state),
        ],
    )


def _sizes(weights: dict[str, np.ndarray], prefix: str, origin: str) -> tuple[int, int, int]:
    """D, I and H, after comparing all shapes with them."""
    ranks = {"W": 3, "R": 3, "B": 2, "P": 2}
    faults = [f"'{prefix}{part}' is missing" for part in "WR" if part not in weights]
    faults += [
        f"'{prefix}{part}' has shape {list(value.shape)}, rank {ranks[part]} without empty axes expected"
        for part, value in weights.items()
        if value.ndim != ranks[part] or 0 in value.shape
    ]
    if not faults:
        directions, hidden, inputs = weights["W"].shape[0], weights["R"].shape[2], weights["W"].shape[2]
        expected = {
            "W": ("[D, 4H, I]", (directions, 4 * hidden, inputs)),
            "R": ("[D, 4H, H]", (directions, 4 * hidden, hidden)),
            "B": ("[D, 8H]", (directions, 8 * hidden)),
            "P": ("[D, 3H]", (directions, 3 * hidden)),
        }
        faults += [
            f"'{prefix}{part}' has shape {list(value.shape)}, {expected[part][0]} = {list(expected[part][1])} expected"
            for part, value in weights.items()
            if value.shape != expected[part][1]
        ]
        if directions not in (1, 2):
            faults.append(f"'{prefix}W' has {directions} directions, 1 or 2 expected")
    if faults:
        raise ModelFormatError(listed(f"{origin}: no LSTM", faults))
    return int(directions), int(inputs), int(hidden)
