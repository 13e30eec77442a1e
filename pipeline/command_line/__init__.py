"""The declarations of the commands of `image-captioning`, a module per theme; `pipeline/cli.py` puts them together."""
