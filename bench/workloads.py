"""The named workloads: one table, what each costs at least, and the sets they are chosen by.

Letters: I inputs, H hidden units, L layers, D directions, B batch, T steps of a call, O outputs of a dense head.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

KINDS: Final = {
    "step": "one step of a stream, from Python call to Python return",
    "sequence": "whole sequences in one call, every step's output",
    "ragged": "sequences of many lengths in one call, every step's output",
    "character": "tokens of a character model, one a call, greedy",
    "tokens": "tokens drawn with temperature, top-k and top-p, one a call, each the next one's input",
    "speech": "a frame of speech: convolutions, an LSTM, a probability, the state carried on",
    "zoo": "files that others have published, one call",
    "cold": "process start to first output",
    "memory": "bytes a stream costs",
    "busy": "single steps while another process keeps each core busy",
    "paced": "a step every millisecond, as real streams have them",
    "crowd": "steps of eight Python threads, each with its own stream",
    "idle": "processor time that a process takes over a second in which it does nothing",
}
PRECISIONS: Final = {"float32": 4, "bfloat16": 2, "int8": 1}  # bytes of a weight
STEPPED: Final = ("step", "character", "tokens", "speech")
CALLED: Final = ("sequence", "ragged", "zoo")
LEAST, MOST = 5, 200  # steps of a ragged batch's sequences


@dataclass(frozen=True)
class Phase:
    """A part of a call: ``bytes`` of weights it cannot help reading, again and again from a ``footprint`` of so many,
    and its ``flops``."""

    name: str
    bytes: int
    footprint: int
    flops: int


@dataclass(frozen=True)
class Workload:
    """One row of the table."""

    name: str
    kind: str
    I: int = 0  # noqa: E741
    H: int = 0
    L: int = 1
    D: int = 1
    B: int = 1
    T: int = 1
    O: int = 0  # noqa: E741
    cell: str = "LSTM"
    precision: str = "float32"
    threads: int = 1
    front_weights: int = 0  # of the layers before the recurrent ones
    front_products: int = 0  # multiplications they make in a call

    @property
    def shape(self) -> dict[str, int | str]:
        """The shape letters, the cell among them where it is no LSTM."""
        values = asdict(self)
        letters: dict[str, int | str] = {letter: values[letter] for letter in "IHLDBTO" if values[letter]}
        return letters | ({"cell": self.cell} if self.cell != "LSTM" else {})

    @property
    def gates(self) -> int:
        """Rows of weights a hidden unit."""
        return {"LSTM": 4, "GRU": 3}[self.cell]

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each sequence of the batch."""
        if self.kind != "ragged":
            return np.full(self.B, self.T, np.int32)
        return np.random.default_rng([4, self.B]).permutation(np.linspace(LEAST, self.T, self.B).astype(np.int32))

    def layer(self, number: int) -> tuple[int, int, int]:
        """Of one direction of that layer: weights that meet inputs, weights that meet h, biases."""
        inputs = self.D * self.H if number else self.I
        rows = self.gates * self.H
        return rows * inputs, rows * self.H, rows

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What a call does, in the order of its data: a step is one phase behind the convolutions of its model.

        A sequence has two for each layer: its inputs may be multiplied for all steps at once, while the weights that
        meet h have to be read again at every step. Biases go with the inputs.
        """
        size = PRECISIONS[self.precision]
        steps, rows = self.T, int(self.lengths.sum())
        layers = [self.layer(number) for number in range(self.L)]
        if self.kind in CALLED:
            return tuple(
                phase
                for of_x, of_h, biases in layers
                for phase in (
                    Phase("inputs", self.D * size * (of_x + biases), size * (of_x + biases), 2 * self.D * of_x * rows),
                    Phase("recurrence", self.D * size * of_h * steps, size * of_h, 2 * self.D * of_h * rows),
                )
            )
        products = sum(self.D * (of_x + of_h) for of_x, of_h, _ in layers) + self.O * self.H
        weights = products + sum(self.D * biases for *_, biases in layers) + self.O
        footprint = size * (self.front_weights + weights)  # all of them stay in use from step to step
        front = Phase("front", size * self.front_weights, footprint, 2 * self.front_products * self.B)
        return (*[front] * bool(front.bytes), Phase("step", size * weights, footprint, 2 * products * rows))

    @property
    def bytes(self) -> int:
        """Bytes of weights a call cannot help reading."""
        return sum(phase.bytes for phase in self.phases)

    @property
    def flops(self) -> int:
        """Multiplications and additions of a call; a bias is what a sum begins with, and costs none."""
        return sum(phase.flops for phase in self.phases)

    @property
    def state_bytes(self) -> int:
        """Bytes of h and c of all layers and rows."""
        return 4 * (2 if self.cell == "LSTM" else 1) * self.L * self.D * self.B * self.H


def varied(workload: Workload, precision: str, threads: int) -> Workload:
    """The workload in another precision or on so many threads, named for it."""
    marks = [precision] * (precision != "float32") + [f"t{threads}"] * (threads > 1)
    return replace(workload, name="-".join([workload.name, *marks]), precision=precision, threads=threads)


# --- the table --------------------------------------------------------------------------------------------------------

SIZES: Final = (8, 16, 32, 64, 128, 256, 512, 1024)
STACKS: Final = ((2, 128), (3, 256), (3, 480), (6, 320))
#: The speech model's frame and its layers, each (channels before, channels after, window, stride, positions it gives):
#: a short-time Fourier transform as a convolution, of which the magnitudes go on, and four convolutions.
SPEECH_SAMPLES, SPEECH_MIRRORED, SPEECH_BINS = 576, 64, 129
SPEECH_LAYERS: Final = (
    (1, 2 * SPEECH_BINS, 256, 128, 4),
    (SPEECH_BINS, 128, 3, 1, 4),
    (128, 64, 3, 2, 2),
    (64, 64, 3, 2, 1),
    (64, 128, 3, 1, 1),
)


def _speech() -> Workload:
    products = [before * after * window for before, after, window, _, _ in SPEECH_LAYERS]
    positions = [layer[-1] for layer in SPEECH_LAYERS]
    biases = sum(after for _, after, *_ in SPEECH_LAYERS[1:])
    return Workload(
        "speech",
        "speech",
        128,
        128,
        O=1,
        front_weights=sum(products) + biases,
        front_products=sum(p * n for p, n in zip(products, positions, strict=True)),
    )


def _plain() -> Iterator[tuple[Workload, Sequence[str], Sequence[int]]]:
    """Every workload in float32 on one thread, with the precisions and numbers of threads it comes in."""
    for H in SIZES:
        yield Workload(f"step-h{H}", "step", H, H), tuple(PRECISIONS), (1, 2)
    for L, H in STACKS:
        yield Workload(f"step-{L}x{H}", "step", H, H, L=L), tuple(PRECISIONS), (1, 2)
    for H in (64, 256):
        yield Workload(f"step-gru-h{H}", "step", H, H, cell="GRU"), ("float32", "int8"), (1,)
    for H in (64, 128, 256):
        yield Workload(f"streams-h{H}-b256", "step", H, H, B=256), tuple(PRECISIONS), (1, 2)
    for B in (1, 16, 64):
        for H in SIZES[1:] if B < 64 else (128, 256, 512):
            large = 128 <= H <= 512
            precisions = tuple(PRECISIONS) if large else ("float32",)
            yield Workload(f"sequence-h{H}-b{B}", "sequence", H, H, B=B, T=100), precisions, (1, 2) if large else (1,)
    for H in (64, 256):
        yield Workload(f"sequence-gru-h{H}-b1", "sequence", H, H, T=100, cell="GRU"), ("float32", "int8"), (1,)
    yield Workload("bidirectional-2x256", "sequence", 256, 256, D=2, T=100), tuple(PRECISIONS), (1, 2)
    yield Workload("ragged-h128-b64", "ragged", 128, 128, B=64, T=MOST), tuple(PRECISIONS), (1, 2)
    yield Workload("character", "character", 64, 256, L=2, O=102), tuple(PRECISIONS), (1, 2)
    yield Workload("tokens", "tokens", 64, 256, L=2, O=102), tuple(PRECISIONS), (1, 2)
    yield Workload("tokens-2x64", "tokens", 64, 64, L=2, O=102), ("float32", "int8"), (1,)
    yield _speech(), tuple(PRECISIONS), (1, 2)
    yield Workload("cold-h64", "cold", 64, 64), ("float32",), (1,)
    for H in (16, 64, 256, 1024):
        yield Workload(f"memory-h{H}", "memory", H, H), ("float32",), (1,)
    for H in (256, 512):
        yield Workload(f"busy-h{H}", "busy", H, H), ("float32",), (2,)
        yield Workload(f"paced-h{H}", "paced", H, H), ("float32",), (2,)
    yield Workload("crowd-2x256", "crowd", 256, 256, L=2), ("float32", "int8"), (2,)
    yield Workload("idle-h256", "idle", 256, 256), ("float32",), (2,)


def _table() -> Iterator[Workload]:
    for workload, precisions, threads in _plain():
        for count in threads:
            yield from (varied(workload, precision, count) for precision in precisions)


WORKLOADS: Final = {workload.name: workload for workload in _table()}

_Sets = dict[str, Callable[[Workload], bool]]
_KIND_SETS: Final[_Sets] = {
    "step": lambda w: w.kind == "step" and w.L == w.B == 1 and w.cell == "LSTM",
    "sequence": lambda w: w.kind == "sequence" and w.B == w.D == 1 and w.cell == "LSTM",
    "batch": lambda w: w.kind == "sequence" and w.B > 1,
    "stacks": lambda w: w.kind == "step" and w.L > 1,
    "streams": lambda w: w.kind == "step" and w.B > 1,
    "gru": lambda w: w.cell == "GRU",
    "bidirectional": lambda w: w.D > 1,
    "ragged": lambda w: w.kind == "ragged",
    "models": lambda w: w.kind in ("character", "speech"),
    "tokens": lambda w: w.kind == "tokens",
    "zoo": lambda w: w.kind == "zoo",
    "cold": lambda w: w.kind == "cold",
    "memory": lambda w: w.kind == "memory",
    "special": lambda w: w.kind in ("busy", "paced", "crowd", "idle"),
}
_PRECISION_SETS: Final[_Sets] = {
    "precision": lambda w: w.precision != "float32",
    "float32": lambda w: w.precision == "float32",
    "bfloat16": lambda w: w.precision == "bfloat16",
    "int8": lambda w: w.precision == "int8",
}
_THREAD_SETS: Final[_Sets] = {
    "one-thread": lambda w: w.threads == 1,
    "threads": lambda w: w.threads > 1,
}
#: Sets of one group are alternatives; of several groups, a row is in one of each.
SETS: Final = (_KIND_SETS, _PRECISION_SETS, _THREAD_SETS)


def zoo_workloads(folder: Path) -> dict[str, Workload]:
    """A row for each model file of the folder that has a recorded case, as its index.json tells."""
    from .zoo import entries

    return {name: Workload(name, "zoo") for name in (f"zoo-{entry['id']}" for entry in entries(folder))}


def chosen(pattern: str | None = None, sets: Sequence[str] = (), zoo: Path | None = None) -> list[Workload]:
    """The workloads of these sets whose name contains the pattern (a shell pattern if it has a * or ?).

    Raises ValueError for an unknown set, or where none is left.
    """
    unknown = [name for name in sets if not any(name in group for group in SETS)]
    if unknown:
        raise ValueError(f"unknown sets {', '.join(unknown)}; there are {', '.join(name for g in SETS for name in g)}")
    wanted = [[test for name, test in group.items() if name in sets] for group in SETS]
    wild = "*" if pattern is None else pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    known = WORKLOADS | (zoo_workloads(zoo) if zoo is not None else {})
    found = [
        workload
        for workload in known.values()
        if fnmatch.fnmatch(workload.name, wild)
        and all(any(test(workload) for test in tests) for tests in wanted if tests)
    ]
    if not found:
        asked = [f"'{pattern}'"] * (pattern is not None) + [f"the sets {', '.join(sets)}"] * bool(sets)
        raise ValueError(f"no workload matches {' and '.join(asked)}; 'list' shows them all")
    return found
