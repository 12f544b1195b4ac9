"""Loading and lowering: time and memory in proportion to the file, whatever the shape of its graph."""

from __future__ import annotations

import gc
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import lstm_engine as le
from lstm_engine.program import arena

ZOO = Path(__file__).resolve().parent.parent.parent / "shared" / "zoo"
LARGEST = max(ZOO.glob("*.onnx"), key=lambda path: path.stat().st_size, default=None)
SECONDS = 0.5
BESIDE = 100 << 20  # bytes beside three times the weights
X = ("x", np.float32, ["time", "batch", 4])


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(LARGEST is None, reason="the collection of public models is not here")
def test_the_largest_public_model_loads_in_half_a_second() -> None:
    """This thread's time, the best of three: others may run beside."""
    assert LARGEST is not None
    le.load(LARGEST)  # the first imports what loading needs
    assert min(seconds(lambda: le.load(LARGEST)) for _ in range(3)) < SECONDS


def seconds(act: Callable[[], object]) -> float:
    """Of this thread; what the rest of the suite left on the heap is not gone through meanwhile."""
    gc.collect()
    gc.disable()
    try:
        start = time.thread_time()
        act()
        return time.thread_time() - start
    finally:
        gc.enable()


def chain(count: int) -> onnx.ModelProto:
    """One node after the other."""
    nodes = [helper.make_node("LSTM", ["x", "W", "R", "B"], ["t0"], hidden_size=4)]
    kinds = ["Tanh", "Identity", "Neg"]
    nodes += [helper.make_node(kinds[k % 3], [f"t{k}"], [f"t{k + 1}"]) for k in range(count)]
    return builders.make_model(nodes, [X], [(f"t{count}", np.float32, None)], builders.random_weights(4, 4))


def fan(count: int) -> onnx.ModelProto:
    """All nodes read one tensor, and one node reads all of theirs."""
    nodes = [helper.make_node("Tanh", ["x"], [f"a{k}"]) for k in range(count)]
    nodes.append(helper.make_node("Sum", [f"a{k}" for k in range(count)], ["y"]))
    return builders.make_model(nodes, [X], [("y", np.float32, None)])


def constants(count: int) -> onnx.ModelProto:
    """A chain that folds away."""
    nodes = [helper.make_node("Add", [f"c{k}", "c0"], [f"c{k + 1}"]) for k in range(count)]
    nodes.append(helper.make_node("Add", ["x", f"c{count}"], ["y"]))
    return builders.make_model(nodes, [X], [("y", np.float32, None)], {"c0": np.ones(4, np.float32)})


def layers(count: int) -> onnx.ModelProto:
    """A stack of LSTMs, each with the glue of an exporter."""
    nodes = []
    for k in range(count // 4):
        nodes.append(helper.make_node("LSTM", [f"s{k}" if k else "x", "W", "R", "B"], [f"y{k}"], hidden_size=4))
        nodes.append(helper.make_node("Squeeze", [f"y{k}", "one"], [f"s{k + 1}"]))
    weights = {**builders.random_weights(4, 4), "one": np.array([1])}
    return builders.make_model(nodes, [X], [(f"s{count // 4}", np.float32, None)], weights)


def states(count: int) -> onnx.ModelProto:
    """Inputs and outputs by the hundred: what may be whose past."""
    count //= 40
    nodes = [helper.make_node("Add", ["x", f"in{k}"], [f"out{k}"]) for k in range(count)]
    ports = [[(f"{stem}{k}", np.float32, ["time", "batch", 4]) for k in range(count)] for stem in ("in", "out")]
    return builders.make_model(nodes, [X, *ports[0]], ports[1])


SHAPES = [chain, fan, constants, layers, states]


def assert_in_proportion(act: Callable[[bytes], object], few: bytes, many: bytes, times: int) -> None:
    """``many`` has ``times`` as many nodes: it may take twice that many times as long, and not their square."""
    quick = min(seconds(lambda: act(few)) for _ in range(3))
    slow = min(seconds(lambda: act(many)) for _ in range(3))
    assert slow < max(2 * times * quick, SECONDS), f"{slow:.2f} s after {quick:.2f} s"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("most", [6_000, pytest.param(20_000, marks=pytest.mark.nightly)])
def test_loading_takes_time_in_proportion_to_the_nodes(shape: Callable[[int], onnx.ModelProto], most: int) -> None:
    few, many = (shape(count).SerializeToString() for count in (most // 8, most))
    assert_in_proportion(le.load, few, many, 8)


@pytest.mark.parametrize("shape", [chain, fan, layers])
@pytest.mark.parametrize("most", [2_000, pytest.param(8_000, marks=pytest.mark.nightly)])
def test_the_first_run_takes_time_in_proportion_to_the_nodes(
    shape: Callable[[int], onnx.ModelProto], most: int
) -> None:
    x = np.zeros((2, 2, 4), np.float32)
    few, many = (shape(count).SerializeToString() for count in (most // 8, most))
    le.load(few).run(x)
    assert_in_proportion(lambda content: le.load(content).run(x), few, many, 8)


# --- memory -----------------------------------------------------------------------------------------------------------

CHILD = """
import json, resource, sys
import onnx, lstm_engine as le
le.load(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
model = le.load(sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
weights = sum(value.nbytes for value in model.graph.constants.values())
print(json.dumps({"more": peak - before, "weights": weights}))
"""


def memory_of(model: Path, small: Path, environment: dict[str, str]) -> tuple[int, int]:
    """What loading a model takes beyond what loading a small one took, and its weights."""
    command = [sys.executable, "-c", CHILD, str(small), str(model)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    return told["more"], told["weights"]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    path.write_bytes(builders.make_lstm_model(4, 4).SerializeToString())
    return path


linux = pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")


@linux
@pytest.mark.skipif(LARGEST is None, reason="the collection of public models is not here")
def test_memory_of_the_largest_public_model(small: Path, fresh_environment: dict[str, str]) -> None:
    assert LARGEST is not None
    more, weights = memory_of(LARGEST, small, fresh_environment)
    assert more < 3 * max(weights, LARGEST.stat().st_size) + BESIDE


@linux
@pytest.mark.nightly
@pytest.mark.parametrize("external", [False, True], ids=["in the file", "beside the file"])
def test_memory_of_two_hundred_megabytes(
    small: Path, external: bool, tmp_path: Path, fresh_environment: dict[str, str]
) -> None:
    model = builders.make_lstm_model(1024, 3200)
    path = tmp_path / "large.onnx"
    if external:
        onnx.save(model, path, save_as_external_data=True, size_threshold=1024)
    else:
        path.write_bytes(model.SerializeToString())
    more, weights = memory_of(path, small, fresh_environment)
    assert weights > 200 << 20
    assert more < 3 * weights + BESIDE
    assert seconds(lambda: le.load(path)) < 4


# --- where buffers lie ------------------------------------------------------------------------------------------------


@st.composite
def lifetimes(draw: st.DrawFn) -> list[arena.Buffer]:
    spans = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9), st.integers(1, 400)), max_size=40))
    return [arena.Buffer(str(k), size, False, first, first + more) for k, (first, more, size) in enumerate(spans)]


@pytest.mark.parametrize("most", [0, 10_000], ids=["as they come", "largest first"])
@given(buffers=lifetimes())
def test_buffers_alive_together_share_no_bytes(most: int, buffers: list[arena.Buffer]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena, "MOST_COMPARED", most)
        end = arena.place(buffers, 128)
    for k, one in enumerate(buffers):
        assert one.offset >= 128
        assert one.offset % arena.ALIGNMENT == 0
        assert one.offset + one.size <= end
        for other in buffers[:k]:
            together = one.first <= other.last and other.first <= one.last
            apart = one.offset + one.size <= other.offset or other.offset + other.size <= one.offset
            assert apart or not together
    assert end - 128 <= sum(arena.aligned(buffer.size) for buffer in buffers)


@given(buffers=lifetimes())
def test_with_a_gap_nothing_shares_bytes(buffers: list[arena.Buffer]) -> None:
    arena.place(buffers, 0, arena.CANARY_BYTES)
    ordered = sorted(buffers, key=lambda buffer: buffer.offset)
    for one, other in itertools.pairwise(ordered):
        assert one.offset + one.size + arena.CANARY_BYTES <= other.offset
