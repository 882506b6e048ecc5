"""How moco-eval is told to split labelled tiles: the words of `--split`, read without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from moco_accel.common.errors import UserError

Kind = Literal["column", "folder", "block", "random"]

_EXAMPLES = "--split column:split, folder, block:5, block:8x8 or random"


@dataclass(frozen=True)
class SplitRule:
    """`--split`: `column` of words; `degrees` per block, or a grid of `rows` × `cols` blocks over all tiles."""

    kind: Kind
    text: str
    column: str = ""
    degrees: float | None = None
    rows: int = 0
    cols: int = 0

    @property
    def is_drawn(self) -> bool:
        return self.kind in ("block", "random")


def parse_split(text: str) -> SplitRule:
    """`column:NAME`, `folder`, `block:DEGREES`, `block:ROWSxCOLS` or `random`. Raises UserError."""
    kind, _, rest = text.partition(":")
    if kind == "column" and rest:
        return SplitRule("column", text, column=rest)
    if text == "folder":
        return SplitRule("folder", text)
    if text == "random":
        return SplitRule("random", text)
    if kind == "block" and (grid := re.fullmatch(r"(\d{1,4})[x×](\d{1,4})", rest)):
        rows, cols = int(grid[1]), int(grid[2])
        if rows * cols >= 2:
            return SplitRule("block", text, rows=rows, cols=cols)
    if kind == "block" and re.fullmatch(r"\d+(\.\d+)?", rest) and 1e-4 <= float(rest) <= 90:
        return SplitRule("block", text, degrees=float(rest))
    if kind == "block":
        rule = "is no block of 0.0001 to 90 degrees, nor a grid of ROWSxCOLS with two blocks or more"
        raise UserError(f"--split={text!r} {rule}; --split block:5 or --split block:8x8 works")
    raise UserError(f"--split={text!r} is no way to split; {_EXAMPLES} works")
