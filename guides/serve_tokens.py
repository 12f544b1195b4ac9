"""Text, token by token, over a WebSocket: a Ray Serve deployment to start from.

    pip install 'lstm_engine[ray]'
    python guides/serve_tokens.py                      # on a cluster: RAY_ADDRESS=… or --address …
    python guides/serve_tokens.py --ask "def area("    # in another terminal: a client of it

A client sends one message, {"stream": key, "prompt": text, "max_tokens": 200, "temperature": 0.7, "seed": 1}, and is
sent {"number": …, "text": …} for each token, then {"done": true}. One that loses its connection connects again and
says which number it had last ("after"). It is sent what comes behind, though the replica that it talked to may be
gone, and the actor that drew the tokens, too.
"""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from ray import serve

import lstm_engine as le
from lstm_engine.ray import AsyncRayPool, RayPool

MODEL = Path(__file__).resolve().parent.parent / "models" / "char" / "char.onnx"
POOL = "characters"
PORT = 8700
app = FastAPI()


@serve.deployment(num_replicas=2, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.1})
@serve.ingress(app)
class Tokens:
    """Replicas hold connections; the streams live in the pool, which every replica attaches to."""

    def __init__(self, pool: str) -> None:
        self.name = pool
        self.attaching: asyncio.Task[AsyncRayPool] | None = None

    async def pool(self) -> AsyncRayPool:
        """The pool, attached to once."""
        if self.attaching is None or (self.attaching.done() and self.attaching.exception()):
            self.attaching = asyncio.ensure_future(AsyncRayPool.attach(self.name))
        return await self.attaching

    @app.websocket("/generate")
    async def generate(self, socket: WebSocket) -> None:
        """One client's text."""
        await socket.accept()
        try:
            async for message in self.answers(await socket.receive_json()):
                await socket.send_json(message)
            await socket.close()
        except WebSocketDisconnect:
            return  # the stream stays where it is, for whoever asks for it

    async def answers(self, asked: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """What a request is sent."""
        try:
            stream = await (await self.pool()).open(asked["stream"])
            count, after = asked.get("max_tokens", 200), asked.get("after")
            if stream.steps == 0:
                sampler = le.Sampler(temperature=asked.get("temperature", 1.0), seed=asked.get("seed"))
                tokens = stream.generate(asked["prompt"], max_tokens=count, sampler=sampler, after=after)
            else:  # it has begun, and goes on with the sampler that it has
                tokens = stream.generate(max_tokens=count, after=after)
            async for drawn in tokens:
                yield {"number": drawn.number, "text": drawn.text}
            await stream.close()
            yield {"done": True}
        except (le.LstmEngineError, KeyError) as fault:
            yield {"error": f"{type(fault).__name__}: {fault}"}


def start(model: str | Path = MODEL, actors: int | None = None, **options: Any) -> None:
    """Have the pool and the deployment begin; both stay until shut down."""
    RayPool(le.load(model), name=POOL, actors=actors, detached=True, **options).close()
    serve.run(Tokens.bind(POOL), name="tokens", route_prefix="/")


async def ask(
    url: str, key: str, prompt: str, max_tokens: int, seed: int, patience: float = 60.0
) -> AsyncIterator[str]:
    """A client: pieces of text, whatever happens to the server meanwhile."""
    import websockets

    request: dict[str, Any] = {"stream": key, "prompt": prompt, "temperature": 0.7, "seed": seed}
    got, ends = 0, time.monotonic() + patience
    while True:
        try:
            async with websockets.connect(url) as socket:
                await socket.send(json.dumps({**request, "max_tokens": max_tokens - got}))
                async for data in socket:
                    message = json.loads(data)
                    if "error" in message:
                        raise RuntimeError(message["error"])
                    if "done" in message:
                        return
                    request["after"], got, ends = message["number"], got + 1, time.monotonic() + patience
                    yield message["text"]
        except (OSError, websockets.exceptions.WebSocketException):
            pass  # below
        if time.monotonic() > ends:
            raise TimeoutError(f"{url}: no answer for {patience:g} s")
        await asyncio.sleep(0.2)


async def talk(url: str, prompt: str) -> None:
    """Print what comes."""
    async for text in ask(url, f"{prompt} {time.time()}", prompt, 300, 1):
        print(text, end="", flush=True)
    print()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", help="of a Ray cluster; without, one is started here")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--ask", metavar="PROMPT", help="be a client of a server that runs")
    given = parser.parse_args()
    if given.ask is not None:
        asyncio.run(talk(f"ws://localhost:{given.port}/generate", given.ask))
        return
    ray.init(address=given.address)
    serve.start(http_options={"port": given.port})
    start()
    print(f"ws://localhost:{given.port}/generate")
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
