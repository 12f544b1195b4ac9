"""Arrays out of files, and files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import numpy as np


def read_arrays(path: Path) -> Any:
    """The arrays of an .npz by name, or the one array of an .npy."""
    import numpy as np

    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected an .npz or .npy file")
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            return {name: content[name] for name in content.files} if hasattr(content, "files") else content
    except (OSError, MemoryError) as fault:
        if isinstance(fault, OSError) and fault.strerror:
            raise
        raise InputError(f"{path}: cannot be read ({fault})") from fault
    except Exception as fault:  # zipfile, zlib, struct and NumPy each raise their own for damaged files
        why = _without_pickle(path) if "pickle" in str(fault) else " ".join(str(fault).split())
        raise InputError(f"{path}: not a readable .npz or .npy file ({why})") from fault


def _without_pickle(path: Path) -> str:
    """Why NumPy would take a file for pickle: whatever lacks the mark of its own files is one to it."""
    with path.open("rb") as file:
        mark = file.read(6)
    if mark.startswith((b"PK", b"\x93NUMPY", b"\x80")):
        return "it holds pickle, which is never loaded"
    return "it does not begin as one"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz with the arrays by name, whole or not at all."""
    import numpy as np

    # NumPy's savez takes names as keywords, and 'file' is its own: entries are written one by one instead.
    with replacing(path) as file:
        import zipfile

        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)


def check_folder(path: Path) -> None:
    """Raise InputError if no file can be put at ``path``: better before long work than after it."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():  # putting a file in its place would take a device away
        raise InputError(f"{path}: is no plain file, so it is not written to")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: the folder {path.parent} cannot be written to")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes ``path``'s place, or that of the file which a link there points at, once it is whole."""
    path = path.resolve()
    check_folder(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp is for secrets; a result is as readable as any file the user makes.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
