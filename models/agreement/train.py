"""Train and export the agreement model: ``python models/agreement/train.py``.

An LSTM reads the texts of ``grammar.py`` word by word, one after another without end: its state is carried over
sentences and texts. Truncated back-propagation, Adam, a cosine schedule over a number of updates. With ``--updates 0``
it only exports a checkpoint. ``measure.py`` then says what the file has learnt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

import common  # noqa: E402
import grammar  # noqa: E402

NAMES = {"inputs": ["tokens", "h0", "c0"], "outputs": ["logits", "hn", "cn"]}
EMBEDDING, HIDDEN = 24, 32
ROWS, STEPS = 64, 48
TRAIN_WORDS = 4_000_000
PEAK_RATE, LAST_RATE, WARM_UP = 6e-3, 2e-5, 200
BEGIN_ANEW = 0.03  # chance that a row goes elsewhere after a piece, with an empty state

State = tuple[Tensor, Tensor]


class Agreement(nn.Module):
    """Embedding, LSTM, one logit a word."""

    def __init__(self, words: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, hidden, batch_first=True)
        self.head = nn.Linear(hidden, words)
        nn.init.ones_(self.lstm.bias_ih_l0.data[hidden : 2 * hidden])  # the forget gate starts open

    def forward(self, tokens: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (hn, cn) = self.lstm(self.embedding(tokens), (h0, c0))
        return self.head(y), hn, cn

    def zero_state(self, rows: int) -> State:
        """The state before the first word."""
        shape = (1, rows, self.lstm.hidden_size)
        return torch.zeros(shape), torch.zeros(shape)


@dataclass
class Record:
    """What a checkpoint tells about its training."""

    seed: int
    updates: int = 0
    minutes: float = 0.0
    bits: float = 0.0  # a word, the mean over the last updates


def corpus(seed: str, count: int, style: grammar.Style | None = None) -> np.ndarray:
    """At least so many words of texts, as tokens."""
    ids = {word: i for i, word in enumerate(grammar.words())}
    tokens: list[int] = []
    for text in grammar.Writer(seed, style).texts():
        tokens += [ids[word] for word in text.words]
        if len(tokens) >= count:
            return np.array(tokens, np.int64)
    raise AssertionError("texts have no end")


def rate_at(part: float, update: int) -> float:
    """The learning rate after a part of the training: warm-up, then a cosine."""
    cosine = LAST_RATE + (PEAK_RATE - LAST_RATE) * (1 + math.cos(math.pi * part)) / 2
    return cosine * min(1.0, (update + 1) / WARM_UP)


def pieces(text: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of texts that rows read side by side, and 0 where a row's state begins anew, else 1.

    Anew is at a sentence's first word: a stream that begins empty begins a sentence.
    """
    dice = torch.Generator().manual_seed(seed)
    begins = 1 + torch.nonzero(text == grammar.words().index(grammar.END))[:-1, 0]
    begins = begins[begins < len(text) - STEPS]
    at, steps = begins[torch.randint(len(begins), (ROWS,), generator=dice)], torch.arange(STEPS + 1)
    kept = torch.zeros(ROWS)
    while True:
        yield text[at[:, None] + steps], kept[None, :, None]
        at = at + STEPS
        anew = (torch.rand(ROWS, generator=dice) < BEGIN_ANEW) | (at >= len(text) - STEPS)
        at = torch.where(anew, begins[torch.randint(len(begins), (ROWS,), generator=dice)], at)
        kept = 1 - anew.float()


def train(model: Agreement, record: Record, updates: int) -> None:
    """So many updates of the weights, the learning rate on a cosine."""
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    text = torch.from_numpy(corpus(f"train {record.seed}", TRAIN_WORDS))
    begin, mean = time.monotonic(), 0.0
    state = model.zero_state(ROWS)
    for update, (piece, kept) in enumerate(islice(pieces(text, record.seed + record.updates), updates)):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(update / updates, update)
        loss, state = train_step(model, optimizer, piece, (state[0] * kept, state[1] * kept))
        mean = loss if update == 0 else 0.995 * mean + 0.005 * loss
        if (update + 1) % 500 == 0:
            seconds, bits = time.monotonic() - begin, mean / math.log(2)
            print(f"{seconds:6.0f} s {update + 1:6d} updates {bits:.4f} bits", flush=True)
    record.updates += updates
    record.minutes += (time.monotonic() - begin) / 60
    record.bits = mean / math.log(2)


def train_step(model: Agreement, optimizer: torch.optim.Optimizer, piece: Tensor, state: State) -> tuple[float, State]:
    """One update; the state that comes back is cut off from the past's gradients."""
    logits, hn, cn = model(piece[:, :-1], *state)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), piece[:, 1:].flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), (hn.detach(), cn.detach())


def save(path: Path, model: Agreement, record: Record) -> None:
    """Write a checkpoint."""
    torch.save({"model": model.state_dict(), "record": asdict(record)}, path)


def restore(path: Path) -> tuple[Agreement, Record]:
    """Read a checkpoint."""
    content = torch.load(path, weights_only=True)
    weights = content["model"]
    model = Agreement(len(weights["embedding.weight"]), weights["lstm.weight_hh_l0"].shape[1])
    model.load_state_dict(weights)
    return model, Record(**content["record"])


# --- export -----------------------------------------------------------------------------------


def export(model: Agreement, path: Path) -> None:
    """Write the ONNX file; the vocabulary travels in its metadata."""
    state_axes = {1: "batch"}
    axes = {
        "tokens": {0: "batch", 1: "time"},
        "logits": {0: "batch", 1: "time"},
        "h0": state_axes,
        "c0": state_axes,
        "hn": state_axes,
        "cn": state_axes,
    }
    torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 3, dtype=torch.int64), *model.zero_state(2)),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=NAMES["inputs"],
        output_names=NAMES["outputs"],
        dynamic_axes=axes,
    )
    common.finish(
        path,
        {
            "task": "predict the next word of texts in which subjects, verbs and pronouns agree",
            "unit": "word",
            "vocabulary": json.dumps(grammar.words()),
            "boundary": grammar.BOUNDARY,
            "license": "Apache-2.0; the data is synthetic",
        },
    )


@torch.no_grad()
def verify(model: Agreement, path: Path) -> float:
    """The largest difference between the exported file and the model, at a shape of its own."""
    tokens = torch.randint(0, model.embedding.num_embeddings, (3, 40))
    state = [torch.rand(1, 3, model.lstm.hidden_size) - 0.5 for _ in range(2)]
    feeds = dict(zip(NAMES["inputs"], [tokens.numpy(), *(s.numpy() for s in state)], strict=True))
    got, wanted = common.session(path).run(None, feeds), model(tokens, *state)
    worst = max(float(np.abs(g - w.numpy()).max()) for g, w in zip(got, wanted, strict=True))
    assert worst < 1e-4, f"the exported file differs from the model by {worst}"
    return worst


# --- the card ---------------------------------------------------------------------------------


def figures(model: Agreement, record: Record, path: Path) -> str:
    """The part of the card that training knows."""
    text = " ".join(map(str, corpus(f"train {record.seed}", 100_000)))
    read = record.updates * ROWS * STEPS
    return "\n\n".join(
        [
            "### File",
            common.file_facts(path),
            common.interface(path),
            f"Largest difference from PyTorch in onnxruntime: {verify(model, path):.1e}.",
            "### Training",
            f"LSTM of {model.lstm.hidden_size} units, seed {record.seed}, {record.updates:,} updates: {read / 1e6:.0f} "
            f"million words read, of texts of {TRAIN_WORDS / 1e6:.0f} million; {record.bits:.3f} bits a word over the "
            f"last updates; {record.minutes:.0f} minutes of a shared core. {len(grammar.words())} words; the tokens "
            f"read begin as `{hashlib.sha256(text.encode()).hexdigest()[:16]}`. Made with "
            f"{common.software('torch', 'onnx', 'onnxruntime')}.",
        ]
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=10_000, help="of the weights (0: only export and measure)")
    parser.add_argument("--hidden", type=int, default=HIDDEN, help="units")
    parser.add_argument("--out", type=Path, default=HERE / "agreement.onnx", help="file to write")
    parser.add_argument("--card", type=Path, default=HERE / "README.md", help="to write figures in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, default=Path("agreement-checkpoint.pt"))
    parser.add_argument("--from-checkpoint", type=Path, help="start from these weights")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(options.seed)
    model, record = Agreement(len(grammar.words()), options.hidden), Record(seed=options.seed)
    if options.from_checkpoint:
        model, record = restore(options.from_checkpoint)
    if options.updates > 0:
        train(model, record, options.updates)
        save(options.checkpoint, model, record)
    export(model, options.out)
    common.rewrite_card(options.card, figures(model, record, options.out))


if __name__ == "__main__":
    main()
