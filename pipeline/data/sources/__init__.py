"""Reading what people bring: archives, tables, and the layouts of captions files."""
