"""Look at tiles before training: `moco-data inspect` and `moco-data preview`."""
