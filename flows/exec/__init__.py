"""Running stages and commands as Prefect tasks."""
