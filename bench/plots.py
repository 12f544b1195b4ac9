"""Pictures of results, each for light pages and for dark ones: a step against hidden units, and how many times faster.

Colours are few: this engine's, and one for each other family of engines; every line is named where it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path
from statistics import mean
from typing import Any, Final

from .engines import ENGINES
from .measure import OURS
from .report import PICTURES, SUMMARY, ReportError, described, fastest_peer, validated
from .workloads import WORKLOADS


@dataclass(frozen=True)
class Theme:
    """The colours of a page: its ink, what stays in the background, and each family of engines."""

    suffix: str
    paper: str
    ink: str
    faint: str
    ours: str
    lost: str
    families: Mapping[str, str]


LIGHT: Final = Theme(
    "",
    "#ffffff",
    "#1f2328",
    "#d0d7de",
    "#c2410c",
    "#6e7781",
    {"onnxruntime": "#1d6fb8", "openvino": "#15803d", "torch": "#8250df", "numpy": "#7a7f87"},
)
DARK: Final = Theme(
    "-dark",
    "#0d1117",
    "#e6edf3",
    "#30363d",
    "#ff8a4c",
    "#8b949e",
    {"onnxruntime": "#58a6ff", "openvino": "#3fb950", "torch": "#bc8cff", "numpy": "#9aa4af"},
)
#: The lines of the first picture: one an engine; the better of two ways where an engine has two.
LINES: Final = (OURS, "onnxruntime_bound", "openvino", "torch_cell", "torch", "numpy")
TITLES: Final = {
    "onnxruntime_bound": "onnxruntime (I/O binding)",
    "torch_cell": "PyTorch LSTMCell",
    "torch": "PyTorch LSTM",
}
LABEL_GAP: Final = 0.042  # of the axis, least distance between two labels


def draw(document: Mapping[str, Any], folder: Path, form: str) -> Iterator[Path]:
    """Write every picture that the rows are enough for; their paths."""
    rows = {row["workload"]: row for row in validated(document)["rows"]}
    made = 0
    for name, picture in zip(PICTURES, (_steps, _ratios), strict=True):
        for theme in (LIGHT, DARK):
            figure = picture(rows, theme)
            if figure is not None:
                path = folder / f"{name}{theme.suffix}.{form}"
                metadata = {"Date": None} if form == "svg" else None  # the same results give the same file
                figure.savefig(path, dpi=160, facecolor=theme.paper, metadata=metadata)
                made += 1
                yield path
    if not made:
        raise ReportError("no rows to draw: neither steps nor any of the summary's")


# --- a step against hidden units --------------------------------------------------------------------------------------


def _steps(rows: Mapping[str, Mapping[str, Any]], theme: Theme) -> Any:
    from matplotlib.figure import Figure

    chosen = [rows[name] for name in rows if name in WORKLOADS and name == f"step-h{rows[name]['shape']['H']}"]
    chosen = sorted(chosen, key=lambda row: row["shape"]["H"])
    if not chosen:
        return None
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    sizes = [row["shape"]["H"] for row in chosen]
    limits = [1e6 * row["limit"]["seconds"] for row in chosen]
    labels = [("the machine's limit", limits[-1], theme.ink, False)]
    axes.plot(sizes, limits, linestyle=(0, (4, 3)), color=theme.ink, linewidth=1)
    for name in LINES:
        points = [(row["shape"]["H"], row["engines"][name]) for row in chosen if name in row["engines"]]
        if not points:
            continue
        colour = _colour(name, theme)
        widths = [H for H, _ in points]
        medians = [1e6 * result["median"] for _, result in points]
        ours = name == OURS
        style = {"linestyle": (0, (1, 1.2))} if name == "torch" else {}
        axes.plot(widths, medians, color=colour, linewidth=2.6 if ours else 1.3, zorder=3 if ours else 2, **style)
        axes.scatter(widths, medians, s=26 if ours else 10, color=colour, zorder=4 if ours else 2, linewidths=0)
        labels.append((TITLES.get(name, ENGINES[name].title), medians[-1], colour, ours))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(sizes[0] / 1.2, sizes[-1] * 1.06)
    axes.set_xticks(sizes, [str(H) for H in sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(_amount)
    axes.set_xlabel("hidden units H, and as many inputs")
    _dress(axes, theme)
    axes.grid(True, axis="y", linewidth=0.6, color=theme.faint)
    _title(axes, theme, "One LSTM step", "µs from call to return, batch 1, float32, one thread; both axes logarithmic")
    low, high = (log10(end) for end in axes.get_ylim())
    places = _apart([log10(label[1]) for label in labels], LABEL_GAP * (high - low))
    for (text, _, colour, bold), place in zip(labels, places, strict=True):
        axes.annotate(
            text,
            (sizes[-1], 10**place),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
            fontweight="bold" if bold else "normal",
            annotation_clip=False,
        )
    return figure


def _amount(value: float, place: object = None) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _colour(name: str, theme: Theme) -> str:
    return theme.ours if name.startswith(OURS) else theme.families[name.split("_")[0]]


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """The places moved as little as can be until none is nearer to the next than ``gap``.

    Less ``gap`` times their rank they only have to rise: neighbours that fall share their mean, until none do.
    """
    order = sorted(range(len(places)), key=lambda k: places[k])
    blocks: list[list[float]] = []
    for rank, k in enumerate(order):
        blocks.append([places[k] - rank * gap])
        while len(blocks) > 1 and mean(blocks[-2]) > mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    levels = [mean(block) for block in blocks for _ in block]
    moved = dict(zip(order, (level + rank * gap for rank, level in enumerate(levels)), strict=True))
    return [moved[k] for k in range(len(places))]


# --- how many times faster --------------------------------------------------------------------------------------------


def _ratios(rows: Mapping[str, Mapping[str, Any]], theme: Theme) -> Any:
    """A bar a workload of the summary, 1 being the fastest other engine, named beside it."""
    from matplotlib.figure import Figure

    chosen = [rows[name] for name in SUMMARY if name in rows and OURS in rows[name]["engines"]]
    bars = [(row, other) for row in chosen if (other := fastest_peer(row)) is not None]
    if not bars:
        return None
    ratios = [row["engines"][other]["median"] / row["engines"][OURS]["median"] for row, other in bars]
    figure = Figure(figsize=(8.4, 1.5 + 0.27 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(bars))
    axes.barh(places, [ratio - 1 for ratio in ratios], left=1, height=0.62, color=[
        theme.ours if ratio >= 1 else theme.lost for ratio in ratios
    ])  # fmt: skip
    axes.axvline(1, color=theme.ink, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(min(0.8, *ratios) / 1.1, max(*ratios, 2) * 2.4)
    ticks = [tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16, 32) if axes.get_xlim()[0] < tick < max(*ratios, 2) * 1.2]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(places, [described(WORKLOADS[row["workload"]]) for row, _ in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    _dress(axes, theme)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    axes.grid(True, axis="x", linewidth=0.6, color=theme.faint)
    for place, ratio, (_, other) in zip(places, ratios, bars, strict=True):
        text = f"{ratio:.2f}×  {ENGINES[other].title}" if ratio < 10 else f"{ratio:.0f}×  {ENGINES[other].title}"
        axes.annotate(text, (max(ratio, 1), place), xytext=(6, 0), textcoords="offset points", va="center",
                      color=theme.ink, fontsize=8.5)  # fmt: skip
    _title(axes, theme, "Times as fast as the fastest other engine", "1× is that engine, named at the bar; logarithmic")
    return figure


def _dress(axes: Any, theme: Theme) -> None:
    """The theme's colours, and no frame."""
    axes.set_facecolor(theme.paper)
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.faint)
    axes.tick_params(colors=theme.ink, labelsize=9)
    axes.tick_params(axis="both", color=theme.faint)
    axes.xaxis.label.set_color(theme.ink)


def _title(axes: Any, theme: Theme, title: str, more: str) -> None:
    axes.set_title(title, loc="left", color=theme.ink, fontsize=13, fontweight="bold", pad=24)
    axes.annotate(more, (0, 1), xytext=(0, 9), xycoords="axes fraction", textcoords="offset points", color=theme.ink,
                  fontsize=9, alpha=0.8)  # fmt: skip
