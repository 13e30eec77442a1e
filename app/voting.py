"""Champion against challenger on the page *Caption*: two captions without names, and a vote."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import streamlit as st

from app.session import Captioned, captions_of, escaped, load_params, person, say_problem
from pipeline.config.errors import PipelineError
from pipeline.config.params import Params
from pipeline.data.images import identity
from pipeline.data.text import clean
from pipeline.serving import feedback
from pipeline.serving.client import ServiceError
from pipeline.serving.votes import Choice, Pair, Vote, Votes


def challengers(photos: Sequence[tuple[str, bytes]]) -> dict[str, Captioned]:
    """Return what the challenger says of each photo, by SHA-256; say so if there is no challenger."""
    try:
        with st.spinner("The challenger looks at the photos ..."):
            return captions_of([data for _, data in photos], challenger=True)
    except ServiceError as error:
        st.info(f"Nothing to compare now: {escaped(str(error))}")
        st.button("Try again", key="again-challenger")
        return {}


def vote_first(data: bytes, captioned: Captioned | None, other: Captioned | None) -> bool:
    """Ask for a vote; return whether the visitor still has to vote before the editor may show the model's words."""
    pair = _pair(captioned, other)
    if pair is None:
        return False
    if clean(pair.said) == clean(pair.challenger_said):
        st.caption("Both versions say the same.")
        return False
    voted: dict[tuple[str, Pair], Vote] = st.session_state.setdefault("voted", {})
    vote = voted.get((identity(data), pair))
    if vote is None:
        vote = _ask(data, pair)
        if vote is None:
            return True
        voted[identity(data), pair] = vote
        st.rerun()
    _reveal(vote)
    return False


def _pair(captioned: Captioned | None, other: Captioned | None) -> Pair | None:
    """Return the two captions; None if one is missing, or if a version is not registered."""
    if captioned is None or other is None or not captioned[1].captions or not other[1].captions:
        return None
    said, challenger = captioned[0], other[0]
    if said.model is None or said.version is None or challenger.version is None or said.version == challenger.version:
        return None
    return Pair(said.model, said.version, challenger.version, said.text, challenger.text)


def _ask(data: bytes, pair: Pair) -> Vote | None:
    """Show both captions and the buttons; return the vote if it was cast and saved."""
    who, sha256 = person(), identity(data)
    texts = {"champion": pair.said, "challenger": pair.challenger_said}
    first = pair.first(who, sha256)
    order: list[Choice] = ["champion", "challenger"] if first == "champion" else ["challenger", "champion"]
    st.markdown("**Which caption is better?**")
    for letter, side in zip("AB", order, strict=True):
        st.text(f"{letter}: {texts[side]}")
    buttons: dict[str, Choice] = {"A": order[0], "B": order[1], "Both are good": "tie", "Both are bad": "neither"}
    chosen = None
    with st.container(horizontal=True):
        for label, choice in buttons.items():
            if st.button(label, key=f"vote-{label}-{sha256}", disabled=not who):
                chosen = choice
    if not who:
        st.caption("Write your name at the top to vote.")
    if chosen is None:
        return None
    try:
        vote = Votes().cast(who, data, pair, chosen)
    except PipelineError as error:
        say_problem(f"Not saved: {error}")
        return None
    except OSError as error:
        say_problem(f"Not saved: {error.strerror}. Fix that, then vote again.")
        return None
    _publish_later(load_params())
    return vote


def _publish_later(params: Params) -> None:
    """Bring MLflow up to date behind the page's back: the vote is on the disk, and MLflow may be slow or down."""

    def publish() -> None:
        with _publishing:
            try:
                feedback.publish(params)
            except PipelineError as error:
                print(f"votes: not in MLflow yet: {error}", flush=True)

    threading.Thread(target=publish, daemon=True).start()


_publishing = threading.Lock()


def _reveal(vote: Vote) -> None:
    better = {
        "champion": f"version {vote.champion}, the champion",
        "challenger": f"version {vote.challenger}, the challenger",
        "tie": "both versions",
        "neither": "neither version",
    }
    st.success(f"Saved: your vote is for {better[vote.choice]}.")
    st.text(
        f"Version {vote.champion} (champion): {vote.said}\n"
        f"Version {vote.challenger} (challenger): {vote.challenger_said}"
    )
