"""What the attributes of an LSTM, GRU or RNN node say: directions, gate activations, clip, layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from ..vocabulary import DIRECTIONS
from . import pointwise
from .registry import Array, quiet


class ActivationRule(NamedTuple):
    """A function a gate may have, and the defaults of the parameters it takes (None: it takes none).

    A default of NaN: the parameter must be given, since ONNX has no default for it.
    """

    function: Callable[..., Array]
    alpha: float | None = None
    beta: float | None = None


REQUIRED: Final = float("nan")

#: Gate activations by their ONNX name.
ACTIVATIONS: Final[dict[str, ActivationRule]] = {
    "Relu": ActivationRule(pointwise.relu),
    "Tanh": ActivationRule(np.tanh),
    "Sigmoid": ActivationRule(pointwise.sigmoid),
    "Affine": ActivationRule(lambda x, alpha, beta: alpha * x + beta, REQUIRED, REQUIRED),
    "LeakyRelu": ActivationRule(pointwise.leaky_relu, 0.01),
    "ThresholdedRelu": ActivationRule(pointwise.thresholded_relu, 1.0),
    "ScaledTanh": ActivationRule(lambda x, alpha, beta: alpha * np.tanh(beta * x), REQUIRED, REQUIRED),
    "HardSigmoid": ActivationRule(pointwise.hard_sigmoid, 0.2, 0.5),
    "Elu": ActivationRule(pointwise.elu, 1.0),
    "Softsign": ActivationRule(pointwise.softsign),
    "Softplus": ActivationRule(pointwise.softplus),
}
#: Those whose results lie within ±1, whatever their parameters.
WITHIN_ONE: Final = frozenset({"Sigmoid", "Tanh", "HardSigmoid", "Softsign"})
_BY_LOWER_NAME: Final = {name.lower(): name for name in ACTIVATIONS}

#: Activations of one direction where a node names none.
DEFAULT_ACTIVATIONS: Final[dict[str, tuple[str, ...]]] = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh"),
    "RNN": ("Tanh",),
}


@dataclass(frozen=True, slots=True)
class Activation:
    """A gate activation with its parameters; None where the function takes none."""

    name: str
    alpha: float | None = None
    beta: float | None = None

    def __call__(self, x: Array) -> Array:
        """Apply it to every element of x."""
        parameters = {key: v for key, v in (("alpha", self.alpha), ("beta", self.beta)) if v is not None}
        with quiet():
            return ACTIVATIONS[self.name].function(x, **parameters)


@dataclass(frozen=True, slots=True)
class CellAttributes:
    """What the attributes of an LSTM, GRU or RNN node say, defaults filled in; one entry per direction."""

    directions: tuple[str, ...]
    activations: tuple[tuple[Activation, ...], ...]
    clip: float | None
    input_forget: bool
    layout: int
    linear_before_reset: bool = False

    def bounded(self, x: Array) -> Array:
        """The input of a gate's activation within ±clip."""
        return x if self.clip is None else np.clip(x, -self.clip, self.clip)

    def within_one(self, d: int) -> bool:
        """Whether direction ``d``, unprojected, makes nothing beyond ±1 out of an h within it, or hardly."""
        return all(activation.name in WITHIN_ONE for activation in self.activations[d])


def cell_attributes(op: str, attributes: Mapping[str, Any]) -> CellAttributes:
    """Resolve the attributes of an ``op`` ("LSTM", "GRU" or "RNN") node.

    Raises ModelFormatError where they contradict the standard, UnsupportedModelError for an unknown function.
    """
    direction = str(attributes.get("direction", "forward")).lower()
    if direction not in DIRECTIONS:
        raise ModelFormatError(f"direction must be one of {', '.join(DIRECTIONS)}, got '{direction}'")
    directions = ("forward", "reverse") if direction == "bidirectional" else (direction,)
    layout = int(attributes.get("layout", 0))
    if layout not in (0, 1):
        raise ModelFormatError(f"layout must be 0 (time first) or 1 (batch first), got {layout}")
    return CellAttributes(
        directions,
        _activations(op, len(directions), attributes),
        _clip(attributes.get("clip")),
        bool(attributes.get("input_forget", 0)),
        layout,
        bool(attributes.get("linear_before_reset", 0)),
    )


def _activations(op: str, D: int, attributes: Mapping[str, Any]) -> tuple[tuple[Activation, ...], ...]:
    """The activations per direction, each with its alpha and beta.

    The parameter lists are consumed in order, only by functions that take the parameter.
    """
    default = DEFAULT_ACTIVATIONS[op]
    names = tuple(attributes.get("activations") or default * D)
    if len(names) != len(default) * D:
        raise ModelFormatError(f"activations must name {len(default)} x {D} directions functions, got {len(names)}")
    alphas = list(attributes.get("activation_alpha") or ())
    betas = list(attributes.get("activation_beta") or ())
    chosen = [_activation(name, alphas, betas) for name in names]
    for key, rest, taken in (
        ("activation_alpha", alphas, any(a.alpha is not None for a in chosen)),
        ("activation_beta", betas, any(a.beta is not None for a in chosen)),
    ):
        if rest and taken:
            raise UnsupportedModelError(f"{key} has {len(rest)} values more than {', '.join(names)} take: ambiguous")
    return tuple(tuple(chosen[d * len(default) : (d + 1) * len(default)]) for d in range(D))


def _activation(name: str, alphas: list[float], betas: list[float]) -> Activation:
    """The activation called ``name``, which takes its parameters off the front of the lists."""
    canonical = _BY_LOWER_NAME.get(name.lower())
    if canonical is None:
        raise UnsupportedModelError(f"activation '{name}' is not one of {', '.join(ACTIVATIONS)}")
    rule = ACTIVATIONS[canonical]
    alpha = rule.alpha if rule.alpha is None or not alphas else float(alphas.pop(0))
    beta = rule.beta if rule.beta is None or not betas else float(betas.pop(0))
    for key, value in (("activation_alpha", alpha), ("activation_beta", beta)):
        if value is not None and np.isnan(value):
            raise UnsupportedModelError(f"activation '{name}' needs an explicit {key}: ONNX defines no default")
    return Activation(canonical, alpha, beta)


def _clip(clip: float | None) -> float | None:
    if clip is not None and not clip > 0:
        raise ModelFormatError(f"clip must be positive, got {clip}")
    return None if clip is None or np.isinf(clip) else float(clip)
