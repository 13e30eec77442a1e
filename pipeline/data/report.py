"""The data set -> reports/data.html, one page to look at it: pictures, words, and what was set aside and why."""

from __future__ import annotations

import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import emoji

from pipeline.data.audit import FILE_REASONS, ROW_REASONS, Aside
from pipeline.data.dataset import Example
from pipeline.data.images import data_url
from pipeline.data.text import emoji_name, words_of
from pipeline.runtime import templates

_TEMPLATE = Path(__file__).with_name("report.html.jinja")

_PICTURES = 60  # of the data set
_PAIRS = 30  # of near-duplicates
_SIDE = 160  # pixels of a picture's longer side: 5 to 10 kB each, so that the page stays near 1 MB

_MOST_FREQUENT = 30  # words, emoji
_CHANGED = 10  # captions before and after cleaning
_PLACES = 3  # where something was set aside, for each reason
_BARS, _LABELS, _LINES = 60, 14, 5  # of the histogram, at most

# The most frequent words of any English text; they say nothing about these pictures.
_FUNCTION_WORDS = {
    *("a", "about", "after", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be", "been", "but"),
    *("by", "can", "did", "do", "does", "for", "from", "get", "got", "had", "has", "have", "he", "her", "here"),
    *("him", "his", "how", "i", "i'm", "if", "in", "into", "is", "it", "it's", "its", "just", "me", "my", "no"),
    *("not", "of", "off", "on", "or", "our", "out", "over", "she", "so", "some", "than", "that", "the"),
    *("their", "them", "then", "there", "they", "this", "to", "too", "up", "us", "very", "was", "we", "were"),
    *("what", "when", "which", "who", "will", "with", "you", "your"),
}

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class _Shown:
    """A picture on the page.

    Attributes:
        url: the picture itself, as a data: URL.
        place: where it was found.
        captions: what was said of it.
        split: that it is in; None where it was set aside.
    """

    url: str
    place: str
    captions: Sequence[str]
    split: str | None


@dataclass(frozen=True)
class _Bar:
    """A bar of the histogram: how many captions have so many words ("7", or "10–14")."""

    words: str
    captions: int
    labelled: bool


@dataclass(frozen=True)
class _Reason:
    """A reason in words, how often something was set aside for it, and a few of the places."""

    code: str
    words: str
    count: int
    places: Sequence[str]


def render(
    report: Mapping[str, Any],
    kept: Mapping[str, Sequence[Example]],
    aside: Iterable[Aside],
    near: Sequence[tuple[Example, Example]],
    picture: Callable[[Example], bytes],
) -> str:
    """The page as self-contained HTML, which loads nothing from anywhere; equal inputs give equal bytes.

    Args:
        report: what stands in `reports/build.json`.
        kept: the examples of each split, at least one in all.
        aside: every file and row that was set aside.
        near: each near-duplicate that was set aside, with the picture of the data set that it is near to.
        picture: gives the bytes of an example's picture, kept or a near-duplicate. Only those that the page shows are
            asked for.
    """
    split_of = {example.sha256: split for split, examples in kept.items() for example in examples}

    def shown(example: Example) -> _Shown:
        place = f"{example.sources[0]}: {example.origins[0]}"
        return _Shown(data_url(picture(example), _SIDE), place, example.captions, split_of.get(example.sha256))

    # A SHA-256 tells nothing of what is on a picture: spread over its order is drawn at random, and always the same.
    examples = sorted((example for split in kept.values() for example in split), key=lambda example: example.sha256)
    chosen = sorted(_spread(examples, _PICTURES), key=lambda example: list(kept).index(split_of[example.sha256]))
    lengths, words, symbols = _tallied(caption for example in examples for caption in example.captions)
    bars = _histogram(lengths)
    highest = max(bar.captions for bar in bars)
    return templates.render(
        _TEMPLATE,
        report=report,
        pictures=[shown(example) for example in chosen],
        bars=bars,
        highest=highest,
        lines=range(0, highest + 1, _round(highest, _LINES)),
        shortest=min(lengths),
        longest=max(lengths),
        median=statistics.median_low(sorted(lengths.elements())),
        words=words.most_common(_MOST_FREQUENT),
        function_words=sorted(_FUNCTION_WORDS),
        emoji=symbols.most_common(_MOST_FREQUENT),
        changed=_spread(report["captions_changed"]["examples"], _CHANGED),
        reasons=_reasons(aside),
        pairs=[(shown(one), shown(other)) for one, other in _spread(near, _PAIRS)],
        near=len(near),
    )


def _spread(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most so many of the items, spread evenly over their order."""
    many = min(most, len(items))
    return [items[i * len(items) // many] for i in range(many)]


def _tallied(captions: Iterable[str]) -> tuple[Counter[int], Counter[str], Counter[str]]:
    """How many captions have each number of words; how often each word stands in them, and each emoji."""
    lengths, written = Counter[int](), Counter[str]()
    for caption in captions:
        found = words_of(caption)
        lengths[len(found)] += 1
        written.update(found)
    words, symbols = Counter[str](), Counter[str]()
    for word, times in written.items():
        if not word.isascii():
            for symbol in emoji.emoji_list(word):
                symbols[symbol["emoji"]] += times
            word = emoji.replace_emoji(word)
        words[_bare(word)] += times
    for left_out in ("", *_FUNCTION_WORDS):
        del words[left_out]
    return lengths, words, _by_name(symbols)


def _bare(word: str) -> str:
    """A word without case, and without the punctuation around it; empty where nothing else is left.

    >>> _bare("#Sunset!"), _bare("(don’t)"), _bare("...")
    ('sunset', "don't", '')
    """
    # Vowel signs of many scripts are marks (M), not letters (L) or numbers (N), and end words too.
    places = [i for i, character in enumerate(word) if unicodedata.category(character)[0] in "LNM"]
    return word[places[0] : places[-1] + 1].casefold().replace("’", "'") if places else ""


def _by_name(symbols: Counter[str]) -> Counter[str]:
    """Emoji with their names ("🔥 fire"); those that differ only in the skin's colour or in encoding as one."""
    first: dict[str, str] = {}
    named = Counter[str]()
    for symbol, times in symbols.most_common():
        name = emoji_name(symbol)
        named[f"{first.setdefault(name, symbol)} {name}"] += times
    return named


def _histogram(lengths: Counter[int]) -> list[_Bar]:
    """The lengths of captions, in bars of as few words each as there is room for."""
    shortest, longest = min(lengths), max(lengths)
    width = _round(longest - shortest + 1, _BARS)
    firsts = range(shortest // width * width, longest + 1, width)
    every = width * _round(len(firsts), _LABELS)
    return [
        _Bar(
            words=f"{first}" if width == 1 else f"{first}–{first + width - 1}",
            captions=sum(lengths[words] for words in range(first, first + width)),
            labelled=first % every == 0,
        )
        for first in firsts
    ]


def _round(extent: int, most: int) -> int:
    """The smallest step of 1, 2, 5, 10, 20, 50, ... that goes into `extent` at most `most` times, begun ones included.

    >>> _round(7, 10), _round(11, 10), _round(430, 5)
    (1, 2, 100)
    """
    power = 1
    while True:
        for step in (power, 2 * power, 5 * power):
            if step * most >= extent:
                return step
        power *= 10


def _reasons(aside: Iterable[Aside]) -> dict[str, list[_Reason]]:
    """Why files (`file`) and rows (`row`) were set aside, the most frequent reason first; no kind that has none."""
    found: dict[tuple[str, str], list[Aside]] = {}
    for item in aside:
        found.setdefault((item.kind, item.reason), []).append(item)
    words = {"file": FILE_REASONS, "row": ROW_REASONS}
    reasons: dict[str, list[_Reason]] = {}
    for (kind, code), items in sorted(found.items(), key=lambda entry: (entry[0][0], -len(entry[1]), entry[0][1])):
        reasons.setdefault(kind, []).append(_Reason(code, words[kind][code], len(items), _places(code, items)))
    return reasons


def _places(code: str, items: Sequence[Aside]) -> list[str]:
    if code == "excluded":  # these are not even named
        return []
    return [
        f"{item.source}: {item.file}" + (f", row {item.row:,}" if item.row is not None else "")
        for item in _spread(items, _PLACES)
    ]
