"""The page *Caption*: photos from a phone or a disk, several captions each, and saving the best one."""

from __future__ import annotations

import streamlit as st

from app.session import (
    Captioned,
    captions_of,
    escaped,
    forget_captions,
    kept_captions,
    load_params,
    person,
    readiness,
    save,
    say_problem,
    show_picture,
    undo,
)
from app.voting import challengers, vote_first
from pipeline.config.params import Params
from pipeline.data.images import identity
from pipeline.serving.client import ServiceError
from pipeline.serving.corrections import MAX_CHARACTERS, MAX_PICTURE_BYTES, Said

_KINDS = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "heic", "heif", "avif"]
_MOST = 64  # photos at once


def page() -> None:
    """Show the page."""
    st.header("Caption photos")
    params = load_params()
    ready = readiness().ready
    photos = _photos()
    if not photos:
        forget_captions()
        st.caption("Drop photos above. A saved caption becomes training data: see docs/corrections.md.")
        return
    several = st.slider("Captions per photo", 1, 6, 3)
    blind = ready and st.toggle(
        "Compare with the challenger",
        key="compare",
        help="Shows the captions of two versions without their names, and asks which is better.",
    )
    seed = st.session_state.setdefault("seed", 0)
    if ready and not blind and st.button("Other suggestions"):
        seed = st.session_state["seed"] = seed + 1
    pictures = [data for _, data in photos]
    said = _said(pictures, several, seed, ready)
    others = challengers(photos) if blind and said else {}
    for name, data in photos:
        with st.container(border=True):
            _photo(name, data, said.get(identity(data)), others.get(identity(data)), params)
    if ready and said and len(kept_captions(pictures, n=several, seed=seed)) < len(photos):
        _add_suggestions(pictures, several, seed)


def _said(pictures: list[bytes], several: int, seed: int, ready: bool) -> dict[str, Captioned]:
    """Return the suggestions of each picture: the first caption, which is there sooner, until the others are."""
    complete = kept_captions(pictures, n=several, seed=seed)
    first = kept_captions(pictures, seed=seed)
    if ready and len(complete) < len(pictures):
        try:
            with st.spinner("The model looks at the photos ..."):
                first = captions_of(pictures, seed=seed)
        except ServiceError as error:
            say_problem(str(error))
    # If another version began to caption between the two, what the visitor already sees stays.
    same = {key: found for key, found in complete.items() if key not in first or first[key][0] == found[0]}
    return first | same


def _add_suggestions(pictures: list[bytes], several: int, seed: int) -> None:
    """Ask for the other suggestions below the photos, and show the page again with them."""
    try:
        with st.spinner("More suggestions ..."):
            captions_of(pictures, n=several, seed=seed)
    except ServiceError as error:
        say_problem(str(error))
    else:
        st.rerun()


def _photos() -> list[tuple[str, bytes]]:
    """Return name and bytes of the visitor's photos, each once."""
    files = st.file_uploader("Photos", _KINDS, accept_multiple_files=True, max_upload_size=MAX_PICTURE_BYTES // 2**20)
    found = [(file.name, file.getvalue()) for file in files]
    if st.toggle("Use the camera") and (shot := st.camera_input("Take a photo")):
        found.append(("camera", shot.getvalue()))
    if len(found) > _MOST:
        st.warning(f"Only the first {_MOST} photos are shown.")
    return list({identity(data): (name, data) for name, data in found[:_MOST]}.values())


def _photo(name: str, data: bytes, captioned: Captioned | None, other: Captioned | None, params: Params) -> None:
    """Show a photo with the model's suggestions, and save what the visitor chooses or writes."""
    left, right = st.columns([2, 3])  # on a phone one above the other
    with left:
        fine = show_picture(data, params, name)
    if fine:
        with right:
            if vote_first(data, captioned, other):
                return
            _choose(name, data, captioned, params)


def _choose(name: str, data: bytes, captioned: Captioned | None, params: Params) -> None:
    sha256 = identity(data)
    said, result = captioned or (None, None)
    if result and result.error:
        say_problem(f"{name}: {result.error}")
    shown = None
    if said and result and result.captions:
        key = f"pick-{sha256}-{'|'.join(result.captions)}"
        text = st.radio("Suggestions", result.captions, format_func=escaped, key=key)
        st.caption(escaped(f"by {said.model}, {_version(said)}"))
        shown = Said(str(text), said.model, said.version)
    key = _text_key(sha256, shown.text if shown else "")
    caption = st.text_area("Caption", key=key, max_chars=MAX_CHARACTERS, height=80)
    if caption:
        st.code(caption, language=None, wrap_lines=True)  # has a button that copies
    who = person()
    if st.button("Save", key=f"save-{sha256}", type="primary", disabled=not (who and str(caption).strip())):
        accepted = shown is not None and caption == shown.text
        saved = save("accept" if accepted else "edit", data, params, caption=caption, said=shown)
        if saved:
            st.session_state.setdefault("saved", {})[sha256] = saved
    if not who:
        st.caption("Write your name at the top to save captions.")
    if saved := st.session_state.get("saved", {}).get(sha256):
        st.success(f"Saved: {escaped(saved.caption or '')}")
        if st.button("Undo", key=f"undo-{sha256}") and undo(saved, params):
            del st.session_state["saved"][sha256]
            st.rerun()


def _text_key(sha256: str, suggested: str) -> str:
    """Return the key of a photo's text area, after putting a new suggestion there.

    A suggestion replaces an earlier one with its edits, but not what the visitor wrote while there was none yet.
    """
    key, shown = f"text-{sha256}", st.session_state.setdefault("suggested", {})
    before, text = shown.get(sha256, ""), st.session_state.get(key)
    if text is None or (suggested != before and (before or not text)):
        st.session_state[key] = suggested
    shown[sha256] = suggested
    return key


def _version(said: Said) -> str:
    return "not registered" if said.version is None else f"version {said.version}"
