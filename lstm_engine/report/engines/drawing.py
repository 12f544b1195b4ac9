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
    """A token drawn with these settings as it is mostly written: mask, softmax, sort, choice."""

    def __init__(self) -> None:
        self.choice = np.random.default_rng(SEED).choice

    def __call__(self, scores: np.ndarray) -> int:
        logits = scores.reshape(-1).astype(np.float64) / TEMPERATURE
        logits[logits < np.partition(logits, -TOP_K)[-TOP_K]] = -np.inf
        chances = np.exp(logits - logits.max())
        chances /= chances.sum()
        order = np.argsort(-chances)
        chances[order[np.cumsum(chances[order]) - chances[order] > TOP_P]] = 0
        return int(self.choice(chances.size, p=chances / chances.sum()))
