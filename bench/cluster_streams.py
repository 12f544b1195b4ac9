"""python -m bench.cluster_streams: what a step of a stream costs through Ray, beside the same step in this process.

One actor and one client on this machine; a 1×64 LSTM with a dense head, 8 numbers in, one out. Beside the rows stands
what an empty call of an actor takes in the same run. Outputs are checked against a stream of this process.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer

EVERY: Final = (1, 10, 100)  # steps between two snapshots
CROWD: Final = (1, 100, 500)  # streams that step at the same time
INPUTS: Final = 8
app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


async def seconds(act: Callable[[], Awaitable[Any]], rounds: int) -> list[float]:
    """How long each of some calls took, after a few that do not count."""
    taken = []
    for k in range(rounds + 5):
        began = time.perf_counter()
        await act()
        if k >= 5:
            taken.append(time.perf_counter() - began)
    return taken


def row(name: str, taken: list[float], steps: int) -> dict[str, Any]:
    """A row of the results: microseconds a call, and a step."""
    ordered = sorted(taken)
    middle = statistics.median(ordered)
    return {
        "row": name,
        "call_us": middle * 1e6,
        "p99_us": ordered[int(0.99 * (len(ordered) - 1))] * 1e6,
        "step_us": middle * 1e6 / steps,
    }


async def crowd(pool: Any, model: Any, count: int, rounds: int) -> list[float]:
    """Steps of ``count`` streams at the same time, checked."""
    streams = await asyncio.gather(*(pool.open(f"crowd {count}.{k}") for k in range(count)))
    draw = np.random.default_rng(count)
    own = [model.stream() for _ in streams[:4]]
    X = draw.normal(size=(count, INPUTS)).astype(np.float32)

    async def step() -> None:
        Y = await pool.step(streams, X)
        for stream, x, y in zip(own, X, Y, strict=False):
            if np.reshape(stream.step(x), -1).tobytes() != np.reshape(y, -1).tobytes():
                raise SystemExit("a stream gives something else through Ray")

    taken = await seconds(step, rounds)
    await asyncio.gather(*(stream.drop() for stream in streams))
    return taken


async def here(model: Any, count: int, rounds: int) -> list[float]:
    """The same in this process."""
    pool = model.pool(count)
    slots = np.array([pool.open() for _ in range(count)])
    X = np.random.default_rng(count).normal(size=(count, INPUTS)).astype(np.float32)

    async def step() -> None:
        pool.step(slots, X)

    return await seconds(step, rounds)


def here_row(count: int) -> str:
    """The name of the row of streams in this process."""
    return f"{count} streams, in this process"


def actor_row(count: int, every: int) -> str:
    """The name of the row of streams on an actor."""
    return f"{count} streams, a snapshot every {every} steps"


async def measured(model: Any, rounds: int) -> list[dict[str, Any]]:
    """All rows."""
    import ray

    from lstm_engine.ray import AsyncRayPool

    class Empty:
        async def call(self, data: bytes) -> bytes:
            return data

    empty = ray.remote(Empty).options(num_cpus=0).remote()
    rows = [row("an empty call of an actor", await seconds(lambda: empty.call.remote(b""), rounds), 1)]
    ray.kill(empty)
    for count in CROWD:
        rows.append(row(here_row(count), await here(model, count, rounds), count))
    for every in EVERY:
        async with await AsyncRayPool.start(model, actors=1, snapshot_every=every, num_cpus=0.5) as pool:
            for count in CROWD:
                taken = await crowd(pool, model, count, rounds if count == 1 else max(rounds // 8, 10))
                rows.append(row(actor_row(count, every), taken, count))
    return rows


@app.command()
def streams(
    out: Annotated[Path | None, typer.Option(help="the JSON to write")] = None,
    rounds: Annotated[int, typer.Option(help="calls a row")] = 400,
    page: Annotated[Path | None, typer.Option(help="rewrite what stands between this page's bench marks")] = None,
) -> None:
    """Measure, and print (or write) the tables."""
    import ray

    import lstm_engine as le

    from .cluster import HIDDEN, machine, write_model
    from .report import rewrite

    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_model(path, HIDDEN)
        model = le.load(path, threads=1)
    ray.init("local", num_cpus=4, object_store_memory=200_000_000, include_dashboard=False, log_to_driver=False)
    try:
        rows = asyncio.run(measured(model, rounds))
    finally:
        ray.shutdown()
    if out is not None:
        out.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    text = f"{about}\n\n{table(rows)}\n\n{costs(rows)}"
    if page is None:
        print(text)
    else:
        rewrite(page, text)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    lines = ["| row | a call, µs | p99, µs | a stream's step, µs |", "|---|--:|--:|--:|"]
    lines += [f"| {r['row']} | {r['call_us']:,.0f} | {r['p99_us']:,.0f} | {r['step_us']:,.1f} |" for r in rows]
    return "\n".join(lines)


def costs(rows: list[dict[str, Any]]) -> str:
    """What the rows mean for a crowd: how many steps a second one process and one actor make, and many nodes would."""
    step = {r["row"]: r["step_us"] for r in rows}
    most, seldom = max(CROWD), max(EVERY)
    alone, actor = step[here_row(most)], step[actor_row(most, seldom)]
    lines = [
        "| cost model |  |",
        "|---|--:|",
        f"| steps a second of {most} streams in one process | {1e6 / alone:,.0f} |",
        f"| steps a second of {most} streams on one actor, from one client | {1e6 / actor:,.0f} |",
        f"| what Ray adds to a step of {most} streams at once, µs | {actor - alone:,.1f} |",
        f"| a snapshot of a stream, µs (every step against every {seldom}) | "
        f"{(step[actor_row(most, 1)] - actor) / (1 - 1 / seldom):,.1f} |",
        f"| steps a second of 200 actors with a client each, on paper | {200e6 / actor:,.0f} |",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    app()
