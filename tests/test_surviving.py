"""What outlives a process: streams from their last snapshot after a kill -9, models in forked children."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cases import NetCase
from processes import child

import lstm_engine as le

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# --- killed -----------------------------------------------------------------------------------------------------------

#: Streams on from the last snapshot, if there is one, to a number of steps or for ever. A snapshot is moved into place:
#: there is always a whole one. Outputs after it are of steps that are made again.
WRITER = """
import itertools, os, pathlib, sys
import numpy as np, lstm_engine as le

folder, precision, end = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
stream = le.load(folder / "model", precision=precision).stream()
feeds, saved, done = np.load(folder / "feeds.npy"), folder / "snapshot", 0
output_bytes = stream.fork().step(feeds[0]).nbytes
if saved.exists():
    content = saved.read_bytes()
    done, stream.state = int.from_bytes(content[:8], "little"), le.State.from_bytes(content[8:])
print(done, flush=True)
with open(folder / "outputs", "ab") as outputs:
    outputs.truncate(done * output_bytes)
    for t in itertools.count(done) if end < 0 else range(done, end):
        outputs.write(stream.step(feeds[t % len(feeds)]).tobytes())
        if t % 50 == 49:
            outputs.flush()
            (folder / "part").write_bytes((t + 1).to_bytes(8, "little") + stream.state.to_bytes())
            os.replace(folder / "part", saved)
            print(t + 1, flush=True)
"""


def killed_after(snapshots: int, moment: float, command: list[str], environment: dict[str, str]) -> int:
    """Kill a writer a moment after it has written so many snapshots; the step it had begun at."""
    with subprocess.Popen([*command, "-1"], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = int(process.stdout.readline())
        for _ in range(snapshots):
            assert process.stdout.readline()
        time.sleep(moment)
        process.kill()
        process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    return first


def network(kind: str, root: Path) -> tuple[bytes, np.ndarray]:
    """A model's file, and what it is fed step by step."""
    draw = np.random.default_rng(5)
    if kind == "characters":
        return (root / "models" / "char" / "char.onnx").read_bytes(), draw.integers(0, 102, 997)
    return NetCase(hidden=(40, 24), head="dense").model(), draw.normal(size=(997, 1, 3)).astype(np.float32)


@pytest.mark.skipif(os.name == "nt", reason="no kill -9 there")
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("kind", ["characters", "readings"])
def test_a_killed_stream_goes_on_from_its_last_snapshot(
    kind: str, precision: str, root: Path, tmp_path: Path, warm_environment: dict[str, str]
) -> None:
    content, feeds = network(kind, root)
    (tmp_path / "model").write_bytes(content)
    np.save(tmp_path / "feeds.npy", feeds)
    command, draw = [sys.executable, "-c", WRITER, str(tmp_path), precision], random.Random(kind + precision)
    last = 0
    for _ in range(2):
        first = killed_after(draw.randint(1, 12), draw.uniform(0, 0.01), command, warm_environment)
        assert first >= last
        saved = int.from_bytes((tmp_path / "snapshot").read_bytes()[:8], "little")
        assert first < saved
        last = saved
    end = last + 77
    said = subprocess.run([*command, str(end)], env=warm_environment, check=True, capture_output=True, text=True).stdout
    assert int(said.split()[0]) == last
    unbroken = le.load(content, precision=precision).stream()
    whole = b"".join(unbroken.step(feeds[t % len(feeds)]).tobytes() for t in range(end))
    assert (tmp_path / "outputs").read_bytes() == whole


# --- forked -----------------------------------------------------------------------------------------------------------


def served(tmp_path: Path) -> tuple[Path, str]:
    """A model large enough for helping threads, and what all processes do with it, as a module's text."""
    path = tmp_path / "net.onnx"
    path.write_bytes(NetCase(I=8, hidden=(272, 48), head="dense").model())
    module = f"""
import numpy as np, lstm_engine as le

model = le.load({str(path)!r}, threads=2)
x = np.random.default_rng(0).normal(size=(40, 1, 8)).astype(np.float32)


def work(steps=40):
    "Everything a process does with a model, as one array: what it had before, new lengths and batches, new streams."
    stream = model.stream()
    single = [stream.step(step) for step in x[:20]]
    twin = stream.fork()
    twin.state = le.State.from_bytes(stream.state.to_bytes())
    rows = model.run(np.repeat(x[:steps], 3, axis=1))["y"]
    parts = [model.run(x[:steps])["y"], rows[:, 2:], np.stack(single), stream.feed(x[20:]), twin.feed(x[20:])]
    return np.concatenate([part.reshape(-1, 5) for part in parts])
"""
    return tmp_path, module


@forks
def test_a_server_that_forks_when_its_model_is_warm(tmp_path: Path, warm_environment: dict[str, str]) -> None:
    """As gunicorn does with preload: the parent has used the model, helpers are awake, and it goes on serving."""
    _, module = served(tmp_path)
    code = f"""{module}
import os, signal, threading, traceback
expected, lengths = work(), {{steps: work(steps) for steps in (7, 9)}}
held = model.stream()
held.feed(x[:11])
after = held.fork().feed(x[11:])

def serve():
    signal.alarm(120)
    for steps in (40, 7, 9):
        assert np.array_equal(work(steps), lengths.get(steps, expected)), steps
    assert np.array_equal(held.feed(x[11:]), after)
    faults = []
    def thread():
        try:
            assert np.array_equal(work(), expected)
        except BaseException as fault:
            faults.append(fault)
    threads = [threading.Thread(target=thread) for _ in range(3)]
    for each in threads: each.start()
    for each in threads: each.join()
    assert not faults, faults

children = []
for turn in range(4):
    for _ in range(200):  # helpers are awake, if there are any
        held.fork().step(x[0])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            serve()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    children.append(child)
    assert np.array_equal(work(), expected)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
"""
    child(code, warm_environment, LSTM_ENGINE_THREADS="2")


@forks
def test_locks_that_other_threads_hold_are_free_in_a_child(tmp_path: Path, warm_environment: dict[str, str]) -> None:
    _, module = served(tmp_path)
    code = f"""{module}
import contextlib, os, signal, threading
from lstm_engine import image, locks, workers
expected = work()
begun, ended = threading.Event(), threading.Event()
assert {{model._lock, model.store._lock, model._parts._lock, image._compiling, workers._sharing}} <= set(locks._all)

def hold():
    with contextlib.ExitStack() as held:
        for lock in list(locks._all):
            held.enter_context(lock)
        begun.set()
        ended.wait()

thread = threading.Thread(target=hold, daemon=True)
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    signal.alarm(60)
    same = np.array_equal(work(), expected) and np.array_equal(work(9)[-15:], expected[-15:])
    os._exit(0 if same else 3)
assert os.waitpid(child, 0)[1] == 0
ended.set()
thread.join()
own = locks.Lock()
with own:  # the thread that forks keeps what it has
    child = os.fork()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    child(code, warm_environment)


@forks
def test_a_fork_while_other_threads_make_programs(tmp_path: Path, warm_environment: dict[str, str]) -> None:
    """What those threads held, nobody holds in the child."""
    _, module = served(tmp_path)
    code = f"""{module}
import itertools, os, signal, sys, threading, traceback
expected = work()
sys.setswitchinterval(1e-6)  # threads are put aside in the middle of anything
ended, faults = threading.Event(), []

def lower():
    try:
        for turn in itertools.count():
            if ended.is_set():
                return
            own = le.load({str(tmp_path / "net.onnx")!r})
            for network in (own, model):
                network.run(np.zeros((3 + turn % 31, 1 + turn % 5, 8), np.float32))
            own.stream(2).feed(np.zeros((3, 2, 8), np.float32))
    except BaseException as fault:
        faults.append(fault)

threads = [threading.Thread(target=lower, daemon=True) for _ in range(2)]
for thread in threads: thread.start()
for turn in range(25):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        same = np.array_equal(work(), expected)
        os._exit(0 if same else 3)
    status = os.waitpid(child, 0)[1]
    assert status == 0, (turn, status)
ended.set()
for thread in threads: thread.join()
assert not faults, faults
"""
    child(code, warm_environment, "-W", "ignore::DeprecationWarning")


WORKER = """
import numpy as np, served

def same(expected):
    return bool(np.array_equal(served.work(), expected))
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@forks
def test_pools_of_processes(method: str, tmp_path: Path, warm_environment: dict[str, str]) -> None:
    folder, module = served(tmp_path)
    (folder / "served.py").write_text(module)
    (folder / "worker.py").write_text(WORKER)
    code = f"""
import multiprocessing, sys
import served, worker
if __name__ == "__main__":
    expected = served.work()
    context = multiprocessing.get_context({method!r})
    if {method!r} == "forkserver":
        context.set_forkserver_preload(["worker"])  # the model is loaded once, before the forks
    with context.Pool(2) as pool:
        assert pool.map(worker.same, [expected] * 6, chunksize=1) == [True] * 6
        assert served.work().shape == expected.shape
"""
    (folder / "main.py").write_text(code)
    environment = {**warm_environment, "PYTHONPATH": os.pathsep.join([str(folder), warm_environment["PYTHONPATH"]])}
    child(f"import runpy; runpy.run_path({str(folder / 'main.py')!r}, run_name='__main__')", environment)


@forks
@pytest.mark.torch
def test_workers_of_a_data_loader(tmp_path: Path, warm_environment: dict[str, str]) -> None:
    pytest.importorskip("torch")
    _, module = served(tmp_path)
    code = f"""{module}
import torch
from torch.utils.data import DataLoader, Dataset

class Features(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return torch.from_numpy(model.run(x + np.float32(index))["y"])

torch.nn.functional.relu(torch.ones(1000, 1000) @ torch.ones(1000, 1000))  # its own threads are there
expected = [Features()[k] for k in range(8)]
for workers in (0, 2):
    batches = list(DataLoader(Features(), batch_size=2, num_workers=workers))
    assert torch.equal(torch.cat(batches), torch.stack(expected))
"""
    child(code, warm_environment)
