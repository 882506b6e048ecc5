"""Shared basics: console, one-line errors, atomic files, drawing. Imports nothing else of this project."""
