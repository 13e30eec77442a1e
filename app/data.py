"""The page *Data*: what is in the data set, what was set aside and why, and what is excluded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from app.review_queue import Item, all_items
from app.session import corrections, escaped, load_params, say_problem, show_picture, warn_if_in_use
from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.config.params import Params
from pipeline.data.audit import FILE_REASONS, ROW_REASONS, SetAside, read_set_aside
from pipeline.data.split import SPLITS
from pipeline.serving.excluded import FOLDER, exclude, excluded_files, include
from pipeline.serving.raw_pictures import raw_picture

_PER_PAGE = 12
_COLUMNS = 3


def page() -> None:
    """Show the page."""
    st.header("Data")
    params = load_params()
    warn_if_in_use()
    pictures, set_aside, excluded = st.tabs(["Pictures", "Set aside", "Excluded"])
    with pictures:
        _pictures(params)
    with set_aside:
        _set_aside()
    with excluded:
        _excluded(params)


def _pictures(params: Params) -> None:
    if not paths.DATASET.is_dir():
        st.info("There is no data set yet. Run `dvc repro build`, or `make demo` for the sample.")
        return
    items = [item for item in all_items(corrections(params).counting()) if item.split]
    words = st.text_input("Search captions and file names").casefold().split()
    left, right = st.columns(2)
    split = left.selectbox("Split", ["all", *SPLITS])
    source = right.selectbox("Source", ["all", *sorted({s for item in items for s in item.example.sources})])
    found = [item for item in items if _matches(item, words, split, source)]
    st.caption(f"{len(found):,} of {len(items):,} pictures")
    pages = max(1, -(-len(found) // _PER_PAGE))
    number = st.number_input(f"Page (of {pages:,})", 1, pages, 1, key=f"page-{pages}") if pages > 1 else 1
    part = found[(number - 1) * _PER_PAGE : number * _PER_PAGE]
    for start in range(0, len(part), _COLUMNS):
        for column, item in zip(st.columns(_COLUMNS), part[start : start + _COLUMNS], strict=False):
            with column.container(border=True):
                _picture(item, params)


def _matches(item: Item, words: Sequence[str], split: str, source: str) -> bool:
    text = " ".join([*item.example.captions, *item.example.origins, item.example.sha256]).casefold()
    return (
        split in ("all", item.split)
        and (source == "all" or source in item.example.sources)
        and all(word in text for word in words)
    )


def _picture(item: Item, params: Params) -> None:
    example = item.example
    picture = item.picture(corrections(params))
    show_picture(picture, params, example.captions[0] if example.captions else "")
    for caption in example.captions:
        st.text(caption)
    st.caption(escaped(f"{item.split}; {', '.join(example.sources)}"))
    with st.popover("More"):
        st.text("\n".join(f"{s}: {o}" for s, o in zip(example.sources, example.origins, strict=True)))
        st.code(example.sha256, language=None, wrap_lines=True)
        if st.button("Which versions were trained on it?", key=f"trained-{example.sha256}"):
            from pipeline.tracking.trained_on import find_versions

            ((_, exactly, nearly),) = find_versions(params, [example.sha256]).pictures
            st.text(f"Trained on it: {_numbers(exactly)}\nTrained on a near-duplicate: {_numbers(nearly)}")
        if st.button("Exclude this picture", key=f"exclude-{example.sha256}"):
            try:
                data = raw_picture(example)
            except DataError:
                data = picture  # as stored: build finds the picture as a near-duplicate of it
            exclude(data)
            st.success(f"Copied to {FOLDER}. The next `dvc repro` leaves it out, with its near-duplicates.")


def _numbers(versions: Sequence[int]) -> str:
    return ", ".join(map(str, versions)) or "none"


def _set_aside() -> None:
    if not paths.SET_ASIDE.is_file():
        st.info(f"There is no {paths.SET_ASIDE} yet. Run `dvc repro build`.")
        return
    items = _read(paths.SET_ASIDE, paths.SET_ASIDE.stat().st_mtime_ns)
    reasons = {**FILE_REASONS, **ROW_REASONS}
    # Excluded pictures are not even named.
    chosen = st.selectbox("Reason", ["all", *sorted({item.reason for item in items})])
    shown = [item for item in items if chosen in ("all", item.reason)]
    if chosen != "all":
        st.text(reasons[chosen])
    st.caption(f"{len(shown):,} files and rows")
    st.dataframe(
        [
            {
                "source": item.source,
                "file": "" if item.reason == "excluded" else item.file,
                "row": item.row,
                "reason": reasons[item.reason],
            }
            for item in shown[:5_000]
        ],
        hide_index=True,
    )


@st.cache_data(max_entries=4, show_spinner=False)
def _read(path: Path, changed: int) -> list[SetAside]:
    """Return the rows of set_aside.csv; `changed` is part of the cache's key."""
    return list(read_set_aside(path))


def _excluded(params: Params) -> None:
    if str(FOLDER) not in params.ingest.exclude:
        say_problem(f"params.yaml: ingest.exclude: lacks {FOLDER}, so the pictures there are used; add it")
    files = excluded_files()
    if not files:
        st.info(f"No picture is excluded in {FOLDER}.")
    for file in files:
        left, right = st.columns([4, 1])
        left.text(file.name)
        if right.button("Use again", key=f"include-{file.name}"):
            include(file)
            st.rerun()
