"""The layout of an Instagram export: `posts_1.json`, from Instagram's "Download your information" as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pipeline.config.errors import DataError
from pipeline.data.sources.layout import CaptionRow, Captions, CaptionsFile, Layout, named


def _read(file: CaptionsFile) -> Captions:
    """Read posts with `media` (`uri`, `title`) and, if there are several media, a `title` of the post.

    Rows are numbered by post, and each picture of a post gets the post's caption. Paths start at the top of the export.
    """
    encoding, posts = file.json()
    if not isinstance(posts, list):
        raise DataError(f"{file.place}: is not a list of posts; export your data from Instagram again, in JSON format")

    def rows() -> Iterator[CaptionRow]:
        for number, post in enumerate(posts, start=1):
            media = post.get("media") if isinstance(post, dict) else None
            if not isinstance(media, list) or not media:
                yield file.row(number, None, None)
                continue
            titles = [item.get("title") for item in media if isinstance(item, dict)]
            title = next((t for t in (post.get("title"), *titles) if t and isinstance(t, str)), "")
            for item in media:
                uri = item.get("uri") if isinstance(item, dict) else None
                picture = unescape_latin1(uri) if isinstance(uri, str) else None
                row = file.row(number, picture, unescape_latin1(title))
                yield replace(row, folder="", post=number if len(media) > 1 else None)

    return Captions(encoding, rows())


def unescape_latin1(text: str) -> str:
    r"""Repair UTF-8 that was decoded as Latin-1, which is how Instagram exports text; return other text unchanged.

    >>> unescape_latin1("caf\u00c3\u00a9"), unescape_latin1("caf\u00e9")
    ('café', 'café')
    """
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


LAYOUT = Layout(
    name="Instagram export",
    expected="posts_1.json (an Instagram export)",
    suffixes=(".json",),
    recognises=named(r"posts_\d+\.json"),
    read=_read,
)
