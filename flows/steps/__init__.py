"""The steps of retraining beside the stages."""
