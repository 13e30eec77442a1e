"""Does a caption name the same colours, animals or other words of a group as people do?

CIDEr-D and its kin count all words, so a caption in the right style scores well even if it names the wrong thing. This
counts only the words that the user lists in `evaluate.named_words`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypedDict

from pipeline.data.scripts import are_unspaced
from pipeline.evaluation.diversity import recall

Groups = Mapping[str, Sequence[str | Sequence[str]]]  # name of the group -> its words; words in one list mean the same


class Named(TypedDict):
    """How well captions name the words of a group; None if there is nothing to count.

    Attributes:
        precision: of the words that a caption names, the share that a reference of its picture names too; the mean over
            captions that name any.
        recall: of the words that a reference names, the share that the caption names too; of several references the
            best counts; the mean over pictures with such a reference.
    """

    precision: float | None
    recall: float | None


class NamedWords:
    """Finds words of some groups in captions, in any case and whole: "red" is not found in "Fred" or "reddish".

    A longer phrase is found before a shorter one in it: of "out in the green" and "green", only the first.

    Args:
        groups: the words of each group, see `Groups`.
    """

    def __init__(self, groups: Groups) -> None:
        self._meaning: dict[str, tuple[str, str]] = {}  # a word -> its group, and the first of the words that mean it
        self.groups = tuple(groups)
        for group, entries in groups.items():
            for entry in entries:
                same = [entry] if isinstance(entry, str) else entry
                for word in same:
                    self._meaning[_plain(word)] = group, _plain(same[0])
        longest_first = sorted(self._meaning, key=lambda word: (-len(word), word))
        self._pattern = re.compile("|".join(map(_whole, longest_first)) or r"(?!)")

    def of(self, caption: str) -> dict[str, set[str]]:
        """Return what a caption names, by group; of words with the same meaning the first in their list."""
        found: dict[str, set[str]] = {group: set() for group in self.groups}
        for match in self._pattern.finditer(_plain(caption)):
            group, word = self._meaning[match[0]]
            found[group].add(word)
        return found

    def figures(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Named]:
        """Return precision and recall of each group.

        Args:
            captions: one per picture.
            references: one or more per picture.
        """
        return {group: self._figures(group, captions, references) for group in self.groups}

    def _figures(self, group: str, captions: Sequence[str], references: Sequence[Sequence[str]]) -> Named:
        shares = []
        for caption, several in zip(captions, references, strict=True):
            if named := self.of(caption)[group]:
                known = set().union(*(self.of(reference)[group] for reference in several))
                shares.append(len(named & known) / len(named))
        return {
            "precision": math.fsum(shares) / len(shares) if shares else None,
            "recall": recall(captions, references, lambda text: self.of(text)[group]),
        }


def _plain(text: str) -> str:
    """Return a text in lower case with single spaces."""
    return " ".join(text.casefold().split())


def _whole(word: str) -> str:
    """Return the pattern of a whole word; in scripts without spaces, words have no edges to look for."""
    pattern = re.escape(word)
    return pattern if are_unspaced(word) else rf"(?<!\w){pattern}(?!\w)"
