"""One environment for every engine: as many threads each as cores for all, and a stamp of the machine."""

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


def variables(threads: int) -> dict[str, str]:
    """The environment of a process whose libraries are to use so many threads."""
    return {**os.environ, **{name: str(threads) for name in THREAD_VARIABLES}}


def cores_for(threads: int, core: int | None = None) -> list[int]:
    """Cores for so many threads, physical ones as far as there are enough: ``core`` first, the last one without.

    None at all where the system cannot pin (macOS, Windows). Raises ValueError for a core that may not be used.
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0), reverse=True)
    if core is not None and core not in allowed:
        raise ValueError(f"core {core} is not among those this process may use: {allowed[::-1]}")
    wanted = [*([core] if core is not None else []), *(each for each in allowed if each != core)]
    apart = list({_siblings(each): each for each in reversed(wanted)}.values())[::-1]
    return [*apart, *(each for each in wanted if each not in apart)][:threads]


def pin(cores: list[int]) -> None:
    """Keep this process to these cores, where the system can."""
    if cores:
        os.sched_setaffinity(0, set(cores))


def _siblings(core: int) -> str:
    """What names the physical core of a logical one."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(core)


def stamp(cores: dict[str, list[int]]) -> dict[str, Any]:
    """Which machine, which software, when, and how busy it was."""
    facts = _cpu_facts()
    model = facts.get("model name") or facts.get("Processor") or platform.processor() or platform.machine()
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    return {
        "cpu": model,
        "family": " ".join(facts[key] for key in ("vendor_id", "cpu family", "model", "stepping") if key in facts),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "pinned": cores,  # by number of threads
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
