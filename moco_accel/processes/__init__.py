"""Start the ranks of a run, keep them in lockstep, watch them and stop them together."""
