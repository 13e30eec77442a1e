"""Tell others how a retraining ended: an event that Prefect's automations can act on, and a message to a webhook."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from prefect import runtime
from prefect.events import emit_event

WEBHOOK = "IMAGE_CAPTIONING_WEBHOOK"  # an address that holds a secret
EVENT = "image-captioning.retrain."  # begins the names of the events: promoted, kept, failed
_SECONDS = 10


def tell(how: str, words: str, webhook: str | None, warn: Callable[[str], None], facts: Mapping[str, Any]) -> None:
    """Tell others. Where that fails it is said, and the run is none the worse for it.

    Args:
        how: `promoted`, `kept`, `first` or `failed`.
        words: a line or a few for people.
        webhook: the address of params.yaml; the one of the environment counts before it.
        warn: is given what failed.
        facts: more for programs.
    """
    run = str(runtime.flow_run.name)
    content = {"event": EVENT + how, "text": f"{run}: {words}", "run": run, "link": runtime.flow_run.ui_url, **facts}
    try:
        emit_event(EVENT + how, {"prefect.resource.id": "image-captioning.retrain"}, payload=content)
        if address := os.environ.get(WEBHOOK) or webhook:
            request = urllib.request.Request(  # noqa: S310 - params.yaml takes http and https only
                address, json.dumps(content).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=_SECONDS):  # noqa: S310
                pass
    except Exception as error:  # whatever it is, the model is trained
        # Others than of the network name the address, which may be a secret.
        warn(f"Notification failed: {type(error).__name__}" + (f": {error}" if isinstance(error, OSError) else ""))
