"""Models that strangers committed to public repositories, kept beside this project: against onnxruntime's outputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstm_engine as le
from lstm_engine import reference
from lstm_engine.formats import read
from lstm_engine.graph import Graph
from lstm_engine.passes.modernise import modernise
from lstm_engine.passes.shapes import fold

ZOO = Path(__file__).resolve().parent.parent.parent / "shared" / "zoo"
INDEX: list[dict[str, Any]] = json.loads((ZOO / "index.json").read_text()) if (ZOO / "index.json").exists() else []
pytestmark = pytest.mark.skipif(not INDEX, reason="the collection of public models is not here")

RELATIVE, ABSOLUTE = 1e-4, 2e-5


@dataclass(frozen=True)
class Recording:
    """One case of one model: what was fed and what onnxruntime gave, step by step."""

    entry: dict[str, Any]
    case: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.entry['id']}-{self.case['name']}"

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def feedback(self) -> dict[str, str]:
        return dict(self.case.get("feedback", {}))

    def steps(self) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """Feeds and results of each call."""
        with np.load(ZOO / self.case["file"]) as arrays:
            ins, outs = (list(map(str, arrays[key])) for key in ("in_names", "out_names"))
            for t in range(self.case.get("steps", 1)):
                feeds = {name: arrays[f"s{t}_in{k}"] for k, name in enumerate(ins) if f"s{t}_in{k}" in arrays}
                results = {name: arrays[f"s{t}_out{k}"] for k, name in enumerate(outs)}
                yield feeds, {n: x for n, x in results.items() if n not in self.entry.get("random_outputs", [])}


RECORDINGS = [Recording(entry, case) for entry in INDEX for case in entry.get("cases", [])]


@cache
def graph_of(file: str) -> Graph:
    return fold(modernise(read(ZOO / file)))


def with_outputs(graph: Graph, names: list[str]) -> Graph:
    """The graph that also gives some of its inner tensors."""
    from lstm_engine.graph import TensorSpec

    more = [TensorSpec(n, np.dtype(np.float32), None) for n in names if n not in {o.name for o in graph.outputs}]
    return graph.with_nodes(graph.nodes, outputs=[*graph.outputs, *more])


@cache
def model_of(file: str, extra: tuple[str, ...] = ()) -> le.Model:
    """The model, or what load raises."""
    if not extra:
        return le.load(ZOO / file)
    from lstm_engine.model import Model
    from lstm_engine.program.plan import element_type

    graph = fold(modernise(with_outputs(read(ZOO / file), list(extra))))
    return Model(graph, element_type(graph))


def refused(entry: dict[str, Any]) -> bool:
    """Whether the file is one to be refused, or uses what is not implemented now."""
    if entry["expect"] == "refuse":
        return True
    return bool(reference.unsupported(graph_of(entry["file"])))


def assert_close(got: np.ndarray, expected: np.ndarray, name: str) -> None:
    if expected.dtype.kind in "iub":
        np.testing.assert_array_equal(got, expected, err_msg=name)
        return
    reach = float(np.abs(expected[np.isfinite(expected)]).max(initial=0))
    np.testing.assert_allclose(got, expected, rtol=RELATIVE, atol=max(ABSOLUTE, RELATIVE * reach / 10), err_msg=name)


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: entry["id"])
def test_the_file_is_the_one_recorded(entry: dict[str, Any]) -> None:
    assert hashlib.sha256((ZOO / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: entry["id"])
def test_it_loads_or_is_refused_by_name(entry: dict[str, Any]) -> None:
    if entry["expect"] == "refuse":
        with pytest.raises((le.UnsupportedModelError, le.ModelFormatError, OSError)) as caught:
            le.load(ZOO / entry["file"])
        assert len(str(caught.value)) > 20
        return
    faults = reference.unsupported(graph_of(entry["file"]))
    if not faults:
        assert le.load(ZOO / entry["file"]).inputs
        return
    with pytest.raises(le.UnsupportedModelError) as caught:
        le.load(ZOO / entry["file"])
    assert any(fault in str(caught.value) for fault in faults)
    pytest.xfail(f"not implemented now: {faults[0]}")


@pytest.mark.parametrize("recording", RECORDINGS, ids=str)
def test_it_gives_what_onnxruntime_gave(recording: Recording) -> None:
    if refused(recording.entry):
        pytest.skip("refused, see above")
    model = model_of(recording.entry["file"], tuple(recording.case.get("extra_outputs", ())))
    carried: dict[str, np.ndarray] = {}
    for feeds, expected in recording.steps():
        got = model.run({**feeds, **carried})
        for name, x in expected.items():
            assert_close(got[name], x, name)
        carried = {source: got[result] for source, result in recording.feedback.items()}


def rates_of(recording: Recording) -> dict[str, np.ndarray]:
    """Single integers that are fed at every call: sampling rates."""
    first, _ = next(recording.steps())
    single = {name: x for name, x in first.items() if x.dtype.kind in "iu" and x.size == 1}
    return {name: x for name, x in single.items() if name not in recording.feedback}


def stream_of(recording: Recording) -> le.Stream:
    model = le.load(ZOO / recording.entry["file"], states=recording.feedback)
    return model.stream(constants=rates_of(recording) or None)


@pytest.mark.parametrize("recording", [r for r in RECORDINGS if r.feedback], ids=str)
def test_it_streams_what_onnxruntime_gave(recording: Recording) -> None:
    """Calls with feedback are steps of a stream that carries the state itself."""
    if refused(recording.entry):
        pytest.skip("refused, see above")
    stream = stream_of(recording)
    calls = list(recording.steps())
    first, _ = calls[0]
    integers = rates_of(recording)
    arrays = dict(stream.state.arrays)
    start = {name: first[name].reshape(arrays[name].shape) for name in recording.feedback}
    stream.state = le.State(stream.state.fingerprint, 1, {**arrays, **start})
    for feeds, expected in calls:
        data = {n: x for n, x in feeds.items() if n not in recording.feedback and n not in integers}
        data = {
            spec.name: data[spec.name].reshape([-1 if d is None else int(d) for d in spec.shape or ()])
            for spec in stream.inputs
        }
        result = stream.step(data)
        results = result if isinstance(result, dict) else {stream.outputs[0].name: result}
        for name in results.keys() & expected.keys():
            x = results[name]
            assert_close(x.reshape(expected[name].shape), expected[name], name)
    for source, output in recording.feedback.items():
        assert_close(stream.state.arrays[source].reshape(expected[output].shape), expected[output], source)


#: Models whose steps are machine code from end to end.
WITHOUT_HOST_CALLS = ("silero", "dtln", "gtcrn")


@pytest.mark.parametrize(
    "recording", [r for r in RECORDINGS if r.feedback and r.entry["id"].startswith(WITHOUT_HOST_CALLS)], ids=str
)
def test_its_steps_meet_no_host_call(recording: Recording) -> None:
    stream = stream_of(recording)
    assert not [f"{call.node.label}: {call.reason}" for call in stream._lowered.program.hosts]
