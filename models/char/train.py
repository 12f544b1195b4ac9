"""Train, measure and export the character model: ``python models/char/train.py``.

A two-layer LSTM reads the standard library's documentation one character at a time. Truncated
back-propagation with carried state, Adam, a cosine schedule over a wall-clock budget. The state
with the best validation loss is kept in a checkpoint; ``--from-checkpoint`` starts from one, and
with ``--minutes 0`` only measures and exports it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import common  # noqa: E402
import corpus  # noqa: E402

NAMES = {"inputs": ["tokens", "h0", "c0"], "outputs": ["logits", "hn", "cn"]}
TEMPERATURES, SAMPLE_LENGTH = (0.6, 0.8), 1200
EMBEDDING, HIDDEN, LAYERS, DROPOUT = 64, 256, 2, 0.2
BATCH, STEPS = 32, 128
PEAK_RATE, LAST_RATE, WARM_UP = 3e-3, 1e-5, 200
VALIDATE_EVERY = 120.0  # seconds

State = tuple[Tensor, Tensor]


class CharacterModel(nn.Module):
    """Embedding, stacked LSTM, one logit a token."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, HIDDEN, LAYERS, batch_first=True, dropout=DROPOUT)
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(HIDDEN, tokens)
        for name, bias in self.lstm.named_parameters():
            if name.startswith("bias_ih"):  # remember by default: the forget gate starts open
                nn.init.ones_(bias.data[HIDDEN : 2 * HIDDEN])

    def forward(self, tokens: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (hn, cn) = self.lstm(self.embedding(tokens), (h0, c0))
        return self.head(self.dropout(y)), hn, cn


@dataclass
class Record:
    """What a checkpoint tells about its training."""

    seed: int
    minutes: float = 0.0
    characters: int = 0
    valid_bits: float = math.inf
    history: list[tuple[float, int, float, float]] = field(default_factory=list)


def zero_state(batch: int) -> State:
    """The state before the first character."""
    return torch.zeros(LAYERS, batch, HIDDEN), torch.zeros(LAYERS, batch, HIDDEN)


def streams(ids: Tensor, batch: int) -> Tensor:
    """Cut a sequence into equal rows, which are read side by side."""
    length = len(ids) // batch
    return ids[: length * batch].view(batch, length)


def shuffled(texts: list[str], tokens: list[str], seed: int) -> Iterator[Tensor]:
    """The documents' tokens, for ever, every epoch in a new order."""
    dice, ids = torch.Generator().manual_seed(seed), [torch.tensor(corpus.encode([text], tokens)) for text in texts]
    while True:
        for i in torch.randperm(len(ids), generator=dice):
            yield ids[i]


def reader(queue: Iterator[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """One stream's pieces, and whether a document begins with them.

    The last piece of a document is filled up with the start of the next one, so the model sees
    what follows a boundary; then that document is read from its start.
    """
    document = next(queue)
    while True:
        following = next(queue)
        text = torch.cat([document, following[1:]])
        for start in range(0, len(document) - 1, STEPS):
            yield text[start : start + STEPS + 1], start == 0
        document = following


def pieces(texts: list[str], tokens: list[str], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch of streams' next pieces, and 0 where the state begins anew, else 1."""
    queue = shuffled(texts, tokens, seed)
    readers = [reader(queue) for _ in range(BATCH)]
    while True:
        rows, starts = zip(*(next(reader) for reader in readers), strict=True)
        yield torch.stack(rows), 1 - torch.tensor(starts).float()[None, :, None]


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy in nats."""
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


@torch.no_grad()
def bits(model: CharacterModel, ids: Tensor, batch: int = 1, steps: int = 1024) -> float:
    """Mean bits a token over the sequence, state carried from beginning to end."""
    model.eval()
    rows, state, total, count = streams(ids, batch), zero_state(batch), 0.0, 0
    for start in range(0, rows.shape[1] - 1, steps):
        piece = rows[:, start : start + steps + 1]
        logits, *state = model(piece[:, :-1], *state)
        total += loss_of(logits, piece[:, 1:]).item() * piece[:, 1:].numel()
        count += piece[:, 1:].numel()
    model.train()
    return total / count / math.log(2)


def rate_at(part: float, step: int, peak: float) -> float:
    """The learning rate after a part of the time budget: warm-up, then a cosine."""
    cosine = LAST_RATE + (peak - LAST_RATE) * (1 + math.cos(math.pi * min(part, 1))) / 2
    return cosine * min(1.0, (step + 1) / WARM_UP)


def save(path: Path, model: CharacterModel, tokens: list[str], record: Record) -> None:
    """Write a checkpoint, never half of one."""
    content = {"model": model.state_dict(), "tokens": tokens, "record": asdict(record)}
    torch.save(content, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def restore(path: Path) -> tuple[CharacterModel, list[str], Record]:
    """Read a checkpoint."""
    content = torch.load(path, weights_only=True)
    model = CharacterModel(len(content["tokens"]))
    model.load_state_dict(content["model"])
    return model, content["tokens"], Record(**content["record"])


def train_step(
    model: CharacterModel, optimizer: torch.optim.Optimizer, piece: Tensor, state: State
) -> tuple[float, State]:
    """One update; the state that comes back is cut off from the past's gradients."""
    with torch.autocast("cpu", torch.bfloat16):
        logits, hn, cn = model(piece[:, :-1], *state)
    loss = loss_of(logits, piece[:, 1:])
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), (hn.detach().float(), cn.detach().float())


def train(
    model: CharacterModel,
    parts: corpus.Split,
    tokens: list[str],
    record: Record,
    minutes: float,
    rate: float,
    checkpoint: Path,
) -> None:
    """Train for a wall-clock budget and leave the best state in the checkpoint."""
    valid = torch.tensor(corpus.encode(parts.valid, tokens))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, fused=True)
    batches = pieces(parts.train, tokens, record.seed + len(record.history))
    before, begin, looked = record.minutes, time.monotonic(), time.monotonic()
    state, mean, step, part = zero_state(BATCH), 0.0, 0, 0.0
    record.valid_bits = bits(model, valid, batch=8)
    save(checkpoint, model, tokens, record)
    while part < 1:
        part = (time.monotonic() - begin) / (60 * minutes)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(part, step, rate)
        piece, kept = next(batches)
        loss, state = train_step(model, optimizer, piece, (state[0] * kept, state[1] * kept))
        mean = loss if step == 0 else 0.99 * mean + 0.01 * loss
        record.characters += BATCH * STEPS
        step += 1
        if time.monotonic() - looked > VALIDATE_EVERY or part >= 1:
            looked = time.monotonic()
            record.minutes = before + (looked - begin) / 60
            note(model, valid, mean / math.log(2), tokens, record, checkpoint)


def note(
    model: CharacterModel,
    valid: Tensor,
    train_bits: float,
    tokens: list[str],
    record: Record,
    checkpoint: Path,
) -> None:
    """Validate, print a line, and keep the state where it is the best so far."""
    now = bits(model, valid, batch=8)
    record.history.append((record.minutes, record.characters, train_bits, now))
    print(
        f"{record.minutes:6.1f} min {record.characters / 1e6:7.2f} M characters  "
        f"train {train_bits:.3f}  valid {now:.3f} bits",
        flush=True,
    )
    if now < record.valid_bits:
        record.valid_bits = now
        save(checkpoint, model, tokens, record)


# --- export -----------------------------------------------------------------------------------


def export(model: CharacterModel, tokens: list[str], path: Path) -> None:
    """Write the ONNX file; the vocabulary travels in its metadata."""
    model.eval()
    state_axes = {1: "batch"}
    axes = {
        "tokens": {0: "batch", 1: "time"},
        "logits": {0: "batch", 1: "time"},
        "h0": state_axes,
        "c0": state_axes,
        "hn": state_axes,
        "cn": state_axes,
    }
    example = (torch.zeros(2, 3, dtype=torch.int64), *zero_state(2))
    torch.onnx.export(
        model,
        example,
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
            "task": "predict the next character of Python's documentation",
            "unit": "character",
            "vocabulary": json.dumps(tokens),
            "unknown": corpus.UNKNOWN,
            "boundary": corpus.BOUNDARY,
            "license": "PSF-2.0 (text); see the card",
        },
    )


@torch.no_grad()
def verify(model: CharacterModel, path: Path) -> float:
    """The largest difference between the exported file and the model, at a shape of its own."""
    model.eval()
    tokens = torch.randint(0, model.embedding.num_embeddings, (3, 40))
    state = [torch.rand(LAYERS, 3, HIDDEN) - 0.5 for _ in range(2)]
    feeds = dict(zip(NAMES["inputs"], [tokens.numpy(), *(s.numpy() for s in state)], strict=True))
    got, wanted = common.session(path).run(None, feeds), model(tokens, *state)
    worst = max(float(np.abs(g - w.numpy()).max()) for g, w in zip(got, wanted, strict=True))
    assert worst < 1e-4, f"the exported file differs from the model by {worst}"
    return worst


@torch.no_grad()
def sample(model: CharacterModel, tokens: list[str], temperature: float, seed: int) -> str:
    """Text the model writes by itself, from a document's beginning."""
    model.eval()
    dice, state, text = torch.Generator().manual_seed(seed), zero_state(1), ""
    token = tokens.index(corpus.BOUNDARY)
    while len(text) < SAMPLE_LENGTH:
        logits, *state = model(torch.tensor([[token]]), *state)
        chances = torch.softmax(logits[0, 0].double() / temperature, dim=-1)
        token = int(torch.multinomial(chances, 1, generator=dice))
        text += tokens[token] if len(tokens[token]) == 1 else f"\n{tokens[token]}\n"
    return text


# --- the card ---------------------------------------------------------------------------------


def quality(model: CharacterModel, parts: corpus.Split, tokens: list[str]) -> str:
    """Held-out bits a character, beside what the baselines need for the same text."""
    past = corpus.encode(parts.train, tokens)
    text = corpus.encode(parts.heldout, tokens)
    alone, after = common.xz_bits(past, text)
    rows = [["**this model**", f"**{bits(model, torch.tensor(text)):.3f}**"]]
    for order in (5, 8):
        need = common.ngram_bits(past, text, order, len(tokens))
        rows.append([f"{order}-gram, interpolated modified Kneser-Ney", f"{need:.3f}"])
    rows.append(["xz -9e, after the training text", f"{after:.3f}"])
    rows.append(["xz -9e, the held-out text alone", f"{alone:.3f}"])
    return common.table(["", "bits a character"], rows)


def data_facts(parts: corpus.Split, seed: int) -> str:
    """How much text each group holds, and which."""
    groups = (("train", parts.train), ("validation", parts.valid), ("held out", parts.heldout))
    rows = [
        [name, f"{len(texts)}", f"{sum(map(len, texts)):,}", f"`{corpus.fingerprint(texts)}`"] for name, texts in groups
    ]
    heading = f"`corpus.split(seed={seed})`"
    return common.table([heading, "documents", "characters", "fingerprint"], rows)


def progress(record: Record) -> str:
    """The training's course, about a dozen rows."""
    stride = max(1, len(record.history) // 12)
    chosen = record.history[::-1][::stride][::-1]
    rows = [
        [f"{minutes:.0f}", f"{seen / 1e6:.1f}", f"{train_bits:.3f}", f"{valid:.3f}"]
        for minutes, seen, train_bits, valid in chosen
    ]
    return common.table(["minutes", "M characters read", "train bits (dropout on)", "validation bits"], rows)


def figures(model: CharacterModel, parts: corpus.Split, tokens: list[str], record: Record, path: Path) -> str:
    """The generated part of the card."""
    lines = [
        "### File",
        common.file_facts(path),
        common.interface(path),
        f"Largest difference from PyTorch in onnxruntime: {verify(model, path):.1e}.",
        "### Quality on held-out documents",
        quality(model, parts, tokens),
        "### Data",
        data_facts(parts, record.seed),
        f"{len(tokens)} tokens: "
        + " ".join(f"`{token}`" for token in tokens[2:] if token > " " and token != "`")
        + ", the back-quote, space, "
        f"newline, `{corpus.UNKNOWN}` and `{corpus.BOUNDARY}`.",
        "### Training",
        f"{record.minutes:.0f} minutes on one core, {record.characters / 1e6:.0f} million "
        f"characters read. Made with {common.software('torch', 'onnx', 'onnxruntime')}.",
        progress(record),
        "### Samples",
    ]
    for temperature in TEMPERATURES:
        text = sample(model, tokens, temperature, record.seed)
        lines += [f"Temperature {temperature}, from an empty state and `{corpus.BOUNDARY}`:", f"````text\n{text}\n````"]
    return "\n\n".join(lines)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=75, help="time to train (0: only export)")
    parser.add_argument("--out", type=Path, default=HERE / "char.onnx", help="the file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="the highest learning rate")
    parser.add_argument("--checkpoint", type=Path, default=Path("char-checkpoint.pt"))
    parser.add_argument("--card", type=Path, default=HERE / "README.md", help="to write figures in")
    parser.add_argument("--from-checkpoint", type=Path, help="start from this state")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(options.seed)
    parts = corpus.split(options.seed)
    if options.from_checkpoint:
        model, tokens, record = restore(options.from_checkpoint)
    else:
        tokens, record = corpus.vocabulary(parts.train), Record(seed=options.seed)
        model = CharacterModel(len(tokens))
    if options.minutes > 0:
        train(model, parts, tokens, record, options.minutes, options.rate, options.checkpoint)
        model, tokens, record = restore(options.checkpoint)
    export(model, tokens, options.out)
    if options.card:
        common.rewrite_card(options.card, figures(model, parts, tokens, record, options.out))


if __name__ == "__main__":
    main()
