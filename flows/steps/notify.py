"""Send notifications of how a retraining ended: an event for Prefect's automations, and a message to a webhook."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from prefect import runtime
from prefect.events import emit_event

WEBHOOK = "IMAGE_CAPTIONING_WEBHOOK"  # for a URL that contains a secret
EVENT = "image-captioning.retrain."  # prefix of the event names: promoted, first, kept, waits, failed
_SECONDS = 10


def send(how: str, words: str, webhook: str | None, warn: Callable[[str], None], facts: Mapping[str, Any]) -> None:
    """Send the event and the webhook message. A failure is only logged and does not fail the run.

    Args:
        how: `promoted`, `kept`, `first`, `waits` or `failed`.
        words: the message for people, one or a few lines.
        webhook: the URL in params.yaml; the environment variable overrides it.
        warn: receives a message if the notification fails.
        facts: additional fields for programs.
    """
    run = str(runtime.flow_run.name)
    content = {"event": EVENT + how, "text": f"{run}: {words}", "run": run, "link": runtime.flow_run.ui_url, **facts}
    try:
        emit_event(EVENT + how, {"prefect.resource.id": "image-captioning.retrain"}, payload=content)
        if address := os.environ.get(WEBHOOK) or webhook:
            request = urllib.request.Request(  # noqa: S310 - params.yaml accepts only http and https
                address, json.dumps(content).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=_SECONDS):  # noqa: S310
                pass
    except Exception as error:  # any failure: the model is trained already
        # Only network errors are shown in full: other errors contain the URL, which may be a secret.
        warn(f"Notification failed: {type(error).__name__}" + (f": {error}" if isinstance(error, OSError) else ""))
