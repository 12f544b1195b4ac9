"""The networks that both of PyTorch's exporters write: modules, inputs, and which of their axes may vary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

I, H, V, B0, T0 = 3, 4, 11, 2, 5  # noqa: E741  inputs, hidden, vocabulary; batch and steps at export

Axes = Sequence[str | int]


@dataclass(frozen=True)
class Scenario:
    """A network to export.

    ``inputs``: the axes of each, letters for those that vary. ``stream`` as in Entry; ``stream_fixed``: where the file
    fixes T. ``integers``: which inputs are "tokens", "lengths", or "sorted" lengths.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: dict[str, Axes]
    outputs: tuple[str, ...]
    stream: str = ""
    sizes: tuple[dict[str, int], ...] = ({"T": T0, "B": B0}, {"T": 7, "B": 3})
    integers: dict[str, str] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    constants: tuple[str, ...] = ()
    scripted: bool = False
    stream_fixed: str | None = None

    def module(self) -> nn.Module:
        """The network with the weights that its name seeds."""
        torch.manual_seed(sum(map(ord, self.name)))
        built = self.build().eval().to(self.dtype)
        return torch.jit.script(built) if self.scripted else built

    def feeds(self, sizes: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
        """Inputs of these sizes."""
        rng = np.random.default_rng(seed)
        return {
            name: self._values(name, [sizes.get(str(a), a) for a in axes], sizes, rng)
            for name, axes in self.inputs.items()
        }

    def _values(self, name: str, shape: Axes, sizes: dict[str, int], rng: np.random.Generator) -> np.ndarray:
        kind = self.integers.get(name)
        if kind == "tokens":
            return rng.integers(0, V, shape)
        if kind in ("lengths", "sorted"):
            lengths = rng.integers(1, sizes["T"] + 1, shape)
            lengths[0] = sizes["T"]
            return np.sort(lengths)[::-1].copy() if kind == "sorted" else np.roll(lengths, 1)
        return rng.standard_normal(shape).astype(
            np.float64 if self.dtype == torch.float64 else np.float16 if self.dtype == torch.float16 else np.float32
        )


class Layer(nn.Module):
    """x → the outputs of a recurrent layer."""

    def __init__(self, kind: str = "LSTM", inputs: int = I, **options: object) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(inputs, H, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class WithStates(Layer):
    def forward(self, x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.layer(x, (h0, c0))
        return y, h, c


class WithState(Layer):
    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x, h0)


class GivingStates(Layer):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.layer(x)
        return y, h, c


class LanguageModel(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, H if tied else I, padding_idx=0)
        self.lstm = nn.LSTM(H if tied else I, H, 2, batch_first=True, dropout=0.3)
        self.head = nn.Linear(H, V)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0])


class LanguageModelStep(LanguageModel):
    """Logits as [B*T, V], and the states: word_language_model of PyTorch's examples."""

    def forward(self, tokens: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.lstm(self.embedding(tokens), (h0, c0))
        return F.log_softmax(self.head(y).view(-1, V), dim=1), h, c


class Classifier(nn.Module):
    """What is read: the last output, the last layer's h_n, both directions' h_n, an attention over all outputs, …"""

    def __init__(self, read: str, **options: object) -> None:
        super().__init__()
        self.read = read
        self.lstm = nn.LSTM(I, H, batch_first=True, **options)
        width = H * (2 if options.get("bidirectional") else 1)
        self.score = nn.Linear(width, 1)
        self.head = nn.Sequential(nn.Linear(width, H), nn.ReLU(), nn.Dropout(0.2), nn.Linear(H, 3))

    def forward(self, x: Tensor) -> Tensor:
        y, (h, _) = self.lstm(x)
        if self.read == "last":
            v = y[:, -1, :]
        elif self.read == "state":
            v = h[-1]
        elif self.read == "both":
            v = torch.cat((h[-2], h[-1]), dim=1)
        elif self.read == "attention":
            v = (y * torch.softmax(torch.tanh(self.score(y)), dim=1)).sum(1)
        elif self.read == "mean":
            v = y.mean(dim=1)
        elif self.read == "max":
            v = torch.cat((y.max(dim=1)[0], y.mean(1)), -1)[..., : y.size(-1)]
        else:
            v = y.transpose(1, 2)
            v = F.adaptive_max_pool1d(v, 1).squeeze(-1)
        return torch.softmax(self.head(v), dim=-1)


class Packed(nn.Module):
    def __init__(self, is_sorted: bool, kind: str = "LSTM", **options: object) -> None:
        super().__init__()
        self.is_sorted = is_sorted
        self.layer = getattr(nn, kind)(I, H, batch_first=True, **options)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=self.is_sorted)
        y, state = self.layer(packed)
        y, _ = pad_packed_sequence(y, batch_first=True)
        return y, state[0] if isinstance(state, tuple) else state


class CellStep(nn.Module):
    """One step of a cell, its states given and returned."""

    def __init__(self, kind: str = "LSTMCell", bias: bool = True) -> None:
        super().__init__()
        self.cell = getattr(nn, kind)(I, H, bias=bias)
        self.head = nn.Linear(H, 2)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, c = self.cell(x, (h, c))
        return self.head(h), h, c


class CellStepGRU(CellStep):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(x, h)
        return self.head(h), h


class Unrolled(nn.Module):
    """Cells in a Python loop: unrolled when traced."""

    def __init__(self, kind: str = "LSTMCell", steps: int = T0, two: bool = False) -> None:
        super().__init__()
        self.steps, self.lstm, self.two = steps, kind == "LSTMCell", two
        self.cell = getattr(nn, kind)(I, H)
        self.second = getattr(nn, kind)(H, H)

    def forward(self, x: Tensor) -> Tensor:
        h = c = h2 = c2 = x.new_zeros(x.size(1), H)
        ys = []
        for t in range(self.steps):
            if self.lstm:
                h, c = self.cell(x[t], (h, c))
                if self.two:
                    h2, c2 = self.second(h, (h2, c2))
            else:
                h = self.cell(x[t], h)
                if self.two:
                    h2 = self.second(h, h2)
            ys.append(h2 if self.two else h)
        return torch.stack(ys)


class ScriptedLoop(nn.Module):
    """LSTMCell in a scripted loop over a dynamic T."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(I, H)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(1), 4)
        c = torch.zeros(x.size(1), 4)
        ys = torch.jit.annotate(list[Tensor], [])
        for t in range(x.size(0)):
            h, c = self.cell(x[t], (h, c))
            ys.append(h)
        return torch.stack(ys)


class ScriptedGates(nn.Module):
    """A cell written by hand, gates in an order of its own, in a scripted loop that appends by cat."""

    def __init__(self) -> None:
        super().__init__()
        self.wx = nn.Linear(I, 4 * H)
        self.wh = nn.Linear(H, 4 * H, bias=False)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ys = torch.zeros(0, x.size(1), 4)
        for t in range(x.size(0)):
            f, i, o, g = (self.wx(x[t]) + self.wh(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            ys = torch.cat((ys, h.unsqueeze(0)), 0)
        return ys, h, c


class HandWrittenStep(nn.Module):
    """One step of a cell with a Linear a gate, as tutorials write it."""

    def __init__(self, peephole: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.gates = nn.ModuleList([nn.Linear(I + H, H) for _ in range(4)])
        self.peep = nn.ParameterList([nn.Parameter(torch.randn(H) * 0.3) for _ in range(3)]) if peephole else None
        self.norm = nn.LayerNorm(H) if norm else nn.Identity()

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.cat((x, h), dim=1)
        f, i, g, o = (gate(z) for gate in self.gates)
        if self.peep is not None:
            f, i = f + self.peep[0] * c, i + self.peep[1] * c
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(self.norm(g))
        o = o + self.peep[2] * c if self.peep is not None else o
        return torch.sigmoid(o) * torch.tanh(c), c


class CoupledGates(nn.Module):
    """The input gate is what the forget gate leaves: f and i coupled."""

    def __init__(self) -> None:
        super().__init__()
        self.wx, self.wh = nn.Linear(I, 3 * H), nn.Linear(H, 3 * H)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, g, o = torch.split(self.wx(x) + self.wh(h), H, dim=-1)
        i = torch.sigmoid(i)
        c = (1 - i) * c + i * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class AttentionDecoder(nn.Module):
    """One step of a decoder: token, states and the encoder's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, I)
        self.query, self.key, self.score = nn.Linear(H, H), nn.Linear(H, H), nn.Linear(H, 1)
        self.lstm = nn.LSTM(I + H, H)
        self.head = nn.Linear(2 * H, V)

    def forward(self, token: Tensor, h: Tensor, c: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        energy = torch.tanh(self.query(h[-1]).unsqueeze(1) + self.key(memory))
        weights = F.softmax(self.score(energy).squeeze(2), dim=1)
        context = torch.bmm(weights.unsqueeze(1), memory).squeeze(1)
        x = torch.cat((self.embedding(token), context), 1)
        y, (h, c) = self.lstm(x.unsqueeze(0), (h, c))
        return F.log_softmax(self.head(torch.cat((y.squeeze(0), context), 1)), -1), h, c, weights


class EncoderDecoder(nn.Module):
    """The encoder's last states begin the decoder."""

    def __init__(self, bidirectional: bool = False) -> None:
        super().__init__()
        self.encoder = nn.LSTM(I, H, batch_first=True, bidirectional=bidirectional)
        self.decoder = nn.LSTM(I, H, batch_first=True)
        self.head = nn.Linear(H, I)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        _, (h, c) = self.encoder(x)
        y, _ = self.decoder(target, (h.sum(0, keepdim=True), c.sum(0, keepdim=True)))
        return self.head(y)


class AutoEncoder(nn.Module):
    """The last state, repeated over all steps, is decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(I, H, batch_first=True), nn.LSTM(H, I, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.encoder(x)
        return self.decoder(h[-1].unsqueeze(1).repeat(1, x.size(1), 1))[0]


class CRNN(nn.Module):
    """Text recognition: convolutions over an image, its columns read by a bidirectional LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2, 2),
            nn.Conv2d(4, 6, (4, 3), padding=(0, 1)), nn.BatchNorm2d(6), nn.LeakyReLU(0.1), nn.MaxPool2d((1, 2), (1, 2), ceil_mode=True),
        )  # fmt: skip
        for norm in (self.features[1], self.features[5]):
            nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
        self.lstm = nn.LSTM(6, H, bidirectional=True)
        self.head = nn.Linear(2 * H, V)

    def forward(self, image: Tensor) -> Tensor:
        f = self.features(image)
        f = f.squeeze(2).permute(2, 0, 1)
        return F.log_softmax(self.head(self.lstm(f)[0]), dim=2)


class CausalConv(nn.Module):
    """Padded on the left only, then LSTM: [B, C, T] in, [B, T, 2] out."""

    def __init__(self, dilation: int = 1) -> None:
        super().__init__()
        self.pad = 2 * dilation
        self.conv = nn.Conv1d(I, H, 3, dilation=dilation)
        self.act = nn.PReLU()
        self.lstm = nn.LSTM(H, H, batch_first=True)
        self.head = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(self.conv(F.pad(x, (self.pad, 0))))
        return self.head(self.lstm(z.transpose(1, 2))[0])


class CachedConv(nn.Module):
    """A convolution whose left context is a graph input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(I, H, 3)
        self.gru = nn.GRU(H, H, batch_first=True)

    def forward(self, x: Tensor, cache: Tensor, h0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = torch.cat((cache, x), dim=2)
        y, h = self.gru(torch.relu(self.conv(z)).transpose(1, 2), h0)
        return y, z[:, :, -2:], h


class SameConv(nn.Module):
    """A convolution that looks ahead, so not causal."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(I, H, 3, padding=1)
        self.lstm = nn.LSTM(H, H, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        z = F.elu(self.conv(x))
        return torch.sigmoid(self.lstm(z.permute(0, 2, 1))[0].sum(-1))


class Normalised(nn.Module):
    """LayerNorm, LSTM, residual, GELU, as modern stacks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(H) for _ in range(2)])
        self.layers = nn.ModuleList([nn.LSTM(H, H, batch_first=True) for _ in range(2)])
        self.inside = nn.Linear(I, H)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + F.gelu(layer(norm(x))[0])
        return x


class Tail(nn.Module):
    """Many activations after an LSTM, each on its own share of the units."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(I, 16)
        self.acts = nn.ModuleList(
            [
                nn.ELU(0.7),
                nn.SELU(),
                nn.SiLU(),
                nn.Mish(),
                nn.Hardtanh(-0.2, 0.3),
                nn.Softplus(),
                nn.Hardswish(),
                nn.CELU(0.8),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([act(part) for act, part in zip(self.acts, self.lstm(x)[0].chunk(8, -1), strict=True)], -1)


class LearnedStart(nn.Module):
    """Initial states are parameters, expanded to the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(I, H, 2)
        self.h0, self.c0 = nn.Parameter(torch.randn(2, 1, H)), nn.Parameter(torch.randn(2, 1, H))

    def forward(self, x: Tensor) -> Tensor:
        B = x.shape[1]
        return self.lstm(x, (self.h0.expand(-1, B, -1).contiguous(), self.c0.repeat(1, B, 1)))[0]


class Squeezed(nn.Module):
    """squeeze of an axis whose size is not known: an If in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(I, H)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0].transpose(0, 1).squeeze(1)


class SelfAttention(nn.Module):
    """Heads of attention over an LSTM's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(I, H, batch_first=True)
        self.attention = nn.MultiheadAttention(H, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x)
        return self.attention(y, y, y, need_weights=False)[0]


class Packing(nn.Module):
    """Both states stacked in one tensor, [2, B, H], as voice activity detectors have it."""

    def __init__(self, joined: str = "stack") -> None:
        super().__init__()
        self.joined = joined
        self.lstm = nn.LSTM(I, H)
        self.head = nn.Linear(H, 1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if self.joined == "stack":
            h, c = state[0:1], state[1:2]
        elif self.joined == "cat":
            h, c = torch.split(state, H, dim=-1)
        else:
            h, c = state[..., 0].contiguous(), state[..., 1].contiguous()
        y, (h, c) = self.lstm(x, (h, c))
        new = {
            "stack": lambda: torch.cat((h, c)),
            "cat": lambda: torch.cat((h, c), -1),
            "last": lambda: torch.stack((h, c), -1),
        }
        return torch.sigmoid(self.head(F.relu(y))), new[self.joined]()


class Features(nn.Module):
    """Categories and numbers side by side, one-hot and embedded; the answer's logits and its class."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, 2)
        self.lstm = nn.LSTM(I + 2 + V, H, batch_first=True)
        self.head = nn.Linear(H, 5)

    def forward(self, x: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.cat((x, self.embedding(kind), F.one_hot(kind, V).to(x.dtype)), -1)
        scores = self.head(self.lstm(z)[0])
        return scores, scores.argmax(-1)


class Masked(nn.Module):
    """Padded steps are found from the tokens, masked, and averaged without them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, I, padding_idx=0)
        self.lstm = nn.LSTM(I, H, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (tokens != 0).unsqueeze(-1)
        y = self.lstm(self.embedding(tokens))[0].masked_fill(~mask, 0.0)
        return y.sum(1) / mask.sum(1).clamp(min=1).to(y.dtype)


class Gathered(nn.Module):
    """The output at each row's own last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(I, H, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y = self.lstm(x)[0]
        at = (lengths - 1).view(-1, 1, 1).expand(-1, 1, y.size(2))
        return y.gather(1, at).squeeze(1)


class Separation(nn.Module):
    """A mask over a spectrum's magnitude, and the normalisation that goes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(I, H, 2, batch_first=True)
        self.head = nn.Linear(H, I)

    def forward(self, spectrum: Tensor) -> Tensor:
        magnitude = torch.sqrt(spectrum.pow(2).sum(-1) + 1e-8)
        z = torch.log1p(magnitude)
        mask = torch.sigmoid(self.head(self.lstm((z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + 1e-5))[0]))
        return spectrum * mask.unsqueeze(-1)


class Grouped(nn.Module):
    """Frequencies as the batch of one recurrence, time as that of another (dual path)."""

    def __init__(self) -> None:
        super().__init__()
        self.across, self.along = nn.GRU(2, 2, batch_first=True, bidirectional=True), nn.GRU(4, 4, batch_first=True)
        self.norm = nn.LayerNorm((6, 4))

    def forward(self, x: Tensor) -> Tensor:  # [B, T, 6, 2]
        B, T, K, C = x.shape
        z = self.across(x.reshape(B * T, K, C))[0].view(B, T, K, 4)
        z = self.norm(z)
        y = self.along(z.permute(0, 2, 1, 3).reshape(B * K, T, 4))[0]
        return z + y.view(B, K, T, 4).permute(0, 2, 1, 3)


STATES2 = {"x": ("T", "B", I), "h0": (2, "B", H), "c0": (2, "B", H)}
CELL = {"x": ("B", I), "h": ("B", H), "c": ("B", H)}
TBI, BTI = {"x": ("T", "B", I)}, {"x": ("B", "T", I)}
NO_T = ({"B": B0}, {"B": 3})
FIXED_T = ({"T": T0, "B": B0}, {"T": T0, "B": 3})
LENGTHS = {"x": ("B", "T", I), "lengths": ("B",)}
TOKENS = {"tokens": "tokens"}

SCENARIOS = [
    Scenario("lstm", lambda: Layer(), TBI, ("y",), "steps"),
    Scenario("lstm_two_layers_no_bias", lambda: Layer(num_layers=2, bias=False), TBI, ("y",), "steps"),
    Scenario("lstm_batch_first", lambda: Layer(batch_first=True), BTI, ("y",), "steps"),
    Scenario("lstm_unbatched", lambda: Layer(num_layers=2), {"x": ("T", I)}, ("y",), "steps", sizes=({"T": T0}, {"T": 8})),
    Scenario("lstm_states", lambda: WithStates(num_layers=2), STATES2, ("y", "hn", "cn"), "steps"),
    Scenario("lstm_states_out", lambda: GivingStates(num_layers=2, batch_first=True), BTI, ("y", "hn", "cn")),
    Scenario("lstm_bidirectional", lambda: GivingStates(num_layers=2, bidirectional=True, batch_first=True), BTI, ("y", "hn", "cn"), "no"),
    Scenario("lstm_float64", lambda: WithStates(num_layers=2), STATES2, ("y", "hn", "cn"), "steps", dtype=torch.float64),
    Scenario("lstm_float16", lambda: Layer(), TBI, ("y",), dtype=torch.float16),
    Scenario("gru", lambda: Layer("GRU", num_layers=2), TBI, ("y",), "steps"),
    Scenario("gru_state", lambda: WithState("GRU", batch_first=True), {"x": ("B", "T", I), "h0": (1, "B", H)}, ("y", "hn"), "steps"),
    Scenario("gru_bidirectional", lambda: Layer("GRU", bidirectional=True, bias=False), TBI, ("y",), "no"),
    Scenario("rnn_tanh", lambda: Layer("RNN", num_layers=2), TBI, ("y",), "steps", stream_fixed=""),
    Scenario("rnn_relu_bidirectional", lambda: WithState("RNN", nonlinearity="relu", bidirectional=True), {"x": ("T", "B", I), "h0": (2, "B", H)}, ("y", "hn"), "no"),
    Scenario("language_model", LanguageModel, {"tokens": ("B", "T")}, ("logits",), "steps", integers=TOKENS),
    Scenario("language_model_tied", lambda: LanguageModel(True), {"tokens": ("B", "T")}, ("logits",), "steps", integers=TOKENS),
    Scenario("language_model_step", LanguageModelStep, {"tokens": ("B", 1), "h0": (2, "B", H), "c0": (2, "B", H)}, ("logits", "hn", "cn"), "steps", NO_T, TOKENS),
    Scenario("classifier_last", lambda: Classifier("last", num_layers=2), BTI, ("p",), "last"),
    Scenario("classifier_state", lambda: Classifier("state", num_layers=2), BTI, ("p",), "last"),
    Scenario("classifier_both", lambda: Classifier("both", bidirectional=True), BTI, ("p",), "no"),
    Scenario("classifier_attention", lambda: Classifier("attention"), BTI, ("p",), "no"),
    Scenario("classifier_mean", lambda: Classifier("mean"), BTI, ("p",), "no"),
    Scenario("classifier_max", lambda: Classifier("max", bidirectional=True), BTI, ("p",), "no"),
    Scenario("classifier_pool", lambda: Classifier("pool"), BTI, ("p",), "no"),
    Scenario("packed_sorted", lambda: Packed(True), LENGTHS, ("y", "hn"), integers={"lengths": "sorted"}),
    Scenario("packed_unsorted", lambda: Packed(False, num_layers=2), LENGTHS, ("y", "hn"), integers={"lengths": "lengths"}),
    Scenario("packed_bidirectional", lambda: Packed(True, bidirectional=True), LENGTHS, ("y", "hn"), integers={"lengths": "sorted"}),
    Scenario("packed_gru", lambda: Packed(False, "GRU", bidirectional=True), LENGTHS, ("y", "hn"), integers={"lengths": "lengths"}),
    Scenario("cell_step", CellStep, CELL, ("y", "hn", "cn"), "steps", NO_T),
    Scenario("cell_step_no_bias", lambda: CellStep(bias=False), CELL, ("y", "hn", "cn"), "steps", NO_T),
    Scenario("cell_step_gru", lambda: CellStepGRU("GRUCell"), {"x": ("B", I), "h": ("B", H)}, ("y", "hn"), "steps", NO_T),
    Scenario("cell_step_rnn", lambda: CellStepGRU("RNNCell"), {"x": ("B", I), "h": ("B", H)}, ("y", "hn"), "steps", NO_T),
    Scenario("cell_by_hand", HandWrittenStep, CELL, ("hn", "cn"), "steps", NO_T),
    Scenario("cell_by_hand_peephole", lambda: HandWrittenStep(peephole=True), CELL, ("hn", "cn"), "steps", NO_T),
    Scenario("cell_by_hand_norm", lambda: HandWrittenStep(norm=True), CELL, ("hn", "cn"), "steps", NO_T),
    Scenario("cell_coupled", CoupledGates, CELL, ("hn", "cn"), "steps", NO_T),
    Scenario("cells_unrolled", Unrolled, TBI, ("y",), sizes=FIXED_T),
    Scenario("cells_unrolled_two", lambda: Unrolled(two=True), TBI, ("y",), sizes=FIXED_T),
    Scenario("cells_unrolled_gru", lambda: Unrolled("GRUCell"), TBI, ("y",), sizes=FIXED_T),
    Scenario("cells_unrolled_rnn", lambda: Unrolled("RNNCell", two=True), TBI, ("y",), sizes=FIXED_T),
    Scenario("loop_of_cells", ScriptedLoop, TBI, ("y",), "steps", scripted=True),
    Scenario("loop_by_hand", ScriptedGates, {"x": ("T", "B", I), "h": ("B", H), "c": ("B", H)}, ("y", "hn", "cn"), "steps", scripted=True),
    Scenario("decoder_step", AttentionDecoder, {"token": ("B",), "h": (1, "B", H), "c": (1, "B", H), "memory": ("B", "S", H)}, ("logits", "hn", "cn", "weights"),
             "steps", ({"B": B0, "S": 6}, {"B": 3, "S": 4}), {"token": "tokens"}, constants=("memory",)),
    Scenario("encoder_decoder", EncoderDecoder, {"x": ("B", "T", I), "target": ("B", "S", I)}, ("y",), "no", ({"T": T0, "B": B0, "S": 3}, {"T": 4, "B": 3, "S": 6}), stream_fixed=""),
    Scenario("encoder_decoder_bidirectional", lambda: EncoderDecoder(True), {"x": ("B", "T", I), "target": ("B", "S", I)}, ("y",),
             "no", ({"T": T0, "B": B0, "S": 3}, {"T": 4, "B": 3, "S": 6}), stream_fixed=""),
    Scenario("autoencoder", AutoEncoder, BTI, ("y",), "no", stream_fixed="last"),
    Scenario("crnn", CRNN, {"image": ("B", 1, 8, "W")}, ("logits",), "no", ({"B": B0, "W": 16}, {"B": 3, "W": 26})),
    Scenario("causal_conv", CausalConv, {"x": ("B", I, "T")}, ("y",), "steps"),
    Scenario("causal_conv_dilated", lambda: CausalConv(2), {"x": ("B", I, "T")}, ("y",), "steps"),
    Scenario("cached_conv", CachedConv, {"x": ("B", I, "T"), "cache": ("B", I, 2), "h0": (1, "B", H)}, ("y", "cache_out", "hn"), "steps"),
    Scenario("same_conv", SameConv, {"x": ("B", I, "T")}, ("y",), "no"),
    Scenario("normalised", Normalised, BTI, ("y",), "steps"),
    Scenario("tail", Tail, TBI, ("y",), "steps"),
    Scenario("learned_start", LearnedStart, TBI, ("y",), "steps"),
    Scenario("squeezed", Squeezed, TBI, ("y",), sizes=({"T": T0, "B": B0}, {"T": 1, "B": 3}, {"T": 6, "B": 1})),
    Scenario("self_attention", SelfAttention, BTI, ("y",), "no"),
    Scenario("packing_stack", Packing, {"x": ("T", "B", I), "state": (2, "B", H)}, ("y", "state_out"), "steps"),
    Scenario("packing_cat", lambda: Packing("cat"), {"x": ("T", "B", I), "state": (1, "B", 2 * H)}, ("y", "state_out"), "steps"),
    Scenario("packing_last", lambda: Packing("last"), {"x": ("T", "B", I), "state": (1, "B", H, 2)}, ("y", "state_out"), "steps"),
    Scenario("features", Features, {"x": ("B", "T", I), "kind": ("B", "T")}, ("scores", "best"), "steps", integers={"kind": "tokens"}),
    Scenario("masked", Masked, {"tokens": ("B", "T")}, ("mean",), "no", integers=TOKENS),
    Scenario("gathered", Gathered, LENGTHS, ("y",), integers={"lengths": "lengths"}),
    Scenario("separation", Separation, {"spectrum": ("B", "T", I, 2)}, ("y",), "steps"),
    Scenario("dual_path", Grouped, {"x": ("B", "T", 6, 2)}, ("y",), "steps"),
]  # fmt: skip
