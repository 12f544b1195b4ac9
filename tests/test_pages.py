"""Pages: what they hold is what the run was; nothing in a name gets out of its place; they are of a size to open."""

from __future__ import annotations

import json
import math
import re
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_model, random_weights
from cases import LayerCase, NetCase, model_of
from html_pages import Fragment, arrays_of, parsed, texts_of
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import lstm_engine as le
from lstm_engine.errors import LstmEngineError
from lstm_engine.pages import diagram, walk
from lstm_engine.pages.document import as_json, escaped
from lstm_engine.pages.notes import note
from lstm_engine.pages.packing import BYTE, LONG, WORD, packed, unpacked
from lstm_engine.report.explain import Request, explained, read_csv
from lstm_engine.report.inspect import described
from lstm_engine.report.labelled import read_labelled
from lstm_engine.report.picture import named_shapes, pictured
from lstm_engine.trace import LayerTrace, Trace

MODELS = Path(__file__).resolve().parent.parent / "models"
CHAR, CLIPPER, DIGITS = (MODELS / name / f"{name}.onnx" for name in ("char", "clipper", "digits"))
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "]]>&lt;b&gt;\u2028\u2029",
    "{title}{0}%s${alert(1)}",
    "a\x00b\x1b[31m\u202ec\ud800",
    "名前 é σ ∘ 🙂",
    "x" * 5000,
]


# --- numbers in a page ----------------------------------------------------------------------------------------------


@given(st.lists(st.floats(width=32), max_size=20), st.sampled_from([(), (BYTE,), (WORD,), (BYTE, WORD)]))
def test_a_packed_number_is_the_number_as_it_is_written(values: list[float], sizes: tuple[int, ...]) -> None:
    packing = packed(np.array(values, np.float32), *sizes)
    found = unpacked(packing)
    assert len(found) == len(values)
    digits = packing["d"]
    for shown, value in zip(found, np.array(values, np.float32), strict=True):
        if not math.isfinite(value):
            assert shown == value or (math.isnan(shown) and math.isnan(value))
        elif digits >= 0:
            assert f"{shown + 0.0:.{digits}f}" == f"{round(float(value), digits) + 0.0:.{digits}f}"
        else:
            assert abs(shown - float(value)) <= 0.5 * 10.0**-digits * (1 + 1e-9)


@pytest.mark.parametrize(
    ("greatest", "sizes", "bits", "digits"),
    [(1.0, (), WORD, 4), (3.2, (), WORD, 4), (4.0, (), LONG, 4), (1.0, (BYTE,), BYTE, 2), (1e6, (), LONG, 3), (40, (WORD,), WORD, 2)],
)  # fmt: skip
def test_four_digits_where_there_is_room(greatest: float, sizes: Any, bits: int, digits: int) -> None:
    packing = packed(np.array([greatest, -greatest, 0.0]), *sizes)
    assert (packing["b"], packing["d"]) == (bits, digits)
    assert unpacked(packing).tolist() == [greatest, -greatest, 0.0]


def test_texts_of_hostile_names() -> None:
    for name in HOSTILE:
        text = as_json({name: [name]})
        assert not set("<>&") & set(text)
        assert text.isascii()
        assert json.loads(text) == {name: [name]}
        assert not set("<>\"'") & set(escaped(name))
        escaped(name).encode("utf-8")


# --- a page of a trace ----------------------------------------------------------------------------------------------


def page_of(trace: Trace, tmp_path: Path, **options: Any) -> Any:
    trace.html(tmp_path / "page.html", **options)
    return parsed((tmp_path / "page.html").read_text(encoding="utf-8"))


CASES = [
    LayerCase(H=17, T=9, B=3),
    LayerCase(op="GRU", H=5, T=7, B=2, direction="bidirectional"),
    LayerCase(op="RNN", H=5, T=7, B=1),
    LayerCase(H=6, T=5, direction="reverse", dtype="float64"),
    NetCase(hidden=(8, 5), T=30),
    NetCase(vocabulary=9, hidden=(8,), T=12, head="dense", batch_first=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_page_holds_what_the_trace_holds(case: Any, tmp_path: Path) -> None:
    trace = model_of(case).trace(case.feeds())
    data = page_of(trace, tmp_path).data
    assert [layer["name"] for layer in data["layers"]] == list(trace)
    for held, layer in zip(data["layers"], trace.values(), strict=True):
        steps, rows, units = layer.shape
        assert (data["steps"], data["rows"], held["units"]) == (steps, rows, units)
        assert held["backwards"] == layer.backwards
        for part, (values, digits) in arrays_of(held, rows, steps).items():
            assert digits == 4
            assert np.array_equal(values, np.rint(layer[part].astype(np.float64) * 1e4) / 1e4), part
        for name, values in layer.statistics().items():
            told = [math.inf if value is None else value for value in held["statistics"][name]]
            assert np.allclose(told, values.astype(float), atol=1e-4)


def test_what_came_in_and_went_out_is_on_the_page(tmp_path: Path) -> None:
    case = NetCase(hidden=(8,), T=10, B=2, batch_first=True, head="dense", outputs=2)
    trace = model_of(case).trace(case.feeds())
    data = page_of(trace, tmp_path).data
    for kind, array in (("inputs", trace.feeds["x"]), ("outputs", trace.outputs["y"])):
        assert len(data[kind]) == array.shape[2]
        for k, signal in enumerate(data[kind]):
            shown = unpacked(signal).reshape(2, 10)
            assert np.abs(shown - array[:, :, k]).max() <= 0.5001 * 10.0 ** -signal["d"]


def test_moments_are_the_steps_of_most_change(tmp_path: Path) -> None:
    case = LayerCase(H=12, T=20, B=2)
    trace = model_of(case).trace(case.feeds())
    (layer,) = trace.values()
    held = page_of(trace, tmp_path).data["layers"][0]["moments"]
    for kind in ("updates", "forgotten"):
        totals = getattr(layer, kind).sum(axis=2)
        found = held[kind]
        assert [each[3] for each in found] == pytest.approx(sorted(totals.ravel(), reverse=True)[:10], abs=1e-3)
        for step, row, unit, total in found:
            assert totals[step, row] == pytest.approx(total, abs=1e-3)
            assert getattr(layer, kind)[step, row].argmax() == unit


def test_labels_and_ids(tmp_path: Path) -> None:
    case = NetCase(vocabulary=9, hidden=(4,), T=6, B=2)
    trace = model_of(case).trace(case.feeds())
    shown = texts_of(page_of(trace, tmp_path).data["labels"])
    tokens = next(iter(trace.feeds.values()))
    assert shown == [str(token) for token in tokens.T.ravel()]
    shown = texts_of(page_of(trace, tmp_path, labels=list("abcdef")).data["labels"])
    assert shown == list("abcdef") * 2
    with pytest.raises(le.InputError, match="expected 6 labels, one for each step, got 2"):
        trace.html(tmp_path / "page.html", labels=["a", "b"])
    with pytest.raises(le.InputError, match="no layer 'x'"):
        trace.html(tmp_path / "page.html", layers=["x"])


def trace_of(steps: int, rows: int, units: int, name: str = "layer") -> Trace:
    rng = np.random.default_rng(0)
    arrays = {part: rng.uniform(-1, 1, (steps, rows, units)).astype(np.float32) for part in "figoch"}
    arrays["c"] *= 30
    return Trace([LayerTrace(name, "LSTM", arrays, False, ("Sigmoid", "Tanh", "Tanh"))], {}, {}, {})


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_stay_text(name: str, tmp_path: Path) -> None:
    trace = trace_of(3, 1, 2, name)
    page = page_of(trace, tmp_path, labels=[name, "b", name], title=name)
    assert page.data["layers"][0]["name"] == name
    assert texts_of(page.data["labels"]) == [name, "b", name]
    assert set("<>") & set(name) <= set(page.text("h1"))
    assert_inert(trace._repr_html_())


def test_what_is_not_a_number_is_told(tmp_path: Path) -> None:
    trace = trace_of(4, 1, 3)
    layer = trace["layer"]
    layer.arrays["c"][1, 0, 0], layer.arrays["h"][2, 0, 1], layer.arrays["h"][3, 0, 1] = np.nan, np.inf, -np.inf
    data = page_of(trace, tmp_path).data
    found = arrays_of(data["layers"][0], 1, 4)
    assert np.isnan(found["c"][0][1, 0, 0])
    assert found["h"][0][2:, 0, 1].tolist() == [np.inf, -np.inf]


def test_large_runs_take_less_room_and_say_what_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(walk, "EXACT_VALUES", 300)
    trace = trace_of(20, 2, 4)
    parts = page_of(trace, tmp_path).data["layers"][0]["parts"]
    assert {part: packing["b"] for part, packing in parts.items()} == {**dict.fromkeys("figoh", BYTE), "c": WORD}
    assert {parts[part]["d"] for part in "figoh"} == {2}
    assert "told to two digits" in page_of(trace, tmp_path).text("p")
    monkeypatch.setattr(walk, "MOST_VALUES", 6 * 4 * 12)
    page = page_of(trace, tmp_path)
    assert (page.data["rows"], page.data["steps"]) == (1, 12)
    assert "The first 1 of 2 rows are shown." in page.text("p")
    assert "The first 12 of 20 steps are shown." in page.text("p")
    assert all(step < 12 and row < 1 for step, row, _, _ in page.data["layers"][0]["moments"]["updates"])


def test_layers_of_other_lengths_are_told(tmp_path: Path) -> None:
    layers = [*trace_of(6, 1, 3, "a").values(), *trace_of(3, 1, 3, "b").values()]
    trace = Trace(layers, {}, {}, {"c": "it is a secret"})
    page = page_of(trace, tmp_path)
    assert [layer["name"] for layer in page.data["layers"]] == ["a"]
    assert "Not shown: layer 'b' has 3 steps of 1 rows." in page.text("p")
    assert "no record of layer 'c': it is a secret" in page.text("p")
    assert page_of(trace, tmp_path, layers=["b"]).data["steps"] == 3
    with pytest.raises(le.InputError, match="different lengths"):
        trace.html(tmp_path / "page.html", layers=["a", "b"])


def test_a_trace_without_layers_is_a_page(tmp_path: Path) -> None:
    assert page_of(Trace([], {}, {}, {}), tmp_path).data["steps"] == 0


def test_a_layer_that_runs_backwards_forgets_backwards() -> None:
    rng = np.random.default_rng(1)
    arrays = {part: rng.uniform(0, 1, (4, 1, 2)) for part in "fighoc"}
    layer = LayerTrace("x", "LSTM", arrays, backwards=True)
    assert np.array_equal(layer.before("c")[:-1], layer.c[1:])
    assert not layer.before("c")[-1].any()
    assert np.array_equal(layer.forgotten[:-1], (1 - layer.f[:-1]) * layer.c[1:])
    (reverse,) = model_of(LayerCase(direction="reverse")).trace(LayerCase(direction="reverse").feeds()).values()
    assert reverse.backwards
    assert np.allclose(reverse.c, reverse.f * reverse.before("c") + reverse.i * reverse.g, atol=1e-5)
    with pytest.raises(AttributeError):
        _ = LayerTrace("x", "RNN", {"h": arrays["h"]}).forgotten


# --- explain --------------------------------------------------------------------------------------------------------

TEXT = (
    'def explain(model, text):\n    """Return what the gates did with a text."""\n    trace = model.trace(text)\n' * 2
)[:200]


@pytest.fixture(scope="module")
def char() -> le.Model:
    return le.load(CHAR)


@pytest.fixture(scope="module")
def read(char: le.Model) -> walk.Walk:
    return explained(char, Request(text=TEXT))


def test_the_page_of_two_hundred_characters_is_small(read: walk.Walk) -> None:
    html = walk.page(read)
    assert len(html.encode()) < 3_000_000
    page = parsed(html)
    assert page.data["joined"]
    assert "".join(texts_of(page.data["labels"])) == TEXT
    assert {packing["d"] for layer in page.data["layers"] for packing in layer["parts"].values()} == {4}


def test_candidates_are_the_models_likeliest(char: le.Model, read: walk.Walk) -> None:
    vocabulary = json.loads(char.metadata["vocabulary"])
    ids = [vocabulary.index(sign) for sign in TEXT]
    logits = char.trace(np.array([ids])).outputs["logits"][0].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert read.candidates is not None
    for step in range(len(TEXT)):
        order = np.argsort(-expected[step], kind="stable")[:8]
        assert read.candidates.words[step][0] == [vocabulary[token] for token in order]
        assert np.allclose(read.candidates.probabilities[step, 0], expected[step, order])
    assert [step[0] for step in read.candidates.follows] == [*TEXT[1:], ""]
    told = expected[np.arange(len(TEXT) - 1), ids[1:]]
    assert np.allclose(read.candidates.likelihood[:-1, 0], told)
    assert np.isnan(read.candidates.likelihood[-1, 0])
    page = parsed(walk.page(read)).data["candidates"]
    assert texts_of(page["follows"]) == [*TEXT[1:], ""]


def test_a_prompt_is_gone_on_from(char: le.Model) -> None:
    shown = explained(char, Request(prompt="class ", length=30))
    text = "".join(step[0] for step in shown.labels or [])
    assert text.startswith("class ")
    assert len(shown.labels or []) == 36
    again = explained(char, Request(prompt="class ", length=30))
    assert again.labels == shown.labels
    assert "wrote this text itself" in shown.notes[0]
    assert (explained(char, Request(length=3)).labels or [])[0] == ["<doc>"]


def test_layers_are_chosen_by_name(char: le.Model) -> None:
    shown = explained(char, Request(text="ab", layers=("/lstm/LSTM_1",)))
    assert [layer.name for layer in shown.layers] == ["/lstm/LSTM_1"]
    with pytest.raises(le.InputError, match="no layer 'x'"):
        explained(char, Request(text="ab", layers=("x",)))


def test_readings_are_made_up_where_there_are_none() -> None:
    shown = explained(le.load(CLIPPER), Request(length=50))
    assert [signal.name for signal in (*shown.inputs, *shown.outputs)] == ["x", "y"]
    assert shown.inputs[0].values.shape == (50, 1)
    assert 0.5 < np.abs(shown.inputs[0].values).max() <= 1
    assert "made up" in shown.notes[0]
    shown = explained(le.load(DIGITS), Request())
    assert shown.layers[0].arrays["f"].shape == (8, 1, 32)
    assert [layer.backwards for layer in shown.layers] == [False, True]


def test_readings_in_every_form(tmp_path: Path) -> None:
    model = le.load(CLIPPER)
    rows = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
    assert explained(model, Request(feeds=np.float32(3))).layers[0].arrays["c"].shape == (1, 1, 24)
    forms = [rows, rows[:, 0], rows[:, None], {"x": rows[:, None]}, {"anything": rows}]
    expected = model.trace({"x": rows[:, None]})["/lstm/LSTM"].c
    for form in forms:
        assert np.array_equal(explained(model, Request(feeds=form)).layers[0].arrays["c"], expected)
    batch_first = le.load(DIGITS)
    picture = np.random.default_rng(0).uniform(0, 1, (8, 8)).astype(np.float32)
    shown = explained(batch_first, Request(feeds=picture)).layers[0].arrays["c"]
    expected = next(iter(batch_first.trace({"rows": picture[None]}).values())).c
    assert np.array_equal(shown, expected)


def test_token_ids_in_every_form(char: le.Model) -> None:
    ids = np.array([5, 9, 40, 7])
    for form in (ids, ids[:, None], ids[None], {"tokens": ids[None]}):
        shown = explained(char, Request(feeds=form))
        assert shown.layers[0].arrays["c"].shape == (4, 1, 256)
        assert [step[0] for step in shown.labels or []] == [json.loads(char.metadata["vocabulary"])[k] for k in ids]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("time,level\n1, 2.5\n\n3,-4e1\n", encoding="utf-8")
    assert read_csv(path).tolist() == [[1, 2.5], [3, -40]]
    for text, told in (
        ("", "found none"),
        ("a,b\n", "found none"),
        ("1,2\n3\n", "line 2: expected 2 numbers, got 1"),
        ("1,2\n3,x\n", "line 2: 'x' is no number"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(le.InputError, match=told):
            read_csv(path)


def tokens_without_words() -> le.Model:
    return model_of(NetCase(vocabulary=9, hidden=(4,), head="dense", T=5, B=1))


def test_what_explain_refuses(char: le.Model) -> None:
    clipper = le.load(CLIPPER)
    for model, request, told in (
        (clipper, Request(text="abc"), "--text: .*carries no vocabulary; give its readings with --input"),
        (clipper, Request(prompt="abc"), "--prompt: "),
        (clipper, Request(feeds=np.zeros((5, 3), np.float32)), "expected 1 numbers a step, got 3"),
        (char, Request(text=""), "--text: it is empty"),
        (tokens_without_words(), Request(), "nothing can be made up for"),
    ):
        with pytest.raises(le.InputError, match=told):
            explained(model, request)
    dense = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", np.float32, ["time", 1, 3])], [("y", np.float32, None)], {"w": np.ones((3, 2), np.float32)},
    )  # fmt: skip
    with pytest.raises(le.InputError, match="no LSTM, GRU or RNN layer"):
        explained(le.load(dense.SerializeToString()), Request(feeds=np.zeros((4, 1, 3), np.float32)))


def test_token_ids_without_a_vocabulary() -> None:
    shown = explained(tokens_without_words(), Request(feeds=np.array([[1], [2], [8]])))
    assert shown.labels == [["1"], ["2"], ["8"]]
    assert shown.candidates is not None
    assert [step[0] for step in shown.candidates.follows] == ["2", "8", ""]


def frame_model() -> le.Model:
    """An LSTM that takes a frame a call, its states beside it."""
    weights = {**random_weights(3, 4), "axis": np.array([0])}
    inputs = ["steps", "W", "R", "B", "", "h0", "c0"]
    model = make_model(
        [
            helper.make_node("Unsqueeze", ["x", "axis"], ["steps"]),
            helper.make_node("LSTM", inputs, ["", "hn", "cn"], hidden_size=4, name="cell"),
            helper.make_node("Squeeze", ["hn", "axis"], ["y"]),
        ],
        [("x", np.float32, [1, 3]), ("h0", np.float32, [1, 1, 4]), ("c0", np.float32, [1, 1, 4])],
        [("y", np.float32, [1, 4]), ("hn", np.float32, [1, 1, 4]), ("cn", np.float32, [1, 1, 4])],
        weights,
    )
    return le.load(model.SerializeToString())


def test_a_model_of_frames_carries_its_states() -> None:
    model = frame_model()
    rows = np.random.default_rng(0).normal(size=(15, 3)).astype(np.float32)
    shown = explained(model, Request(feeds=rows))
    (layer,) = shown.layers
    assert layer.arrays["c"].shape == (15, 1, 4)
    stream = model.stream()
    outputs = np.stack([stream.step(row[None]).reshape(-1) for row in rows])
    assert np.array_equal(layer.arrays["h"][:, 0], outputs)
    assert np.array_equal(np.stack([signal.values[:, 0] for signal in shown.outputs], axis=1), outputs)
    assert np.array_equal(np.stack([signal.values[:, 0] for signal in shown.inputs], axis=1), rows)
    assert len(explained(model, Request(length=7)).layers[0].arrays["c"]) == 7
    with pytest.raises(le.InputError, match="rows of 3 numbers, one for each frame"):
        explained(model, Request(feeds=rows[:, :2]))


# --- labelled texts -------------------------------------------------------------------------------------------------


def test_the_story_of_the_agreement_model() -> None:
    """Its page shows what the network did: what carries number, and where it is written, kept and lost."""
    folder = MODELS / "agreement"
    model, labelled = le.load(folder / "agreement.onnx"), read_labelled(folder / "labelled.json")
    shown = explained(model, Request(labelled=labelled))
    page = parsed(walk.page(shown))
    assert [track["name"] for track in page.data["tracks"]] == ["number", "gender", "role"]
    assert [step[0] for step in shown.labels or []] == list(labelled.words)
    findings = {finding.heading: finding for finding in shown.findings}
    assert list(findings) == ["What carries number", "What carries gender"]
    number = findings["What carries number"]
    untouched, chance, held, others = map(float, re.findall(r"([\d.]+)%", number.paragraphs[1])[:4])
    assert untouched > 95
    assert abs(held - chance) < 15
    assert others > held + 25
    head, *rows = number.table
    unit = rows[0][0]
    table = {row[1]: dict(zip(head, row, strict=True)) for row in rows if row[0] == unit}

    def apart(place: str) -> float:
        singular, plural = (float(table[place][f"c, {value}"].replace("−", "-")) for value in ("singular", "plural"))
        return abs(singular - plural)

    assert apart("the last word before the one that agrees") > apart("the word before the subject")
    (layer,) = shown.layers
    assert 5 < len(number.jumps) <= 10
    for jump in number.jumps:
        assert jump.unit == int(unit)
        told = float(jump.text.replace("−", "-").rsplit(" ", 1)[1])
        assert told == pytest.approx(layer.arrays["c"][jump.step, 0, jump.unit], abs=0.0051)


def test_what_is_no_labelled_text(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    good = {"text": "a b", "number": ["x", ""], "agreements": [{"kind": "verb", "subject": 0, "word": 1}]}
    entry = {"text": "a b", "told": 0, "label": True, "choices": ["a", "b"]}
    for content, told in (
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([], "expected"),
        ({"texts": []}, "one or more texts"),
        ({"texts": [3]}, "text 0: expected an object"),
        ({"texts": [{**good, "number": ["x"]}]}, "'number': expected 2 labels"),
        ({"texts": [{**good, "number": [1, 2]}]}, "'number': expected 2 labels"),
        ({"texts": [{**good, "agreements": [{"kind": "verb", "subject": 0, "word": 2}]}]}, "places of words"),
        ({"texts": [{**good, "agreements": {}}]}, "places of words"),
        ({"texts": [good], "questions": []}, "expected an object"),
        ({"texts": [good], "questions": {"number": [{**entry, "told": "0"}]}}, "questions of 'number'"),
        ({"texts": [good], "questions": {"number": [entry, {**entry, "choices": ["a"]}]}}, "questions of 'number'"),
        ({"texts": [good], "questions": {"number": []}}, "questions of 'number'"),
    ):
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        with pytest.raises(le.InputError, match=told):
            read_labelled(path)
    path.write_text(json.dumps({"texts": [good, good], "questions": {"number": [entry]}}), encoding="utf-8")
    read = read_labelled(path)
    assert read.words == ("a", "b", "a", "b")
    assert [(a.subject, a.word) for a in read.agreements] == [(0, 1), (2, 3)]
    model = le.load(MODELS / "agreement" / "agreement.onnx")
    with pytest.raises(le.InputError, match="'b' not in the vocabulary"):
        explained(model, Request(labelled=read))
    with pytest.raises(le.InputError, match="reads no words"):
        explained(le.load(CLIPPER), Request(labelled=read))


# --- inspect --html -------------------------------------------------------------------------------------------------


def picture_of(model: le.Model) -> diagram.Picture:
    return pictured(model, described(model))


def test_the_character_model_as_a_diagram(char: le.Model) -> None:
    picture = picture_of(char)
    boxes = [(box.title, box.kind) for box in picture.boxes]
    assert boxes == [
        ("tokens", "input"), ("Gather", "fast"), ("LSTM", "fast"), ("LSTM", "fast"), ("MatMul", "fast"), ("logits", "output"),
    ]  # fmt: skip
    assert [(edge.source, edge.target) for edge in picture.edges] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert picture.edges[0].label == "batch × time"
    assert picture.edges[-1].label == "batch × time × 102"
    assert {(loop.source, loop.target, loop.label) for loop in picture.loops} == {
        (box, box, f"{state}0 ← {state}n") for box in (2, 3) for state in "hc"
    }
    assert sum(row.bytes_share or 0 for row in picture.rows) == pytest.approx(1)
    assert sum(row.time_share or 0 for row in picture.rows) == pytest.approx(1)
    page = parsed(diagram.page(picture))
    assert "It streams" in page.text("h2")
    assert "None: the whole network is machine code." in page.text("p")


def test_what_does_not_stream_says_why() -> None:
    page = parsed(diagram.page(picture_of(le.load(DIGITS))))
    assert "It does not stream" in page.text("h2")
    assert "runs both ways" in page.text("p")


def test_host_operators_are_named() -> None:
    weights = random_weights(3, 4)
    model = make_model(
        [
            helper.make_node("LSTM", ["x", "W", "R", "B"], ["y"], hidden_size=4, name="cell"),
            helper.make_node("Det", ["square"], ["d"], name="determinant"),
        ],
        [("x", np.float32, ["time", 1, 3]), ("square", np.float32, [2, 2])],
        [("y", np.float32, None), ("d", np.float32, None)],
        weights,
    )  # fmt: skip
    picture = picture_of(le.load(model.SerializeToString()))
    assert {box.title: box.kind for box in picture.boxes}["Det"] == "host"
    page = parsed(diagram.page(picture))
    assert "Det 'determinant'" in page.text("p")


def hostile_model(name: str) -> bytes:
    """A tagger whose every name is one that means harm."""
    weights = {f"{key}{name}": value for key, value in random_weights(3, 4).items()}
    model = make_model(
        [
            helper.make_node(
                "LSTM", [f"x{name}", f"W{name}", f"R{name}", f"B{name}"], [f"y{name}"], hidden_size=4, name=name
            )
        ],
        [(f"x{name}", np.float32, [f"time{name}", f"batch{name}", 3])],
        [(f"y{name}", np.float32, None)],
        weights,
        metadata={name: name},
    )
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\ud800" not in name], ids=str.__len__)
def test_models_with_hostile_names(name: str, tmp_path: Path) -> None:
    model = le.load(hostile_model(name))
    plain = parsed(diagram.page(picture_of(le.load(hostile_model("plain")))))
    page = parsed(diagram.page(picture_of(model)))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    trace = model.trace(np.zeros((4, 1, 3), np.float32))
    assert page_of(trace, tmp_path).data["layers"][0]["name"] == name
    for value in (model, trace, model.stream()._lowered.program):
        assert_inert(value._repr_html_())


def assert_inert(html: str) -> None:
    """HTML of a notebook: a table and nothing that acts."""
    tags = Fragment(html).tags
    assert {tag for tag, _ in tags} <= {"div", "strong", "table", "thead", "tbody", "tr", "th", "td", "p"}
    assert all(set(attributes) <= {"style"} for _, attributes in tags)


def test_shapes_in_the_names_of_the_inputs(char: le.Model) -> None:
    shapes = named_shapes(char.graph)
    assert shapes["tokens"] == "batch × time"
    assert shapes["/lstm/LSTM_output_0"] == "time × 1 × batch × 256"
    assert shapes["hn"] == "2 × batch × 256"


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=25))
    )
)
def test_boxes_stand_apart_and_data_goes_right(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    count, pairs = drawn
    boxes = [diagram.Box(str(k), "", "fast") for k in range(count)]
    edges = [diagram.Edge(a, b, "x") for a, b in pairs if a < b]
    picture = diagram.Picture(
        "t", [], boxes, edges, [diagram.Loop(b, a, "s") for a, b in pairs if a <= b], [], [], [], ""
    )
    page = parsed(diagram.page(picture))
    frames = [
        tuple(float(attributes[key] or 0) for key in ("x", "y", "width", "height"))
        for tag, attributes in page.tags
        if tag == "rect" and attributes.get("class") == "frame"
    ]
    assert len(frames) == count
    for (x, y, w, h), (x2, y2, w2, h2) in combinations(frames, 2):
        assert x + w < x2 or x2 + w2 < x or y + h < y2 or y2 + h2 < y
    for edge in edges:
        assert frames[edge.source][0] + frames[edge.source][2] < frames[edge.target][0]


# --- notebooks and matplotlib ---------------------------------------------------------------------------------------


def test_notes_of_a_model_a_trace_and_a_program(char: le.Model) -> None:
    html = char._repr_html_()
    assert "tokens" in html
    assert "state, with hn" in html
    trace = char.trace(np.array([[1, 2, 3]]))
    assert "/lstm/LSTM_1" in trace._repr_html_()
    program = char.stream()._lowered.program
    assert "EMBED" in program._repr_html_()
    for value in (char, trace, program):
        assert_inert(value._repr_html_())
    long = note("x", ["a"], [[k] for k in range(100)])
    assert "… and 60 more" in long


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plot(ending: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    trace = trace_of(12, 2, 5, "a $x^2$ <b> 名")
    figure = trace.plot(tmp_path / f"gates.{ending}", row=1, labels=[*"abcdefgh", "$", "名", "\n", "long"])
    assert (tmp_path / f"gates.{ending}").stat().st_size > 5000
    images = [axes.images[0] for axes in figure.axes if axes.images]
    for image, part in zip(images, "figoch", strict=True):
        assert np.array_equal(image.get_array(), trace["a $x^2$ <b> 名"][part][:, 1].T)
    with pytest.raises(le.InputError, match="rows 0 to 1, got 2"):
        trace.plot(row=2)
    with pytest.raises(le.InputError, match="expected 12 labels"):
        trace.plot(labels=["a"])
    with pytest.raises(le.InputError, match="no layer 'x'"):
        trace.plot(layer="x")


def test_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(LstmEngineError, match=r"matplotlib.*pip install 'lstm-engine\[plot\]'"):
        trace_of(3, 1, 2).plot()
