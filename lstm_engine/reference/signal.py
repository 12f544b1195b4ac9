"""Fourier transforms, windows and the mel scale."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..errors import ModelFormatError
from .pointwise import element_type
from .registry import Array, operator


@operator("DFT")
def dft(
    x: Array, dft_length: Array | None = None, axis: Array | None = None, *, inverse: int = 0, onesided: int = 0
) -> Array:
    """The discrete Fourier transform along an axis of x[...,1 or 2] (real, or real and imaginary parts) → [...,2].

    ``onesided``: only the frequencies up to half the length; inversely, the real signal [...,1] that they make.
    """
    along, length = dft_sizes(x.shape, _number(dft_length), _number(axis), bool(inverse and onesided))
    signal = _complex(x)
    if inverse and onesided:
        return np.fft.irfft(signal, length, along)[..., None].astype(x.dtype)
    spectrum = (np.fft.ifft if inverse else np.fft.fft)(signal, length, along)
    if onesided:
        spectrum = np.take(spectrum, range(length // 2 + 1), along)
    return _parts(spectrum, x.dtype)


def dft_sizes(shape: tuple[int, ...], length: int | None, axis: int | None, halved: bool) -> tuple[int, int]:
    """The axis of a DFT, counted from the front, and how many points its transform has."""
    axis = -2 if axis is None else axis
    if (
        len(shape) < 2
        or shape[-1] not in (1, 2)
        or not -len(shape) <= axis < len(shape)
        or axis % len(shape) == len(shape) - 1
    ):
        raise ModelFormatError(f"x must be [..., 1 or 2] with an axis {axis} before the last, got {list(shape)}")
    along = axis % len(shape)
    points = length if length is not None else (2 * (shape[along] - 1) if halved else shape[along])
    if points < 1:
        raise ModelFormatError(f"a DFT must have at least 1 point, got {points}")
    return along, points


@operator("STFT")
def stft(
    signal: Array,
    frame_step: Array,
    window: Array | None = None,
    frame_length: Array | None = None,
    *,
    onesided: int = 1,
) -> Array:
    """The transforms of frames of signal[B,L,1 or 2], each times the window → [B,frames,frequencies,2]."""
    step, length, _ = stft_sizes(
        signal.shape, _number(frame_step), None if window is None else window.shape, _number(frame_length)
    )
    samples = signal if signal.ndim == 2 else _complex(signal)
    frames = sliding_window_view(samples, length, axis=1)[:, ::step]
    weighted = frames if window is None else frames * window
    spectrum = np.fft.fft(weighted, axis=-1)
    return _parts(spectrum[..., : length // 2 + 1] if onesided else spectrum, signal.dtype)


def stft_sizes(
    signal: tuple[int, ...], step: int | None, window: tuple[int, ...] | None, length: int | None
) -> tuple[int, int, int]:
    """Step, length and number of the frames of signal[B,L,1 or 2]."""
    if len(signal) not in (2, 3) or (len(signal) == 3 and signal[2] not in (1, 2)):
        raise ModelFormatError(f"signal must be [B, L, 1 or 2], got {list(signal)}")
    length = length if length is not None else (window[0] if window else signal[1])
    if not step or step < 1 or not 1 <= length <= signal[1] or (window is not None and window != (length,)):
        raise ModelFormatError(
            f"frames of {length} at steps of {step} with a window {window} do not fit {list(signal)}"
        )
    return step, length, (signal[1] - length) // step + 1


def _complex(x: Array) -> Array:
    return x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1]


def _parts(z: Array, dtype: np.dtype[Any]) -> Array:
    return np.stack([z.real, z.imag], axis=-1).astype(dtype)


def _number(v: Array | None) -> int | None:
    return None if v is None else int(v.reshape(()))


# --- windows ----------------------------------------------------------------------------------------------------------


@operator("HannWindow")
def hann_window(size: Array, *, output_datatype: int = 1, periodic: int = 1) -> Array:
    """½ - ½ cos."""
    return _cosines(size, output_datatype, periodic, 0.5, -0.5)


@operator("HammingWindow")
def hamming_window(size: Array, *, output_datatype: int = 1, periodic: int = 1) -> Array:
    """25/46 - 21/46 cos."""
    return _cosines(size, output_datatype, periodic, 25 / 46, -21 / 46)


@operator("BlackmanWindow")
def blackman_window(size: Array, *, output_datatype: int = 1, periodic: int = 1) -> Array:
    """0.42 - ½ cos + 0.08 cos of the double angle."""
    return _cosines(size, output_datatype, periodic, 0.42, -0.5, 0.08)


def _cosines(size: Array, output_datatype: int, periodic: int, *coefficients: float) -> Array:
    count = int(size.reshape(()))
    angles = 2 * math.pi * np.arange(count) / max(count if periodic else count - 1, 1)
    total = sum(c * np.cos(k * angles) for k, c in enumerate(coefficients))
    return np.asarray(total).astype(element_type(output_datatype))


@operator("MelWeightMatrix")
def mel_weight_matrix(
    num_mel_bins: Array,
    dft_length: Array,
    sample_rate: Array,
    lower_edge_hertz: Array,
    upper_edge_hertz: Array,
    *,
    output_datatype: int = 1,
) -> Array:
    """Triangles over the frequencies, evenly spaced in mel = 2595 log10(1 + Hz / 700) → [dft_length / 2 + 1, bins]."""
    bins, length, rate = (int(v.reshape(())) for v in (num_mel_bins, dft_length, sample_rate))
    low, high = (_mel(float(v.reshape(()))) for v in (lower_edge_hertz, upper_edge_hertz))
    mels = low + np.arange(bins + 2) * (high - low) / (bins + 2)
    hertz = 700 * (10 ** (mels / 2595) - 1)
    edges = np.floor((length + 1) * hertz / rate).astype(np.int64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    k = np.arange(length // 2 + 1)[:, None]
    rising = np.where(centre > left, (k - left) / np.maximum(centre - left, 1), np.where(k == centre, 1.0, 0.0))
    falling = (right - k) / np.maximum(right - centre, 1)
    up, down = (k >= left) & (k <= centre), (k > centre) & (k < right)
    return np.where(up, rising, np.where(down, falling, 0)).astype(element_type(output_datatype))


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)
