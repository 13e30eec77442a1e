"""The last decision of `promote` about a registered version: its tags, and the same in words."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipeline.tracking import registry

DECISION = "gate.decision"
REASONS = "gate.reasons"
AT = "gate.at"  # in whole seconds
AGAINST = "gate.against"  # the version that it was compared with
WAITS = "waits"  # the decision about a version that waits for a person's approval
APPROVED_BY = "gate.approved_by"
APPROVED_AT = "gate.approved_at"
VOTES = "people.votes"  # what people think of the version, see serving/feedback.py
CORRECTIONS = "people.corrections"

_PEOPLE = {VOTES: "Votes", CORRECTIONS: "Captions that people judged"}
_SPECIAL = re.compile(r"([^\w\s])")  # a person's name must not become markup


def in_words(tags: Mapping[str, str]) -> str:
    """Return the decision with its reasons (Markdown)."""
    people = "".join(f"\n\n{label}: {tags[key]}." for key, label in _PEOPLE.items() if key in tags)
    decision = tags.get(DECISION)
    if decision is None:
        return f"Not decided yet: `image-captioning promote` compares this version with the champion.{people}"
    other = f"version {tags[AGAINST]}" if AGAINST in tags else "no other version"
    outcome = {
        "first": "Promoted as the first champion",
        "promoted": f"Promoted in place of {other}",
        "kept": f"Refused; the champion is {other}" if AGAINST in tags else "Refused; there is no champion",
        "stays": f"Stays champion; {other} is refused",
        "replaced": f"Replaced by {other}",
        WAITS: f"Waits for approval; the champion is {other}" if AGAINST in tags else "Waits for approval",
    }.get(decision, decision)
    text = f"**{outcome}** ({tags.get(AT, 'unknown time')}).\n\nReasons: {tags.get(REASONS, 'unknown')}."
    if APPROVED_BY in tags:
        who = _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", tags[APPROVED_BY])
        text += f"\n\n**Approved by {who}** ({tags.get(APPROVED_AT, 'unknown time')})."
    if registry.ROLLED_BACK in tags:
        text += f"\n\n**Rolled back** ({tags[registry.ROLLED_BACK]})."
    return text + people
