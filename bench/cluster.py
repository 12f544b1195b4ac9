"""python -m bench.cluster: a data set scored on a local Ray beside plain processes of the engine, on the same files.

Sequences of 5 to 60 steps of 8 numbers in Parquet; a 1×64 LSTM with a dense head gives each one number. Both sides
read, run and write; interpreters, imports and Ray's own start are apart, measured by the same job on a few rows.
"""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer

INPUTS, HIDDEN, FEWEST, MOST = 8, 64, 5, 60
LARGE: Final = 2048  # hidden units of the model whose weights are seen to be shared
ROWS_A_FILE: Final = 16_384
STORE: Final = 200_000_000  # bytes of Ray's object store
CPUS: Final = 2  # logical ones beside the actors', for what reads and writes
#: Ray Data's own settings, for a machine of few cores: actors that read footers, and bytes of files that a task reads.
SETTINGS: Final = {"RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1", "RAY_DATA_PARQUET_BIN_PACKING_BYTES": str(16 << 20)}
app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


# --- what is measured -------------------------------------------------------------------------------------------------


def write_model(path: Path, hidden: int) -> None:
    """An LSTM over 8 inputs, and a dense head on its last step."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    bound = 1 / np.sqrt(hidden)
    shapes = {"W": (1, 4 * hidden, INPUTS), "R": (1, 4 * hidden, hidden), "B": (1, 8 * hidden), "V": (hidden, 1)}
    weights = {name: draw.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}
    constants = {**weights, "axis": np.array([0])}
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "B"], ["", "last"], hidden_size=hidden),
        helper.make_node("Squeeze", ["last", "axis"], ["h"]),
        helper.make_node("MatMul", ["h", "V"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "scored",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", "B", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_data(folder: Path, rows: int, rows_a_file: int) -> None:
    """Files of sequences."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    for first in range(0, rows, rows_a_file):
        count = min(rows_a_file, rows - first)
        draw = np.random.default_rng(first)
        lengths = draw.integers(FEWEST, MOST + 1, count)
        values = draw.normal(size=int(lengths.sum()) * INPUTS).astype(np.float32)
        offsets = np.concatenate([[0], np.cumsum(lengths * INPUTS)]).astype(np.int32)
        x = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
        table = pa.table({"id": np.arange(first, first + count), "x": x})
        pq.write_table(table, folder / f"{first:09}.parquet", use_dictionary=False)


def plain_file(model: Any, source: Path, target: Path) -> None:
    """What a process of the engine does with a file: read, run, write."""
    import pyarrow.parquet as pq

    from lstm_engine.ray.tables import array_of, column_of

    table = pq.read_table(source)
    results = model.run_ragged(column_of(table["x"], "x"))
    pq.write_table(table.select(["id"]).append_column("y", array_of(results["y"])), target / source.name)


# --- plain processes --------------------------------------------------------------------------------------------------


def _serve(model: str, jobs: Any, done: Any) -> None:
    """A process of the engine: files as they come, until there are none."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import pyarrow as pa

    import lstm_engine as le

    pa.set_cpu_count(1)
    loaded = le.load(model, threads=1)
    for source, target in iter(jobs.get, None):
        plain_file(loaded, Path(source), Path(target))
        done.put(source)


class Plain:
    """Processes of the engine with a queue of files between them."""

    def __init__(self, model: Path, workers: int) -> None:
        spawning = multiprocessing.get_context("spawn")
        self.jobs, self.done = spawning.Queue(), spawning.Queue()
        self.processes = [
            spawning.Process(target=_serve, args=(str(model), self.jobs, self.done)) for _ in range(workers)
        ]
        for process in self.processes:
            process.start()

    def score(self, source: Path, target: Path) -> None:
        """All files of a folder."""
        files = sorted(source.iterdir())
        for file in files:
            self.jobs.put((str(file), str(target)))
        for _ in files:
            self.done.get()

    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self.processes]

    def close(self) -> None:
        for _ in self.processes:
            self.jobs.put(None)
        for process in self.processes:
            process.join()


# --- Ray --------------------------------------------------------------------------------------------------------------


class OnRay:
    """A Ray of this machine, with so many actors that score."""

    def __init__(self, model: Path, workers: int) -> None:
        self.others = frozenset(below(os.getpid()))
        os.environ.update(SETTINGS, RAY_DATA_DISABLE_PROGRESS_BARS="1")
        import ray

        import lstm_engine as le

        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        ray.init(
            num_cpus=workers + CPUS,
            object_store_memory=STORE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=self.folder,
        )
        self.ray, self.workers = ray, workers
        self.model = le.load(model, threads=1)

    def score(self, source: Path, target: Path) -> None:
        """All files of a folder."""
        from lstm_engine.ray import score

        files = self.ray.data.read_parquet(str(source))
        score(files, self.model, column="x", output="y", concurrency=self.workers).write_parquet(str(target))

    def pids(self) -> list[int]:
        """All processes of this Ray, its driver among them."""
        return [os.getpid(), *(child for child in below(os.getpid()) if child not in self.others)]

    def close(self) -> None:
        self.ray.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


# --- measuring --------------------------------------------------------------------------------------------------------

TICK: Final = os.sysconf("SC_CLK_TCK")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def below(pid: int) -> list[int]:
    """A process's descendants."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):  # it has ended
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(process.name))
    found = [*children.get(pid, ())]
    for each in found:  # grows as it goes
        found += children.get(each, ())
    return found


class Watch:
    """What some processes spend: seconds of CPU, and the most private memory they have together; sampled."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids
        self._spent: dict[int, float] = {}
        self._before: dict[int, float] = {}
        self.memory, self.cpu = 0, 0.0
        self._stop = threading.Event()

    def __enter__(self) -> Watch:
        self._look()
        self._before = dict(self._spent)
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self.cpu = sum(spent - self._before.get(pid, 0.0) for pid, spent in self._spent.items())

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self._look()

    def _look(self) -> None:
        total = 0
        for pid in self._pids():
            with suppress(OSError):  # it has ended
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self._spent[pid] = (int(fields[11]) + int(fields[12])) / TICK
                _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
                total += (resident - shared) * PAGE
        self.memory = max(self.memory, total)


@dataclass(frozen=True)
class Round:
    """A job of one side: seconds, seconds of CPU, the most private bytes its processes had."""

    seconds: float
    cpu: float
    memory: int


def timed(side: Plain | OnRay, source: Path, target: Path) -> Round:
    """A job."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    with Watch(side.pids) as watch:
        begin = time.perf_counter()
        side.score(source, target)
        seconds = time.perf_counter() - begin
    return Round(seconds, watch.cpu, watch.memory)


def check(one: Path, other: Path) -> None:
    """Raise AssertionError unless both folders hold the same rows in the same order, bit for bit."""
    import pyarrow.parquet as pq

    tables = [pq.read_table(folder).combine_chunks() for folder in (one, other)]
    for name in ("id", "y"):
        first, second = ([column.flatten() if name == "y" else column for column in t[name].chunks] for t in tables)
        assert np.concatenate(first).tobytes() == np.concatenate(second).tobytes(), f"'{name}' differs"


def a_block(on_ray: OnRay, count: int, rounds: int) -> tuple[float, float]:
    """Seconds from a block of few rows to the next of a running job, and those of a Scorer for it in this process."""
    import pyarrow as pa

    from lstm_engine.ray import score
    from lstm_engine.ray.scoring import Plan, Scorer, Shared
    from lstm_engine.ray.tables import array_of

    x = array_of(np.zeros((64, FEWEST, INPUTS), np.float32))
    table = pa.table({"id": np.arange(64), "x": x})
    spent = []
    for _ in range(rounds):
        blocks = on_ray.ray.data.from_arrow([table] * count)
        scored = score(blocks, on_ray.model, column="x", output="y", concurrency=on_ray.workers)
        batches = iter(scored.iter_batches(batch_size=None, batch_format="pyarrow"))
        next(batches)
        begin = time.perf_counter()
        further = sum(1 for _ in batches)
        spent.append((time.perf_counter() - begin) / further)
    scorer = Scorer(on_ray.ray.put(Shared.of(on_ray.model)), Plan.of(on_ray.model, "x", "y", None, None), 1)
    scorer(table)
    begin = time.perf_counter()
    for _ in range(50):
        scorer(table)
    return statistics.median(spent), (time.perf_counter() - begin) / 50


class Holder:
    """An actor with a model: what memory it has to itself, beside what any model takes."""

    def __init__(self, shared: Sequence[Any]) -> None:
        """``shared``: references to a small model and to the one that counts."""
        self.models, private = [], []
        for each in shared:
            self.models.append(self._ready(each))
            private.append(self._private())
        self.grown = private[1] - private[0]

    def _ready(self, shared: Any) -> Any:
        import ray

        model = ray.get(shared).model(1)
        model.run_ragged(np.zeros((64, 2, INPUTS), np.float32))
        return model

    def _private(self) -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))

    def private(self) -> int:
        """Bytes that this process alone has for the model."""
        return self.grown


def sharing(on_ray: OnRay, units: int) -> tuple[int, list[int]]:
    """Bytes of a large model's weights, and the private bytes that taking it costs each of two actors of a node."""
    import lstm_engine as le
    from lstm_engine.ray.scoring import Shared

    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "large.onnx", units)
        model = le.load(Path(folder) / "large.onnx", threads=1)
    ray = on_ray.ray
    shared = [ray.put(Shared.of(each)) for each in (on_ray.model, model)]
    actor = ray.remote(num_cpus=1)(Holder)
    holders = [actor.remote(shared) for _ in range(2)]
    private = [ray.get(holder.private.remote()) for holder in holders]
    for holder in holders:
        ray.kill(holder)
    return sum(value.nbytes for value in model.graph.constants.values()), private


# --- the page ---------------------------------------------------------------------------------------------------------


@app.command()
def main(
    rows: Annotated[int, typer.Option(help="sequences")] = 1_000_000,
    rounds: Annotated[int, typer.Option(help="of each side, in turn")] = 3,
    workers: Annotated[int, typer.Option(help="plain processes, and actors")] = 2,
    folder: Annotated[Path | None, typer.Option(help="where the data goes, and stays; a temporary one without")] = None,
    out: Annotated[Path | None, typer.Option(help="the JSON to write")] = None,
    page: Annotated[Path | None, typer.Option(help="rewrite what stands between this page's bench marks")] = None,
) -> None:
    """Measure, and print (or write) the tables."""
    from .report import rewrite

    with _folder(folder) as place:
        found = measured(place, rows, rounds, workers)
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = tables(found)
    if page is None:
        print(text)
    else:
        rewrite(page, text)


@contextmanager
def _folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def measured(place: Path, rows: int, rounds: int, workers: int) -> dict[str, Any]:
    """Everything, as a document."""
    model, data, few = place / "model.onnx", place / f"rows-{rows}", place / "few"
    write_model(model, HIDDEN)
    if not data.exists():
        write_data(data, rows, ROWS_A_FILE)
    shutil.rmtree(few, ignore_errors=True)
    write_data(few, workers * 2, 1)
    targets = {"plain": place / "plain", "ray": place / "ray"}
    sides = {"plain": Plain(model, workers), "ray": OnRay(model, workers)}
    found: dict[str, Any] = {"rows": rows, "workers": workers, "store": STORE, "machine": machine()}
    found["data"] = sum(path.stat().st_size for path in data.iterdir())
    jobs: dict[str, list[Round]] = {f"{name}{kind}": [] for name in sides for kind in ("", " start")}
    for _ in range(rounds):
        for name, side in sides.items():
            jobs[f"{name} start"].append(timed(side, few, targets[name]))
            jobs[name].append(timed(side, data, targets[name]))
        check(*targets.values())
    found["jobs"] = {name: [asdict(each) for each in every] for name, every in jobs.items()}
    found["block"], found["block_in_process"] = a_block(sides["ray"], 400, rounds)  # type: ignore[arg-type]
    found["weights"], found["private"] = sharing(sides["ray"], LARGE)  # type: ignore[arg-type]
    for side in sides.values():
        side.close()
    return found


def machine() -> str:
    """What it ran on, in a line."""
    from .environment import stamp, versions

    facts = stamp({})
    packages = {**versions(), "ray": importlib.metadata.version("ray")}
    known = ", ".join(f"{name} {packages[name]}" for name in ("numpy", "numba", "ray") if name in packages)
    load = facts["load_at_start"]
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {known}; {facts['date'][:10]}, load {load and load[0]} at the start."
    )


def tables(found: dict[str, Any]) -> str:
    """Markdown of a document."""
    rows, workers = found["rows"], found["workers"]

    def of(name: str, what: str) -> float:
        return statistics.median(each[what] for each in found["jobs"][name])

    def work(name: str, what: str) -> float:
        return of(name, what) - of(f"{name} start", what)

    most = {name: max(each["memory"] for each in found["jobs"][name]) for name in found["jobs"]}
    plain, on_ray = work("plain", "seconds"), work("ray", "seconds")
    alone = workers * plain / rows  # seconds of one process for one sequence
    start = of("ray start", "seconds")
    ratio = on_ray / plain
    cpu = work("ray", "cpu") / work("plain", "cpu")
    block = found["block"] - found["block_in_process"]
    lines = [
        f"{rows:,} sequences of {FEWEST} to {MOST} steps of {INPUTS} numbers, "
        f"{found['data'] / 1e6:,.0f} MB of Parquet; 1×{HIDDEN} LSTM, one number a sequence; {workers} plain processes "
        f"and {workers} actors of one Ray, in turn, "
        f"{len(found['jobs']['ray'])} rounds, medians. {found['machine']}",
        "",
        f"|  | {workers} plain processes | {workers} actors on Ray | Ray / plain |",
        "| --- | ---: | ---: | ---: |",
        f"| the job without its start, s | {plain:.2f} | {on_ray:.2f} | {ratio:.2f}× |",
        f"| CPU of all processes for that, s | {work('plain', 'cpu'):.2f} | {work('ray', 'cpu'):.2f} | {cpu:.2f}× |",
        f"| the start: the same job on a few rows, s | {of('plain start', 'seconds'):.2f} | {start:.2f} |  |",
        f"| most private memory of all processes, MB | {most['plain'] / 1e6:,.0f} | {most['ray'] / 1e6:,.0f} |  |",
        f"| … of that without any data, MB | {most['plain start'] / 1e6:,.0f} | {most['ray start'] / 1e6:,.0f} |  |",
        f"| object store at most, MB | – | {found['store'] / 1e6:,.0f} |  |",
        "",
        "Results are the same rows in the same order, bit for bit; each round checks it.",
        "",
        "| cost model |  |",
        "| --- | ---: |",
        f"| one sequence, one process (read, run, write), µs | {1e6 * alone:.1f} |",
        f"| a block through Ray beside the same call in this process, ms | {1e3 * block:.2f} |",
        f"| … is 5 % of a block of so many such sequences | {block / alone / 0.05:,.0f} |",
        *_pays(start, alone, ratio, block),
        f"| weights of a 1×{LARGE} LSTM in the object store, MB | {found['weights'] / 1e6:.1f} |",
        *(
            f"| private memory of actor {k} for it, MB | {private / 1e6:.1f} |"
            for k, private in enumerate(found["private"], 1)
        ),
    ]
    return "\n".join(lines)


def _pays(start: float, alone: float, ratio: float, block: float) -> Iterator[str]:
    """From how many sequences so many processes of a cluster are faster than one here, and what bounds them."""
    for count in (2, 16, 200):
        rows = start / alone / (1 - ratio / count) if ratio < count else float("inf")
        yield f"| sequences from which {count} actors beat one process | {rows:,.0f} |"
    yield f"| sequences a second that 200 actors make, on paper | {200 / alone / ratio:,.0f} |"
    bound = 200 * block / alone / ratio
    yield f"| rows a block has at least for that, if the driver does one after the other | {bound:,.0f} |"


if __name__ == "__main__":
    app()
