"""Captioning models: architectures, loading, and captioning."""
