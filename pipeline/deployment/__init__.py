"""The parts of a deployment: the servers, backups of their data, and restoring these."""
