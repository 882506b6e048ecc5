"""Opening a source by name: subfolders, unfinished builds, braces, wildcard characters, URLs, hub ids."""

import numpy as np
import pytest
from support.source_files import FEATURES, error_message, image_rows, random_pixels, tiles_of

from moco_accel.recipe.data_sections import Data
from moco_accel.sources.shard_writer import write_shards
from moco_accel.tiles.tiles import open_tiles


def test_at_most_five_subfolders_with_tiles_are_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index in range(30):
        (tmp_path / "o" / f"{index:02}").mkdir(parents=True)
        (tmp_path / "o" / f"{index:02}" / "t.parquet").touch()
    (tmp_path / "o" / ".hidden").mkdir()
    (tmp_path / "o" / ".hidden" / "t.parquet").touch()
    assert error_message("o") == (
        "data.source='o' has no tiles of its own; did you mean one of o/00, o/01, o/02, o/03, o/04 … 25 more?"
    )
    (tmp_path / "h" / ".cache").mkdir(parents=True)
    (tmp_path / "h" / ".cache" / "t.parquet").touch()
    assert "did you mean" not in error_message("h")
    assert "has no tiles" in error_message("h/**/*.parquet")


def test_unfinished_build_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shards(image_rows(random_pixels(5)), FEATURES, tmp_path / "o" / ".build")
    expected = "data.source='o' holds an unfinished build; the same moco-data build command resumes it"
    assert error_message("o") == expected
    globs = ("o/*.parquet", "*/*.parquet", "**/*.parquet", "o/t*")
    assert [error_message(source) for source in globs] == [expected.replace("'o'", repr(source)) for source in globs]
    assert "has no tiles" in error_message("*.parquet")  # another folder
    write_shards(image_rows(random_pixels(70)), FEATURES, tmp_path / "o", max_shard_bytes=1)
    next((tmp_path / "o").glob("*-00001-of-*")).rename(tmp_path / "o" / ".build" / "shard-00001.parquet")
    assert error_message("o") == expected  # killed while its shards were moved
    assert error_message("o/*.parquet") == expected.replace("'o'", "'o/*.parquet'")
    write_shards(image_rows(random_pixels(5)), FEATURES, tmp_path / "whole")
    assert len(tiles_of("whole/*.parquet")) == 5


def test_braces_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shards(image_rows(random_pixels(5)), FEATURES, tmp_path / "t")
    for source, works in (
        ("t/tiles-{00000..00002}-of-00001.parquet", "t/tiles-*-of-00001.parquet"),
        ("t/{a,b}", "t/*"),
    ):
        assert error_message(source) == f"data.source={source!r}: braces are not supported; data.source={works!r} works"
        assert len(tiles_of(works)) == 5
    write_shards(image_rows(random_pixels(5)), FEATURES, tmp_path / "{a,b}")
    assert len(tiles_of("{a,b}")) == 5


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_name_with_wildcard_characters(tmp_path, streaming, capfd):
    folder = tmp_path / "odd [out] 'é' *?"
    write_shards(image_rows(arrays := random_pixels(70)), FEATURES, folder, max_shard_bytes=1)
    matched = tmp_path / "odd o 'é' xx"  # the folder that the name would match as a glob
    write_shards(image_rows(random_pixels(5)), FEATURES, matched)
    for source in (folder, folder / "*.parquet"):
        tiles = tiles_of(source, streaming=streaming)
        assert len(tiles) == 70
        assert np.array_equal(tiles[69].numpy(), arrays[69].transpose(2, 0, 1))
    printed = capfd.readouterr().err
    assert printed.count("preparing 70 tiles of") == (0 if streaming else 1)
    assert streaming or str(folder) in printed


def test_parquet_behind_a_url(many_row_groups, capfd, monkeypatch):
    import fsspec

    folder, arrays = many_row_groups
    memory = fsspec.filesystem("memory")
    for path in folder.glob("*.parquet"):
        memory.pipe(f"/tiles/{path.name}", path.read_bytes())
    tiles = tiles_of("memory://tiles/*.parquet", streaming=True)
    for index in (299, 0, 150):
        assert np.array_equal(tiles[index].numpy(), arrays[index])
    assert capfd.readouterr().err == (
        "every loader worker of every process (data.num_workers=2) downloads all of memory://tiles/*.parquet in every "
        "epoch; a local copy avoids this\n"
    )
    monkeypatch.setenv("RANK", "1")
    tiles_of("memory://tiles/*.parquet", streaming=True)
    open_tiles("memory://tiles/*.parquet", Data(streaming=True), None)
    assert capfd.readouterr().err == ""
    first = tiles_of(f"file://{min(folder.glob('*.parquet'))}", streaming=True)
    assert np.array_equal(first[1].numpy(), arrays[1])
    assert error_message("memory://tiles/*.parquet").endswith("data.streaming=true works, or a local copy")
    assert "matches no .parquet files" in error_message("memory://nowhere/*.parquet", streaming=True)
    assert "cannot be listed" in error_message("nosuch://tiles/*.parquet", streaming=True)


def test_hub_id_without_a_network_is_a_one_line_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for streaming in (False, True):
        message = error_message("blanchon/EuroSAT_MSI", streaming=streaming)
        assert message.startswith(
            "data.source='blanchon/EuroSAT_MSI' is no local path, and the hub cannot be reached or lacks it"
        )
        assert message.endswith(
            "YOUR_IMAGES blanchon/EuroSAT_MSI makes tiles there, HF_HUB_OFFLINE=1 uses an earlier download"
        )
