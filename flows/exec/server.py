"""Run Prefect's server on this machine only, and end it with the scheduler that started it.

`image-captioning serve` starts this module. To start a server by hand, run `prefect server start`.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys

from pipeline.runtime import process_identity
from pipeline.runtime.workspace_lock import OWNER

_GRACE_SECONDS = 10.0


def main() -> None:
    """Run the server in this process. Does not return."""
    parser = argparse.ArgumentParser(prog="python -m flows.exec.server", description=(__doc__ or "").strip())
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    if owner := os.environ.pop(OWNER, None):
        process_identity.end_with([owner], _GRACE_SECONDS)
    # Otherwise Prefect's UI calls the default port, whatever port the server uses.
    os.environ.setdefault("PREFECT_UI_API_URL", f"http://127.0.0.1:{args.port}/api")
    sys.argv = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(args.port)]
    runpy.run_module("prefect", run_name="__main__")


if __name__ == "__main__":
    main()
