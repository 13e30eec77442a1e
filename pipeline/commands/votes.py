"""Show people's votes between versions."""

from __future__ import annotations

from pipeline.config.params import Params
from pipeline.serving import feedback
from pipeline.serving.votes import FILE, Votes


def show_votes(params: Params) -> str:
    """Print a line per pair of versions, tag the versions in MLflow, and return the last line to print.

    Raises:
        TemporaryError: MLflow can't be reached.
    """
    found = Votes().counting()
    if not found:
        return f"none in {FILE} yet; people vote on the page Caption of `image-captioning app`"
    for tally in feedback.tally_rows(found, params.register_.model):
        print(f"version {tally.version} {tally}")
    first = sum(vote.choice == vote.first for vote in found)
    decided = sum(vote.choice in ("champion", "challenger") for vote in found)
    if decided:
        print(f"the caption that was shown first was preferred in {first} of {decided} votes")
    feedback.publish(params)
    return f"{len(found)} votes in {FILE}; the tags of the versions in MLflow are up to date"
