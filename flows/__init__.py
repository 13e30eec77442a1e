"""When a stage runs, and again after a failure. Knows nothing of pictures or tensors."""
