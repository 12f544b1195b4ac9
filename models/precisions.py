"""What weights in bfloat16 and int8 cost in quality: ``python models/precisions.py`` writes a table into each card.

Each model is measured by this project's engine on the data that its training held out, as its card says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE / "clipper"), str(HERE / "agreement")]

import common  # noqa: E402
import corpus  # noqa: E402

import lstm_engine as le  # noqa: E402
from lstm_engine.machine import target  # noqa: E402

PRECISIONS = ("float32", "bfloat16", "int8")
PLACE = ("<!-- precisions: written by precisions.py -->", "<!-- end of precisions -->")
AT_ONCE = 4096  # characters fed in one call


def bits_a_character(model: le.Model, ids: np.ndarray) -> float:
    """Mean bits that a stream needs for each token after the first."""
    stream, total = model.stream(), 0.0
    for first in range(0, len(ids) - 1, AT_ONCE):
        piece = ids[first : first + AT_ONCE + 1]
        logits = stream.feed(piece[None, :-1])[0].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = np.take_along_axis(logits, piece[1:, None], axis=1)[:, 0]
        total += float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum())
    return total / (len(ids) - 1) / float(np.log(2))


def heldout_text(model: le.Model) -> np.ndarray:
    """The held-out documents as tokens of the model."""
    import json

    return np.array(corpus.encode(corpus.split(0).heldout, json.loads(model.metadata["vocabulary"])), np.int64)


def character(models: list[le.Model]) -> tuple[str, list[str]]:
    """Bits a character on the held-out documents."""
    ids = heldout_text(models[0])
    return "bits a character", [f"{bits_a_character(model, ids):.4f}" for model in models]


def clipper(models: list[le.Model]) -> tuple[str, list[str]]:
    """The error's power over the signal's, on held-out signals."""
    import circuit

    x, y = circuit.dataset(1, 32, 2.0)
    feeds = np.ascontiguousarray(x.T, np.float32)[..., None]
    states = {name: np.zeros((1, len(x), 24), np.float32) for name in ("h0", "c0")}
    wanted = y.astype(np.float64)
    cells = []
    for model in models:
        got = model.run({"x": feeds, **states})["y"][..., 0].T
        ratio = ((got - wanted) ** 2).sum() / (wanted**2).sum()
        cells.append(f"{10 * np.log10(ratio):.1f}")
    return "error to signal, dB", cells


def digits(models: list[le.Model]) -> tuple[str, list[str]]:
    """Held-out pictures read rightly."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    x, y = (data.images / 16).astype(np.float32), data.target
    _, x, _, y = train_test_split(x, y, test_size=0.25, stratify=y, random_state=0)
    return "right, of 450", [str(int((model.run(x)["scores"].argmax(1) == y).sum())) for model in models]


def agreement(models: list[le.Model]) -> tuple[str, list[str]]:
    """Bits a word on the held-out texts."""
    import measure

    tokens = measure.tokens_of(measure.heldout_texts(), measure.vocabulary(models[0]))
    return "bits a word", [f"{measure.bits_a_word(measure.read(model, tokens), tokens):.4f}" for model in models]


MEASURES: dict[str, Callable[[list[le.Model]], tuple[str, list[str]]]] = {
    "agreement": agreement,
    "char": character,
    "clipper": clipper,
    "digits": digits,
}


def saved_bytes(model: le.Model) -> int:
    """The size of the engine's own file."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        model.save(path)
        return path.stat().st_size


def figures(name: str) -> str:
    """The generated part of a card."""
    models = [le.load(HERE / name / f"{name}.onnx", precision=precision) for precision in PRECISIONS]
    heading, cells = MEASURES[name](models)
    rows = [
        [precision, cell, f"{saved_bytes(model):,}"]
        for precision, cell, model in zip(PRECISIONS, cells, models, strict=True)
    ]
    rounded = "Rows that bfloat16 weights meet are rounded too on the processor this was measured on."
    return common.table(["weights", heading, "bytes as .npz"], rows) + (f"\n\n{rounded}" if target().bf16 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(MEASURES), help="which models")
    for name in parser.parse_args().names:
        text = figures(name)
        common.rewrite_card(HERE / name / "README.md", text, PLACE)
        print(f"{name}\n\n{text}\n", flush=True)


if __name__ == "__main__":
    main()
