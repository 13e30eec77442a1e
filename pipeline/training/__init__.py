"""Training: loop, states, data loading, optimization, augmentation and feature cache."""
