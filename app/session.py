"""What the pages share: the service, the corrections, pictures to show, and text that is shown as it is."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Sequence

import streamlit as st

from pipeline.config import params as params_module
from pipeline.config.errors import PipelineError
from pipeline.config.params import Params
from pipeline.data import images
from pipeline.data.sources.corrections import Action, Correction
from pipeline.data.text import clean
from pipeline.runtime import process_identity, workspace_lock
from pipeline.runtime.memory_budget import MemoryBudget, bytes_of
from pipeline.serving.client import DEFAULT_URL, Client, Readiness, Result
from pipeline.serving.corrections import Corrections, Said
from pipeline.serving.limits import TOKEN

SERVICE = "IMAGE_CAPTIONING_SERVICE"  # environment: address of the captioning service
ASK_TOKEN = "IMAGE_CAPTIONING_ASK_TOKEN"  # noqa: S105  # environment: set if the page asks visitors for the token
OWN_WORDS = "own-"  # start of the keys of text areas that are shown in place of the model's words
_ASK_SECONDS = 2.0  # between two questions whether a model is loaded
_SIDE = 800  # pixels of a picture on the page
_BATCH = 8  # pictures per request; a large photo has several MB

# Streamlit's labels are Markdown. A backslash before these shows them as they are.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~$:^])")


def escaped(text: str) -> str:
    """Return text for a place where Streamlit expects Markdown: shown as it is, without links, images and HTML."""
    return _MARKDOWN.sub(r"\\\1", text)


def say_problem(message: str) -> None:
    """Show a problem, whose message may quote what strangers wrote."""
    st.error(escaped(message))


def person() -> str:
    """Return the visitor's name as it is saved; empty if none was written."""
    return clean(str(st.session_state.get("person", "")))


def load_params() -> Params:
    """Return params.yaml as it is now."""
    return params_module.load()


def corrections(params: Params) -> Corrections:
    """Return the corrections of the workspace."""
    return Corrections(max_pixels=params.ingest.max_pixels, budget=memory_budget(params.runtime.memory_gb))


@st.cache_resource
def memory_budget(gigabytes: float) -> MemoryBudget:
    """Return the memory that all visitors' pictures may take together; see `runtime.memory_gb`."""
    return MemoryBudget(bytes_of(gigabytes))


@st.cache_resource
def client() -> Client:
    """Return the connection to the captioning service, which all visitors share."""
    return Client(os.environ.get(SERVICE, DEFAULT_URL), os.environ.get(TOKEN, "").strip())


def readiness() -> Readiness:
    """Return whether the service can caption, and show what to do if it can't."""
    ready = client().ready()
    if not ready.ready:
        st.warning(f"**No model can caption now.** {escaped(ready.reason)}")
        st.markdown(
            "- No model yet? Run `dvc repro` in the workspace, then `image-captioning promote`.\n"
            "- Was the page just opened? The service needs some seconds to load its model.\n"
            "- You can still write captions yourself and save them."
        )
        st.button("Try again", key="again")
        _show_again_when_ready()
    return ready


@st.fragment(run_every=_ASK_SECONDS)
def _show_again_when_ready() -> None:
    """Ask the service now and then; show the page again once it can caption, unless somebody is writing on *Review*."""
    writes = any(str(key).startswith(OWN_WORDS) and value for key, value in st.session_state.items())
    if not writes and client().ready().ready:
        st.rerun()


def warn_if_in_use() -> None:
    """Say so if a flow or `dvc repro` is changing the workspace."""
    if claim := workspace_lock.holder():
        process = process_identity.pid_of(claim.process)
        st.info(
            f"The workspace is in use by {escaped(claim.who)} (process {process}). What you see may change;"
            " corrections can be saved meanwhile."
        )


@st.cache_data(max_entries=500, show_spinner=False)
def _reduced(data: bytes, max_pixels: int, memory_gb: float) -> bytes:
    buffer = io.BytesIO()
    with images.opened(data, max_pixels, memory_budget(memory_gb), at_least=_SIDE) as picture:
        image = picture.decode()
        image.thumbnail((_SIDE, _SIDE))
        image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def show_picture(data: bytes, params: Params, alt: str = "") -> bool:
    """Show a picture that may come from a stranger; return False, and say why, if it can't be shown."""
    try:
        st.image(_reduced(data, params.ingest.max_pixels, params.runtime.memory_gb), width="stretch", alt=alt)
    except images.PictureError as error:
        say_problem(f"This file {error}; save it as JPEG or PNG.")
        return False
    return True


Captioned = tuple[Said, Result]


def captions_of(
    pictures: Sequence[bytes], *, n: int = 1, seed: int = 0, challenger: bool = False
) -> dict[str, Captioned]:
    """Return what the model, or its challenger, says of each picture, by SHA-256, with its name and version.

    Each picture is sent once until `forget_captions`, unless `n` or `seed` changes: what a person is editing stays as
    it is, even if another version is served meanwhile or the service dies.

    Raises:
        ServiceError: the service does not answer.
    """
    kept: dict[tuple[object, ...], Captioned] = st.session_state.setdefault("captioned", {})

    def key(data: bytes) -> tuple[object, ...]:
        return images.identity(data), n, seed, challenger

    new = list({key(data): data for data in pictures if key(data) not in kept}.items())
    for start in range(0, len(new), _BATCH):
        part = new[start : start + _BATCH]
        answer = client().caption([data for _, data in part], n=n, seed=seed, challenger=challenger)
        for (place, _), result in zip(part, answer.results, strict=True):
            text = result.captions[0] if result.captions else ""
            kept[place] = Said(text, answer.name, answer.version), result
    return {images.identity(data): kept[key(data)] for data in pictures if key(data) in kept}


def forget_captions() -> None:
    """Forget what the model said, so that photos that are dropped again are captioned by the version of today."""
    st.session_state.pop("captioned", None)


def kept_captions(pictures: Sequence[bytes], *, n: int = 1, seed: int = 0) -> dict[str, Captioned]:
    """Return what `captions_of` returned earlier in this visit, without asking the service."""
    kept: dict[tuple[object, ...], Captioned] = st.session_state.get("captioned", {})
    found = {images.identity(data): kept.get((images.identity(data), n, seed, False)) for data in pictures}
    return {sha256: captioned for sha256, captioned in found.items() if captioned}


def save(
    action: Action,
    picture: bytes | str,
    params: Params,
    *,
    caption: str | None = None,
    said: Said | None = None,
) -> Correction | None:
    """Save a correction in the visitor's name; return None, and say why, if that failed. A retry saves it once."""
    visit = st.session_state.setdefault("visit", os.urandom(8).hex())
    saves = st.session_state.setdefault("saves", [])
    place = picture if isinstance(picture, str) else images.identity(picture)
    done = st.session_state.setdefault("done", 0)  # never less, so that a save after its undo is a new one
    content = f"{visit} {done} {place} {action} {caption} {said}"
    key = hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:32]
    try:
        saved = corrections(params).save(person(), action, picture, caption=caption, said=said, key=key)
    except PipelineError as error:
        say_problem(f"Not saved: {error}")
        return None
    except OSError as error:
        say_problem(f"Not saved: {error.strerror}. Fix that, then save again.")
        return None
    saves.append(saved)
    st.session_state["done"] = done + 1
    return saved


def undo(correction: Correction, params: Params) -> bool:
    """Undo a correction of this visit; return False, and say why, if that failed."""
    try:
        corrections(params).undo(correction)
    except (PipelineError, OSError) as error:
        say_problem(f"Not undone: {error}")
        return False
    saves: list[Correction] = st.session_state.get("saves", [])
    if correction in saves:
        saves.remove(correction)
    return True
