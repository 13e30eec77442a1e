"""Training: the loop, its states, loading, optimization, augmentation, the feature cache."""
