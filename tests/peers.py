"""onnxruntime as a peer: from which release on its answers are those that tests hold ours against.

Older ones (the newest for Python 3.10 among them) abort on valid models, and compute AveragePool with ceil_mode, RNN with
clip, Attention and others otherwise.
"""

from __future__ import annotations

import onnxruntime
import pytest

OLDEST_PEER = (1, 31)
PEER_IS_CURRENT = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= OLDEST_PEER
current_peer = pytest.mark.skipif(
    not PEER_IS_CURRENT, reason=f"onnxruntime {onnxruntime.__version__} is older than the answers held against it"
)
