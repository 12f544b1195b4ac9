"""The trained models of the repository: what their cards say, against onnxruntime, streaming."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from cases import assert_same_bits

import lstm_engine as le
from lstm_engine import precision as precision_module

MODELS = Path(__file__).resolve().parent.parent / "models"
FILES = sorted(MODELS.glob("*/*.onnx"))
WHOLE = {"digits"}  # need the whole sequence
BINDINGS = {"batch": 3, "time": 50}


def feeds_of(model: le.Model, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
    """Drawn feeds; token ids within the vocabulary."""
    draw = np.random.default_rng(seed)
    bound = {**BINDINGS, **sizes}
    feeds = {}
    for spec in model.inputs:
        assert spec.shape is not None
        shape = [d if isinstance(d, int) else bound[str(d)] for d in spec.shape]
        if np.dtype(spec.dtype).kind in "iu":
            feeds[spec.name] = draw.integers(0, model.outputs[0].shape[-1], shape).astype(spec.dtype)  # type: ignore[index]
        else:
            feeds[spec.name] = draw.uniform(-1, 1, shape).astype(spec.dtype)
    return feeds


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def test_there_are_models_and_they_are_small() -> None:
    assert {file.stem for file in FILES} == {"agreement", "char", "clipper", "digits"}
    assert sum(file.stat().st_size for file in FILES) < 8e6


def test_the_card_is_of_this_file(file: Path) -> None:
    card = (file.parent / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    sizes = [int(n.replace(",", "")) for n in re.findall(r"bytes \| ([\d,]+)", card)]
    assert file.stat().st_size in sizes
    assert (file.parent / "train.py").exists()
    for word in ("licen", "data", "not good for"):
        assert word in card.lower()


def test_it_is_onnxruntimes(file: Path) -> None:
    model = le.load(file)
    feeds = feeds_of(model)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    got = model.run(feeds)
    for spec, expected in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        reach = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(got[spec.name], expected, rtol=0, atol=2e-5 * reach, err_msg=spec.name)


def test_it_is_the_definition(file: Path) -> None:
    from lstm_engine import reference

    model = le.load(file)
    feeds = feeds_of(model, 1, time=12)
    doubled = {n: x.astype(np.float64) if x.dtype.kind == "f" else x for n, x in feeds.items()}
    expected = reference.run(model.graph, doubled)
    for name, x in model.run(feeds).items():
        reach = max(1.0, float(np.abs(expected[name]).max()))
        np.testing.assert_allclose(x, expected[name], rtol=0, atol=3e-6 * reach, err_msg=name)


def test_it_streams_where_it_should(file: Path) -> None:
    model = le.load(file)
    if file.stem in WHOLE:
        with pytest.raises(le.StreamingError):
            model.stream()
        return
    carried = dict(model.states)
    assert len(carried) == 2
    feeds = feeds_of(model, 2)
    zeros = {name: 0 * x if name in carried else x for name, x in feeds.items()}
    expected = model.run(zeros)
    (data,) = (name for name in feeds if name not in carried)
    stream = model.stream(BINDINGS["batch"])
    output = model.outputs[0].name
    assert_same_bits(stream.feed(feeds[data]), expected[output])
    for source, result in carried.items():
        assert_same_bits(stream.state.arrays[source], expected[result])
    axis = model.inputs[0].shape.index("time")  # type: ignore[union-attr]
    stream.reset()
    for t in range(5):
        step = stream.step(np.take(feeds[data], t, axis=axis))
        assert_same_bits(step, np.take(expected[output], t, axis=axis))


def test_a_vocabulary_travels_with_the_file(tmp_path: Path) -> None:
    if not (MODELS / "char" / "char.onnx").exists():
        pytest.skip("no character model")
    model = le.load(MODELS / "char" / "char.onnx")
    saved = tmp_path / "char.npz"
    model.save(saved)
    assert dict(le.load(saved).metadata) == dict(model.metadata)
    text = "".join(le.generate(model.stream(), "def ", max_tokens=20, sampler=le.Sampler(temperature=0.5, seed=3)))
    again = "".join(
        le.generate(le.load(saved).stream(), "def ", max_tokens=20, sampler=le.Sampler(temperature=0.5, seed=3))
    )
    assert text == again
    assert len(text) >= 1


@pytest.mark.parametrize(
    "part", [slice(0, 12_000), pytest.param(slice(None), marks=pytest.mark.nightly)], ids=["sample", "all"]
)
def test_lesser_precisions_cost_the_character_model_little(part: slice, monkeypatch: pytest.MonkeyPatch) -> None:
    """On held-out text int8 loses at most 1 % in bits a character, bfloat16 a tenth of that."""
    monkeypatch.syspath_prepend(str(MODELS))
    import precisions

    models = [le.load(MODELS / "char" / "char.onnx", precision=p) for p in precisions.PRECISIONS]
    text = precisions.heldout_text(models[0])[part]
    full, half, byte = (precisions.bits_a_character(model, text) for model in models)
    assert 1.0 < full < 2.2  # it is the text that the card speaks of
    assert byte <= 1.01 * full
    assert half <= 1.001 * full


def test_a_card_says_what_precisions_cost(file: Path) -> None:
    card = (file.parent / "README.md").read_text(encoding="utf-8")
    _, _, rest = card.partition("<!-- precisions: written by precisions.py -->")
    table, end, _ = rest.partition("<!-- end of precisions -->")
    assert end
    sizes = dict(re.findall(r"^\| (\w+) \|.*\| ([\d,]+) \|$", table, re.MULTILINE))
    assert list(sizes) == ["float32", "bfloat16", "int8"]
    for precision, size in sizes.items():
        arrays = precision_module.sizes(le.load(file, precision=precision).graph, precision)[2]
        assert arrays < int(size.replace(",", "")) < arrays + 40_000
