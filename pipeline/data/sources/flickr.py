"""The layouts of Flickr8k and Flickr30k: Kaggle's `captions.txt` (a CSV), and the authors' `Flickr8k.token.txt`."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.data.sources import table
from pipeline.data.sources.layout import CaptionRow, Captions, CaptionsFile, Layout, named


def _read_tokens(file: CaptionsFile) -> Captions:
    """Read lines like `1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress .`."""
    encoding, lines = file.lines()

    def rows() -> Iterator[CaptionRow]:
        for number, line in lines:
            name, tab, caption = line.partition("\t")
            picture = name.rpartition("#")[0] if tab else None
            yield file.row(number, picture or None, caption)

    return Captions(encoding, rows())


TABLE = Layout(
    name="Flickr8k",
    expected="captions.txt (Flickr8k from Kaggle)",
    suffixes=(".txt",),
    recognises=named(r"captions\.txt"),
    read=table.read,
)
TOKENS = Layout(
    name="Flickr8k tokens",
    expected="Flickr8k.token.txt",
    suffixes=(".txt", ".token"),
    recognises=named(r"(flickr8k|results_\d+)\.token(\.txt)?"),
    read=_read_tokens,
)
