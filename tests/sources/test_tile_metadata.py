"""The description of a set of tiles, in tiles.json and in a shard's schema."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moco_accel.sources.tile_metadata import METADATA_FILE, TileMetadata, metadata_from_json, read_metadata
from moco_accel.tiles.running_statistics import RunningStatistics


def test_metadata_round_trip_and_from_a_shards_schema(tmp_path: Path) -> None:
    running = RunningStatistics(2, "int16")
    running.add(np.arange(2 * 8 * 8, dtype=np.int16).reshape(2, 8, 8))
    metadata = TileMetadata(["B4", "B8A"], "int16", "sentinel2", 0.0, running.statistics())
    assert metadata_from_json(metadata.to_json()) == metadata
    from_schema = read_metadata(tmp_path, metadata.schema_metadata())
    assert from_schema == TileMetadata(["B4", "B8A"], "int16", "sentinel2", 0.0, None)
    (tmp_path / METADATA_FILE).write_text(metadata.to_json())
    assert read_metadata(tmp_path, metadata.schema_metadata()) == metadata
    assert read_metadata(tmp_path / "elsewhere") is None
    for text in ("[]", "{}", '{"bands": ["a"], "dtype": "uint8", "colour": 1}', "no JSON"):
        with pytest.raises(ValueError):
            metadata_from_json(text)
