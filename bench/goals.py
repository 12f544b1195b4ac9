"""The project's speed goals, held against measured results.

Most goals are a ratio of this engine's median to that of the fastest other in the same precision on as many threads, or
to its own on one thread. A goal that is missed is told with what the machine's measured limit would give. The limit is
the reason where it forbids the goal, so that no engine could meet it on this machine, or where ours is all but at it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from .allowance import Allowance, allowance, at_best
from .crowd import CROWD
from .measure import OURS
from .report import fastest_peer, table, validated
from .special import AT
from .workloads import WORKLOADS

FRESH: Final = "lstm_engine_fresh"
ONE: Final = "lstm_engine_one"
LONE: Final = "lstm_engine_lone"
ORT: Final = "onnxruntime*"
VINO: Final = "openvino"
FRESH_COST: Final = 0.35e-6  # seconds of a fresh result
IDLE: Final = 0.001  # of a second: what the watching itself may take
#: step float32: least ratio to the fastest other, by hidden units.
STEP: Final = {8: 12, 16: 12, 32: 12, 64: 6.5, 128: 2.8, 256: 2.2, 512: 1.3, 1024: 1.04}
STEP_THREADS: Final = {256: (2.2, 2.1), 512: (2.0, 1.5)}  # to our one thread, to the others' two
STEP_INT8: Final = {128: 7, 256: 5, 512: 3.5, 1024: 1.5}
SEQUENCE: Final = {64: 1.9, 128: 1.5, 256: 1.4, 512: 1.1}
SEQUENCE_INT8: Final = {128: 2.5, 256: 2.5, 512: 2}
BATCH: Final = {128: 1.2, 256: 1.2, 512: 1.15}
BATCH_BFLOAT16: Final = {256: 1.5, 512: 1.3}
STACKS: Final = ("2x128", "3x256", "3x480", "6x320")
#: To our one thread; the fastest other's two threads are to be a tenth slower in each.
SEQUENCE_THREADS: Final = {"sequence-h256-b1": 1.3, "sequence-h512-b1": 1.2, "sequence-h256-b16": 1.3}
#: Tokens drawn: the row, how many times as fast, as whom.
TOKENS: Final = (
    ("tokens", 1.8, "onnxruntime*", "onnxruntime"),
    ("tokens-t2", 4, "onnxruntime*", "onnxruntime"),
    ("tokens-int8", 6, "onnxruntime*", "onnxruntime"),
    ("tokens", 5, "torch", "PyTorch"),
    ("tokens-2x64", 10, "onnxruntime*", "onnxruntime"),
)
#: 256 of 10,000 streams in one call, to as many steps of lone ones; and to onnxruntime, states carried by hand.
STREAMS: Final = {"streams-h128-b256": 2.2, "streams-h128-b256-t2": 4}
STREAMS_AHEAD: Final = 1.15
BUSY_MEAN, BUSY_MEDIAN, PACED, CROWD_GAIN = 1.1, 1.3, 1.05, 1.8
TIE: Final = 1.02  # what counts as not slower: medians of equal code differ by as much

Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Verdict:
    """One goal on one row. ``passed`` None: not measured; ``reason``: what the machine's limit says of a miss.

    ``excused``: the limit is the reason.
    """

    goal: str
    row: str
    wanted: str
    measured: str
    passed: bool | None
    reason: str = ""
    excused: bool = False

    @property
    def sign(self) -> str:
        """In four letters."""
        return "edge" if self.excused else {True: "pass", False: "FAIL", None: "----"}[self.passed]


class NotMeasuredError(LookupError):
    """A figure that a goal needs was not measured."""


@dataclass(frozen=True)
class Goal:
    """``figure``: what of the rows is to be at least ``bound``, or at most; ``other``: the seconds it is a ratio of.

    ``most``: what the figure may truly be, as the rounds differ. With it a goal is missed only beyond doubt.
    """

    row: str
    words: str
    bound: float
    figure: Callable[[Rows], float]
    at_most: bool = False
    unit: str = "×"
    other: Callable[[Rows], float] | None = None
    most: Callable[[Rows], float] | None = None

    def judged(self, rows: Rows) -> Verdict:
        """Held against the rows."""
        try:
            value = self.figure(rows)
            most = value if self.most is None else self.most(rows)
        except NotMeasuredError as fault:
            return Verdict(self.words, self.row, "", f"not measured: {fault}", None)
        scale = {"×": 1.0, " µs": 1e6}[self.unit]
        wanted = f"{'≤' if self.at_most else '≥'} {scale * self.bound:.3g}{self.unit}"
        measured = f"{scale * value:.2f}{self.unit}"
        measured += f", {scale * most:.2f}{self.unit} at most" if self.most is not None else ""
        passed = value <= self.bound if self.at_most else most >= self.bound
        found = None if passed or self.other is None else allowance(rows.get(self.row), self.other(rows))
        return Verdict(self.words, self.row, wanted, measured, passed, *self._explained(found))

    def _explained(self, found: Allowance | None) -> tuple[str, bool]:
        """The reason of a miss, and whether it excuses."""
        if found is None:
            return "", False
        if found.forbids(self.bound):
            return f"beyond this machine: {found}", True
        return (f"hardly above the limit: {found}", True) if found.is_near else (str(found), False)


def verdicts(document: Mapping[str, Any]) -> list[Verdict]:
    """Every goal on every row it speaks of."""
    rows = {row["workload"]: row for row in at_best(validated(document)["rows"])}
    return [goal.judged(rows) for goal in goals(rows)]


def told(found: Sequence[Verdict]) -> str:
    """How many goals are met, in words."""
    met, excused = sum(each.passed is True for each in found), sum(each.excused for each in found)
    return f"{met} of {len(found)} goals met, {excused} more at the machine's limit"


def missed_table(found: Sequence[Verdict]) -> str:
    """Markdown: every goal that is not met, with its reason; what was not measured apart."""
    lines = [
        [each.row, each.goal, each.wanted, each.measured, each.reason or "–"] for each in found if each.passed is False
    ]
    return f"{told(found)}." + ("\n\n" + table(["", "goal", "wanted", "measured", "limit"], lines) if lines else "")


def spoken_of() -> set[str]:
    """Names of the rows that goals speak of, and of those they are compared with; published files apart."""
    named = {goal.row for goal in goals({})}
    return (named | {name.removesuffix("-t2") for name in named}) & set(WORKLOADS)


def goals(rows: Rows) -> Iterator[Goal]:
    """The whole table; of published files those that were measured."""
    for H, factor in STEP.items():
        yield _ahead(f"step-h{H}", factor)
    for H in (8, 16, 32, 64):
        yield Goal(f"step-h{H}", "a fresh result is cheap", FRESH_COST, _fresh_cost(f"step-h{H}"), True, " µs")
    for H in (8, 16, 32):
        yield _no_slower_on_two(f"step-h{H}")
    for H, (ours, theirs) in STEP_THREADS.items():
        yield _threads(f"step-h{H}", ours)
        yield _ahead(f"step-h{H}-t2", theirs)
    for H, factor in STEP_INT8.items():
        yield _ahead(f"step-h{H}-int8", factor, ORT, "onnxruntime")
    yield _ahead("step-h512-int8-t2", 6, ORT, "onnxruntime")
    for name in STACKS:
        yield _ahead(f"step-{name}", 1)
    for H, factor in SEQUENCE.items():
        yield _ahead(f"sequence-h{H}-b1", factor)
    for H, factor in SEQUENCE_INT8.items():
        yield _ahead(f"sequence-h{H}-b1-int8", factor)
    for B in (16, 64):
        for H, factor in BATCH.items():
            yield _ahead(f"sequence-h{H}-b{B}", factor)
        for H, factor in BATCH_BFLOAT16.items():
            yield _ahead(f"sequence-h{H}-b{B}-bfloat16", factor, VINO, "OpenVINO")
    for name, factor in SEQUENCE_THREADS.items():
        yield _threads(name, factor)
        yield _ahead(f"{name}-t2", 1.1)
    for name, factor, pattern, whom in TOKENS:
        yield _ahead(name, factor, pattern, whom)
    for name, factor in STREAMS.items():
        yield _ahead_of_ourselves(name, factor, LONE, "lone streams on one thread")
        yield _ahead(name, STREAMS_AHEAD, ORT, "onnxruntime")
    yield from _special_goals()
    for name, row in rows.items():
        if row["kind"] == "zoo" and fastest_peer(row, ORT) is not None:
            yield _ahead(name, 1 / TIE, ORT, "onnxruntime")


def _special_goals() -> Iterator[Goal]:
    for H in (256, 512):
        busy, paced = f"busy-h{H}-t2", f"paced-h{H}-t2"
        yield Goal(busy, "two threads against one: mean", BUSY_MEAN, _two_to_one(busy, "mean"), True)
        yield Goal(busy, "two threads against one: median", BUSY_MEDIAN, _two_to_one(busy, "p50"), True)
        yield Goal(paced, "two threads against one: latency", PACED, _two_to_one(paced, "p50"), True)
        yield Goal(paced, "two threads against one: processor time", PACED, _two_to_one(paced, "processor"), True)
    yield Goal("crowd-2x256-t2", f"{CROWD} Python threads against one: steps", CROWD_GAIN, _gain("crowd-2x256-t2"))
    idle = "idle-h256-t2"
    yield Goal(idle, "no processor time in a second of rest", IDLE, lambda rows: _special(rows, idle, 2)["processor"],
               True, " µs")  # fmt: skip


def _ahead(name: str, factor: float, pattern: str = "*", whom: str = "the fastest other") -> Goal:
    def theirs(rows: Rows) -> float:
        row = _row(rows, name)
        other = fastest_peer(row, pattern)
        if other is None:
            raise NotMeasuredError(whom)
        return _median(row, other)

    def ratio(rows: Rows) -> float:
        return theirs(rows) / _median(_row(rows, name), OURS)

    words = f"not slower than {whom}" if factor <= 1 else f"{factor:g} times as fast as {whom}"
    return Goal(name, words, factor, ratio, other=theirs)


def _threads(name: str, factor: float) -> Goal:
    return _ahead_of_ourselves(f"{name}-t2", factor, ONE, "our one thread")


def _ahead_of_ourselves(row: str, factor: float, engine: str, words: str) -> Goal:
    """Against another way to use this engine, in the same rounds."""
    return Goal(
        row,
        f"{factor:g} times as fast as {words}",
        factor,
        lambda rows: _beside(_row(rows, row), engine, "ratio"),
        other=lambda rows: _median(_row(rows, row), engine),
    )


def _no_slower_on_two(name: str) -> Goal:
    """Both run the same code where two threads do not pay, so that the rounds' noise is all there may be."""
    row = f"{name}-t2"
    ratio, most = (partial(_of_threads, name=row, figure=figure) for figure in ("ratio", "high"))
    return Goal(row, "two threads are not slower than one", 1 / TIE, ratio, most=most)


def _of_threads(rows: Rows, name: str, figure: str) -> float:
    return _beside(_row(rows, name), ONE, figure)


def _fresh_cost(name: str) -> Callable[[Rows], float]:
    return lambda rows: _beside(_row(rows, name), FRESH, "difference")


def _beside(row: Mapping[str, Any], engine: str, figure: str) -> float:
    """A way to use this engine beside the usual one, both in the same rounds."""
    _median(row, OURS)
    _median(row, engine)
    return float(row["engines"][engine]["beside"][figure])


def _two_to_one(name: str, figure: str) -> Callable[[Rows], float]:
    return lambda rows: float(_special(rows, name, 2)[figure] / _special(rows, name, 1)[figure])


def _gain(name: str) -> Callable[[Rows], float]:
    return lambda rows: float(_special(rows, name, 1)["gain"])


def _special(rows: Rows, name: str, threads: int) -> Mapping[str, float]:
    engines: Mapping[str, Any] = _row(rows, name)["engines"]
    key = f"{OURS}{AT}{threads}"
    if key not in engines:
        raise NotMeasuredError(key)
    found: Mapping[str, float] = engines[key]
    return found


def _row(rows: Rows, name: str) -> Mapping[str, Any]:
    if name not in rows:
        raise NotMeasuredError(f"the row {name}")
    return rows[name]


def _median(row: Mapping[str, Any], engine: str) -> float:
    if engine not in row["engines"]:
        raise NotMeasuredError(row.get("absent", {}).get(engine) or row.get("wrong", {}).get(engine) or engine)
    return float(row["engines"][engine]["median"])
