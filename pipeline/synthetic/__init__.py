"""Synthetic scenes with captions: the sample data and the pretraining of `git-demo`. No stage imports this package."""
