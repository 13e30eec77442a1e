"""The clone that retraining works in, its DVC repository and sources."""
