"""Captions as people wrote them -> captions to train on, by the rules of `build.captions` in `params.yaml`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

import emoji
import ftfy

from pipeline.config.sections.build import Captions

# Line and paragraph separators, tabs and all other control characters part words like a space does.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_WHITE = re.compile(r"\s+")
_WEB_ADDRESS = re.compile(r"(?:https?://|www\.)[^\s<>]*[^\s<>.,;:!?'\")\]]", re.IGNORECASE)
_MENTION = re.compile(r"(?<![\w.])[@＠]\w[\w.]*\w|(?<![\w.])[@＠]\w")
# A tag has a letter in it: "#1" is a rank. Tags may stand close together: "#one#two".
_HASHTAG = re.compile(r"[#＃](\w*[^\W\d_]\w*)")
_SKIN_TONE = re.compile("_?(?:light|medium-light|medium|medium-dark|dark)_skin_tone,?")
_LETTERS = "©®™"  # Unicode counts them as emoji, but people write them as letters
# What is left of an emoji that was taken out: joiners, variation selectors, keycaps, invisible tags. Within words
# they stay: Sinhala and others are written with joiners.
_LEFTOVERS = re.compile(r"(?:(?<=\s)|^){0}|{0}(?=\s|$)".format("[\u200d\ufe0e\ufe0f\u20e3\U000e0020-\U000e007f]+"))

_CAMEL = re.compile(r"[^\W\d_]*?[a-zß-öø-ÿ](?=[A-ZÀ-ÖØ-Þ])|[A-ZÀ-ÖØ-Þ]+(?=[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ])|[^\W\d_]+|\d+")
# Short words that may come of taking a joined tag apart. Others say that it was taken apart wrongly ("t bt").
_SHORT = {
    *("a", "i", "am", "an", "as", "at", "be", "by", "do", "go", "he", "hi", "if", "in", "is", "it", "me", "my", "no"),
    *("of", "oh", "ok", "on", "or", "so", "to", "tv", "up", "us", "we"),
}

_WEB_WORD, _MENTION_WORD = "website", "someone"


def clean(text: str) -> str:
    r"""The caption in Unicode NFC, on one line, with single spaces; empty where nothing is left.

    >>> clean("  two\r\nlines\u2028and\tmore ")
    'two lines and more'
    """
    return _WHITE.sub(" ", _CONTROL.sub(" ", unicodedata.normalize("NFC", text))).strip()


def cleaner(policy: Captions) -> Callable[[str], str]:
    """The function that cleans a caption as the policy says.

    Order matters: broken text first, for the rest to find whole letters; addresses before names and tags, which may
    stand in them; emoji last, for their names must not be taken for anything else.
    """

    def apply(text: str) -> str:
        # Of plain ASCII only entities and a terminal's colours could be broken, so most captions need no look.
        if policy.repair and not (text.isascii() and "&" not in text and "\x1b" not in text):
            text = ftfy.fix_text(text)
        text = clean(text)
        text = _replaced(_WEB_ADDRESS, policy.web_addresses, _WEB_WORD, text)
        text = _replaced(_MENTION, policy.mentions, _MENTION_WORD, text)
        if policy.hashtags != "keep":
            words = policy.hashtags == "words"
            text = _HASHTAG.sub(lambda tag: f" {tag_words(tag[1]) if words else ''} ", text)
        return clean(_emoji(text, policy.emoji))

    return apply


def _replaced(pattern: re.Pattern[str], how: str, word: str, text: str) -> str:
    return text if how == "keep" else pattern.sub(f" {word} " if how == "replace" else " ", text)


def tag_words(tag: str) -> str:
    """The words of a hashtag (without its #).

    >>> tag_words("NoFilter"), tag_words("photo_of_the_day"), tag_words("BBCNews2024"), tag_words("goldenretriever")
    ('No Filter', 'photo of the day', 'BBC News 2024', 'golden retriever')

    What is not surely several words stays as it is:

    >>> tag_words("tbt"), tag_words("schönerhund")
    ('tbt', 'schönerhund')
    """
    pieces = _CAMEL.findall(tag)
    return " ".join(_apart(piece) for piece in pieces)


@cache
def _apart(word: str) -> str:
    """Joined small words taken apart by how common English words are; the word as it is where that looks wrong."""
    if not (word.isascii() and word.islower() and len(word) > 3):
        return word
    import wordninja  # reads its list of words, so only where one is needed

    words = wordninja.split(word)
    return " ".join(words) if all(len(w) > 2 or w in _SHORT for w in words) else word


def _emoji(text: str, how: str) -> str:
    """Emoji parted from letters and from each other; or told in words, the same ones in a row once; or dropped.

    A tokenizer that does not know an emoji takes the whole word that it clings to for unknown.
    """
    if text.isascii():
        return text
    pieces, end, last = [], 0, ""
    for found in emoji.emoji_list(text):
        if found["emoji"] in _LETTERS:
            continue
        between = text[end : found["match_start"]]
        word = {"keep": found["emoji"], "words": emoji_name(found["emoji"])}.get(how, "")
        again = how == "words" and word == last and not _LEFTOVERS.sub("", f" {between} ").strip()
        pieces += [between, " "] if again else [between, f" {word} "]
        end, last = found["match_end"], word
    text = "".join([*pieces, text[end:]])
    return text if how == "keep" else _LEFTOVERS.sub("", text)


@cache
def emoji_name(symbol: str) -> str:
    """An emoji's name in words, without the skin's colour: "red heart", "thumbs up"."""
    name = emoji.demojize(symbol, delimiters=("", ""))
    return _SKIN_TONE.sub("", name).replace("_", " ").strip() if name != symbol else ""


def words_of(text: str) -> list[str]:
    """The words of a cleaned caption: what has a letter or digit in it, and emoji."""
    return [word for word in text.split() if any(map(str.isalnum, word)) or emoji.emoji_count(word)]
