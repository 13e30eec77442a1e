"""Scoring captions: metrics, intervals, baselines, the gate, the gallery."""
