"""Save people's votes between two versions in data/votes/votes.jsonl.

A person sees the captions of the champion and of a challenger side by side, without their names, and votes. A vote is
saved when it is on the disk, see `journal.py`. Votes judge versions and train nothing: no stage reads them, so a vote
makes no result stale. The pictures are not kept, only their SHA-256.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.config import paths
from pipeline.data.images import identity
from pipeline.serving.corrections import MAX_NAME_CHARACTERS, checked_text
from pipeline.serving.journal import Journal

FILE = Path("data/votes/votes.jsonl")
_LOCK = paths.WORK / "locks" / "votes.lock"

Choice = Literal["champion", "challenger", "tie", "neither"]


class Vote(BaseModel):
    """What a person thinks of two captions of a picture.

    Attributes:
        id: identifies the vote.
        at: time in UTC, ISO 8601.
        who: the person.
        sha256: of the picture's raw bytes.
        model: name of the registered model.
        champion: the version that was champion then.
        challenger: the other version.
        said: the champion's caption.
        challenger_said: the challenger's caption.
        first: which of them was shown first.
        choice: the better one; `tie` if both are good, `neither` if both are bad.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    id: Annotated[str, Field(min_length=1)]
    at: str
    who: Annotated[str, Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    model: str
    champion: int
    challenger: int
    said: str
    challenger_said: str
    first: Literal["champion", "challenger"]
    choice: Choice

    @property
    def question(self) -> tuple[str, str, str, int, int]:
        """Equal for two votes of which the later replaces the earlier."""
        return self.who, self.sha256, self.model, *sorted((self.champion, self.challenger))  # type: ignore[return-value]


@dataclass(frozen=True)
class Pair:
    """Two captions of a picture that a person compares.

    Attributes:
        model: name of the registered model.
        champion, challenger: the versions.
        said, challenger_said: what they say.
    """

    model: str
    champion: int
    challenger: int
    said: str
    challenger_said: str

    def first(self, who: str, sha256: str) -> Literal["champion", "challenger"]:
        """Return whose caption a person sees first: either one for half of the pictures, the same at every visit."""
        draw = hashlib.sha256(f"{who} {sha256} {self.champion} {self.challenger}".encode("utf-8", "replace")).digest()
        return "champion" if draw[0] % 2 else "challenger"


class Votes:
    """The votes of a workspace. Threads and processes may share the file."""

    def __init__(self, file: Path = FILE, lock: Path = _LOCK) -> None:
        self._journal = Journal(file, lock)

    def cast(self, who: str, picture: bytes, pair: Pair, choice: Choice) -> Vote:
        """Save a vote and return it once it is on the disk. It replaces the person's earlier vote about the same two.

        Raises:
            DataError: the name can't be used.
            TemporaryError: the disk is full; nothing was saved.
        """
        who, sha256 = checked_text(who, "your name", MAX_NAME_CHARACTERS), identity(picture)
        vote = Vote(
            id=uuid.uuid4().hex,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            who=who,
            sha256=sha256,
            model=pair.model,
            champion=pair.champion,
            challenger=pair.challenger,
            said=pair.said,
            challenger_said=pair.challenger_said,
            first=pair.first(who, sha256),
            choice=choice,
        )
        with self._journal.locked():
            before = _counting(_parsed(self._journal.lines(sha256))).get(vote.question)
            if before and before.model_copy(update={"id": vote.id, "at": vote.at}) == vote:
                return before
            self._journal.append(vote.model_dump_json())
        return vote

    def read(self) -> list[Vote]:
        """Return all votes in the order in which they were saved."""
        with self._journal.locked():
            return _parsed(self._journal.lines())

    def counting(self) -> list[Vote]:
        """Return the votes that were not replaced by their author."""
        return list(_counting(self.read()).values())

    def forget(self, who: str) -> int:
        """Delete the votes of a person, and return how many there were."""
        with self._journal.locked():
            lines = self._journal.lines()
            kept = [line for line in lines if not any(vote.who == who for vote in _parsed([line]))]
            if len(kept) < len(lines):
                self._journal.rewrite(kept)
        return len(lines) - len(kept)


def _parsed(lines: Iterable[bytes]) -> list[Vote]:
    found = []
    for line in lines:
        with suppress(ValidationError):
            found.append(Vote.model_validate_json(line.decode("utf-8", "replace")))
    return found


def _counting(votes: Iterable[Vote]) -> dict[tuple[str, str, str, int, int], Vote]:
    return {vote.question: vote for vote in votes}


@dataclass(frozen=True)
class Tally:
    """The votes about a version against another.

    Attributes:
        version, other: the versions.
        better, worse, tie, neither: how many votes say so of `version`.
        people: how many people voted.
        interval: 95 % confidence interval of the share of `better` among `better` and `worse` (Wilson's score
            interval). Votes of one person are not independent, so it is rather too narrow.
    """

    version: int
    other: int
    better: int
    worse: int
    tie: int
    neither: int
    people: int
    interval: tuple[float, float]

    def __str__(self) -> str:
        """Return the tally in words."""
        decided = self.better + self.worse
        share = ""
        if decided:
            low, high = self.interval
            share = f" ({self.better / decided:.0%} preferred it, 95% interval {low:.0%} to {high:.0%})"
        return (
            f"against version {self.other}: {self.better} better, {self.worse} worse, {self.tie} both good,"
            f" {self.neither} both bad, by {self.people} {'person' if self.people == 1 else 'people'}{share}"
        )


def tallies(votes: Iterable[Vote], model: str) -> dict[int, list[Tally]]:
    """Return for each version its votes against each other version.

    Args:
        votes: those that count.
        model: name of the registered model; votes about others are left out.
    """
    from scipy.stats import binomtest

    counts: dict[tuple[int, int], Counter[str]] = {}
    people: dict[tuple[int, int], set[str]] = {}
    for vote in votes:
        if vote.model != model:
            continue
        sides = {"champion": (vote.champion, vote.challenger), "challenger": (vote.challenger, vote.champion)}
        for side, pair in sides.items():
            outcome = vote.choice if vote.choice in ("tie", "neither") else "better" if vote.choice == side else "worse"
            counts.setdefault(pair, Counter())[outcome] += 1
            people.setdefault(pair, set()).add(vote.who)
    found: dict[int, list[Tally]] = {}
    for (version, other), count in sorted(counts.items()):
        decided = count["better"] + count["worse"]
        interval = (0.0, 1.0)
        if decided:
            estimated = binomtest(count["better"], decided).proportion_ci(0.95, "wilson")
            interval = (float(estimated.low), float(estimated.high))
        better, worse, tie, neither = (count[key] for key in ("better", "worse", "tie", "neither"))
        tally = Tally(version, other, better, worse, tie, neither, len(people[version, other]), interval)
        found.setdefault(version, []).append(tally)
    return found
