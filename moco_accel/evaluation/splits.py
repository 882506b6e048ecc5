"""Which tiles learn and which test: by words in a column, by whole blocks of the Earth, or at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moco_accel.common.errors import UserError
from moco_accel.evaluation.split_rule import SplitRule

TRAIN_WORDS, TEST_WORDS = ("train", "training"), ("test", "testing")
VALIDATION_WORDS = ("val", "valid", "validation", "dev")
_DRAWS = 200  # of blocks, until every class is on both sides
_EDGE = 1e-6  # of a tile; one that ends on a block's edge is within it


@dataclass(frozen=True)
class Split:
    """Indices int64 [N] and [M] of the tiles that learn and of those that test; `left_out` tiles are in neither."""

    train: Tensor
    test: Tensor
    left_out: int = 0


def split_by_words(words: Sequence[str | None], option: str) -> tuple[Split, str | None]:
    """Tiles by `train` and `test` (or, without it, `val`) in `words`; and a line on what is left out.

    Raises UserError, beginning with `option`, when a word is none of these or a side is empty.
    """
    sides = [_side(word) for word in words]
    unknown = sorted({str(word) for word, side in zip(words, sides, strict=True) if side is None})
    if unknown:
        named = ", ".join(repr(word) for word in unknown[:5]) + (" …" if unknown[5:] else "")
        raise UserError(f"{option}: {named} is neither train, val nor test; a column of those words works")
    test_side = "test" if "test" in sides else "val"
    for side, others in (("train", "test or val"), (test_side, "train")):
        if side not in sides:
            raise UserError(f"{option}: no tile is of {side}; tiles of both train and {others} work")
    train, test = _where(sides, "train"), _where(sides, test_side)
    left_out = len(sides) - len(train) - len(test)
    said = f"{left_out:,} tiles of val are left out" if left_out else None
    if test_side == "val":
        said = "no tile is of test: val is the test side"
    return Split(train, test, left_out), said


def split_at_random(labels: Tensor, share: float, seed: int) -> Split:
    """`share` of each class to test, drawn by `seed`; at least one tile on either side of a class of two or more."""
    generator = torch.Generator().manual_seed(seed)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        count = min(len(members) - 1, max(1, round(share * len(members))))
        is_test[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return Split((~is_test).nonzero().flatten(), is_test.nonzero().flatten())


def blocks_of(extents: Tensor, rule: SplitRule) -> Tensor:
    """Which block holds each corner: int64 [N, 4] of extents float64 [N, 4] (west, south, east, north in degrees)."""
    west, south, east, north = extents.unbind(dim=1)
    edge_x, edge_y = _EDGE * (east - west), _EDGE * (north - south)
    x = torch.stack([west + edge_x, east - edge_x], dim=1)
    y = torch.stack([south + edge_y, north - edge_y], dim=1)
    if rule.degrees is not None:
        cols, rows = ((values / rule.degrees).floor().long() for values in (x, y))
    else:
        cols, rows = (_cell(values, count) for values, count in ((x, rule.cols), (y, rule.rows)))
    most = 1 << 24  # more than there are blocks side by side
    return (rows[:, [0, 0, 1, 1]] * most + cols[:, [0, 1, 0, 1]]).long()


def split_by_blocks(blocks: Tensor, labels: Tensor, share: float, seed: int, rule: SplitRule) -> Split:
    """Whole blocks to test until they hold about `share` of the tiles, drawn by `seed`.

    `blocks` [N, 4] are those of a tile's corners; a tile with corners on both sides is left out. Draws are repeated
    until every class is on both sides. Raises UserError when none is found.
    """
    numbers, corners = blocks.unique(return_inverse=True)
    counts = torch.bincount(corners[:, 0], minlength=len(numbers))
    if len(numbers) < 2:
        raise UserError(f"--split={rule.text!r}: all tiles lie in one block; {_smaller(rule)} works")
    generator = torch.Generator().manual_seed(seed)
    classes = labels.unique()
    for _ in range(_DRAWS):
        order = torch.randperm(len(numbers), generator=generator)
        held = counts[order].cumsum(dim=0)
        cut = int((held - share * len(labels)).abs()[:-1].argmin()) + 1
        is_test_block = torch.zeros(len(numbers), dtype=torch.bool)
        is_test_block[order[:cut]] = True
        corner_is_test = is_test_block[corners]
        test, train = corner_is_test.all(dim=1), ~corner_is_test.any(dim=1)
        if all(len(labels[side].unique()) == len(classes) for side in (train, test)):
            left_out = int((~test & ~train).sum())
            return Split(train.nonzero().flatten(), test.nonzero().flatten(), left_out)
    raise UserError(
        f"--split={rule.text!r}: in {_DRAWS} draws over {len(numbers)} blocks some class was always on one side alone; "
        f"smaller blocks, e.g. {_smaller(rule)}, or --test-share 0.5 may work"
    )


def check_split(split: Split, labels: Tensor, names: Sequence[str], option: str) -> None:
    """Raises UserError, beginning with `option`, when a side lacks a class or has too few tiles to learn from."""
    train, test = (torch.bincount(labels[side], minlength=len(names)) for side in (split.train, split.test))
    there = [number for number in range(len(names)) if train[number] + test[number]]
    if len(there) < 2:
        what = f"one class alone ({names[there[0]]!r})" if there else "no class"
        raise UserError(f"{option}: the tiles are of {what}; tiles of two classes or more work")
    for number in there:
        for counts, side in ((train, "train"), (test, "test")):
            if not counts[number]:
                raise UserError(
                    f"{option}: class {names[number]!r} has no tile to {side}; tiles of each class on both sides work"
                )
        if train[number] < 2:
            raise UserError(f"{option}: class {names[number]!r} has one tile to train; two or more of each class work")


def _smaller(rule: SplitRule) -> str:
    if rule.degrees is not None:
        return f"--split block:{rule.degrees / 4:.3g}"
    return f"--split block:{2 * rule.rows}x{2 * rule.cols}"


def _cell(values: Tensor, count: int) -> Tensor:
    """Which of `count` equal parts of the whole extent holds each value."""
    low, high = values.min(), values.max()
    return ((values - low) / (high - low).clamp_min(1e-12) * count).floor().clamp(0, count - 1).long()


def _side(word: str | None) -> str | None:
    known = {"train": TRAIN_WORDS, "test": TEST_WORDS, "val": VALIDATION_WORDS}
    text = (word or "").strip().lower()
    return next((side for side, words in known.items() if text in words), None)


def _where(sides: Sequence[str | None], side: str) -> Tensor:
    return torch.tensor([index for index, other in enumerate(sides) if other == side])
