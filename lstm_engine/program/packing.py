"""Weights in the order the kernels read them: packed once, aligned to cache lines, shared by all streams."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np

from ..locks import Lock
from ..vocabulary import GATES
from .arena import ALIGNMENT
from .weights import LANES as LANES
from .weights import Form

WIDE = 4 * LANES


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array that begins at a cache line (np.empty promises 16 bytes: up to half the speed lost)."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    base = np.empty(size + ALIGNMENT, np.uint8)
    start = -base.ctypes.data % ALIGNMENT
    array: np.ndarray = base[start : start + size].view(dtype).reshape(shape)
    return array


def aligned_copy(values: np.ndarray, dtype: Any) -> np.ndarray:
    """A contiguous copy that begins at a cache line."""
    copy = aligned_empty(values.shape, dtype)
    copy[...] = values
    return copy


def as_aligned(array: np.ndarray) -> np.ndarray:
    """The array itself if it begins at a cache line, else a copy that does."""
    fits = array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0
    return array if fits else aligned_copy(array, array.dtype)


def blocks(units: int, width: int = LANES) -> int:
    """How many blocks of ``width`` hold ``units``."""
    return -(-units // width)


def pack_gates(W: np.ndarray, R: np.ndarray, form: Form) -> np.ndarray:
    """W[4H,I], R[4H,K] → [H/16] blocks of a part of W and one of R, units beyond H zero."""
    return aligned_copy(np.concatenate([form.parts(_gate_blocks(W)), form.parts(_gate_blocks(R))], axis=1), np.uint8)


def _gate_blocks(stacked: np.ndarray) -> np.ndarray:
    """[4H,K] → [H/16, K, 4, 16]."""
    units, depth = stacked.shape[0] // len(GATES), stacked.shape[1]
    padded = np.zeros((len(GATES), blocks(units) * LANES, depth), stacked.dtype)
    padded[:, :units] = stacked.reshape(len(GATES), units, depth)
    ordered: np.ndarray = padded.reshape(len(GATES), -1, LANES, depth).transpose(1, 3, 0, 2)
    return ordered


def pack_vectors(stacked: np.ndarray, count: int, dtype: Any) -> np.ndarray:
    """count·H values (the bias, the peepholes) → [H/16][count][16], units beyond H zero."""
    units = stacked.size // count
    padded = np.zeros((count, blocks(units) * LANES), dtype)
    padded[:, :units] = stacked.reshape(count, units)
    return aligned_copy(padded.reshape(count, -1, LANES).transpose(1, 0, 2), dtype)


def pack_narrow(W: np.ndarray, dtype: Any) -> np.ndarray:
    """W[K,N] → [N/16][K][16], outputs beyond N zero."""
    depth, outputs = W.shape
    padded = np.zeros((depth, blocks(outputs) * LANES), dtype)
    padded[:, :outputs] = W
    return aligned_copy(padded.reshape(depth, -1, LANES).transpose(1, 0, 2), dtype)


def pack_planes(stacked: np.ndarray) -> np.ndarray:
    """[G,H,K] → [G·⌈H/16⌉·16, K]: each gate's units padded with zeros to whole vectors."""
    gates, units, depth = stacked.shape
    padded = np.zeros((gates, blocks(units) * LANES, depth), stacked.dtype)
    padded[:, :units] = stacked
    return padded.reshape(-1, depth)


def split_outputs(outputs: int) -> tuple[int, int]:
    """Outputs of a dense layer as blocks of 64 and blocks of 16."""
    wide, rest = divmod(outputs, WIDE)
    return (wide + 1, 0) if rest > 3 * LANES else (wide, blocks(rest))


def pack_dense(W: np.ndarray, form: Form) -> np.ndarray:
    """W[K,N] → a part for each of its blocks of 64, then for each of its blocks of 16, one flat array."""
    depth, outputs = W.shape
    wide, narrow = split_outputs(outputs)
    padded = np.zeros((depth, wide * WIDE + narrow * LANES), W.dtype)
    padded[:, :outputs] = W
    head, tail = padded[:, : wide * WIDE], padded[:, wide * WIDE :]
    parts = [form.parts(_column_blocks(head, 4)), form.parts(_column_blocks(tail, 1))]
    return aligned_copy(np.concatenate([part.reshape(-1) for part in parts]), np.uint8)


def _column_blocks(W: np.ndarray, vectors: int) -> np.ndarray:
    """[K, n·G·16] → [n, K, G, 16]."""
    ordered: np.ndarray = W.reshape(W.shape[0], -1, vectors, LANES).transpose(1, 0, 2, 3)
    return ordered


class Store:
    """Packed constants of one model: weights, kept for every program and stream, and what shapes decide, kept as long
    as a program has it."""

    def __init__(self) -> None:
        self._arrays: dict[Hashable, np.ndarray] = {}
        self._shared: weakref.WeakValueDictionary[Hashable, np.ndarray] = weakref.WeakValueDictionary()
        self._digests: dict[int, tuple[weakref.ref[np.ndarray], bytes]] = {}
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The packed array of a key."""
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = make()
            return self._arrays[key]

    def digest(self, array: np.ndarray) -> bytes:
        """What tells an array's content from all others: graphs made from one file may call different weights alike."""
        reference, known = self._digests.get(id(array), (None, b""))
        if reference is None or reference() is not array:
            content = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).digest()
            known = repr((array.dtype.str, array.shape)).encode() + content
            place = id(array)
            self._digests[place] = weakref.ref(array, lambda _: self._digests.pop(place, None)), known
        return known

    def shared(self, values: np.ndarray, dtype: Any) -> np.ndarray:
        """An aligned copy of values that hang on shapes (tables, rows), one for all programs that hold the same."""
        values = np.ascontiguousarray(values, dtype)
        key = (values.dtype.str, values.shape, hashlib.blake2b(values.data, digest_size=16).digest())
        with self._lock:
            held = self._shared.get(key)
            if held is None:
                held = self._shared[key] = aligned_copy(values, dtype)
            return held

    @property
    def packed(self) -> dict[Hashable, np.ndarray]:
        """The weights that are packed by now, by keys that mean the same in every process."""
        with self._lock:
            return dict(self._arrays)

    def take(self, packed: Mapping[Hashable, np.ndarray]) -> None:
        """Weights that another process has packed for a CPU of the same kind, as they lie in memory."""
        with self._lock:
            self._arrays.update({key: as_aligned(array) for key, array in packed.items()})

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in (*self._arrays.values(), *self._shared.values()))
