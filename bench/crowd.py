"""Many Python threads in one process, each with its own stream: the steps of all of them in a second."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import Any, Final

from lstm_engine.report import timing
from lstm_engine.report.engines import Engine, Run

from .special import RIVALS, prepared
from .tasks import Task

CROWD: Final = 8  # threads
TURN: Final = 0.25  # seconds of an engine's turn: many of the system's time slices
CHUNK: Final = 0.001  # seconds of steps between two looks at the clock


def crowd(task: Task, engines: Mapping[str, Engine], settings: timing.Settings) -> dict[str, Any]:
    """One thread and CROWD of them, in turns: seconds a step, and how many times as many steps all make as one.

    Each thread's calls are on one thread; this engine is also shown as it comes, with threads that help.
    """
    ways = [("lstm_engine", task.threads), *[(name, 1) for name in ("lstm_engine", *RIVALS)]]
    runs, reasons = prepared(task, engines, ways, CROWD)
    chunks = {name: timing.calibrated(each[0].loop, CHUNK) for name, each in runs.items()}
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    with timing.quiet():
        for _ in range(settings.least_rounds):
            for name, each in runs.items():
                rounds[name].append((_rate(each[:1], chunks[name]), _rate(each, chunks[name])))
    return {"engines": {name: _figures(found) for name, found in rounds.items()}, **reasons}


def _figures(rounds: Sequence[tuple[float, float]]) -> dict[str, float]:
    one, all_ = (median(rates) for rates in zip(*rounds, strict=True))
    gain = median(together / alone for alone, together in rounds)
    return {"alone": 1 / one, "together": 1 / all_, "gain": gain}


def _rate(runs: Sequence[Run], chunk: int) -> float:
    """Steps a second of a thread for each run."""
    rates = [0.0] * len(runs)
    begun = threading.Barrier(len(runs))

    def step(index: int) -> None:
        loop, steps = runs[index].loop, 0
        loop(chunk)
        begun.wait()
        begin = perf_counter()
        while perf_counter() - begin < TURN:
            loop(chunk)
            steps += chunk
        rates[index] = steps / (perf_counter() - begin)

    threads = [threading.Thread(target=step, args=(index,)) for index in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)
