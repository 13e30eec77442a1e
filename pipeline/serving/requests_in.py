"""A request for captions -> its options and pictures, from a multipart form or from JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_PICTURES = 64
MAX_CAPTIONS = 16
MAX_BEAMS = 8
_MAX_SEED = 2**32 - 1

Sent = str | BinaryIO  # base64 or a data: URL; or an open file


class Options(BaseModel):
    """How pictures are captioned."""

    model_config = ConfigDict(extra="forbid")

    n: Annotated[int, Field(ge=1, le=MAX_CAPTIONS, description="Up to this many different captions per picture.")] = 1
    beams: Annotated[
        int | None, Field(ge=1, le=MAX_BEAMS, description="Width of beam search. Default: evaluate.generation.beams.")
    ] = None
    sampling: Annotated[
        bool, Field(description="Sample all captions. Otherwise the likeliest by beam search comes first.")
    ] = False
    challenger: Annotated[
        bool,
        Field(
            description="Caption with the version to compare with: the one with the alias `challenger`, else the newest"
            " if it is newer than the champion."
        ),
    ] = False
    seed: Annotated[int, Field(ge=0, le=_MAX_SEED, description="Random seed of the samples.")] = 0


class Pictures(Options):
    """The JSON form of a request."""

    pictures: Annotated[
        list[str],
        Field(min_length=1, max_length=MAX_PICTURES, description="Base64 or data: URLs; paths and URLs are refused."),
    ]


class _Form(Options):
    """The fields of a form besides `files`, for OpenAPI."""

    files: Annotated[list[bytes], Field(min_length=1, max_length=MAX_PICTURES, description="Picture files.")]


def openapi_body() -> dict[str, Any]:
    """Return the request body of the OpenAPI description."""
    form = _Form.model_json_schema()
    form["properties"]["files"]["items"] = {"type": "string", "format": "binary"}
    content = {
        "multipart/form-data": {"schema": form},
        "application/json": {"schema": Pictures.model_json_schema()},
    }
    return {"required": True, "content": content}


@asynccontextmanager
async def read_request(request: Request) -> AsyncIterator[tuple[Options, list[Sent]]]:
    """Yield the options and the pictures of a request; open files are closed at the end.

    Raises:
        HTTPException: 415 for another content type, 422 for invalid options or a wrong number of pictures.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            parsed = Pictures.model_validate_json(await request.body())
        except ValidationError as error:
            raise HTTPException(422, _one_line(error)) from None
        yield parsed, list(parsed.pictures)
    elif kind == "multipart/form-data":
        async with request.form(max_files=MAX_PICTURES, max_fields=len(Options.model_fields)) as form:
            files = form.getlist("files")
            sent: list[Sent] = [file.file for file in files if isinstance(file, UploadFile)]
            if not sent or len(sent) < len(files):
                raise HTTPException(422, f"files: found {len(sent)} picture files; send 1 to {MAX_PICTURES}")
            fields = {key: value for key, value in form.multi_items() if key != "files" and value != ""}
            try:
                options = Options.model_validate(fields)
            except ValidationError as error:
                raise HTTPException(422, _one_line(error)) from None
            yield options, sent
    else:
        raise HTTPException(415, f"content type {kind!r}: send multipart/form-data or application/json")


def _one_line(error: ValidationError) -> str:
    problems = [
        f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
        for problem in error.errors(include_url=False, include_input=False)
    ]
    return "; ".join(problems[:5])
