"""What a model is, how right and how fast it is, and what its gates do: inspect, verify, bench, explain."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..terminal import console, fail, is_terminal, say, waiting
from .files import check_folder, read_arrays, replacing
from .options import ModelPath, Options, command


@command
def inspect(
    model: ModelPath,
    options: Options,
    batch: Annotated[int, typer.Option(min=1, help="Rows of the stream whose program is shown.")] = 1,
    timed: Annotated[bool, typer.Option("--time", help="Measure each instruction instead of estimating it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    page: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page with a picture of the network; measures too."),
    ] = None,
) -> None:
    """Show a model: inputs, outputs, states, and the program that runs it."""
    if page is not None:
        if as_json:
            raise typer.BadParameter("--html and --json exclude each other")
        check_folder(page)
    loaded = options.load(model)
    from ..report.inspect import described, printed

    description = described(loaded, batch, timed or page is not None)
    if page is not None:
        from ..pages import diagram
        from ..report.picture import pictured

        _write_page(page, diagram.page(pictured(loaded, description)))
    elif as_json:
        print(json.dumps(description, indent=2, ensure_ascii=False))
    else:
        printed(description, console())


@command
def verify(
    model: ModelPath,
    options: Options,
    seed: Annotated[int, typer.Option(min=0, help="Of the random inputs.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="How many random inputs.")] = 3,
) -> None:
    """Hold a model's results against the float64 definition, and against onnxruntime where it is installed.

    With weights in bfloat16 or int8: against the definition of that precision, its cost beside it.
    """
    loaded = options.load(model)
    from ..precision import ROUNDINGS
    from ..report.verify import OtherEngineError, compared, definition_of, onnxruntime_of, shown, ways_of

    other, why_not, definition = None, "onnxruntime runs whole .onnx files only", None
    lesser = loaded.precision in ROUNDINGS
    if model.suffix == ".onnx":
        definition = definition_of(os.fspath(model), options.given["constants"])
    elif lesser:
        definition = options.at("float32").load(model).graph
    if lesser:
        why_not = f"it does not run weights in {loaded.precision}"
    elif model.suffix == ".onnx":
        other, why_not = onnxruntime_of(os.fspath(model), options.given["constants"])
    with waiting("comparing"):
        try:
            comparisons = compared(loaded, other, seed, rounds, definition)
        except OtherEngineError as fault:
            other, why_not = None, str(fault)
            comparisons = compared(loaded, other, seed, rounds, definition)
    console().print(shown(comparisons, ways_of(loaded)))
    if other is None:
        say(f"not compared with onnxruntime: {why_not}")
    wrong = [f"'{c.output}' by {c.error:.2e} (allowed {c.allowed:.2e})" for c in comparisons if not c.holds]
    apart = [f"'{c.output}' by {c.between:.2e} (allowed {c.between_allowed:.2e})" for c in comparisons if not c.agrees]
    if wrong:
        fail(f"{model}: differs from its definition: {', '.join(wrong)}")
    if apart:
        fail(f"{model}: holds to its definition, differs from onnxruntime: {', '.join(apart)}")


@command
def bench(
    model: ModelPath,
    options: Options,
    feeds: Annotated[
        Path | None, typer.Option(help="An .npz with an array per input of one call; random without.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Of random inputs.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time a model on every engine installed, this one in each of its precisions: a call and, where it streams, a step.

    Engines take turns on as many threads; each one's outputs are first held against the float64 definition.
    """
    given = None if feeds is None else read_arrays(feeds)
    loaded = options.load(model)
    from ..report.bench import Request, benched, document, shown, timing_bar

    request = Request(model, loaded, options.given, given, seconds, seed)
    with timing_bar(console(stderr=True) if is_terminal(sys.stderr) else None) as progress:
        cases = benched(request, progress)
    if as_json:
        print(json.dumps(document(request, cases), indent=2, ensure_ascii=False))
    else:
        console().print(shown(request, cases))


@command
def explain(
    model: ModelPath,
    options: Options,
    text: Annotated[str | None, typer.Option(help="Text that the model reads.", show_default=False)] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text that the model goes on from; default: nothing before it.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--input", "-i", help="Readings: .npz, .npy, or .csv with a step a line.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Labelled text (.json); default: labelled.json beside MODEL, if there is one.")
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Steps, where neither text nor readings say.")] = 200,
    layer: Annotated[list[str] | None, typer.Option(help="Show only this layer; repeatable.")] = None,
    target: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page to write; default: MODEL.explain.html, here.")
    ] = None,
) -> None:
    """Write a page that shows what the gates did with a text or with readings, step by step."""
    given = sum(one is not None for one in (text, prompt, source, labels))
    if given > 1:
        raise typer.BadParameter("--text, --prompt, --input and --labels exclude each other")
    page = Path(f"{model.stem}.explain.html") if target is None else target
    check_folder(page)
    from ..pages import walk
    from ..report.explain import Request, explained, read_csv
    from ..report.labelled import BESIDE, read_labelled

    beside = model.parent / BESIDE
    place = beside if not given and beside.is_file() else labels
    labelled = None if place is None else read_labelled(place)
    feeds = None if source is None else read_csv(source) if source.suffix == ".csv" else read_arrays(source)
    loaded = options.load(model)
    with waiting("running"):
        shown = explained(loaded, Request(text, prompt, length, feeds, layer or (), labelled))
    _write_page(page, walk.page(shown))


def _write_page(path: Path, page: str) -> None:
    with replacing(path) as file:
        file.write(page.encode())
    say(f"wrote {path}: {path.stat().st_size:,} bytes")
