"""Tokens from a model: drawn, searched for, scored.

sampling.py    Sampler; the drawing is machine code      vocabulary.py  text and ids
tokens.py      what makes a model generate; one call a token          stops.py       what ends a generation
writing.py     generate, stream_generate                 batches.py     generate_many
beams.py       beam_search                               scoring.py     score
"""

from __future__ import annotations

from .batches import generate_many
from .beams import Beam, beam_search
from .sampling import Sampler
from .scoring import Likelihood, score
from .tokens import score_meaning
from .vocabulary import Vocabulary
from .writing import Piece, generate, stream_generate

__all__ = [
    "Beam",
    "Likelihood",
    "Piece",
    "Sampler",
    "Vocabulary",
    "beam_search",
    "generate",
    "generate_many",
    "score",
    "score_meaning",
    "stream_generate",
]
