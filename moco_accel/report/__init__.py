"""Summarise a run and draw its curves. The command is `moco-report`."""
