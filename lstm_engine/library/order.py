"""A library is made in a process of its own: for another machine than this one, where LLVM may end the process.

The order goes to the other process on its standard input, what it made comes back on its standard output; the network
lies in a file beside the library while it is made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from .. import errors
from ..errors import LstmEngineError, TargetError
from ..machine import Target

_CHILD: Final = "from lstm_engine.library.maker import answer; answer()"
#: What a process writes before all else: LLVM, too, may write to standard output.
MARK: Final = b"lstm_engine library\n"
_MOST_SAID: Final = 2000  # characters of what LLVM said that a message quotes


@dataclass(frozen=True)
class Order:
    """What is to be made: of the network in ``archive``, for a machine, under a name.

    ``declared``: states that were named when the model was loaded; ``block``: steps computed at once; ``shapes``: of
    one call, where the file leaves them open; ``apart``: the weights are to lie in a file of their own;
    ``assembly``: the code is wanted as text too; ``flushes``: calls see to denormals themselves.
    """

    archive: str
    precision: str
    declared: Mapping[str, str | None]
    machine: Target
    name: str
    batch: int
    block: int
    shapes: Mapping[str, list[int]]
    apart: bool
    fingerprint: str
    assembly: bool = False
    flushes: bool = True


@dataclass(frozen=True)
class Made:
    """What came of it: the object file, its assembly or none, the file of weights or none, and all there is to say."""

    object: bytes
    assembly: bytes
    weights: bytes
    description: Mapping[str, Any]


def made(order: Order) -> Made:
    """Have another process make a library.

    Raises what it raises (UnsupportedModelError, StreamingError, …); TargetError if LLVM knows no such machine, or
    cannot express the program on it.
    """
    package = str(Path(__file__).resolve().parent.parent.parent)
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=json.dumps(asdict(order)).encode(),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    said = "\n".join(dict.fromkeys(done.stderr.decode(errors="replace").split("\n"))).strip()  # LLVM repeats itself
    _, mark, answer = done.stdout.partition(MARK)
    if done.returncode or not mark or "not a recognized" in said:  # LLVM warns of a name it does not know, and goes on
        raise TargetError(
            f"library for {order.machine.triple}, CPU '{order.machine.cpu}', features '{order.machine.features}': "
            "expected names that LLVM knows and a machine that can express the program, "
            f"got: {said[-_MOST_SAID:] or f'exit status {done.returncode}'}"
        )
    head, _, content = answer.partition(b"\n")
    told = json.loads(head)
    if "error" in told:
        kind = getattr(errors, told["error"], LstmEngineError)
        raise kind(told["message"])
    pieces: list[bytes] = []
    at = 0
    for size in told["sizes"]:
        pieces.append(content[at : at + size])
        at += size
    code, assembly, weights = pieces
    return Made(code, assembly, weights, told["description"])
