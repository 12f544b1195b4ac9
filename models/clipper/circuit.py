"""The circuit that the clipper model follows, and the signals that it is played.

A resistor leads the input to a capacitor with two diodes across it, head to tail:

    C dV/dt = (U - V) / R - 2 Is sinh(V / (n Vt))

The equation is stiff, so it is stepped by the implicit trapezoidal rule at eight times the sample
rate; each step solves for V by Newton's method to the last bits of float64.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from scipy.signal import butter, chirp, lfilter, resample_poly

RATE, OVERSAMPLING = 48_000, 8
RESISTOR, CAPACITOR = 2.2e3, 10e-9  # ohms, farads: a low-pass at 7.2 kHz before the diodes conduct
SATURATION, EMISSION, THERMAL = 2.52e-9, 1.752, 25.85e-3  # 1N4148: amperes, -, volts at 300 K
DRIVE = 4.5  # volts at the resistor for an input of 1


# --- the circuit ------------------------------------------------------------------------------


@njit(cache=False)
def slope(u: float, v: float) -> float:
    """dV/dt, in volts a second."""
    diodes = 2 * SATURATION * math.sinh(v / (EMISSION * THERMAL))
    return ((u - v) / RESISTOR - diodes) / CAPACITOR


@njit(cache=False)
def slope_by_v(v: float) -> float:
    """The derivative of the slope with respect to V."""
    thermal = EMISSION * THERMAL
    diodes = 2 * SATURATION * math.cosh(v / thermal) / thermal
    return (-1 / RESISTOR - diodes) / CAPACITOR


@njit(cache=False)
def solve(u: np.ndarray, step: float) -> np.ndarray:
    """The capacitor's voltage for an input voltage, from rest, by the trapezoidal rule."""
    out = np.empty_like(u)
    v, before = 0.0, 0.0
    for t in range(len(u)):
        known = v + step / 2 * slope(before, v)
        for _ in range(100):
            change = (v - step / 2 * slope(u[t], v) - known) / (1 - step / 2 * slope_by_v(v))
            change = max(-0.05, min(0.05, change))  # sinh explodes: approach by small steps
            v -= change
            if abs(change) < 1e-13:
                break
        out[t], before = v, u[t]
    return out


def clip(x: np.ndarray) -> np.ndarray:
    """The circuit's output for a signal at the sample rate."""
    fine = resample_poly(DRIVE * x.astype(np.float64), OVERSAMPLING, 1)
    return resample_poly(solve(fine, 1 / (RATE * OVERSAMPLING)), 1, OVERSAMPLING)


# --- the signals ------------------------------------------------------------------------------


def string(dice: np.random.Generator, pitch: float, length: int) -> np.ndarray:
    """A plucked string (Karplus and Strong): noise that runs round a lossy delay line."""
    delay = max(2, round(RATE / pitch))
    loss = dice.uniform(0.990, 0.999)
    noise = np.zeros(length)
    noise[:delay] = dice.uniform(-1, 1, delay)[:length]
    loop = np.zeros(delay + 2)
    loop[0], loop[delay], loop[delay + 1] = 1, -loss / 2, -loss / 2
    return lfilter([1.0], loop, noise)


def note(dice: np.random.Generator) -> float:
    """The pitch of a fret between a guitar's lowest E and three octaves above, in hertz."""
    return 82.41 * 2 ** (dice.integers(0, 37) / 12)


def plucked(dice: np.random.Generator, length: int) -> np.ndarray:
    """Single notes, one after another, each damping the one before."""
    signal, start = np.zeros(length), 0
    while start < length:
        size = min(length - start, int(dice.uniform(0.1, 0.8) * RATE))
        signal[start : start + size] = dice.uniform(0.3, 1) * string(dice, note(dice), size)
        start += size
    return signal


def chord(dice: np.random.Generator, length: int) -> np.ndarray:
    """A strummed chord, left to decay."""
    signal, root = np.zeros(length), note(dice) / 2
    for place, interval in enumerate(dice.choice([0, 4, 5, 7, 10, 12, 16], 4, replace=False)):
        start = int(place * dice.uniform(0.005, 0.03) * RATE)
        signal[start:] += string(dice, root * 2 ** (interval / 12), length - start)
    return signal


def sweep(dice: np.random.Generator, length: int) -> np.ndarray:
    """A sine that glides over some octaves while its level swells or fades."""
    t = np.arange(length) / RATE
    low, high = 40 * 2 ** dice.uniform(0, 3), 600 * 2 ** dice.uniform(0, 3)
    tone = chirp(t, low, t[-1], high, method="logarithmic")
    return tone * np.geomspace(*dice.permutation([dice.uniform(0.02, 0.3), 1.0]), length)


def bursts(dice: np.random.Generator, length: int) -> np.ndarray:
    """Bursts of noise with silence between."""
    gate = np.repeat(dice.random(length // 2400 + 1) < 0.5, 2400)[:length]
    level = np.repeat(dice.uniform(0.1, 1, length // 2400 + 1), 2400)[:length]
    return dice.standard_normal(length) * gate * level


def pickup(signal: np.ndarray) -> np.ndarray:
    """What a guitar's pickup and cable leave of it: a band from 40 Hz to 5 kHz."""
    numerator, denominator = butter(2, [40, 5000], "bandpass", fs=RATE)
    return lfilter(numerator, denominator, signal)


MAKERS = {"plucked": plucked, "chord": chord, "sweep": sweep, "bursts": bursts}
KINDS = tuple(MAKERS)


def signal_of(kind: str, dice: np.random.Generator, length: int) -> np.ndarray:
    """One signal, at a level between -24 and 0 dB of full scale."""
    raw = pickup(MAKERS[kind](dice, length))
    return raw / np.abs(raw).max() * 10 ** (dice.uniform(-24, 0) / 20)


def dataset(seed: int, count: int, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and the circuit's outputs, float32 [count, time]; the kinds take turns."""
    dice, length = np.random.default_rng(seed), int(seconds * RATE)
    x = np.stack([signal_of(KINDS[i % len(KINDS)], dice, length) for i in range(count)])
    return x.astype(np.float32), np.stack([clip(row) for row in x]).astype(np.float32)
