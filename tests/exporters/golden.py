"""Golden files of exporters: write a model with what onnxruntime returned, and read it back.

A writer's folder holds ``<name>.onnx`` files, ``index.json`` (what each is and how to judge it) and ``cases.npz`` (what was
fed, what came out). This file needs neither onnxruntime nor any framework to read them.

Each writer is a script beside this file; scenarios named on its command line are made anew and the others stay. Graphs of one
structure are kept once, whatever their opset, unless set apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "exporters"
Arrays = dict[str, np.ndarray]
FLOAT16 = 10  # onnx.TensorProto.FLOAT16
AGREE = 1e-4  # of an output's range: what onnxruntime and the framework may differ by


@dataclass(frozen=True)
class Entry:
    """One golden file.

    ``stream``: "steps" (its outputs have the time axis: a stream gives them all), "last" (its outputs are those of the last
    step), "no" (a StreamingError), "" (not asked). ``states``: {input: output} that a stream carries, where they cannot be
    found. ``constants``: inputs fixed for a stream. ``axes``: of each input, "T" the time and "B" the batch axis.
    ``refused``: no engine runs it: loading it, or running its feeds, must be an error that says this. ``invalid``: onnxruntime says it is no valid file, so it
    may be refused, but not be run wrongly.
    """

    writer: str
    name: str
    opset: int
    cases: tuple[str, ...] = ()
    stream: str = ""
    states: dict[str, str] = field(default_factory=dict)
    constants: tuple[str, ...] = ()
    axes: dict[str, list[str | int]] = field(default_factory=dict)
    tolerance: float = 1e-4
    by: str = "onnxruntime"
    refused: str = ""
    invalid: bool = False
    note: str = ""

    def __str__(self) -> str:
        return f"{self.writer}/{self.name}"

    @property
    def path(self) -> Path:
        return FOLDER / self.writer / f"{self.name}.onnx"

    def recordings(self) -> Iterator[tuple[Arrays, Arrays]]:
        """Feeds and expected outputs of each case."""
        for case in self.cases:
            arrays = recorded(self.writer)[case]
            yield dict(arrays["in"]), dict(arrays["out"])


@cache
def recorded(writer: str) -> dict[str, dict[str, Arrays]]:
    """What a writer's cases feed and give, by case and side."""
    cases: dict[str, dict[str, Arrays]] = {}
    with np.load(FOLDER / writer / "cases.npz") as file:
        for key in file.files:
            case, side, name = key.split("|", 2)
            cases.setdefault(case, {"in": {}, "out": {}})[side][name] = file[key]
    return cases


def entries() -> list[Entry]:
    """All golden files of all writers."""
    found = []
    for index in sorted(FOLDER.glob("*/index.json")):
        for name, given in json.loads(index.read_text()).items():
            found.append(
                Entry(
                    index.parent.name,
                    name,
                    **{**given, "cases": tuple(given.get("cases", ())), "constants": tuple(given.get("constants", ()))},
                )
            )
    return found


class Writer:
    """Collects one writer's files; ``close`` writes the index and the cases.

    ``only``: the scenarios (names up to the first dash) that are made anew; all others stay. All, if empty.
    """

    def __init__(self, writer: str, only: Collection[str] = ()) -> None:
        self.folder = FOLDER / writer
        self.folder.mkdir(parents=True, exist_ok=True)
        self.index: dict[str, dict[str, Any]] = {}
        self.arrays: Arrays = {}
        self.structures: set[str] = set()
        if only and (self.folder / "index.json").exists():
            kept = json.loads((self.folder / "index.json").read_text())
            self.index = {name: entry for name, entry in kept.items() if name.split("-")[0] not in only}
            cases = {case for entry in self.index.values() for case in entry.get("cases", ())}
            with np.load(self.folder / "cases.npz") as file:
                self.arrays = {key: file[key] for key in file.files if key.split("|")[0] in cases}

    def add(
        self,
        name: str,
        model: Any,
        feeds: Sequence[Arrays],
        theirs: Callable[[Arrays], Arrays] | None = None,
        *,
        scenario: str | None = None,
        apart: object = "",
        external: str = "",
        **judged: Any,
    ) -> bool:
        """Keep a model, unless one of the same structure is kept already, and not set ``apart``; whether it was kept.

        ``model``: a ModelProto. ``theirs``: what the framework itself gives for a feed. ``scenario``: files of one scenario
        share what was fed and what came out, where onnxruntime gives the same. ``external``: a file for the weights,
        or for each of them (``{number}``).
        """
        shorten(model)
        opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        key = f"{structure(model)} {apart}"
        if key in self.structures:
            return False
        entry: dict[str, Any] = {"opset": opset, **{k: v for k, v in judged.items() if v}}
        named = f"{scenario or name}", name
        if "refused" in entry:
            entry["cases"] = [self._stored(named, k, fed, {}) for k, fed in enumerate(feeds)]
        else:
            entry["cases"] = [
                case for k, fed in enumerate(feeds) if (case := self._case(named, k, model, fed, theirs, entry))
            ]
            if not entry["cases"]:
                raise ValueError(f"{name}: onnxruntime runs none of its cases")
            if len(entry["cases"]) < len(feeds):
                entry.pop("stream", None)  # it runs at the sizes of its export only
        self.structures.add(key)
        self.index[name] = entry
        self._save(name, model, external)
        return True

    def _save(self, name: str, model: Any, external: str) -> None:
        """Write the model; where ``external`` says so, each weight to the file of its number there."""
        if external:
            from onnx.external_data_helper import set_external_data, write_external_data_tensors

            places = [external.format(number=k) for k in range(len(model.graph.initializer))]
            for tensor, place in zip(model.graph.initializer, places, strict=True):
                set_external_data(tensor, place)
                (self.folder / place).parent.mkdir(exist_ok=True)
                (self.folder / place).unlink(missing_ok=True)  # onnx appends to what is there
            write_external_data_tensors(model, str(self.folder))
        (self.folder / f"{name}.onnx").write_bytes(model.SerializeToString())

    def _case(
        self, named: tuple[str, str], k: int, model: Any, fed: Arrays, theirs: Any, entry: dict[str, Any]
    ) -> str | None:
        """Store a case, or find the same one; its key. None where only onnxruntime fails, at these sizes."""
        framework = theirs(fed) if theirs else None
        try:
            expected = run_onnxruntime(model, fed)
        except Exception as fault:
            said = str(fault).splitlines()[0]
            lacking = "NOT_IMPLEMENTED" in said or "does not support" in said
            invalid = "INVALID_GRAPH" in said or "not a registered function" in said
            if framework is None or not (lacking or invalid):
                print(f"  {named[1]}#{k}: left out: {said[:250]}")
                return None
            entry["by"], entry["note"] = "framework", f"onnxruntime: {said[:160]}"
            entry |= {"invalid": True} if invalid else {}
            expected = dict(zip([o.name for o in model.graph.output], framework.values(), strict=True))
        if framework is not None:
            pairs = zip(framework.values(), expected.values(), strict=True)
            worst = max((difference(x, y) for x, y in pairs), default=0.0)
            if worst > max(AGREE, entry.get("tolerance", 0)):
                entry["note"] = f"the framework itself differs by {worst:.2g} of the range"
                entry.pop("stream", None)
        return self._stored(named, k, fed, expected)

    def _stored(self, named: tuple[str, str], k: int, fed: Arrays, expected: Arrays) -> str:
        """The key of these arrays: the scenario's where they are the same, else the file's own."""
        for key in (f"{name}#{k}" for name in named):
            flat = {f"{key}|in|{n}": x for n, x in fed.items()} | {f"{key}|out|{n}": x for n, x in expected.items()}
            known = {n: x for n, x in self.arrays.items() if n.startswith(f"{key}|")}
            if not known:
                self.arrays |= flat
                return key
            if known.keys() == flat.keys() and all(same(known[n], x) for n, x in flat.items()):
                return key
        raise ValueError(f"{named[1]}: two models of this name")

    def close(self) -> None:
        for old in {f.stem for f in self.folder.glob("*.onnx")} - self.index.keys():
            (self.folder / f"{old}.onnx").unlink()
        np.savez_compressed(self.folder / "cases.npz", **self.arrays)  # type: ignore[arg-type]
        (self.folder / "index.json").write_text(json.dumps(self.index, indent=1, sort_keys=True) + "\n")
        size = sum(f.stat().st_size for f in self.folder.iterdir())
        print(f"{self.folder.name}: {len(self.index)} files, {size / 1e6:.2f} MB")


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and difference(a, b) < 1e-6


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, in units of b's range; infinite where the shapes differ."""
    if np.shape(a) != np.shape(b):
        return float("inf")
    a64, b64 = np.asarray(a, np.float64), np.asarray(b, np.float64)
    reach = np.abs(b64[np.isfinite(b64)]).max(initial=1e-6)
    return float(np.nan_to_num(np.abs(a64 - b64), nan=0).max(initial=0) / reach)


def run_onnxruntime(model: Any, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """What onnxruntime gives; without its graph optimisations where it fails with them, or they change the numbers."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    source = model.SerializeToString()
    halves = any(t.data_type == FLOAT16 for t in model.graph.initializer)  # it crashes
    rounded = any(
        n.op_type == "QuantizeLinear" for n in model.graph.node
    )  # it joins them into operators that round elsewhere
    levels = [ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL]
    for options.graph_optimization_level in levels[halves or rounded :]:
        try:
            session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            break
        except Exception as fault:
            last = fault
    else:
        raise last
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def structure(model: Any) -> str:
    """A digest of what the graph computes and declares, whatever its names, its order and its weights' values."""
    return _digest(_told(model.graph, {}))


def _told(graph: Any, outer: Mapping[str, str]) -> Any:
    """A graph as nested lists: every tensor is the digest of what made it."""
    import onnx

    tensors = dict(outer)
    tensors |= {t.name: _digest(["initialiser", t.data_type, list(t.dims)]) for t in graph.initializer}
    tensors |= {i.name: _digest(["input", k, _declared(i)]) for k, i in enumerate(graph.input)}
    nodes = []
    for node in graph.node:
        attributes = []
        for a in sorted(node.attribute, key=lambda a: a.name):
            inner = a.type == onnx.AttributeProto.GRAPH
            tensor = a.type == onnx.AttributeProto.TENSOR
            told = (
                _told(a.g, tensors) if inner else [a.t.data_type, list(a.t.dims)] if tensor else a.SerializeToString()
            )
            attributes.append([a.name, told])
        made = _digest(
            [node.op_type, node.domain, attributes, [tensors.get(x, "") for x in node.input], len(node.output)]
        )
        tensors |= {x: f"{made}:{k}" for k, x in enumerate(node.output) if x}
        nodes.append(made)
    return [sorted(nodes), [[tensors.get(o.name, ""), _declared(o)] for o in graph.output]]


def _declared(info: Any) -> list[Any]:
    kind = info.type.tensor_type
    return [kind.elem_type, [d.dim_value if d.HasField("dim_value") else "?" for d in kind.shape.dim]]


def _digest(told: Any) -> str:
    return hashlib.sha256(repr(told).encode()).hexdigest()


def shorten(model: Any) -> None:
    """Take out what says where the exporting script lay: stack traces of every node."""
    for node in model.graph.node:
        node.ClearField("doc_string")
        if hasattr(node, "metadata_props"):
            del node.metadata_props[:]
