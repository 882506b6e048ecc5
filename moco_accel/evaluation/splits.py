"""Split labelled tiles into a training and a test set: by name, by whole blocks of the Earth, or at random."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from moco_accel.common.errors import UserError
from moco_accel.evaluation.split_rule import SplitRule

SET_NAMES = {"train": ("train", "training"), "test": ("test", "testing"), "val": ("val", "valid", "validation", "dev")}
_GRIDS = (2, 3, 4, 6, 8, 12, 16, 32, 64)  # rows and columns that are tried for a suggestion
_MAX_DRAWS = 200  # of blocks, until every class is in both sets
_EDGE_TOLERANCE = 1e-6  # of a tile's size; a tile that ends at the edge of a block is inside it
_MAX_COLUMNS = 1 << 24  # exceeds the number of blocks in a row


@dataclass(frozen=True)
class Split:
    """Indices of training and test tiles, int64 [N] and [M], and the number of tiles in neither set."""

    train: Tensor
    test: Tensor
    left_out: int = 0


def split_by_names(names: Sequence[str | None], option: str) -> tuple[Split, str | None]:
    """Split tiles by the name of their set: `train`, `test` or `val`.

    Returns:
        The split, and a note on the use of validation tiles. They are the test set if no tile is named `test`, and are
        left out otherwise.

    Raises:
        UserError: If a name is unknown or a set is empty.
    """
    sides = [_side_of(name) for name in names]
    unknown = sorted({str(name) for name, side in zip(names, sides, strict=True) if side is None})
    if unknown:
        listed = ", ".join(repr(name) for name in unknown[:5]) + (" …" if unknown[5:] else "")
        raise UserError(f"{option}: {listed} is neither train, val nor test; a column of those words works")
    test_side = "test" if "test" in sides else "val"
    for side, others in (("train", "test or val"), (test_side, "train")):
        if side not in sides:
            raise UserError(f"{option}: no tile is in {side}; tiles in both {side} and {others} work")
    train, test = _indices_of(sides, "train"), _indices_of(sides, test_side)
    left_out = len(sides) - len(train) - len(test)
    note = f"{left_out:,} validation tiles are left out" if left_out else None
    if test_side == "val":
        note = "no tile is in test: the validation tiles are the test set"
    return Split(train, test, left_out), note


def split_at_random(labels: Tensor, test_share: float, seed: int) -> Split:
    """Draw a share of each class for the test set, by labels int64 [tiles].

    A class of two or more tiles has at least one tile in each set; a class of one tile is in the training set.
    """
    generator = torch.Generator().manual_seed(seed)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        count = min(len(members) - 1, max(1, round(test_share * len(members))))
        is_test[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return Split((~is_test).nonzero().flatten(), is_test.nonzero().flatten())


def corner_blocks(extents: Tensor, rule: SplitRule) -> Tensor:
    """Return the number of the block that each corner of each tile is in, int64 [tiles, 4].

    `extents` are west, south, east and north of each tile in degrees, float64 [tiles, 4].
    """
    west, south, east, north = extents.unbind(dim=1)
    edge_x, edge_y = _EDGE_TOLERANCE * (east - west), _EDGE_TOLERANCE * (north - south)
    x = torch.stack([west + edge_x, east - edge_x], dim=1)
    y = torch.stack([south + edge_y, north - edge_y], dim=1)
    if rule.degrees is not None:
        cols, rows = ((values / rule.degrees).floor().long() for values in (x, y))
    else:
        cols, rows = (_grid_cells(values, count) for values, count in ((x, rule.cols), (y, rule.rows)))
    return (rows[:, [0, 0, 1, 1]] * _MAX_COLUMNS + cols[:, [0, 1, 0, 1]]).long()


def split_by_blocks(extents: Tensor, labels: Tensor, test_share: float, seed: int, rule: SplitRule) -> Split:
    """Draw whole blocks for the test set; repeat the draw until every class is in both sets.

    Args:
        extents: West, south, east and north of each tile in degrees, float64 [tiles, 4]. A tile with corners in both
            sets is left out.
        labels: Classes, int64 [tiles].
        test_share: Approximate share of test tiles.

    Raises:
        UserError: If all tiles are in one block, or no draw has every class in both sets.
    """
    split, blocks = _draw_blocks(extents, labels, test_share, seed, rule)
    if split is not None:
        return split
    if blocks < 2:
        why = "all tiles are in one block"
    else:
        why = f"in {_MAX_DRAWS} draws of {blocks} blocks, a class was missing from one set each time"
    raise UserError(f"--split={rule.text!r}: {why}; {_working_split(extents, labels, test_share, seed)}")


def _draw_blocks(
    extents: Tensor, labels: Tensor, test_share: float, seed: int, rule: SplitRule
) -> tuple[Split | None, int]:
    """Return the first draw with every class in both sets, or None; and the number of blocks."""
    numbers, corners = corner_blocks(extents, rule).unique(return_inverse=True)
    if len(numbers) < 2:
        return None, len(numbers)
    counts = torch.bincount(corners[:, 0], minlength=len(numbers))
    generator = torch.Generator().manual_seed(seed)
    classes = labels.unique()
    for _ in range(_MAX_DRAWS):
        order = torch.randperm(len(numbers), generator=generator)
        cumulative = counts[order].cumsum(dim=0)
        num_test_blocks = int((cumulative - test_share * len(labels)).abs()[:-1].argmin()) + 1
        is_test_block = torch.zeros(len(numbers), dtype=torch.bool)
        is_test_block[order[:num_test_blocks]] = True
        corner_is_test = is_test_block[corners]
        test, train = corner_is_test.all(dim=1), ~corner_is_test.any(dim=1)
        if all(len(labels[side].unique()) == len(classes) for side in (train, test)):
            left_out = int((~test & ~train).sum())
            return Split(train.nonzero().flatten(), test.nonzero().flatten(), left_out), len(numbers)
    return None, len(numbers)


def _working_split(extents: Tensor, labels: Tensor, test_share: float, seed: int) -> str:
    """Return a split that was tried on these tiles and works: the largest blocks of a grid over them, else a remedy."""
    names = [str(number) for number in range(int(labels.max()) + 1)]
    for count in _GRIDS:
        rule = SplitRule("block", f"block:{count}x{count}", rows=count, cols=count)
        split, _ = _draw_blocks(extents, labels, test_share, seed, rule)
        if split is not None:
            with suppress(UserError):
                check_split(split, labels, names, "")
                return f"--split {rule.text} works"
    return "no grid of blocks does; --split random needs no places, but tests on neighbours of training tiles"


def check_split(split: Split, labels: Tensor, names: Sequence[str], option: str) -> None:
    """Raise UserError, which names `option`, unless two or more classes have two training tiles and one test tile."""
    train, test = (torch.bincount(labels[side], minlength=len(names)) for side in (split.train, split.test))
    present = [number for number in range(len(names)) if train[number] + test[number]]
    if len(present) < 2:
        found = f"only one class ({names[present[0]]!r})" if present else "no class"
        raise UserError(f"{option}: the tiles have {found}; tiles of two or more classes work")
    for number in present:
        for counts, side in ((train, "training"), (test, "test")):
            if not counts[number]:
                raise UserError(
                    f"{option}: class {names[number]!r} has no {side} tile; tiles of each class in both sets work"
                )
        if train[number] < 2:
            raise UserError(f"{option}: class {names[number]!r} has one training tile; two or more of each class work")


def _grid_cells(values: Tensor, count: int) -> Tensor:
    """Divide the range of the values into `count` equal cells; return the cell of each value."""
    low, high = values.min(), values.max()
    return ((values - low) / (high - low).clamp_min(1e-12) * count).floor().clamp(0, count - 1).long()


def _side_of(name: str | None) -> str | None:
    text = (name or "").strip().lower()
    return next((side for side, names in SET_NAMES.items() if text in names), None)


def _indices_of(sides: Sequence[str | None], side: str) -> Tensor:
    return torch.tensor([index for index, other in enumerate(sides) if other == side])
