"""The project's speed goals, held against measured results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .report import OURS, validated
from .workloads import WORKLOADS

FRESH: Final = "lstm_engine_fresh"
PLAIN, BOUND = "onnxruntime", "onnxruntime_bound"

REACHED: Final = 0.8  # of the machine's limit, by the weights' part of a step
CALL: Final = 0.6e-6  # seconds for all that is not weights: the call, activations, state
SMALL: Final = 32  # hidden units up to which a step takes less than SMALL_STEP
SMALL_STEP: Final = 1e-6
AHEAD: Final = ((32, 8.0), (64, 4.5), (128, 2.3))  # up to so many hidden units: times faster than I/O binding
FRESH_COST: Final = 0.35e-6
FRESH_UP_TO: Final = 64  # hidden units; beyond, a step's own spread hides it
SEQUENCE_AHEAD: Final = 1.5  # at H=64, B=1


@dataclass(frozen=True)
class Verdict:
    """One goal on one row. ``passed`` None: not measured."""

    goal: str
    row: str
    wanted: str
    measured: str
    passed: bool | None


class NotMeasuredError(LookupError):
    """A figure that a goal needs was not measured."""


def verdicts(document: Mapping[str, Any]) -> list[Verdict]:
    """Every goal on every row it speaks of."""
    rows = {row["workload"]: row for row in validated(document)["rows"]}
    found = []
    for name, workload in WORKLOADS.items():
        if workload.kind == "step":
            goals = _step_goals(rows.get(name), workload.H)
        elif workload.kind == "sequence":
            goals = _sequence_goals(rows.get(name), workload.H, workload.B)
        else:
            continue
        found += [_verdict(name, *goal) for goal in goals]
    return found


def _step_goals(row: Mapping[str, Any] | None, H: int) -> Iterator[tuple[str, Any]]:
    if H <= SMALL:
        yield "a step is short", lambda: _at_most(_median(row, OURS), SMALL_STEP)
    if H >= 64:
        yield "a step is at the limit", lambda: _at_most(_median(row, OURS), _limit(row) / REACHED + CALL)
    factor = next((factor for most, factor in AHEAD if most >= H), None)
    if factor is not None:
        yield (
            f"{factor}× faster than onnxruntime with I/O binding",
            lambda: _at_least(_median(row, BOUND) / _median(row, OURS), factor),
        )
    if H <= FRESH_UP_TO:
        yield "a fresh result is cheap", lambda: _at_most(_median(row, FRESH) - _median(row, OURS), FRESH_COST)


def _sequence_goals(row: Mapping[str, Any] | None, H: int, B: int) -> Iterator[tuple[str, Any]]:
    factor = SEQUENCE_AHEAD if (H, B) == (64, 1) else 1.0
    goal = f"{factor}× faster than onnxruntime" if factor > 1 else "not slower than onnxruntime"

    def ratio() -> float:
        return min(_median(row, PLAIN), _median(row, BOUND)) / _median(row, OURS)

    yield goal, lambda: _at_least(ratio(), factor)


def _verdict(row: str, goal: str, judge: Any) -> Verdict:
    try:
        passed, wanted, measured = judge()
    except NotMeasuredError as fault:
        return Verdict(goal, row, "", f"not measured: {fault}", None)
    return Verdict(goal, row, wanted, measured, passed)


def _at_most(seconds: float, most: float) -> tuple[bool, str, str]:
    return seconds <= most, f"≤ {most * 1e6:.2f} µs", f"{seconds * 1e6:.2f} µs"


def _at_least(ratio: float, least: float) -> tuple[bool, str, str]:
    return ratio >= least, f"≥ {least:.2f}×", f"{ratio:.2f}×"


def _median(row: Mapping[str, Any] | None, engine: str) -> float:
    if row is None:
        raise NotMeasuredError("the row")
    if engine not in row["engines"]:
        raise NotMeasuredError(engine)
    return float(row["engines"][engine]["median"])


def _limit(row: Mapping[str, Any] | None) -> float:
    if row is None:
        raise NotMeasuredError("the row")
    return float(row["limit"]["seconds"])
