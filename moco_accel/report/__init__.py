"""Summarise a run and draw its curves, for `moco-report`."""
