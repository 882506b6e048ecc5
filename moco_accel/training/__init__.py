"""The training step, the loop around it, and what a run shows while it runs."""
