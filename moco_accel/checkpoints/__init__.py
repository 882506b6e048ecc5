"""A run's folder and its checkpoints: written, verified, resumed."""
