"""The sampler's definition, in NumPy: what the machine code must draw, bit for bit."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

_LN2 = Fraction("0.6931471805599453094172321214581765680755001343602552541206800095")


class SplitMix64:
    """Steele, Lea & Flood's generator (OOPSLA 2014): 64 bits of state, the same numbers on every machine."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def uniform(self) -> float:
        """The next number in [0, 1), a multiple of 2⁻⁵³."""
        mask = 0xFFFF_FFFF_FFFF_FFFF
        self.state = z = (self.state + 0x9E37_79B9_7F4A_7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & mask
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def exp(x: np.ndarray) -> np.ndarray:
    """e^x for x <= 0 by additions and products of float64 alone, so that no library decides its bits."""
    x = np.maximum(x, -1023.4 / math.log2(math.e))
    n = np.rint(x * math.log2(math.e))
    high = round(_LN2 * 2**41) / 2**41
    r = ((x - n * high) - n * float(_LN2 - Fraction(high))) * math.log2(math.e)
    series = np.full_like(x, math.log(2) ** 14 / math.factorial(14))
    for k in range(13, 0, -1):
        series = series * r + math.log(2) ** k / math.factorial(k)
    return np.where(n <= -1023, 0.0, np.ldexp(r * series + 1.0, np.maximum(n, -1022).astype(int)))


def running_sum(x: np.ndarray) -> np.ndarray:
    """Sums from the first to each."""
    return np.cumsum(x)


def choose(
    scores: np.ndarray,
    random: SplitMix64,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    read: frozenset[int] = frozenset(),
) -> int | None:
    """The token, or None where there is none; ``read``: the tokens that the penalty is for."""
    logits = np.array(scores, np.float64)
    if not np.isfinite(logits.max()):
        return None
    with np.errstate(over="ignore", under="ignore"):
        for token in read:
            if token < logits.size and logits[token] > 0:
                logits[token] /= repetition_penalty
            elif token < logits.size:
                logits[token] *= repetition_penalty
    if not np.isfinite(logits.max()):
        return None
    if temperature == 0:
        return int(logits.argmax())
    with np.errstate(over="ignore", under="ignore"):
        weights = exp((logits - logits.max()) / temperature)
    order = np.argsort(-logits, kind="stable")
    if top_k is not None:
        weights[order[top_k:]] = 0
    if top_p is not None and top_p < 1:
        part = top_p * running_sum(weights)[-1]
        reached = running_sum(weights[order])
        weights[order[int((reached < part).sum()) + 1 :]] = 0
    if min_p is not None:
        weights[weights < min_p * weights.max()] = 0
    sums = running_sum(weights)
    above = np.flatnonzero(sums > random.uniform() * sums[-1])
    return int(above[0] if above.size else np.flatnonzero(weights)[-1])
