"""Files that exporters wrote (tests/exporters), against what onnxruntime returned for them."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from exporters.golden import Arrays, Entry, difference, entries

import lstm_engine as le

ENTRIES = entries()
RUN = [entry for entry in ENTRIES if not entry.refused]
STREAMED = [entry for entry in RUN if entry.stream]

#: what does not run yet: pattern of writer/name → why
NOT_RUN: dict[str, str] = {}
#: what runs but does not stream as it should
NOT_STREAMED = {
    "keras?/*masking*": "a cell in a Loop whose steps a mask holds back is not recognised as a layer",
    "keras?/embedding_mask_zero*": "a cell in a Loop whose steps a mask holds back is not recognised as a layer",
    "torch_legacy/loop_of_cells-13": "a Loop that collects its steps in a sequence is not recognised as a layer",
}


def known(entry: Entry, table: dict[str, str]) -> str | None:
    return next((why for pattern, why in table.items() if fnmatch.fnmatch(str(entry), pattern)), None)


def marked(found: list[Entry], *tables: dict[str, str]) -> list[Any]:
    """Parameters, those in the tables as strict expected failures."""
    params = []
    for entry in found:
        why = next((w for table in tables if (w := known(entry, table))), None)
        marks = [pytest.mark.xfail(strict=True, reason=why)] if why else []
        params.append(pytest.param(entry, id=str(entry), marks=marks))
    return params


def assert_close(entry: Entry, got: Arrays, expected: Arrays) -> None:
    assert list(got) == list(expected)
    for name, x in expected.items():
        assert got[name].shape == x.shape, name
        if x.dtype.kind in "iub":
            np.testing.assert_array_equal(got[name], x, err_msg=name)
        else:
            np.testing.assert_array_equal(np.isnan(got[name]), np.isnan(x), err_msg=name)
            assert difference(got[name], x) < entry.tolerance, name


@pytest.mark.parametrize("entry", marked(RUN, NOT_RUN))
def test_it_gives_what_onnxruntime_gave(entry: Entry) -> None:
    with refusal(entry):
        model = model_of(entry)
        for feeds, expected in entry.recordings():
            assert_close(entry, model.run(feeds), expected)


_MODELS: dict[str, le.Model] = {}


def model_of(entry: Entry) -> le.Model:
    """The model, loaded once for all its tests."""
    if str(entry) not in _MODELS:
        _MODELS[str(entry)] = le.load(entry.path, states=entry.states or None)
    return _MODELS[str(entry)]


@contextlib.contextmanager
def refusal(entry: Entry) -> Iterator[None]:
    """What is no valid file may be refused."""
    try:
        yield
    except le.LstmEngineError as fault:
        if entry.invalid:
            pytest.skip(f"refused: {fault}")
        raise


@pytest.mark.parametrize("entry", [pytest.param(e, id=str(e)) for e in ENTRIES if e.refused])
def test_it_is_refused(entry: Entry) -> None:
    with pytest.raises((le.LstmEngineError, OSError), match=entry.refused):  # noqa: PT012
        model = le.load(entry.path)
        for feeds, _ in entry.recordings():
            model.run(feeds)


@pytest.mark.parametrize("entry", marked(STREAMED, NOT_RUN, NOT_STREAMED))
def test_it_streams_the_same(entry: Entry) -> None:
    """A stream fed a sequence gives every step's outputs, or the last step's, and the states; or says why it cannot."""
    with refusal(entry):
        model = model_of(entry)
    if entry.stream == "no":
        feeds, _ = next(entry.recordings())
        with pytest.raises(le.StreamingError) as caught:
            model.stream(batch=size_of(entry, feeds, "B") or 1)
        assert len(str(caught.value)) > 20
        return
    for feeds, expected in entry.recordings():
        check_stream(entry, model, feeds, expected)


def check_stream(entry: Entry, model: le.Model, feeds: Arrays, expected: Arrays) -> None:
    pairs = dict(model.states)
    constants = {name: feeds[name] for name in entry.constants}
    stream = model.stream(batch=size_of(entry, feeds, "B") or 1, constants=constants or None)
    data = {name: x for name, x in feeds.items() if name not in pairs and name not in constants}
    results = {name: x for name, x in expected.items() if name not in pairs.values()}
    start(stream, {name: feeds[name] for name in pairs})
    steps = [named(stream.step(step), stream) for step in steps_of(entry, stream, data)]
    for name, x in results.items():
        axis = time_axis(x, len(steps)) if entry.stream == "steps" else None
        wanted = [x] if axis is None else list(np.moveaxis(x, axis, 0))
        for step, y in zip(steps[-len(wanted) :], wanted, strict=True):
            assert difference(step[name].reshape(y.shape), y) < entry.tolerance, name
    for source, output in pairs.items():
        carried = stream.state.arrays[source]
        assert difference(carried.reshape(expected[output].shape), expected[output]) < entry.tolerance, source
    if size_of(entry, feeds, "T"):
        start(stream, {name: feeds[name] for name in pairs})
        assert_chunk_is_steps(named(stream.feed(data), stream), steps)


def assert_chunk_is_steps(chunk: Arrays, steps: list[Arrays]) -> None:
    """A chunk gives the very bits of its steps."""
    for name, whole in chunk.items():
        axis = time_axis(whole, len(steps))
        assert axis is not None
        for t, step in enumerate(steps):
            np.testing.assert_array_equal(np.take(whole, t, axis).reshape(step[name].shape), step[name], err_msg=name)


def named(result: Any, stream: le.Stream) -> Arrays:
    return result if isinstance(result, dict) else {stream.outputs[0].name: result}


def size_of(entry: Entry, feeds: Arrays, letter: str) -> int | None:
    """How many rows (B) or steps (T) the feeds have; None where the model has no such axis."""
    return next((feeds[n].shape[axes.index(letter)] for n, axes in entry.axes.items() if letter in axes), None)


def time_axis(x: np.ndarray, steps: int) -> int | None:
    return x.shape.index(steps) if steps in x.shape else None


def steps_of(entry: Entry, stream: le.Stream, data: Arrays) -> Iterator[Arrays]:
    """The feeds of each step, in the shapes that the stream takes."""
    shapes = {spec.name: tuple(int(size) for size in spec.shape or ()) for spec in stream.inputs}  # type: ignore[arg-type]
    for t in range(size_of(entry, data, "T") or 1):
        axes = {name: entry.axes[name] for name in data}
        cut = {n: np.take(x, t, axes[n].index("T")) if "T" in axes[n] else x for n, x in data.items()}
        yield {name: x.reshape(shapes[name]) for name, x in cut.items()}


def start(stream: le.Stream, states: Arrays) -> None:
    """Begin anew, at these states."""
    stream.reset()
    fresh = stream.state
    given = {name: x.reshape(fresh.arrays[name].shape).astype(fresh.arrays[name].dtype) for name, x in states.items()}
    stream.state = le.State(fresh.fingerprint, fresh.batch, {**fresh.arrays, **given})
