"""Facts about this machine, and the environment variables the engine listens to.

The facts are those of the code generator (Numba's target), not of the bare CPU: forcing a lesser
target with Numba's own NUMBA_CPU_NAME / NUMBA_CPU_FEATURES forces it here too.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True)
class Knob:
    """One environment variable: what it does and what holds without it."""

    name: str
    meaning: str
    default: str


CACHE_KNOB: Final = Knob(
    "LSTM_ENGINE_CACHE",
    "folder for compiled code; 'off' compiles anew in every process",
    "the user's cache folder (XDG_CACHE_HOME, ~/Library/Caches, %LOCALAPPDATA%)",
)
DEBUG_KNOB: Final = Knob(
    "LSTM_ENGINE_DEBUG",
    "'1' puts canaries between buffers, checked after each call, and shows tracebacks on the command line",
    "0",
)
THREADS_KNOB: Final = Knob(
    "LSTM_ENGINE_THREADS",
    "most threads one call may use, the caller's own included; 1 starts none",
    "the cores this process may use",
)
SPIN_KNOB: Final = Knob(
    "LSTM_ENGINE_SPIN",
    "microseconds a thread of the engine's stays awake without work before it sleeps",
    "50",
)
KNOBS: Final[Mapping[str, Knob]] = MappingProxyType(
    {knob.name: knob for knob in (CACHE_KNOB, DEBUG_KNOB, THREADS_KNOB, SPIN_KNOB)}
)


@dataclass(frozen=True)
class Target:
    """What the code generator emits for.

    ``vector_bytes``: widest vector; ``registers``: how many of them; ``fma``: fused multiply-add in hardware;
    ``vnni``: products of bytes summed in fours, in vectors of 64 bytes.
    """

    triple: str
    cpu: str
    features: str
    vector_bytes: int
    registers: int
    fma: bool
    vnni: bool = False

    @property
    def variant(self) -> str:
        """Short name of the instruction set family, as `inspect` prints it."""
        if self.triple.startswith("aarch64") or self.triple.startswith("arm64"):
            return "neon"
        if self.vector_bytes == 64:
            return "avx512"
        return "avx2" if self.fma else "x86-64"


@functools.cache
def target() -> Target:
    """The code generator's target, read once."""
    import llvmlite.binding as llvm
    from numba.core import config

    triple = llvm.get_process_triple()
    cpu = config.CPU_NAME or llvm.get_host_cpu_name()
    if config.CPU_FEATURES is not None:
        features = config.CPU_FEATURES
    elif config.CPU_NAME:
        features = ""
    else:
        features = llvm.get_host_cpu_features().flatten()
    enabled = {flag[1:] for flag in features.split(",") if flag.startswith("+")} | _implied(cpu, features)
    arm = triple.startswith(("aarch64", "arm64"))
    wide = "avx512f" in enabled
    return Target(
        triple=triple,
        cpu=cpu,
        features=features,
        vector_bytes=64 if wide else 32 if "avx2" in enabled else 16,
        registers=32 if wide or arm else 16,
        fma=arm or wide or "fma" in enabled,
        vnni=wide and "avx512vnni" in enabled,
    )


def _implied(cpu: str, features: str) -> set[str]:
    """Features a generic CPU name stands for when no feature list is given."""
    if features:
        return set()
    levels = {"x86-64-v3": {"avx2", "fma"}, "haswell": {"avx2", "fma"}}
    levels["x86-64-v4"] = levels["skylake-avx512"] = {"avx2", "fma", "avx512f"}
    return levels.get(cpu, set())


def cache_folder() -> Path | None:
    """Where compiled code is kept; None when caching is off or no folder can be named."""
    chosen = os.environ.get(CACHE_KNOB.name)
    if chosen is not None:
        return None if chosen in ("", "off", "0") else Path(chosen)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "lstm_engine"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else home / "AppData" / "Local") / "lstm_engine" / "Cache"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and os.path.isabs(base) else home / ".cache") / "lstm_engine"


def debugging() -> bool:
    """Whether canaries are asked for."""
    return os.environ.get(DEBUG_KNOB.name, "0") not in ("", "0")


@functools.cache
def cache_sizes() -> dict[str, int]:
    """Bytes of one core's data caches by level ('L1', 'L2', 'L3'), as far as the system tells."""
    sizes: dict[str, int] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind = (index / "level").read_text().strip(), (index / "type").read_text().strip()
            size = (index / "size").read_text().strip()
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            sizes[f"L{level}"] = int(size[:-1]) * 1024
    return sizes


def cores() -> int:
    """Cores this process may use: those it is bound to, at most as many as its control group pays for."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(bound, int(quota) // int(period)))
    except (OSError, ValueError):  # no such control, or 'max'
        return bound
