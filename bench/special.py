"""What a quiet machine hides: cores that others keep busy, steps that come one at a time, processes that do nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lstm_engine.report import timing
from lstm_engine.report.engines import Engine, MismatchError, NotServedError, Run, checked

from .tasks import CHARACTER_MODEL, Task, make_task

PERIOD: Final = 0.001  # seconds from step to step
#: Seconds of an engine's turn and before it: long enough for the scheduler to be fair, and for spinning to end.
TURN: Final = 0.1
SETTLE: Final = 0.03
PACED_TURN: Final = 100  # steps of an engine's turn
IDLE: Final = 1.0  # seconds that an idle process is watched
AT: Final = "@"  # name@threads: one engine in several numbers of threads
#: The other engines beside which this one's threads are shown.
RIVALS: Final = ("onnxruntime_bound", "torch", "openvino")
#: Keeps a core busy for as long as its parent lives.
_BUSY: Final = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(sys.argv[1])})
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


def busy(task: Task, engines: Mapping[str, Engine], settings: timing.Settings) -> dict[str, Any]:
    """Single steps beside one busy process on each core that this one may use."""
    runs, reasons = _beside_ourselves(task, engines)
    with _company():
        found = timing.tails({name: run.loop for name, run in runs.items()}, settings, TURN, SETTLE)
    return {"engines": {name: tail.as_json() for name, tail in found.items()}, **reasons}


def paced(task: Task, engines: Mapping[str, Engine], settings: timing.Settings) -> dict[str, Any]:
    """Steps that come one every PERIOD: how long they take, and what they and the waiting cost in processor time."""
    runs, reasons = _beside_ourselves(task, engines)
    loops = {name: run.loop for name, run in runs.items()} | {"waiting": lambda n: None}
    found = timing.paced(loops, PERIOD, settings.paced, min(PACED_TURN, settings.paced), SETTLE)
    waiting = found.pop("waiting").as_json()
    return {"limit": waiting, "engines": {name: each.as_json() for name, each in found.items()}, **reasons}


def _beside_ourselves(task: Task, engines: Mapping[str, Engine]) -> tuple[dict[str, Run], dict[str, dict[str, str]]]:
    """This engine on one thread and on all, the others on all; checked. Why others are ``absent`` or ``wrong``."""
    wanted = [(name, task.threads) for name in ("lstm_engine", *RIVALS)]
    runs, reasons = prepared(task, engines, [("lstm_engine", 1), *wanted])
    return {name: run for name, (run,) in runs.items()}, reasons


def prepared(
    task: Task, engines: Mapping[str, Engine], ways: Sequence[tuple[str, int]], count: int = 1
) -> tuple[dict[str, list[Run]], dict[str, dict[str, str]]]:
    """``count`` runs of each engine on so many threads, checked. Why others are ``absent`` or ``wrong``.

    Those of one way are of one model, where an engine's may be shared.
    """
    runs: dict[str, list[Run]] = {}
    reasons: dict[str, dict[str, str]] = {"absent": {}, "wrong": {}}
    for name, threads in ways:
        if name not in engines:
            continue
        key = f"{name}{AT}{threads}"
        try:
            job = replace(task, threads=threads, shared={})
            several = [engines[name].prepare(job) for _ in range(count)]
            for run in several:
                checked(run, task.sequence, task.expected, task.tolerance)
            runs[key] = several
        except NotServedError as fault:
            reasons["absent"][key] = str(fault)
        except MismatchError as fault:
            reasons["wrong"][key] = str(fault)
    return runs, reasons


@contextmanager
def _company() -> Iterator[None]:
    """A busy process on each core."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    others = [subprocess.Popen([sys.executable, "-c", _BUSY, str(core)]) for core in cores]
    try:
        time.sleep(0.3)  # until they run
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


# --- idle -------------------------------------------------------------------------------------------------------------


def idle(task: Task, engines: Mapping[str, Engine]) -> dict[str, Any]:
    """A process for each engine that uses it and then does nothing."""
    results, absent = {}, {}
    for name in ("lstm_engine", *RIVALS):
        if name in engines:
            found = _watched(task, name)
            if isinstance(found, str):
                absent[name] = found
            else:
                results[f"{name}{AT}{task.threads}"] = {"processor": found}
    return {"engines": results, "absent": absent}


def _watched(task: Task, name: str) -> float | str:
    root = str(Path(__file__).parent.parent)
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "bench.special", name, task.workload.name, str(task.folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"watching {name} failed:\n{done.stderr}")
    found: float | str = json.loads(done.stdout.splitlines()[-1])
    return found


def use_and_rest(name: str, workload: str, folder: Path) -> float | str:
    """Use the engine, then do nothing for a while: processor seconds a second; why not, where it cannot."""
    from .engines import ENGINES
    from .workloads import WORKLOADS

    task = make_task(WORKLOADS[workload], folder)
    try:
        run = ENGINES[name].prepare(task)
    except NotServedError as fault:
        return str(fault)
    run.loop(1000)
    kept = [run, *(_everything(task) if ENGINES[name].ours else ())]
    time.sleep(0.2)
    before = time.process_time()
    time.sleep(IDLE)
    spent = (time.process_time() - before) / IDLE
    del kept
    return spent


def _everything(task: Task) -> list[Any]:
    """Whatever the public face has, used once."""
    import numpy as np

    import lstm_engine as le

    model = le.load(task.path, threads=task.threads)
    feeds = {name: np.repeat(array, 16, axis=0) if name in task.data else array for name, array in task.feeds.items()}
    model.run(feeds)
    stream = model.stream(batch=task.batch)
    stream.feed(feeds[next(iter(task.data))])
    twin = stream.fork()
    twin.state = stream.state
    speaking = le.load(CHARACTER_MODEL, threads=task.threads).stream()
    return [model, stream, twin, speaking, list(le.generate(speaking, "def ", max_tokens=20))]


if __name__ == "__main__":
    print(json.dumps(use_and_rest(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
