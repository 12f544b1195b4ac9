"""npz archives, read without trusting them and written so that the same content gives the same bytes.

Reading never unpickles, never writes a member to disk and allocates nothing before the declared sizes have
been compared with the bytes of the archive.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import IO, Any, Final

import numpy as np

from ..errors import ModelFormatError, listed
from ..graph import native
from .source import Source

MAX_MEMBERS: Final = 100_000
#: What the compressed members of an archive may unpack to, at most; stored ones are bounded by the file itself.
MAX_UNPACKED: Final = 4 << 30
#: Beyond this size an archive that unpacks to more than MAX_RATIO times its own is taken for a bomb.
SUSPICIOUS_SIZE: Final = 64 << 20
MAX_RATIO: Final = 1000
MAX_HEADER: Final = 10_000
MAX_RANK: Final = 32
NPY_MAGIC: Final = b"\x93NUMPY"
NUMERIC_TYPE: Final = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c(8|16)|\?)")
#: What reading a damaged archive may raise below us.
DAMAGE: Final = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


class Archive:
    """The members of an npz file: arrays by key (``name`` of the member ``name.npy``), and other files by name."""

    def __init__(self, source: Source):
        """Look at the archive's directory. Raises ModelFormatError listing what is wrong with it."""
        self.origin = source.origin
        self._stream = source.open()
        try:
            self._zip = zipfile.ZipFile(self._stream)
        except (*DAMAGE, OSError) as error:
            self._stream.close()
            raise ModelFormatError(f"{source.origin}: is no npz file, or is cut short or damaged ({error})") from error
        members = self._zip.infolist()
        faults = _directory_faults(members, source.size)
        if faults:
            self.close()
            raise ModelFormatError(listed(f"{source.origin}: unsafe or damaged archive", faults[:20]))
        self._members = {info.filename: info for info in members if not info.is_dir()}

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._zip.close()
        self._stream.close()

    @property
    def keys(self) -> list[str]:
        """Keys of the arrays, in the file's order."""
        return [name.removesuffix(".npy") for name in self._members if name.endswith(".npy")]

    @property
    def files(self) -> list[str]:
        """Names of the members that are no arrays."""
        return [name for name in self._members if not name.endswith(".npy")]

    def arrays(self, keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Several arrays. Raises ModelFormatError listing every unreadable one."""
        found, faults = {}, []
        for key in self.keys if keys is None else keys:
            try:
                found[key] = self.array(key)
            except ModelFormatError as error:
                faults.append(str(error).removeprefix(f"{self.origin}: "))
        if faults:
            raise ModelFormatError(listed(self.origin, faults[:20]))
        return found

    def array(self, key: str) -> np.ndarray:
        """One array, in native byte order. Raises ModelFormatError if it is damaged, or no array of numbers."""
        subject = f"{self.origin}: array '{key}'"
        values: np.ndarray = self._with_stream(
            f"{key}.npy", subject, lambda stream, size: _read_npy(stream, size, subject)
        )
        return values

    def text(self, name: str, limit: int) -> bytes:
        """A member that is no array; refused above ``limit`` bytes, or if compressed far better than text can be."""
        info = self._members[name]
        if info.file_size > limit or info.file_size > max(1 << 20, 64 * info.compress_size):
            raise ModelFormatError(
                f"{self.origin}: '{name}' unpacks to {info.file_size} bytes, too many for what it is"
            )
        content: bytes = self._with_stream(name, f"{self.origin}: '{name}'", lambda stream, size: stream.read(size))
        return content

    def _with_stream(self, name: str, subject: str, read: Callable[[IO[bytes], int], Any]) -> Any:
        try:
            info = self._members[name]
        except KeyError:
            raise ModelFormatError(f"{subject} is not in the archive") from None
        try:
            with self._zip.open(info) as stream:
                result = read(stream, info.file_size)
                if stream.read(1):  # at the end the checksum has been compared
                    raise ModelFormatError(f"{subject} is longer than the archive says")
                return result
        except ModelFormatError:
            raise
        except (*DAMAGE, OSError) as error:
            raise ModelFormatError(f"{subject} is damaged ({error})") from error


def _directory_faults(members: list[zipfile.ZipInfo], archive_size: int) -> list[str]:
    if len(members) > MAX_MEMBERS:
        return [f"{len(members)} members, at most {MAX_MEMBERS} are read"]
    faults = []
    seen: set[str] = set()
    for info in members:
        if info.filename in seen:
            faults.append(f"'{info.filename}' is there twice")
        seen.add(info.filename)
        if info.flag_bits & 0x1:
            faults.append(f"'{info.filename}' is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            faults.append(f"'{info.filename}' is compressed with method {info.compress_type}; use savez_compressed")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            faults.append(f"'{info.filename}' is stored as it is but declares two sizes")
    if sum(info.compress_size for info in members) > archive_size:
        faults.append("its members overlap: they claim more bytes than the file has")
    packed = [info for info in members if info.compress_type != zipfile.ZIP_STORED]
    unpacked = sum(info.file_size for info in packed)
    if unpacked > MAX_UNPACKED or (unpacked > SUSPICIOUS_SIZE and unpacked > MAX_RATIO * archive_size):
        faults.append(f"{archive_size} bytes would unpack to {unpacked}")
    return faults


def _read_npy(stream: IO[bytes], size: int, subject: str) -> np.ndarray:
    dtype, shape, fortran, header_size = _npy_header(stream, subject)
    count = math.prod(shape)
    if header_size + count * dtype.itemsize != size:
        raise ModelFormatError(
            f"{subject}: shape {list(shape)} of {dtype} takes {count * dtype.itemsize} bytes, "
            f"the archive holds {size - header_size}"
        )
    if count == 0:
        return np.zeros(shape, dtype)
    data = stream.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise ModelFormatError(f"{subject} is cut short")
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return values.astype(native(dtype), copy=False)


def _npy_header(stream: IO[bytes], subject: str) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """dtype, shape, Fortran order and size of an npy header; parsed by pattern, evaluating nothing."""
    start = stream.read(8)
    if start[:6] != NPY_MAGIC or len(start) < 8 or start[6] not in (1, 2, 3):
        raise ModelFormatError(f"{subject}: does not begin like an npy array")
    width, form = (2, "<H") if start[6] == 1 else (4, "<I")
    (length,) = struct.unpack(form, stream.read(width))
    if length > MAX_HEADER:
        raise ModelFormatError(f"{subject}: its header declares {length} bytes")
    header = stream.read(length).decode("latin-1")
    descr = re.search(r"""['"]descr['"]\s*:\s*['"]([^'"]{1,20})['"]""", header)
    order = re.search(r"""['"]fortran_order['"]\s*:\s*(True|False)""", header)
    shape = re.search(r"""['"]shape['"]\s*:\s*\(((?:\s*\d{1,15}L?\s*,?)*)\s*\)""", header)
    if descr and descr[1].lstrip("<>=|").startswith("O"):
        raise ModelFormatError(f"{subject}: holds pickled Python objects, which are never loaded; save numbers")
    if descr and not NUMERIC_TYPE.fullmatch(descr[1]):
        raise ModelFormatError(f"{subject}: dtype {descr[1]!r} is not one of numbers; save it as float32")
    if not (descr and order and shape):
        raise ModelFormatError(f"{subject}: its header is not that of a plain array")
    sizes = tuple(int(item) for item in re.findall(r"\d+", shape[1]))
    if len(sizes) > MAX_RANK or math.prod(max(item, 1) for item in sizes) >= 2**48:
        raise ModelFormatError(f"{subject}: shape {list(sizes)[:40]} is larger than any memory")
    return np.dtype(descr[1]), sizes, order[1] == "True", 8 + width + length


# ---------------------------------------------------------------- writing


def write_archive(path: str | os.PathLike[str], texts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write JSON members and arrays into one uncompressed npz file.

    The same content gives the same bytes. The file appears whole or not at all: it is written beside its
    place and moved there. Raises OSError if that fails.
    """
    target = os.path.realpath(os.fspath(path))
    draft = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.{secrets.token_hex(6)}.tmp")
    try:
        with open(draft, "xb") as stream:
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                for name, content in texts.items():
                    archive.writestr(_member(name), json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1))
                for key, array in arrays.items():
                    _write_npy(archive, key, array)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, target)
    except BaseException as fault:
        with suppress(OSError):
            os.unlink(draft)
        if isinstance(fault, OSError) and fault.filename == draft:  # name the file the caller knows of
            raise type(fault)(fault.errno, fault.strerror, target) from fault
        raise


def _write_npy(archive: zipfile.ZipFile, key: str, array: np.ndarray) -> None:
    little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    with archive.open(_member(f"{key}.npy"), "w", force_zip64=little.nbytes >= 1 << 30) as stream:
        np.lib.format.write_array(stream, little, version=(1, 0), allow_pickle=False)


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.external_attr = 0o644 << 16
    info.create_system = 3  # the same bytes on every system
    return info
