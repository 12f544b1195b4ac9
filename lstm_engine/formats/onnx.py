"""ONNX files as Graphs. The only rooms that import the onnx package are this one and its helper for tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from ..errors import ModelFormatError, UnsupportedModelError, listed
from ..graph import UNKNOWN_DTYPE, Dimension, Graph, Node, TensorSpec
from ..vocabulary import COMPUTED_IN, WIDENED
from .onnx_tensors import NeighbourFiles, element_dtype, read_tensor, text
from .onnx_wire import refuse_bombs
from .source import Source

#: Oldest operator set that is read: from 7 on broadcasting works as it does today.
OLDEST_OPSET: Final = 7
#: Domains a later pass may know operators of; any other is refused here.
KNOWN_DOMAINS: Final = frozenset({"", "ai.onnx.ml", "com.microsoft"})
#: Nodes, tensors, attributes and list items a model may have: bounds time and memory for any file.
MAX_ITEMS: Final = 500_000
#: What exporters write for a size they do not know; two such sizes need not be equal.
UNKNOWN_SIZES: Final = frozenset({"", "?", "-1", "None", "unk"})
#: Protobuf's own limit.
MAX_BYTES: Final = 2**31 - 1


def read_onnx(source: str | os.PathLike[str] | bytes | Source) -> Graph:
    """Read an ONNX model; ``source`` is its path (weights may then lie in files beside it) or its bytes.

    Raises ModelFormatError for a damaged or contradictory file, UnsupportedModelError naming what is not
    implemented, OSError if the path cannot be read.
    """
    source = source if isinstance(source, Source) else Source.of(source)
    model = _parse(source)
    try:
        return _Reader(source).model(model)
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{source.origin}: a name in the file is not UTF-8 text") from error
    except RecursionError as error:
        raise ModelFormatError(f"{source.origin}: subgraphs are nested too deeply") from error


def _parse(source: Source) -> ModelProto:
    if source.size > MAX_BYTES:
        raise ModelFormatError(
            f"{source.origin}: {source.size} bytes, ONNX files have at most {MAX_BYTES}; keep the weights in a file "
            "beside the model (external data)"
        )
    data = source.read()
    refuse_bombs(data, ModelProto.DESCRIPTOR, source.origin)
    try:
        model: ModelProto = ModelProto.FromString(data)
    except (DecodeError, RecursionError) as error:
        raise ModelFormatError(f"{source.origin}: is no ONNX model, or is cut short or damaged ({error})") from error
    if not model.HasField("graph") or not model.graph.output:
        raise ModelFormatError(f"{source.origin}: is no ONNX model: it holds no graph with outputs")
    return model


def _operator_set(model: ModelProto, origin: str) -> int:
    versions = {entry.version for entry in model.opset_import if _plain(text(entry.domain)) == ""}
    newest = onnx.defs.onnx_opset_version()
    if not versions:
        operators = sorted({text(node.op_type) for node in model.graph.node})[:8]
        raise UnsupportedModelError(
            f"{origin}: the model imports no version of ONNX's own operators, it uses {', '.join(operators) or 'none'}"
        )
    if len(versions) > 1:
        raise ModelFormatError(f"{origin}: imports several versions of ONNX's operators: {sorted(versions)}")
    version = versions.pop()
    if not OLDEST_OPSET <= version <= newest:
        raise UnsupportedModelError(
            f"{origin}: operator set {version}; {OLDEST_OPSET} to {newest} are read (newer ones with a newer onnx)"
        )
    return int(version)


class _Scope:
    """Names a graph and those around it define; looked up without copying the outer ones."""

    def __init__(self, names: Iterable[str], outer: Container[str]):
        self._names = set(names)
        self._outer = outer

    def __contains__(self, name: object) -> bool:
        return name in self._names or name in self._outer


class _Reader:
    """Turns one model's messages into a Graph; counts what it has seen against the budget."""

    def __init__(self, source: Source):
        self._origin = source.origin
        self._beside = NeighbourFiles(source.path)
        self._items_left = MAX_ITEMS
        self._opset = 0
        self._foreign: dict[str, str] = {}  # operators of other domains, and the first node that uses each

    def model(self, model: ModelProto) -> Graph:
        self._opset = _operator_set(model, self._origin)
        if model.functions:
            model = self._inlined(model)
        self._spend(len(model.metadata_props))
        metadata = {text(entry.key): text(entry.value) for entry in model.metadata_props}
        if _in_bfloat16(model.graph):  # read as float32; float16 is seen, and widened, by a later pass
            metadata[COMPUTED_IN] = WIDENED
        graph = self._graph(model.graph, frozenset(), "", metadata)
        if self._foreign:
            faults = [f"{label}: {name} is not part of ONNX" for name, label in sorted(self._foreign.items())[:20]]
            raise UnsupportedModelError(listed(f"{self._origin}: cannot run", faults))
        return graph

    def _spend(self, items: int) -> None:
        self._items_left -= items
        if self._items_left < 0:
            raise UnsupportedModelError(f"{self._origin}: more than {MAX_ITEMS} nodes, tensors and attribute values")

    def _graph(self, proto: GraphProto, outer: Container[str], body_of: str, metadata: dict[str, str]) -> Graph:
        self._spend(len(proto.node) + len(proto.initializer) + len(proto.input) + len(proto.output))
        origin = f"{self._origin}, body of {body_of}" if body_of else self._origin
        constants = self._initialisers(proto, origin)
        # A body's inputs are told by their position: one that is also an initialiser must not silently go.
        declared = proto.input if body_of else [info for info in proto.input if info.name not in constants]
        inputs = [self._spec(info, origin, "input", bool(body_of)) for info in declared]
        outputs = [self._spec(info, origin, "output", bool(body_of)) for info in proto.output]
        makes = (text(name) for node in proto.node for name in node.output)
        scope = _Scope([*constants, *(spec.name for spec in inputs), *makes], outer)
        nodes = [self._node(node, scope) for node in proto.node]
        return Graph.build(nodes, inputs, outputs, constants, self._opset, metadata, origin, outer)

    def _initialisers(self, proto: GraphProto, origin: str) -> dict[str, np.ndarray]:
        if proto.sparse_initializer:
            name = proto.sparse_initializer[0].values.name
            raise UnsupportedModelError(f"{origin}: sparse initialiser '{name}' is not implemented; store it dense")
        constants: dict[str, np.ndarray] = {}
        faults = []
        for tensor in proto.initializer:
            self._spend(len(tensor.dims) + len(tensor.external_data))
            name = text(tensor.name)
            if not name or name in constants:
                faults.append(f"initialiser '{name}' {'is there twice' if name else 'has no name'}")
                continue
            try:
                constants[name] = read_tensor(tensor, f"initialiser '{name}'", self._beside)
            except ModelFormatError as error:
                faults.append(str(error))
            except UnsupportedModelError as error:
                raise UnsupportedModelError(f"{origin}: {error}") from None
        if faults:
            raise ModelFormatError(listed(origin, faults))
        return constants

    def _spec(self, info: ValueInfoProto, origin: str, role: str, in_body: bool) -> TensorSpec:
        subject = f"{origin}: {role} '{text(info.name)}'"
        if not info.name:
            raise ModelFormatError(f"{origin}: an {role} has no name")
        kind = info.type.WhichOneof("value")
        if kind == "tensor_type":
            return self._tensor_spec(info, subject, in_body)
        if in_body:
            return TensorSpec(info.name, UNKNOWN_DTYPE, None)
        if kind is None:
            raise ModelFormatError(f"{subject} declares no type")
        raise UnsupportedModelError(f"{subject} is a {kind.removesuffix('_type').replace('_', ' ')}, not a tensor")

    def _tensor_spec(self, info: ValueInfoProto, subject: str, in_body: bool) -> TensorSpec:
        tensor = info.type.tensor_type
        dtype = UNKNOWN_DTYPE if in_body and not tensor.elem_type else element_dtype(tensor.elem_type, subject)
        if not tensor.HasField("shape"):
            return TensorSpec(info.name, dtype, None)
        self._spend(len(tensor.shape.dim))
        return TensorSpec(info.name, dtype, tuple(_dimension(dim) for dim in tensor.shape.dim))

    def _node(self, proto: NodeProto, scope: _Scope) -> Node:
        self._spend(len(proto.input) + len(proto.output) + len(proto.attribute))
        inputs = [text(name) for name in proto.input]
        while inputs and not inputs[-1]:
            inputs.pop()
        op, domain, outputs = (
            text(proto.op_type),
            _plain(text(proto.domain)),
            tuple(text(name) for name in proto.output),
        )
        bare = Node(op, tuple(inputs), outputs, {}, text(proto.name), domain)
        if domain not in KNOWN_DOMAINS:
            self._foreign.setdefault(f"operator {op} of {domain!r}", bare.label)
        if not proto.op_type:
            raise ModelFormatError(f"{self._origin}: node {bare.label} names no operator")
        attributes: dict[str, Any] = {}
        for attribute in proto.attribute:
            if attribute.name in attributes:
                raise ModelFormatError(f"{self._origin}: {bare.label} has the attribute {attribute.name!r} twice")
            self._check_kind(attribute, bare)
            attributes[text(attribute.name)] = self._attribute(attribute, bare.label, scope)
        return replace(bare, attributes=attributes) if attributes else bare

    def _check_kind(self, proto: AttributeProto, node: Node) -> None:
        """Refuse a value of another kind than the operator takes: a size of 0.5 would pass for one of 0."""
        wanted = _attribute_kinds(node.op, node.domain, self._opset).get(proto.name)
        kind = proto.type or _kind_of_old_file(proto)
        if wanted is not None and kind != wanted:
            kinds = AttributeProto.AttributeType
            got = kinds.Name(kind) if kind in kinds.values() else kind
            raise ModelFormatError(
                f"{self._origin}: attribute {proto.name!r} of {node.label}: expected {kinds.Name(wanted)}, got {got}"
            )

    def _attribute(self, proto: AttributeProto, label: str, scope: _Scope) -> Any:
        subject = f"{self._origin}: attribute {proto.name!r} of {label}"
        if proto.ref_attr_name:
            raise ModelFormatError(f"{subject} refers to a function's attribute outside any function")
        self._spend(len(proto.ints) + len(proto.floats) + len(proto.strings) + len(proto.tensors))
        kind = proto.type or _kind_of_old_file(proto)
        simple = _SIMPLE_ATTRIBUTES.get(kind)
        if simple is not None:
            return simple(proto)
        if kind == AttributeProto.TENSOR:
            return read_tensor(proto.t, subject, self._beside)
        if kind == AttributeProto.TENSORS:
            return tuple(read_tensor(tensor, subject, self._beside) for tensor in proto.tensors)
        if kind == AttributeProto.GRAPH:
            return self._graph(proto.g, scope, f"{label}.{proto.name}", {})
        if kind == AttributeProto.GRAPHS:
            return tuple(self._graph(graph, scope, f"{label}.{proto.name}", {}) for graph in proto.graphs)
        if kind in AttributeProto.AttributeType.values() and kind != AttributeProto.UNDEFINED:
            raise UnsupportedModelError(
                f"{subject}: values of kind {AttributeProto.AttributeType.Name(kind)} are not implemented"
            )
        raise ModelFormatError(f"{subject} has no known kind ({kind})")

    def _inlined(self, model: ModelProto) -> ModelProto:
        """``model`` with its local functions expanded where they are called."""
        self._refuse_endless_functions(model)
        try:
            from onnx.inliner import inline_local_functions
        except ImportError as error:
            names = ", ".join(sorted(text(function.name) for function in model.functions)[:8])
            raise UnsupportedModelError(f"{self._origin}: model-local functions {names} need onnx ≥ 1.15") from error
        try:
            flat: ModelProto = inline_local_functions(model)
        except Exception as error:  # the inliner is C++ and raises what it likes
            raise ModelFormatError(f"{self._origin}: its local functions cannot be expanded: {error}") from error
        return flat

    def _refuse_endless_functions(self, model: ModelProto) -> None:
        """Raise for functions that call themselves, or that multiply each other beyond the budget."""
        functions = {(_plain(f.domain), f.name, f.overload): f for f in model.functions}
        sizes: dict[tuple[str, str, str], int] = {}
        open_calls: set[tuple[str, str, str]] = set()

        def size_of(nodes: Iterable[NodeProto]) -> int:
            total = 0
            for node in nodes:
                key = (_plain(node.domain), node.op_type, node.overload)
                total += expanded(key) if key in functions else 1
                if total > MAX_ITEMS:
                    raise UnsupportedModelError(f"{self._origin}: its functions expand to over {MAX_ITEMS} nodes")
            return total

        def expanded(key: tuple[str, str, str]) -> int:
            if key in open_calls:
                raise ModelFormatError(f"{self._origin}: the local function {key[1]!r} calls itself")
            if key not in sizes:
                open_calls.add(key)
                nodes = (inner for node in functions[key].node for inner in _node_and_bodies(node))
                sizes[key] = size_of(nodes) + 1
                open_calls.remove(key)
            return sizes[key]

        size_of(_all_nodes(model.graph))


@lru_cache(1024)
def _attribute_kinds(op: str, domain: str, opset: int) -> Mapping[str, int]:
    """The kinds of an operator's attributes (AttributeProto.AttributeType); empty for one that onnx does not know."""
    if domain != "" or not onnx.defs.has(op, domain):
        return {}
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:  # one of a newer operator set
        return {}
    return {name: int(each.type.value) for name, each in schema.attributes.items()}


def _in_bfloat16(graph: GraphProto) -> bool:
    types = {tensor.data_type for tensor in graph.initializer}
    types |= {info.type.tensor_type.elem_type for info in (*graph.input, *graph.output)}
    return TensorProto.BFLOAT16 in types


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield from _node_and_bodies(node)


def _node_and_bodies(node: NodeProto) -> Iterator[NodeProto]:
    yield node
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from _all_nodes(attribute.g)
        for graph in attribute.graphs:
            yield from _all_nodes(graph)


def _dimension(dim: Any) -> Dimension:
    kind = dim.WhichOneof("value")
    if kind == "dim_value":
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    if kind == "dim_param":
        return None if dim.dim_param in UNKNOWN_SIZES else text(dim.dim_param)
    return None


_SIMPLE_ATTRIBUTES: Final[dict[int, Callable[[AttributeProto], Any]]] = {
    AttributeProto.FLOAT: lambda proto: float(proto.f),
    AttributeProto.INT: lambda proto: int(proto.i),
    AttributeProto.STRING: lambda proto: proto.s.decode("utf-8"),
    AttributeProto.FLOATS: lambda proto: tuple(proto.floats),
    AttributeProto.INTS: lambda proto: tuple(proto.ints),
    AttributeProto.STRINGS: lambda proto: tuple(text.decode("utf-8") for text in proto.strings),
}


def _kind_of_old_file(proto: AttributeProto) -> int:
    """The kind of an attribute that does not say it (IR version 1): by the one field it fills."""
    fields = {
        "f": AttributeProto.FLOAT,
        "i": AttributeProto.INT,
        "s": AttributeProto.STRING,
        "t": AttributeProto.TENSOR,
        "g": AttributeProto.GRAPH,
        "floats": AttributeProto.FLOATS,
        "ints": AttributeProto.INTS,
        "strings": AttributeProto.STRINGS,
        "tensors": AttributeProto.TENSORS,
        "graphs": AttributeProto.GRAPHS,
    }
    filled = [kind for field, kind in fields.items() if field in {f.name for f, _ in proto.ListFields()}]
    return int(filled[0] if len(filled) == 1 else AttributeProto.UNDEFINED)
