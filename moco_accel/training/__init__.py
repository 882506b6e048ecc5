"""The training step, the training loop, and what a run logs, prints and evaluates."""
