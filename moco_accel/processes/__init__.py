"""The ranks of a run: how they start, agree before each collective, are watched, and stop together.

Nothing here computes; `networks.collectives` sends tensors.
"""
