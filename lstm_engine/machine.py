"""Facts about this machine, and the environment variables the engine listens to.

The facts are those of the code generator, not of the bare CPU: Numba's own NUMBA_CPU_NAME and
NUMBA_CPU_FEATURES decide them where they are set, and LSTM_ENGINE_VARIANT takes away from what there is.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from .errors import TargetError


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
VARIANT_KNOB: Final = Knob(
    "LSTM_ENGINE_VARIANT",
    "code for a lesser CPU: 'avx512', 'avx2', 'x86-64' or 'neon', then features to do without ('avx512,-avx512vnni')",
    "the best variant of this CPU",
)
KNOBS: Final[Mapping[str, Knob]] = MappingProxyType(
    {knob.name: knob for knob in (CACHE_KNOB, DEBUG_KNOB, THREADS_KNOB, SPIN_KNOB, VARIANT_KNOB)}
)


#: What every CPU of an architecture has: no code can do without.
_FLOOR: Final = frozenset({"64bit", "cmov", "cx8", "fxsr", "mmx", "sse", "sse2", "x87", "fp-armv8", "neon"})
_V2: Final = frozenset({"cx16", "crc32", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3"})
_V3: Final = _V2 | {"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"}
_V4: Final = _V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}
#: Features that a CPU's name stands for, as far as kernels ask; LLVM knows all names, a feature list may add to any.
_IMPLIED: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "x86-64-v2": _V2,
        "x86-64-v3": _V3,
        "haswell": _V3,
        "x86-64-v4": _V4,
        "skylake-avx512": _V4,
        "neoverse-n1": frozenset({"dotprod"}),
        "apple-m1": frozenset({"dotprod"}),
    }
)
#: Variants of x86-64, best first: the generic CPU that code of one is made for where the machine could do better, and
#: what of the machine's own extensions it then still uses.
_X86_VARIANTS: Final[Mapping[str, tuple[str, frozenset[str]]]] = MappingProxyType(
    {
        "avx512": ("x86-64-v4", frozenset()),
        "avx2": ("x86-64-v3", frozenset({"avxvnni"})),
        "x86-64": ("x86-64", frozenset()),
    }
)
#: CPUs that start a bfloat16 product of pairs wherever they would a multiply-add (bench row
#: `sequence-h256-b16-bfloat16`). Those that start half as many do no more with them, and steps are slower for the
#: rounding of rows (bench row `step-h64-bfloat16`).
_DOUBLING: Final = ("znver",)
_LINUX: Final = "x86_64-unknown-linux-gnu"
#: What a machine may lack that a program made for another one of its architecture uses.
_UNCERTAIN: Final = _V4 - _V2 - {"bmi", "lzcnt", "movbe", "xsave"} | {"avx512vnni", "avx512bf16", "avxvnni"}
_TILES: Final = frozenset({"amx-tile", "amx-int8", "amx-bf16"})


@dataclass(frozen=True)
class Target:
    """What the code generator emits for.

    ``vector_bytes``: widest vector; ``registers``: how many of them; ``fma``: fused multiply-add in hardware;
    ``vnni``: int8 products summed into int32, in vectors of the widest kind; ``bf16``: bfloat16 products
    summed into float32, twice as many in a time as multiply-adds; ``amx``: int8 and bfloat16 tiles, which a process
    must still ask its kernel for; ``dotprod``: NEON's int8 products.
    """

    triple: str
    cpu: str
    features: str
    vector_bytes: int
    registers: int
    fma: bool
    vnni: bool
    bf16: bool
    amx: bool
    dotprod: bool

    @staticmethod
    def of(triple: str, cpu: str, features: str = "") -> Target:
        """The facts of a CPU by LLVM's names; ``features``: '+name' and '-name' on top of what its name implies."""
        arm, thumb = triple.startswith(("aarch64", "arm64")), triple.startswith("thumb")
        enabled = _enabled(cpu, features)
        wide = "avx512f" in enabled
        return Target(
            triple=triple,
            cpu=cpu,
            features=features,
            vector_bytes=64 if wide else 32 if "avx2" in enabled else 4 if thumb else 16,
            registers=16 if triple.startswith("x86_64") and not wide else 32,
            fma=arm or wide or thumb or "fma" in enabled or triple.startswith("riscv64"),
            vnni=("avx512vnni" if wide else "avxvnni") in enabled,
            bf16=wide and "avx512bf16" in enabled and cpu.startswith(_DOUBLING),
            amx=enabled >= _TILES,
            dotprod=arm and "dotprod" in enabled,
        )

    @property
    def enabled(self) -> frozenset[str]:
        """Names of the features that the code may use, as far as they are known by name."""
        return _enabled(self.cpu, self.features)

    @property
    def variant(self) -> str:
        """Short name of the instruction set family, as `inspect` prints it."""
        if self.triple.startswith(("aarch64", "arm64")):
            return "neon"
        if not self.triple.startswith("x86_64"):
            return self.triple.partition("-")[0]
        if self.vector_bytes == 64:
            return "avx512"
        return "avx2" if self.fma else "x86-64"

    @property
    def needs(self) -> list[str]:
        """Of the features that the code may use, those that a CPU of its architecture may well lack."""
        return sorted(self.enabled & _UNCERTAIN)

    @property
    def small(self) -> bool:
        """Whether memory is so scarce that code is to be short before it is fast."""
        return self.triple.startswith("thumb")

    @property
    def tools(self) -> str:
        """What GNU's compilers and linkers for the machine are called by."""
        if self.small:
            return "arm-none-eabi"
        architecture = self.triple.partition("-")[0]
        return f"{architecture}-w64-mingw32" if "windows" in self.triple else f"{architecture}-linux-gnu"

    @property
    def relocation(self) -> str:
        """How an object refers to its own parts: by distance where a shared library may be made of it."""
        return "static" if self.small else "pic"

    @property
    def calling(self) -> str:
        """The name of the calling convention, where the triple leaves it open."""
        return "lp64d" if self.triple.startswith("riscv64") else ""

    def without(self, features: Sequence[str]) -> Target:
        """The same CPU with features taken away."""
        if not features:
            return self
        kept = [flag for flag in self.features.split(",") if flag and flag[1:] not in features]
        return Target.of(self.triple, self.cpu, ",".join([*kept, *(f"-{name}" for name in features)]))


def _enabled(cpu: str, features: str) -> frozenset[str]:
    flags = [flag for flag in features.split(",") if flag]
    absent = {flag[1:] for flag in flags if flag.startswith("-")}
    return frozenset(({flag[1:] for flag in flags if flag.startswith("+")} | _IMPLIED.get(cpu, frozenset())) - absent)


_assumed: Target | None = None


def assume(machine: Target) -> None:
    """Emit code for another machine from here on: for a process that does nothing else (`library/maker.py`)."""
    global _assumed
    _assumed = machine


def target() -> Target:
    """What code is emitted for: this machine, the variant of it that is asked for, or the machine assumed.

    Raises TargetError if LSTM_ENGINE_VARIANT asks for what this CPU cannot run.
    """
    return _assumed or _chosen()


def compiler_setting(name: str) -> str | None:
    """One of Numba's own settings, None where it is left to Numba; read as Numba reads it, without importing Numba."""
    if Path(".numba_config.yaml").exists():  # in the working directory
        from numba.core import config

        value = getattr(config, name, None)
        return None if value is None else str(value)
    return os.environ.get(f"NUMBA_{name}")


def compiler_version() -> object:
    """What tells one Numba from another, without importing it."""
    found = importlib.util.find_spec("numba")
    for folder in (found.submodule_search_locations or ()) if found else ():
        try:
            return (Path(folder) / "_version.py").read_bytes()
        except OSError:
            continue
    import numba

    return numba.__version__


@functools.cache
def _chosen() -> Target:
    return chosen(native(), os.environ.get(VARIANT_KNOB.name, ""))


@functools.cache
def native() -> Target:
    """Numba's own target, read once; without tiles where the kernel offers none."""
    import llvmlite.binding as llvm

    name, features = compiler_setting("CPU_NAME"), compiler_setting("CPU_FEATURES")
    if features is None and (name or "").lower() == "generic":
        features = ""
    if features is None:
        found = llvm.get_host_cpu_features()
        if compiler_setting("ENABLE_AVX") in ("0", "False"):
            found.update({name: False for name in found if name.startswith("avx")})
        features = found.flatten()
    here = Target.of(llvm.get_process_triple(), name or llvm.get_host_cpu_name(), features)
    return here if not here.amx or _tiles_offered() else here.without(sorted(_TILES))


def _tiles_offered() -> bool:
    """Whether the kernel would let a process use tiles (asked of Linux on x86-64, without asking for their use)."""
    if not sys.platform.startswith("linux"):
        return False
    arch_prctl, supported_states, tile_data = ctypes.c_long(158), ctypes.c_long(0x1021), 1 << 18
    states = ctypes.c_uint64(0)
    refused = ctypes.CDLL(None).syscall(arch_prctl, supported_states, ctypes.byref(states))
    return not refused and bool(states.value & tile_data)


#: Machines that libraries are made for, by the names that people call them: triple, CPU, features.
TARGETS: Final[Mapping[str, tuple[str, str, str]]] = MappingProxyType(
    {
        "x86-64": (_LINUX, "x86-64", ""),
        "x86-64-v3": (_LINUX, "x86-64-v3", ""),
        "x86-64-v4": (_LINUX, "x86-64-v4", ""),
        "aarch64": ("aarch64-unknown-linux-gnu", "cortex-a72", ""),
        "apple-arm64": ("arm64-apple-macosx12.0.0", "apple-m1", ""),
        "windows-x64": ("x86_64-w64-windows-gnu", "x86-64-v3", ""),
        "riscv64": ("riscv64-unknown-linux-gnu", "generic-rv64", "+m,+a,+f,+d,+c,+v"),
        "cortex-m7": ("thumbv7em-none-unknown-eabihf", "cortex-m7", ""),
    }
)
NATIVE: Final = "native"


def named_target(name: str) -> Target:
    """The machine of a name: "native", one of TARGETS, or LLVM's own "triple", "triple:cpu", "triple:cpu:+feature,…".

    Raises TargetError for a name that is none of these.
    """
    if name == NATIVE:
        return target()
    if name in TARGETS:
        return Target.of(*TARGETS[name])
    triple, _, rest = name.partition(":")
    cpu, _, features = rest.partition(":")
    if triple.count("-") < 2:
        raise TargetError(
            f"target '{name}': expected {NATIVE}, {', '.join(TARGETS)}, or LLVM's names: triple, triple:cpu or "
            "triple:cpu:+feature,-feature"
        )
    return Target.of(triple, cpu or "generic", features)


def variants(here: Target) -> list[str]:
    """The variants that a machine can run, best first."""
    if here.variant not in _X86_VARIANTS:
        return [here.variant]
    lesser = list(_X86_VARIANTS)[list(_X86_VARIANTS).index(here.variant) + 1 :]
    return [here.variant, *(v for v in lesser if _IMPLIED.get(_X86_VARIANTS[v][0], frozenset()) <= here.enabled)]


def chosen(here: Target, wish: str) -> Target:
    """The variant of a machine that LSTM_ENGINE_VARIANT asks for; the machine itself for the best or no wish."""
    if not wish.strip():
        return here
    name, *rest = (part.strip().lower() for part in wish.split(","))
    possible = variants(here)
    if name not in possible:
        raise TargetError(
            f"{VARIANT_KNOB.name}={wish}: expected one of {', '.join(possible)}, the variants that this CPU "
            f"({here.cpu}) can run, got '{name}'; unset it to run the best of them"
        )
    made_of, extensions = _X86_VARIANTS.get(name, ("", frozenset()))
    if name == here.variant:
        full = here
    else:
        full = Target.of(here.triple, made_of, ",".join(f"+{f}" for f in sorted(extensions & here.enabled)))
    removable = {flag[1:] for flag in here.features.split(",") if flag} - _IMPLIED.get(made_of, frozenset()) - _FLOOR
    wrong = [part for part in rest if part[:1] != "-" or part[1:] not in removable]
    if wrong:
        raise TargetError(
            f"{VARIANT_KNOB.name}={wish}: expected, after the variant, features to do without as LLVM names them (such "
            f"as -avx512vnni) that are no part of '{name}' itself, got {', '.join(map(repr, wrong))}"
        )
    return full.without([part[1:] for part in rest])


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


def allowed_cores(thread: int | None) -> frozenset[int]:
    """The cores that a thread of this process may run on, by its system number; none where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return frozenset()
    return frozenset(os.sched_getaffinity(thread or 0))


def current_core() -> int:
    """The core that the calling thread runs on at this moment; -1 where the system does not tell."""
    tell = _core_teller()
    return -1 if tell is None else int(tell())


@functools.cache
def _core_teller() -> Any:
    """sched_getcpu() of the C library, or None."""
    return getattr(ctypes.CDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None


def cores() -> int:
    """Cores this process may use: those it is bound to, at most as many as its control group pays for."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(bound, int(quota) // int(period)))
    except (OSError, ValueError):  # no such control, or 'max'
        return bound
