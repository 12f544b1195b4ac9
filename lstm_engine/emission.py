"""Object files of an executor for any machine that LLVM knows: what a C program, or an export, links.

Each is made in a process of its own: the kernels of this one are compiled for this machine, and LLVM ends the process
when it meets an instruction that the other machine lacks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

from .errors import TargetError
from .machine import Target, assume

#: ``int64 lstm_engine_run(int64 context)``
SYMBOL: Final = "lstm_engine_run"
_CHILD: Final = "from lstm_engine.emission import _answer; _answer()"


def emit(machine: Target, precision: str, kernel_set: str = "full", *, assembly: bool = False) -> bytes:
    """The object file of an executor (a precision's, with a set of kernels of images.py), or its assembly text.

    Raises TargetError if LLVM knows no such machine, or cannot express the kernels on it.
    """
    order = json.dumps({"machine": asdict(machine), "image": [precision, kernel_set], "assembly": assembly})
    package = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=order.encode(),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode or "not a recognized" in said:  # LLVM warns of a name it does not know, and goes on without
        raise TargetError(
            f"object for {machine.triple}, CPU '{machine.cpu}', features '{machine.features}': expected names that "
            f"LLVM knows and a machine that can express the kernels, got: {said or f'exit status {done.returncode}'}"
        )
    return done.stdout


def _answer() -> None:
    """The other process: an order on standard input, the object on standard output."""
    order = json.load(sys.stdin)
    assume(Target(**order["machine"]))
    from .images import emitted

    precision, kernel_set = order["image"]
    made = emitted(SYMBOL, precision, kernel_set, order["assembly"])
    sys.stdout.buffer.write(made)
