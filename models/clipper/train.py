"""Train, measure and export the diode clipper: ``python models/clipper/train.py``.

A one-layer LSTM and a dense unit follow a simulated circuit sample by sample. The time budget is
counted in processor time, so that a busy machine gives the same model as an idle one.
``--from-checkpoint`` starts from saved weights; with ``--minutes 0`` it only measures and exports.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import solve_toeplitz
from scipy.optimize import curve_fit
from scipy.signal import correlate, lfilter
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import circuit  # noqa: E402
import common  # noqa: E402

NAMES = {"inputs": ["x", "h0", "c0"], "outputs": ["y", "hn", "cn"]}
HIDDEN, ROWS, STEPS = 24, 64, 256
PEAK_RATE, LAST_RATE, WARM_UP = 5e-3, 1e-5, 100
TRAIN_SIGNALS, HELDOUT_SIGNALS, SECONDS, TAPS = 128, 32, 2.0, 128

State = tuple[Tensor, Tensor]
Signals = tuple[np.ndarray, np.ndarray]


class Clipper(nn.Module):
    """One sample in, one sample out."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, HIDDEN)
        self.dense = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden, (hn, cn) = self.lstm(x, (h0, c0))
        return self.dense(hidden), hn, cn


@dataclass
class Record:
    """What a checkpoint tells about its training."""

    seed: int
    minutes: float = 0.0
    samples: int = 0


def zero_state(batch: int) -> State:
    """The state of a circuit at rest."""
    return torch.zeros(1, batch, HIDDEN), torch.zeros(1, batch, HIDDEN)


# --- training ---------------------------------------------------------------------------------


def pieces(signals: Signals, dice: torch.Generator) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Consecutive pieces of a random choice of signals, for ever; True where they begin."""
    x, y = (torch.from_numpy(part).T.contiguous() for part in signals)
    while True:
        rows = torch.randperm(x.shape[1], generator=dice)[:ROWS]
        for start in range(0, x.shape[0] - STEPS + 1, STEPS):
            piece = slice(start, start + STEPS)
            yield x[piece, rows, None], y[piece, rows, None], start == 0


def rate_at(part: float, step: int) -> float:
    """The learning rate after a part of the time budget: warm-up, then a cosine."""
    cosine = LAST_RATE + (PEAK_RATE - LAST_RATE) * (1 + math.cos(math.pi * min(part, 1))) / 2
    return cosine * min(1.0, (step + 1) / WARM_UP)


def train_step(
    model: Clipper, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, state: State
) -> tuple[float, State]:
    """One update; the state that comes back is cut off from the past's gradients."""
    out, hn, cn = model(x, *state)
    loss = (out - y).square().mean()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), (hn.detach(), cn.detach())


def train(model: Clipper, signals: Signals, record: Record, minutes: float) -> None:
    """Train for a budget of processor time."""
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    power, mean, step, part = float((signals[1] ** 2).mean()), 1.0, 0, 0.0
    before, begin, state = record.minutes, time.process_time(), zero_state(ROWS)
    stream = pieces(signals, torch.Generator().manual_seed(record.seed))
    while part < 1:
        part = (time.process_time() - begin) / (60 * minutes)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(part, step)
        x, y, starts = next(stream)
        loss, state = train_step(model, optimizer, x, y, zero_state(ROWS) if starts else state)
        mean, step = 0.998 * mean + 0.002 * loss / power, step + 1
        if step % 1000 == 0:
            print(f"{60 * minutes * part:6.0f} s {step:7d} updates {decibel(mean):7.2f} dB", flush=True)
    record.samples += step * STEPS * ROWS
    record.minutes = before + minutes


def save(path: Path, model: Clipper, record: Record) -> None:
    """Write a checkpoint."""
    torch.save({"model": model.state_dict(), "record": asdict(record)}, path)


def restore(path: Path) -> tuple[Clipper, Record]:
    """Read a checkpoint."""
    content = torch.load(path, weights_only=True)
    model = Clipper()
    model.load_state_dict(content["model"])
    return model, Record(**content["record"])


# --- measuring --------------------------------------------------------------------------------


def decibel(ratio: float) -> float:
    """A ratio of powers in dB."""
    return 10 * math.log10(max(ratio, 1e-30))


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    """The error's power over the signal's (ESR), in dB."""
    difference = got.astype(np.float64) - wanted
    return decibel(float((difference**2).sum() / (wanted.astype(np.float64) ** 2).sum()))


@torch.no_grad()
def play(model: Clipper, x: np.ndarray) -> np.ndarray:
    """The model's answer to signals [count, time], from rest."""
    out, _, _ = model(torch.from_numpy(x).T.contiguous()[..., None], *zero_state(len(x)))
    return out[..., 0].T.numpy()


def gain(past: Signals, x: np.ndarray) -> np.ndarray:
    """Baseline: the best constant factor."""
    return x * float((past[0] * past[1]).sum() / (past[0] ** 2).sum())


def fir(past: Signals, x: np.ndarray) -> np.ndarray:
    """Baseline: the best causal linear filter of TAPS taps (Wiener)."""

    def lags(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        pairs = zip(a.astype(np.float64), b.astype(np.float64), strict=True)
        middle = a.shape[1] - 1
        return sum(correlate(p, q, method="fft")[middle : middle + TAPS] for p, q in pairs)

    taps = solve_toeplitz(lags(past[0], past[0]), lags(past[1], past[0]))
    return lfilter(taps, [1.0], x.astype(np.float64))


def waveshaper(past: Signals, x: np.ndarray) -> np.ndarray:
    """Baseline: the best static curve a tanh(b x)."""

    def curve(x: np.ndarray, a: float, b: float) -> np.ndarray:
        return a * np.tanh(b * x)

    (a, b), _ = curve_fit(curve, past[0].ravel()[::7], past[1].ravel()[::7], p0=(0.5, 4.0))
    return curve(x, a, b)


def quality(model: Clipper, past: Signals, heldout: Signals) -> str:
    """The error on held-out signals, all and by kind, beside that of the baselines."""
    x, y = heldout
    answers = {
        "**this model**": play(model, x),
        "tanh waveshaper, fitted": waveshaper(past, x),
        f"linear filter, {TAPS} taps, fitted": fir(past, x),
        "gain, fitted": gain(past, x),
    }
    rows, kinds = [], len(circuit.KINDS)
    for name, out in answers.items():
        numbers = [error(out, y), *(error(out[k::kinds], y[k::kinds]) for k in range(kinds))]
        rows.append([name, *(f"{number:.1f}" for number in numbers)])
    return common.table(["error to signal, dB", "all", *circuit.KINDS], rows)


def rest(model: Clipper) -> float:
    """The largest output in volts in silence, a second after the start."""
    out = play(model, np.zeros((1, 2 * circuit.RATE), np.float32))
    return float(np.abs(out[:, circuit.RATE :]).max())


# --- export and card --------------------------------------------------------------------------


def export(model: Clipper, path: Path) -> None:
    """Write the ONNX file: time first, every size but the last free."""
    state_axes = {1: "batch"}
    axes = {
        "x": {0: "time", 1: "batch"},
        "y": {0: "time", 1: "batch"},
        "h0": state_axes,
        "c0": state_axes,
        "hn": state_axes,
        "cn": state_axes,
    }
    torch.onnx.export(
        model.eval(),
        (torch.zeros(3, 2, 1), *zero_state(2)),
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
            "task": "follow a diode clipper (RC low-pass, two antiparallel diodes)",
            "sample_rate": str(circuit.RATE),
            "license": "Apache-2.0; the data is synthetic",
        },
    )


def verify(path: Path, model: Clipper, x: np.ndarray) -> float:
    """The largest difference between the exported file and the model over a second of sound."""
    x = x[:3, : circuit.RATE]
    state = {name: s.numpy() for name, s in zip(("h0", "c0"), zero_state(len(x)), strict=True)}
    (got,) = common.session(path).run(["y"], {"x": np.ascontiguousarray(x.T)[..., None], **state})
    worst = float(np.abs(got[..., 0].T - play(model, x)).max())
    assert worst < 1e-4, f"the exported file differs from the model by {worst}"
    return worst


def figures(model: Clipper, past: Signals, heldout: Signals, record: Record, path: Path) -> str:
    """The generated part of the card."""
    return "\n\n".join(
        [
            "### File",
            common.file_facts(path),
            common.interface(path),
            f"Largest difference from PyTorch in onnxruntime: {verify(path, model, heldout[0]):.1e}.",
            "### Quality on held-out signals",
            quality(model, past, heldout),
            f"In silence the output rests at {1000 * rest(model):.1f} mV from zero.",
            "### Training",
            f"{len(past[0])} signals of {SECONDS:g} s to train on, {len(heldout[0])} held out, seed "
            f"{record.seed}. {record.minutes:g} minutes of one core, {record.samples / 1e6:.0f} "
            f"million samples ({record.samples / circuit.RATE / 60:.0f} minutes of sound) played. Made "
            f"with {common.software('torch', 'scipy', 'numba', 'onnx', 'onnxruntime')}.",
        ]
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=6, help="of processor time (0: export)")
    parser.add_argument("--out", type=Path, default=HERE / "clipper.onnx", help="file to write")
    parser.add_argument("--card", type=Path, default=HERE / "README.md", help="to write figures in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, default=Path("clipper-checkpoint.pt"))
    parser.add_argument("--from-checkpoint", type=Path, help="start from these weights")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(options.seed)
    model, record = Clipper(), Record(seed=options.seed)
    if options.from_checkpoint:
        model, record = restore(options.from_checkpoint)
    past = circuit.dataset(2 * record.seed, TRAIN_SIGNALS, SECONDS)
    heldout = circuit.dataset(2 * record.seed + 1, HELDOUT_SIGNALS, SECONDS)
    if options.minutes > 0:
        train(model, past, record, options.minutes)
        save(options.checkpoint, model, record)
    export(model, options.out)
    common.rewrite_card(options.card, figures(model, past, heldout, record, options.out))


if __name__ == "__main__":
    main()
