"""A picture of the step rows: µs against hidden units, every engine and the limit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .engines import ENGINES
from .report import OURS, ReportError, validated

COLOURS: Final = {
    "lstm_engine": "#c0392b",
    "lstm_engine_fresh": "#e59866",
    "onnxruntime": "#2471a3",
    "onnxruntime_bound": "#5dade2",
    "numpy": "#7d8a97",
    "openvino": "#1e8449",
    "torch": "#8e6bbf",
}


def plot(document: Mapping[str, Any], path: Path) -> None:
    """Write the picture; its format is the path's suffix."""
    from matplotlib.figure import Figure

    rows = [row for row in validated(document)["rows"] if row["kind"] == "step"]
    if not rows:
        raise ReportError("no step rows to draw")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, engine in ENGINES.items():
        points = [(row["shape"]["H"], row["engines"][name]) for row in rows if name in row["engines"]]
        if points:
            sizes = [H for H, _ in points]
            ours = name == OURS
            axes.plot(
                sizes,
                [1e6 * result["median"] for _, result in points],
                marker="o",
                markersize=4,
                linewidth=2.4 if ours else 1.3,
                color=COLOURS.get(name),
                label=engine.title,
                zorder=3 if ours else 2,
            )
            axes.fill_between(
                sizes,
                [1e6 * result["q1"] for _, result in points],
                [1e6 * result["q3"] for _, result in points],
                color=COLOURS.get(name),
                alpha=0.15,
                linewidth=0,
            )
    limits = [(row["shape"]["H"], 1e6 * row["limit"]["seconds"]) for row in rows]
    axes.plot(*zip(*limits, strict=True), linestyle="--", color="black", linewidth=1, label="the machine's limit")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([H for H, _ in limits], [str(H) for H, _ in limits])
    axes.set_xlabel("hidden units H (inputs the same)")
    axes.set_ylabel("µs a step")
    axes.set_title("One LSTM step, batch 1, one core", loc="left")
    axes.grid(True, which="major", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=160)
