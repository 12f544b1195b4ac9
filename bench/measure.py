"""Measures the chosen workloads on the chosen engines and gathers one JSON document."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol

from . import cold, environment, memory
from .engines import ENGINES, Engine, MismatchError, check
from .limits import measured_limit, probes_for
from .timing import Settings, interleave, tails
from .workloads import Task, Workload, make_task

SCHEMA: Final = 1


class Watcher(Protocol):
    """Who is told how far the work is."""

    def begin(self, workload: Workload) -> None: ...

    def done(self, part: float) -> None:
        """The part of the present workload that is done, 0 to 1."""


def available(names: Sequence[str] | None = None) -> dict[str, Engine]:
    """The engines that are installed, among those named. Raises ValueError for an unknown or missing one."""
    if names:
        unknown = [name for name in names if name not in ENGINES]
        if unknown:
            raise ValueError(f"unknown engines {', '.join(unknown)}; there are {', '.join(ENGINES)}")
        absent = [reason for name in names if (reason := ENGINES[name].missing()) is not None]
        if absent:
            raise ValueError("; ".join(absent))
        return {name: engine for name, engine in ENGINES.items() if name in names}
    return {name: engine for name, engine in ENGINES.items() if engine.missing() is None}


def measure(
    workloads: Sequence[Workload],
    engines: Mapping[str, Engine],
    settings: Settings,
    core: int | None,
    watcher: Watcher,
    keep: Callable[[dict[str, Any]], None] = lambda document: None,
) -> dict[str, Any]:
    """The whole document; ``keep`` is given it after each row.

    Raises MismatchError when an engine's outputs are not the oracle's: no row is dropped for it.
    """
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": environment.stamp(core),
        "settings": asdict(settings),
        "engines": {name: engine.title for name, engine in engines.items()},
        "rows": [],
    }
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        for workload in workloads:
            watcher.begin(workload)
            document["rows"].append(_row(make_task(workload, folder), folder, engines, settings, watcher))
            document["machine"]["load_at_end"] = environment.load_average()
            keep(document)
    return document


def _row(
    task: Task, folder: Path, engines: Mapping[str, Engine], settings: Settings, watcher: Watcher
) -> dict[str, Any]:
    workload = task.workload
    row: dict[str, Any] = {"workload": workload.name, "kind": workload.kind, "shape": workload.shape}
    if workload.kind == "memory":
        return row | {"bytes": memory.measure(task)}
    if workload.kind == "cold":
        ticks = iter(range(1, settings.starts + 1))
        results = cold.measure(
            task, folder, set(engines), settings.starts, lambda: watcher.done(next(ticks) / settings.starts)
        )
        floor = results.pop("floor")
        return row | {"limit": {"seconds": floor["median"], "bound": "interpreter"}, "engines": results}
    return row | _timed(task, engines, settings, watcher)


def _timed(task: Task, engines: Mapping[str, Engine], settings: Settings, watcher: Watcher) -> dict[str, Any]:
    """All engines that have this kind, checked first, then timed against each other and the limit."""
    runs, errors = {}, {}
    for name, engine in engines.items():
        if task.workload.kind in engine.kinds:
            runs[name] = engine.prepare(task)
            try:
                errors[name] = check(runs[name], task)
            except MismatchError as fault:
                raise MismatchError(f"{engine.title}: {fault}; nothing of this run counts") from None
    probes = probes_for(task.workload)
    loops = {name: run.loop for name, run in runs.items()} | {name: probe.loop for name, probe in probes.items()}
    summaries = interleave(loops, settings, watcher.done)
    limit = measured_limit(task.workload, probes, {name: summaries[name].median for name in probes})
    results = {name: summaries[name].as_json() | {"error": errors[name]} for name in runs}
    if task.workload.kind in ("step", "character"):
        for name, tail in tails({name: run.loop for name, run in runs.items()}, settings).items():
            results[name]["tail"] = tail.as_json()
    return {"limit": asdict(limit), "engines": results}
