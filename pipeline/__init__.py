"""The work of the loop: paths and params in, files out. Knows neither DVC nor Prefect."""
