"""The timed workloads under pytest-benchmark: python -m pytest bench --benchmark-group-by=param:name.

For a developer's before and after on one machine. Engines are timed one after another here, not interleaved, and a
figure holds the tenth of a microsecond that entering a loop of one call takes: those to quote are the figures of
``python -m bench run``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lstm_engine.report.engines import NotServedError, checked

from .engines import ENGINES
from .tasks import make_task
from .workloads import CALLED, STEPPED, WORKLOADS

pytestmark = pytest.mark.bench
CASES = [(w.name, engine) for w in WORKLOADS.values() if w.kind in (*STEPPED, *CALLED) for engine in ENGINES]


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_workload(name: str, engine: str, benchmark: Any, tmp_path: Path) -> None:
    reason = ENGINES[engine].missing()
    if reason is not None:
        pytest.skip(reason)
    task = make_task(WORKLOADS[name], tmp_path)
    try:
        run = ENGINES[engine].prepare(task)
    except NotServedError as fault:
        pytest.skip(str(fault))
    benchmark.extra_info["error"] = checked(run, task.sequence, task.expected, task.tolerance)
    benchmark(run.loop, 1)
