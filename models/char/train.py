"""Train, measure and export the character model: ``python models/char/train.py``.

A two-layer LSTM reads the standard library's documentation one character at a time. Truncated
back-propagation with carried state, Adam, a cosine schedule over a wall-clock budget. The state
with the best validation loss is kept in a checkpoint; ``--from-checkpoint`` starts from one, and
with ``--minutes 0`` only measures and exports it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import corpus  # noqa: E402

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


def chunks(texts: list[str], tokens: list[str], epochs: torch.Generator) -> Iterator[Tensor]:
    """Consecutive pieces of the training text, for ever; None-free: a new epoch is reshuffled."""
    while True:
        order = torch.randperm(len(texts), generator=epochs).tolist()
        ids = torch.tensor(corpus.encode([texts[i] for i in order], tokens))
        rows = streams(ids, BATCH)
        for start in range(0, rows.shape[1] - STEPS - 1, STEPS):
            yield rows[:, start : start + STEPS + 1]


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


def rate_at(part: float, step: int) -> float:
    """The learning rate after a part of the time budget: warm-up, then a cosine."""
    cosine = LAST_RATE + (PEAK_RATE - LAST_RATE) * (1 + math.cos(math.pi * min(part, 1))) / 2
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
    model: CharacterModel, parts: corpus.Split, tokens: list[str], record: Record,
    minutes: float, checkpoint: Path,
) -> None:
    """Train for a wall-clock budget and leave the best state in the checkpoint."""
    valid = torch.tensor(corpus.encode(parts.valid, tokens))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, fused=True)
    pieces = chunks(parts.train, tokens, torch.Generator().manual_seed(record.seed))
    before, begin, looked = record.minutes, time.monotonic(), time.monotonic()
    state, mean, step, part = zero_state(BATCH), 0.0, 0, 0.0
    while part < 1:
        part = (time.monotonic() - begin) / (60 * minutes)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(part, step)
        loss, state = train_step(model, optimizer, next(pieces), state)
        mean = loss if step == 0 else 0.99 * mean + 0.01 * loss
        record.characters += BATCH * STEPS
        step += 1
        if time.monotonic() - looked > VALIDATE_EVERY or part >= 1:
            looked = time.monotonic()
            record.minutes = before + (looked - begin) / 60
            note(model, valid, mean / math.log(2), tokens, record, checkpoint)


def note(
    model: CharacterModel, valid: Tensor, train_bits: float, tokens: list[str], record: Record,
    checkpoint: Path,
) -> None:
    """Validate, print a line, and keep the state where it is the best so far."""
    now = bits(model, valid, batch=8)
    record.history.append((record.minutes, record.characters, train_bits, now))
    print(f"{record.minutes:6.1f} min {record.characters / 1e6:7.2f} M characters  "
          f"train {train_bits:.3f}  valid {now:.3f} bits", flush=True)
    if now < record.valid_bits:
        record.valid_bits = now
        save(checkpoint, model, tokens, record)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=75, help="time to train (0: only export)")
    parser.add_argument("--out", type=Path, default=HERE / "char.onnx", help="the file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, default=Path("char-checkpoint.pt"))
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
        train(model, parts, tokens, record, options.minutes, options.checkpoint)


if __name__ == "__main__":
    main()
