"""The contract between planner and trainer. Nothing here imports torch, so `--help` and errors appear at once."""
