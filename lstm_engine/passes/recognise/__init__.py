"""Recurrent layers that exporters wrote out, recognised: Graph → Graph in which they are LSTM, GRU and RNN nodes.

Recognition is structural. What a piece of a graph computes is followed element by element (``trace``), matched with the
normal forms of cells (``cells``), and its weights are read off the expressions (``affine``). A piece that is not
understood whole stays as it is. What was understood is then also evaluated both ways (``agreement``).
"""

from __future__ import annotations

from .pipeline import recognise

__all__ = ["recognise"]
