"""Measurements of real steps, and how far predictions may be off."""
