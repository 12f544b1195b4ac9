"""What the machine's measured limit says of a row that is lost, or of a goal that is missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from .limits import limit_of
from .measure import OURS
from .workloads import WORKLOADS

NEAR: Final = 1.15  # times the limit: hardly anything is left to gain
BELOW: Final = 0.95  # times the limit: who is faster than that has shown that it is none
APART: Final = 1.02  # times the limit that phases in turn take, from where on that is worth telling


Row = Mapping[str, Any]


def at_best(rows: Sequence[Row]) -> list[Row]:
    """The rows, with limits at the best rates that any row of as many threads shows.

    What the machine could do beside one row it can do: probes that somebody disturbed are no excuse. A buffer is read
    at least as fast as a larger one.
    """
    limited = [row for row in rows if "peak" in (row.get("limit") or {})]
    peaks: dict[tuple[str, int], float] = {}
    bandwidths: dict[int, list[tuple[int, float]]] = {}
    for row in limited:
        key = row["precision"], row["threads"]
        peaks[key] = max(peaks.get(key, 0.0), row["limit"]["peak"])
        seen = bandwidths.setdefault(row["threads"], [])
        seen += [(int(footprint), each) for footprint, each in row["limit"]["bandwidths"].items()]

    def anew(row: Row) -> Row:
        workload, seen = WORKLOADS[row["workload"]], bandwidths[row["threads"]]
        best = {
            phase.footprint: max(bandwidth for footprint, bandwidth in seen if footprint >= phase.footprint)
            for phase in workload.phases
        }
        return {**row, "limit": asdict(limit_of(workload, best, peaks[row["precision"], row["threads"]]))}

    return [anew(row) if "peak" in (row.get("limit") or {}) else row for row in rows]


@dataclass(frozen=True)
class Allowance:
    """``ratio``: how many times as fast as the other a call would be that took exactly the limit's time.

    ``in_turn``: the same if each phase of the call waited for the end of the one before; ``reached``: the part of the
    limit that ours is at; ``how``: what the limit is made of.
    """

    ratio: float
    in_turn: float
    reached: float
    how: str

    @property
    def is_broken(self) -> bool:
        """Whether ours is faster than the limit, which was disturbed."""
        return self.reached > 1 / BELOW

    @property
    def is_near(self) -> bool:
        """Whether ours is as good as at the limit."""
        return 1 / NEAR <= self.reached <= 1 / BELOW

    def forbids(self, ratio: float) -> bool:
        """Whether nothing could be so many times as fast as the other."""
        return self.ratio < ratio and not self.is_broken

    def __str__(self) -> str:
        if self.is_broken:
            return "no reason: ours is faster than the measured limit, which was disturbed"
        in_turn = f" ({self.in_turn:.2f}× phase by phase)" if self.ratio > APART * self.in_turn else ""
        at_best = f"at its limit, {self.how}, a call would be {self.ratio:.2f}×{in_turn}"
        return f"{at_best}; ours is at {self.reached:.0%} of it"


def allowance(row: Row | None, other: float) -> Allowance | None:
    """What the row's limit allows beside ``other`` seconds. None where there is no limit, or ours was not measured."""
    limit = (row or {}).get("limit") or {}
    ours = (row or {}).get("engines", {}).get(OURS, {}).get("median")
    if ours is None or "peak" not in limit:
        return None
    least = limit["seconds"]
    reading, computing = ("bytes", "bandwidth", "B"), ("flops", "peak", "flop")
    amount, rate, unit = reading if limit["bound"] == "memory" else computing
    how = f"{_scaled(limit[amount], unit)} at {limit[rate] / 1e9:.0f} G{unit}/s"
    return Allowance(other / least, other / limit["in_turn"], least / ours, how)


def _scaled(value: float, unit: str) -> str:
    """Three digits and a prefix."""
    scale, prefix = next(((s, p) for s, p in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if value >= s), (1, ""))
    return f"{value / scale:.3g} {prefix}{unit}"
