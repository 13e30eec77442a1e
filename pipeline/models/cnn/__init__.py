"""Captioners on an ImageNet CNN: recurrent decoders, and GIT's decoder."""
