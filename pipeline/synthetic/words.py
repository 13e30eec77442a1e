"""Captions of a scene: the plain words that `git-demo` learns, and captions in the style of an Instagram feed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.synthetic.scenes import Scene, Thing

# A word (also within a hashtag) or an emoji; other characters between words are ignored.
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s!-/:-@\[-`{-~\u2000-\u206f\ufe0f]")


def plain(scene: Scene) -> str:
    """Return the full caption in plain words: "a small red boat left of a big blue lighthouse on the beach"."""
    things = " left of ".join(f"a {thing.size} {thing.colour} {thing.kind}" for thing in scene.things)
    return f"{things} {scene.place.where}"


def kinds_only(scene: Scene) -> str:
    """Return the plain caption without sizes and colours: "a boat left of a lighthouse on the beach"."""
    things = " left of ".join(f"a {thing.kind}" for thing in scene.things)
    return f"{things} {scene.place.where}"


@dataclass(frozen=True)
class _Mood:
    """Words, emoji and hashtags that a feed uses for a place."""

    where: str
    emoji: str
    tags: str


_MOODS = {
    "on the beach": _Mood("by the sea", "\N{WATER WAVE}", "#beachlife #saltyhair"),
    "in town": _Mood("downtown", "\N{NIGHT WITH STARS}", "#citylife #streetphoto"),
    "in the night sky": _Mood("up there tonight", "\N{SPARKLES}", "#stargazing #nightowl"),
    "on the kitchen table": _Mood("at home", "\N{HOT BEVERAGE}", "#homesweethome #cozy"),
    "in the meadow": _Mood("out in the green", "\N{HERB}", "#naturelover #fresh"),
}
_SIZES = {"small": "tiny", "big": "huge"}


def _short(thing: Thing) -> str:
    return f"{thing.colour} {thing.kind}"


def _sized(thing: Thing) -> str:
    return f"{_SIZES[thing.size]} {_short(thing)}"


def _dreamer(scene: Scene, mood: _Mood) -> str:
    what = " and this ".join(_sized(thing) for thing in scene.things)
    return f"{mood.emoji} {mood.where} with this {what} {mood.tags}"


def _finder(scene: Scene, mood: _Mood) -> str:
    what = " right next to a ".join(_short(thing) for thing in scene.things)
    return f"Look what I found {mood.where}: a {what}! \N{CAMERA} #nofilter"


def _poet(scene: Scene, mood: _Mood) -> str:
    what = " on the left, ".join(_short(thing) for thing in scene.things)
    return f"{what} kind of day \N{YELLOW HEART}\n.\n{mood.tags}"


def _fan(scene: Scene, mood: _Mood) -> str:
    what = " and that ".join(_sized(thing) for thing in scene.things)
    return f"can't stop looking at this {what} {mood.emoji}{mood.emoji} #instagood"


def _shouter(scene: Scene, mood: _Mood) -> str:
    what = " & the ".join(_sized(thing) for thing in scene.things)
    return f"The {what} {mood.where}!!! \N{SMILING FACE WITH HEART-SHAPED EYES} {mood.tags}"


_STYLES: tuple[Callable[[Scene, _Mood], str], ...] = (_dreamer, _finder, _poet, _fan, _shouter)


def instagram(scene: Scene, rng: random.Random) -> list[str]:
    """Return two to five captions, each in a different style.

    Every caption names the colour and kind of every thing next to each other, as in "red boat".
    """
    styles = rng.sample(_STYLES, rng.randint(2, len(_STYLES)))
    return [style(scene, _MOODS[scene.place.where]) for style in styles]


def names_all(caption: str, scene: Scene) -> bool:
    """Return whether a caption names the colour and kind of every thing, next to each other in exact words.

    >>> from pipeline.synthetic.scenes import PLACES
    >>> boat = Scene(PLACES["beach"], (Thing("small", "red", "boat", left=0.1, top=0.5, side=0.3),))
    >>> names_all("Look, a red boat!", boat), names_all("a red sail on a boat", boat)
    (True, False)
    """
    words = " ".join(_WORD.findall(caption.lower()))
    return all(f" {_short(thing)} " in f" {words} " for thing in scene.things)
