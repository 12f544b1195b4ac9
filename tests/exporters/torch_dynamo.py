"""Files of PyTorch's newer exporter (torch.export): python tests/exporters/torch_dynamo.py [scenario …]"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from typing import Any

import onnx
import torch
from golden import Arrays, Writer
from scenarios import SCENARIOS, T0, Scenario
from torch import nn
from torch_legacy import judged, theirs

OPSETS = (20, 15, 18, 21, 23)
#: exporter options that write other graphs, and for which scenarios
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "raw": (
        {"optimize": False},
        ("lstm", "lstm_bidirectional", "gru", "cell_step", "cells_unrolled", "language_model", "packing_stack"),
    ),
    "static": (
        {"dynamic_shapes": None},
        ("lstm", "lstm_bidirectional", "language_model", "classifier_attention", "crnn", "causal_conv"),
    ),
}
UNEXPORTABLE = ("packed_sorted", "packed_unsorted", "packed_bidirectional", "packed_gru")


def export(scenario: Scenario, opset: int, **options: Any) -> onnx.ModelProto:
    """What the exporter writes; only the batch may vary, as it fixes the time axis of recurrent layers."""
    arguments = tuple(torch.from_numpy(x) for x in scenario.feeds(scenario.sizes[0]).values())
    free = {"B": torch.export.Dim("batch")} | {a: torch.export.Dim(a) for a in ("S", "W")}
    shapes = tuple({k: free[a] for k, a in enumerate(axes) if a in free} for axes in scenario.inputs.values())
    given = {
        "input_names": list(scenario.inputs),
        "output_names": list(scenario.outputs),
        "dynamic_shapes": shapes,
        "opset_version": opset,
        **options,
    }
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(scenario.module(), arguments, dynamo=True, verbose=False, **given)
    return program.model_proto


def with_open_time(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with T declared open, as people edit it: the graph itself mostly works for any T."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    for info in (*opened.graph.input, *opened.graph.output):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_value == T0:
                dim.dim_param = "T"
    del opened.graph.value_info[:]
    return opened


def fed(scenario: Scenario, model: onnx.ModelProto) -> list[Arrays]:
    """The inputs to record: those that the declared shapes allow."""
    declared = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    found = []
    for k, sizes in enumerate(scenario.sizes):
        feeds = {
            n: x
            for n, x in scenario.feeds({**sizes, "T": T0} if has_fixed_time(declared) else sizes, k).items()
            if n in declared
        }
        if all(want in (0, got) for n, x in feeds.items() for want, got in zip(declared[n], x.shape, strict=True)):
            found.append(feeds)
    return found


def has_fixed_time(declared: dict[str, list[int]]) -> bool:
    return any(T0 in sizes for sizes in declared.values())


def write(writer: Writer, scenario: Scenario, opset: int, variant: str = "", **options: Any) -> None:
    name = "-".join(filter(None, (scenario.name, variant, f"{opset}")))
    try:
        model = export(scenario, opset, **options)
    except Exception as fault:
        print(
            f"  {name}: the exporter: {type(fault).__name__}: {str(fault).strip().splitlines()[0][:150]}",
            file=sys.stderr,
        )
        return
    for suffix, each in (("", model), ("-open", with_open_time(model))):
        if suffix and (variant or opset != 20 or each == model or scenario.dtype == torch.float64):
            continue
        feeds = fed(scenario, each)
        try:
            writer.add(
                f"{name}{suffix}",
                each,
                feeds,
                theirs(scenario),
                scenario=f"{scenario.name}{suffix}",
                **judged(scenario, feeds[0], fixed_time=not suffix),
            )
        except Exception as fault:
            print(f"  {name}{suffix}: {str(fault).strip().splitlines()[0][:200]}", file=sys.stderr)


class Projected(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 16, layers, proj_size=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


def write_projected(writer: Writer) -> None:
    """LSTM with projection: the exporter writes, without a word, a file that no engine can run right."""
    for layers in (1, 2):
        scenario = Scenario(
            f"projected_{layers}", lambda layers=layers: Projected(layers), {"x": ("T", "B", 3)}, ("y",)
        )
        model = export(scenario, 20)
        writer.add(f"{scenario.name}-20", model, fed(scenario, model), refused="LSTM|Concat")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    writer = Writer("torch_dynamo", sys.argv[1:])
    for scenario in SCENARIOS:
        if (sys.argv[1:] and scenario.name not in sys.argv[1:]) or scenario.scripted or scenario.name in UNEXPORTABLE:
            continue
        for opset in OPSETS:
            write(writer, scenario, opset)
        for variant, (options, names) in VARIANTS.items():
            if scenario.name in names:
                write(writer, scenario, 20, variant, **options)
    write_projected(writer)
    writer.close()
