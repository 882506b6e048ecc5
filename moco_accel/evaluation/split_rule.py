"""Parse the `--split` option of moco-eval, without importing torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from moco_accel.common.errors import UserError


@dataclass(frozen=True)
class SplitRule:
    """How `--split` divides labelled tiles into a training and a test set.

    Attributes:
        text: The option as given.
        column: Column that names the set of each tile.
        degrees: Side of a block in degrees; None for a grid.
        rows, cols: Rows and columns of a grid of blocks over all tiles.
    """

    kind: Literal["column", "folder", "block", "random"]
    text: str
    column: str = ""
    degrees: float | None = None
    rows: int = 0
    cols: int = 0

    @property
    def uses_seed(self) -> bool:
        """Return whether the split depends on a random seed."""
        return self.kind in ("block", "random")


def parse_split(text: str) -> SplitRule:
    """Parse `column:NAME`, `folder`, `block:DEGREES`, `block:ROWSxCOLS` or `random`.

    Raises:
        UserError: If `text` is none of these, or a block is too small or too large.
    """
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
        rule = "a block has 0.0001 to 90 degrees, and a grid ROWSxCOLS has at least two blocks"
        raise UserError(f"--split={text!r}: {rule}; --split block:5 or --split block:8x8 works")
    examples = "--split column:split, folder, block:5, block:8x8 or random"
    raise UserError(f"--split={text!r} is not a kind of split; {examples} works")
