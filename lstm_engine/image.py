"""Machine code on disk and in memory.

An ``Image`` is an object file with functions that Python can call, compiled once for this machine and kept on disk
under a digest of everything that decides it. Only compiling imports Numba (``jit.py``): an image from the cache is
linked by LLVM alone, which is several times faster to import and has nothing to set up.

A file holds a checksum, the image's identity and the code; it is written aside and moved into place, refused when
another user could have written it, and anything wrong with it means "compile again", never an error. (Numba's own cache
is keyed by the caller's file alone, so it runs stale code after an edit elsewhere; its index can outlive its data; a
damaged file raises at import; a read-only folder is not read at all.)
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .locks import Lock
from .machine import cache_folder, compiler_setting, compiler_version, target

log = logging.getLogger(__name__)

_MAGIC: Final = b"lstm_engine compiled code 2\n"
_MAX_CACHE_FILES: Final = 64
_METH_FASTCALL: Final = 0x80
#: What the code calls of the interpreter.
PYTHON_FUNCTIONS: Final = (
    "PyErr_BadArgument",
    "PyErr_Occurred",
    "PyEval_RestoreThread",
    "PyEval_SaveThread",
    "PyLong_AsLongLong",
    "PyLong_FromLongLong",
)

Progress = Callable[[str, int, int], None]
_compiling = Lock()


@dataclass(frozen=True)
class Export:
    """A function of an image that Python calls; it returns an integer.

    ``kernel``: which of the image's kernels it is; ``parameters``: a letter each: 'i' an integer, 'o' an object, which
    the kernel gets as its address; ``nogil``: the interpreter lock is given up meanwhile.
    """

    kernel: str
    parameters: str
    nogil: bool = False


class Image:
    """Machine code that is compiled or loaded from the cache when it is first needed.

    ``compiled(progress)`` makes the object file when there is none (and only then), reporting to
    ``progress(name, done, total)``.
    """

    def __init__(self, name: str, exports: Mapping[str, Export], compiled: Callable[[Progress], bytes]) -> None:
        self.name = name
        self.exports = exports
        self.compiled = compiled
        self.from_cache = False
        self._linked: Linked | None = None

    def function(self, export: str) -> Callable[..., int]:
        """The C-level callable: no dispatch, no type checks beyond taking integers."""
        return self.load().functions[export]

    def address(self, export: str) -> int:
        """Address of the function under the C calling convention, all parameters and the result int64."""
        return self.load().addresses[export]

    @property
    def loaded(self) -> bool:
        """Whether it is in memory."""
        return self._linked is not None

    @property
    def cached(self) -> bool:
        """Whether there is a file that may hold it."""
        return self.path is not None and self.path.is_file()

    @property
    def path(self) -> Path | None:
        """The cache file: the name carries the digest of all that decides the code."""
        folder = cache_folder()
        return None if folder is None else folder / f"{self.name}-{digest()}.code"

    def load(self) -> Linked:
        """Have it in memory."""
        with _compiling:
            if self._linked is None:
                self._linked = self._from_cache()
                self.from_cache = self._linked is not None
            if self._linked is None:
                with _watched() as progress:
                    code = self.compiled(progress)
                _write_cache(self.path, self._identity(code) + code)
                self._linked = Linked(self.name, self.exports, code)
            return self._linked

    def _identity(self, code: bytes) -> bytes:
        """What a cache file says of its code: a file of another image or length is not this one's."""
        return f"{self.name} {digest()} {len(code)}\n".encode()

    def _from_cache(self) -> Linked | None:
        payload = None if self.path is None else _read_cache(self.path)
        if payload is None:
            return None
        code = payload[payload.find(b"\n") + 1 :]
        if payload != self._identity(code) + code:
            log.warning("compiled code %s is not what its name says; compiling anew", self.path)
            return None
        try:
            return Linked(self.name, self.exports, code)
        except Exception as fault:  # whatever a stale file makes LLVM raise, compiling anew answers it
            log.warning("compiled code %s could not be loaded (%s); compiling anew", self.path, fault)
            return None


@contextmanager
def _unwatched() -> Iterator[Progress]:
    yield lambda name, done, total: None


_watched: Callable[[], AbstractContextManager[Progress]] = _unwatched


def watch(compilation: Callable[[], AbstractContextManager[Progress]]) -> None:
    """Have every compilation from here on report to what ``compilation()`` yields."""
    global _watched
    _watched = compilation


def symbol(image: str, export: str) -> str:
    """Name of an exported function under the C calling convention; the one for Python has PYTHON behind."""
    return f"{image}.{export}"


PYTHON: Final = ".python"


class _MethodDefinition(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class Linked:
    """An object file linked into this process: its functions for Python, and their addresses for other machine code.

    It stays until the process ends: its functions may be running in any thread.
    """

    def __init__(self, image: str, exports: Mapping[str, Export], code: bytes) -> None:
        import llvmlite.binding as llvm

        _prepare_llvm()
        machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        places: list[tuple[int, int]] = [
            (engine.get_function_address(name), engine.get_function_address(name + PYTHON))
            for name in (symbol(image, export) for export in exports)
        ]
        engine.detach()
        self.addresses = {export: address for export, (address, _) in zip(exports, places, strict=True)}
        self._definitions = {
            export: _MethodDefinition(export.encode(), entry, _METH_FASTCALL, None)
            for export, (_, entry) in zip(exports, places, strict=True)
        }
        self.functions = {export: _callable(definition) for export, definition in self._definitions.items()}
        _kept.append(self)


_kept: Final[list[Linked]] = []


def _callable(definition: _MethodDefinition) -> Callable[..., int]:
    """A built-in function of Python."""
    make = ctypes.pythonapi["PyCFunction_NewEx"]  # by index: a function object of one's own, whose types are one's own
    make.argtypes, make.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p), ctypes.py_object
    made: Callable[..., int] = make(ctypes.addressof(definition), None, None)
    return made


@functools.cache
def _prepare_llvm() -> None:
    """Make LLVM know this machine and where the interpreter's functions are."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    for name in PYTHON_FUNCTIONS:
        address = ctypes.cast(ctypes.pythonapi[name], ctypes.c_void_p).value
        assert address is not None
        llvm.add_symbol(name, address)


@functools.cache
def digest() -> str:
    """Hash of all that decides machine code: our sources, compiler versions, target."""
    import llvmlite

    state = hashlib.sha256()
    root = Path(__file__).parent
    sources = [
        root / f"{name}.py" for name in ("codegen", "encoding", "image", "images", "jit", "machine", "vocabulary")
    ]
    for path in sorted([*sources, *(root / "kernels").glob("*.py")]):
        state.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    facts: Iterable[object] = (
        compiler_version(),
        llvmlite.__version__,
        sys.version,
        target(),
        compiler_setting("OPT"),
        compiler_setting("LOOP_VECTORIZE"),
    )
    for fact in facts:
        state.update(repr(fact).encode() + b"\0")
    return state.hexdigest()[:24]


def _trusted(status: os.stat_result) -> bool:
    """Whether only this user (or root) can have written it: a cache holds code that will run."""
    if not hasattr(os, "getuid"):
        return True
    return status.st_uid in (os.getuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read_cache(path: Path) -> bytes | None:
    """The payload of a trusted, undamaged cache file, or None."""
    try:
        if not _trusted(path.parent.stat()):
            log.warning("cache folder %s is writable by other users; it is not used", path.parent)
            return None
        with open(path, "rb") as file:
            if not _trusted(os.fstat(file.fileno())):
                log.warning("cache file %s is writable by other users; it is not used", path)
                return None
            content = file.read()
    except OSError:
        return None
    head = len(_MAGIC) + 32
    payload = content[head:]
    if content[: len(_MAGIC)] != _MAGIC or content[len(_MAGIC) : head] != hashlib.sha256(payload).digest():
        log.warning("cache file %s is damaged; compiling anew", path)
        return None
    return payload


def _write_cache(path: Path | None, payload: bytes) -> None:
    """Write aside and move into place: a reader sees the whole file or none. Failure costs time only."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _trusted(path.parent.stat()):
            return
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(payload).digest() + payload)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        _sweep(path.parent)
    except OSError as fault:
        log.info("compiled code is not cached: %s", fault)


def _sweep(folder: Path) -> None:
    """Keep the newest files, as every edit, release or CPU leaves a generation behind; drop half-written ones."""
    files = sorted(folder.glob("*.code"), key=lambda file: file.stat().st_mtime, reverse=True)
    newest = files[0].stat().st_mtime if files else 0.0
    abandoned = [file for file in folder.glob(".writing-*") if file.stat().st_mtime < newest - 3600]
    for file in [*files[_MAX_CACHE_FILES:], *abandoned]:
        file.unlink(missing_ok=True)
