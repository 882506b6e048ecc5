"""Many names in little memory."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np


class PackedNames:
    """Many names in two objects: a list of a million would grow in every loader worker that counts references."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]])
