"""How a stage runs: entry point, locks, processes, atomic files, progress. Decides no result."""
