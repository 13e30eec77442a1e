"""The captioning service under load, beside `mlflow models serve` with the same checkpoint and pictures.

32 clients send one picture each, wait for its caption, and send the next one. Both servers use beam width 3. They are
loaded in turn. Bulk captioning is compared with generation on pictures that are already decoded.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
import psutil

from benchmarks import Figure
from benchmarks._workspace import ROOT, workspace
from pipeline.runtime.openmp import wait_passively
from pipeline.synthetic.scenes import draw, random_scene

CLIENTS = 32
SECONDS = 10.0
ROUNDS = 3
BEAMS = 3
BULK = 256  # pictures
PORTS = {"service": 8621, "mlflow": 8622}
CHECKPOINT = ROOT / "models" / "git-demo"

Ask = Callable[[aiohttp.ClientSession, bytes], Awaitable[None]]


@dataclass(frozen=True)
class Load:
    """What clients saw: requests/s, quantiles of seconds, errors; and the servers' memory in bytes."""

    rate: float
    median: float
    p95: float
    errors: int
    memory: int


def scenes(count: int) -> list[bytes]:
    """Drawn scenes as JPEG."""
    rng, grain = random.Random(0), np.random.default_rng(0)
    found = []
    for _ in range(count):
        buffer = io.BytesIO()
        draw(random_scene(rng), grain).save(buffer, "JPEG", quality=95)
        found.append(buffer.getvalue())
    return found


async def ask_service(session: aiohttp.ClientSession, picture: bytes) -> None:
    """One request to our service."""
    form = aiohttp.FormData({"beams": str(BEAMS)})
    form.add_field("files", picture, filename="picture.jpg")
    async with session.post(f"http://127.0.0.1:{PORTS['service']}/v1/captions", data=form) as answer:
        found = await answer.json()
        assert found["results"][0]["captions"][0], found


async def ask_mlflow(session: aiohttp.ClientSession, picture: bytes) -> None:
    """One request to `mlflow models serve`."""
    sent = {"dataframe_records": [{"image": base64.b64encode(picture).decode()}], "params": {"beams": BEAMS}}
    async with session.post(f"http://127.0.0.1:{PORTS['mlflow']}/invocations", json=sent) as answer:
        found = await answer.json()
        assert found["predictions"][0]["caption"], found


async def load(ask: Ask, clients: int, seconds: float, process: int) -> Load:
    """Keep a server busy with a number of clients."""
    pictures, times, errors = scenes(64), [], 0
    end = time.monotonic() + seconds
    connector = aiohttp.TCPConnector(limit=clients)

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal errors
        while time.monotonic() < end:
            start = time.monotonic()
            try:
                await ask(session, pictures[(number + len(times)) % len(pictures)])
                times.append(time.monotonic() - start)
            except (AssertionError, aiohttp.ClientError, KeyError, ValueError):
                errors += 1

    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(120)) as session:
        start = time.monotonic()
        await asyncio.gather(*(client(session, number) for number in range(clients)))
        took = time.monotonic() - start
    p95 = statistics.quantiles(times, n=20)[-1]
    return Load(len(times) / took, statistics.median(times), p95, errors, memory(process))


def memory(process: int) -> int:
    """Resident bytes of a process and those that it started."""
    root = psutil.Process(process)
    return sum(one.memory_info().rss for one in (root, *root.children(recursive=True)))


@contextmanager
def server(words: list[str], folder: Path, health: str) -> Iterator[int]:
    """A server that answers; gives its process id."""
    more = {"PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        [sys.executable, "-m", *words], cwd=folder, env={**os.environ, **more, "PATH": path},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            asyncio.run(_until_healthy(health))
            yield process.pid
        finally:
            for one in (*psutil.Process(process.pid).children(recursive=True), process):
                one.terminate()


async def _until_healthy(address: str) -> None:
    end = time.monotonic() + 180
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < end:
            try:
                async with session.get(address) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.3)
    raise TimeoutError(address)


def save_for_mlflow(folder: Path) -> None:
    """Package the checkpoint as `register` does."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    mlflow.pyfunc.save_model(
        folder,
        python_model=str(ROOT / "pipeline" / "tracking" / "pyfunc.py"),
        code_paths=[str(ROOT / "pipeline")],
        artifacts={"checkpoint": str(CHECKPOINT)},
        signature=ModelSignature(
            inputs=Schema([ColSpec(AnyType(), "image")]),
            outputs=Schema([ColSpec("string", "caption"), ColSpec("string", "error")]),
            params=ParamSchema([ParamSpec("beams", "integer", BEAMS)]),
        ),
        pip_requirements=["torch"],
    )


def under_load(folder: Path) -> list[Figure]:
    """Requests/s and latencies of both servers."""
    save_for_mlflow(folder / "pyfunc")
    shutil.copytree(CHECKPOINT, folder / "models" / "finetune")
    ours = ["pipeline.cli", "serve-model", "--port", str(PORTS["service"])]
    words = ["models", "serve", "-m", str(folder / "pyfunc"), "--env-manager", "local", "--port", str(PORTS["mlflow"])]
    found: dict[str, list[Load]] = {"service": [], "mlflow": [], "service, 1 client": [], "mlflow, 1 client": []}
    with (
        server(ours, folder, f"http://127.0.0.1:{PORTS['service']}/readyz") as service,
        server(["mlflow", *words], folder, f"http://127.0.0.1:{PORTS['mlflow']}/health") as mlflow,
    ):
        for name, ask, process in (("service", ask_service, service), ("mlflow", ask_mlflow, mlflow)):
            asyncio.run(load(ask, CLIENTS, 3, process))
            found[f"{name}, 1 client"].append(asyncio.run(load(ask, 1, SECONDS / 3, process)))
        for _ in range(ROUNDS):
            found["service"].append(asyncio.run(load(ask_service, CLIENTS, SECONDS, service)))
            found["mlflow"].append(asyncio.run(load(ask_mlflow, CLIENTS, SECONDS, mlflow)))
    return [_rates(found), _latencies(found)]


def _described(name: str, loads: list[Load]) -> str:
    rate, median, p95 = (
        statistics.median(values) for values in zip(*((x.rate, x.median, x.p95) for x in loads), strict=True)
    )
    memory_mb, errors = max(x.memory for x in loads) / 1e6, sum(x.errors for x in loads)
    return (
        f"{name}: {rate:.1f} requests/s, p50 {1000 * median:.0f} ms, p95 {1000 * p95:.0f} ms, {errors} errors,"
        f" {memory_mb:.0f} MB"
    )


def _rates(found: dict[str, list[Load]]) -> Figure:
    rates = {name: statistics.median(one.rate for one in found[name]) for name in ("service", "mlflow")}
    return Figure(
        figure=f"requests/s of `serve-model` over `mlflow models serve`, git-demo, {CLIENTS} clients",
        value=round(rates["service"] / rates["mlflow"], 2),
        unit="x",
        goal=2.0,
        better="higher",
        runs=ROUNDS,
        a=_described("serve-model", found["service"]),
        b=_described("mlflow models serve", found["mlflow"]),
    )


def _latencies(found: dict[str, list[Load]]) -> Figure:
    p95 = statistics.median(one.p95 for one in found["service"])
    alone = found["service, 1 client"][0].median
    return Figure(
        figure=f"p95 of `serve-model` with {CLIENTS} clients over its median with one",
        value=round(p95 / alone, 2),
        unit="x",
        goal=2.0,
        better="lower",
        runs=ROUNDS,
        a=f"{CLIENTS} clients: {1000 * p95:.0f} ms",
        b=f"one client: {1000 * alone:.0f} ms; mlflow: {1000 * found['mlflow, 1 client'][0].median:.0f} ms",
    )


def bulk(folder: Path) -> Figure:
    """Pictures/s of `image-captioning caption FOLDER --out` over generation alone."""
    import torch

    from pipeline.config import params
    from pipeline.data.images import decode
    from pipeline.models.captioner import Captioner
    from pipeline.serving.bulk import caption_all
    from pipeline.serving.bulk_work import NamedModel

    captioner, given = Captioner.from_folder(CHECKPOINT), params.load(folder / "params.yaml")
    pictures = scenes(BULK)
    with zipfile.ZipFile(folder / "many.zip", "w") as archive:
        for number, data in enumerate(pictures):
            archive.writestr(f"{number}.jpg", data)
    prepared = [captioner.prepare(decode(data, 10**9)) for data in pictures]
    size, beams = given.runtime.caption_batch_size, given.evaluate.beams

    def generate() -> None:
        for first in range(0, BULK, size):
            batch: list[torch.Tensor] = prepared[first : first + size]
            captioner.scored(batch, [0] * len(batch), count=1, beams=beams, sampling=False)

    def command() -> None:
        out = folder / "captions.jsonl"
        out.unlink(missing_ok=True)
        caption_all(given, folder / "many.zip", out, lambda: NamedModel("models:/demo/1", lambda: captioner))

    times: list[tuple[float, float]] = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        generate()
        middle = time.perf_counter()
        command()
        times.append((middle - start, time.perf_counter() - middle))
    alone, whole = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return Figure(
        figure=f"pictures/s of bulk captioning over generation alone, git-demo, {BULK} pictures",
        value=round(alone / whole, 3),
        unit="x",
        goal=0.9,
        better="higher",
        runs=ROUNDS,
        a=f"bulk: {BULK / whole:.0f} pictures/s",
        b=f"generation: {BULK / alone:.0f} pictures/s",
    )


def figures() -> list[Figure]:
    """All figures."""
    wait_passively()  # as the commands do
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "workspace"
        folder.mkdir()
        workspace(folder, {})
        return [*under_load(folder), bulk(folder)]
