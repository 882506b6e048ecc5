"""Inspect tiles before training: `moco-data inspect` and `moco-data preview`."""
