"""The last decision of `promote` about a registered version: its tags, and the same in words."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.tracking import registry

DECISION = "gate.decision"
REASONS = "gate.reasons"
AT = "gate.at"  # in whole seconds
AGAINST = "gate.against"  # the version that it was compared with


def in_words(tags: Mapping[str, str]) -> str:
    """Return the decision with its reasons (Markdown)."""
    decision = tags.get(DECISION)
    if decision is None:
        return "Not decided yet: `image-captioning promote` compares this version with the champion."
    other = f"version {tags[AGAINST]}" if AGAINST in tags else "no other version"
    outcome = {
        "first": "Promoted as the first champion",
        "promoted": f"Promoted in place of {other}",
        "kept": f"Refused; the champion is {other}" if AGAINST in tags else "Refused; there is no champion",
        "stays": f"Stays champion; {other} is refused",
        "replaced": f"Replaced by {other}",
    }.get(decision, decision)
    text = f"**{outcome}** ({tags.get(AT, 'unknown time')}).\n\nReasons: {tags.get(REASONS, 'unknown')}."
    if registry.ROLLED_BACK in tags:
        text += f"\n\n**Rolled back** ({tags[registry.ROLLED_BACK]})."
    return text
