"""Model files that others have published: a folder of them with an index.json, each with recorded inputs.

The index is a list of {"id", "file", "expect", "random_outputs", "cases": [{"name", "file"}]}; a case's .npz has
in_names and, for the first call, s0_in0, s0_in1, …
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def entries(folder: Path) -> list[dict[str, Any]]:
    """The files that have a recorded case. Raises ValueError where the folder has no index."""
    index = folder / "index.json"
    if not index.is_file():
        raise ValueError(f"{folder}: there is no index.json")
    found: list[dict[str, Any]] = json.loads(index.read_text(encoding="utf-8"))
    return [entry for entry in found if entry.get("expect") == "run" and entry.get("cases")]


def recorded(folder: Path, name: str) -> tuple[Path, dict[str, np.ndarray], set[str]]:
    """The file of an id, what its first case feeds, and the outputs that it draws at random."""
    entry = next(entry for entry in entries(folder) if entry["id"] == name)
    with np.load(folder / entry["cases"][0]["file"]) as arrays:
        names = [str(each) for each in arrays["in_names"]]
        feeds = {each: arrays[f"s0_in{k}"] for k, each in enumerate(names) if f"s0_in{k}" in arrays}
    return folder / entry["file"], feeds, set(entry.get("random_outputs", ()))
