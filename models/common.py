"""What the training scripts share: files and their metadata, cards, and baselines for text."""

from __future__ import annotations

import hashlib
import lzma
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

BEGIN, END = "<!-- figures: written by train.py -->", "<!-- end of figures -->"


# --- the exported file ------------------------------------------------------------------------


def finish(path: Path, metadata: dict[str, str]) -> None:
    """Give an exported file its metadata, take the exporter's traces out, and check it.

    Exporters may write the stack of the Python code that made each node: bytes nobody reads, and
    the folders of the machine that exported it.
    """
    model = onnx.load(path)
    for item in (
        *model.graph.node,
        *model.graph.initializer,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        model.graph,
    ):
        del item.metadata_props[:]
        item.doc_string = ""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def session(path: Path) -> onnxruntime.InferenceSession:
    """onnxruntime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- the card ---------------------------------------------------------------------------------


def table(header: list[str], rows: list[list[str]], align: str = "---:") -> str:
    """A Markdown table; every column but the first is right-aligned unless told otherwise."""
    lines = [header, ["---", *[align] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def interface(path: Path) -> str:
    """A Markdown table of a file's inputs and outputs."""
    run = session(path)
    rows = []
    for kind, specs in (("input", run.get_inputs()), ("output", run.get_outputs())):
        for spec in specs:
            shape = ", ".join(str(size) for size in spec.shape)
            rows.append([f"`{spec.name}`", kind, spec.type[7:-1], f"[{shape}]"])
    return table(["name", "", "type", "shape"], rows, "---")


def file_facts(path: Path) -> str:
    """Name, size and digest of the exported file, a Markdown table."""
    rows = [["file", f"`{path.name}`"], ["bytes", f"{path.stat().st_size:,}"], ["sha256", f"`{sha256(path)}`"]]
    return table(["", ""], rows, "---")


def software(*packages: str) -> str:
    """The versions that made the file."""
    names = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"Python {platform.python_version()}, {names}"


def rewrite_card(card: Path, figures: str, place: tuple[str, str] = (BEGIN, END)) -> None:
    """Put new figures between two markers of the card."""
    begin, end = place
    before, rest = card.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    card.write_text(f"{before}{begin}\n\n{figures.strip()}\n\n{end}{after}", encoding="utf-8")


# --- baselines for text -----------------------------------------------------------------------


def windows(ids: np.ndarray, length: int, base: int) -> np.ndarray:
    """Every run of `length` tokens as one number, the last token the lowest digit."""
    codes = np.zeros(len(ids) - length + 1, dtype=np.int64)
    for offset in range(length):
        codes = codes * base + ids[offset : offset + len(codes)]
    return codes


def ngram_counts(ids: np.ndarray, length: int, base: int, top: bool) -> tuple[np.ndarray, ...]:
    """The n-grams met, and how often; below the top order, after how many different tokens."""
    if top:
        return np.unique(windows(ids, length, base), return_counts=True)
    longer = np.unique(windows(ids, length + 1, base))
    return np.unique(longer % base**length, return_counts=True)


def discounts(counts: np.ndarray) -> np.ndarray:
    """Modified Kneser-Ney's discount for a count of 0, 1, 2, and 3 or more (Chen & Goodman)."""
    n1, n2, n3, n4 = (np.count_nonzero(counts == n) for n in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0:
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = n1 / (n1 + 2 * n2)
    return np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])


def look_up(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted key stands among the sorted ones, and whether it is there."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return at, keys[at] == wanted


def refine(lower: np.ndarray, train: np.ndarray, test: np.ndarray, length: int, base: int, top: bool) -> np.ndarray:
    """Interpolate one order of Kneser-Ney over the probabilities of the order below."""
    grams, counts = ngram_counts(train, length, base, top)
    cut = discounts(counts)[np.minimum(counts, 3)]
    contexts, first = np.unique(grams // base, return_index=True)
    total, spare = np.add.reduceat(counts, first), np.add.reduceat(cut, first)
    wanted = windows(test, length, base)
    at, met = look_up(grams, wanted)
    kept = np.where(met, counts[at] - cut[at], 0.0)
    context, known = look_up(contexts, wanted // base)
    result, tail = lower.copy(), slice(length - 1, None)
    mixed = (kept + spare[context] * lower[tail]) / total[context]
    result[tail] = np.where(known, mixed, lower[tail])
    return result


def ngram_bits(train: list[int], test: list[int], order: int, base: int) -> float:
    """Mean bits a token, after the first, of an interpolated modified Kneser-Ney model."""
    past, future = np.array(train, dtype=np.int64), np.array(test, dtype=np.int64)
    probability = np.full(len(future), 1 / base)
    for length in range(1, order + 1):
        probability = refine(probability, past, future, length, base, top=length == order)
    return float(-np.log2(probability[1:]).mean())


def xz_size(ids: list[int]) -> int:
    """Bytes of the tokens, one byte each, after xz at its strongest."""
    return len(lzma.compress(bytes(ids), preset=9 | lzma.PRESET_EXTREME))


def xz_bits(train: list[int], test: list[int]) -> tuple[float, float]:
    """Bits a token that xz needs for the test text: alone, and after the training text."""
    alone = xz_size(test)
    after = xz_size(train + test) - xz_size(train)
    return 8 * alone / len(test), 8 * after / len(test)
