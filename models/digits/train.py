"""Train, measure and export the digits classifier: ``python models/digits/train.py``.

A bidirectional LSTM reads an 8 x 8 picture of a digit row by row; the last state of each direction
goes into a dense layer.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import common  # noqa: E402

HIDDEN, DROPOUT, BATCH, HELDOUT = 32, 0.3, 64, 0.25
PEAK_RATE, LAST_RATE, WEIGHT_DECAY = 5e-3, 1e-5, 1e-2


class Digits(nn.Module):
    """Rows of a picture in, one score a digit out."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, HIDDEN, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(DROPOUT)
        self.dense = nn.Linear(2 * HIDDEN, 10)

    def forward(self, rows: Tensor) -> Tensor:
        _, (hn, _) = self.lstm(rows)
        both = torch.cat([hn[0], hn[1]], dim=1)
        return torch.log_softmax(self.dense(self.dropout(both)), dim=1)


@dataclass
class Data:
    """Pictures [count, 8, 8] with values from 0 to 1, and their digits."""

    x: np.ndarray
    y: np.ndarray
    x_heldout: np.ndarray
    y_heldout: np.ndarray


def load(seed: int) -> Data:
    """The digits, a quarter of each class held out."""
    digits = load_digits()
    x, y = (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)
    x, x_heldout, y, y_heldout = train_test_split(x, y, test_size=HELDOUT, stratify=y, random_state=seed)
    return Data(x, y, x_heldout, y_heldout)


def shifted(x: Tensor) -> Tensor:
    """Each picture moved by at most one pixel up, down, left or right."""
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    down, right = torch.randint(0, 3, (2, len(x)))
    rows = down[:, None] + torch.arange(8)
    columns = right[:, None] + torch.arange(8)
    return padded[torch.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]]


def train(model: Digits, data: Data, minutes: float) -> int:
    """Train for a budget of processor time; returns the number of epochs."""
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY, fused=True)
    begin, epochs, part = time.process_time(), 0, 0.0
    model.train()
    while part < 1:
        for chosen in torch.randperm(len(x)).split(BATCH):
            part = min(1.0, (time.process_time() - begin) / (60 * minutes))
            cosine = (1 + math.cos(math.pi * part)) / 2
            optimizer.param_groups[0]["lr"] = LAST_RATE + (PEAK_RATE - LAST_RATE) * cosine
            loss = nn.functional.nll_loss(model(shifted(x[chosen])), y[chosen])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        epochs += 1
    return epochs


def export(model: Digits, path: Path, data: Data) -> None:
    """Write the ONNX file with PyTorch's newer exporter; the batch size is free."""
    example = (torch.from_numpy(data.x[:3]),)
    torch.onnx.export(
        model.eval(),
        example,
        str(path),
        dynamo=True,
        external_data=False,
        input_names=["rows"],
        output_names=["scores"],
        dynamic_shapes={"rows": {0: torch.export.Dim("batch")}},
    )
    common.finish(
        path,
        {
            "task": "classify handwritten digits read row by row",
            "license": "CC-BY-4.0 (UCI Optical Recognition of Handwritten Digits)",
        },
    )


def scores(path: Path, x: np.ndarray) -> np.ndarray:
    """The exported file's answers."""
    return common.session(path).run(["scores"], {"rows": x})[0]


def verify(model: Digits, path: Path, x: np.ndarray) -> float:
    """The largest difference between the exported file and the model, at several batch sizes."""
    worst = 0.0
    for part in (x[:1], x[:7], x):
        wanted = model(torch.from_numpy(part)).detach().numpy()
        worst = max(worst, float(np.abs(scores(path, part) - wanted).max()))
    assert worst < 1e-4, f"the exported file differs from the model by {worst}"
    return worst


def quality(path: Path, data: Data) -> str:
    """Held-out accuracy of the exported file, beside logistic regression's."""
    plain = LogisticRegression(max_iter=5000).fit(data.x.reshape(-1, 64), data.y)
    answers = {
        "**this model** (the exported file)": scores(path, data.x_heldout).argmax(1),
        "logistic regression": plain.predict(data.x_heldout.reshape(-1, 64)),
    }
    rows = []
    for name, answer in answers.items():
        right = answer == data.y_heldout
        rows.append([name, f"{100 * right.mean():.2f} %", f"{(~right).sum()} of {len(right)}"])
    return common.table(["held-out pictures", "right", "wrong"], rows)


def mistakes(path: Path, data: Data) -> str:
    """Which digits it takes for which."""
    counts = confusion_matrix(data.y_heldout, scores(path, data.x_heldout).argmax(1))
    np.fill_diagonal(counts, 0)
    pairs = [f"{a} as {b} ({counts[a, b]})" for a, b in zip(*np.nonzero(counts), strict=True)]
    return "Mistakes: " + (", ".join(pairs) or "none") + "."


def figures(model: Digits, data: Data, epochs: int, options: argparse.Namespace) -> str:
    """The generated part of the card."""
    path = options.out
    return "\n\n".join(
        [
            "### File",
            common.file_facts(path),
            common.interface(path),
            f"Largest difference from PyTorch in onnxruntime: {verify(model, path, data.x_heldout):.1e}.",
            "### Quality",
            quality(path, data),
            mistakes(path, data),
            "### Training",
            f"{len(data.x)} pictures to train on, {len(data.x_heldout)} held out (stratified, seed "
            f"{options.seed}); {epochs} epochs in {options.minutes:g} minutes of one core. Made with "
            f"{common.software('torch', 'scikit-learn', 'onnx', 'onnxscript', 'onnxruntime')}.",
        ]
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0.5, help="of processor time")
    parser.add_argument("--out", type=Path, default=HERE / "digits.onnx", help="file to write")
    parser.add_argument("--card", type=Path, default=HERE / "README.md", help="to write figures in")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    model, data = Digits(), load(options.seed)
    epochs = train(model, data, options.minutes)
    export(model, options.out, data)
    common.rewrite_card(options.card, figures(model, data, epochs, options))


if __name__ == "__main__":
    main()
