"""A whole run: a process for each number of threads, pinned to as many cores, and one document from what they find.

What the rows of a process say comes through a pipe, a JSON object a line: {"begin": workload}, {"part": number},
{"row": …}; libraries that write to stdout reach stderr instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from . import environment
from .measure import SCHEMA, Watcher, available, measure
from .workloads import WORKLOADS, Workload, chosen


def conduct(
    workloads: Sequence[Workload],
    engines: Sequence[str],
    settings: Any,
    core: int | None,
    zoo: Path | None,
    watcher: Watcher,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """The document; ``keep`` is given it after each row. Raises ValueError for a core that may not be used."""
    counts = sorted({workload.threads for workload in workloads})
    cores = {count: environment.cores_for(count, core) for count in counts}
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": environment.stamp({str(count): each for count, each in cores.items()}),
        "settings": asdict(settings),
        "engines": {name: engine.title for name, engine in available(engines).items()},
        "rows": [],
    }
    order = [*WORKLOADS, *(workload.name for workload in workloads)]

    def add(row: dict[str, Any]) -> None:
        document["rows"].append(row)
        document["rows"].sort(key=lambda each: order.index(each["workload"]))
        document["machine"]["load_at_end"] = environment.load_average()
        keep(document)

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for count in counts:
            names = [workload.name for workload in workloads if workload.threads == count]
            orders = {"workloads": names, "engines": list(engines), "settings": asdict(settings)}
            orders |= {"cores": cores[count], "folder": folder, "zoo": str(zoo) if zoo else None}
            _in_a_process(orders, count, watcher, add)
    return document


def _in_a_process(orders: dict[str, Any], threads: int, watcher: Watcher, add: Callable[[Any], None]) -> None:
    variables = environment.variables(threads)
    root = str(Path(__file__).parent.parent)
    variables["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [variables.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "bench.conduct", json.dumps(orders)]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            if "begin" in message:
                watcher.begin(message["begin"])
            elif "part" in message:
                watcher.done(message["part"])
            else:
                add(message["row"])
    if process.returncode:
        raise RuntimeError(f"measuring on {threads} threads ended with exit code {process.returncode}")


class _Reports:
    """A watcher at the pipe's far end: seldom enough that nobody's batch is disturbed."""

    def __init__(self, channel: IO[str]) -> None:
        self.channel, self.told = channel, 0.0

    def say(self, **message: Any) -> None:
        print(json.dumps(message), file=self.channel, flush=True)

    def begin(self, workload: str) -> None:
        self.told = 0.0
        self.say(begin=workload)

    def done(self, part: float) -> None:
        if part - self.told > 0.1:
            self.told = part
            self.say(part=part)


def _obey(orders: dict[str, Any]) -> None:
    """Measure what is ordered, in this process."""
    from lstm_engine.report.timing import Settings

    environment.pin(orders["cores"])
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)
        reports = _Reports(channel)
        zoo = Path(orders["zoo"]) if orders["zoo"] else None
        known = {workload.name: workload for workload in chosen(zoo=zoo)}
        measure(
            [known[name] for name in orders["workloads"]],
            available(orders["engines"]),
            Settings(**orders["settings"]),
            Path(orders["folder"]),
            reports,
            lambda row: reports.say(row=row),
            zoo,
        )


if __name__ == "__main__":
    _obey(json.loads(sys.argv[1]))
