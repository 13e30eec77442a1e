"""What people say of a scene: the plain words that `git-demo` learned, and the voices of an Instagram feed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.synthetic.scenes import Scene, Thing

# Words, in hashtags too, and emoji; other signs between words do not part them.
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s!-/:-@\[-`{-~\u2000-\u206f\ufe0f]")


def plain(scene: Scene) -> str:
    """The scene in full and plain words: "a small red boat left of a big blue lighthouse on the beach"."""
    things = " left of ".join(f"a {thing.size} {thing.colour} {thing.kind}" for thing in scene.things)
    return f"{things} {scene.place.where}"


def bare(scene: Scene) -> str:
    """As `plain`, without sizes and colours: "a boat left of a lighthouse on the beach"."""
    things = " left of ".join(f"a {thing.kind}" for thing in scene.things)
    return f"{things} {scene.place.where}"


@dataclass(frozen=True)
class _Mood:
    """How a feed speaks of a place."""

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


_PEOPLE: tuple[Callable[[Scene, _Mood], str], ...] = (_dreamer, _finder, _poet, _fan, _shouter)


def instagram(scene: Scene, rng: random.Random) -> list[str]:
    """What two to five different people wrote below the picture, each in a voice of their own.

    Every voice names the colour and the kind of every thing, side by side as in "red boat".
    """
    people = rng.sample(_PEOPLE, rng.randint(2, len(_PEOPLE)))
    return [person(scene, _MOODS[scene.place.where]) for person in people]


def names_all(caption: str, scene: Scene) -> bool:
    """Whether a caption names the colour and the kind of every thing, in exact words side by side.

    >>> from pipeline.synthetic.scenes import PLACES
    >>> boat = Scene(PLACES["beach"], (Thing("small", "red", "boat", left=0.1, top=0.5, side=0.3),))
    >>> names_all("Look, a red boat!", boat), names_all("a red sail on a boat", boat)
    (True, False)
    """
    words = " ".join(_WORD.findall(caption.lower()))
    return all(f" {_short(thing)} " in f" {words} " for thing in scene.things)
