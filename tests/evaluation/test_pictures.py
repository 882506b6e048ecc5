"""Pictures of moco-eval: confusion matrix, map, and nearest neighbours."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from support.evaluation_fixtures import random_tiles

from moco_accel.evaluation.labelled_tiles import LabelledPool
from moco_accel.evaluation.neighbours_picture import choose_queries, draw_panels
from moco_accel.evaluation.pictures import draw_confusion, draw_map, embed_in_2d, subsample
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.shard_writer import write_shards
from moco_accel.tiles.tiles import open_tiles


def count_pixels(path, colour):
    with Image.open(path) as picture:
        return int((np.asarray(picture) == colour).all(axis=2).sum())


def test_the_confusion_matrix_is_shaded_by_the_share_of_each_row(tmp_path):
    names, full = ["sea", "a name that is far too long for an axis", "land", "unseen"], (8, 48, 107)
    diagonal, even = torch.zeros(4, 4).long(), torch.zeros(4, 4).long()
    diagonal[:3, :3], even[:3, :3] = 7 * torch.eye(3).long(), 2
    for name, confusion in (("diagonal", diagonal), ("even", even)):
        draw_confusion(tmp_path / f"{name}.png", confusion, names, "title")
    cells = count_pixels(tmp_path / "diagonal.png", full) - count_pixels(
        tmp_path / "even.png", full
    )  # without the colour bar
    with Image.open(tmp_path / "even.png") as picture:
        assert 0.02 < cells / (picture.width * picture.height) < 0.4
    draw_confusion(tmp_path / "many.png", torch.eye(60).long(), [f"class {n}" for n in range(60)], "title")
    with Image.open(tmp_path / "many.png") as picture:
        assert max(picture.size) < 3000


def two_clusters():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    return torch.randn(60, 8, generator=generator) + 8 * torch.nn.functional.one_hot(labels, 8), labels


def test_the_map_separates_clusters_and_is_deterministic():
    features, labels = two_clusters()
    positions = torch.from_numpy(embed_in_2d(features))
    distances = torch.cdist(positions, positions).fill_diagonal_(torch.inf)
    assert (labels[distances.argmin(dim=1)] == labels).all()
    assert np.array_equal(positions.numpy(), embed_in_2d(features))
    assert embed_in_2d(features[:2]).shape == (2, 2)
    assert embed_in_2d(features[:, :1]).shape == (60, 2)


def test_the_map_has_a_dot_for_each_tile_in_the_colour_of_its_class(tmp_path):
    features, labels = two_clusters()
    draw_map(tmp_path / "map.png", [("pretrained", features), ("random", features.flip(0))], labels, ["sea", "land"])
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width > 1.5 * picture.height
    for colour in ((36, 104, 180), (217, 130, 43)):  # of the legend, without transparency
        assert count_pixels(tmp_path / "map.png", colour) > 20
    assert len(subsample(5000, 2000)) == len(subsample(5000, 2000).unique()) == 2000


def test_queries_are_spread_over_classes_and_within_each_class():
    labels = [0] * 10 + [1] * 10 + [2] * 10
    assert choose_queries(labels, 3) == [5, 15, 25]
    assert choose_queries(labels, 6) == [3, 13, 23, 6, 16, 26]
    assert [labels[q] for q in choose_queries(labels, 8)] == [0, 1, 2, 0, 1, 2, 0, 1]
    many = [label for label in range(10) for _ in range(3)]
    assert [many[q] for q in choose_queries(many, 8)] == [0, 1, 3, 4, 5, 6, 8, 9]
    assert choose_queries([4, 4], 8) == [0, 0, 0, 0, 1, 1, 1, 1]


def write_and_open(folder, tiles):
    features = datasets.Features({"image": datasets.Array3D(tuple(tiles.shape[1:]), "uint8")})
    write_shards([{"image": tile.numpy()} for tile in tiles], features, folder)
    return open_tiles(str(folder), Data(streaming=True), None)


@pytest.mark.parametrize(("bands", "size"), [(3, 32), (1, 9), (13, 200)])
def test_frames_show_whether_the_class_is_the_same(tmp_path, bands, size):
    train, test = (
        write_and_open(tmp_path / f"{count}", random_tiles(count, size, bands, seed=count)) for count in (6, 2)
    )
    neighbours = torch.tensor([[0, 1, 2, 3, 4], [5, 4, 3, 2, 1]])
    panels = [("pretrained", neighbours), ("random", neighbours)]
    names = ["sea", "a class with a name that is much too long for a tile"]
    pool = LabelledPool((train, test), torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]), names)
    path = tmp_path / "deep" / "neighbours.png"
    draw_panels(path, pool, [6, 7], panels, "caption")
    with Image.open(path) as picture:
        green, red, ink = (31, 157, 99), (216, 67, 59), (29, 39, 51)
        frame = [picture.getpixel((29 + (0 if n == 0 else 176 + (n - 1) * 144), 106)) for n in range(6)]
        assert frame == [ink, green, red, green, red, green]
        if bands == 3:  # a tile of 32 pixels is enlarged by 4, without smoothing
            assert picture.getpixel((28 + 4 + 1, 104 + 4 + 1)) == tuple(test[0][:, 0, 0].tolist())
    assert [p.name for p in path.parent.iterdir()] == ["neighbours.png"]
