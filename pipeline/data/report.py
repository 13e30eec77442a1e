"""Render reports/data.html, an overview of the data set: pictures, words, and what was set aside and why."""

from __future__ import annotations

import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import emoji

from pipeline.data.audit import FILE_REASONS, ROW_REASONS, SetAside
from pipeline.data.dataset import Example
from pipeline.data.images import data_url
from pipeline.data.text import caption_words, emoji_name
from pipeline.runtime import templates

_TEMPLATE = Path(__file__).with_name("report.html.jinja")

_PICTURES = 60  # of the data set
_PAIRS = 30  # of near-duplicates
_SIDE = 160  # pixels of a picture's longer side: 5 to 10 kB each, so that the page stays near 1 MB

_MOST_FREQUENT = 30  # words, emoji
_CHANGED = 10  # captions before and after cleaning
_PLACES = 3  # examples for each reason
_BARS, _LABELS, _LINES = 60, 14, 5  # of the histogram, at most

# The most frequent words of any English text, which say nothing about the pictures.
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
        url: the picture as a data: URL.
        place: where it was found.
        captions: its captions.
        split: its split; None if it was set aside.
    """

    url: str
    place: str
    captions: Sequence[str]
    split: str | None


@dataclass(frozen=True)
class _Bar:
    """A bar of the histogram: the number of captions with this many words ("7", or "10–14")."""

    words: str
    captions: int
    labelled: bool


@dataclass(frozen=True)
class _Reason:
    """A reason for setting things aside, how often it occurred, and a few places."""

    code: str
    description: str
    count: int
    places: Sequence[str]


def render(
    report: Mapping[str, Any],
    kept: Mapping[str, Sequence[Example]],
    set_aside: Iterable[SetAside],
    duplicates: Sequence[tuple[Example, Example]],
    picture: Callable[[Example], bytes],
) -> str:
    """Return the page as self-contained HTML, which loads nothing from elsewhere; equal inputs give equal bytes.

    Args:
        report: the content of `reports/build.json`.
        kept: the examples of each split, at least one in total.
        set_aside: every file and row that was set aside.
        duplicates: each near-duplicate that was set aside, with the picture of the data set that it matches.
        picture: returns the bytes of an example's picture; called only for pictures that the page shows.
    """
    split_of = {example.sha256: split for split, examples in kept.items() for example in examples}

    def shown(example: Example) -> _Shown:
        place = f"{example.sources[0]}: {example.origins[0]}"
        return _Shown(data_url(picture(example), _SIDE), place, example.captions, split_of.get(example.sha256))

    # SHA-256 order is random with respect to content, but always the same.
    examples = sorted((example for split in kept.values() for example in split), key=lambda example: example.sha256)
    chosen = sorted(_spread(examples, _PICTURES), key=lambda example: list(kept).index(split_of[example.sha256]))
    lengths, words, symbols = _count_words(caption for example in examples for caption in example.captions)
    bars = _histogram(lengths)
    highest = max(bar.captions for bar in bars)
    return templates.render(
        _TEMPLATE,
        report=report,
        pictures=[shown(example) for example in chosen],
        bars=bars,
        highest=highest,
        lines=range(0, highest + 1, _round_step(highest, _LINES)),
        shortest=min(lengths),
        longest=max(lengths),
        median=statistics.median_low(sorted(lengths.elements())),
        words=words.most_common(_MOST_FREQUENT),
        function_words=sorted(_FUNCTION_WORDS),
        emoji=symbols.most_common(_MOST_FREQUENT),
        changed=_spread(report["captions_changed"]["examples"], _CHANGED),
        reasons=_reasons(set_aside),
        pairs=[(shown(one), shown(other)) for one, other in _spread(duplicates, _PAIRS)],
        duplicates=len(duplicates),
    )


def _spread(items: Sequence[_Item], most: int) -> list[_Item]:
    """Return at most `most` of the items, evenly spread over their order."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _count_words(captions: Iterable[str]) -> tuple[Counter[int], Counter[str], Counter[str]]:
    """Return the number of captions of each length in words, and how often each word and each emoji occurs."""
    lengths, written = Counter[int](), Counter[str]()
    for caption in captions:
        tokens = caption_words(caption)
        lengths[len(tokens)] += 1
        written.update(tokens)
    words, symbols = Counter[str](), Counter[str]()
    for word, times in written.items():
        if not word.isascii():
            for symbol in emoji.emoji_list(word):
                symbols[symbol["emoji"]] += times
            word = emoji.replace_emoji(word)
        words[_strip_punctuation(word)] += times
    for function_word in ("", *_FUNCTION_WORDS):
        del words[function_word]
    return lengths, words, _by_name(symbols)


def _strip_punctuation(word: str) -> str:
    """Return a word in lower case without surrounding punctuation; empty if it is all punctuation.

    >>> _strip_punctuation("#Sunset!"), _strip_punctuation("(don’t)"), _strip_punctuation("...")
    ('sunset', "don't", '')
    """
    # Words may end in a mark (M), such as a vowel sign, as well as in a letter (L) or number (N).
    places = [i for i, character in enumerate(word) if unicodedata.category(character)[0] in "LNM"]
    return word[places[0] : places[-1] + 1].casefold().replace("’", "'") if places else ""


def _by_name(symbols: Counter[str]) -> Counter[str]:
    """Return emoji with their names ("🔥 fire"); variants that differ only in skin tone or encoding count as one."""
    first: dict[str, str] = {}
    named = Counter[str]()
    for symbol, times in symbols.most_common():
        name = emoji_name(symbol)
        named[f"{first.setdefault(name, symbol)} {name}"] += times
    return named


def _histogram(lengths: Counter[int]) -> list[_Bar]:
    """Return the caption lengths as bars, each as narrow as there is room for."""
    shortest, longest = min(lengths), max(lengths)
    width = _round_step(longest - shortest + 1, _BARS)
    firsts = range(shortest // width * width, longest + 1, width)
    every = width * _round_step(len(firsts), _LABELS)
    return [
        _Bar(
            words=f"{first}" if width == 1 else f"{first}–{first + width - 1}",
            captions=sum(lengths[words] for words in range(first, first + width)),
            labelled=first % every == 0,
        )
        for first in firsts
    ]


def _round_step(extent: int, most: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that covers `extent` in at most `most` steps.

    >>> _round_step(7, 10), _round_step(11, 10), _round_step(430, 5)
    (1, 2, 100)
    """
    power = 1
    while True:
        for step in (power, 2 * power, 5 * power):
            if step * most >= extent:
                return step
        power *= 10


def _reasons(set_aside: Iterable[SetAside]) -> dict[str, list[_Reason]]:
    """Return the reasons by kind (`file`, `row`), most frequent first; a kind without any is left out."""
    by_reason: dict[tuple[str, str], list[SetAside]] = {}
    for item in set_aside:
        by_reason.setdefault((item.kind, item.reason), []).append(item)
    descriptions = {"file": FILE_REASONS, "row": ROW_REASONS}
    reasons: dict[str, list[_Reason]] = {}
    for (kind, code), items in sorted(by_reason.items(), key=lambda entry: (entry[0][0], -len(entry[1]), entry[0][1])):
        reasons.setdefault(kind, []).append(_Reason(code, descriptions[kind][code], len(items), _places(code, items)))
    return reasons


def _places(code: str, items: Sequence[SetAside]) -> list[str]:
    if code == "excluded":  # excluded pictures are not even named
        return []
    return [
        f"{item.source}: {item.file}" + (f", row {item.row:,}" if item.row is not None else "")
        for item in _spread(items, _PLACES)
    ]
