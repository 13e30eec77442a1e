"""The captioning models, and what loads and runs them."""
