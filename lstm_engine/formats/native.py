"""The engine's own file: one npz with a JSON description of the graph and one array per constant.

Members: ``lstm_engine.json`` (see ``_described``) and ``arrays/00000.npy`` …; loading needs no onnx.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Container
from dataclasses import replace
from typing import Any, Final, TypeVar

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from ..graph import UNKNOWN_DTYPE, Dimension, Graph, Node, TensorSpec, reads
from ..precision import HELD_IN, int8_levels, weight_axes
from .archive import Archive, write_archive

DESCRIPTION: Final = "lstm_engine.json"
VERSION: Final = 1
ROUNDED_VERSION: Final = 2  # of a file that holds some weights as int8 levels or bfloat16 words
MAX_DESCRIPTION: Final = 64 << 20
MAX_DEPTH: Final = 64
NUMERIC: Final = frozenset("?bBhHiIlLqQefdFD")

T = TypeVar("T")


def write_native(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write ``graph`` whole into one npz file at ``path``, atomically; equal graphs give equal bytes.

    Raises UnsupportedModelError for values the format has no place for, OSError if the file cannot be written.
    """
    arrays = _Arrays()
    rounded = _rounded(graph)
    description = {
        "format": "lstm_engine",
        "version": ROUNDED_VERSION if rounded else VERSION,
        "metadata": dict(graph.metadata),
        # The name alone: where the file lay on somebody's disk is nobody's business, and no part of the content.
        "origin": os.path.basename(graph.origin),
        "graph": _described(graph, arrays, rounded),
    }
    write_archive(path, {DESCRIPTION: description}, arrays.members)


def read_native(archive: Archive) -> Graph:
    """The Graph of a native file. Raises ModelFormatError for whatever contradicts the format."""
    text = archive.text(DESCRIPTION, MAX_DESCRIPTION)
    subject = f"{archive.origin}: {DESCRIPTION}"
    try:
        description = json.loads(text, parse_int=_short_integer, parse_constant=_no_constant)
        return _Reader(archive, subject).model(description)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelFormatError(f"{subject} is not JSON ({error})") from error
    except RecursionError as error:
        raise ModelFormatError(f"{subject} is nested too deeply") from error


# ---------------------------------------------------------------- Graph → description


class _Arrays:
    """The arrays of a file; one that several constants share is written once."""

    def __init__(self) -> None:
        self.members: dict[str, np.ndarray] = {}
        self._known: dict[tuple[Any, ...], str] = {}

    def add(self, array: np.ndarray, subject: str) -> str:
        if array.dtype.char not in NUMERIC:
            raise UnsupportedModelError(f"{subject}: arrays of {array.dtype} cannot be saved")
        identity = (array.__array_interface__["data"], array.shape, array.strides, array.dtype.str)
        if array.size == 0 or identity not in self._known:
            self._known[identity] = f"arrays/{len(self.members):05d}"
            self.members[self._known[identity]] = array
        return self._known[identity]


#: What weights are held as, by precision: members, with the dtype of each.
MEMBERS: Final[dict[str, dict[str, np.dtype[Any]]]] = {
    "int8": {"levels": np.dtype(np.int8), "scales": np.dtype(np.float32)},
    "bfloat16": {"words": np.dtype(np.uint16)},
}

Held = dict[str, Any]


def _rounded(graph: Graph) -> dict[str, Held]:
    """The weights that a rounded graph's precision holds exactly: name → precision, axis and members."""
    precision = graph.metadata.get(HELD_IN)
    found: dict[str, Held] = {}
    if precision not in MEMBERS:
        return found
    for name, axis in weight_axes(graph).items():
        value = graph.constants[name]
        if precision == "int8":
            members = dict(zip(("levels", "scales"), int8_levels(value, axis), strict=True))
        else:
            members = {"words": (np.ascontiguousarray(value).view(np.uint32) >> 16).astype(np.uint16)}
        if np.array_equal(_widened(precision, members, axis), value):
            found[name] = {"precision": precision, "axis": axis, **members}
    return found


def _widened(precision: str, members: dict[str, np.ndarray], axis: int) -> np.ndarray:
    """The float32 weights that members stand for."""
    if precision == "bfloat16":
        words: np.ndarray = (members["words"].astype(np.uint32) << 16).view(np.float32)
        return words
    weights: np.ndarray = members["levels"].astype(np.float32) * np.expand_dims(members["scales"], axis)
    return weights


def _described_constant(name: str, value: np.ndarray, arrays: _Arrays, rounded: dict[str, Held]) -> Any:
    subject = f"constant '{name}'"
    if name not in rounded:
        return arrays.add(value, subject)
    return {k: arrays.add(v, subject) if isinstance(v, np.ndarray) else v for k, v in rounded[name].items()}


def _described(graph: Graph, arrays: _Arrays, rounded: dict[str, Held] | None = None) -> dict[str, Any]:
    return {
        "opset": graph.opset,
        "inputs": [_described_spec(spec) for spec in graph.inputs],
        "outputs": [_described_spec(spec) for spec in graph.outputs],
        "nodes": [_described_node(node, arrays) for node in graph.nodes],
        "constants": {
            name: _described_constant(name, value, arrays, rounded or {}) for name, value in graph.constants.items()
        },
    }


def _described_spec(spec: TensorSpec) -> dict[str, Any]:
    dtype = None if spec.dtype == UNKNOWN_DTYPE else spec.dtype.newbyteorder("<").str
    shape = None if spec.shape is None else list(spec.shape)
    return {"name": spec.name, "dtype": dtype, "shape": shape, "optional": spec.optional}


def _described_node(node: Node, arrays: _Arrays) -> dict[str, Any]:
    attributes = {
        name: _described_value(value, arrays, f"{node.label}.{name}") for name, value in node.attributes.items()
    }
    return {
        "op": node.op,
        "domain": node.domain,
        "name": node.name,
        "inputs": list(node.inputs),
        "outputs": list(node.outputs),
        "attributes": attributes,
    }


def _described_value(value: Any, arrays: _Arrays, subject: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_described_value(item, arrays, subject) for item in value]
    if isinstance(value, np.ndarray):
        return {"array": arrays.add(value, subject)}
    if isinstance(value, Graph):
        return {"graph": _described(value, arrays)}
    raise UnsupportedModelError(f"{subject}: a {type(value).__name__} cannot be saved")


# ---------------------------------------------------------------- description → Graph


class _Reader:
    """Builds a Graph out of a description, checking every value's kind: the file may lie."""

    def __init__(self, archive: Archive, subject: str):
        self._archive = archive
        self._subject = subject
        self._arrays: dict[str, np.ndarray] = {}

    def model(self, description: Any) -> Graph:
        top = self._record(description, "description", "format", "version", "metadata", "origin", "graph")
        if top["format"] != "lstm_engine":
            raise self._fault("format", '"lstm_engine"', top["format"])
        if top["version"] not in (VERSION, ROUNDED_VERSION) or isinstance(top["version"], bool):
            raise ModelFormatError(
                f"{self._subject}: version {top['version']!r:.20}, this engine reads {VERSION} and {ROUNDED_VERSION}; "
                "convert it anew"
            )
        metadata = self._record(top["metadata"], "metadata")
        for key, value in metadata.items():
            self._text(value, f"metadata.{key}")
        return self._graph(top["graph"], "graph", frozenset(), self._text(top["origin"], "origin"), metadata)

    def _graph(self, value: Any, where: str, outer: Container[str], origin: str, metadata: dict[str, str]) -> Graph:
        if where.count(".attributes") > MAX_DEPTH:
            raise ModelFormatError(f"{self._subject} is nested too deeply")
        record = self._record(value, where, "opset", "inputs", "outputs", "nodes", "constants")
        opset = self._whole(record["opset"], f"{where}.opset", 1, 1000)
        inputs = self._each(record["inputs"], f"{where}.inputs", self._spec)
        outputs = self._each(record["outputs"], f"{where}.outputs", self._spec)
        constants = {
            name: self._constant(member, f"{where}.constants.{name}")
            for name, member in self._record(record["constants"], f"{where}.constants").items()
        }
        raw_nodes = self._list(record["nodes"], f"{where}.nodes")
        names = {spec.name for spec in inputs} | set(constants)
        bare = [self._bare_node(raw, f"{where}.nodes[{index}]") for index, raw in enumerate(raw_nodes)]
        names.update(name for node in bare for name in node.outputs)
        scope = _Scope(names, outer)
        nodes = [
            self._with_attributes(node, raw["attributes"], f"{where}.nodes[{index}].attributes", scope, origin)
            for index, (node, raw) in enumerate(zip(bare, raw_nodes, strict=True))
        ]
        place = f"{self._archive.origin}, {where}"
        graph = Graph.build(nodes, inputs, outputs, constants, opset, metadata, place, outer)
        kept = tuple(nodes) if _in_order(nodes, inputs, constants, outer) else graph.nodes
        return replace(graph, nodes=kept, origin=origin)

    def _spec(self, value: Any, where: str) -> TensorSpec:
        record = self._record(value, where, "name", "dtype", "shape", "optional")
        name = self._text(record["name"], f"{where}.name")
        if not name:
            raise self._fault(f"{where}.name", "a name", name)
        dtype = UNKNOWN_DTYPE if record["dtype"] is None else self._dtype(record["dtype"], f"{where}.dtype")
        if not isinstance(record["optional"], bool):
            raise self._fault(f"{where}.optional", "true or false", record["optional"])
        if record["shape"] is None:
            return TensorSpec(name, dtype, None, record["optional"])
        shape = self._each(record["shape"], f"{where}.shape", self._dimension)
        return TensorSpec(name, dtype, tuple(shape), record["optional"])

    def _dimension(self, value: Any, where: str) -> Dimension:
        if value is None or isinstance(value, str):
            return value
        return self._whole(value, where, 0, 2**48)

    def _dtype(self, value: Any, where: str) -> np.dtype[Any]:
        known = {np.dtype(char).newbyteorder("<").str: np.dtype(char) for char in NUMERIC}
        if not isinstance(value, str) or value not in known:
            raise self._fault(where, "a dtype such as '<f4'", value)
        return known[value]

    def _bare_node(self, value: Any, where: str) -> Node:
        record = self._record(value, where, "op", "domain", "name", "inputs", "outputs", "attributes")
        op = self._text(record["op"], f"{where}.op")
        if not op:
            raise self._fault(f"{where}.op", "an operator", op)
        inputs = tuple(self._each(record["inputs"], f"{where}.inputs", self._text))
        outputs = tuple(self._each(record["outputs"], f"{where}.outputs", self._text))
        name, domain = self._text(record["name"], f"{where}.name"), self._text(record["domain"], f"{where}.domain")
        return Node(op, inputs, outputs, {}, name, domain)

    def _with_attributes(self, node: Node, value: Any, where: str, scope: _Scope, origin: str) -> Node:
        record = self._record(value, where)
        if not record:
            return node
        attributes = {
            name: self._attribute(item, f"{where}.{name}", scope, f"{origin}, body of {node.label}.{name}")
            for name, item in record.items()
        }
        return replace(node, attributes=attributes)

    def _attribute(self, value: Any, where: str, scope: _Scope, origin: str) -> Any:
        if isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list):
            return tuple(self._attribute(item, where, scope, origin) for item in value)
        if isinstance(value, dict) and set(value) == {"float"} and value["float"] in ("nan", "inf", "-inf"):
            return float(value["float"])
        if isinstance(value, dict) and set(value) == {"array"}:
            return self._array(value["array"], where)
        if isinstance(value, dict) and set(value) == {"graph"}:
            return self._graph(value["graph"], where, scope, origin, {})
        raise self._fault(where, "a number, a text, a list, an array or a graph", value)

    def _constant(self, value: Any, where: str) -> np.ndarray:
        """An array, or the float32 weights that levels and scales, or words, stand for."""
        if not isinstance(value, dict):
            return self._array(value, where)
        precision = self._record(value, where, "precision", "axis")["precision"]
        if not isinstance(precision, str) or precision not in MEMBERS:
            raise self._fault(f"{where}.precision", " or ".join(MEMBERS), precision)
        members = {}
        for member, dtype in MEMBERS[precision].items():
            array = members[member] = self._array(self._record(value, where, member)[member], f"{where}.{member}")
            if array.dtype != dtype or (member != "scales" and array.ndim < 1):
                raise self._fault(f"{where}.{member}", f"an array of {dtype}", f"{array.dtype}{list(array.shape)}")
        first = next(iter(members.values()))
        axis = self._whole(value["axis"], f"{where}.axis", 0, first.ndim - 1)
        wanted = first.shape[:axis] + first.shape[axis + 1 :]
        if members.get("scales", np.empty(wanted)).shape != wanted:
            raise self._fault(f"{where}.scales", f"shape {list(wanted)}", list(members["scales"].shape))
        return _widened(precision, members, axis)

    def _array(self, value: Any, where: str) -> np.ndarray:
        member = self._text(value, where)
        if member not in self._arrays:
            self._arrays[member] = self._archive.array(member)
        return self._arrays[member]

    def _record(self, value: Any, where: str, *keys: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._fault(where, "an object", value)
        if keys and (missing := [key for key in keys if key not in value]):
            raise ModelFormatError(f"{self._subject}: {where} lacks {', '.join(missing)}")
        return value

    def _list(self, value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise self._fault(where, "a list", value)
        return value

    def _each(self, value: Any, where: str, read: Callable[[Any, str], T]) -> list[T]:
        return [read(item, f"{where}[{index}]") for index, item in enumerate(self._list(value, where))]

    def _text(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise self._fault(where, "a text", value)
        return value

    def _whole(self, value: Any, where: str, low: int, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._fault(where, f"a whole number from {low} to {high}", value)
        return value

    def _fault(self, where: str, expected: str, value: Any) -> ModelFormatError:
        return ModelFormatError(f"{self._subject}: {where}: {expected} expected, got {value!r:.60}")


class _Scope:
    """Names a graph and those around it define."""

    def __init__(self, names: Container[str], outer: Container[str]):
        self._names, self._outer = names, outer

    def __contains__(self, name: object) -> bool:
        return name in self._names or name in self._outer


def _in_order(
    nodes: list[Node], inputs: list[TensorSpec], constants: dict[str, np.ndarray], outer: Container[str]
) -> bool:
    made = {spec.name for spec in inputs} | set(constants)
    for node in nodes:
        if any(name not in made and name not in outer for name in reads(node)):
            return False
        made.update(node.outputs)
    return True


def _short_integer(text: str) -> int:
    if len(text) > 20:
        raise json.JSONDecodeError("a number too long", text[:40], 0)
    return int(text)


def _no_constant(text: str) -> float:
    raise json.JSONDecodeError(f"{text} is not JSON", text, 0)
