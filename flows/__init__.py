"""When a stage runs, and again after a failure. Knows nothing of pictures or tensors."""

import os

# Prefect reads these when it is imported. A default run sends nothing to anybody, and the server that a flow
# starts for itself may take its time on a busy machine.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "true")
# Prefect's client repeats requests for about a minute, but not those answered with 500. A server answers so while its
# PostgreSQL restarts.
os.environ.setdefault("PREFECT_CLIENT_RETRY_EXTRA_CODES", "500")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
