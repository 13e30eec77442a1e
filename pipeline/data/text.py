"""Clean captions by the rules of `build.captions` in `params.yaml`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

import emoji
import ftfy

from pipeline.config.sections.build import Captions
from pipeline.data.scripts import space_characters

# Line and paragraph separators, tabs and all other control characters separate words like a space.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_WHITE = re.compile(r"\s+")
_WEB_ADDRESS = re.compile(r"(?:https?://|www\.)[^\s<>]*[^\s<>.,;:!?'\")\]]", re.IGNORECASE)
_MENTION = re.compile(r"(?<![\w.])[@＠]\w[\w.]*\w|(?<![\w.])[@＠]\w")
# A hashtag contains a letter ("#1" is a rank), and may follow another without a space ("#one#two").
_HASHTAG = re.compile(r"[#＃](\w*[^\W\d_]\w*)")
_SKIN_TONE = re.compile("_?(?:light|medium-light|medium|medium-dark|dark)_skin_tone,?")
_LETTERS = "©®™"  # emoji in Unicode, but used as letters
# What remains of an emoji after it is removed: joiners, variation selectors, keycaps, invisible tags. They are kept
# within words, because Sinhala and other scripts use joiners.
_LEFTOVERS = re.compile(r"(?:(?<=\s)|^){0}|{0}(?=\s|$)".format("[\u200d\ufe0e\ufe0f\u20e3\U000e0020-\U000e007f]+"))

_CAMEL = re.compile(r"[^\W\d_]*?[a-zß-öø-ÿ](?=[A-ZÀ-ÖØ-Þ])|[A-ZÀ-ÖØ-Þ]+(?=[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ])|[^\W\d_]+|\d+")
# Short words that are valid in a split hashtag. Any other short word means that the split is wrong ("t bt").
_SHORT = {
    *("a", "i", "am", "an", "as", "at", "be", "by", "do", "go", "he", "hi", "if", "in", "is", "it", "me", "my", "no"),
    *("of", "oh", "ok", "on", "or", "so", "to", "tv", "up", "us", "we"),
}

_WEB_WORD, _MENTION_WORD = "website", "someone"


def clean(text: str) -> str:
    r"""Return the caption in Unicode NFC, on one line, with single spaces; empty if nothing is left.

    >>> clean("  two\r\nlines\u2028and\tmore ")
    'two lines and more'
    """
    return _WHITE.sub(" ", _CONTROL.sub(" ", unicodedata.normalize("NFC", text))).strip()


def caption_cleaner(policy: Captions) -> Callable[[str], str]:
    """Return the function that cleans a caption by the policy.

    Order matters: broken text is repaired first, so that the other rules see whole characters; web addresses come
    before mentions and hashtags, which they may contain; emoji come last, so that no rule changes their names.
    """

    def clean_caption(text: str) -> str:
        # In ASCII text ftfy only repairs HTML entities and terminal escapes, so most captions can skip it.
        if policy.repair and not (text.isascii() and "&" not in text and "\x1b" not in text):
            text = ftfy.fix_text(text)
        text = clean(text)
        text = _replace(_WEB_ADDRESS, policy.web_addresses, _WEB_WORD, text)
        text = _replace(_MENTION, policy.mentions, _MENTION_WORD, text)
        if policy.hashtags != "keep":
            words = policy.hashtags == "words"
            text = _HASHTAG.sub(lambda tag: f" {tag_words(tag[1]) if words else ''} ", text)
        return clean(_replace_emoji(text, policy.emoji))

    return clean_caption


def _replace(pattern: re.Pattern[str], rule: str, word: str, text: str) -> str:
    return text if rule == "keep" else pattern.sub(f" {word} " if rule == "replace" else " ", text)


def tag_words(tag: str) -> str:
    """Return the words of a hashtag (without its #), separated by spaces.

    >>> tag_words("NoFilter"), tag_words("photo_of_the_day"), tag_words("BBCNews2024"), tag_words("goldenretriever")
    ('No Filter', 'photo of the day', 'BBC News 2024', 'golden retriever')

    A tag that may be a single word is not changed:

    >>> tag_words("tbt"), tag_words("schönerhund")
    ('tbt', 'schönerhund')
    """
    pieces = _CAMEL.findall(tag)
    return " ".join(_split_joined_words(piece) for piece in pieces)


@cache
def _split_joined_words(word: str) -> str:
    """Split joined lower-case words by English word frequencies; return the word unchanged if the split looks wrong."""
    if not (word.isascii() and word.islower() and len(word) > 3):
        return word
    import wordninja  # reads its word list on import (60 ms), and few data sets need it

    words = wordninja.split(word)
    return " ".join(words) if all(len(w) > 2 or w in _SHORT for w in words) else word


def _replace_emoji(text: str, rule: str) -> str:
    """Put spaces around emoji (`keep`), replace them by their names (`words`, repeated ones once), or drop them.

    The spaces matter because a tokenizer that lacks an emoji maps the whole word attached to it to the unknown token.
    """
    if text.isascii():
        return text
    pieces, end, last = [], 0, ""
    for match in emoji.emoji_list(text):
        if match["emoji"] in _LETTERS:
            continue
        between = text[end : match["match_start"]]
        word = {"keep": match["emoji"], "words": emoji_name(match["emoji"])}.get(rule, "")
        repeated = rule == "words" and word == last and not _LEFTOVERS.sub("", f" {between} ").strip()
        pieces += [between, " "] if repeated else [between, f" {word} "]
        end, last = match["match_end"], word
    text = "".join([*pieces, text[end:]])
    return text if rule == "keep" else _LEFTOVERS.sub("", text)


@cache
def emoji_name(symbol: str) -> str:
    """Return an emoji's name without its skin tone: "red heart", "thumbs up"."""
    name = emoji.demojize(symbol, delimiters=("", ""))
    return _SKIN_TONE.sub("", name).replace("_", " ").strip() if name != symbol else ""


def caption_words(text: str) -> list[str]:
    """Return the words of a cleaned caption: tokens with a letter, a digit or an emoji.

    Each character counts as a word in scripts that are written without spaces, like Chinese.
    """
    return [word for word in space_characters(text).split() if any(map(str.isalnum, word)) or emoji.emoji_count(word)]
