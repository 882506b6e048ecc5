"""Scores, copies of test tiles in training, and both pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from moco_accel.evaluation.near_duplicates import Looks, checksum, find_copies, thumbnail
from moco_accel.evaluation.pictures import draw_confusion, draw_map, flat_map, spread
from moco_accel.evaluation.scores import figures_of, mean_and_sd, score


def test_balanced_accuracy_counts_rare_classes_as_much():
    truth, predicted = torch.tensor([0] * 8 + [1] * 2), torch.tensor([0] * 8 + [0, 1])
    found = score(truth, predicted, 3)
    assert found.confusion.tolist() == [[8, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert found.top1 == pytest.approx(0.9)
    assert found.balanced == 0.75  # the third class has no tile


def test_mean_and_sample_deviation():
    assert mean_and_sd([0.5]) == (0.5, None)
    assert mean_and_sd([1, 2, 3, 4]) == (2.5, pytest.approx((5 / 3) ** 0.5))
    right, wrong = (score(torch.tensor([0]), torch.tensor([p]), 2) for p in (0, 1))
    assert figures_of({("knn", "_grey"): [right, wrong]}) == {
        "knn_top1_grey": 0.5,
        "knn_top1_grey_sd": pytest.approx(0.5**0.5),
        "knn_balanced_grey": 0.5,
        "knn_balanced_grey_sd": pytest.approx(0.5**0.5),
    }


def looks(tiles):
    return Looks([checksum(tile) for tile in tiles], torch.stack([thumbnail(tile) for tile in tiles]))


def test_copies_are_found_and_calm_seas_are_none():
    generator = torch.Generator().manual_seed(0)
    tiles = torch.rand(6, 3, 32, 32, generator=generator)
    noise = 0.02 * torch.randn(3, 32, 32, generator=generator)  # as of compression
    seas = 0.1 + 0.005 * torch.randn(2, 3, 32, 32, generator=generator)
    stack = [*tiles, tiles[0].clone(), tiles[1] + noise, *seas]
    train, test = torch.tensor([0, 1, 2, 8]), torch.tensor([3, 4, 5, 6, 7, 9])
    found = find_copies(looks(stack), train, test)
    assert (found.exact, found.near, found.tested) == (1, 1, 6)
    assert found.share == pytest.approx(1 / 3)
    assert find_copies(looks(stack), train, torch.tensor([6])).share == 1


def count_of(path, colour):
    with Image.open(path) as picture:
        return int((np.asarray(picture) == colour).all(axis=2).sum())


def test_the_confusion_matrix_is_shaded_by_share_of_its_row(tmp_path):
    names, full = ["sea", "a name that is far too long for an axis", "land", "unseen"], (8, 48, 107)
    diagonal, even = torch.zeros(4, 4).long(), torch.zeros(4, 4).long()
    diagonal[:3, :3], even[:3, :3] = 7 * torch.eye(3).long(), 2
    for name, confusion in (("diagonal", diagonal), ("even", even)):
        draw_confusion(tmp_path / f"{name}.png", confusion, names, "title")
    cells = count_of(tmp_path / "diagonal.png", full) - count_of(tmp_path / "even.png", full)  # less the colour bar's
    with Image.open(tmp_path / "even.png") as picture:
        assert 0.02 < cells / (picture.width * picture.height) < 0.4
    draw_confusion(tmp_path / "many.png", torch.eye(60).long(), [f"class {n}" for n in range(60)], "title")
    with Image.open(tmp_path / "many.png") as picture:
        assert max(picture.size) < 3000


def two_blobs():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    return torch.randn(60, 8, generator=generator) + 8 * torch.nn.functional.one_hot(labels, 8), labels


def test_the_map_keeps_blobs_apart_and_is_the_same_on_each_call():
    features, labels = two_blobs()
    places = torch.from_numpy(flat_map(features))
    distances = torch.cdist(places, places).fill_diagonal_(torch.inf)
    assert (labels[distances.argmin(dim=1)] == labels).all()
    assert np.array_equal(places.numpy(), flat_map(features))
    assert flat_map(features[:2]).shape == (2, 2)
    assert flat_map(features[:, :1]).shape == (60, 2)


def test_the_map_is_drawn_with_a_dot_of_its_class_colour_for_each_tile(tmp_path):
    features, labels = two_blobs()
    draw_map(tmp_path / "map.png", [("pretrained", features), ("random", features.flip(0))], labels, ["sea", "land"])
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width > 1.5 * picture.height
    for colour in ((36, 104, 180), (217, 130, 43)):  # the legend's, without transparency
        assert count_of(tmp_path / "map.png", colour) > 20
    assert len(spread(torch.zeros(5000), 2000)) == len(spread(torch.zeros(5000), 2000).unique()) == 2000
