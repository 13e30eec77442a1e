"""Serve a registered model over HTTP."""

from __future__ import annotations

from pipeline.config.params import Params
from pipeline.serving.limits import token_for


def serve_model(params: Params, *, host: str, port: int, model: str | None, alias: str) -> str:
    """Serve captions until SIGTERM or Ctrl-C, and return the last line to print; see `server.serve`."""
    token_for(host)  # before torch is imported, which takes seconds
    print("serve-model: starting ...", flush=True)
    from pipeline.serving import server

    return server.serve(params, host=host, port=port, model=model, alias=alias)
