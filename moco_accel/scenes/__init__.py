"""Scenes: find the files of each, read their bands and grid from headers, and read windows."""
