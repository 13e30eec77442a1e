"""Send the alarms of `image-captioning watch` to Prefect as events, each alarm of a week once.

`image-captioning watch` runs this when its report has an alarm. Alarms that were not sent, because no server was at
hand, are sent the next time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from flows.serve import deployment_name
from pipeline.commands.watch import REPORT
from pipeline.config import paths
from pipeline.runtime import process_identity
from pipeline.runtime.atomic_files import read_json, swapped_in, write_json

if TYPE_CHECKING:
    from prefect.events import Event

EVENT = "image-captioning.drift"
WORKSPACE = "image-captioning.workspace"  # label of the event's resource: the name of the workspace's deployments
SENT = REPORT.with_name("events.json")  # the alarms that Prefect has, by model and week
_ATTEMPTS = 2  # to reconnect, a second apart


def main() -> int:
    """Send the new alarms and print a line for each week, or why they were not sent. Return the exit code, 0."""
    argparse.ArgumentParser(prog="python -m flows.steps.drift_event", description=(__doc__ or "").strip()).parse_args()
    report, sent = read_json(REPORT), _sent()
    known: dict[str, list[str]] = sent.setdefault(report["model"], {})
    new = {
        week["week"]: fresh
        for week in report["weeks"]
        if (fresh := [name for name in week["alarms"] if name not in known.get(week["week"], [])])
    }
    if not new:
        return 0
    if not (address := _server()):
        _say(
            f"no Prefect server is at hand, so the drift of {', '.join(new)} is not sent as an event; set"
            " PREFECT_API_URL or start `image-captioning serve`, then run this again"
        )
        return 0
    weeks = {week["week"]: week for week in report["weeks"]}
    for name, fresh in new.items():
        try:
            _send(_event(report, weeks[name], fresh), address)
        except Exception as error:  # any failure of the network, or a server that refuses it
            why = str(error).partition("\n")[0] or type(error).__name__
            _say(f"{address}: the drift of {name} is not sent as an event ({why}); run this again when it answers")
            return 0
        known[name] = sorted({*known.get(name, []), *fresh})
        with swapped_in(SENT) as (place,):
            write_json(place, sent)
        _say(f"sent the event {EVENT} of {name} ({', '.join(fresh)}) to {address}")
    return 0


def _sent() -> dict[str, dict[str, list[str]]]:
    return read_json(SENT) if SENT.is_file() else {}


def _server() -> str | None:
    """Return the address of the API: the configured server, else that of this workspace's scheduler, else None."""
    from prefect.settings import PREFECT_API_URL

    if configured := PREFECT_API_URL.value():
        return str(configured)
    if not paths.SCHEDULE.is_file():
        return None
    schedule = read_json(paths.SCHEDULE)
    return f"{schedule['address']}/api" if process_identity.is_alive(schedule["process"]) else None


def _event(report: Mapping[str, Any], week: Mapping[str, Any], alarms: Sequence[str]) -> Event:
    from prefect.events import Event, Resource

    name, workspace = report["model"], deployment_name(Path.cwd())
    words = ", ".join(f"{word} {before:.0%} -> {now:.0%}" for word, before, now in week["words"][:3])
    return Event(
        # The same for the same alarms, so that the server keeps one of an event that is sent twice.
        id=uuid5(NAMESPACE_URL, json.dumps([EVENT, workspace, name, week["week"], sorted(alarms)])),
        event=EVENT,
        resource=Resource({"prefect.resource.id": name, "prefect.resource.name": name, WORKSPACE: workspace}),
        payload={
            "text": f"{week['week']}: drift of {' and '.join(alarms)} ({words})",
            "model": name,
            "version": report["version"],
            "week": week["week"],
            "pictures": week["pictures"],
            "alarms": list(alarms),
            "p_values": {alarm: week[f"p_{alarm}"] for alarm in alarms},
            "threshold": week["threshold"],
            "words": week["words"],
        },
    )


def _send(event: Event, address: str) -> None:
    """Send an event, and wait until the server has it; `emit_event` would not say whether it arrived."""
    from prefect.events.clients import get_events_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    async def emit() -> None:
        async with get_events_client(reconnection_attempts=_ATTEMPTS, checkpoint_every=1) as client:
            await client.emit(event)

    logging.getLogger("prefect").setLevel(logging.CRITICAL)  # our line says why it failed
    with temporary_settings({PREFECT_API_URL: address}):
        asyncio.run(emit())


def _say(message: str) -> None:
    print(f"watch: {message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
