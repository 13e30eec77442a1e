"""The steps of retraining that are not stages."""
