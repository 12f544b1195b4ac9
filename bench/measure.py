"""Measures workloads on engines, row by row, in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, Protocol

from lstm_engine.report.engines import Engine, MismatchError, NotServedError, Run, checked, first_line
from lstm_engine.report.timing import Loop, Settings, Summary, beside, interleave, tails

from . import cold, crowd, memory, special
from .engines import ENGINES
from .limits import Probes
from .tasks import Task, make_task
from .workloads import STEPPED, Workload

SCHEMA: Final = 3
OURS: Final = "lstm_engine"
#: Seconds between turns where engines have several threads: those of the last one spin for a while.
SETTLE: Final = 0.004
LONGER: Final = 20  # times longer batches on several threads: those that helped before sleep, and are woken again
PAIRED: Final = 3  # times more rounds in which ways to use this engine are held against each other


class Watcher(Protocol):
    """Who is told how far the work is."""

    def begin(self, workload: str) -> None: ...

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
    folder: Path,
    watcher: Watcher,
    keep: Callable[[dict[str, Any]], None],
    collection: Path | None = None,
) -> None:
    """Give ``keep`` each row as it is done. ``folder``: for models and what else is made once."""
    for workload in workloads:
        watcher.begin(workload.name)
        row = {
            "workload": workload.name,
            "kind": workload.kind,
            "shape": workload.shape,
            "precision": workload.precision,
            "threads": workload.threads,
        }
        keep(row | _measured(make_task(workload, folder, collection), folder, engines, settings, watcher))


def _measured(
    task: Task, folder: Path, engines: Mapping[str, Engine], settings: Settings, watcher: Watcher
) -> dict[str, Any]:
    kind = task.workload.kind
    if kind == "memory":
        return {"bytes": memory.measure(task)}
    if kind == "cold":
        return _cold(task, folder, engines, settings, watcher)
    if kind == "idle":
        return special.idle(task, engines)
    if kind in ("busy", "paced", "crowd"):
        return {"busy": special.busy, "paced": special.paced, "crowd": crowd.crowd}[kind](task, engines, settings)
    return _timed(task, engines, settings, watcher)


def _cold(
    task: Task, folder: Path, engines: Mapping[str, Engine], settings: Settings, watcher: Watcher
) -> dict[str, Any]:
    ticks = iter(range(1, settings.starts + 1))
    results = cold.measure(
        task, folder, set(engines), settings.starts, lambda: watcher.done(next(ticks) / settings.starts)
    )
    floor = results.pop("floor")
    return {"limit": {"seconds": floor["median"], "bound": "interpreter"}, "engines": results}


def prepared(
    task: Task, engines: Mapping[str, Engine]
) -> tuple[dict[str, Run], dict[str, float], dict[str, dict[str, str]]]:
    """The engines that do the task and are right, their errors, and why the others are ``absent`` or ``wrong``."""
    runs: dict[str, Run] = {}
    errors: dict[str, float] = {}
    reasons: dict[str, dict[str, str]] = {"absent": {}, "wrong": {}}
    for name, engine in engines.items():
        try:
            run = engine.prepare(task)
            errors[name] = checked(run, task.sequence, task.expected, task.tolerance)
            runs[name] = run
        except NotServedError as fault:
            reasons["absent"][name] = str(fault)
        except MismatchError as fault:
            reasons["wrong"][name] = str(fault)
        except Exception as fault:  # a fault of an engine is shown, and the other rows are measured all the same
            reasons["wrong"][name] = f"{type(fault).__name__}: {first_line(fault)}"
    return runs, errors, reasons


def _timed(task: Task, engines: Mapping[str, Engine], settings: Settings, watcher: Watcher) -> dict[str, Any]:
    """All engines that do the task, checked first, then timed against each other and the limit."""
    workload = task.workload
    runs, errors, reasons = prepared(task, engines)
    probes = Probes.of(workload) if workload.kind != "zoo" else None
    engine_loops: dict[str, Loop] = {name: run.loop for name, run in runs.items()}
    probe_loops: dict[str, Loop] = {name: probe.loop for name, probe in probes.all.items()} if probes else {}
    settle = SETTLE if workload.threads > 1 else 0.0
    lasting = settings.longer(LONGER) if settle else settings
    try:
        summaries = interleave(engine_loops | probe_loops, lasting, watcher.done, settle)
    finally:
        if probes:
            probes.close()
    limit = asdict(probes.limit({name: summaries[name].min for name in probe_loops})) if probes else None
    results = {name: summaries[name].as_json() | {"error": errors[name]} for name in runs}
    ours = {name: summaries[name] for name in runs if engines[name].ours}
    if settle and len(ours) > 1:  # long batches of many engines leave few rounds
        more = replace(lasting, least_rounds=PAIRED * lasting.least_rounds)
        ours = interleave({name: engine_loops[name] for name in ours}, more, settle=settle)
    for name, each in _beside_us(ours).items():
        results[name]["beside"] = each
    if workload.kind in STEPPED:
        for name, tail in tails(engine_loops, settings, settle=settle).items():
            results[name]["tail"] = tail.as_json()
    return {"limit": limit, "engines": results, **reasons}


def _beside_us(ours: Mapping[str, Summary]) -> dict[str, dict[str, Any]]:
    """Other ways to use this engine beside the first, round by round."""
    if OURS not in ours:
        return {}
    return {name: beside(each, ours[OURS]).as_json() for name, each in ours.items() if name != OURS}
