"""The recipe: the contract between planner and trainer. Fields are declared in `schema` and the `*_sections` files.

Rules between fields are in `rules`. Nothing here imports torch, so `--help` and errors appear at once.
"""
