"""Data sets scored on a cluster of several nodes on this machine: what one process gives, to the last bit, in order."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import LayerCase, NetCase, assert_same_bits, model_of

import lstm_engine as le
from lstm_engine import Ragged

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]
ray = pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")
pytest.importorskip("pandas")  # what Ray Data itself needs

import psutil  # noqa: E402 (comes with Ray)
import pyarrow.parquet as pq  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from lstm_engine.ray import score  # noqa: E402
from lstm_engine.ray.tables import array_of, column_of  # noqa: E402

TAGGER = NetCase(hidden=(17,), head="last_slice")
TOKENS = NetCase(vocabulary=11, hidden=(17,), head="dense", outputs=11)
LAYER = LayerCase(I=3, H=20)
STORE = 100_000_000


class Nodes:
    """A cluster that begins with a head and two more nodes, each with more logical CPUs than this machine may have."""

    def __init__(self) -> None:
        quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 2,
                "object_store_memory": STORE,
                "include_dashboard": False,
                "_system_config": quick,
            },
        )
        self.others = [self.add(), self.add()]
        ray.init(address=self.cluster.address, log_to_driver=False)

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=3, object_store_memory=STORE)

    def workers(self) -> list[psutil.Process]:
        """The actors' processes."""
        raylets = [node.all_processes["raylet"][0].process.pid for node in self.cluster.list_all_nodes()]
        below = [child for pid in raylets for child in psutil.Process(pid).children()]
        return [child for child in below if child.is_running() and "MapWorker" in "".join(child.cmdline())]

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


@contextmanager
def short_folder() -> Iterator[str]:
    """A folder with a name that sockets in it may have."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp" if Path("/tmp").is_dir() else None)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with short_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # by default actors give way to all else that runs here
        patch.setenv("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")  # by default a crowd, for a machine of few cores
        nodes = Nodes()
        yield nodes
        nodes.close()


def drawn(rows: int, width: int = 3, seed: int = 0, most: int = 20) -> Ragged:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, most + 1, rows)
    values = draw.normal(size=(int(lengths.sum()), width)).astype(np.float32)
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]))


def gathered(dataset: Any) -> Any:
    return pa.concat_tables(ray.get(dataset.to_arrow_refs()))


def assert_column(table: Any, name: str, expected: Any) -> None:
    """That a column holds these results, bit by bit."""
    got = column_of(table[name], name)
    if isinstance(expected, Ragged):
        assert got.lengths.tolist() == expected.lengths.tolist()
        assert_same_bits(got.values, expected.values)
    else:
        assert_same_bits(got.values.reshape(expected.shape), expected)


# --- Arrow, without a cluster -----------------------------------------------------------------------------------------


def test_columns_of_every_kind_of_list() -> None:
    steps = [[[1.0, 2.0], [3.0, 4.0]], [], [[5.0, 6.0]]]
    nested = pa.array(steps, pa.list_(pa.list_(pa.float32())))
    sized = pa.array(steps, pa.large_list(pa.list_(pa.float32(), 2)))
    for array in (nested, sized, pa.chunked_array([nested.slice(0, 1), nested.slice(1)])):
        column = column_of(array, "x")
        assert [each.tolist() for each in column] == steps
    flat = pa.array([[1, 2], [], [3]], pa.list_(pa.int64()))
    assert [each.tolist() for each in column_of(flat, "x")] == [[1, 2], [], [3]]
    assert [each.tolist() for each in column_of(flat.slice(2), "x")] == [[3]]
    assert column_of(pa.array([1.5, 2.5]), "x").tolist() == [1.5, 2.5]
    fixed = pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int8(), 2)).slice(1)
    assert [each.tolist() for each in column_of(fixed, "x")] == [[3, 4], [5, 6]]
    tensors = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    native = pa.FixedShapeTensorArray.from_numpy_ndarray(tensors)
    assert_same_bits(np.stack(list(column_of(native, "x"))), tensors)
    assert_same_bits(np.stack(list(column_of(native.slice(1), "x"))), tensors[1:])


def test_what_lists_of_numbers_cannot_be() -> None:
    with pytest.raises(le.InputError, match=r"row 1: column 'x': expected a sequence, got null"):
        column_of(pa.array([[1.0], None]), "x")
    with pytest.raises(le.InputError, match=r"row 2: column 'x': a null among its numbers, at place 1"):
        column_of(pa.array([[1.0], [], [2.0, None]]), "x")
    with pytest.raises(le.InputError, match=r"row 1: column 'x': step 1 has 1 numbers where others have 2"):
        column_of(pa.array([[[1.0, 2.0]], [[1.0, 2.0], [3.0]]]), "x")


def test_results_become_lists_and_come_back() -> None:
    ragged = Ragged(np.arange(12, dtype=np.float32).reshape(6, 2), np.array([1, 3, 3, 6]))
    array = array_of(ragged)
    assert array.to_pylist() == [[[2, 3], [4, 5]], [], [[6, 7], [8, 9], [10, 11]]]
    assert str(array.type) == "list<item: fixed_size_list<item: float>[2]>"
    assert array_of(np.arange(8).reshape(2, 2, 2)).to_pylist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert array_of(np.array([1.5])).to_pylist() == [1.5]


# --- data sets --------------------------------------------------------------------------------------------------------


def test_rows_keep_their_order_their_keys_and_their_bits(nodes: Nodes, tmp_path: Path) -> None:
    model, x = model_of(LAYER), drawn(900)
    table = pa.table({"key": [f"k{k}" for k in range(900)], "x": array_of(x), "n": list(range(900))})
    (tmp_path / "in").mkdir()
    for k in range(6):
        pq.write_table(table.slice(150 * k, 150), tmp_path / "in" / f"{k}.parquet")
    source = ray.data.read_parquet(str(tmp_path / "in"))
    scored = score(source, model, column="x", output={"Y": "y", "Y_c": "c"}, concurrency=2, batch_size=64)
    assert not ray.data.DataContext.get_current().execution_options.preserve_order
    assert not source.context.execution_options.preserve_order
    scored.write_parquet(str(tmp_path / "out"))
    got = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "out").iterdir())])
    assert got.column_names == ["key", "n", "y", "c"]
    assert got["key"].to_pylist() == table["key"].to_pylist()
    assert got["n"].to_pylist() == list(range(900))
    expected = model.run_ragged(x)
    assert_column(got, "y", expected["Y"])
    assert_column(got, "c", expected["Y_c"])


def test_json_lines_of_tokens_and_int8(nodes: Nodes, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    rows = [{"id": k, "ids": draw.integers(0, 11, draw.integers(1, 9)).tolist()} for k in range(40)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (tmp_path / "tokens.onnx").write_bytes(TOKENS.model())
    source = ray.data.read_json(str(tmp_path / "in.jsonl"))
    scored = score(source, tmp_path / "tokens.onnx", column="ids", output="y", precision="int8", concurrency=1)
    scored.write_json(str(tmp_path / "out"))
    lines = [line for path in sorted((tmp_path / "out").iterdir()) for line in path.read_text("utf-8").splitlines()]
    got = [json.loads(line) for line in lines]
    expected = le.load(TOKENS.model(), precision="int8").run_ragged(Ragged.of(row["ids"] for row in rows))["y"]
    assert [row["id"] for row in got] == list(range(40))
    for row, wanted in zip(got, expected, strict=True):
        assert np.allclose(row["y"], wanted, rtol=1e-6, atol=1e-9)  # digits of a JSON file


def test_padded_arrays_with_lengths(nodes: Nodes, tmp_path: Path) -> None:
    model = model_of(TAGGER)
    padded = np.random.default_rng(2).normal(size=(30, 7, 3)).astype(np.float32)
    lengths = np.arange(30) % 7 + 1
    np.save(tmp_path / "x.npy", padded)
    whole = gathered(score(ray.data.read_numpy(str(tmp_path / "x.npy")), model, column="data", concurrency=1))
    assert_column(whole, "y", model.run_ragged(padded)["y"])
    table = pa.table({"x": array_of(padded), "steps": lengths})
    short = score(ray.data.from_arrow(table), model, column="x", length_column="steps", keep=["steps"], concurrency=1)
    got = gathered(short)
    assert got["steps"].to_pylist() == lengths.tolist()
    uniform = Ragged(padded.reshape(210, 3), np.arange(31) * 7)
    assert_column(got, "y", model.run_ragged(uniform.shortened(lengths))["y"])


def test_an_error_names_the_row_and_its_file(nodes: Nodes, tmp_path: Path) -> None:
    table = pa.table({"id": [7, 8, 9], "x": [[0.0] * 6, [0.0] * 7, [0.0] * 9]})
    pq.write_table(table, tmp_path / "bad.parquet")
    source = ray.data.read_parquet(str(tmp_path / "bad.parquet"), include_paths=True)
    with pytest.raises(le.InputError, match=r"\(id=8, path='.*bad.parquet'\): .*7 numbers are no whole steps of 3"):
        score(source, model_of(TAGGER), column="x", concurrency=1).materialize()


def test_columns_that_do_not_fit_are_refused_at_once(nodes: Nodes) -> None:
    source = ray.data.from_items([{"id": 1, "x": [0.0] * 6}])
    with pytest.raises(le.InputError, match="there is no column 'nope'"):
        score(source, model_of(TAGGER), column="nope")
    with pytest.raises(le.InputError, match="column 'id' is there already"):
        score(source, model_of(TAGGER), column="x", output="id")
    with pytest.raises(le.InputError, match="'z' is not an output"):
        score(source, model_of(TAGGER), column="x", output={"z": "z"})
    with pytest.raises(le.InputError, match=r"give \{output: column\}"):
        score(source, model_of(LAYER), column="x", output="y")
    with pytest.raises(le.InputError, match="this model is loaded, in float32"):
        score(source, model_of(TAGGER), column="x", precision="int8")


# --- the command line -------------------------------------------------------------------------------------------------


def command(words: list[Any], environment: dict[str, str]) -> tuple[int, str, str]:
    line = [sys.executable, "-m", "lstm_engine", "score", *map(str, words)]
    done = subprocess.run(line, env=environment, capture_output=True, encoding="utf-8", timeout=200)
    return done.returncode, done.stdout, done.stderr


def test_the_command_scores_files(nodes: Nodes, tmp_path: Path, warm_environment: dict[str, str]) -> None:
    x = drawn(50)
    (tmp_path / "tagger.onnx").write_bytes(TAGGER.model())
    pq.write_table(pa.table({"id": list(range(50)), "x": array_of(x), "n": ["n"] * 50}), tmp_path / "x.parquet")
    given = [tmp_path / "tagger.onnx", tmp_path / "x.parquet", tmp_path / "out", "--output", "y", "--key", "id"]
    code, out, said = command([*given, "--address", nodes.cluster.address, "--workers", 2], warm_environment)
    assert (code, out) == (0, ""), said
    got = pq.read_table(tmp_path / "out")
    assert got.column_names == ["id", "y"]
    assert_column(got, "y", model_of(TAGGER).run_ragged(x)["y"])
    code, _, said = command([*given, "--address", nodes.cluster.address], warm_environment)
    assert code == 1
    assert "is there already" in said


def test_the_command_has_a_ray_of_its_own_and_leaves_nothing(tmp_path: Path, warm_environment: dict[str, str]) -> None:
    (tmp_path / "tokens.onnx").write_bytes(TOKENS.model())
    (tmp_path / "in.jsonl").write_text('{"id": 1, "x": [1, 2]}\n{"id": 2, "x": [3, 11]}\n', "utf-8")
    words = [tmp_path / "tokens.onnx", tmp_path / "in.jsonl", tmp_path / "out", "-c", "x", "--workers", 1]
    with short_folder() as folder:
        code, out, said = command(words, {**warm_environment, "RAY_TMPDIR": folder})
        left = [each for each in psutil.process_iter(["cmdline"]) if folder in "".join(each.info["cmdline"] or [])]
    assert (code, out) == (1, "")
    last = said.splitlines()[-1]
    assert re.match(r"lstm-engine: row \d of a block of \d \(id=2\): .*index 11 is out of range", last)
    assert not left


# --- what fails on the way --------------------------------------------------------------------------------------------


def making(started: Path, rows: int, pause: float) -> Callable[[Any], Any]:
    """A block of sequences for each number; it leaves word that it was begun, and takes a moment."""

    def make(table: Any) -> Any:
        import time
        from pathlib import Path

        import numpy as np
        import pyarrow as pa

        first = int(table["id"][0].as_py())
        (Path(started) / str(first)).touch()
        time.sleep(pause)
        ids = np.arange(first * rows, (first + 1) * rows)
        lists = [np.random.default_rng(k).normal(size=3 * (1 + k % 13)).astype(np.float32) for k in ids.tolist()]
        return pa.table({"id": ids, "x": pa.array(lists, pa.list_(pa.float32()))})

    return make


def test_a_worker_and_then_a_node_are_lost_and_nothing_else(nodes: Nodes, tmp_path: Path) -> None:
    blocks, rows = 60, 20
    make = making(tmp_path, rows, 0.15)
    source = ray.data.range(blocks, override_num_blocks=blocks).map_batches(
        make, batch_format="pyarrow", batch_size=None
    )
    lost: list[str] = []

    def begun() -> int:
        return len(list(tmp_path.iterdir()))

    def lose() -> None:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and len(lost) < 2:
            time.sleep(0.02)
            if not lost and begun() >= blocks // 3:
                worker = nodes.workers()[0]
                os.kill(worker.pid, signal.SIGKILL)
                lost.append(f"worker at {begun()}")
            elif lost and begun() >= 2 * blocks // 3:
                nodes.cluster.remove_node(nodes.others.pop(), allow_graceful=False)
                lost.append(f"node at {begun()}")

    thread = threading.Thread(target=lose)
    thread.start()
    model = model_of(LAYER)
    try:
        got = gathered(score(source, model, column="x", output={"Y_h": "h"}, concurrency=4))
    finally:
        thread.join()
        nodes.others.append(nodes.add())
    assert [each.split()[0] for each in lost] == ["worker", "node"], lost
    assert int(lost[1].split()[-1]) < blocks  # in mid-job
    assert got["id"].to_pylist() == list(range(blocks * rows))
    table = pa.concat_tables([making(tmp_path, rows, 0)(pa.table({"id": [k]})) for k in range(blocks)])
    assert_column(got, "h", model.run_ragged(column_of(table["x"], "x"))["Y_h"])
