"""Frozen features and their nearest neighbours, against naive rewrites."""

import math

import pytest
import torch
from support.evaluation_fixtures import make_recipe, random_tiles
from torch import nn

from moco_accel.common.errors import UserError
from moco_accel.evaluation import features
from moco_accel.evaluation.features import (
    extract_features,
    knn_accuracy,
    mean_colour_features,
    nearest_neighbours,
    to_grey,
)
from moco_accel.images.decoding import DamagedTile


def naive_knn(train, train_labels, test, test_labels, k, temperature, classes):
    """Wu et al. 2018, section 3.4, one number at a time."""
    right = 0
    for query, truth in zip(test.tolist(), test_labels.tolist(), strict=True):
        similarities = []
        for index, key in enumerate(train.tolist()):
            dot = sum(a * b for a, b in zip(query, key, strict=True))
            similarities.append((dot / math.hypot(*query) / math.hypot(*key), index))
        votes = [0.0] * classes
        for similarity, index in sorted(similarities, reverse=True)[:k]:
            votes[train_labels[index]] += math.exp(similarity / temperature)
        right += votes.index(max(votes)) == truth
    return right / len(test)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (1000, 0.07)])
def test_knn_is_that_of_wu_et_al(monkeypatch, k, temperature):
    monkeypatch.setattr(features, "_QUERIES_AT_ONCE", 7)  # several chunks, the last one short
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 4, (60,), generator=generator)
    train = torch.randn(60, 5, generator=generator) + 0.7 * nn.functional.one_hot(labels, 5)
    truth = torch.randint(0, 4, (40,), generator=generator)
    test = torch.randn(40, 5, generator=generator) + 0.7 * nn.functional.one_hot(truth, 5)
    ours = knn_accuracy(train, labels, test, truth, k, temperature, num_classes=4)
    assert ours == naive_knn(train, labels, test, truth, k, temperature, 4)
    assert 0.25 < ours < 1


def test_closer_neighbours_outvote_more_neighbours_only_at_low_temperature():
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])  # cosines 1, 0.6, 0.6
    arguments = (train, torch.tensor([0, 1, 1]), torch.tensor([[2.0, 0.0]]), torch.tensor([0]), 3)
    # exp(0.4 / T) against 2: the one wins for T < 0.4 / ln 2 = 0.577
    assert knn_accuracy(*arguments, temperature=0.57, num_classes=2) == 1
    assert knn_accuracy(*arguments, temperature=0.58, num_classes=2) == 0


def test_euclidean_votes_see_brightness_and_weigh_the_same():
    dark, bright = torch.tensor([[0.1, 0.1]]), torch.tensor([[0.9, 0.9]])
    train, labels = torch.cat([dark, bright]), torch.tensor([0, 1])
    test, truth = torch.tensor([[0.2, 0.2], [0.8, 0.8]]), torch.tensor([0, 1])
    assert knn_accuracy(train, labels, test, truth, 1, num_classes=2, metric="euclidean") == 1
    votes = torch.tensor([[0.2], [0.5], [0.5]]), torch.tensor([0, 1, 1])
    assert knn_accuracy(*votes, torch.tensor([[0.2]]), torch.tensor([1]), 3, num_classes=2, metric="euclidean") == 1


def test_knn_without_tiles_is_an_error():
    with pytest.raises(ValueError, match="0 to learn from, 2 to test"):
        knn_accuracy(torch.zeros(0, 3), torch.zeros(0).long(), torch.zeros(2, 3), torch.zeros(2).long(), num_classes=1)


def test_nearest_neighbours_come_nearest_first():
    train = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert nearest_neighbours(train, torch.tensor([[5.0, 1.0]]), 3).tolist() == [[1, 2, 0]]
    assert nearest_neighbours(train, torch.tensor([[0.0, 0.9]]), 2, "euclidean").tolist() == [[0, 2]]


def test_features_see_the_pixels_of_training():
    recipe, tiles = make_recipe(), random_tiles(10)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in recipe.normalisation)
    heard = []
    ours = extract_features(nn.Flatten(), tiles, recipe, "cpu", batch_size=4, on_progress=heard.append)
    assert heard == [4, 4, 2]
    assert ours.dtype == torch.float32
    assert torch.equal(ours, ((tiles.float() / 255 - mean) / std).flatten(1))


def test_grey_features_know_no_colour():
    recipe = make_recipe()
    red_and_equally_bright_grey = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    red_and_equally_bright_grey[0, 0] = 200
    red_and_equally_bright_grey[1] = 60  # 0.299 * 200 = 59.8
    colour = extract_features(nn.Flatten(), red_and_equally_bright_grey, recipe, "cpu")
    grey = extract_features(nn.Flatten(), red_and_equally_bright_grey, recipe, "cpu", grey=True)
    assert (colour[0] - colour[1]).abs().max() > 2
    assert (grey[0] - grey[1]).abs().max() < 0.005  # 0.2 / 255 / 0.225 = 0.0035
    pixels = torch.rand(13, 4, 4)
    assert torch.allclose(to_grey(pixels), pixels.mean(0, keepdim=True).expand(13, 4, 4), atol=1e-6)


def test_tiles_of_any_size_are_resized():
    recipe = make_recipe()
    tiles = [random_tiles(1, size)[0] for size in (8, 16, 5)]
    features = extract_features(nn.Flatten(), tiles, recipe, "cpu")
    assert features.shape == (3, 3 * 8 * 8)
    flat = [torch.full((3, 20, 30), 51, dtype=torch.uint8)]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in recipe.normalisation)
    expected = ((0.2 - mean) / std).expand(3, 8, 8).flatten()
    assert torch.allclose(extract_features(nn.Flatten(), flat, recipe, "cpu")[0], expected, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_features_use_running_statistics_and_leave_the_mode_as_it_was(training):
    recipe, tiles = make_recipe(), random_tiles(6)
    encoder = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).train(training)
    statistics = encoder[0].running_mean.clone()
    one_by_one = extract_features(encoder, tiles, recipe, "cpu", batch_size=1)
    assert torch.equal(one_by_one, extract_features(encoder, tiles, recipe, "cpu", batch_size=6))
    assert encoder.training is training
    assert torch.equal(encoder[0].running_mean, statistics)
    with pytest.raises(RuntimeError):
        extract_features(encoder, random_tiles(2, bands=5), make_recipe(bands=5), "cpu")
    assert encoder.training is training


def test_mean_colour():
    tiles = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    tiles[0, 0] = 255
    tiles[0, 1, 0] = 51
    assert torch.allclose(mean_colour_features(tiles, make_recipe()), torch.tensor([[1.0, 0.1, 0.0]]))


def test_stored_values_become_the_pixels_of_training():
    scaling = {"scaling": "range", "low": [1000.0, -200.0], "high": [3000.0, 200.0]}
    recipe = make_recipe(bands=2, data=scaling)
    tiles = torch.zeros(1, 2, 8, 8, dtype=torch.int16)
    tiles[0, 0, :2] = 1500  # a quarter of the range, in a quarter of the tile
    tiles[0, 1] = 300  # cut off at 1
    assert torch.allclose(mean_colour_features(tiles, recipe), torch.tensor([[0.0625, 1.0]]))
    features = extract_features(nn.Flatten(), tiles, recipe, "cpu").view(2, 8, 8)
    assert torch.allclose(features[0, :2], torch.tensor((0.25 - 0.4) / 0.2))
    assert torch.allclose(features[0, 2:], torch.tensor((0 - 0.4) / 0.2))
    assert torch.allclose(features[1], torch.tensor((1 - 0.4) / 0.2))


def test_a_figure_is_of_all_tiles_or_of_none():
    class Damaged:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise DamagedTile("cannot be decoded (truncated): row 0 of t.parquet")

    with pytest.raises(UserError, match=r"^labelled tile 0 cannot be decoded \(truncated\): row 0 of t.parquet; make"):
        extract_features(nn.Flatten(), Damaged(), make_recipe(), "cpu")
