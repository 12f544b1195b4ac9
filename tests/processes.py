"""Python in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys


def child(code: str, environment: dict[str, str], *options: str, **more: str) -> str:
    """Run Python code in a process of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        env={**environment, **more},
        timeout=500,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=os.sep,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
