"""Splits by name, by blocks and at random; errors in one line if tiles cannot be split."""

import pytest
import torch

from moco_accel.common.errors import UserError
from moco_accel.evaluation.split_rule import parse_split
from moco_accel.evaluation.splits import (
    Split,
    check_split,
    corner_blocks,
    split_at_random,
    split_by_blocks,
    split_by_names,
)


def grid(count, step=1.0, size=1.0):
    """Extents of count × count adjacent tiles, starting at (0, 0)."""
    corners = torch.cartesian_prod(torch.arange(count), torch.arange(count)).double() * step
    return torch.cat([corners, corners + size], dim=1)


@pytest.mark.parametrize("text", ["block", "block:0", "block:1x1", "block:-3", "blocks:3", "column:", "folder:x", ""])
def test_unknown_splits_are_refused(text):
    with pytest.raises(UserError, match=r"^--split='.*(--split block:5|block:8x8).* works?") as error:
        parse_split(text)
    assert "\n" not in str(error.value)


def test_known_splits_are_parsed():
    assert parse_split("column:split").column == "split"
    assert parse_split("block:2.5").degrees == 2.5
    assert (parse_split("block:4x6").rows, parse_split("block:4x6").cols) == (4, 6)
    assert [parse_split(text).uses_seed for text in ("folder", "column:a", "random", "block:3")] == [0, 0, 1, 1]


def test_split_by_names():
    split, note = split_by_names(["train", "TEST", "val", "Training"], "--split")
    assert (split.train.tolist(), split.test.tolist(), split.left_out) == ([0, 3], [1], 1)
    assert note == "1 validation tiles are left out"
    split, note = split_by_names(["train", "validation"], "--split")
    assert (split.test.tolist(), split.left_out) == ([1], 0)
    assert note == "no tile is in test: the validation tiles are the test set"
    for names, reason in (
        (["train"], "no tile is in val; tiles in both val and train work"),
        (["test"], "no tile is in train; tiles in both train and test or val work"),
        (["a", "b"], "'a', 'b' is"),
    ):
        with pytest.raises(UserError, match=f"^--split: {reason}"):
            split_by_names(names, "--split")


def test_random_split_has_the_share_of_every_class():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [3])
    split = split_at_random(labels, 0.2, seed=0)
    assert torch.bincount(labels[split.test]).tolist() == [10, 2, 1]  # a class of one tile is for training
    assert sorted(split.train.tolist() + split.test.tolist()) == list(range(63))
    assert torch.equal(split.test, split_at_random(labels, 0.2, seed=0).test)
    assert not torch.equal(split.test, split_at_random(labels, 0.2, seed=1).test)


@pytest.mark.parametrize(("text", "blocks"), [("block:3", 16), ("block:4x4", 16), ("block:2x1", 2), ("block:20", 1)])
def test_blocks_are_squares(text, blocks):
    found = corner_blocks(grid(12), parse_split(text))
    assert (found == found[:, :1]).all()  # tiles that end at the edge of a block are inside it
    assert len(found.unique()) == blocks
    assert (torch.bincount(found[:, 0].unique(return_inverse=True)[1]) == 144 // blocks).all()


@pytest.mark.parametrize("seed", range(5))
def test_every_block_is_in_one_set(seed):
    rule, labels = parse_split("block:3"), torch.arange(144) % 2
    blocks = corner_blocks(grid(12), rule)
    split = split_by_blocks(grid(12), labels, 0.25, seed, rule)
    sides = [set(blocks[side, 0].tolist()) for side in (split.train, split.test)]
    assert not sides[0] & sides[1]
    assert (len(split.train), len(split.test), split.left_out) == (108, 36, 0)
    assert torch.equal(split.test, split_by_blocks(grid(12), labels, 0.25, seed, rule).test)
    assert {split_by_blocks(grid(12), labels, 0.25, s, rule).test.sum().item() for s in range(5)} != {
        split.test.sum().item()
    }


def test_tiles_across_an_edge_are_left_out_and_no_pixel_is_in_both_sets():
    rule, extents = parse_split("block:4"), grid(12, step=0.5)  # each overlaps its neighbours
    split = split_by_blocks(extents, torch.arange(144) % 2, 0.4, 0, rule)
    assert split.left_out > 0
    assert len(split.train) + len(split.test) + split.left_out == 144
    train, test = extents[split.train, None], extents[None, split.test]
    overlap = (torch.minimum(train[..., 2:], test[..., 2:]) - torch.maximum(train[..., :2], test[..., :2])).clamp_min(0)
    assert overlap.prod(dim=-1).max() == 0


def test_blocks_at_negative_degrees_have_the_same_size():
    places = torch.tensor([[-0.5] * 4, [0.5] * 4, [-4.5] * 4]).double()
    assert len(corner_blocks(places, parse_split("block:5")).unique()) == 2


def test_draws_are_repeated_until_every_class_is_in_both_sets():
    labels = (torch.arange(144) < 24).long()  # the first two columns: 4 of 16 blocks
    rule = parse_split("block:3")
    for seed in range(10):
        split = split_by_blocks(grid(12), labels, 0.2, seed, rule)
        assert all(labels[side].unique().tolist() == [0, 1] for side in (split.train, split.test))
    alone = (torch.arange(144) == 0).long()
    with pytest.raises(UserError, match=r"^--split='block:3': in 200 draws of 16 blocks, a class was missing"):
        split_by_blocks(grid(12), alone, 0.2, 0, rule)
    wide = parse_split("block:20")
    with pytest.raises(UserError, match=r"^--split='block:20': all tiles are in one block; --split block:2x2 works"):
        split_by_blocks(grid(12), labels, 0.2, 0, wide)


def test_sets_without_a_class_are_refused():
    labels, names = torch.tensor([0, 0, 1, 1, 0, 1]), ["sea", "land", "never seen"]
    check_split(Split(torch.arange(4), torch.tensor([4, 5])), labels, names, "o")
    wrong = {
        "class 'land' has no test tile": ([0, 1, 2, 3], [4]),
        "class 'land' has no training tile": ([0, 1], [4, 5]),
        "class 'land' has one training tile": ([0, 1, 2], [4, 5]),
        "the tiles have only one class": ([0, 1], [4]),
    }
    for reason, (train, test) in wrong.items():
        with pytest.raises(UserError, match=f"^o: {reason}"):
            check_split(Split(torch.tensor(train), torch.tensor(test)), labels, names, "o")
