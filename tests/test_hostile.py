"""Files that are cut, damaged or made to do harm: each gives a typed error, soon, within little memory."""

from __future__ import annotations

import functools
import gc
import io
import json
import os
import struct
import sys
import time
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lstm_engine import formats
from lstm_engine.errors import LstmEngineError, ModelFormatError, UnsupportedModelError
from lstm_engine.formats import archive, onnx_wire
from lstm_engine.formats.native import DESCRIPTION, write_native
from lstm_engine.formats.onnx import read_onnx
from lstm_engine.passes.modernise import modernise

SECONDS = 4.0  # half of it on the slowest machine tried
BOUNDED = settings(
    max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX links, pipes and devices")


@contextmanager
def quick():
    """Fails if the block takes more of this thread's time than a load may; what the rest of the suite left on the heap
    is not gone through meanwhile.
    """
    gc.freeze()
    try:
        start = time.thread_time()
        yield
        assert time.thread_time() - start < SECONDS
    finally:
        gc.unfreeze()


@contextmanager
def little_memory(limit: int = 32 << 20):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def peak_memory() -> int:
    """The most the process has ever used, C libraries included; 0 where it cannot be told."""
    if sys.platform != "linux":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def refused(source, match: str | None = None) -> LstmEngineError:
    with quick(), pytest.raises((ModelFormatError, UnsupportedModelError), match=match) as caught:
        formats.read(source)
    return caught.value


def survives(source) -> None:
    """Reading gives a graph or a typed error and nothing else."""
    try:
        with quick():
            modernise(formats.read(source))
    except (ModelFormatError, UnsupportedModelError):
        pass


@functools.lru_cache
def sample(kind: str) -> bytes:
    """A small file of each kind."""
    models = {
        "lstm": lambda: builders.make_lstm_model(2, 2, peephole=True, activations=["Sigmoid", "Tanh", "Tanh"]),
        "tagger": lambda: builders.make_tagger(5, 2, 2, 3, opset=11),
        "stack": lambda: builders.make_stacked_like_pytorch(2, 2, opset=9),
        "branches": lambda: builders.make_with_branches(2),
    }
    if kind in models:
        return models[kind]().SerializeToString()
    draw = builders.rng().normal
    arrays = {
        "torch": {"weight_ih_l0": draw(size=(8, 3)), "weight_hh_l0": draw(size=(8, 2))},
        "keras": {"kernel": draw(size=(3, 8)), "recurrent_kernel": draw(size=(2, 8)), "bias": draw(size=8)},
        "plain": builders.random_weights(3, 2),
    }
    stream = io.BytesIO()
    if kind == "packed":
        np.savez_compressed(stream, **arrays["torch"])
    elif kind == "native":
        return native_sample()
    else:
        np.savez(stream, **arrays[kind])
    return stream.getvalue()


def native_sample() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.npz"
        write_native(read_onnx(sample("branches")), path)
        return path.read_bytes()


ONNX = ["lstm", "tagger", "stack", "branches"]
NPZ = ["torch", "keras", "plain", "packed", "native"]


# ---------------------------------------------------------------- cut and damaged files


def test_samples_are_whole():
    for kind in ONNX + NPZ:
        modernise(formats.read(sample(kind)))


@pytest.mark.parametrize("kind", ONNX)
def test_a_cut_anywhere_is_refused(kind):
    data = sample(kind)
    start = time.thread_time()
    for end in range(len(data)):
        with pytest.raises((ModelFormatError, UnsupportedModelError)):
            formats.read(data[:end])
    assert time.thread_time() - start < len(data) * 0.02


@pytest.mark.parametrize("kind", NPZ)
def test_a_cut_archive_is_refused(kind):
    data = sample(kind)
    step = max(1, len(data) // 400)
    ends = {*range(0, len(data), step), *range(64), *range(len(data) - 64, len(data))}
    for end in sorted(ends):
        with pytest.raises((ModelFormatError, UnsupportedModelError)):
            formats.read(data[:end])


@pytest.mark.parametrize("kind", ONNX + NPZ)
@BOUNDED
@given(data=st.data())
def test_flipped_bits(kind, data):
    content = bytearray(sample(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    survives(bytes(content))


@pytest.mark.parametrize("kind", ONNX + NPZ)
@BOUNDED
@given(data=st.data())
def test_bytes_overwritten_removed_or_doubled(kind, data):
    content = sample(kind)
    begin = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(begin, min(len(content), begin + 64)))
    middle = data.draw(st.one_of(st.binary(max_size=64), st.just(content[begin:end] * 2)))
    survives(content[:begin] + middle + content[end:])


@BOUNDED
@given(st.binary(max_size=2000))
def test_random_bytes(data):
    if data:
        refused(data)
    refused(b"PK\x03\x04" + data)
    refused(b"\x08\x08" + data)


@pytest.mark.parametrize("size", [1, 100, 10_000, 3_000_000])
def test_longer_random_bytes(size):
    refused(builders.rng(size).bytes(size))
    refused(bytes(size))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "empty"),
        (b"\x93NUMPY\x01\x00" + bytes(100), "npy"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(100), "TensorFlow Lite"),
        (b"PK\x05\x06" + bytes(18), "no recurrent weights"),
        (b"<html></html>", "no ONNX model"),
    ],
)
def test_other_files(data, match, tmp_path):
    refused(data, match)
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    refused(path, match)


def test_folder(tmp_path):
    refused(tmp_path, "is a folder")


def test_nul_in_the_path():
    refused("model\0.onnx", "NUL")


@needs_posix
def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a plain file")
    refused("/dev/zero", "not a plain file")


# ---------------------------------------------------------------- graphs that contradict themselves


def changed(change, kind: str = "lstm") -> bytes:
    model = onnx.ModelProto.FromString(sample(kind))
    change(model)
    return model.SerializeToString()


def initialiser(model: onnx.ModelProto, name: str = "W") -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def test_missing_initialiser():
    error = refused(changed(lambda m: m.graph.initializer.remove(initialiser(m))), "reads 'W'")
    assert "lstm" in str(error)


def test_several_faults_are_one_error():
    def change(model):
        for name in ("W", "R", "P"):
            model.graph.initializer.remove(initialiser(model, name))
        model.graph.output.add().CopyFrom(builders.value_info("Z", np.float32, []))

    message = str(refused(changed(change)))
    for text in ("4 faults", "'W'", "'R'", "'P'", "'Z'"):
        assert text in message


def test_cycles():
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    model = builders.make_model(nodes, [("x", np.float32, [1])], [("b", np.float32, [1])])
    refused(model.SerializeToString(), "in a cycle")


def test_a_body_that_reads_its_own_nodes_output():
    body = helper.make_graph(
        [helper.make_node("Neg", ["y"], ["i"])], "b", [], [builders.value_info("i", np.float32, [])]
    )
    node = helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body)
    model = builders.make_model([node], [("x", np.bool_, [])], [("y", np.float32, [])])
    refused(model.SerializeToString(), "cycle")


def test_a_body_that_reads_nothing_known():
    body = helper.make_graph(
        [helper.make_node("Neg", ["q"], ["i"])], "b", [], [builders.value_info("i", np.float32, [])]
    )
    node = helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body)
    model = builders.make_model([node], [("x", np.bool_, [])], [("y", np.float32, [])])
    refused(model.SerializeToString(), "body of If.*reads 'q'")


def of_no_kind(attribute, name=""):
    """As of IR version 1, which does not say the kind, but with values of two kinds."""
    attribute.ClearField("type")
    attribute.floats.append(1)
    attribute.name = name or attribute.name


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.graph.initializer.append(initialiser(m)), "'W' is there twice"),
        (lambda m: initialiser(m).ClearField("name"), "no name"),
        (lambda m: m.graph.node.append(m.graph.node[0]), "made twice"),
        (lambda m: m.graph.node[0].ClearField("op_type"), "names no operator"),
        (lambda m: m.graph.node[0].attribute.append(m.graph.node[0].attribute[0]), "twice"),
        (lambda m: of_no_kind(m.graph.node[0].attribute[0]), "expected STRINGS, got UNDEFINED"),
        (lambda m: of_no_kind(m.graph.node[0].attribute[0], "mine"), "'mine'.* has no known kind"),
        (lambda m: setattr(m.graph.node[0].attribute[0], "ref_attr_name", "a"), "outside any function"),
        (lambda m: m.graph.ClearField("output"), "no graph with outputs"),
        (lambda m: m.ClearField("graph"), "no graph with outputs"),
        (lambda m: m.graph.input[0].ClearField("type"), "declares no type"),
        (lambda m: m.graph.input[0].ClearField("name"), "no name"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99), "99 is no ONNX element type"),
        (lambda m: m.graph.sparse_initializer.add(), "sparse"),
        (lambda m: m.graph.input[0].type.sequence_type.elem_type.tensor_type.SetInParent(), "sequence"),
    ],
)  # fmt: skip
def test_contradictions(change, match):
    refused(changed(change), match)


def test_names_that_are_no_text():
    data = (
        sample("lstm")
        .replace(b"sequence", b"\xff\xfe\xfd\xfcence")
        .replace(b"hidden_size", b"hidden\xff\xff\xff\xff\xff")
    )
    survives(data)


# ---------------------------------------------------------------- sizes that lie


@pytest.mark.parametrize(
    "dims",
    [[2**40], [2**31, 2**31], [2**62, 2**62, 2**62], [-1, 8, 2], [-1, -8, 2], [0, 2**62], [1] * 100_000, [3], [1, 8, 3], []],
)  # fmt: skip
@pytest.mark.parametrize("raw", [True, False])
def test_declared_shapes(dims, raw):
    def change(model):
        tensor = initialiser(model)
        if not raw:
            values = numpy_helper.to_array(tensor).flatten()
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values.tolist())
        del tensor.dims[:]
        tensor.dims.extend(dims)

    data = changed(change)
    with little_memory():
        refused(data, "'W'")


@pytest.mark.parametrize("kind", [0, 8, 9, 16, 17, 22, 99, -5, 1000])
def test_declared_types(kind):
    refused(changed(lambda model: setattr(initialiser(model), "data_type", kind)), "'W'")


def test_typed_values_out_of_range():
    tensor = TensorProto(name="k", data_type=TensorProto.INT8, dims=[1], int32_data=[300])
    refused(changed(lambda model: model.graph.initializer.append(tensor)), "outside the range of int8")


# ---------------------------------------------------------------- bombs


def message(number: int, content: bytes) -> bytes:
    size, head = len(content), b""
    while True:
        size, low = size >> 7, size & 0x7F
        head += bytes([low | (0x80 if size else 0)])
        if not size:
            return bytes([number << 3 | 2]) + head + content


SHELL = message(12, message(1, b"y") + bytes.fromhex("12040a020801"))
BOMBS = {
    "nodes": message(1, b"") * 3_000_000,
    "initialisers": message(5, b"") * 3_000_000,
    "attributes": message(1, message(5, b"") * 3_000_000),
    "input names": message(1, message(1, b"") * 3_000_000),
    "packed numbers": message(1, message(5, message(1, b"a") + message(8, b"\1" * 6_000_000))),
    "dimensions": message(5, message(1, b"\1" * 6_000_000)),
    "small nodes": message(1, message(2, b"t")) * 1_000_000,
    "docs of types": message(11, message(2, message(4, message(1, b"") * 3_000_000))),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_small_files_of_many_things(kind):
    data = b"\x08\x08" + message(7, BOMBS[kind] + SHELL) + message(8, b"\x10\x11")
    before = peak_memory()
    refused(data)
    assert peak_memory() - before < 300 << 20


def test_many_properties():
    refused(sample("lstm") + message(14, b"") * 3_000_000, "fields")


@pytest.mark.parametrize("depth", [10, 30, 60, 5000])
def test_nested_bodies(depth):
    node = message(4, b"Neg") + message(1, b"x") + message(2, b"y")
    for _ in range(depth):
        graph = message(1, node) + SHELL
        node = message(4, b"If") + message(1, b"x") + message(2, b"y")
        node += message(5, message(1, b"then_branch") + b"\xa0\x01\x05" + message(6, graph))
    inputs = message(11, message(1, b"x") + bytes.fromhex("12040a020801"))
    survives(b"\x08\x08" + message(7, message(1, node) + inputs + SHELL) + message(8, b"\x10\x11"))


def test_counting_agrees_with_parsing():
    data = sample("stack") + message(14, message(1, b"k") + message(2, bytes(onnx_wire.HARMLESS_SIZE)))
    assert formats.read(data).nodes
    for kind in ONNX:
        padded = sample(kind) + message(6, b"d" * onnx_wire.HARMLESS_SIZE)
        assert len(formats.read(padded).nodes) == len(formats.read(sample(kind)).nodes)
        for end in range(len(padded) - 3, len(padded)):
            refused(padded[:end], "cut short")


# ---------------------------------------------------------------- weights beside the model


@pytest.fixture
def folder(tmp_path):
    """A folder with a model, beside a secret file outside."""
    inside = tmp_path / "models"
    inside.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    return inside


def external(folder: Path, location: str, offset=None, length=None) -> Path:
    """A model whose W (64 bytes) is in another file."""
    model = onnx.ModelProto.FromString(sample("lstm"))
    builders.make_external(initialiser(model), location, offset, length)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "sub/../../secret.bin",
        "..",
        "",
        "./../secret.bin",
        "/etc/hostname",
        "/dev/zero",
        "\\\\server\\share",
        "..\\secret.bin",
        "C:\\secret.bin",
        "C:/secret.bin",
        "weights.bin\0.txt",
        "\0",
        "x" * 100_000,
        "file:///etc/hostname",
    ],
)
def test_paths_that_leave_the_folder(folder, location):
    refused(external(folder, location), "'W'")


@needs_posix
def test_links_that_leave_the_folder(folder):
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    refused(external(folder, "link.bin"), "link that leaves")
    (folder / "up").symlink_to(folder.parent)
    refused(external(folder, "up/secret.bin"), "link that leaves")
    (folder / "chain").symlink_to(folder / "link.bin")
    refused(external(folder, "chain"), "link that leaves")
    (folder / "loop").symlink_to(folder / "loop")
    refused(external(folder, "loop"), "'W'")


@needs_posix
def test_links_within_the_folder_are_followed(folder):
    (folder / "real.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(folder / "real.bin")
    assert not np.any(formats.read(external(folder, "link.bin")).constants["W"])


@needs_posix
def test_what_is_no_file(folder):
    (folder / "sub").mkdir()
    refused(external(folder, "sub"), "not a plain file")
    os.mkfifo(folder / "pipe")
    refused(external(folder, "pipe"), "not a plain file")


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (37, None),
        (0, 63),
        (0, 65),
        (0, 2**40),
        (2**62, None),
        (-1, None),
        (0, -64),
        ("1e1", None),
        ("", None),
        ("9" * 5000, None),
        (None, " 64"),
        ("٣", None),
    ],
)
def test_offsets_and_lengths(folder, offset, length):
    (folder / "w.bin").write_bytes(bytes(100))
    refused(external(folder, "w.bin", offset, length), "'W'")


def test_huge_tensors_are_not_allocated_for_a_small_file(folder):
    (folder / "w.bin").write_bytes(bytes(100))
    model = onnx.ModelProto.FromString(sample("lstm"))
    tensor = initialiser(model)
    builders.make_external(tensor, "w.bin")
    del tensor.dims[:]
    tensor.dims.extend([1, 2**20, 2**14])
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with little_memory():
        refused(path, "which has 100")


def test_overlapping_tensors_do_not_multiply(folder):
    (folder / "w.bin").write_bytes(bytes(1 << 20))
    model = onnx.ModelProto.FromString(sample("lstm"))
    for index in range(1000):
        tensor = model.graph.initializer.add(name=f"k{index}", data_type=TensorProto.UINT8, dims=[(1 << 20) - index])
        builders.make_external(tensor, "w.bin", index)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with little_memory():
        refused(path, "overlap")


# ---------------------------------------------------------------- npz archives


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as target:
        for name, data in members.items():
            target.writestr(name, data)
    return stream.getvalue()


def npy(array: np.ndarray, **keywords) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **keywords)
    return stream.getvalue()


def headed(header: str, data: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    """An npy member with any header."""
    text = header.encode("latin-1")
    size = len(text) if length is None else length
    return archive.NPY_MAGIC + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", size) + text + data


def with_array(content: bytes, key: str = "weight_ih_l0") -> bytes:
    members = {"weight_ih_l0.npy": npy(np.zeros((8, 3))), "weight_hh_l0.npy": npy(np.zeros((8, 2)))}
    return zipped({**members, f"{key}.npy": content})


class Harmful:
    """Would write a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickles_are_never_loaded(tmp_path):
    witness = tmp_path / "witness"
    objects = np.array([Harmful(witness)], dtype=object)
    refused(with_array(npy(objects, allow_pickle=True)), "'weight_ih_l0': holds pickled")
    refused(with_array(npy(objects, allow_pickle=True), "extra"), "extra")
    assert not witness.exists()


@pytest.mark.parametrize(
    "array",
    [
        np.array(["text"]),
        np.array([b"bytes"]),
        np.zeros(2, "M8[s]"),
        np.zeros(2, [("a", "f4")]),
        np.zeros(2, "V4"),
        np.zeros(2, np.longdouble),
    ],
)
def test_arrays_that_are_not_numbers(array):
    refused(with_array(npy(array)), "'weight_ih_l0'")


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (8, 3), }"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "begin"),
        (b"\x93NUMPY", "begin"),
        (headed(GOOD, bytes(95)), "takes 96 bytes, the archive holds 95"),
        (headed(GOOD, bytes(97)), "takes 96 bytes, the archive holds 97"),
        (headed(GOOD.replace("8, 3", f"{2**40}, 3")), "takes"),
        (headed(GOOD.replace("8, 3", "99999999999999, 99999999999999")), "larger than any memory"),
        (headed(GOOD.replace("8, 3", "-8, -3"), bytes(96)), "not that of a plain array"),
        (headed(GOOD.replace("8, 3", "1, " * 64), bytes(4)), "larger than any memory"),
        (headed(GOOD.replace("8, 3", "8 * 3"), bytes(96)), "not that of a plain array"),
        (headed("(" * 5000 + ")" * 5000), "not that of a plain array"),
        (headed("-" * 9000 + "1"), "not that of a plain array"),
        (headed("__import__('os').system('true')"), "not that of a plain array"),
        (headed(GOOD, bytes(96), version=2, length=2**32 - 1), "declares"),
        (headed(GOOD, bytes(96), version=1, length=65535), "declares"),
        (headed(GOOD, bytes(96), version=9), "begin"),
        (headed(GOOD, version=1, length=9000), "not that|takes"),
        (headed(GOOD.replace("<f4", "<f16"), bytes(96)), "not one of numbers"),
        (headed("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,)}", bytes(12)), "plain array"),
        (headed("\xff" * 50), "plain array"),
    ],
)
def test_npy_headers_that_lie(content, match):
    with little_memory():
        refused(with_array(content), match)


def test_zip_bomb():
    data = zipped({"weight_ih_l0.npy": npy(np.zeros((25_000_000,), np.float32))}, zipfile.ZIP_DEFLATED)
    assert len(data) < 200_000
    with little_memory():
        refused(data, "would unpack to")


def test_bomb_of_overlapping_members():
    data = bytearray(zipped({"a.npy": npy(np.zeros(200_000, np.uint8))}))
    end = data.rindex(b"PK\x05\x06")
    start = struct.unpack("<I", data[end + 16 : end + 20])[0]
    entry = bytes(data[start:end])
    entries = b"".join(entry.replace(b"a.npy", f"{chr(97 + i)}.npy".encode()) for i in range(26))
    tail = bytearray(data[end:])
    tail[8:16] = struct.pack("<HHI", 26, 26, len(entries))
    refused(bytes(data[:start]) + entries + bytes(tail), "overlap")


def test_size_in_the_directory_that_lies():
    data = bytearray(
        zipped({"W.npy": npy(np.zeros((1, 8, 3), np.float32)), "R.npy": npy(np.zeros((1, 8, 2), np.float32))})
    )
    place = data.index(b"PK\x01\x02")
    for offset in (20, 24):  # compressed and plain size
        data[place + offset : place + offset + 4] = struct.pack("<I", 2**31)
    with little_memory():
        refused(bytes(data), "overlap")


def test_members_with_one_name():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as target:
        target.writestr("W.npy", npy(np.zeros((1, 8, 3))))
        with pytest.warns(UserWarning, match="Duplicate name"):
            target.writestr("W.npy", npy(np.ones((1, 8, 3))))
    refused(stream.getvalue(), r"'W\.npy' is there twice")


def test_encrypted_members():
    data = bytearray(sample("plain"))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    refused(bytes(data), "encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(method):
    refused(zipped({"W.npy": npy(np.zeros((1, 8, 3)))}, method), "compressed with method")


def test_wrong_checksum():
    data = bytearray(sample("plain"))
    data[data.index(b"\x93NUMPY") + 200] ^= 1
    refused(bytes(data), "damaged.*CRC")


def test_member_names_are_only_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(zipped({"../../x.npy": npy(np.zeros(3)), "/etc/x.npy": npy(np.zeros(3))}), "no recurrent weights")
    assert list(tmp_path.iterdir()) == []


def test_one_layer_numbered_ten_thousand():
    refused(
        zipped({f"weight_{kind}_l{n}.npy": npy(np.zeros((8, 2))) for kind in ("ih", "hh") for n in (0, 9999)}),
        "missing",
    )


# ---------------------------------------------------------------- native files that lie


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[" * 1_000_000,
        b'{"a":' * 1_000_000,
        b'{"version": ' + b"9" * 1_000_000 + b"}",
        b'{"version": NaN}',
        b'{"version": 1e999}',
        json.dumps({"format": "lstm_engine", "version": 1, "metadata": {}, "origin": "", "graph": None}).encode(),
    ],
)
def test_descriptions(text):
    refused(zipped({DESCRIPTION: text}), DESCRIPTION)


def test_a_description_that_unpacks_to_much():
    data = zipped({DESCRIPTION: b" " * (30 << 20)}, zipfile.ZIP_DEFLATED)
    with little_memory():
        refused(data, "unpacks to")


def test_nested_graphs_of_a_description():
    level = '{"opset": 21, "inputs": [], "outputs": [], "constants": {}, "nodes": [%]}'
    node = '{"op": "If", "domain": "", "name": "", "inputs": [], "outputs": [], "attributes": {"a": {"graph": %}}}'
    graph = level.replace("%", "")
    for _ in range(150):
        graph = level.replace("%", node.replace("%", graph))
    top = '{"format": "lstm_engine", "version": 1, "metadata": {}, "origin": "", "graph": %}'.replace("%", graph)
    refused(zipped({DESCRIPTION: top.encode()}), "nested too deeply")


def test_an_array_that_many_constants_share():
    constants = {f"k{index}": "a" for index in range(1000)}
    graph = {"opset": 21, "inputs": [], "outputs": [], "constants": constants, "nodes": []}
    top = {"format": "lstm_engine", "version": 1, "metadata": {}, "origin": "", "graph": graph}
    data = zipped({DESCRIPTION: json.dumps(top).encode(), "a.npy": npy(np.zeros(1 << 20, np.uint8))})
    with little_memory():
        assert len(formats.read(data).constants) == 1000
