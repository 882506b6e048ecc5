"""Trace the trainer's own step on fake tensors: each allocation, free, operation and message."""
