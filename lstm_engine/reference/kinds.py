"""What kinds of numbers each operator of ONNX takes.

NumPy computes more than ONNX defines: the Sigmoid of integers, say, which would then be cut off to integers again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import Any, Final, Protocol

from ..errors import ModelFormatError

#: Letters as NumPy's ``dtype.kind``: b truth values, i (and u) integers, f floating, c complex numbers, O strings.
_WORDS: Final = {
    "b": "truth values", "i": "integers", "f": "floating-point numbers", "c": "complex numbers", "O": "strings",
}  # fmt: skip
_LETTERS: Final = {"b": "b", "i": "i", "u": "i", "f": "f", "c": "c", "O": "O", "U": "O"}  # narrow types are not listed

#: Operators by the kinds that each of their inputs takes; * repeats the last. Any kind will do for what is not here,
#: and layers.py says what recurrent layers take.
_TAKEN: Final[Mapping[str, str]] = {
    "f": (
        "Acos Acosh Asin Asinh Atan Atanh AveragePool Bernoulli Ceil Celu Cos Cosh Det DynamicQuantizeLinear Elu "
        "Erf Exp Floor Gelu GlobalAveragePool GlobalLpPool GlobalMaxPool HardSigmoid HardSwish Hardmax IsInf IsNaN "
        "LRN LeakyRelu Log LogSoftmax LpNormalization LpPool MeanVarianceNormalization Mish Multinomial Reciprocal "
        "Round Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
    ),
    "if if": "Add Div Greater GreaterOrEqual Less LessOrEqual MatMul Mod Mul PRelu Pow Sub",
    "bifcO i": (
        "CenterCropPad Expand Gather GatherElements GatherND Reshape ReverseSequence Split Squeeze Tile Trilu Unsqueeze"
    ),
    "if i": (
        "CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum ReduceSumSquare TopK"
    ),
    "if": "Abs ArgMax ArgMin MaxPool Neg Relu Shrink Sign",
    "i": "BitwiseNot BlackmanWindow ConstantOfShape HammingWindow HannWindow",
    "f f f": "Conv ConvTranspose GroupNormalization InstanceNormalization LayerNormalization",
    "i i": "BitShift BitwiseAnd BitwiseOr BitwiseXor",
    "if if if": "Clip Gemm QuantizeLinear Range",
    "b b": "And Or Xor",
    "if *": "Einsum Max Min",
    "f f f f f": "BatchNormalization DeformConv",
    "bifO bifO": "CastLike Equal",
    "i i i i": "ConvInteger MatMulInteger",
    "f i i": "DFT MaxUnpool",
    "f *": "Mean Sum",
    "bif i": "ReduceMax ReduceMin",
    "bifcO i bifcO": "ScatterElements ScatterND",
    "f f f bif f f": "Attention",
    "bifO": "Cast",
    "bifcO i i": "Col2Im",
    "bifcO b": "Compress",
    "if f if": "DequantizeLinear",
    "f f b": "Dropout",
    "bif": "EyeLike",
    "bifcO f": "GridSample",
    "i i i f f": "MelWeightMatrix",
    "b": "Not",
    "if if bifcO": "OneHot",
    "bifcO i bifcO i": "Pad",
    "i f i i f i f i i": "QLinearConv",
    "if f if if f if f if": "QLinearMatMul",
    "f f": "RMSNormalization",
    "bifcO f f i": "Resize",
    "f f f i": "RotaryEmbedding",
    "f i f i": "STFT",
    "bifcO i i i i": "Slice",
    "bifcO bifcO i": "TensorScatter",
    "b bifcO bifcO": "Where",
}
KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    op: tuple(kinds.split()) for kinds, ops in _TAKEN.items() for op in ops.split()
}


class _Typed(Protocol):
    @property
    def dtype(self) -> Any: ...


def check_kinds(op: str, inputs: Sequence[_Typed | list[Any] | None]) -> None:
    """Raises ModelFormatError for an input of a kind that the operator does not take. Absent ones are None."""
    taken = KINDS.get(op)
    if taken is None:
        return
    several = taken[-1] == "*"
    wanted = chain(taken[:-1], repeat(taken[-2])) if several else taken
    for index, (x, kinds) in enumerate(zip(inputs, wanted, strict=False)):
        if x is None or isinstance(x, list):
            continue
        letter = _LETTERS.get(x.dtype.kind)
        if letter is not None and letter not in kinds:
            expected = " or ".join(_WORDS[k] for k in kinds)
            raise ModelFormatError(f"input {index} must be {expected}, got {x.dtype}")
