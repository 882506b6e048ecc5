"""Which store a source is, by its name: folders inside, unfinished builds, braces, names like wildcards."""

import datasets
import numpy as np
import pytest
from support.source_files import FEATURES, image_rows, message, pixels, tiles_of

from moco_accel.sources.shard_writer import write_shards


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_folders_with_tiles_inside_are_named_five_at_most(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index in range(30):
        (tmp_path / "o" / f"{index:02}").mkdir(parents=True)
        (tmp_path / "o" / f"{index:02}" / "t.parquet").touch()
    (tmp_path / "o" / ".hidden").mkdir()
    (tmp_path / "o" / ".hidden" / "t.parquet").touch()
    assert message("o") == (
        "data.source='o' holds no tiles of its own; did you mean one of o/00, o/01, o/02, o/03, o/04 … 25 more?"
    )
    (tmp_path / "h" / ".cache").mkdir(parents=True)
    (tmp_path / "h" / ".cache" / "t.parquet").touch()
    assert "did you mean" not in message("h")
    assert "holds no tiles" in message("h/**/*.parquet")


def test_an_unfinished_build_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shards(image_rows(pixels(5)), FEATURES, tmp_path / "o" / ".build")
    said = "data.source='o' holds an unfinished build; the same moco-data build command goes on with it"
    assert message("o") == said
    globs = ("o/*.parquet", "*/*.parquet", "**/*.parquet", "o/t*")
    assert [message(source) for source in globs] == [said.replace("'o'", repr(source)) for source in globs]
    assert "holds no tiles" in message("*.parquet")  # looks beside it
    write_shards(image_rows(pixels(70)), FEATURES, tmp_path / "o", max_shard_bytes=1)
    next((tmp_path / "o").glob("*-00001-of-*")).rename(tmp_path / "o" / ".build" / "shard-00001.parquet")
    assert message("o") == said  # killed while its shards were moved
    assert message("o/*.parquet") == said.replace("'o'", "'o/*.parquet'")
    write_shards(image_rows(pixels(5)), FEATURES, tmp_path / "whole")
    assert len(tiles_of("whole/*.parquet")) == 5


def test_braces_are_no_wildcard(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shards(image_rows(pixels(5)), FEATURES, tmp_path / "t")
    for source, works in (
        ("t/tiles-{00000..00002}-of-00001.parquet", "t/tiles-*-of-00001.parquet"),
        ("t/{a,b}", "t/*"),
    ):
        assert message(source) == f"data.source={source!r}: braces are not read; data.source={works!r} works"
        assert len(tiles_of(works)) == 5
    write_shards(image_rows(pixels(5)), FEATURES, tmp_path / "{a,b}")
    assert len(tiles_of("{a,b}")) == 5


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_named_like_a_wildcard(tmp_path, streaming, capfd):
    folder = tmp_path / "odd [out] 'é' *?"
    write_shards(image_rows(arrays := pixels(70)), FEATURES, folder, max_shard_bytes=1)
    write_shards(image_rows(pixels(5)), FEATURES, tmp_path / "odd o 'é' xx")  # what the name would find as a wildcard
    for source in (folder, folder / "*.parquet"):
        tiles = tiles_of(source, streaming=streaming)
        assert len(tiles) == 70
        assert np.array_equal(tiles[69].numpy(), arrays[69].transpose(2, 0, 1))
    said = capfd.readouterr().err
    assert said.count("preparing 70 tiles of") == (0 if streaming else 1)
    assert streaming or str(folder) in said
