"""Features of frozen encoders: preprocessing, grey tiles, BatchNorm's mode and the mean colour."""

import pytest
import torch
from support.evaluation_fixtures import make_recipe, random_tiles
from torch import nn

from moco_accel.common.errors import UserError
from moco_accel.evaluation.features import extract_features, mean_colour_features, to_grey
from moco_accel.images.headers import DamagedTile


def test_preprocessing_is_that_of_training():
    recipe, tiles = make_recipe(), random_tiles(10)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in recipe.normalisation)
    reported = []
    ours = extract_features(nn.Flatten(), tiles, recipe, "cpu", batch_size=4, on_progress=reported.append)
    assert reported == [4, 4, 2]
    assert ours.dtype == torch.float32
    assert torch.equal(ours, ((tiles.float() / 255 - mean) / std).flatten(1))


def test_grey_features_ignore_colour():
    recipe = make_recipe()
    red_and_grey_of_equal_luma = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    red_and_grey_of_equal_luma[0, 0] = 200
    red_and_grey_of_equal_luma[1] = 60  # 0.299 * 200 = 59.8
    colour = extract_features(nn.Flatten(), red_and_grey_of_equal_luma, recipe, "cpu")
    grey = extract_features(nn.Flatten(), red_and_grey_of_equal_luma, recipe, "cpu", grey=True)
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
def test_features_use_running_statistics_and_restore_the_mode(training):
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
    tiles = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    tiles[0, 0] = 255
    tiles[0, 1, 0] = 51
    expected = torch.tensor([[1.0, 0.1, 0.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(mean_colour_features(tiles, make_recipe(), range(2)), expected)
    assert torch.allclose(mean_colour_features(tiles, make_recipe(), [1, 0, 0]), expected[[1, 0, 0]])


def test_stored_values_are_scaled_as_in_training():
    scaling = {"scaling": "range", "low": [1000.0, -200.0], "high": [3000.0, 200.0]}
    recipe = make_recipe(bands=2, data=scaling)
    tiles = torch.zeros(1, 2, 8, 8, dtype=torch.int16)
    tiles[0, 0, :2] = 1500  # a quarter of the range, in a quarter of the tile
    tiles[0, 1] = 300  # clipped to 1
    assert torch.allclose(mean_colour_features(tiles, recipe, [0]), torch.tensor([[0.0625, 1.0]]))
    features = extract_features(nn.Flatten(), tiles, recipe, "cpu").view(2, 8, 8)
    assert torch.allclose(features[0, :2], torch.tensor((0.25 - 0.4) / 0.2))
    assert torch.allclose(features[0, 2:], torch.tensor((0 - 0.4) / 0.2))
    assert torch.allclose(features[1], torch.tensor((1 - 0.4) / 0.2))


def test_a_damaged_tile_is_an_error():
    class Damaged:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise DamagedTile("cannot be decoded (truncated): row 0 of t.parquet")

    with pytest.raises(UserError, match=r"^labelled tile 0 cannot be decoded \(truncated\): row 0 of t.parquet; build"):
        extract_features(nn.Flatten(), Damaged(), make_recipe(), "cpu")
