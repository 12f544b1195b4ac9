"""Units that carry a label: the arithmetic, and a network built to carry one in a unit that is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import LayerCase, NetCase, model_of
from onnx import TensorProto, helper, numpy_helper

import lstm_engine as le
from lstm_engine.report import carriers
from lstm_engine.report.carriers import Ablation, Hold, Layer, Questions

MODELS = Path(__file__).resolve().parent.parent / "models"
CARRIER, HIDDEN, BLANK, YES, NO, ASK = 5, 8, 0, 1, 2, 3


def latch() -> bytes:
    """A network that remembers, in one unit alone, whether YES or NO came last; its scores of these say which.

    The others hold noise that the tokens write, of both signs, and that the scores do not read.
    """
    draw = np.random.default_rng(0)
    embedding = draw.normal(size=(4, 3)).astype(np.float32)
    embedding[NO] = embedding[YES]
    embedding[:, 0] = [0, 1, -1, 0]  # what is told
    gates = {gate: np.zeros((HIDDEN, 3), np.float32) for gate in "iofg"}
    bias = {gate: np.full(HIDDEN, value, np.float32) for gate, value in zip("iofg", (0, 4, 0, 0), strict=True)}
    for gate in "ig":
        gates[gate][:, 1:] = draw.normal(size=(HIDDEN, 2))
    gates["g"][CARRIER] = [5, 0, 0]  # writes what is told …
    gates["i"][CARRIER], bias["f"][CARRIER], bias["i"][CARRIER] = 0, 12, 4  # … and keeps it
    head = np.zeros((HIDDEN, 4), np.float32)
    head[CARRIER, [YES, NO]] = [4, -4]
    constants = {
        "embedding": embedding,
        "W": np.concatenate([gates[gate] for gate in "iofg"])[None],
        "R": np.zeros((1, 4 * HIDDEN, HIDDEN), np.float32),
        "B": np.concatenate([*(bias[gate] for gate in "iofg"), np.zeros(4 * HIDDEN, np.float32)])[None],
        "head": head,
        "axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "tokens"], ["x"]),
        helper.make_node("LSTM", ["x", "W", "R", "B", "", "h0", "c0"], ["y", "hn", "cn"], "latch", hidden_size=HIDDEN),
        helper.make_node("Squeeze", ["y", "axis"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["scores"]),
    ]
    state = [1, "batch", HIDDEN]
    graph = helper.make_graph(
        nodes,
        "latch",
        [
            helper.make_tensor_value_info("tokens", TensorProto.INT64, ["time", "batch"]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, state) for name in ("h0", "c0")),
        ],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["time", "batch", 4]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, state) for name in ("hn", "cn")),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def latch_questions(count: int) -> Questions:
    """Blanks, YES or NO, more blanks and ASKs: which was it?"""
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 2, count).astype(bool)
    told, kept = draw.integers(0, 3, count), draw.integers(1, 6, count)
    tokens = draw.choice([BLANK, ASK], (count, 9)).astype(np.int64)
    tokens[np.arange(count), told] = np.where(labels, YES, NO)
    choices = np.stack([np.where(labels, YES, NO), np.where(labels, NO, YES)], axis=1)
    return Questions(tokens, labels, told, told + kept, choices)


@pytest.fixture(scope="module")
def model() -> le.Model:
    return le.load(latch())


def test_the_unit_that_carries_is_found(model: le.Model) -> None:
    (layer,) = carriers.layers_of(model)
    found = carriers.carriers(model, layer, latch_questions(300), draws=4)
    assert found.right == 1.0
    assert found.order[0] == CARRIER
    assert found.correlation[CARRIER] > 0.9
    assert found.units == (CARRIER,)
    (held,) = found.ablated
    assert abs(held.right - 0.5) < 0.15
    assert held.others == (1.0,) * 4
    assert abs(found.along - 0.5) < 0.15
    assert found.probe > 0.95
    assert found.chance == 0.5


def test_what_is_played_is_the_run(model: le.Model) -> None:
    """Without ablation: the scores, c and h of one run of the whole sequences; rows beyond one stream's too."""
    (layer,) = carriers.layers_of(model)
    questions = latch_questions(carriers._ROWS + 3)
    played = carriers.play(model, layer, questions)
    trace = model.trace(questions.tokens.T)
    rows = np.arange(len(questions))
    np.testing.assert_array_equal(played.scores, trace.outputs["scores"][questions.asked, rows])
    np.testing.assert_array_equal(played.cells, trace[layer.name].c.swapaxes(0, 1))
    np.testing.assert_array_equal(played.hidden, trace[layer.name].h.swapaxes(0, 1))


def test_an_ablation_holds_at_kept_steps_alone(model: le.Model) -> None:
    (layer,) = carriers.layers_of(model)
    questions = latch_questions(40)
    centre = np.linspace(-1, 1, HIDDEN)
    hold = Hold(np.eye(HIDDEN)[[2]], centre)
    free, held = carriers.play(model, layer, questions), carriers.play(model, layer, questions, Ablation(hold, hold))
    kept = questions.kept
    np.testing.assert_allclose(held.cells[kept][:, 2], centre[2], rtol=1e-6)
    np.testing.assert_allclose(held.hidden[kept][:, 2], centre[2], rtol=1e-6)
    before = np.arange(kept.shape[1]) < questions.told[:, None]
    np.testing.assert_array_equal(held.cells[before], free.cells[before])
    others = np.delete(np.arange(HIDDEN), 2)
    np.testing.assert_array_equal(held.cells[..., others], free.cells[..., others])  # nothing recurs but c


def test_a_hold_is_a_projection() -> None:
    draw = np.random.default_rng(2)
    axes, centre, values = np.linalg.qr(draw.normal(size=(7, 3)))[0].T, draw.normal(size=7), draw.normal(size=(20, 7))
    hold = Hold(axes, centre)
    held = hold(values)
    np.testing.assert_allclose(held @ axes.T, np.broadcast_to(centre @ axes.T, (20, 3)), atol=1e-12)
    np.testing.assert_allclose(hold(held), held, atol=1e-12)
    away = np.eye(7) - axes.T @ axes
    np.testing.assert_allclose(held @ away, values @ away, atol=1e-12)


def test_correlations_are_pearsons() -> None:
    draw = np.random.default_rng(3)
    values, labels = draw.normal(size=(50, 4)).astype(np.float32), draw.integers(0, 2, 50).astype(bool)
    values[:, 3] = 2.5
    got = carriers.correlations(values, labels)
    expected = [np.corrcoef(values[:, k], labels)[0, 1] for k in range(3)]
    np.testing.assert_allclose(got, [*expected, 0], atol=1e-6)
    assert not carriers.correlations(values, np.ones(50, bool)).any()


def test_no_linear_probe_reads_what_was_held() -> None:
    """The direction between the means taken out, the classes' means are one."""
    draw = np.random.default_rng(4)
    labels = draw.integers(0, 2, 4000).astype(bool)
    values = draw.normal(size=(4000, 6)) + 2 * labels[:, None] * draw.normal(size=6)
    hold = Hold(carriers.direction(values, labels)[None], carriers.midpoint(values, labels))
    assert carriers.readable(values[:2000], labels[:2000], values[2000:], labels[2000:]) > 0.8
    held = hold(values)
    assert abs(carriers.readable(held[:2000], labels[:2000], held[2000:], labels[2000:]) - 0.5) < 0.05
    np.testing.assert_allclose(*carriers.class_means(held, labels), atol=1e-12)


def test_layers_name_their_state() -> None:
    char = carriers.layers_of(le.load(MODELS / "char" / "char.onnx"))
    assert [(layer.cell, layer.hidden, layer.row) for layer in char] == [("c0", "h0", 0), ("c0", "h0", 1)]
    assert carriers.layers_of(model_of(LayerCase(I=8, H=32, outputs=("Y",)))) == (Layer("layer", "Y.c", "Y.h", 0),)
    two = model_of(NetCase(I=8, hidden=(16, 16), head="dense_softmax"))
    layers = carriers.layers_of(two)
    assert len(layers) == 2
    assert {layer.name for layer in layers} == set(two.trace(np.zeros((3, 1, 8), np.float32)))


def test_questions_of_entries() -> None:
    entries = [
        {"text": "no yes ask", "told": 1, "label": True, "choices": ["yes", "no"]},
        {"text": "no ask", "told": 0, "label": False, "choices": ["no", "yes"]},
    ]
    questions = Questions.of(entries, ["", "yes", "no", "ask"])
    assert questions.tokens.tolist() == [[2, 1, 3], [2, 3, 0]]
    assert questions.asked.tolist() == [2, 1]
    assert questions.choices.tolist() == [[1, 2], [2, 1]]
    assert questions.kept.tolist() == [[False, True, False], [True, False, False]]
    with pytest.raises(le.InputError, match="'yes' not in the vocabulary"):
        Questions.of(entries, ["no", "ask"])
    with pytest.raises(le.InputError, match="at least one"):
        Questions.of([], ["no"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"told": np.array([2, 0])}, "told before it is asked"),
        ({"asked": np.array([1, 3])}, "below T = 3"),
        ({"labels": np.array([True])}, "one length"),
        ({"tokens": np.zeros(2, np.int64)}, r"tokens\[N,T\]"),
    ],
)
def test_questions_that_contradict_themselves_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    arrays = {
        "tokens": np.zeros((2, 3), np.int64),
        "labels": np.array([True, False]),
        "told": np.array([0, 0]),
        "asked": np.array([1, 2]),
        "choices": np.zeros((2, 2), np.int64),
    }
    assert len(Questions(**arrays)) == 2
    with pytest.raises(le.InputError, match=message):
        Questions(**{**arrays, **change})


def test_one_class_has_no_direction() -> None:
    with pytest.raises(le.InputError, match="both values"):
        carriers.direction(np.zeros((3, 2)), np.ones(3, bool))


def test_the_latch_is_a_model() -> None:
    onnx.checker.check_model(onnx.load_from_string(latch()), full_check=True)
