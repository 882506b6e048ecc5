"""Frozen features judged: kNN, linear probe, splits, baselines, pictures. The command is `moco-eval`."""
