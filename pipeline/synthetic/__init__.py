"""Drawn pictures: what the sample and `git-demo` are made of. No stage imports it."""
