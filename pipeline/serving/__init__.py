"""The captioning service, its client, and bulk captioning."""
