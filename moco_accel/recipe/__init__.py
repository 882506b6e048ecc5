"""The recipe, the one contract between planner and trainer: its fields, its rules, and its text.

Imports no torch, so that `--help` and errors come at once. A field is declared in `schema`, `data_sections` or
`hardware_sections`; a rule across fields stands in `rules`.
"""
