"""Serve the page: `python -m app HOST PORT`. `image-captioning app` starts this, and it ends with its parent."""

from __future__ import annotations

import sys
from pathlib import Path

from streamlit import net_util
from streamlit.web import cli

from pipeline.runtime import process_identity
from pipeline.serving.corrections import MAX_PICTURE_BYTES

_GRACE_SECONDS = 5.0


def main(host: str, port: str) -> None:
    """Serve the page until SIGTERM. Nothing is sent or loaded from elsewhere."""
    process_identity.end_with(process_identity.starters(), _GRACE_SECONDS)
    # For a request from an unknown origin Streamlit would ask a server on the internet for this machine's address.
    net_util.get_external_ip = lambda: None
    options = {
        "server.address": host,
        "server.port": port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": f"{MAX_PICTURE_BYTES // 2**20}",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "theme.base": "light",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    sys.argv = ["streamlit", "run", str(Path(__file__).with_name("main.py")), *words]
    cli.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
