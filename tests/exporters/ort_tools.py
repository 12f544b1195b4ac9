"""Files derived by onnxruntime's and onnx's tools: quantised, optimised, converted: python tests/exporters/ort_tools.py"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from golden import Arrays, Writer
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers import float16
from scenarios import SCENARIOS, Scenario
from torch_legacy import export, fed, judged, theirs

NAMED = {scenario.name: scenario for scenario in SCENARIOS}
Make = Callable[[Path, Path], None]
QUANTISED = 1e-4  # of the range: rounding is exact, so nothing is allowed for it
HALF = 2e-3  # onnxruntime rounds to float16 after every operator, the engine computes in float32


def dynamic(**options: Any) -> Make:
    """Weights in 8 bits, activations quantised as they come."""
    return lambda source, target: quantize_dynamic(source, target, **options)


def static(scenario: Scenario, **options: Any) -> Make:
    """All of Conv, Gemm and MatMul in 8 bits, by ranges seen on a few feeds."""

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds: Iterator[Arrays] = iter([scenario.feeds(scenario.sizes[0], k) for k in range(4)])

        def get_next(self) -> Arrays | None:  # type: ignore[override]
            return next(self.feeds, None)

    return lambda source, target: quantize_static(source, target, Reader(), **options)


def prepared(source: Path, target: Path) -> None:
    """The quantiser's own preparation, then dynamic quantisation."""
    between = source.with_name("between.onnx")
    quant_pre_process(source, between, skip_symbolic_shape=True)
    quantize_dynamic(between, target)


def optimised(level: str) -> Make:
    """What onnxruntime saves after its own optimisations."""

    def make(source: Path, target: Path) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return make


def converted(opset: int) -> Make:
    """onnx's version converter."""
    return lambda source, target: onnx.save(onnx.version_converter.convert_version(onnx.load(source), opset), target)


def halved(**options: Any) -> Make:
    """float16 weights."""
    return lambda source, target: onnx.save(float16.convert_float_to_float16(onnx.load(source), **options), target)


def jobs() -> Iterator[tuple[str, str, int, Make, dict[str, Any]]]:
    """Scenario, what is done, at which opset, how, how it is judged."""
    for name in (
        "lstm",
        "lstm_bidirectional",
        "lstm_states",
        "language_model",
        "classifier_last",
        "gru_bidirectional",
        "cell_step",
        "crnn",
        "classifier_attention",
    ):
        yield name, "dynamic", 17, dynamic(), {"tolerance": QUANTISED}
        yield (
            name,
            "dynamic_u8_channels",
            17,
            dynamic(weight_type=QuantType.QUInt8, per_channel=True),
            {"tolerance": QUANTISED},
        )
    for name in ("language_model", "lstm_two_layers_no_bias"):
        yield (
            name,
            "dynamic_channels",
            13,
            dynamic(weight_type=QuantType.QInt8, per_channel=True),
            {"tolerance": QUANTISED},
        )
        yield name, "dynamic_reduced", 11, dynamic(reduce_range=True), {"tolerance": QUANTISED}
        yield name, "prepared_dynamic", 17, prepared, {"tolerance": QUANTISED}
    for name in ("crnn", "classifier_last", "causal_conv", "language_model", "cell_step", "classifier_attention"):
        for form in (QuantFormat.QDQ, QuantFormat.QOperator):
            for channels, kind in ((False, QuantType.QUInt8), (True, QuantType.QInt8)):
                how = f"{form.name.lower()}_{'channels_s8' if channels else 'u8'}"
                made = static(
                    NAMED[name],
                    quant_format=form,
                    per_channel=channels,
                    activation_type=kind,
                    weight_type=QuantType.QInt8,
                )
                yield name, how, 17, made, {"tolerance": QUANTISED}
    for name in (
        "lstm",
        "crnn",
        "language_model",
        "normalised",
        "classifier_attention",
        "gru",
        "separation",
        "tail",
        "cell_step",
        "decoder_step",
        "lstm_states",
        "encoder_decoder",
        "causal_conv",
    ):
        yield name, "basic", 17, optimised("BASIC"), {}
        yield name, "extended", 13, optimised("EXTENDED"), {}
    yield "crnn", "all", 17, optimised("ALL"), {"refused": "com.microsoft.nchwc"}
    for name in ("lstm_states", "language_model", "lstm_bidirectional", "gru", "normalised", "packed_sorted"):
        for opset in (14, 18, 22):
            yield name, f"from9_{opset}", 9, converted(opset), {}
    for name in ("lstm_states", "language_model", "classifier_attention", "crnn"):
        yield name, "half", 17, halved(keep_io_types=True), {"tolerance": HALF}
        yield name, "half_io", 17, halved(), {"tolerance": HALF}


def half_feeds(model: onnx.ModelProto, feeds: list[Arrays]) -> list[Arrays]:
    """Feeds in the types that the file declares."""
    types = {i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in model.graph.input}
    return [{name: x.astype(types[name]) for name, x in each.items()} for each in feeds]


def write(writer: Writer, scenario: Scenario, how: str, opset: int, make: Make, given: dict[str, Any]) -> None:
    name = f"{scenario.name}-{how}"
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        original = export(scenario, opset)
        onnx.save(original, source)
        try:
            make(source, target)
        except Exception as fault:
            print(
                f"  {name}: the tool: {type(fault).__name__}: {str(fault).strip().splitlines()[0][:200]}",
                file=sys.stderr,
            )
            return
        model = onnx.load(target)
    feeds = half_feeds(model, fed(scenario, original, False))
    quantised = given.get("tolerance") == QUANTISED
    stream = scenario.stream
    if "dynamic" in how and any("T" in axes for axes in scenario.inputs.values()):
        stream = "no"  # one scale for all steps together
    try:
        writer.add(
            name,
            model,
            feeds,
            None if quantised else theirs_in_float(scenario),
            **(judged(scenario, feeds[0]) | {"stream": stream} | given),
            apart=how if "from9" in how else "",
        )
    except Exception as fault:
        print(f"  {name}: {str(fault).strip().splitlines()[0][:250]}", file=sys.stderr)


def theirs_in_float(scenario: Scenario) -> Callable[[Arrays], Arrays]:
    """The module, whatever type the file takes."""
    run = theirs(scenario)
    return lambda feeds: run({name: x.astype("float32") if x.dtype.kind == "f" else x for name, x in feeds.items()})


def write_external(writer: Writer) -> None:
    """Weights in files beside the model: one, one a tensor, in a folder whose name has a space."""
    scenario = NAMED["classifier_state"]
    for how, place in (
        ("external", "external.bin"),
        ("external_each", "each/{number}"),
        ("external_folder", "weights of the model/all.bin"),
    ):
        model = export(scenario, 17)
        feeds = fed(scenario, model, False)
        writer.add(
            f"{scenario.name}-{how}",
            model,
            feeds,
            theirs(scenario),
            scenario="external",
            external=place,
            apart=how,
            **judged(scenario, feeds[0]),
        )
    writer.add(
        "external-missing", export(scenario, 17), [], apart="missing", external="missing.bin", refused="missing.bin"
    )
    (writer.folder / "missing.bin").unlink()


if __name__ == "__main__":
    logging.disable(logging.ERROR)
    writer = Writer("ort_tools", sys.argv[1:])
    for name, how, opset, make, given in jobs():
        if not sys.argv[1:] or name in sys.argv[1:]:
            write(writer, NAMED[name], how, opset, make, given)
    write_external(writer)
    writer.close()
