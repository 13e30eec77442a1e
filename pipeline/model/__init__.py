"""The GIT model: its checkpoints, its batches, its loss, and the captioner that uses it."""
