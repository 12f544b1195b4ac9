"""The README's Python, as it stands there, in the order it stands there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import CHAR
from cases import NetCase

import lstm_engine as le

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def given(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What the blocks take as given: models' files, and readings for one."""
    here = Path.cwd()
    (tmp_path / "model.onnx").write_bytes(NetCase(hidden=(8,), head="dense", batch_first=False).model())
    (tmp_path / "char.onnx").write_bytes(CHAR.read_bytes())
    draw = np.random.default_rng(0)
    os.chdir(tmp_path)

    def readings(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(np.float32)

    model = le.load("model.onnx")
    name, width = model.inputs[0].name, 3
    yield {
        "x": readings(5, 1, width),
        "x_t": readings(width),
        "chunk": readings(4, 1, width),
        "sequences": [readings(steps, width) for steps in (4, 2, 4)],
        "X": readings(2, width),
        "chunk_a": readings(3, width),
        "chunk_b": readings(5, width),
        "INPUT": name,
    }
    os.chdir(here)


def test_the_blocks_run(given: dict[str, Any]) -> None:
    names = dict(given)
    assert BLOCKS
    for block in BLOCKS:
        exec(compile(block.replace('"input"', "INPUT"), str(README), "exec"), names)
    assert isinstance(names["model"], le.Model)
    assert len(list(names["pieces"])) > 0
    assert 0 < names["surprise"] < 8
