"""Shared and static libraries of an object file, where this machine has what links them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ..exported import FUNCTIONS
from ..machine import Target


def linked(folder: Path, name: str, object_file: Path, machine: Target) -> tuple[list[Path], list[str]]:
    """The libraries that could be made of an object, and for those that could not, why."""
    made, missing = [], []
    for what, commands in (
        ("shared", _shared(folder, name, object_file, machine)),
        ("static", _static(folder, name, object_file, machine)),
    ):
        tried: list[str] = []
        for library, command in commands:
            tried.append(command[0])
            if shutil.which(command[0]) and _run(command, library):
                made.append(library)
                break
        else:
            if tried:
                missing.append(
                    f"no {what} library: none of {', '.join(dict.fromkeys(tried))} links for {machine.triple}"
                )
    return made, missing


def _run(command: list[str], library: Path) -> bool:
    """Run a linker; whether there is a library now."""
    library.unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        library.unlink(missing_ok=True)
    return not done.returncode and library.exists()


def _shared(folder: Path, name: str, object_file: Path, machine: Target) -> Iterator[tuple[Path, list[str]]]:
    triple, plain = machine.triple, ["-shared", "-nostdlib"]
    if machine.small:
        return
    if "apple" in triple:
        library = folder / f"lib{name}.dylib"
        yield (
            library,
            [
                "clang",
                "-dynamiclib",
                "-nostdlib",
                "-arch",
                triple.partition("-")[0],
                "-o",
                str(library),
                str(object_file),
            ],
        )
    elif "windows" in triple:
        library = folder / f"{name}.dll"
        exports = [f"/export:{name}_{each}" for each in FUNCTIONS]
        yield (
            library,
            [
                f"{machine.tools}-gcc",
                *plain,
                "-Wl,--export-all-symbols",
                "-Wl,-e,0",
                "-o",
                str(library),
                str(object_file),
            ],
        )
        yield library, ["lld-link", "/dll", "/noentry", *exports, f"/out:{library}", str(object_file)]
    else:
        library = folder / f"lib{name}.so"
        for compiler in _compilers(machine):
            yield library, [compiler, *plain, f"-Wl,-soname,lib{name}.so", "-o", str(library), str(object_file)]
        for linker in (f"{machine.tools}-ld", "ld.lld", "ld"):
            yield library, [linker, "-shared", "-soname", f"lib{name}.so", "-o", str(library), str(object_file)]


def _static(folder: Path, name: str, object_file: Path, machine: Target) -> Iterator[tuple[Path, list[str]]]:
    library = folder / f"lib{name}.a"
    for tool in (f"{machine.tools}-ar", "llvm-ar", "ar"):
        yield library, [tool, "rcs", str(library), str(object_file)]


def _compilers(machine: Target) -> list[str]:
    """Compilers that link for a machine: those of its own name, then this machine's, which refuse a strange object."""
    return [f"{machine.tools}-gcc", "cc", "gcc", "clang"]
