"""One environment for every engine: one thread each, one core for all, and a stamp that says which machine it was."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any, Final

#: Read by OpenMP, OpenBLAS, MKL, numexpr and Numba when they are first imported.
THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)
PACKAGES: Final = ("numpy", "numba", "llvmlite", "onnx", "onnxruntime", "torch", "openvino")
FLAGS: Final = (
    "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile",
    "amx_bf16", "asimd", "asimddp", "sve",
)  # fmt: skip


def pin(core: int | None = None) -> int | None:
    """One thread for every library and one core for the process; to be called before NumPy is imported.

    Returns the core, None where the system cannot pin (macOS, Windows).
    """
    for name in THREAD_VARIABLES:
        os.environ[name] = "1"
    if not hasattr(os, "sched_setaffinity"):
        return None
    allowed = os.sched_getaffinity(0)
    chosen = max(allowed) if core is None else core
    if chosen not in allowed:
        raise ValueError(f"core {chosen} is not among those this process may use: {sorted(allowed)}")
    os.sched_setaffinity(0, {chosen})
    return chosen


def stamp(core: int | None) -> dict[str, Any]:
    """Which machine, which software, when, and how busy it was."""
    facts = _cpu_facts()
    model = facts.get("model name") or facts.get("Processor") or platform.processor() or platform.machine()
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    return {
        "cpu": model,
        "family": " ".join(facts[key] for key in ("vendor_id", "cpu family", "model", "stepping") if key in facts),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "core": core,
        "caches": _caches(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions(),
        "code": _code(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "load_at_start": load_average(),
    }


def versions() -> dict[str, str]:
    """The installed releases of all packages that matter."""
    found = {"lstm_engine": importlib.import_module("lstm_engine").__version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def load_average() -> list[float] | None:
    """Runnable tasks over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def _cpu_facts() -> dict[str, str]:
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _caches() -> dict[str, int]:
    from lstm_engine.machine import cache_sizes

    return dict(cache_sizes())


def _code() -> dict[str, Any]:
    from lstm_engine.image import digest
    from lstm_engine.machine import target

    return {"kernels": digest(), "variant": target().variant, "llvm_cpu": target().cpu}
