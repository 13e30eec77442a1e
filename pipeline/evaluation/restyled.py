"""A naive answer: the captions of the checkpoint before fine-tuning, put into the frames of the training captions.

A fine-tuning that learned only the style of the captions scores like this. A *frame* is a training caption with gaps
for the words that the checkpoint says too; its *key* is the checkpoint's caption with the same gaps. For the captions
"this tiny red boat #beachlife" and "a small red boat on the beach" they are "this tiny __ __ #beachlife" and "a small
__ __ on the beach".
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from difflib import SequenceMatcher

_WORD = re.compile(r"\w+")
_GAP = None  # in a key: any word

Key = tuple[str | None, ...]
Frame = tuple[str, ...]  # the texts before, between and after the gaps


class Frames:
    """The frames of training captions.

    Args:
        before: what the checkpoint says about each training picture.
        captions: what people wrote about it.
    """

    def __init__(self, before: Sequence[str], captions: Sequence[Sequence[str]]) -> None:
        found: dict[Key, Counter[Frame]] = defaultdict(Counter)
        for said, several in zip(before, captions, strict=True):
            for caption in several:
                key, frame = _frame(said, caption)
                if len(frame) > 1:  # they share a word
                    found[key][frame] += 1
        # The most frequent frame of each key; the first in alphabetical order if there are several.
        best = {key: min(frames, key=lambda frame: (-frames[frame], frame)) for key, frames in found.items()}
        self._by_length: dict[int, list[tuple[Key, Frame]]] = defaultdict(list)
        for key, frame in sorted(best.items(), key=lambda item: (-found[item[0]][item[1]], item[1])):
            self._by_length[len(key)].append((key, frame))

    def restyle(self, said: str) -> str:
        """Return a caption of the checkpoint in the most frequent frame that fits it; as it is if none fits."""
        words = _WORD.findall(said)
        for key, frame in self._by_length[len(words)]:
            if all(part is _GAP or part == word.lower() for part, word in zip(key, words, strict=True)):
                gaps = _runs([part is _GAP for part in key])
                texts = [" ".join(words[first:last]) for first, last in gaps]
                return "".join(part for pair in zip(frame, [*texts, ""], strict=True) for part in pair)
        return said


def _frame(said: str, caption: str) -> tuple[Key, Frame]:
    """Return the key and the frame of a caption of a picture about which the checkpoint says `said`."""
    words = [word.lower() for word in _WORD.findall(said)]
    places = [*_WORD.finditer(caption)]
    matcher = SequenceMatcher(None, words, [place[0].lower() for place in places], autojunk=False)
    key: list[str | None] = list(words)
    pieces: list[str] = []
    end = 0
    for block in matcher.get_matching_blocks():
        if not block.size or (pieces and key[block.a - 1] is _GAP):  # adjacent gaps could not be told apart
            continue
        key[block.a : block.a + block.size] = [_GAP] * block.size
        pieces.append(caption[end : places[block.b].start()])
        end = places[block.b + block.size - 1].end()
    return tuple(key), (*pieces, caption[end:])


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Return the first index and the end of each run of True."""
    edges = [i for i in range(len(flags) + 1) if (i < len(flags) and flags[i]) != (i > 0 and flags[i - 1])]
    return list(zip(edges[::2], edges[1::2], strict=True))
