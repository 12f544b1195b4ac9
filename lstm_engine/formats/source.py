"""Where a model comes from: a file's path or its bytes."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import ModelFormatError


@dataclass(frozen=True, slots=True)
class Source:
    """A readable file or the bytes of one; ``origin`` is what messages call it."""

    origin: str
    size: int
    path: str | None = None
    data: bytes | None = None

    @staticmethod
    def of(source: str | os.PathLike[str] | bytes | bytearray | memoryview) -> Source:
        """Look at ``source`` without reading it.

        Raises OSError if there is no such file or it may not be read, ModelFormatError if it is a folder or
        anything else that is not a plain file (a pipe or a device might never end).
        """
        if isinstance(source, bytes | bytearray | memoryview):
            data = bytes(source)
            return Source("model bytes", len(data), data=data)
        path = os.fspath(source)
        if not isinstance(path, str):
            raise TypeError(f"a model is given as str, PathLike or bytes, not as {type(source).__name__}")
        if "\0" in path:
            raise ModelFormatError(f"{path!r}: a path holds no NUL character")
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ModelFormatError(f"{path}: is a folder; give the .onnx or .npz file inside it")
        if not stat.S_ISREG(status.st_mode):
            raise ModelFormatError(f"{path}: is not a plain file; read it yourself and pass its bytes")
        return Source(path, status.st_size, path=path)

    def open(self) -> BinaryIO:
        """A seekable stream of the bytes."""
        if self.data is not None:
            return io.BytesIO(self.data)
        assert self.path is not None
        return open(self.path, "rb")

    def head(self, count: int) -> bytes:
        """The first bytes."""
        with self.open() as stream:
            return stream.read(count)

    def read(self) -> bytes:
        """All bytes."""
        if self.data is not None:
            return self.data
        with self.open() as stream:
            return stream.read()
