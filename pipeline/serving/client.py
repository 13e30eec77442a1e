"""A client of the captioning service. Every failure is a `ServiceError` with a one-line message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from pipeline.serving.limits import is_loopback

DEFAULT_URL = "http://127.0.0.1:8600"
_TIMEOUT_SECONDS = 70.0  # longer than the service's own limit, `serving.timeout_seconds`
_CONNECT_SECONDS = 5.0
_READY_SECONDS = 5.0


class ServiceError(Exception):
    """The service did not answer, or refused the request."""


class UnavailableError(ServiceError):
    """The service can't be reached, or it has no model yet; try again later."""


class BusyError(ServiceError):
    """The service is busy; try again in `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Model:
    """The version that is served.

    Attributes:
        name: name of the registered model.
        version: its number; None for the checkpoint of the service's workspace.
        alias: the alias that led to it, if one did.
        aliases: all its aliases.
        tags: its tags: data, git commit, scores, ...
        source: `models:/NAME/VERSION`, or the checkpoint's folder.
    """

    name: str
    version: int | None
    alias: str | None
    aliases: list[str]
    tags: dict[str, str]
    source: str


@dataclass(frozen=True)
class Result:
    """What the service says of a picture.

    Attributes:
        captions: the captions, the best first; empty if there is an `error`.
        scores: the mean log-likelihood of each caption per token.
        error: why the picture has no captions; None if it has.
    """

    captions: list[str]
    scores: list[float]
    error: str | None = None


@dataclass(frozen=True)
class Answer:
    """The results of a request in the order of its pictures, and the version that captioned."""

    name: str
    version: int | None
    results: list[Result]


@dataclass(frozen=True)
class Readiness:
    """Whether the service has a model, else the reason."""

    ready: bool
    reason: str = ""


# A connection that the other side closed without an answer.
_DROPPED = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


class Client:
    """A connection to the service; close it, or use it in a `with` block."""

    def __init__(self, url: str = DEFAULT_URL, token: str = "", timeout: float = _TIMEOUT_SECONDS) -> None:
        """Create a client.

        Args:
            url: address of the service.
            token: the service's IMAGE_CAPTIONING_TOKEN, if it has one.
            timeout: seconds that a request may take.
        """
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(timeout, connect=_CONNECT_SECONDS),
            trust_env=not is_loopback(urlsplit(url).hostname or ""),  # no proxy to this machine
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def caption(
        self,
        pictures: Sequence[bytes],
        *,
        n: int = 1,
        beams: int | None = None,
        sampling: bool = False,
        seed: int = 0,
        challenger: bool = False,
    ) -> Answer:
        """Return the captions of 1 to 64 picture files.

        Args:
            pictures: JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC or AVIF files.
            n: up to this many different captions per picture.
            beams: width of beam search; None for the service's own.
            sampling: sample all captions; otherwise the likeliest by beam search comes first.
            seed: random seed of the samples.
            challenger: whether to caption with the version to compare with, instead of the served one.

        Raises:
            UnavailableError: the service can't be reached or has no such model.
            BusyError: too much to do.
            ServiceError: the request was refused.
        """
        options: dict[str, str] = {"n": f"{n}", "sampling": "true" if sampling else "false", "seed": f"{seed}"}
        if beams is not None:
            options["beams"] = f"{beams}"
        if challenger:
            options["challenger"] = "true"
        files = [("files", ("picture", data, "application/octet-stream")) for data in pictures]
        with self._understood():
            sent = self._ask("POST", "/v1/captions", data=options, files=files)
            results = [
                Result(result.get("captions", []), result.get("scores", []), result.get("error"))
                for result in sent["results"]
            ]
            return Answer(sent["model"]["name"], sent["model"]["version"], results)

    def model(self, challenger: bool = False) -> Model:
        """Return the version that is served, or the one to compare with it.

        Raises:
            UnavailableError: the service can't be reached or has no such model.
            ServiceError: the request was refused.
        """
        with self._understood():
            return Model(**self._ask("GET", "/v1/model", params={"challenger": "true"} if challenger else None))

    def ready(self) -> Readiness:
        """Return whether the service can caption; it does not raise if it can't be reached."""
        try:
            answer = self._http.get("/readyz", timeout=_READY_SECONDS)
            with self._understood():
                reason = str(answer.json().get("reason", ""))
        except httpx.HTTPError as error:
            return Readiness(False, self._unreachable(error))
        except ServiceError as error:
            return Readiness(False, str(error))
        return Readiness(answer.status_code == 200, reason)

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Turn what goes wrong while an answer is read into one line: another server may listen there."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ServiceError(
                f"{self.url}: answers, but not as the captioning service does; check the address"
            ) from None

    def _ask(self, method: str, path: str, **body: Any) -> Any:
        try:
            try:
                answer = self._http.request(method, path, **body)
            except _DROPPED:  # an idle connection, closed just now; to caption twice does no harm
                answer = self._http.request(method, path, **body)
        except httpx.TimeoutException:
            raise UnavailableError(f"{self.url}: no answer in time; send fewer pictures, or try again") from None
        except httpx.HTTPError as error:
            raise UnavailableError(self._unreachable(error)) from None
        if answer.status_code == 200:
            return answer.json()
        message = f"{self.url}: {_detail(answer)}"
        if answer.status_code == 429:
            wait = answer.headers.get("Retry-After", "")  # a proxy may send a date
            raise BusyError(message, int(wait) if wait.isdecimal() else 1)
        if answer.status_code == 503:
            raise UnavailableError(message)
        raise ServiceError(message)

    def _unreachable(self, error: Exception) -> str:
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"{self.url}: can't be reached ({reason}); start it with `image-captioning serve-model`"


def _detail(answer: httpx.Response) -> str:
    """Return the reason that the service gave, in one line."""
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = f"answered with status {answer.status_code}"
    return " ".join(f"{detail}".split())
