"""Params, paths and errors: the ground floor, which every other part may import."""
