"""GPUs by name and by size, and how many of them a run has."""
