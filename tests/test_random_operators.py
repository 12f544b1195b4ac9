"""Random valid models against the float64 definition, against onnxruntime, and cut into chunks: none may be wrong.

A failure names seeds: ``random_model(seed)`` builds the model again.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pytest
from peers import PEER_IS_CURRENT
from random_models import RandomModel, random_model

import lstm_engine as le
from lstm_engine import reference
from lstm_engine.formats.onnx import read_onnx
from lstm_engine.graph import Graph
from lstm_engine.passes.modernise import modernise

Arrays = Mapping[str, np.ndarray]
#: Errors allowed times max(1, range), where the definition in float32 is not itself further off.
OURS: Final = {"float32": 5e-6, "float64": 1e-11}
#: onnxruntime's activations are approximations.
PEER: Final = 5e-5
NUDGE: Final = 1e-6
LARGEST_EXPONENT: Final = 80.0
#: How many times the error of the definition in float32 (or under a nudge) is allowed, for what amplifies rounding.
INHERENT: Final = 20
#: Results beyond this are an overflow under way: which element overflows first is no engine's promise.
SETTLED: Final = 1e12

#: What may become of a model.
KINDS: Final = (
    "right", "refused", "overflows", "streamed", "needs the whole sequence", "a constant fixes the number of steps",
    "its layers run along another axis",
)  # fmt: skip


class WrongError(AssertionError):
    """A result differs, or a valid model is refused as if it were none."""


@dataclass
class Tally:
    """What became of many models."""

    count: Counter[str] = field(default_factory=Counter)
    wrong: dict[int, str] = field(default_factory=dict)

    def of(self, examine: Callable[[int], list[str]], seeds: Iterable[int]) -> Tally:
        for seed in seeds:
            try:
                self.count.update(examine(seed))
            except Exception as error:
                self.wrong[seed] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        return self


def examined(seed: int) -> list[str]:
    """What was compared, by name. Raises where anything is wrong."""
    model = random_model(seed)
    graph = modernise(read_onnx(model.content))
    exact = reference.run(graph, doubled(model.feeds))
    single = reference.run(graph, model.feeds, dtype=np.float32)
    settled = {name: float(np.abs(x).max(initial=0)) < SETTLED for name, x in exact.items()}
    if not all(settled.values()):
        return ["overflows"]
    peers = onnxruntime_results(model) if model.peers and PEER_IS_CURRENT else None
    if peers is not None and not overflowing_gates(graph, model.feeds):
        assert list(peers) == list(exact)
        compare("onnxruntime against the definition", peers, exact, reference.run(graph, nudged(model.feeds)), PEER)
    try:
        loaded = le.load(model.content)
        got = loaded.run(model.feeds)
    except le.UnsupportedModelError as refusal:
        if "not implemented" not in str(refusal) and "budget" not in str(refusal):
            raise
        return ["refused"]
    assert list(got) == list(exact)
    compare("the engine", got, exact, single, OURS[loaded.element])
    poison(loaded)
    again = loaded.run(model.feeds)
    for name, x in got.items():
        if x.dtype.kind == "f" and not np.array_equal(x, again[name], equal_nan=True):
            raise WrongError(f"'{name}' depends on what lay in memory before")
    return ["right", *(["right by onnxruntime"] if peers is not None else [])]


def overflowing_gates(graph: Graph, feeds: Arrays) -> bool:
    """Whether a recurrent node with gate functions of its own comes to where exp(x) overflows.

    onnxruntime 1.32 gave 2.7e38 for a cell state of 115 there (random_model(5263): Tanh, Affine, Softplus).
    """
    nodes = [node for node in graph.nodes if node.attributes.get("activations")]
    made = reference.run(graph, doubled(feeds), outputs=[name for node in nodes for name in node.outputs if name])
    return any(np.abs(x).max(initial=0) > LARGEST_EXPONENT for x in made.values())


def doubled(feeds: Arrays) -> dict[str, np.ndarray]:
    return {name: x.astype(np.float64) if x.dtype.kind == "f" else x for name, x in feeds.items()}


def poison(loaded: le.Model) -> None:
    """Not-a-number all over the memory that a run must write before it reads."""
    for call in loaded._calls.values():
        for runner in getattr(call, "runners", ()):
            runner.arena[runner.program.state_bytes :] = 0xFF


def nudged(feeds: Arrays) -> dict[str, np.ndarray]:
    """The feeds a little off, as onnxruntime's activations are: shows what the network makes of it."""
    draw = np.random.default_rng(1)
    return {
        n: x * (1 + NUDGE * draw.standard_normal(x.shape)) if x.dtype.kind == "f" else x
        for n, x in doubled(feeds).items()
    }


def compare(who: str, got: Arrays, exact: Arrays, near: Arrays, allowed: float) -> None:
    """``near``: the definition's results under an error that is no fault, some times which is allowed too."""
    for name, x in got.items():
        expected = exact[name]
        if x.shape != expected.shape:
            raise WrongError(f"{who}: '{name}' has shape {x.shape}, expected {expected.shape}")
        finite = np.abs(expected[np.isfinite(expected)])
        inherent = np.abs(near[name] - expected)
        inherent = float(inherent[np.isfinite(inherent)].max(initial=0)) if allowed > 1e-10 else 0.0
        limit = max(allowed * max(1.0, float(finite.max(initial=0))), INHERENT * inherent)
        with np.errstate(invalid="ignore"):
            error = np.where(x == expected, 0, np.abs(x - expected))
        error = np.where(np.isnan(x) & np.isnan(expected), 0, np.nan_to_num(error, nan=np.inf))
        if error.size and error.max() > limit:
            raise WrongError(f"{who}: '{name}' {list(x.shape)} is off by {error.max():.3g}, allowed {limit:.3g}")


def onnxruntime_results(model: RandomModel) -> dict[str, np.ndarray] | None:
    """Its results; None where it refuses the model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session: Any = onnxruntime.InferenceSession(model.content, options, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_outputs()]
        return dict(zip(names, session.run(names, model.feeds), strict=True))
    except Exception:
        return None


# --- streams ----------------------------------------------------------------------------------------------------------


def streamed(seed: int) -> list[str]:
    """A stream's every step is the end of the definition's run over the steps so far, however they are cut."""
    model = random_model(seed, causal=True)
    x, time = model.feeds[model.data], model.time_axis
    try:
        stream = le.load(model.content).stream(x.shape[1 - time])
    except le.UnsupportedModelError:
        return ["refused"]
    except le.StreamingError:
        return ["needs the whole sequence"]
    if runs_along(stream) not in (None, time):  # one that the file fixes
        return ["a constant fixes the number of steps"]
    prefixes = list(prefix_results(model, x.shape[time], np.float64))
    near = list(prefix_results(model, x.shape[time], np.float32))
    if not prefixes:
        return ["a constant fixes the number of steps"]
    if not layers_run_along(model):
        return ["its layers run along another axis"]
    growing = {name: grown_axis([each[name].shape for each in prefixes]) for name in prefixes[0]}
    steps = [by_name(stream, stream.step(step)) for step in np.moveaxis(x, time, 0)]
    for expected, rounded, got in zip(prefixes, near, steps, strict=True):
        compare("a step", got, last_step(expected, growing), last_step(rounded, growing), OURS["float32"])
    for cuts in ([], [1], [x.shape[time] - 1]):
        stream.reset()
        chunks = [by_name(stream, stream.feed(part)) for part in np.split(x, cuts, time)]
        same_bits(steps, chunks, {n: time if axis is None else axis for n, axis in growing.items()})
    return ["streamed"]


def layers_run_along(model: RandomModel) -> bool:
    """Whether the steps of the fed sequence are steps of some layer (and not its rows, say)."""
    graph = modernise(read_onnx(model.content))
    layers = [node for node in graph.nodes if node.op in ("LSTM", "GRU", "RNN")]
    x, time = model.feeds[model.data], model.time_axis
    parts = [{**model.feeds, model.data: np.take(x, range(steps), time)} for steps in (1, x.shape[time])]
    read = [feeds | reference.run(graph, feeds, outputs=[node.input(0) for node in layers]) for feeds in parts]
    axes = [(node.input(0), int(node.attributes.get("layout", 0))) for node in layers]
    return any(read[0][name].shape[axis] != read[1][name].shape[axis] for name, axis in axes)


def runs_along(stream: le.Stream) -> int | None:
    """The axis of its one input that a stream's steps lie along."""
    return stream._lowered.program.inputs[0].time


def last_step(results: Arrays, growing: Mapping[str, int | None]) -> dict[str, np.ndarray]:
    return {n: y if growing[n] is None else np.take(y, -1, growing[n]) for n, y in results.items()}


def prefix_results(model: RandomModel, steps: int, dtype: Any) -> Iterator[dict[str, np.ndarray]]:
    """The definition's results for one step, two and so on; none where the graph fixes their number."""
    graph = modernise(read_onnx(model.content))
    feeds = doubled(model.feeds)
    whole = np.moveaxis(feeds[model.data], model.time_axis, 0)
    parts = [np.moveaxis(whole[: t + 1], 0, model.time_axis) for t in range(steps)]
    try:
        results = [reference.run(graph, {**feeds, model.data: part}, dtype=dtype) for part in parts]
    except (le.ModelFormatError, le.InputError):
        return
    yield from results


def grown_axis(shapes: list[tuple[int, ...]]) -> int | None:
    """The axis along which results grow with the steps."""
    return next((axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1), None)


def by_name(stream: le.Stream, result: Any) -> dict[str, np.ndarray]:
    return result if isinstance(result, dict) else {stream.outputs[0].name: result}


def same_bits(steps: list[dict[str, np.ndarray]], chunks: list[dict[str, np.ndarray]], axes: Mapping[str, int]) -> None:
    for name in steps[0]:
        axis = min(axes[name], steps[0][name].ndim)  # a step's scalar can only be stacked along a first axis
        single = np.stack([step[name] for step in steps], axis)
        joined = np.concatenate([chunk[name] for chunk in chunks], axis)
        if joined.shape != single.shape or not np.array_equal(single, joined, equal_nan=True):
            raise WrongError(f"stream: '{name}' depends on where the sequence is cut")


# --- the tests --------------------------------------------------------------------------------------------------------

BLOCK: Final = 50


def assert_right(tally: Tally, least: Mapping[str, float]) -> None:
    """Nothing wrong, and at least these shares of the models really compared."""
    total = sum(tally.count[kind] for kind in KINDS) + len(tally.wrong)
    assert not tally.wrong, "\n".join(f"seed {seed}: {what}" for seed, what in tally.wrong.items())
    for kind, share in least.items():
        if kind == "right by onnxruntime" and not PEER_IS_CURRENT:
            continue
        assert tally.count[kind] >= share * total, tally.count


@pytest.mark.parametrize("first", range(0, 400, BLOCK))
def test_random_models(first: int) -> None:
    assert_right(Tally().of(examined, range(first, first + BLOCK)), {"right": 0.8, "right by onnxruntime": 0.3})


@pytest.mark.parametrize("first", range(0, 200, BLOCK))
def test_random_streams(first: int) -> None:
    assert_right(Tally().of(streamed, range(first, first + BLOCK)), {"streamed": 0.3})


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_ten_thousand_random_models() -> None:
    assert_right(Tally().of(examined, range(1000, 11_000)), {"right": 0.9, "right by onnxruntime": 0.4})


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_three_thousand_random_streams() -> None:
    assert_right(Tally().of(streamed, range(1000, 4000)), {"streamed": 0.3})


def main(kind: str, first: str, last: str) -> None:
    """``python tests/test_random_operators.py examined 1000 11000``: the same by hand, failures as they come."""
    examine = {"examined": examined, "streamed": streamed}[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tally = Tally()
        for seed in range(int(first), int(last)):
            if seed in tally.of(examine, [seed]).wrong:
                print(f"seed {seed}: {tally.wrong[seed]}", flush=True)
    print(dict(tally.count), f"{len(tally.wrong)} wrong")


if __name__ == "__main__":
    main(*sys.argv[1:])
