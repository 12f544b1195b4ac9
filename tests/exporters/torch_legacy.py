"""Files of PyTorch's legacy exporter (TorchScript): python tests/exporters/torch_legacy.py [scenario …]"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import torch
from golden import Arrays, Writer
from scenarios import SCENARIOS, Scenario

OLDEST = (7, 8)  # weights are reordered in the graph, zero states by ConstantFill, which was removed from the standard
OLDEST_OF = (
    "lstm",
    "lstm_states",
    "lstm_bidirectional",
    "lstm_float64",
    "gru",
    "rnn_tanh",
    "language_model_step",
    "cell_step",
)
OPSETS = (*OLDEST, 9, 10, 11, 12, 13, 14, 16, 17, 18, 20, 21, 22, 23)
NEWEST = ("lstm", "lstm_states", "gru", "language_model", "crnn", "classifier_last")  # kept at the last opset too
#: exporter options that write other graphs, and for which scenarios
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unfolded": ({"do_constant_folding": False}, ("lstm", "lstm_bidirectional", "gru", "language_model", "rnn_tanh")),
    "weights_as_inputs": ({"keep_initializers_as_inputs": True}, ("lstm_states", "language_model", "crnn")),
    "static": ({"dynamic_axes": None}, ("lstm", "lstm_bidirectional", "classifier_last", "classifier_attention", "language_model",
                                        "packing_stack", "lstm_unbatched", "squeezed", "gru", "encoder_decoder", "crnn", "cell_step")),
    "unnamed": ({"input_names": None, "output_names": None, "dynamic_axes": None}, ("lstm_states", "language_model_step")),
}  # fmt: skip


def export(scenario: Scenario, opset: int, **options: Any) -> onnx.ModelProto:
    """What the exporter writes."""
    sizes = scenario.sizes[0]
    arguments = tuple(torch.from_numpy(x) for x in scenario.feeds(sizes).values())
    axes = {n: {k: str(a) for k, a in enumerate(given) if isinstance(a, str)} for n, given in scenario.inputs.items()}
    given = {
        "input_names": list(scenario.inputs), "output_names": list(scenario.outputs), "dynamic_axes": axes, "opset_version": opset, **options,
    }  # fmt: skip
    file = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(scenario.module(), arguments, file, dynamo=False, **given)
    return onnx.load_from_string(file.getvalue())


def theirs(scenario: Scenario) -> Any:
    """The module itself as a function of feeds."""
    module = scenario.module()

    def run(feeds: Arrays) -> Arrays:
        with torch.no_grad():
            found = module(*(torch.from_numpy(x) for x in feeds.values()))
        found = found if isinstance(found, tuple) else (found,)
        return {name: x.numpy() for name, x in zip(scenario.outputs, found, strict=True)}

    return run


def judged(scenario: Scenario, names: Iterable[str], fixed_time: bool = False) -> dict[str, Any]:
    """How a test is to judge the file, whose inputs have these names."""
    stream = scenario.stream if scenario.stream_fixed is None or not fixed_time else scenario.stream_fixed
    half = scenario.dtype == torch.float16
    axes = {name: list(given) for name, given in zip(names, scenario.inputs.values(), strict=True)}
    return {"stream": stream, "constants": scenario.constants, "axes": axes, "tolerance": 2e-3 if half else 0}


def fed(scenario: Scenario, model: onnx.ModelProto, static: bool) -> list[Arrays]:
    """The inputs to record, under the file's own names."""
    held = {t.name for t in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in held]
    sizes = scenario.sizes[:1] if static else scenario.sizes
    return [dict(zip(names, scenario.feeds(s, k).values(), strict=True)) for k, s in enumerate(sizes)]


def write(writer: Writer, scenario: Scenario, opset: int, variant: str = "", **options: Any) -> None:
    name = "-".join(filter(None, (scenario.name, variant, f"{opset}")))
    try:
        model = export(scenario, opset, **options)
    except Exception as fault:
        print(f"  {name}: the exporter: {str(fault).strip().splitlines()[0][:150]}")
        return
    static = "dynamic_axes" in options
    feeds = fed(scenario, model, static)
    shared = None if variant == "unnamed" else scenario.name
    try:
        newest = opset if opset == OPSETS[-1] and scenario.name in NEWEST else ""
        writer.add(
            name, model, feeds, theirs(scenario), scenario=shared, apart=newest, **judged(scenario, feeds[0], static)
        )
    except Exception as fault:
        print(f"  {name}: onnxruntime: {str(fault).strip().splitlines()[0][:200]}")


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    writer = Writer("torch_legacy", sys.argv[1:])
    for scenario in SCENARIOS:
        if sys.argv[1:] and scenario.name not in sys.argv[1:]:
            continue
        for opset in OPSETS if scenario.name in OLDEST_OF else OPSETS[len(OLDEST) :]:
            write(writer, scenario, opset)
        for variant, (options, names) in VARIANTS.items():
            for opset in (11, 17):
                if scenario.name in names:
                    write(writer, scenario, opset, variant, **options)
    writer.close()
