"""Timing loops against one another: round by round, in changing order, and statistics that survive a busy machine."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import repeat
from math import comb
from statistics import median, quantiles
from time import perf_counter, perf_counter_ns, process_time, sleep
from typing import Any, Final

import numpy as np

Loop = Callable[[int], object]  # makes n calls
Progress = Callable[[float], None]  # the part that is done, 0 to 1

RETAKES: Final = 6
SURE: Final = 0.95  # of an interval
LONGEST_RETAKEN: Final = 0.02  # seconds of a batch; longer ones seldom run undisturbed on a machine that disturbs
LONG: Final = 10  # batches that a call may take and still be worth another one to warm the caches
LATE: Final = 4  # times the time that calls at their times take, after which a turn ends
CHUNK: Final = 0.01  # seconds of calls clocked one by one before the next engine's turn


@dataclass(frozen=True)
class Settings:
    """How long to measure.

    ``batch``: seconds of calls under one reading of the clock; ``budget``: seconds for all rounds of a row;
    ``tail``: calls clocked one by one, ``tail_budget``: seconds they may take for each engine; ``starts``: processes;
    ``paced``: calls at fixed times.
    """

    batch: float
    budget: float
    least_rounds: int
    most_rounds: int
    tail: int
    tail_budget: float
    starts: int
    paced: int

    def longer(self, times: int) -> Settings:
        """With batches so many times as long."""
        return replace(self, batch=times * self.batch)


FULL: Final = Settings(0.001, 6.0, 15, 400, 50_000, 2.0, 15, 2_000)
QUICK: Final = Settings(0.001, 0.4, 5, 60, 2_000, 0.2, 3, 200)


@dataclass(frozen=True)
class Summary:
    """Seconds a call over the rounds of one engine.

    ``calls``: in one batch; ``rounds``: that count; ``dropped``: rounds left out because the system took the core away
    again and again; ``disturbed``: such rounds that count all the same, since calm ones were too few; ``samples``: a
    figure for each round that counts, in order.
    """

    median: float
    min: float
    q1: float
    q3: float
    rounds: int
    calls: int
    dropped: int
    disturbed: int
    samples: tuple[float, ...] = field(default=(), compare=False, repr=False)

    def as_json(self) -> dict[str, Any]:
        """As a dict, without the rounds."""
        return {name: value for name, value in asdict(self).items() if name != "samples"}


@dataclass(frozen=True)
class Beside:
    """One loop beside another of the same rounds: what both felt alike is in no figure.

    ``ratio``: the median over the rounds of its time over the other's; ``low`` and ``high``: between them the median of
    endless rounds lies, as sure as SURE; ``difference``: in seconds.
    """

    ratio: float
    low: float
    high: float
    difference: float
    rounds: int

    def as_json(self) -> dict[str, Any]:
        """As a dict."""
        return asdict(self)


def beside(one: Summary, other: Summary) -> Beside:
    """``one`` beside ``other``, round by round."""
    pairs = list(zip(one.samples, other.samples, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    outside = _outside(len(ratios))
    return Beside(median(ratios), ratios[outside], ratios[-1 - outside], median(a - b for a, b in pairs), len(pairs))


def _outside(samples: int) -> int:
    """How many of the least, and of the greatest, are outside the interval of the median.

    A sample is on either side of the median like a coin; few samples are all inside.
    """
    chance, count = 0.0, 0
    while count < samples // 2:
        chance += comb(samples, count) / 2**samples
        if chance > (1 - SURE) / 2:
            break
        count += 1
    return max(0, count - 1)


def summarise(samples: Sequence[float], calls: int, dropped: int = 0, disturbed: int = 0) -> Summary:
    """Median, least and quartiles."""
    q1, _, q3 = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
    return Summary(median(samples), min(samples), q1, q3, len(samples), calls, dropped, disturbed, tuple(samples))


def interleave(
    loops: Mapping[str, Loop], settings: Settings, progress: Progress | None = None, settle: float = 0.0
) -> dict[str, Summary]:
    """Time every loop in every round, a batch of calls each, starting with another one in each round.

    ``settle``: seconds before each turn, in which other threads of the engine before may fall asleep.

    A batch during which the system gave the core to somebody else is timed anew, RETAKES times at most if it is short.
    A round with a batch that never ran undisturbed is left out for all loops alike, as long as half of the rounds
    remain.
    """
    if not loops:
        return {}
    calls = {name: calibrated(loop, settings.batch) for name, loop in loops.items()}
    warm = {name: _warming(loops[name], calls[name], settings.batch) for name in loops}
    names = list(loops)
    rounds: list[dict[str, float]] = []
    disturbed: list[bool] = []
    with quiet():
        begin = perf_counter()
        while len(rounds) < settings.most_rounds:
            spent = perf_counter() - begin
            if spent > settings.budget and len(rounds) >= settings.least_rounds:
                break
            if progress is not None:
                progress(min(spent / settings.budget, len(rounds) / settings.least_rounds, 1.0))
            first = len(rounds) % len(names)
            order = (*names[first:], *names[:first])
            taken = {}
            for name in order:
                sleep(settle)
                taken[name] = _undisturbed(loops[name], calls[name], warm[name])
            rounds.append({name: seconds for name, (seconds, _) in taken.items()})
            disturbed.append(any(broken for _, broken in taken.values()))
    calm = [seconds for seconds, broken in zip(rounds, disturbed, strict=True) if not broken]
    kept = calm if 2 * len(calm) >= len(rounds) else rounds
    dropped, bad = len(rounds) - len(kept), len(kept) - len(calm)
    return {name: summarise([seconds[name] for seconds in kept], calls[name], dropped, bad) for name in names}


def calibrated(loop: Loop, seconds: float) -> int:
    """How many calls take about so long; warms the loop up on the way."""
    loop(1)
    calls = 1
    while True:
        spent = min(_batch(loop, calls) * calls for _ in range(2))
        if spent >= seconds / 4:
            return max(1, round(calls * seconds / spent))
        calls *= 2 if spent > seconds / 64 else 8


def _warming(loop: Loop, calls: int, seconds: float) -> int:
    """Calls before a batch: a few; none where a call is long and warms itself."""
    if calls > 1 or _batch(loop, 1) < LONG * seconds:
        return -(-calls // 20)
    return 0


def _undisturbed(loop: Loop, calls: int, warm: int) -> tuple[float, bool]:
    """Seconds a call of a batch; second, whether the system broke in on every attempt.

    ``warm`` calls go before, unclocked: the engine before has left its own weights in the caches.
    """
    for _ in range(RETAKES + 1):
        if warm:
            loop(warm)
        before = switches()
        seconds = _batch(loop, calls)
        if switches() == before:
            return seconds, False
        if seconds * calls > LONGEST_RETAKEN:
            break
    return seconds, True


def _batch(loop: Loop, calls: int) -> float:
    begin = perf_counter()
    loop(calls)
    return (perf_counter() - begin) / calls


# --- tails -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tail:
    """Quantiles of single calls, in seconds; ``p999`` is None where there are too few calls to tell.

    ``clock``: what reading the clock and entering a loop costs; it is taken off.
    """

    p50: float
    p99: float
    p999: float | None
    worst: float
    mean: float
    calls: int
    clock: float

    def as_json(self) -> dict[str, Any]:
        """As a dict."""
        return asdict(self)


def tails(loops: Mapping[str, Loop], settings: Settings, turn: float = CHUNK, settle: float = 0.0) -> dict[str, Tail]:
    """Clock calls one by one; engines take turns. Nothing is left out: the tail is the point.

    ``turn``: seconds of one; ``settle``: seconds before each, as in interleave().
    """
    if not loops:
        return {}
    samples: dict[str, list[int]] = {name: [] for name in loops}
    spent = dict.fromkeys(loops, 0.0)
    idle: list[int] = []
    with quiet():
        open_loops = dict(loops)
        while open_loops:
            idle += _clocked(_Idle().loop, 200, CHUNK)
            for name, loop in list(open_loops.items()):
                sleep(settle)
                begin = perf_counter()
                samples[name] += _clocked(loop, settings.tail - len(samples[name]), turn)
                spent[name] += perf_counter() - begin
                if len(samples[name]) >= settings.tail or spent[name] > settings.tail_budget:
                    del open_loops[name]
    clock = median(idle)
    return {name: tail_of(np.array(values), clock) for name, values in samples.items()}


@dataclass(frozen=True)
class Paced:
    """Single calls that come at fixed times, in seconds; ``processor``: time on all cores for a call and its wait."""

    p50: float
    p99: float
    mean: float
    processor: float
    calls: int

    def as_json(self) -> dict[str, Any]:
        """As a dict."""
        return asdict(self)


def paced(loops: Mapping[str, Loop], period: float, calls: int, turn: int, settle: float) -> dict[str, Paced]:
    """Make each call at its time; engines take turns of ``turn`` calls, shorter where they cannot keep up at all."""
    samples: dict[str, list[int]] = {name: [] for name in loops}
    spent = dict.fromkeys(loops, 0.0)
    with quiet():
        for _ in range(-(-calls // turn)):
            for name, loop in loops.items():
                sleep(settle)
                before = process_time()
                samples[name] += _at_their_times(loop, period, turn)
                spent[name] += process_time() - before
    return {name: _paced_of(np.array(values) * 1e-9, spent[name]) for name, values in samples.items()}


def _paced_of(seconds: np.ndarray, processor: float) -> Paced:
    p50, p99 = (float(q) for q in np.quantile(seconds, [0.5, 0.99]))
    return Paced(p50, p99, float(seconds.mean()), processor / len(seconds), len(seconds))


def _at_their_times(loop: Loop, period: float, calls: int) -> list[int]:
    samples = []
    due = perf_counter()
    last = due + LATE * calls * period
    for _ in range(calls):
        if perf_counter() > last:
            break
        due += period
        sleep(max(0.0, due - perf_counter()))
        begin = perf_counter_ns()
        loop(1)
        samples.append(perf_counter_ns() - begin)
    return samples


def tail_of(nanoseconds: np.ndarray, clock: float) -> Tail:
    """Quantiles, less the clock's own cost."""
    seconds = np.maximum(nanoseconds - clock, 0) * 1e-9
    p50, p99, p999 = np.quantile(seconds, [0.5, 0.99, 0.999])
    rare = float(p999) if len(seconds) >= 5_000 else None
    worst, mean = float(seconds.max()), float(seconds.mean())
    return Tail(float(p50), float(p99), rare, worst, mean, len(seconds), clock * 1e-9)


def _clocked(loop: Loop, most: int, seconds: float) -> list[int]:
    samples: list[int] = []
    end = perf_counter_ns() + int(seconds * 1e9)
    while len(samples) < most:
        begin = perf_counter_ns()
        loop(1)
        now = perf_counter_ns()
        samples.append(now - begin)
        if now > end:
            break
    return samples


class _Idle:
    """A loop like the engines', without the calls."""

    def __init__(self) -> None:
        self.function, self.x, self.y = abs, 0, 0

    def loop(self, n: int) -> None:
        function, x, y = self.function, self.x, self.y  # noqa: F841
        for _ in repeat(None, n):
            pass


# --- surroundings ----------------------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection meanwhile."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def switches() -> int:
    """How often the system took the core away from this process so far (0 where it does not tell)."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
