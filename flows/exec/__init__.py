"""Run stages and commands as Prefect tasks."""
