"""What a network did with a text or with readings, as a page: the command ``explain``."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import InputError, LstmEngineError, listed
from ..generation import Sampler, Vocabulary, generate, score_meaning
from ..pages.walk import Candidates, Signal, Walk
from ..program.plan import lower_run, probe_shapes
from ..program.program import Port
from ..trace import Trace, joined, recorder
from .labelled import Labelled, findings

if TYPE_CHECKING:
    from ..graph import TensorSpec
    from ..model import Model

LENGTH: Final = 200  # steps, where nothing else says how many
_TEMPERATURE: Final = 0.7
_SHOWN: Final = 8  # candidates a step
_MADE_UP: Final = "These readings are made up: waves that swell, rest and return. --input shows your own."
_PERIODS: Final = (23, 37, 61, 11)  # steps, of the made-up signals


@dataclass(frozen=True)
class Request:
    """What to show. ``text``: to read; ``prompt``: to go on from, ``length`` tokens far; ``feeds``: readings [T, width]
    or arrays by name; ``labelled``: texts with labels; ``layers``: names, none for all."""

    text: str | None = None
    prompt: str | None = None
    length: int = LENGTH
    feeds: Any = None
    layers: Sequence[str] = ()
    labelled: Labelled | None = None


def explained(model: Model, request: Request) -> Walk:
    """Run a model and put together what its page shows.

    Raises InputError for what does not fit the model; what the run raises.
    """
    vocabulary = Vocabulary.of(model)
    tokens = _token_input(model)
    notes: list[str] = []
    if request.labelled is not None:
        return _with_labels(model, request, request.labelled, vocabulary, tokens)
    if request.feeds is not None:
        if by_frames(model) and not isinstance(request.feeds, Mapping):
            return _page_of_frames(model, request)
        feeds = _as_feeds(model, request.feeds)
    elif tokens is not None and vocabulary is not None:
        ids, notes = _ids(model, vocabulary, request)
        feeds = {tokens.name: _shaped(model, tokens, np.array(ids)[:, None])}
    else:
        _refuse_words(model, request, vocabulary)
        if by_frames(model):
            return _page_of_frames(model, request)
        feeds, notes = _made_up(model, request.length)
    trace = model.trace(feeds)
    return _with_tokens(_page_of(model, trace, request, notes), model, trace, vocabulary, tokens)


def _with_labels(
    model: Model, request: Request, labelled: Labelled, vocabulary: Vocabulary | None, tokens: TensorSpec | None
) -> Walk:
    """The page of a labelled text: its labels along the axis, and which units carry them."""
    if vocabulary is None or tokens is None:
        raise InputError(f"--labels: {model.graph.origin} reads no words")
    trace = model.trace({tokens.name: _shaped(model, tokens, np.array(labelled.ids(vocabulary))[:, None])})
    walk = _with_tokens(_page_of(model, trace, request, ()), model, trace, vocabulary, tokens)
    return replace(walk, tracks=labelled.tracks, findings=findings(model, trace, labelled, vocabulary))


def _page_of(model: Model, trace: Trace, request: Request, notes: Sequence[str]) -> Walk:
    if not trace:
        why = "; ".join(f"'{name}': {reason}" for name, reason in trace.missing.items())
        more = f" ({why})" if why else ""
        raise InputError(f"{model.graph.origin}: it has no LSTM, GRU or RNN layer to explain{more}")
    name = Path(model.graph.origin).name
    walk = trace.walk(list(request.layers) or None, title=f"What {name} did")
    return replace(walk, about=[("model", model.graph.origin), *walk.about], notes=[*notes, *walk.notes])


# --- what is fed -----------------------------------------------------------------------------------------------------


def _data_inputs(model: Model) -> list[TensorSpec]:
    carried = {name for name, _ in model.states}
    return [spec for spec in model.inputs if spec.name not in carried and not spec.optional]


def _token_input(model: Model) -> TensorSpec | None:
    """The one input, if it takes ids."""
    data = _data_inputs(model)
    return data[0] if len(data) == 1 and data[0].dtype.kind in "iu" else None


def _refuse_words(model: Model, request: Request, vocabulary: Vocabulary | None) -> None:
    """Raise InputError if text is given to a model that reads none."""
    given = [f"--{name}" for name in ("text", "prompt") if getattr(request, name) is not None]
    if given:
        why = "carries no vocabulary" if vocabulary is None else "takes no token ids"
        raise InputError(f"{', '.join(given)}: {model.graph.origin} {why}; give its readings with --input")


def _ids(model: Model, vocabulary: Vocabulary, request: Request) -> tuple[list[int], list[str]]:
    """The tokens to read, and what to say of where they come from."""
    if request.text is not None:
        ids = vocabulary.encode(request.text)
        if not ids:
            raise InputError("--text: it is empty")
        return ids, []
    start = vocabulary.encode(request.prompt) if request.prompt else [vocabulary.boundary or 0]
    sampler = Sampler(_TEMPERATURE, seed=0)
    ids = [*start, *generate(model.stream(), start, max_tokens=request.length, sampler=sampler, stop=())]
    said = f"the prompt {request.prompt!r}" if request.prompt else "the beginning of a text"
    return ids, [f"The model wrote this text itself, from {said}, at temperature {_TEMPERATURE}; --text shows yours."]


def _made_up(model: Model, length: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Signals for a model whose readings nobody gave: waves that swell, rest and return."""
    feeds = {}
    for spec in _data_inputs(model):
        if spec.dtype.kind != "f":
            raise InputError(
                f"{model.graph.origin}: nothing can be made up for '{spec}'; give arrays with --input in.npz"
                " (or an input that never changes with --constants)"
            )
        if _port(model, spec).time is None:
            sizes = [size if isinstance(size, int) else 1 for size in spec.shape or ()]
            feeds[spec.name] = _waves(math.prod(sizes[:-1]), sizes[-1] if sizes else 1).reshape(sizes)
            continue
        time, width = _form(model, spec)
        steps = spec.shape[time] if spec.shape is not None and isinstance(spec.shape[time], int) else length
        feeds[spec.name] = _shaped(model, spec, _waves(int(steps or length), width))
    return feeds, [_MADE_UP]


def _waves(steps: int, width: int) -> np.ndarray:
    """[T,width] between -1 and 1."""
    t = np.arange(steps)[:, None]
    periods = np.array([_PERIODS[k % len(_PERIODS)] * (1 + k // len(_PERIODS)) for k in range(width)])
    swelling = np.clip(np.sin(2 * np.pi * t / max(steps, 2) * 2), 0, None)
    return np.asarray(swelling * np.sin(2 * np.pi * t / periods))


def _as_feeds(model: Model, given: Any) -> Any:
    """Arrays as they are; readings [T,width] in the form of the one input."""
    if isinstance(given, Mapping):
        names = {spec.name for spec in model.inputs}
        sole = len(given) == 1 and not set(given) & names
        return _as_feeds(model, next(iter(given.values()))) if sole else given
    data = _data_inputs(model)
    if len(data) != 1:
        wanted = "; ".join(map(str, data)) or "none"
        raise InputError(f"--input: one array is too few for the inputs {wanted}; give an .npz with an array for each")
    spec, array = data[0], np.atleast_1d(given)
    if array.ndim == len(spec.shape or ()) and (array.ndim != 2 or array.shape[1] != _form(model, spec)[1]):
        return {spec.name: array}
    return {spec.name: _shaped(model, spec, array if array.ndim == 2 else array.reshape(len(array), -1))}


def _port(model: Model, spec: TensorSpec) -> Port:
    """How an input's axes lie: which is time, which are the batch. Raises InputError where that cannot be told."""
    try:
        lowered = lower_run(model.graph, probe_shapes(model.graph), model.store, model.means)
    except LstmEngineError as fault:
        raise InputError(f"'{spec}': what fits it cannot be told ({fault}); give arrays with --input in.npz") from fault
    return next(port for port in lowered.program.inputs if port.name == spec.name)


def _form(model: Model, spec: TensorSpec) -> tuple[int, int]:
    """The axis that is time, and how many numbers a step has."""
    port = _port(model, spec)
    if port.time is None:
        raise InputError(f"'{spec}': it has no axis that is time, so rows are not its steps; give arrays in an .npz")
    sizes = [size for axis, size in enumerate(spec.shape or ()) if axis != port.time and axis not in port.batch]
    open_sizes = [size for size in sizes if not isinstance(size, int)]
    if open_sizes:
        raise InputError(f"'{spec}': it leaves open how many numbers a step has; give an array with --input in.npz")
    return port.time, math.prod(int(size or 0) for size in sizes)


def _shaped(model: Model, spec: TensorSpec, rows: np.ndarray) -> np.ndarray:
    """Rows [T,width] in the shape of an input, with a batch of one."""
    time, width = _form(model, spec)
    if rows.shape[1] != width:
        raise InputError(f"'{spec}': expected {width} numbers a step, got {rows.shape[1]}")
    port = _port(model, spec)
    batch = [size if isinstance(size, int) else 1 for axis, size in enumerate(spec.shape or ()) if axis in port.batch]
    repeated = np.broadcast_to(rows[:, None], (len(rows), math.prod(batch), width))
    rest = [axis for axis in range(len(spec.shape or ())) if axis != time and axis not in port.batch]
    sizes = [int(spec.shape[axis] or 0) for axis in rest]  # type: ignore[index]
    front = (time, *port.batch, *rest)
    array = repeated.reshape(len(rows), *batch, *sizes)
    return np.ascontiguousarray(np.moveaxis(array, range(len(front)), front), spec.dtype)


# --- frames ----------------------------------------------------------------------------------------------------------


def by_frames(model: Model) -> bool:
    """Whether a call is one step: one input of real numbers without an axis that is time, and states to carry on."""
    data = _data_inputs(model)
    if len(data) != 1 or data[0].dtype.kind != "f" or not model.states:
        return False
    return all(isinstance(size, int) for size in (data[0].shape or ())[1:]) and _port(model, data[0]).time is None


def _page_of_frames(model: Model, request: Request) -> Walk:
    """The page of a model that takes a frame a call: its states carried from each call to the next."""
    (spec,) = _data_inputs(model)
    frame = [size if isinstance(size, int) else 1 for size in spec.shape or ()]
    width = math.prod(frame)
    rows = _waves(request.length, width) if request.feeds is None else np.atleast_1d(request.feeds)
    rows = rows.reshape(len(rows), -1)
    if rows.shape[1] != width or not len(rows):
        raise InputError(f"'{spec}': expected rows of {width} numbers, one for each frame, got {list(rows.shape)}")
    frames = rows.reshape(len(rows), *frame).astype(spec.dtype)
    traces = list(_frames(model, spec.name, frames))
    outputs = [name for name in traces[0].outputs if name not in dict(model.states).values()]
    walk = _page_of(model, joined(traces), request, [_MADE_UP] if request.feeds is None else [])
    results = {name: np.stack([trace.outputs[name] for trace in traces]) for name in outputs}
    curves = [signal for name, values in results.items() for signal in _columns(name, values)]
    return replace(walk, inputs=_columns(spec.name, rows), outputs=curves)


def _frames(model: Model, name: str, frames: np.ndarray) -> Iterator[Trace]:
    """The trace of each call, its states those that the call before left."""
    first = model.trace({name: frames[0]})
    record = recorder(model.graph, first.feeds, model.outputs, model.store, model.means)
    trace = first
    for frame in frames:
        carried = {} if trace is first else {source: trace.outputs[target] for source, target in model.states}
        trace = record({**first.feeds, **carried, name: frame})
        yield trace


def _columns(name: str, values: np.ndarray) -> list[Signal]:
    """The curves of an array [T, …] of one row."""
    flat = values.reshape(len(values), -1)
    return [Signal(name if flat.shape[1] == 1 else f"{name}[{k}]", flat[:, k : k + 1]) for k in range(flat.shape[1])]


def read_csv(path: Path) -> np.ndarray:
    """Readings from a file of numbers: a step a line, a line of names above them if there is one. [T, width]

    Raises InputError naming the line that cannot be read.
    """
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        lines = [(number, line) for number, line in enumerate(csv.reader(file), 1) if any(map(str.strip, line))]
    if lines and not any(map(_is_number, lines[0][1])):
        lines = lines[1:]
    if not lines:
        raise InputError(f"{path}: expected a line of numbers for each step, found none")
    width = len(lines[0][1])
    faults = [_line_fault(number, fields, width) for number, fields in lines]
    if any(faults):
        raise InputError(listed(str(path), [fault for fault in faults if fault]))
    return np.array([[float(field) for field in fields] for _, fields in lines])


def _line_fault(number: int, fields: Sequence[str], width: int) -> str:
    if len(fields) != width:
        return f"line {number}: expected {width} numbers, got {len(fields)}"
    wrong = next((field for field in fields if not _is_number(field)), None)
    return "" if wrong is None else f"line {number}: {wrong[:40]!r} is no number"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# --- tokens ----------------------------------------------------------------------------------------------------------


def _with_tokens(
    walk: Walk, model: Model, trace: Trace, vocabulary: Vocabulary | None, tokens: TensorSpec | None
) -> Walk:
    """A token model's page: the text along the axis, and what could have come next at each step."""
    fed = None if tokens is None else trace.over_time(tokens.name)
    if fed is None or not walk.layers or fed.shape != (*next(iter(walk.layers[0].arrays.values())).shape[:2], 1):
        return walk
    ids = fed[:, :, 0].astype(np.int64)
    joined = vocabulary is not None and vocabulary.unit != "word"
    if vocabulary is not None:
        labels = [[_text(vocabulary, token) for token in step] for step in ids.tolist()]
        walk = replace(walk, labels=labels, joined=joined)
    found = _scores(model, trace, ids.shape)
    if found is None:
        return walk
    candidates = _candidates(found, ids, vocabulary)
    likelihood = Signal("probability of the next token", candidates.likelihood)
    return replace(walk, candidates=candidates, inputs=(), outputs=(likelihood,))


def _text(vocabulary: Vocabulary | None, token: int) -> str:
    return vocabulary.tokens[token] if vocabulary is not None and token < len(vocabulary) else str(token)


def _scores(model: Model, trace: Trace, form: tuple[int, ...]) -> np.ndarray | None:
    """The probabilities [T,B,V] of the one output that scores tokens, if there is one."""
    carried = {target for _, target in model.states}
    names = [name for name, array in trace.outputs.items() if name not in carried and array.dtype.kind == "f"]
    scores = trace.over_time(names[0]) if len(names) == 1 else None
    if scores is None or scores.shape[:2] != form or scores.shape[2] < 2:
        return None
    values = scores.astype(np.float64)
    if score_meaning(model.graph, names[0]) == "probabilities":
        return values
    values = np.exp(values - values.max(axis=2, keepdims=True))
    return np.asarray(values / values.sum(axis=2, keepdims=True))


def _candidates(probabilities: np.ndarray, ids: np.ndarray, vocabulary: Vocabulary | None) -> Candidates:
    """The likeliest tokens behind each step, and the one that came."""
    best = np.argsort(-probabilities, axis=2, kind="stable")[:, :, :_SHOWN]
    following = ids[1:]
    known = following < probabilities.shape[2]
    told = np.take_along_axis(probabilities[:-1], np.where(known, following, 0)[:, :, None], axis=2)[:, :, 0]
    likelihood = np.concatenate([np.where(known, told, 0.0), np.full((1, ids.shape[1]), np.nan)])
    words = [[[_text(vocabulary, token) for token in row] for row in step] for step in best.tolist()]
    follows = [[_text(vocabulary, token) for token in step] for step in following.tolist()] + [[""] * ids.shape[1]]
    return Candidates(words, np.take_along_axis(probabilities, best, axis=2), follows, likelihood)
