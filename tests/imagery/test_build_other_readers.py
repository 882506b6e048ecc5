"""pandas and `datasets` read the folder that a build wrote; folders of earlier versions are still read."""

import datasets
import numpy as np
import pandas as pd
import pytest
from support.builds import build, save_picture
from support.geo_files import noise, save_raster

from moco_accel.recipe.data_sections import Data
from moco_accel.tiles.tiles import open_tiles


@pytest.fixture
def built(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for number, name in enumerate(("forest", "sea")):
        save_picture(tmp_path / f"src/{name}/{number}.png", 32, 32, seed=number)
    build(tmp_path / "src", tmp_path / "out", labels_from_folders=True)
    return tmp_path / "out"


def test_pandas_reads_the_folder(built):
    table = pd.read_parquet(built)
    assert table["path"].tolist() == ["forest/0.png", "sea/1.png"]
    assert table["label"].tolist() == [0, 1]


def test_datasets_load_the_folder(built):
    loaded = datasets.load_dataset(str(built))["train"]
    assert loaded.features["label"].names == ["forest", "sea"]
    assert np.array_equal(np.asarray(loaded[1]["image"]), save_picture(built.parent / "again.png", 32, 32, seed=1))


def test_a_split_is_a_folder_of_a_build(built, tmp_path):
    """`load_dataset` takes folders called train and test for splits."""
    built.rename(tmp_path / "splits")
    (tmp_path / "splits").rename(tmp_path / "train")
    (tmp_path / "all").mkdir()
    (tmp_path / "train").rename(tmp_path / "all/train")
    build(tmp_path / "src/sea", tmp_path / "all/test")
    frame = pd.read_parquet(tmp_path / "all/test")
    assert (len(frame), len(pd.read_parquet(tmp_path / "all/train"))) == (1, 2)


def test_float_tiles_are_read_too(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    save_raster(tmp_path / "a.tif", noise(2, 32, 32, "float32"), names=["B4", "B8"])
    build(tmp_path / "a.tif", tmp_path / "out")
    assert len(pd.read_parquet(tmp_path / "out")) == len(datasets.load_dataset(str(tmp_path / "out"))["train"]) == 1


def test_a_folder_of_an_earlier_version_is_read_and_found_complete(built):
    """Earlier versions wrote tiles.json and build.json beside the shards."""
    source = built.parent / "src"
    for path in (built / "__moco__").iterdir():
        path.rename(built / path.name)
    (built / "__moco__").rmdir()
    tiles = open_tiles(str(built), Data(), 3)
    assert tiles.statistics is not None
    assert build(source, built, labels_from_folders=True).found_complete
    build(source, built, labels_from_folders=True, overwrite=True, max_cloud=1.0)
    assert sorted(path.name for path in built.iterdir()) == ["__moco__", "tiles-00000-of-00001.parquet"]
