"""Retrain through Prefect: the deployment that `image-captioning serve` serves for this workspace.

Prefect is asked over its REST API, so that the page need not import it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from pipeline.config import paths
from pipeline.config.errors import TemporaryError
from pipeline.runtime import process_identity
from pipeline.runtime.atomic_files import read_json
from pipeline.serving.limits import is_loopback

_AUTH = "PREFECT_API_AUTH_STRING"  # environment: "user:password" of the server
_SECONDS = 10.0
_ACTIVE = ("PENDING", "RUNNING", "CANCELLING", "PAUSED")


@dataclass(frozen=True)
class Run:
    """A flow run of the deployment.

    Attributes:
        name: its name.
        state: the name of its state, like `Promoted` or `Running`.
        message: of its state.
        active: whether it runs or is about to.
        link: its page in Prefect.
    """

    name: str
    state: str
    message: str
    active: bool
    link: str


class Deployment:
    """The deployment `retrain/NAME` on a Prefect server.

    Attributes:
        pages: address of Prefect's pages, as a browser reaches them.
        name: `retrain/NAME`.

    Args:
        pages, name: see there.
        address: of the server, as this process reaches it, without `/api`; None: `pages`.
    """

    def __init__(self, pages: str, name: str, address: str | None = None) -> None:
        self.pages, self.name = pages, name
        self._address = address or pages

    def run(self) -> Run | None:
        """Return the newest run that has been started or asked for, or None.

        Raises:
            TemporaryError: Prefect can't be reached.
        """
        wanted = {
            "deployments": {"id": {"any_": [self._id()]}},
            "flow_runs": {
                "operator": "or_",
                "state": {"type": {"any_": [*_ACTIVE, "COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}},
                "id": {"any_": self._waiting()},
            },
            "sort": "EXPECTED_START_TIME_DESC",
            "limit": 1,
        }
        found = self._ask("POST", "flow_runs/filter", wanted)
        return self._run(found[0]) if found else None

    def start(self) -> Run:
        """Start a retraining; if one is active, return that one.

        Raises:
            TemporaryError: Prefect can't be reached.
        """
        newest = self.run()
        if newest and newest.active:
            return newest
        # Two clicks at once create one run: both know the same newest run.
        body = {"idempotency_key": f"page after {newest.link if newest else 'none'}"}
        return self._run(self._ask("POST", f"deployments/{self._id()}/create_flow_run", body))

    def _waiting(self) -> list[str]:
        """Return the ids of runs that somebody started and that the runner has not picked up yet."""
        wanted = {
            "deployments": {"id": {"any_": [self._id()]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
            "limit": 200,
        }
        return [run["id"] for run in self._ask("POST", "flow_runs/filter", wanted) if not run["auto_scheduled"]]

    def _id(self) -> str:
        return str(self._ask("GET", f"deployments/name/{self.name}")["id"])

    def _run(self, found: dict[str, Any]) -> Run:
        state = found["state"] or {}
        kind = state.get("type", "")
        active = kind in _ACTIVE or (kind == "SCHEDULED" and not found["auto_scheduled"])
        link = f"{self.pages}/runs/flow-run/{found['id']}"
        return Run(found["name"], state.get("name", ""), state.get("message") or "", active, link)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        name, _, password = os.environ.get(_AUTH, "").partition(":")
        try:
            answer = httpx.request(
                method,
                f"{self._address}/api/{path}",
                json=body,
                timeout=_SECONDS,
                auth=(name, password) if name else None,
                trust_env=not is_loopback(urlsplit(self._address).hostname or ""),  # no proxy to this machine
            )
            answer.raise_for_status()
            return answer.json()
        except (httpx.HTTPError, ValueError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise TemporaryError(f"Prefect at {self._address}: {reason}; try again, or restart the scheduler") from None


def served() -> Deployment | None:
    """Return the deployment of this workspace if `image-captioning serve` runs here, else None."""
    if not paths.SCHEDULE.is_file():
        return None
    schedule = read_json(paths.SCHEDULE)
    if not process_identity.is_alive(schedule["process"]):
        return None
    return Deployment(schedule["pages"], schedule["deployment"], schedule["address"])
