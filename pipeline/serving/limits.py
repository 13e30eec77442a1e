"""What the service accepts: who may ask, and how many bytes a request may have.

The token is compared in constant time. Without a token the service listens on loopback, and then the Host header must
name this machine, so that a web page can't reach it by DNS rebinding.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.config.errors import ConfigError

TOKEN = "IMAGE_CAPTIONING_TOKEN"  # noqa: S105  # the name of the environment variable
MAX_REQUEST_BYTES = 64 * 2**20
MAX_BYTES_IN_FLIGHT = 256 * 2**20  # of all requests that are being read or answered
UPLOAD_SECONDS = 60.0
HEALTH = ("/healthz", "/readyz")


def is_loopback(host: str) -> bool:
    """Return whether a host name or address only means this machine."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)


def token_for(host: str) -> str:
    """Return the token of the environment; it may be "" on loopback only.

    Raises:
        ConfigError: other machines could use the service, and no token is set.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token and not is_loopback(host):
        raise ConfigError(
            f"--host {host}: other machines could use the service; set {TOKEN} to a long random text, which clients"
            " must send, or listen on 127.0.0.1"
        )
    return token


class Gate:
    """Middleware: asks every route but health for the token, or without a token for a Host header of this machine."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 401 or 421, or pass the request on."""
        if scope["type"] != "http" or scope["path"] in HEALTH:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._token and not self._knows_token(headers.get("authorization", "")):
            refused = JSONResponse(
                {"detail": "send the token of this service as `Authorization: Bearer TOKEN`"},
                status_code=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
            await refused(scope, receive, send)
        elif not self._token and not _names_this_machine(headers.get("host", "")):
            refused = JSONResponse(
                {"detail": f"Host {headers.get('host', '')!r}: must be localhost or a loopback address"}, 421
            )
            await refused(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _knows_token(self, authorization: str) -> bool:
        scheme, _, sent = authorization.partition(" ")
        return hmac.compare_digest(sent.strip().encode(), self._token) and scheme.lower() == "bearer"


def _names_this_machine(host: str) -> bool:
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Bodies:
    """Bounds the bytes of each request and of all requests together."""

    def __init__(self, most: int = MAX_REQUEST_BYTES, together: int = MAX_BYTES_IN_FLIGHT) -> None:
        self._most, self._together = most, together
        self._in_flight = 0

    @asynccontextmanager
    async def bounded(self, request: Request, seconds: float = UPLOAD_SECONDS) -> AsyncIterator[Request]:
        """Yield the request with a body that counts its bytes. They count as in flight until the block ends.

        Args:
            request: its body was not read yet.
            seconds: time limit for reading the body.

        Raises:
            HTTPException: 408 if the body arrives too slowly, 413 if it is too large, 429 if too many bytes are in
                flight; from this function or when the body is read.
        """
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > self._most:
            raise self._too_large()
        deadline = time.monotonic() + seconds
        size = 0

        async def receive() -> Message:
            nonlocal size
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await request.receive()
            except TimeoutError:
                raise HTTPException(408, f"the request was not received within {seconds:.0f} s") from None
            length = len(message.get("body", b""))
            size += length
            self._in_flight += length
            if size > self._most:
                raise self._too_large()
            if self._in_flight > self._together:
                raise HTTPException(429, "too many uploads at once; try again in 2 s", {"Retry-After": "2"})
            return message

        try:
            yield Request(request.scope, receive)
        finally:
            self._in_flight -= size

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the request is larger than {self._most // 2**20} MB; send fewer pictures at once")
