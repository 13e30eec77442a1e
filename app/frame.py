"""The page's frame: who is here, the menu, and a clear message instead of a traceback."""

from __future__ import annotations

import hmac
import os
import traceback
from collections.abc import Callable

import streamlit as st

from app import caption, data, models, review
from app.session import ASK_TOKEN, say_problem
from pipeline.config.errors import PipelineError
from pipeline.serving.client import ServiceError
from pipeline.serving.corrections import MAX_NAME_CHARACTERS
from pipeline.serving.limits import TOKEN

_PAGES = (
    (caption.page, "Caption", "caption", "📷"),
    (review.page, "Review", "review", "✅"),
    (data.page, "Data", "data", "🗂️"),
    (models.page, "Models", "models", "🏷️"),
)


def _allowed() -> bool:
    """Return whether this browser may go on; ask for the token if the page is open to other machines.

    A reverse proxy that has checked the visitor sends the token itself, as `Authorization: Bearer TOKEN`.
    """
    if not os.environ.get(ASK_TOKEN) or st.session_state.get("allowed") or _is_token(_sent_token()):
        return True
    given = st.text_input("Token", type="password", help=f"The text that the server has in {TOKEN}.")
    if _is_token(given):
        st.session_state["allowed"] = True
        st.rerun()
    if given:
        st.error("This is not the token of this page.")
    return False


def _is_token(given: str) -> bool:
    token = os.environ.get(TOKEN, "").strip()
    return bool(token) and hmac.compare_digest(given.strip().encode(), token.encode())


def _sent_token() -> str:
    """Return the token of the request that opened this page; "" without one."""
    scheme, _, token = (st.context.headers.get("Authorization") or "").partition(" ")
    return token if scheme.lower() == "bearer" else ""


def main() -> None:
    """Show the page that was chosen."""
    st.set_page_config("Image captioning", "📷", layout="centered", menu_items={})
    if not _allowed():
        return
    pages = [
        st.Page(page, title=title, url_path=path, icon=icon, default=page is caption.page)
        for page, title, path, icon in _PAGES
    ]
    inside(st.navigation(pages, position="top").run)


def inside(page: Callable[[], None]) -> None:
    """Show a page below the visitor's name, and its failure as a message."""
    # Here, because Streamlit forgets what was typed into a field that another page does not show.
    hint = "saved with your corrections"
    st.text_input("Your name", key="person", max_chars=MAX_NAME_CHARACTERS, placeholder=hint)
    try:
        page()
    except (PipelineError, ServiceError) as error:
        say_problem(str(error))
    except Exception:
        traceback.print_exc()
        say_problem("Something went wrong, and nothing was saved. The log of the page (.work/app.log) has the details.")
