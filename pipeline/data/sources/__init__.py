"""Read raw sources: archives, delimited text, and one module per layout of captions files."""
