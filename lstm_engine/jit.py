"""The only file that names njit: flags, the compiled-code cache, progress.

``kernel`` compiles an inner function on demand, as part of whoever calls it. ``Compiled`` is an entry
point: machine code kept on disk under a digest of everything that decides it.

Why not Numba's own cache: it is keyed by the caller's file alone, so it runs stale code after an edit
elsewhere; its index can outlive its data; a damaged file raises at import; a read-only folder is not
read at all. Here one file per entry point holds a checksum and the code; it is written aside and moved
into place, refused when another user could have written it, and anything wrong with it means
"compile again", never an error.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pickle
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any, Final

import llvmlite
import numba

from .codegen import ObjectCodegen, compiling, lent
from .machine import cache_folder, target

log = logging.getLogger(__name__)

#: No reassociation (results keep one order), no no-NaN promise; division by zero as IEEE says.
_FLAGS: Final[dict[str, Any]] = {"error_model": "numpy", "boundscheck": False, "_nrt": False}
_MAGIC: Final = b"lstm_engine compiled code 1\n"
_MAX_CACHE_FILES: Final = 64

Progress = Callable[[str, int, int], None]
_compiling = threading.RLock()


#: Name of the image being built. Numba's symbols are a function's qualified name and a number counted per process,
#: so images compiled in different processes would claim each other's symbols if their names did not differ.
_image = ""


def kernel(function: Callable[..., Any]) -> Any:
    """An inner function of the executor: machine code only, no Python entry."""
    function.__qualname__ = f"{_image}{function.__qualname__}"
    return numba.njit(**_FLAGS, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def compile_kernel(dispatcher: Any, signature: Any) -> None:
    """Compile a kernel now (its callers then link it): what progress is counted in."""
    dispatcher.compile(signature)


@contextmanager
def _parts_alone() -> Iterator[None]:
    """Compile kernels as parts of an image: none is optimised or made into machine code by itself.

    Numba does both for every function together with all that it calls, again and again; an image needs it once, at its
    end. The lock keeps other threads' compilations out. Where Numba has other inner workings, its own way is taken.
    """
    from numba.core import codegen as numba_codegen
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    codegen = cpu_target.target_context.codegen()
    whole = getattr(numba_codegen, "JITCodeLibrary", None)
    inner = ("_optimize_final_module", "_finalize_final_module", "_get_module_for_linking", "get_pointer_to_function")
    if getattr(codegen, "_library_class", None) is not whole or not all(hasattr(whole, name) for name in inner):
        yield
        return

    class Part(whole):  # type: ignore[misc, valid-type]
        """Code that others link."""

        def _optimize_final_module(self) -> None:
            pass

        def _finalize_final_module(self) -> None:
            self._finalized = True

        def get_pointer_to_function(self, name: str) -> int:
            return 0

    with global_compiler_lock:
        codegen._library_class, codegen.set_env = Part, lambda name, env: None
        try:
            yield
        finally:
            del codegen.set_env
            codegen._library_class = whole


class Compiled:
    """A function callable from Python, compiled for one signature or loaded from the cache.

    ``build`` makes the Python function when it has to be compiled (and only then), after reporting its
    parts to ``progress(name, done, total)``.
    """

    def __init__(self, name: str, signature: Any, build: Callable[[Progress], Callable[..., Any]], nogil: bool) -> None:
        self.name = name
        self.signature = signature
        self.build = build
        self.nogil = nogil
        self.from_cache = False
        self._result: Any = None

    def load(self, progress: Progress | None = None) -> Callable[..., Any]:
        """The C-level callable: no dispatch, no type checks beyond unboxing."""
        entry: Callable[..., Any] = self._loaded(progress).entry_point
        return entry

    def address(self, progress: Progress | None = None) -> int:
        """Address of the function under the C calling convention."""
        result = self._loaded(progress)
        return int(result.library.get_pointer_to_function(result.fndesc.llvm_cfunc_wrapper_name))

    def _loaded(self, progress: Progress | None) -> Any:
        with _compiling:
            if self._result is None:
                with compiling() as context:
                    result = self._load_cached(context)
                    self.from_cache = result is not None
                    if result is None:
                        result = self._compile(progress or _silent)
                        _write_cache(self.path, result)
                self._result = result
            return self._result

    @property
    def path(self) -> Path | None:
        """The cache file: the name carries the digest of all that decides the code."""
        folder = cache_folder()
        return None if folder is None else folder / f"{self.name}-{digest()}.code"

    def emitted(self, symbol: str, assembly: bool = False) -> bytes:
        """An object file (or its assembly text) for target(), whosever CPU that is: ``int64 symbol(int64 …)``.

        Kernels compiled in this process before would be linked as they are, and what LLVM cannot emit for the target
        aborts the process: `emission.py` gives each object a process of its own.
        """
        machine = ObjectCodegen(target())
        with _compiling, lent(machine) as context, self._named():
            inner = kernel(self.build(_silent))
            inner.compile(self.signature)
            result = inner.overloads[inner.signatures[0]]
            return machine.emit(symbol, context, result.library, result.fndesc, assembly)

    @contextmanager
    def _named(self) -> Iterator[str]:
        """The name that this image's symbols begin with, while it is being built."""
        global _image
        _image = f"{self.name}_{digest()}_".replace("-", "_")
        try:
            yield _image
        finally:
            _image = ""

    def _compile(self, progress: Progress) -> Any:
        with self._named() as name, _parts_alone():
            function = self.build(progress)
        function = FunctionType(function.__code__, function.__globals__, name)
        function.__qualname__ = name
        dispatcher = numba.njit(**_FLAGS, nogil=self.nogil)(function)
        dispatcher.compile(self.signature)
        self._dispatcher = dispatcher
        return dispatcher.overloads[dispatcher.signatures[0]]

    def _load_cached(self, context: Any) -> Any:
        if self.path is None:
            return None
        payload = _read_cache(self.path)
        if payload is None:
            return None
        from numba.core import compiler

        try:
            return compiler.CompileResult._rebuild(context, *pickle.loads(payload))
        except Exception as fault:  # whatever a stale or damaged file makes Numba raise, compiling anew answers it
            log.warning("compiled code %s could not be loaded (%s); compiling anew", self.path, fault)
            return None


def _silent(name: str, done: int, total: int) -> None:
    """Progress nobody watches."""


@functools.cache
def digest() -> str:
    """Hash of all that decides machine code: our sources, compiler versions, target."""
    state = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(
        [
            root / "jit.py",
            root / "codegen.py",
            root / "machine.py",
            root / "encoding.py",
            *(root / "kernels").glob("*.py"),
        ]
    ):
        state.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    facts: Iterable[object] = (
        numba.__version__,
        llvmlite.__version__,
        sys.version,
        target(),
        numba.config.OPT,
        numba.config.LOOP_VECTORIZE,
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


def _write_cache(path: Path | None, result: Any) -> None:
    """Write aside and move into place: a reader sees the whole file or none. Failure costs time only."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _trusted(path.parent.stat()):
            return
        payload = pickle.dumps(result._reduce())
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(payload).digest() + payload)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        _sweep(path.parent)
    except (OSError, pickle.PicklingError) as fault:
        log.info("compiled code is not cached: %s", fault)


def _sweep(folder: Path) -> None:
    """Keep the newest files, as every edit, release or CPU leaves a generation behind; drop half-written ones."""
    files = sorted(folder.glob("*.code"), key=lambda file: file.stat().st_mtime, reverse=True)
    newest = files[0].stat().st_mtime if files else 0.0
    abandoned = [file for file in folder.glob(".writing-*") if file.stat().st_mtime < newest - 3600]
    for file in [*files[_MAX_CACHE_FILES:], *abandoned]:
        file.unlink(missing_ok=True)
