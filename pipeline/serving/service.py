"""The captioning service: `POST /v1/captions`, `/v1/model`, `/healthz`, `/readyz`, `/metrics`, `/docs`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pipeline.config.errors import is_out_of_memory
from pipeline.config.sections.serving import Serving
from pipeline.models.scored import Scored
from pipeline.runtime.memory_budget import MemoryBudget
from pipeline.runtime.templates import render
from pipeline.serving.batching import Batcher, QueueFullError
from pipeline.serving.following import Follower, ModelToServe, Served
from pipeline.serving.limits import Bodies, Gate
from pipeline.serving.metrics import CONTENT_TYPE, Metrics
from pipeline.serving.requests_in import Options, Sent, openapi_body, read_request
from pipeline.serving.watch import Recorder, Seen, hash_of
from pipeline.tracking.pyfunc import MAX_BYTES, picture

_DOCS = Path(__file__).with_name("docs.html.jinja")
_LOADING_SECONDS = 5  # Retry-After while no model is loaded
_GONE = 499  # nginx's status of a request whose client went away; only the metrics show it
_PAGE_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


class ModelName(BaseModel):
    """The version that captioned; `version` is null for the checkpoint of the workspace."""

    name: str
    version: int | None


class Captions(BaseModel):
    """The captions of a picture, and the mean log-likelihood of each per token."""

    captions: list[str]
    scores: list[float]


class Problem(BaseModel):
    """Why a picture has no captions."""

    error: str


class CaptionsAnswer(BaseModel):
    """The results of a request, in the order of its pictures."""

    model: ModelName
    results: list[Captions | Problem]


class ModelDetails(ModelName):
    """The served version, and what its registry knows."""

    alias: str | None
    aliases: list[str]
    tags: dict[str, str]
    source: str


@dataclass(frozen=True)
class _Key:
    """Pictures with equal keys share a batch. `recorded`: whether they are recorded for `image-captioning watch`."""

    served: Served
    count: int
    beams: int
    sampling: bool
    recorded: bool


_Item = tuple[torch.Tensor, int]  # a prepared picture and its seed


def _run(key: _Key, items: list[_Item], recorder: Recorder | None = None) -> list[list[Scored]]:
    pictures, seeds = zip(*items, strict=True)
    averaged: list[torch.Tensor] = []
    found = key.served.captioner.scored(
        pictures,
        seeds,
        count=key.count,
        beams=key.beams,
        sampling=key.sampling,
        on_features=averaged.append if key.recorded else None,
    )
    if recorder and averaged:
        about = key.served.found
        seen = [
            Seen(hash_of(picture), about.name, about.version, said[0].text, said[0].score, features, about.made_by)
            for picture, said, features in zip(pictures, found, averaged[0].numpy(), strict=True)
            if said
        ]
        try:
            recorder.record(seen)
        except OSError as error:  # people get their captions even if the disk is full
            print(f"serve-model: not recorded in data/watch: {error.strerror}", flush=True)
    return found


class Service:
    """Answers requests for captions."""

    def __init__(
        self,
        follower: Follower,
        settings: Serving,
        beams: int,
        metrics: Metrics,
        budget: MemoryBudget,
        decoders: int = 0,
        challenger: Follower | None = None,
    ) -> None:
        """Create a service.

        Args:
            follower: knows the current model.
            settings: limits of the queue and of batches.
            beams: width of beam search for requests without `beams`.
            metrics: counts what happens.
            budget: limits the memory of the pictures that are decoded at a time.
            decoders: threads that decode pictures; 0 for one more than there are CPU cores.
            challenger: knows the version to compare with. It is started by the first request for that, because a
                second model takes as much memory again.
        """
        self.follower, self.metrics, self._challenger = follower, metrics, challenger
        self._beams, self._timeout, self._records = beams, settings.timeout_seconds, settings.watch
        self._bodies, self._budget = Bodies(), budget
        self._decoders = ThreadPoolExecutor(decoders or (os.cpu_count() or 1) + 1, thread_name_prefix="decode")
        self._batcher: Batcher[_Key, _Item, list[Scored]] = Batcher(
            partial(_run, recorder=Recorder() if settings.watch else None),
            max_batch=settings.max_batch,
            max_wait=settings.max_wait_ms / 1000,
            max_queue=settings.max_queue,
            observe=metrics.batches.observe,
        )
        metrics.watch_queue(lambda: self._batcher.admitted)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the model and work on the queue for the duration of the block."""
        self.follower.start()
        self._batcher.start()
        try:
            yield
        finally:
            self.follower.stop()
            if self._challenger:
                self._challenger.stop()
            await self._batcher.close()
            self._decoders.shutdown(wait=False, cancel_futures=True)

    def served(self, challenger: bool = False) -> Served:
        """Return the current model, or the version to compare with it.

        Raises:
            HTTPException: 503 if it is not loaded.
        """
        follower = self.follower
        if challenger and self._challenger:
            follower = self._challenger
            follower.start()
        current = follower.current
        if current is None:
            retry = {"Retry-After": str(_LOADING_SECONDS)}
            raise HTTPException(503, f"not ready: {follower.problem}", retry)
        champion = self.follower.current
        if follower is not self.follower and champion and champion.found.key == current.found.key:
            raise HTTPException(503, "not ready: the challenger has just become champion")
        return current

    async def answer(self, request: Request) -> CaptionsAnswer:
        """Return the captions of a request's pictures.

        Raises:
            HTTPException: see `Bodies.bounded`, `read_request` and `served`; 429 if the queue is full, 504 after the
                time limit.
        """
        self.served()  # before the upload is read
        async with self._bodies.bounded(request) as bounded, read_request(bounded) as (options, sent):
            served = self.served(options.challenger)
            try:
                with self._batcher.admit(len(sent)):
                    async with asyncio.timeout(self._timeout):
                        results = await self._results(served, options, sent)
            except QueueFullError as full:
                raise HTTPException(429, str(full), {"Retry-After": str(full.retry_after)}) from None
            except TimeoutError:
                raise HTTPException(504, f"not done within {self._timeout:g} s; send fewer pictures at once") from None
        for result in results:
            self.metrics.pictures.labels("captioned" if isinstance(result, Captions) else "refused").inc()
        model = ModelName(name=served.found.name, version=served.found.version)
        return CaptionsAnswer(model=model, results=results)

    async def _results(self, served: Served, options: Options, sent: list[Sent]) -> list[Captions | Problem]:
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self._decoders, _prepared, served, one, self._budget) for one in sent]
        prepared = await asyncio.gather(*jobs)
        items = [(one, options.seed) for one in prepared if isinstance(one, torch.Tensor)]
        beams = options.beams or self._beams
        # Scores depend on the way of decoding, and `watch` judges the version that people use.
        recorded = self._records and beams == self._beams and not (options.sampling or options.challenger)
        key = _Key(served, options.n, beams, options.sampling, recorded)
        answers = iter(await self._batcher.submit(key, items) if items else [])
        return [Problem(error=one) if isinstance(one, str) else _result(next(answers)) for one in prepared]


def _prepared(served: Served, sent: Sent, budget: MemoryBudget) -> torch.Tensor | str:
    """Return the model's input for a picture that a client sent, or why it is refused."""
    try:
        value = sent if isinstance(sent, str) else sent.read(MAX_BYTES + 1)
        return served.captioner.prepare(picture(value, served.captioner.image_size, budget))
    except ValueError as error:
        return " ".join(str(error).split())
    except MemoryError:
        return "needs too much memory to decode; send a smaller picture"


def _result(answer: list[Scored] | BaseException) -> Captions | Problem:
    if isinstance(answer, BaseException):
        if is_out_of_memory(answer):
            return Problem(error="the service ran out of memory; try again with smaller `n` or `beams`")
        raise answer
    return Captions(captions=[caption.text for caption in answer], scores=[caption.score for caption in answer])


def create_app(service: Service, token: str = "") -> FastAPI:
    """Return the ASGI application.

    Args:
        service: answers the requests.
        token: asked of every route but health; "" asks for a Host header of this machine instead.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="Image captioning",
        version=version("image-captioning"),
        description="Captions pictures with a registered model.",
        docs_url=None,  # FastAPI's pages load scripts from a CDN
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Gate, token=token)
    _add_captions(app, service)
    _add_state(app, service)
    return app


def _add_captions(app: FastAPI, service: Service) -> None:
    statuses = {
        408: "The request was not received in time.",
        413: "The request is too large.",
        429: "Busy; see Retry-After.",
        503: "No model is loaded; see Retry-After.",
        504: "Not done in time.",
    }

    @app.post(
        "/v1/captions",
        response_model=CaptionsAnswer,
        openapi_extra={"requestBody": openapi_body()},
        responses={status: {"description": text} for status, text in statuses.items()},
    )
    async def captions(request: Request) -> Any:
        """Caption 1 to 64 pictures."""
        start, status = time.perf_counter(), 500
        try:
            answer = await service.answer(request)
            status = 200
            return answer
        except HTTPException as error:
            status = error.status_code
            raise
        except ClientDisconnect:  # while it sent the pictures
            status = _GONE
            return Response(status_code=status)
        finally:
            service.metrics.requests.labels(str(status)).inc()
            service.metrics.seconds.observe(time.perf_counter() - start)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/model", response_model=ModelDetails)
    async def model(challenger: bool = False) -> Any:
        """Describe the served version, or the challenger."""
        found: ModelToServe = service.served(challenger).found
        return ModelDetails(
            name=found.name,
            version=found.version,
            alias=found.alias,
            aliases=list(found.aliases),
            tags=dict(found.tags),
            source=found.source,
        )

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Answer if the process lives."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "No model is loaded."}})
    async def readyz() -> Response:
        """Answer with 200 if a model is loaded."""
        if service.follower.current is None:
            content = {"status": "not ready", "reason": service.follower.problem}
            return JSONResponse(content, 503, {"Retry-After": str(_LOADING_SECONDS)})
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return Prometheus metrics."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(render(_DOCS, api=app.openapi()), headers=_PAGE_HEADERS)
