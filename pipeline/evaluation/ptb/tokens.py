"""Captions -> words to score: what coco-caption makes of each caption, had it been given that one alone.

coco-caption writes all captions into one file, a line each, and takes the lines of Stanford's tokenizer back. A caption
with a line separator other than the line feed moves all later ones to wrong pictures there. Here a caption is tokenized
by itself, and every line separator is a space in it.
"""

from __future__ import annotations

import re

from pipeline.evaluation.ptb import tokenizer

TOKENIZER = "Penn Treebank, as in coco-caption (Stanford CoreNLP 3.4.1, lower case, its punctuation dropped)"

# coco-caption's list, without its "-LRB-" and the like, which never come: brackets are "-lrb-" by then, and stay.
_PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", ""])

_LINE_SEPARATORS = re.compile("[\n\r\v\f\u2028\u2029]")
_PLAIN = re.compile(r"[a-zA-Z]+[,!?]?|[a-zA-Z]{2,}\.")
# The tokens of such a chunk between spaces may depend on the next: a number may go on, an abbreviation may end the
# sentence, a tag may begin.
_OPEN = re.compile(r".*(?:<.*|[\d).]|\s.*)", re.DOTALL)
_LONGEST, _MOST = 64, 200_000  # characters of a chunk that is remembered; so many are


def ptb_tokenize(caption: str) -> list[str]:
    """The words of a caption.

    The tokens of a telephone number or of a number and a fraction hold no-break spaces.

    >>> ptb_tokenize("A dog's ball, on the grass!")
    ['a', 'dog', "'s", 'ball', 'on', 'the', 'grass']
    """
    try:
        # Most captions are of chunks that have been seen before, but for the full stop at the end of Flickr's.
        return [word for chunk in caption.removesuffix(" .").split(" ") for word in _KNOWN[chunk]]
    except KeyError:
        return _read(_LINE_SEPARATORS.sub(" ", caption))


class _Chunks(dict[str, list[str]]):
    """The words of chunks that were read before; of one whose words depend on what follows there is a KeyError."""

    def __missing__(self, chunk: str) -> list[str]:
        if _PLAIN.fullmatch(chunk) and (word := chunk.rstrip(".,!?").lower()) not in tokenizer.UNUSUAL:
            words = [word]
        elif len(chunk) > _LONGEST or _OPEN.fullmatch(chunk):
            raise KeyError(chunk)
        else:
            words = _scored(tokenizer.tokens(chunk))
        if len(self) >= _MOST:
            self.clear()
        self[chunk] = words
        return words


_KNOWN = _Chunks({"": []})


def _read(line: str) -> list[str]:
    """The words of a line, from left to right; what is known of its chunks is used."""
    found: list[str] = []
    place = 0
    while place < len(line):
        end = line.find(" ", place)
        end = len(line) if end < 0 else end
        try:
            found += _KNOWN[line[place:end]]
            place = end + 1
        except KeyError:
            if line[place].isspace() and line[place - 1 : place] == " ":
                place -= 1  # white space is read in one piece
            place = tokenizer.lex(line, place, end, found)
    words = _scored(found)
    if words and line.rstrip(" ")[-1:].isspace():
        words[-1] = words[-1].rstrip()  # as coco-caption strips its lines; an address may end in an ideographic space
    return words


def _scored(tokens: list[str]) -> list[str]:
    return [token for token in tokens if token not in _PUNCTUATION]
