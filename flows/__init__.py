"""When a stage runs, and again after a failure. Knows nothing of pictures or tensors."""

import os

# Prefect reads these when it is imported. A default run sends nothing to anybody, and the server that a flow
# starts for itself may take its time on a busy machine.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
