"""A user's own file on every engine installed: a call and, where it streams, a step; checked, then timed in turns."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .. import reference
from ..errors import InputError, LstmEngineError, listed
from .engines import (
    FILE_ENGINES,
    Arrays,
    Engine,
    Job,
    MismatchError,
    NotServedError,
    Run,
    checked,
    first_line,
    outputs_of,
    relative_error,
)
from .timing import Settings, interleave, tails
from .verify import INHERENT, definition_of, feasible_shapes, random_feeds, random_tensors

if TYPE_CHECKING:
    from ..graph import Graph
    from ..model import Model

PRECISIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "float32": ("float32", "bfloat16", "int8"),
    "float64": ("float64",),
}
#: What an engine may be off by, as a part of the outputs' range; beyond, it computes something else.
ALLOWED: Final[Mapping[str, float]] = {"float64": 1e-3, "float32": 1e-3, "bfloat16": 0.1, "int8": 0.25}
ENGINES: Final = tuple(e for e in FILE_ENGINES if e.name not in ("lstm_engine_fresh", "lstm_engine_lone"))
OURS: Final = "lstm_engine"
CHECKED_STEPS: Final = 4
TAIL: Final = 0.3  # of an engine's time for calls clocked one by one
SETTLE: Final = 0.004  # seconds between turns of engines with several threads


@dataclass(frozen=True)
class Line:
    """One engine in one precision; seconds a call. ``reason``: why it was not timed."""

    engine: str
    title: str
    precision: str
    median: float | None = None
    q1: float | None = None
    q3: float | None = None
    p99: float | None = None
    error: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Case:
    """A call or a step, with the shapes of what it is fed. ``reason``: why there is none."""

    name: str
    feeds: Mapping[str, tuple[int, ...]]
    lines: tuple[Line, ...] = ()
    reason: str = ""

    def ratio(self, line: Line) -> float | None:
        """How many times this engine is as fast, in the same precision."""
        ours = next((x.median for x in self.lines if x.engine == OURS and x.precision == line.precision), None)
        return None if line.median is None or ours is None else line.median / ours


@dataclass(frozen=True)
class Request:
    """What is asked for: the file, how it was loaded, and for how long to measure.

    ``given``: the keywords of load(); ``feeds``: those of one call, as run() takes them; None for random ones.
    """

    path: Path
    model: Model
    given: Mapping[str, Any] = field(default_factory=dict)
    feeds: Any = None
    seconds: float = 10.0
    seed: int = 0

    @property
    def named(self) -> dict[str, np.ndarray] | None:
        """The feeds by name; one array is that of the only input that must be fed. Raises InputError."""
        if self.feeds is None or isinstance(self.feeds, Mapping):
            return self.feeds if self.feeds is None else dict(self.feeds)
        required = [spec.name for spec in self.model.inputs if not spec.optional]
        if len(required) != 1:
            raise InputError(f"feeds: expected {{name: array}} for inputs {', '.join(required)}, got one array")
        return {required[0]: self.feeds}

    @property
    def precisions(self) -> tuple[str, ...]:
        """The one asked for, or all."""
        chosen = self.given.get("precision")
        return (chosen,) if chosen else PRECISIONS[self.model.element]


def benched(request: Request, progress: Callable[[str, float], None] = lambda name, part: None) -> list[Case]:
    """Both cases, measured. Raises InputError for feeds that do not fit."""
    if not request.seconds > 0:
        raise InputError(f"seconds={request.seconds}: expected a positive number")
    definition = request.model.graph
    if request.path.suffix == ".onnx":
        definition = definition_of(str(request.path), request.given.get("constants"))
    with tempfile.TemporaryDirectory(prefix="lstm-engine-bench-") as folder:
        call = _measured(_call(request, definition, Path(folder)), request, progress)
        step = _step(request, definition, Path(folder))
        return [call, step if isinstance(step, Case) else _measured(step, request, progress)]


def not_installed() -> dict[str, str]:
    """{engine: what installs it} of those that could have been compared."""
    return {engine.title: f"pip install {engine.package}" for engine in ENGINES if engine.missing() is not None}


# --- what is done -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """A job and what must come of it, for all engines alike."""

    name: str
    job: Job
    steps: Sequence[Arrays] | None
    expected: Arrays
    inherent: float = 0.0  # how far the definition is off itself in the file's precision


def _job(request: Request, feeds: Arrays, outputs: Sequence[str], folder: Path) -> Job:
    given = dict(request.given)
    constants = {name: np.asarray(value) for name, value in (given.pop("constants", None) or {}).items()}
    threads = given.pop("threads", None) or 1
    given.pop("precision", None)
    return Job(request.path, feeds, tuple(outputs), folder, constants=constants, threads=threads, loading=given)


def _call(request: Request, definition: Graph, folder: Path) -> _Plan:
    model, feeds = request.model, request.named
    if feeds is None:
        feeds = random_feeds(model.graph, feasible_shapes(model), np.random.default_rng(request.seed))
    model.run(feeds)  # raises for feeds that do not fit
    outputs = _certain(definition, [spec.name for spec in model.outputs])
    complete = reference.completed(definition, feeds)
    exact, near = (_wanted(reference.run(definition, complete, dtype=t), outputs) for t in (np.float64, model.element))
    return _Plan("one call", _job(request, feeds, outputs, folder), None, exact, _between(near, exact))


def _wanted(results: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: np.asarray(results[name]) for name in outputs}


def _between(near: Arrays, exact: Arrays) -> float:
    """The largest relative error of all outputs; 0 where they are no numbers."""
    errors = [relative_error(near[name], exact[name]) for name in exact]
    return max((error for error in errors if np.isfinite(error)), default=0.0)


def _certain(definition: Graph, outputs: Sequence[str]) -> list[str]:
    """The outputs that are not drawn at random. Raises InputError if there are none."""
    found = [name for name in outputs if name not in random_tensors(definition)]
    if not found:
        raise InputError(listed("nothing to compare", ["every output is drawn at random"]))
    return found


def _step(request: Request, definition: Graph, folder: Path) -> _Plan | Case:
    """One step of a stream; a Case that says why there is none."""
    model = request.model
    try:
        lowered = model.streamable(model.graph, 1)
    except LstmEngineError as fault:
        return Case("one step", {}, reason=" ".join(str(fault).split()))
    shapes = {
        port.name: tuple(1 if axis == port.time else size for axis, size in enumerate(port.shape))
        for port in lowered.program.inputs
    }
    states = {
        spec.name: np.zeros([size if isinstance(size, int) else 1 for size in spec.shape or ()], spec.dtype)
        for spec in model.inputs
        if spec.name in dict(model.states)
    }
    everything = shapes | {name: array.shape for name, array in states.items()}
    draw = np.random.default_rng(request.seed)
    steps = [
        {name: _part_of(request.named, name, array) for name, array in drawn.items() if name in shapes}
        for drawn in (random_feeds(model.graph, everything, draw) for _ in range(CHECKED_STEPS))
    ]
    outputs = _certain(definition, [port.name for port in lowered.program.outputs])
    job = _job(request, {**steps[0], **states}, outputs, folder)
    job = replace(job, steps=True, pairs=dict(model.states))
    exact = _stepped(job, steps, definition, np.float64)
    near = _stepped(job, steps, definition, model.element)
    return _Plan("one step", job, steps, exact, _between(near, exact))


def _part_of(feeds: Arrays | None, name: str, like: np.ndarray) -> np.ndarray:
    """What the user feeds, as much of it as a step takes; ``like`` where that is too little."""
    array = None if feeds is None else feeds.get(name)
    if array is None or array.ndim != like.ndim or any(a < b for a, b in zip(array.shape, like.shape, strict=True)):
        return like
    return np.ascontiguousarray(array[tuple(slice(size) for size in like.shape)])


def _stepped(job: Job, steps: Sequence[Arrays], definition: Graph, dtype: Any) -> dict[str, np.ndarray]:
    """The definition's outputs in a precision, states carried; this engine's where the file has no states to carry."""
    if not job.pairs:
        return outputs_of(ENGINES[0].prepare(job), steps)
    carried = {name: job.feeds[name] for name in job.pairs}
    found = []
    for feeds in steps:
        results = reference.run(definition, reference.completed(definition, {**feeds, **carried}), dtype=dtype)
        found.append(_wanted(results, job.outputs))
        carried = {name: np.asarray(results[output]) for name, output in job.pairs.items()}
    return {name: np.stack([results[name] for results in found]) for name in job.outputs}


# --- measuring --------------------------------------------------------------------------------------------------------


def _measured(plan: _Plan, request: Request, progress: Callable[[str, float], None]) -> Case:
    engines = [engine for engine in ENGINES if engine.missing() is None]
    if request.path.suffix != ".onnx":
        engines = [engine for engine in engines if engine.ours]
    runs: dict[tuple[str, str], Run] = {}
    lines: dict[tuple[str, str], Line] = {}
    for precision, engine in itertools.product(request.precisions, engines):
        if precision not in engine.precisions:
            continue
        key = engine.name, precision
        progress(f"{plan.name}: checking {engine.title}", 0.0)
        runs[key], lines[key] = _checked(engine, plan, precision)
        if lines[key].reason:
            del runs[key]
    loops = {" ".join(key): run.loop for key, run in runs.items()}
    settle = SETTLE if plan.job.threads > 1 else 0.0
    budget = request.seconds / 2
    settings = Settings(0.001, (1 - TAIL) * budget, 5, 1000, 20_000, TAIL * budget / max(1, len(loops)), 0, 0)
    summaries = interleave(loops, settings, lambda part: progress(f"{plan.name}: timing", part), settle)
    rare = tails(loops, settings, settle=settle) if plan.steps is not None else {}
    for key in runs:
        name = " ".join(key)
        found, p99 = summaries[name], rare[name].p99 if rare else None
        lines[key] = replace(lines[key], median=found.median, q1=found.q1, q3=found.q3, p99=p99)
    return Case(plan.name, {name: array.shape for name, array in plan.job.data.items()}, tuple(lines.values()))


def _checked(engine: Engine, plan: _Plan, precision: str) -> tuple[Any, Line]:
    line = Line(engine.name, engine.title, precision)
    allowed = max(ALLOWED[precision], INHERENT * plan.inherent)
    try:
        run = engine.prepare(replace(plan.job, precision=precision))
        return run, replace(line, error=checked(run, plan.steps, plan.expected, allowed))
    except NotServedError as fault:
        return None, replace(line, reason=str(fault))
    except MismatchError as fault:
        return None, replace(line, error=fault.error, reason=f"WRONG: {fault}")
    except Exception as fault:  # other engines' errors have no common type, and some come with the first call
        if engine.ours:
            raise
        return None, replace(line, reason=first_line(fault))


@contextmanager
def timing_bar(console: Console | None) -> Iterator[Callable[[str, float], None]]:
    """What benched() reports to: a bar on a terminal's console, nothing without one.

    It is drawn when it is told something and at no other time: nothing runs beside work that is timed.
    """
    if console is None:
        yield lambda words, part: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:48}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=1.0)
        drawn = [0.0]

        def report(words: str, part: float) -> None:
            if monotonic() - drawn[0] > 0.2:
                drawn[0] = monotonic()
                bar.update(task, description=words, completed=part, refresh=True)

        yield report


# --- showing ----------------------------------------------------------------------------------------------------------


def document(request: Request, cases: Sequence[Case]) -> dict[str, Any]:
    """All of it, for programs: seconds, and how many times each engine's time is ours."""
    shown = []
    for case in cases:
        lines = [asdict(line) | {"ratio": case.ratio(line)} for line in case.lines]
        feeds = {name: list(shape) for name, shape in case.feeds.items()}
        shown.append({"case": case.name, "feeds": feeds, "reason": case.reason, "engines": lines})
    return {"model": str(request.path), "cases": shown, "not_installed": not_installed()}


def shown(request: Request, cases: Sequence[Case]) -> RenderableType:
    """Tables, for people: 80 columns."""
    return Group(*_parts(request, cases))


def _parts(request: Request, cases: Sequence[Case]) -> Iterator[RenderableType]:
    for case in cases:
        fed = ", ".join(f"{name}{list(shape)}" for name, shape in case.feeds.items())
        yield Text.assemble((case.name, "bold"), f": {fed}" if fed else "")
        if case.reason:
            yield Text(f"  none: {case.reason}\n", "yellow")
            continue
        yield _table(case)
        told = [line for line in case.lines if line.reason and not _idle_way(line)]
        for reason in dict.fromkeys(line.reason for line in told):
            lines = [f"{line.title} ({line.precision})" for line in told if line.reason == reason]
            yield Text(f"{', '.join(lines)}: {reason}")
        yield Text("")
    if request.path.suffix != ".onnx":
        yield Text("The other engines read .onnx files only.")
        return
    for title, command in not_installed().items():
        yield Text(f"{title} is not installed: {command}")


def _idle_way(line: Line) -> bool:
    """Whether a line is another way to use this engine, one that does not apply here: no news to a reader."""
    ways = {engine.name for engine in ENGINES if engine.ours} - {OURS}
    return line.engine in ways and line.error is None


def _table(case: Case) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    stepped = any(line.p99 is not None for line in case.lines)
    headings = ["engine", "precision", "µs", "±", *["p99"] * stepped, "to ours", "error"]
    for heading in headings:
        table.add_column(heading, justify="left" if heading in headings[:2] else "right", no_wrap=True)
    for line in case.lines:
        if line.median is None or line.q1 is None or line.q3 is None:
            continue
        ratio = case.ratio(line)
        ours = line.engine == OURS
        faster = ratio is not None and ratio < 1
        style = "bold" if ours else "yellow" if faster else ""
        spread = 50 * (line.q3 - line.q1) / line.median
        rare = [] if line.p99 is None else [_microseconds(line.p99)]
        against = "" if ours or ratio is None else f"{ratio:.2f}×"
        numbers = [_microseconds(line.median), f"{spread:.0f} %", *rare, against, f"{line.error:.0e}"]
        table.add_row(line.title, line.precision, *numbers, style=style)
    return table


def _microseconds(seconds: float) -> str:
    """Three digits that matter."""
    value = seconds * 1e6
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
