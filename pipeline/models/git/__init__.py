"""GIT: a transformer that captions pictures (Wang et al. 2022)."""
