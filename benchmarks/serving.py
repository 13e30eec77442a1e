"""The captioning service under load, beside `mlflow models serve` with the same checkpoint and pictures.

Each client sends one picture, waits for its caption, and sends the next one. Both servers use beam width 3 and are
loaded in turn: with `git-demo`, and with a GIT of git-base's size and random weights, whose captions have 20 tokens.
`python -m benchmarks serving` also writes the table of loads, `benchmarks/results/serving.md`.
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
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
import psutil

from benchmarks import Figure
from benchmarks._checkpoints import GIT_DEMO, save_git_base
from benchmarks._workspace import ROOT, workspace
from pipeline.synthetic.scenes import draw, random_scene

CLIENTS = 32  # of the figures
ROUNDS = 3  # of the figures; other rows of the table are measured once
BEAMS = 3
PORTS = {"service": 8621, "mlflow": 8622}
TABLE = Path(__file__).parent / "results" / "serving.md"
SERVERS = {"service": "`serve-model`", "mlflow": "`mlflow models serve`"}

Ask = Callable[[aiohttp.ClientSession, bytes], Awaitable[None]]


@dataclass(frozen=True)
class Plan:
    """How a checkpoint is measured: numbers of clients, and seconds of a round."""

    checkpoint: str
    clients: tuple[int, ...]
    seconds: float


PLANS = (Plan("git-demo", (1, 8, CLIENTS, 64), 10.0), Plan("GIT of git-base's size", (1, CLIENTS), 60.0))


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


def save_for_mlflow(folder: Path, checkpoint: Path) -> None:
    """Package the checkpoint as `register` does."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    mlflow.pyfunc.save_model(
        folder,
        python_model=str(ROOT / "pipeline" / "tracking" / "pyfunc.py"),
        code_paths=[str(ROOT / "pipeline")],
        artifacts={"checkpoint": str(checkpoint)},
        signature=ModelSignature(
            inputs=Schema([ColSpec(AnyType(), "image")]),
            outputs=Schema([ColSpec("string", "caption"), ColSpec("string", "error")]),
            params=ParamSchema([ParamSpec("beams", "integer", BEAMS)]),
        ),
        pip_requirements=["torch"],
    )


def under_load(plan: Plan) -> dict[tuple[str, int], list[Load]]:
    """Return what each number of clients of each server saw, in one round or `ROUNDS`."""
    found: dict[tuple[str, int], list[Load]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = workspace(Path(temporary), {})
        if plan.checkpoint == GIT_DEMO.name:
            shutil.copytree(GIT_DEMO, folder / "models" / "finetune")
        else:
            save_git_base(folder / "models" / "finetune")
        save_for_mlflow(folder / "pyfunc", folder / "models" / "finetune")
        ours = ["pipeline.cli", "serve-model", "--port", str(PORTS["service"])]
        theirs = ["mlflow", "models", "serve", "-m", str(folder / "pyfunc"), "--env-manager", "local"]
        with (
            server(ours, folder, f"http://127.0.0.1:{PORTS['service']}/readyz") as service,
            server(
                [*theirs, "--port", str(PORTS["mlflow"])], folder, f"http://127.0.0.1:{PORTS['mlflow']}/health"
            ) as it,
        ):
            asks = {"service": (ask_service, service), "mlflow": (ask_mlflow, it)}
            for ask, process in asks.values():
                asyncio.run(load(ask, 4, plan.seconds / 5, process))  # to fill caches
            for clients in plan.clients:
                for _ in range(ROUNDS if clients == CLIENTS else 1):
                    for name, (ask, process) in asks.items():
                        one = asyncio.run(load(ask, clients, plan.seconds, process))
                        found.setdefault((name, clients), []).append(one)
                        print(f"  {plan.checkpoint}, {clients} clients, {name}: {_described([one])}", flush=True)
    return found


def _median(loads: list[Load]) -> Load:
    rate, median, p95 = (
        statistics.median(values) for values in zip(*((x.rate, x.median, x.p95) for x in loads), strict=True)
    )
    return Load(rate, median, p95, sum(x.errors for x in loads), max(x.memory for x in loads))


def _described(loads: list[Load]) -> str:
    one = _median(loads)
    return (
        f"{one.rate:.3g} requests/s, p50 {1000 * one.median:.0f} ms, p95 {1000 * one.p95:.0f} ms, {one.errors} errors,"
        f" {one.memory / 1e6:.0f} MB"
    )


def _rates(plan: Plan, found: dict[tuple[str, int], list[Load]]) -> Figure:
    ours, theirs = found["service", CLIENTS], found["mlflow", CLIENTS]
    return Figure(
        figure=f"requests/s of `serve-model` over `mlflow models serve`, {plan.checkpoint}, {CLIENTS} clients",
        value=round(_median(ours).rate / _median(theirs).rate, 2),
        unit="x",
        goal=2.0,
        better="higher",
        runs=ROUNDS,
        a=f"serve-model: {_described(ours)}",
        b=f"mlflow models serve: {_described(theirs)}",
    )


def _latencies(plan: Plan, found: dict[tuple[str, int], list[Load]]) -> Figure:
    p95, alone = _median(found["service", CLIENTS]).p95, _median(found["service", 1]).median
    return Figure(
        figure=f"p95 of `serve-model` with {CLIENTS} clients over its median with one, {plan.checkpoint}",
        value=round(p95 / alone, 2),
        unit="x",
        goal=2.0,
        better="lower",
        runs=ROUNDS,
        a=f"{CLIENTS} clients: {1000 * p95:.0f} ms",
        b=f"one client: {1000 * alone:.0f} ms; mlflow: {1000 * _median(found['mlflow', 1]).median:.0f} ms",
    )


def write_table(results: list[tuple[Plan, dict[tuple[str, int], list[Load]]]]) -> None:
    """Write the loads as Markdown."""
    lines = [
        "# The captioning service under load",
        "",
        "One request has one picture; a client waits for the answer before it sends the next. Beam width 3. Memory is",
        f"that of all processes of the server after a round. Rows with {CLIENTS} clients are medians of {ROUNDS}",
        "rounds, others one round; errors are the sum. `python -m benchmarks serving` made this table.",
        "",
        "| checkpoint | clients | server | requests/s | p50, ms | p95, ms | errors | memory, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for plan, found in results:
        for (name, clients), loads in found.items():
            one = _median(loads)
            lines.append(
                f"| {plan.checkpoint} | {clients} | {SERVERS[name]} | {one.rate:.3g} | {1000 * one.median:.0f}"
                f" | {1000 * one.p95:.0f} | {one.errors} | {one.memory / 1e6:.0f} |"
            )
    TABLE.write_text("\n".join(lines) + "\n")


def figures() -> list[Figure]:
    """All figures."""
    results = [(plan, under_load(plan)) for plan in PLANS]
    write_table(results)
    return [figure for plan, found in results for figure in (_rates(plan, found), _latencies(plan, found))]
