"""The page *Review*: accept, edit, reject or add captions, picture by picture."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app.review_queue import Item, all_items, is_blind, rates, sample, unseen
from app.session import (
    OWN_WORDS,
    captions_of,
    corrections,
    escaped,
    load_params,
    person,
    readiness,
    save,
    say_problem,
    show_picture,
    undo,
    warn_if_in_use,
)
from pipeline.config import paths
from pipeline.config.params import Params
from pipeline.data.images import identity
from pipeline.data.sources.corrections import Action, Correction
from pipeline.serving.client import ServiceError
from pipeline.serving.corrections import MAX_CHARACTERS, Said
from pipeline.serving.raw_pictures import raw_picture

_POOL = 32  # pictures that the model captions to find those it is least sure of
_LEAST_SURE, _NEWEST, _SOURCE = "Least sure", "Newest", "One source"


def page() -> None:
    """Show the page."""
    st.header("Review captions")
    params = load_params()
    warn_if_in_use()
    who = person()
    if not who:
        st.info("Write your name at the top to begin.")
        return
    store = corrections(params)
    found = store.counting()
    items = all_items(found)
    if not items:
        st.info(f"No pictures yet. Run `dvc repro` to build `{paths.DATASET}`, or save captions on *Caption*.")
        return
    ready = readiness().ready
    queue = _queue(unseen(items, found, who), params, ready)
    skipped: set[str] = st.session_state.setdefault("skipped", set())
    queue = [item for item in queue if item.example.sha256 not in skipped]
    _undo(params)
    if queue:
        st.caption(f"{len(queue):,} pictures to review")
        _item(queue[0], params, ready, who)
    else:
        st.success("You have seen all pictures of this queue.")
        if skipped and st.button("Show skipped pictures again"):
            skipped.clear()
            st.rerun()
    _rates(found)


def _queue(items: list[Item], params: Params, ready: bool) -> list[Item]:
    """Return the pictures in the order that the visitor chooses."""
    orders = [_LEAST_SURE, _NEWEST, _SOURCE] if ready else [_NEWEST, _SOURCE]
    order = st.segmented_control("Order", orders, default=orders[0], key=f"order-{ready}") or orders[0]
    if order == _SOURCE:
        sources = sorted({source for item in items for source in item.example.sources})
        chosen = st.selectbox("Source", sources)
        return [item for item in items if chosen in item.example.sources]
    if order == _NEWEST:
        return items[::-1]
    try:
        return _least_sure(sample(items, _POOL), params)
    except ServiceError as error:
        say_problem(str(error))
        return items


def _least_sure(items: Sequence[Item], params: Params) -> list[Item]:
    """Return the pictures by the score of the model's caption, the lowest first."""
    store = corrections(params)
    pictures = {item.example.sha256: item.picture(store) for item in items}
    with st.spinner("The model looks at some pictures ..."):
        said = captions_of(list(pictures.values()))

    def score(item: Item) -> float:
        _, result = said[identity(pictures[item.example.sha256])]
        return result.scores[0] if result.scores else float("-inf")

    return sorted(items, key=score)


def _item(item: Item, params: Params, ready: bool, who: str) -> None:
    """Show a picture, its captions, and the buttons."""
    picture = item.picture(corrections(params))
    left, right = st.columns([2, 3])  # on a phone one above the other
    with left:
        fine = show_picture(picture, params, "the picture to review")
        where = ", ".join(item.example.sources) or "saved on this page, not in the data set yet"
        st.caption(escaped(f"{where}{f' ({item.split})' if item.split else ''}"))
    with right:
        if fine:
            _judge(item, picture, params, ready, who)
        elif st.button("Skip"):
            st.session_state["skipped"].add(item.example.sha256)
            st.rerun()


def _judge(item: Item, picture: bytes, params: Params, ready: bool, who: str) -> None:
    sha256 = item.example.sha256
    said = _model_says(picture) if ready else None
    blind = is_blind(sha256, who)
    if blind or said is None:
        st.caption("Write what you see. For some pictures the model's words are not shown." if blind else "")
        text = st.text_area("Your caption", key=f"{OWN_WORDS}{sha256}", max_chars=MAX_CHARACTERS, height=80)
    else:
        st.text(f"The model ({said.model} {said.version or ''}) says:")
        text = st.text_area("Caption", said.text, key=f"said-{sha256}", max_chars=MAX_CHARACTERS, height=80)
    text = (text or "").strip()
    shown = None if blind else said
    with st.container(horizontal=True):
        if shown and st.button("Accept", type="primary", shortcut="Alt+A", disabled=text != shown.text):
            _save("accept", item, params, shown.text, shown)
        if shown and st.button("Save edit", shortcut="Alt+S", disabled=not text or text == shown.text):
            _save("edit", item, params, text, shown)
        if st.button("Add as another" if shown else "Save", shortcut="Alt+D", disabled=not text):
            _save("add", item, params, text, said)
        if shown and st.button("Reject", shortcut="Alt+X"):
            _save("reject", item, params, None, shown)
        if st.button("Skip", shortcut="Alt+N"):
            st.session_state["skipped"].add(sha256)
            st.rerun()
    st.caption("Captions in the data:")
    for number, caption in enumerate(item.example.captions):
        left, right = st.columns([4, 1])
        left.text(caption)
        if right.button("Wrong", key=f"wrong-{sha256}-{number}", help="Remove this caption from the picture"):
            _save("reject", item, params, None, Said(caption))


def _model_says(picture: bytes) -> Said | None:
    try:
        ((said, result),) = captions_of([picture]).values()
    except ServiceError as error:
        say_problem(str(error))
        return None
    return said if result.captions else None


def _save(action: Action, item: Item, params: Params, caption: str | None, said: Said | None) -> None:
    """Save and go on to the next picture."""
    picture: bytes | str = item.example.sha256
    if action != "reject":
        known = item.correction
        picture = raw_picture(item.example) if known is None else corrections(params).picture(known) or b""
    if save(action, picture, params, caption=caption, said=said):
        st.rerun()


def _undo(params: Params) -> None:
    saves: list[Correction] = st.session_state.get("saves", [])
    if not saves:
        return
    last = saves[-1]
    left, right = st.columns([4, 1])
    left.text(f"Saved: {last.action} {last.caption or last.said or ''}")
    if right.button("Undo", shortcut="Alt+Z") and undo(last, params):
        st.rerun()


def _rates(found: Sequence[Correction]) -> None:
    counted = rates(found)
    if counted:
        with st.expander("Agreement with the model"):
            st.dataframe(
                [
                    {
                        "person": rate.who,
                        "version": rate.version,
                        "accepted": rate.accepted,
                        "edited": rate.edited,
                        "rejected": rate.rejected,
                        "agreement": f"{rate.accepted / (rate.accepted + rate.edited + rate.rejected or 1):.0%}",
                    }
                    for rate in counted
                ],
                hide_index=True,
            )
