"""A run's folder and its checkpoints: write, verify, resume."""
