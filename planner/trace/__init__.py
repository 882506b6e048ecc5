"""Trace the trainer's own step on fake tensors: every allocation, free, operation and collective."""
