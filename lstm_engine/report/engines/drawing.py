"""The next token of a step's scores, for engines that give scores: the likeliest, or one drawn by NumPy."""

from __future__ import annotations

from operator import methodcaller
from typing import Final

import numpy as np

TEMPERATURE: Final = 0.8
TOP_K: Final = 40
TOP_P: Final = 0.95
SEED: Final = 1

#: Greedy choice.
likeliest: Final = methodcaller("argmax")


class Drawn:
    """A token drawn with these settings as somebody who knows NumPy would write it: only the top k are sorted."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(SEED).random

    def __call__(self, scores: np.ndarray) -> int:
        scaled = scores.reshape(-1) / TEMPERATURE
        likely = np.argpartition(scaled, -TOP_K)[-TOP_K:]
        likely = likely[np.argsort(-scaled[likely])]
        sums = np.cumsum(np.exp(scaled[likely] - scaled[likely[0]]))
        kept = np.searchsorted(sums, TOP_P * sums[-1]) + 1
        return int(likely[np.searchsorted(sums[:kept], self.random() * sums[kept - 1], side="right")])
