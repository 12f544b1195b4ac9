"""The laws that hold whatever machine code is made for: the definition's numbers, and the same bits within a variant.

Run in child processes, under the target or the debugging that their environment asks for.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import test_parity
import test_properties
from cases import Case, assert_same_bits, model_of


def held_by(cases: Iterable[Case]) -> dict[str, np.ndarray]:
    """Parity, chunks and batch rows of some cases; what each gave."""
    outputs = {}
    for case in cases:
        got = test_parity.assert_parity(model_of(case), case.feeds())
        outputs |= {f"{case}: {name}": x for name, x in got.items()}
        if case.streams:
            _same_bits(case)
    return outputs


def _same_bits(case: Case) -> None:
    model = model_of(case)
    for batch in (1, 3):
        feeds = test_properties.without_states(case, case.feeds(1, 40, batch))
        expected = test_properties.whole(case, model.stream(batch), feeds)
        for cuts, steps in (([], 255), ([1, 7, 33], 0), ([20], 1)):
            got = test_properties.chunked(case, model.stream(batch), feeds, cuts, steps)
            assert_same_bits(got, expected)
        lone = {name: x[:, :1] if case.time_axis == 0 else x[:1] for name, x in feeds.items()}
        alone = test_properties.whole(case, model.stream(), lone)
        for name, x in expected.items():
            axis = next(a for a in range(x.ndim) if x.shape[a] == batch and alone[name].shape[a] == 1)
            assert_same_bits(np.take(x, [0], axis=axis), alone[name])
