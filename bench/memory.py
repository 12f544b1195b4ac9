"""What a stream costs in memory, by the program's own account and by the system's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from .resident import resident_bytes
from .tasks import Task

STREAMS: Final = 400


def measure(task: Task) -> dict[str, Any]:
    """Bytes: the state alone, the arena, and the growth of a new process with STREAMS streams, each."""
    root = str(Path(__file__).parent.parent)
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", str(task.path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"measuring memory failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"state": task.workload.state_bytes, **found}


def account(path: str) -> dict[str, Any]:
    """What the process that runs this has to say."""
    import lstm_engine

    model = lstm_engine.load(path, threads=1)
    first = model.stream()
    before = resident_bytes()
    streams = [model.stream() for _ in range(STREAMS)]
    after = resident_bytes()
    program = first._lowered.program  # the public face does not tell
    return {
        "arena": program.arena_bytes,
        "resident": None if before is None or after is None else (after - before) / len(streams),
        "weights": sum(instruction.weight_bytes for instruction in program.listing),
        "streams": len(streams),
    }


if __name__ == "__main__":
    print(json.dumps(account(sys.argv[1])))
