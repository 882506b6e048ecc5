"""Predict a step's memory: CUDA's allocator, replayed over a trace."""
