"""Streams on a Ray cluster of several nodes: actors, nodes, stores and clients are killed, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import NetCase, model_of

import lstm_engine as le

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from lstm_engine.ray import AsyncRayPool, FolderStore, RayPool  # noqa: E402
from lstm_engine.ray.asks import Answer, Ask, Do, Is, packed, unpacked  # noqa: E402
from lstm_engine.ray.clients import NAMESPACE  # noqa: E402
from lstm_engine.ray.parcels import Parcel  # noqa: E402
from lstm_engine.ray.records import Record, Reply  # noqa: E402
from lstm_engine.ray.rosters import Roster, ranked, shard_name, warden_name  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

READINGS = NetCase(hidden=(17, 9), head="dense")
BYTES = replace(READINGS, precision="int8")
TOKENS = NetCase(vocabulary=11, hidden=(16,), head="dense_softmax")
GUIDES = Path(__file__).resolve().parent.parent / "guides"
LEASE = 1.5
EVERY = 4
NODE: dict[str, Any] = {"num_cpus": 8, "object_store_memory": 100_000_000}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        here = Path(__file__).resolve().parent
        paths = [str(here), str(GUIDES), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))  # actors know a store that is made here
        patch.setenv("RAY_worker_niceness", "0")  # by default actors give way to all else that runs here
        patch.syspath_prepend(GUIDES)
        yield from started_cluster()


def started_cluster() -> Iterator[Cluster]:
    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    for _ in range(2):
        made.add_node(wait=False, **NODE)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def pool_of(case: NetCase, **options: Any) -> RayPool:
    return RayPool(model_of(case), **{"actors": 3, "snapshot_every": EVERY, "lease": LEASE, "num_cpus": 1, **options})


@pytest.fixture(scope="module")
def pool(cluster: Cluster) -> Iterator[RayPool]:
    with pool_of(READINGS) as made:
        yield made


def readings(seed: int, steps: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, READINGS.I)).astype(np.float32)


def alone(xs: np.ndarray, case: NetCase = READINGS) -> list[np.ndarray]:
    """What a stream of this process makes of them."""
    stream = model_of(case).stream()
    return [np.array(stream.step(x)).reshape(-1) for x in xs]


def assert_same(found: list[Any], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for step, (y, z) in enumerate(zip(found, expected, strict=True)):
        assert y.dtype == z.dtype
        assert y.tobytes() == z.tobytes(), f"step {step + 1}"


def shard(pool: RayPool, member: str) -> Any:
    return ray.get_actor(shard_name(pool.name, member), namespace=NAMESPACE)


def node_of(pool: RayPool, member: str) -> str:
    """The node that an actor runs on."""
    node, _ = ray.get(shard(pool, member).process.remote())
    return str(node)


def process(actor: Any) -> int:
    _, pid = ray.get(actor.process.remote())
    return int(pid)


def kill_home(pool: RayPool, key: str) -> None:
    os.kill(process(shard(pool, str(pool.home(key)))), signal.SIGKILL)


def kill_named(name: str) -> None:
    """The process of an actor that does not say which it is."""
    (found,) = [
        state for state in ray._private.state.actors().values() if state["Name"] == name and state["State"] == "ALIVE"
    ]
    os.kill(found["Pid"], signal.SIGKILL)


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Something that happens while the block runs, and has happened when it ends."""
    faults: list[BaseException] = []

    def guarded() -> None:
        try:
            act()
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=guarded)
    thread.start()
    yield
    thread.join()
    assert not faults, faults


# --- what a stream gives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [READINGS, BYTES], ids=["float32", "int8"])
def test_streams_give_what_they_give_on_one_machine(cluster: Cluster, case: NetCase) -> None:
    with pool_of(case, actors=2) as pool:
        keys = [f"stream {k}" for k in range(20)]
        streams = pool.open_all(keys)
        xs = [readings(k, 12) for k in range(20)]
        found = [pool.step(streams, [x[t] for x in xs]) for t in range(11)]
        for k, stream in enumerate(streams):
            last = stream.feed(xs[k][11:])
            assert_same([*(row[k] for row in found), last[0]], alone(xs[k], case))
            assert stream.steps == 12
            assert stream.kept <= 2 * EVERY


def test_a_bad_step_leaves_the_stream_as_it_was(pool: RayPool) -> None:
    xs = readings(1, 4)
    with pool.open("bad input") as stream:
        found = [stream.step(x) for x in xs[:2]]
        for wrong in (np.zeros(READINGS.I + 1, np.float32), "x", {"y": 0.0}, lambda: 0):
            with pytest.raises(le.InputError):
                stream.step(wrong)
        with pytest.raises(le.InputError):
            stream.feed(np.zeros((3, READINGS.I + 1), np.float32))
        assert stream.steps == 2
        assert_same([*found, *(stream.step(x) for x in xs[2:])], alone(xs))


def test_a_stream_that_is_closed_goes_on_and_one_that_is_dropped_does_not(pool: RayPool) -> None:
    xs, key = readings(2, 9), "../closed\0 ü"
    found = []
    for part in (xs[:3], xs[3:4], xs[4:]):
        with pool.open(key) as stream:
            found += [stream.step(x) for x in part]
    assert_same(found, alone(xs))
    again = pool.open(key)
    assert again.steps == len(xs)
    again.drop()
    anew = pool.open(key)
    assert anew.steps == 0
    assert_same([anew.step(x) for x in xs], alone(xs))
    anew.reset()
    assert_same([anew.step(x) for x in xs[:3]], alone(xs[:3]))
    anew.drop()


def test_states_go_from_here_to_there_and_back(pool: RayPool) -> None:
    xs = readings(3, 8)
    here = model_of(READINGS).stream()
    for x in xs[:4]:
        here.step(x)
    stream = pool.open("state")
    stream.step(xs[7])
    stream.restore(here.state)
    assert stream.state() == here.state
    kill_home(pool, stream.key)
    assert_same([stream.step(x) for x in xs[4:]], alone(xs)[4:])
    stream.drop()


# --- what is killed ---------------------------------------------------------------------------------------------------


def run_streams(pool: RayPool, count: int, enough: Callable[[int], bool]) -> list[list[np.ndarray]]:
    """Streams, each at its own pace, until that is ``enough`` steps; what each gave."""

    async def one(pool: AsyncRayPool, k: int) -> list[np.ndarray]:
        stream, found = await pool.open(f"{k}"), []
        for x in readings(k, 5000):
            found.append(await stream.step(x))
            if enough(len(found)):
                break
            await asyncio.sleep(0.02 + k % 7 * 0.02)
        assert stream.steps == len(found)
        assert stream.kept <= 2 * EVERY
        await stream.drop()
        return found

    async def all_of_them() -> list[list[np.ndarray]]:
        mine = await AsyncRayPool.attach(pool.name)
        return [*await asyncio.gather(*(one(mine, k) for k in range(count)))]

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("case", [READINGS, BYTES], ids=["float32", "int8"])
def test_actors_stores_and_wardens_are_killed_at_any_time(cluster: Cluster, case: NetCase) -> None:
    draw, over = random.Random(case.precision), threading.Event()
    with pool_of(case) as pool:

        def kill() -> None:
            for what in ("shard", "store", "shard", "warden", "shard"):
                time.sleep(draw.uniform(0.1, 1.5))
                name = {
                    "shard": shard_name(pool.name, draw.choice("012")),
                    "store": f"{pool.name}.store.{draw.randrange(2)}",
                    "warden": warden_name(pool.name),
                }[what]
                until_alive(name)
                kill_named(name)
                until_alive(name)
            over.set()

        with meanwhile(kill):
            found = run_streams(pool, 120, lambda steps: steps > 20 and over.is_set())
        for k, ys in enumerate(found):
            assert_same(ys, alone(readings(k, len(ys)), case))


def until_alive(name: str) -> None:
    until(lambda: alive(name))


def alive(name: str) -> bool:
    return any(s["Name"] == name and s["State"] == "ALIVE" for s in ray._private.state.actors().values())


def until(so: Callable[[], bool], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_node_is_lost_in_mid_job(cluster: Cluster) -> None:
    extra, over = cluster.add_node(**NODE), threading.Event()
    with pool_of(READINGS, actors=6) as pool:

        def lose() -> None:
            time.sleep(1.0)
            before = pool.home("0")
            pool.move("0", next(name for name in pool.actors() if node_of(pool, name) == extra.node_id))
            assert pool.home("0") != before or node_of(pool, str(before)) == extra.node_id
            cluster.remove_node(extra)
            until(lambda: len(pool.actors()) < 6)
            until(lambda: len(pool.actors()) == 6)
            over.set()

        with meanwhile(lose):
            found = run_streams(pool, 100, lambda steps: steps > 20 and over.is_set())
        for k, ys in enumerate(found):
            assert_same(ys, alone(readings(k, len(ys))))


def test_a_client_dies_and_another_goes_on(pool: RayPool, warm_environment: dict[str, str]) -> None:
    xs = readings(5, 30)
    code = f"""
    import sys, numpy as np, ray
    from lstm_engine.ray import RayPool
    ray.init(address={ray.get_runtime_context().gcs_address!r}, log_to_driver=False)
    stream = RayPool.attach({pool.name!r}).open("orphan")
    for x in np.random.default_rng(5).normal(size=(30, {READINGS.I})).astype(np.float32):
        print(stream.steps + 1, stream.step(x).tobytes().hex(), flush=True)
    """
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        env=warm_environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8",
    )  # fmt: skip
    assert child.stdout is not None
    said = [child.stdout.readline().split() for _ in range(7)]
    child.kill()
    said += [line.split() for line in child.stdout]
    child.wait()
    expected = alone(xs)
    for number, bits in said:
        assert bits == expected[int(number) - 1].tobytes().hex()
    stream = pool.open("orphan")
    assert len(said) <= stream.steps <= len(said) + 1
    again = stream.step(xs[stream.steps - 1], number=stream.steps)  # the answer that the dead may not have had
    assert again.tobytes() == expected[stream.steps - 1].tobytes()
    kill_home(pool, "orphan")  # nothing hangs on what the dead one sent
    rest = [stream.step(x) for x in xs[stream.steps :]]
    assert_same(rest, expected[len(xs) - len(rest) :])
    assert len(rest) >= len(xs) - len(said) - 1
    stream.drop()


def test_all_actors_are_lost_and_a_folder_keeps_their_streams(cluster: Cluster, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "streams", sync=False)
    xs = [readings(k, 20) for k in range(30)]
    found: list[list[np.ndarray]] = [[] for _ in xs]
    for part in (slice(0, 7), slice(7, 20)):
        with pool_of(READINGS, actors=2, store=store, snapshot_every=1) as pool:
            streams = pool.open_all([f"k{k}" for k in range(30)])
            assert {stream.steps for stream in streams} == {part.start}
            for t in range(part.start, part.stop):
                for k, y in enumerate(pool.step(streams, [x[t] for x in xs])):
                    found[k].append(y)
            for stream in streams:
                stream.close()
    for ys, x in zip(found, xs, strict=True):
        assert_same(ys, alone(x))


# --- one stream is one stream -----------------------------------------------------------------------------------------


def test_another_client_takes_a_stream_over_and_the_first_is_refused(pool: RayPool) -> None:
    xs = readings(7, 9)
    first = pool.open("taken")
    found = [first.step(x) for x in xs[:3]]
    second = RayPool.attach(pool.name).open("taken")
    assert second.steps == 3
    for act in (lambda: first.step(xs[3]), first.state, first.close, first.drop):
        with pytest.raises(le.StateError, match="another client"):
            act()
    found += [second.step(x) for x in xs[3:6]]
    kill_home(pool, "taken")
    with pytest.raises(le.StateError, match="another client"):
        first.step(xs[6])
    assert_same([*found, *(second.step(x) for x in xs[6:])], alone(xs))
    second.drop()


def test_clients_that_race_for_a_stream_make_one_of_it(pool: RayPool) -> None:
    xs = readings(8, 12)

    async def race() -> list[list[bytes]]:
        pools = [await AsyncRayPool.attach(pool.name) for _ in range(5)]
        won: list[list[bytes]] = []
        for round in range(4):
            streams = await asyncio.gather(*(each.open("raced") for each in pools))
            steps = [stream.steps for stream in streams]
            assert set(steps) == {3 * round}
            row = []
            for t in range(3):
                outcomes = await asyncio.gather(
                    *(stream.step(xs[3 * round + t]) for stream in streams), return_exceptions=True
                )
                good = [y.tobytes() for y in outcomes if not isinstance(y, le.StateError)]
                assert len(good) == 1
                row += good
            won.append(row)
        return won

    found = [bits for row in asyncio.run(race()) for bits in row]
    assert found == [y.tobytes() for y in alone(xs)]


def test_a_request_that_arrives_twice_is_done_once(pool: RayPool) -> None:
    xs = readings(9, 3)

    async def twice() -> list[bytes]:
        mine = await AsyncRayPool.attach(pool.name)
        stream = await mine.open("twice")
        asks = [Ask(Do.STEP, "twice", stream.session, t + 1, x) for t, x in enumerate(xs)]
        found: list[Answer] = []
        for ask in asks:
            found += [await mine._answer(ask), *await asyncio.gather(mine._answer(ask), mine._answer(ask))]
        old = await mine._answer(asks[0])
        early = await mine._answer(asks[2]._replace(first=9))
        assert (old.kind, early.kind) == (Is.FAULT, Is.ABSENT)
        assert {answer.kind for answer in found} == {Is.DONE}
        return [answer.value.tobytes() for answer in found]

    assert asyncio.run(twice()) == [y.tobytes() for y in alone(xs) for _ in range(3)]


def test_an_actor_that_was_given_up_and_lives_serves_no_more(pool: RayPool) -> None:
    xs = readings(10, 30)
    stream = pool.open("zombie")
    found = [stream.step(x) for x in xs[:10]]
    home = str(pool.home("zombie"))
    actor, pid = shard(pool, home), process(shard(pool, home))
    os.kill(pid, signal.SIGSTOP)
    try:
        found += [stream.step(x) for x in xs[10:20]]
        assert pool.home("zombie") != home
    finally:
        os.kill(pid, signal.SIGCONT)
    ask = Ask(Do.STEP, "zombie", stream._stream.session, 11, xs[10])
    (answer,) = unpacked(ray.get(actor.serve.remote(packed([ask]))))
    assert answer.kind in (Is.LATER, Is.FAULT)  # not its own any more, or its own again, and beyond that step
    until(lambda: home in pool.actors())
    assert_same([*found, *(stream.step(x) for x in xs[20:])], alone(xs))
    stream.drop()


def test_a_step_that_is_cancelled_is_made_once_or_not_at_all(pool: RayPool) -> None:
    xs = readings(11, 20)

    async def cancelling() -> tuple[list[np.ndarray], list[np.ndarray]]:
        mine = await AsyncRayPool.attach(pool.name)
        stream = await mine.open("cancelled")
        taken, found = [], []
        for x in xs:
            task = asyncio.ensure_future(stream.step(x))
            await asyncio.sleep(random.Random(float(x[0])).choice((0, 0.001, 0.003, 1.0)))
            task.cancel()
            outcome = (await asyncio.gather(task, return_exceptions=True))[0]
            y = await stream.settle() if isinstance(outcome, asyncio.CancelledError) else outcome
            if y is not None:
                taken.append(x)
                found.append(y)
        assert stream.steps == len(taken)
        await stream.drop()
        return taken, found

    taken, found = asyncio.run(cancelling())
    assert_same(found, alone(np.array(taken)))


# --- where streams live -----------------------------------------------------------------------------------------------


def test_streams_move_and_follow_the_number_of_actors(cluster: Cluster) -> None:
    xs = [readings(k, 40) for k in range(40)]
    with pool_of(READINGS, actors=2) as pool:
        streams = pool.open_all([f"k{k}" for k in range(40)])
        found: list[list[np.ndarray]] = [[] for _ in xs]

        def on(first: int, last: int) -> None:
            for t in range(first, last):
                for k, y in enumerate(pool.step(streams, [x[t] for x in xs])):
                    found[k].append(y)

        on(0, 5)
        other = next(name for name in pool.actors() if name != pool.home("k0"))
        pool.move("k0", other)
        assert pool.home("k0") == other
        on(5, 10)
        assert "k0" in ray.get(shard(pool, other).streams.remote())
        with pytest.raises(le.InputError, match="no actor"):
            pool.move("k0", "nobody")
        pool.scale(4)
        on(10, 20)
        held = [len(ray.get(shard(pool, name).streams.remote())) for name in pool.actors()]
        assert len(held) == 4
        assert all(held)
        assert sum(held) == 40
        with meanwhile(lambda: pool.scale(1)):
            on(20, 30)
        assert pool.actors() == ["0"]
        on(30, 40)
        for ys, x in zip(found, xs, strict=True):
            assert_same(ys, alone(x))


def test_few_streams_move_when_an_actor_goes() -> None:
    keys, names = [f"k{k}" for k in range(2000)], [*"01234567"]
    before = {key: Roster(1, dict.fromkeys(names, 1)).home(key) for key in keys}
    after = {key: Roster(2, dict.fromkeys(names[:-1], 1)).home(key) for key in keys}
    assert {key for key in keys if before[key] != after[key]} == {key for key in keys if before[key] == "7"}
    shares = np.unique([*before.values()], return_counts=True)[1]
    assert shares.min() > 0.7 * len(keys) / len(names)
    assert ranked("k", names)[0] == Roster(1, dict.fromkeys(names, 1)).home("k")


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_tokens_are_drawn_where_the_stream_lives(cluster: Cluster) -> None:
    sampler = le.Sampler(temperature=1.3, top_k=7, seed=5, repetition_penalty=1.2, repetition_window=6)
    stops: tuple[int, ...] = ()
    expected = [*le.generate(model_of(TOKENS).stream(), [3, 1, 4], max_tokens=60, sampler=le.Sampler(
        temperature=1.3, top_k=7, seed=5, repetition_penalty=1.2, repetition_window=6), stop=stops)]  # fmt: skip
    with pool_of(TOKENS, actors=2) as pool:
        stream, found = pool.open("text"), []
        for drawn in stream.generate([3, 1, 4], max_tokens=30, sampler=sampler, stop=stops):
            found.append(drawn)
            if len(found) in (5, 20):
                kill_home(pool, "text")
        assert [drawn.number for drawn in found] == [*range(3, 33)]
        assert [drawn.token for drawn in found] == expected[:30]
        state = stream.state()
        assert state.sampler

        with pytest.raises(le.InputError):  # a token that the model does not read
            [*stream.generate([10, 10**6], max_tokens=5)]
        assert stream.state() == state

        heir = RayPool.attach(pool.name).open("text")  # who has had the tokens up to that of step 20
        more = [*heir.generate(max_tokens=20, after=20, stop=stops)]
        assert [drawn.number for drawn in more] == [*range(21, 41)]
        assert [drawn.token for drawn in more] == expected[18:38]
        kill_home(pool, "text")
        ahead = RayPool.attach(pool.name).open("text")  # it stands where the store has it, at 40 or before
        assert ahead.steps <= 40
        last = [*ahead.generate(max_tokens=22, after=40, stop=stops)]
        assert [drawn.token for drawn in last] == expected[38:60]

        once = pool.open("stops")
        short = [d.token for d in once.generate([3, 1, 4], max_tokens=60, sampler=le.Sampler(
            temperature=1.3, top_k=7, seed=5, repetition_penalty=1.2, repetition_window=6), stop=[expected[9]])]  # fmt: skip
        assert short == expected[: expected.index(expected[9])]
        with pytest.raises(le.InputError, match="drawn nothing"):
            next(pool.open("fresh").generate(max_tokens=1))


def test_a_model_of_readings_draws_no_tokens(pool: RayPool) -> None:
    with pool.open("readings") as stream, pytest.raises(le.InputError, match="does not generate"):
        next(stream.generate([1], max_tokens=1))


def test_a_web_socket_is_sent_its_tokens_though_replicas_and_actors_die(cluster: Cluster) -> None:
    serve_tokens = pytest.importorskip("serve_tokens")
    pytest.importorskip("websockets")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve_tokens.serve.start(http_options={"port": port})
    try:
        serve_tokens.start(actors=2, lease=LEASE, num_cpus=0.5)
        pool = RayPool.attach(serve_tokens.POOL)

        async def one(k: int) -> list[str]:
            found = []
            url = f"ws://127.0.0.1:{port}/generate"
            async for text in serve_tokens.ask(url, f"text {k}", "def ", 400, seed=k):
                found.append(text)
                if k == 0 and len(found) == 60:
                    await asyncio.to_thread(kill_replicas)
                if k == 0 and len(found) == 120:
                    await asyncio.to_thread(kill_home, pool, "text 0")
            return found

        async def all_of_them() -> list[list[str]]:
            return [*await asyncio.gather(*map(one, range(4)))]

        found = asyncio.run(all_of_them())
        for k, texts in enumerate(found):
            sampler = le.Sampler(temperature=0.7, seed=k)
            stream = le.load(serve_tokens.MODEL).stream()
            assert texts == [*le.generate(stream, "def ", max_tokens=400, sampler=sampler)]
        pool.shutdown()
    finally:
        serve_tokens.serve.shutdown()


def kill_replicas() -> None:
    for state in ray._private.state.actors().values():
        if state["Name"].startswith("SERVE_REPLICA") and state["State"] == "ALIVE":
            os.kill(state["Pid"], signal.SIGKILL)


# --- its parts --------------------------------------------------------------------------------------------------------


def test_a_model_goes_through_a_parcel() -> None:
    for case in (READINGS, BYTES, TOKENS):
        model = model_of(case)
        parcel = Parcel.from_bytes(Parcel.of(model).to_bytes())
        again = parcel.model(threads=1)
        assert again.fingerprint == model.fingerprint
        held = sum(array.nbytes for array in parcel.arrays)
        assert held >= sum(a.nbytes for a in model.graph.constants.values()) * 0.9
        feeds = case.feeds(0, 4, 2)
        for name, y in model.run(feeds).items():
            assert again.run(feeds)[name].tobytes() == y.tobytes()


def test_a_record_comes_back_and_a_damaged_one_does_not() -> None:
    stream = model_of(READINGS).stream()
    stream.step(readings(0, 1)[0])
    drawn = np.array([[3, 4], [7, 1]], np.int64)
    record = Record(3, 4, "me", stream.state, {"seed": 1}, drawn, Reply(4, {"": np.arange(3, dtype=np.float32)}))
    data = record.to_bytes()
    again = Record.from_bytes(data)
    assert (again.number, again.session, again.state, again.sampler) == (record.number, "me", stream.state, {"seed": 1})
    assert again.drawn.tolist() == drawn.tolist()
    assert again.reply is not None
    assert again.reply.first == 4
    assert again.reply.outputs[""].tolist() == [0, 1, 2]
    for at in range(0, len(data), 7):
        with pytest.raises(le.StateError):
            Record.from_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(le.StateError):
            Record.from_bytes(data[:at])
    assert replace(record, epoch=4, steps=0).number > record.number


def test_a_folder_keeps_the_newest(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    assert store.get("a") is None
    keys = ["a", "A", "a/b", "../a", "", "ä" * 300, "a\0b"]
    for number in (5, 7, 3):
        for key in keys:
            store.put(key, number, f"{key}{number}".encode())
    assert [store.get(key) for key in keys] == [f"{key}7".encode() for key in keys]
    assert all(tmp_path in path.parents for path in tmp_path.rglob("*"))
    store.drop("a")
    assert store.get("a") is None
    assert store.get("A") == b"A7"
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) <= 2 * (len(keys) - 1)


def test_a_store_that_fails_for_a_while_costs_time_only(cluster: Cluster, tmp_path: Path) -> None:
    with pool_of(READINGS, actors=2, store=Failing(tmp_path), snapshot_every=2) as pool:
        xs = readings(12, 20)
        stream = pool.open("a")
        found = [stream.step(x) for x in xs[:5]]
        (tmp_path / "down").touch()
        with meanwhile(lambda: (time.sleep(1.0), (tmp_path / "down").unlink())):  # type: ignore[arg-type, return-value]
            found += [stream.step(x) for x in xs[5:15]]
        assert stream.kept <= 4
        kill_home(pool, "a")
        assert_same([*found, *(stream.step(x) for x in xs[15:])], alone(xs))


class Failing(FolderStore):
    """One that fails while a file lies there."""

    def put(self, key: str, number: int, data: bytes) -> None:
        if (self.path / "down").exists():
            raise OSError("no route to the disk")
        super().put(key, number, data)


def test_what_is_asked_wrong_is_said(cluster: Cluster, pool: RayPool) -> None:
    with pytest.raises(le.InputError, match="2 faults"):
        RayPool(model_of(READINGS), actors=0, snapshot_every=-1)
    with pytest.raises(le.ClusterError, match="has none"):
        RayPool.attach("no such pool")
    with pytest.raises(le.InputError, match="key"):
        pool.open(7)  # type: ignore[arg-type]
    with pytest.raises(le.InputError, match="cannot be the next"):
        pool.open("numbers").step(readings(0, 1)[0], number=5)
    with pytest.raises(le.ClusterError, match="has the cluster the CPUs"):
        pool_of(READINGS, actors=2, num_cpus=500, patience=2.0)
