"""The commands for people: each reads files or the registry, and prints what a person asked for."""
