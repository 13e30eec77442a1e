"""Serve a registered model over HTTP."""

from __future__ import annotations

from pipeline.config.params import Params


def serve_model(params: Params, *, host: str, port: int, model: str | None, alias: str) -> str:
    """Serve captions until SIGTERM or Ctrl-C, and return the last line to print; see `server.serve`."""
    print("serve-model: starting ...", flush=True)  # torch takes seconds to import
    from pipeline.serving import server

    return server.serve(params, host=host, port=port, model=model, alias=alias)
