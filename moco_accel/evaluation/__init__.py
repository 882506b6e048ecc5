"""Evaluation on frozen features: kNN, linear probe, splits, baselines and pictures. The command is `moco-eval`."""
