"""Captions -> words to score, as coco-caption tokenizes each caption alone.

coco-caption passes all captions through Stanford's tokenizer as one file, one line each. There, a caption with a line
separator other than the line feed shifts all later captions to wrong pictures. Here each caption is tokenized alone,
and every line separator counts as a space.
"""

from __future__ import annotations

import re

from pipeline.evaluation.ptb import tokenizer

TOKENIZER = "Penn Treebank, as in coco-caption (Stanford CoreNLP 3.4.1, lower case, its punctuation dropped)"

# coco-caption's list, without "-LRB-" and the like: brackets are lower case ("-lrb-") by then and never match.
_PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", ""])

_LINE_SEPARATORS = re.compile("[\n\r\v\f\u2028\u2029]")
_PLAIN = re.compile(r"[a-zA-Z]+[,!?]?|[a-zA-Z]{2,}\.")
# The tokens of such a chunk between spaces may depend on the next chunk: a number may continue, an abbreviation may end
# the sentence, a tag may begin.
_OPEN = re.compile(r".*(?:<.*|[\d).]|\s.*)", re.DOTALL)
_LONGEST, _MOST = 64, 200_000  # cache limits: characters per chunk, number of chunks


def ptb_tokenize(caption: str) -> list[str]:
    """Return the words of a caption.

    Telephone numbers and numbers with a fraction are one token, with no-break spaces.

    >>> ptb_tokenize("A dog's ball, on the grass!")
    ['a', 'dog', "'s", 'ball', 'on', 'the', 'grass']
    """
    try:
        # Most captions consist of known chunks, apart from the " ." at the end of Flickr's captions.
        return [word for chunk in caption.removesuffix(" .").split(" ") for word in _KNOWN[chunk]]
    except KeyError:
        return _read(_LINE_SEPARATORS.sub(" ", caption))


class _Chunks(dict[str, list[str]]):
    """Cache of the words of chunks; a chunk whose words depend on what follows raises KeyError."""

    def __missing__(self, chunk: str) -> list[str]:
        if _PLAIN.fullmatch(chunk) and (word := chunk.rstrip(".,!?").lower()) not in tokenizer.UNUSUAL:
            words = [word]
        elif len(chunk) > _LONGEST or _OPEN.fullmatch(chunk):
            raise KeyError(chunk)
        else:
            words = _scored(tokenizer.tokenize_line(chunk))
        if len(self) >= _MOST:
            self.clear()
        self[chunk] = words
        return words


_KNOWN = _Chunks({"": []})


def _read(line: str) -> list[str]:
    """Return the words of a line, read from left to right, using cached chunks."""
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
                place -= 1  # a run of white space is read at once
            place = tokenizer.tokenize_span(line, place, end, found)
    words = _scored(found)
    if words and line.rstrip(" ")[-1:].isspace():
        words[-1] = words[-1].rstrip()  # as coco-caption strips its lines; an address may end in an ideographic space
    return words


def _scored(tokens: list[str]) -> list[str]:
    return [token for token in tokens if token not in _PUNCTUATION]
