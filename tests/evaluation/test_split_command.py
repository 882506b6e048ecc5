"""moco-eval --data --split: splits by columns, folders and coordinates, from end to end."""

import json

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.evaluation_fixtures import make_recipe, random_tiles, write_run
from typer.testing import CliRunner

from moco_accel.common.errors import UserError
from moco_accel.evaluation.cli import app
from moco_accel.evaluation.split_rule import parse_split
from moco_accel.evaluation.split_sources import open_and_split
from moco_accel.sources.shard_writer import write_shards

COUNT = 36


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Six by six tiles of dark and bright noise, half a degree apart, with columns of set names and coordinates."""
    folder = tmp_path_factory.mktemp("labelled")
    features = datasets.Features({"image": datasets.Array3D((3, 8, 8), "uint8")})
    features["label"] = datasets.ClassLabel(names=["dark", "bright"])
    features["side"] = datasets.ClassLabel(names=["train", "test"])
    features |= {name: datasets.Value("string") for name in ("split", "path", "crs")}
    features |= {name: datasets.Value("float32") for name in ("longitude", "latitude")}
    features["bounds"] = datasets.List(datasets.Value("float64"))
    rows = []
    for number, noise in enumerate(random_tiles(COUNT, 8).numpy()):
        x, y, label = number % 6 / 2, number // 6 / 2, (number + number // 6) % 2
        tile = (noise // 4 + 150 * label).astype(np.uint8)
        side = ["train", "test", "val"][number // 12]
        row = {"image": tile, "label": label, "side": min(number // 18, 1), "split": side, "path": f"x/{side}/a.png"}
        rows.append(row | {"longitude": x, "latitude": y, "crs": "EPSG:4326", "bounds": [x, y, x + 0.5, y + 0.5]})
    write_shards(rows, datasets.Features(features), folder / "all")
    bare = {name: features[name] for name in ("image", "label")}
    write_shards([{name: row[name] for name in bare} for row in rows], datasets.Features(bare), folder / "bare")
    for side, some in (("train", rows[:24]), ("test", rows[24:])):
        bare_rows = [{name: row[name] for name in bare} for row in some]
        write_shards(bare_rows, datasets.Features(bare), folder / "sides" / side)
    places = {name: features[name] for name in (*bare, "crs", "bounds")}
    moved = [500_000, 4_000_000, 500_000, 4_000_000]  # metres in UTM 18 north, at the central meridian, 75° west
    metres = [
        {name: row[name] for name in bare}
        | {"crs": "EPSG:32618", "bounds": [1e5 * edge + at for edge, at in zip(row["bounds"], moved, strict=True)]}
        for row in rows
    ]
    write_shards(metres, datasets.Features(places), folder / "metres")
    write_shards([*metres[1:], metres[0] | {"crs": None, "bounds": None}], datasets.Features(places), folder / "lost")
    return folder


def splits(source, text, seeds=1, share=0.25):
    notes = []
    pool, found = open_and_split(make_recipe(), str(source), parse_split(text), share, seeds, notes.append)
    return pool, found, notes


def test_sets_by_column(labelled):
    _, (found,), notes = splits(labelled / "all", "column:split")
    assert (found.train.tolist(), found.test.tolist()) == (list(range(12)), list(range(12, 24)))
    assert notes == ["12 validation tiles are left out"]
    _, (found,), notes = splits(labelled / "all", "column:side")  # a column of classes
    assert (found.train.tolist(), found.test.tolist(), notes) == (list(range(18)), list(range(18, 36)), [])


def test_sets_by_folder(labelled):
    _, (found,), _ = splits(labelled / "all", "folder")  # from a column of paths
    assert (found.train.tolist(), found.test.tolist()) == (list(range(12)), list(range(12, 24)))
    pool, (found,), notes = splits(labelled / "sides", "folder")  # from folders of the source
    assert (found.train.tolist(), found.test.tolist()) == (list(range(24)), list(range(24, 36)))
    assert notes == [f"training tiles: {labelled}/sides/train; test tiles: {labelled}/sides/test"]
    whole, _, _ = splits(labelled / "all", "random")
    assert torch.equal(pool.labels, whole.labels)
    assert all(torch.equal(pool[index], whole[index]) for index in range(COUNT))


def test_images_in_folders_of_sets_and_classes(tmp_path):
    for side in ("train", "val"):
        for number, name in enumerate(("sea", "land")):
            (tmp_path / side / name).mkdir(parents=True)
            for copy in range(2):
                Image.new("RGB", (8, 8), (100 * number, copy, 0)).save(tmp_path / side / name / f"{copy}.png")
    pool, (found,), _ = splits(tmp_path, "folder")
    assert pool.names == ["land", "sea"]
    assert (found.train.tolist(), found.test.tolist()) == ([0, 1, 2, 3], [4, 5, 6, 7])


def test_blocks_by_bounds_and_seed(labelled):
    pool, found, _ = splits(labelled / "all", "block:1", seeds=4)
    assert len(found) == 4
    for split in found:
        blocks = [{(n % 6 // 2, n // 12) for n in side.tolist()} for side in (split.train, split.test)]
        assert not blocks[0] & blocks[1]
        assert (len(split.train), len(split.test), split.left_out) == (28, 8, 0)  # 2 of 9 blocks of 4 tiles
        assert set(pool.labels[split.test].tolist()) == {0, 1}
    assert len({tuple(split.test.tolist()) for split in found}) > 1


def test_blocks_of_projected_tiles(labelled):
    """100 km is about one degree of latitude, and more than one of longitude at 36° north."""
    _, (found,), _ = splits(labelled / "metres", "block:2")
    assert len(found.train) + len(found.test) + found.left_out == COUNT
    assert found.left_out > 0
    _, (found,), _ = splits(labelled / "metres", "block:2x2")
    assert min(len(found.train), len(found.test)) > 0


REFUSED = [
    ("all", "column:fold", "has no column 'fold'; its columns: image, label, side, split"),
    ("all", "column:longitude", "column 'longitude' has no text"),
    ("all", "column:crs", "'EPSG:4326' is neither train, val nor test"),
    ("all", "column:label", "'bright', 'dark' is neither train"),
    ("bare", "block:5", "needs columns bounds and crs, or longitude and latitude; .* has image, label"),
    ("bare", "folder", "has neither folders named train and test nor a column of paths"),
    ("lost", "block:5", "1 of 36 tiles have no coordinates"),
    ("all", "block:45", "all tiles are in one block; --split block:2x2 works"),
]


@pytest.mark.parametrize(("source", "text", "reason"), REFUSED, ids=[f"{s} {t}" for s, t, _ in REFUSED])
def test_errors_of_splits_are_one_line(labelled, source, text, reason):
    with pytest.raises(UserError, match=f"^--split='{text}'.*{reason}") as error:
        splits(labelled / source, text)
    assert "\n" not in str(error.value)


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path / "run", make_recipe(evaluation={"neighbours": 3}))
    return str(tmp_path / "run")


def test_spatial_blocks_from_end_to_end_are_deterministic(run, labelled):
    arguments = [run, "--data", str(labelled / "all"), "--split", "block:1", "--probe", "sgd", "--seeds", "2"]
    first, second = (CliRunner().invoke(app, [*arguments, "--json"]) for _ in range(2))
    assert first.exit_code == 0, first.stderr
    assert first.stdout == second.stdout
    figures = json.loads(first.stdout)
    assert figures["knn_top1_mean_colour"] == figures["linear_top1_mean_colour"] == 1
    assert figures["knn_top1_mean_colour_sd"] == 0
    by_seed = figures["per_seed"]["linear_top1"]
    assert figures["linear_top1"] == pytest.approx(sum(by_seed) / 2, abs=1e-4)
    assert figures["linear_top1_sd"] == pytest.approx(abs(by_seed[0] - by_seed[1]) / 2**0.5, abs=1e-4)
    assert (figures["evaluation_split"], figures["evaluation_probe"]) == ("block:1", "sgd")
    assert np.array(figures["confusion"]["linear"]).sum() == figures["knn_test_tiles"] == 8
    assert "random split" not in first.stderr


def test_warnings_of_a_random_split_and_of_duplicates(run, labelled, tmp_path):
    (tmp_path / "twice").mkdir()
    shards = sorted((labelled / "bare").glob("*.parquet"))
    for compression in ("none", "snappy"):  # a copy of the file would be left out
        pq.write_table(pq.read_table(shards[0]), tmp_path / "twice" / f"{compression}.parquet", compression=compression)
    arguments = ["--data", str(tmp_path / "twice"), "--split", "random", "--probe", "none", "--seeds", "1", "--json"]
    result = CliRunner().invoke(app, [run, *arguments])
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["knn_test_tiles"] == 14  # a fifth of each class of 36
    exact = figures["evaluation_exact_copies"]
    assert 8 <= exact <= 14
    assert "A random split puts neighbouring tiles on both sides" in result.stderr
    assert (
        f"{exact} of 14 test tiles ({exact / 14:.1%}) are also training tiles: {exact} with the same" in result.stderr
    )


OPTIONS = [
    (["--split", "random"], "--split='random' needs --data; --data"),
    (["--data", "x"], "--data='x' needs --split"),
    (["--data", "x", "--split", "half"], "--split='half' is not a kind of split"),
    (["--data", "x", "--split", "random", "--test-source", "y"], "--test-source='y' and --data='x' exclude each other"),
]


@pytest.mark.parametrize(("arguments", "reason"), OPTIONS, ids=[" ".join(words) for words, _ in OPTIONS])
def test_options_that_cannot_be_combined(arguments, reason):
    result = CliRunner().invoke(app, ["no run", *arguments])
    assert result.exit_code == 2
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1
