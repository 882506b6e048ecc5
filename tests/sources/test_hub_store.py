"""Parquet behind a URL, and hub ids."""

import numpy as np
from support.source_files import error_message, tiles_of

from moco_accel.recipe.data_sections import Data
from moco_accel.tiles.tiles import open_tiles


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
