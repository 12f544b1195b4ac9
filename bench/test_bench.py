"""The timed workloads under pytest-benchmark: python -m pytest bench --benchmark-group-by=param:name.

For a developer's before and after on one machine. Engines are timed one after another here, not interleaved, and a
figure holds the tenth of a microsecond that entering a loop of one call takes: those to quote are the figures of
``python -m bench run``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .engines import ENGINES, check
from .workloads import WORKLOADS, make_task

pytestmark = pytest.mark.bench
CASES = [(w.name, e.name) for w in WORKLOADS.values() for e in ENGINES.values() if w.kind in e.kinds]


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_workload(name: str, engine: str, benchmark: Any, tmp_path: Path) -> None:
    reason = ENGINES[engine].missing()
    if reason is not None:
        pytest.skip(reason)
    task = make_task(WORKLOADS[name], tmp_path)
    run = ENGINES[engine].prepare(task)
    benchmark.extra_info["error"] = check(run, task)
    benchmark(run.loop, 1)
