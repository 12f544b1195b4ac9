"""Tokens from a model: drawn, searched for, scored.

    sampling.py    Sampler; the drawing is machine code      vocabulary.py  text and ids
    tokens.py      what makes a model generate; one call a token          stops.py       what ends a generation
    writing.py     generate, stream_generate                 batches.py     generate_many
    beams.py       beam_search                               scoring.py     score
"""

from __future__ import annotations

from .sampling import Sampler
from .tokens import score_meaning
from .vocabulary import Vocabulary
from .writing import Piece, generate, stream_generate

__all__ = ["Piece", "Sampler", "Vocabulary", "generate", "score_meaning", "stream_generate"]
