"""lstm-engine verify: what it compares, what it says of how nodes ran, and what it calls a difference."""

from __future__ import annotations

import io
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from onnx import helper
from rich.console import Console

import lstm_engine as le
from lstm_engine import cli
from lstm_engine.report import verify

X = ("x", np.float32, ["time", "batch", 3])


def saved(model: onnx.ModelProto, folder: Path, name: str = "m.onnx") -> str:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return str(path)


def lstm_and(*nodes: onnx.NodeProto, result: str = "y", dtype=np.float32) -> onnx.ModelProto:
    """An LSTM over x, whose Y the other nodes read."""
    weights = builders.random_weights(3, 4)
    lstm = helper.make_node("LSTM", ["x", "W", "R", "B"], ["Y"], name="enc", hidden_size=4)
    return builders.make_model([lstm, *nodes], [X], [(result, dtype, None)], weights)


def rendered(path: str, **options) -> str:
    model = le.load(path)
    other, _ = verify.onnxruntime_of(path)
    comparisons = verify.compared(model, other, 0, 2, verify.definition_of(path, None), **options)
    sheet = Console(width=80, file=io.StringIO())
    sheet.print(verify.shown(comparisons, verify.ways_of(model)))
    return sheet.file.getvalue()


def test_ways_name_each_node_that_ran_in_numpy(tmp_path):
    node = helper.make_node("Einsum", ["Y"], ["y"], name="turn", equation="tdbh->bhdt")
    path = saved(lstm_and(node), tmp_path)
    model = le.load(path)
    verify.compared(model, None, 0, 1)
    ways = verify.ways_of(model)
    assert ways.instructions["LSTM"] == 1
    assert [label for label, _ in ways.hosts] == ["Einsum 'turn'"]
    assert ways.hosts[0][1]
    text = rendered(path)
    assert "Einsum 'turn'" in text
    assert "LSTM 1" in text


def test_everything_fits_eighty_columns(tmp_path):
    node = helper.make_node("Identity", ["Y"], ["a/rather:long_name.of_an_output/" * 3])
    path = saved(lstm_and(node, result=node.output[0]), tmp_path)
    assert max(map(len, rendered(path).splitlines())) <= 80


def test_random_outputs_are_said_to_be_and_not_compared(tmp_path):
    noise = helper.make_node("RandomNormalLike", ["Y"], ["n"])
    path = saved(lstm_and(noise, helper.make_node("Add", ["Y", "n"], ["y"])), tmp_path)
    (comparison,) = verify.compared(le.load(path), None, 0, 2)
    assert comparison.random
    assert comparison.holds
    assert "random" in rendered(path)


def test_the_definition_is_the_files_own(tmp_path):
    """A pass that changed the network is seen: the definition is read anew, before any of them."""
    right = saved(lstm_and(helper.make_node("Relu", ["Y"], ["y"])), tmp_path)
    wrong = le.load(saved(lstm_and(helper.make_node("Tanh", ["Y"], ["y"])), tmp_path, "wrong.onnx"))
    (unseen,) = verify.compared(wrong, None, 0, 1)
    (seen,) = verify.compared(wrong, None, 0, 1, verify.definition_of(right, None))
    assert unseen.holds
    assert not seen.holds
    assert seen.verdict == "DIFFERS"


@pytest.mark.parametrize(("off", "code"), [(0.0, 0), (3e-5, 0), (1e-2, 1), (float("nan"), 1)])
def test_a_difference_to_onnxruntime_counts_beyond_its_own_error(tmp_path, monkeypatch, capsys, off, code):
    path = saved(lstm_and(helper.make_node("Relu", ["Y"], ["y"])), tmp_path)
    real = verify.onnxruntime_of

    def shifted(*arguments):
        run, why = real(*arguments)
        return (lambda feeds: {name: y + np.float32(off) for name, y in run(feeds).items()}), why

    monkeypatch.setattr(verify, "onnxruntime_of", shifted)
    monkeypatch.setattr("sys.argv", ["lstm-engine", "verify", path])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert int(ended.value.code or 0) == code
    captured = capsys.readouterr()
    assert ("DIFFERS" in captured.out) == bool(code)
    assert ("onnxruntime" in captured.err) == bool(code)


def test_integers_are_what_their_readers_take():
    shapes = {"x": (7, 2), "mode": (), "k": (2,), "n": (4,)}
    table = np.zeros((5, 3), np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["e"]),
        helper.make_node("Equal", ["mode", "rate"], ["is"]),
        helper.make_node("LSTM", ["e", "W", "R", "", "k"], ["Y"], hidden_size=4),
        helper.make_node("Identity", ["n"], ["m"]),
    ]
    inputs = [("x", np.int64, [7, 2]), ("mode", np.int64, []), ("k", np.int32, [2]), ("n", np.int64, [4])]
    outputs = [("Y", np.float32, None), ("is", np.bool_, []), ("m", np.int64, [4])]
    constants = {"table": table, "rate": np.array(16000), **builders.random_weights(3, 4, bias=False)}
    graph = le.load(builders.make_model(nodes, inputs, outputs, constants).SerializeToString()).graph
    drawn = [verify.random_feeds(graph, shapes, np.random.default_rng(seed)) for seed in range(30)]
    assert {int(feeds["mode"]) for feeds in drawn} == {16000}
    assert {int(v) for feeds in drawn for v in feeds["x"].ravel()} == set(range(5))
    assert {int(v) for feeds in drawn for v in feeds["k"]} == set(range(1, 8))
    assert {int(v) for feeds in drawn for v in feeds["n"]} == {0, 1}


def test_shapes_are_tried_until_the_network_runs():
    """A kernel of 256 samples fits none of the small sizes that open dimensions are given first."""
    kernel = np.ones((1, 1, 256), np.float32)
    nodes = [helper.make_node("Unsqueeze", ["x", "axis"], ["u"]), helper.make_node("Conv", ["u", "kernel"], ["y"])]
    model = builders.make_model(
        nodes, [("x", np.float32, ["batch", "n"])], [("y", np.float32, None)], {"kernel": kernel, "axis": np.array([1])}
    )
    loaded = le.load(model.SerializeToString())
    assert verify.feasible_shapes(loaded)["x"][1] >= 256
    (comparison,) = verify.compared(loaded, None, 0, 1)
    assert comparison.holds


def test_a_network_that_runs_at_no_size_says_why():
    nodes = [helper.make_node("Add", ["x", "c"], ["y"])]
    model = builders.make_model(
        nodes, [("x", np.float32, ["n"])], [("y", np.float32, None)], {"c": np.ones(5, np.float32)}
    )
    assert verify.feasible_shapes(le.load(model.SerializeToString()))["x"] == (1,)
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    model = builders.make_model(nodes, [("x", np.float32, ["n"])], [("y", np.float32, None)], {"s": np.array([9973])})
    with pytest.raises(le.InputError, match="9973"):
        verify.feasible_shapes(le.load(model.SerializeToString()))
