"""GPUs by name and by size, the memory each leaves for training, and the cards of a run."""
