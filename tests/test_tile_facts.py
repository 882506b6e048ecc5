"""Per-band statistics in constant memory, exact for integers; and what is stored of a set of tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moco_accel.tile_facts import FACTS_FILE, BandCounter, TileFacts, facts_from_json, read_facts


def tiles(dtype: str) -> np.ndarray:  # type: ignore[type-arg]
    values = np.random.default_rng(0).normal(0, 300, (6, 2, 40, 40))
    shift = {"uint8": 100, "uint16": 2000}.get(dtype, 0)
    return (values / (10 if dtype == "uint8" else 1) + shift).clip(0 if dtype[0] == "u" else None).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_statistics_are_numpys(dtype: str) -> None:
    """Counted tile by tile in two counters that are then merged, one of them stored and restored in between."""
    all_tiles = tiles(dtype)
    first, second = BandCounter(2, dtype), BandCounter(2, dtype)
    for tile in all_tiles[:4]:
        first.add(tile)
    for tile in all_tiles[4:]:
        second.add(tile)
    first = BandCounter.restored(dtype, first.state())
    first.merge(second)
    found = first.statistics()
    for band in range(2):
        values = all_tiles[:, band].astype(np.float64)
        assert found.pixels[band] == values.size
        assert (found.minimum[band], found.maximum[band]) == (values.min(), values.max())
        assert found.mean[band] == pytest.approx(values.mean(), rel=1e-12)
        assert found.std[band] == pytest.approx(values.std(), rel=1e-9)  # worst measured: 2e-11
        for percent, per_band in found.percentiles.items():
            exact = float(np.percentile(values, int(percent), method="inverted_cdf"))
            off = 0 if dtype != "float32" else abs(exact) / 127
            assert abs(per_band[band] - exact) <= off


def test_pixels_without_data_are_not_counted() -> None:
    tile = np.array([[[1.0, 2.0], [np.nan, 4.0]], [[10.0, 20.0], [30.0, 40.0]]], np.float32)
    counter = BandCounter(2, "float32")
    counter.add(tile, np.array([[True, False], [True, True]]))
    found = counter.statistics()
    assert (found.pixels, found.mean) == ([2, 3], [2.5, 80 / 3])
    assert found.nodata_share == 0.25
    nothing = BandCounter(1, "uint16").statistics()
    assert (nothing.mean, nothing.percentiles["99"], nothing.nodata_share) == ([0.0], [0.0], 0.0)


def test_facts_both_ways_and_from_a_shards_schema(tmp_path: Path) -> None:
    counter = BandCounter(2, "int16")
    counter.add(tiles("int16")[0])
    facts = TileFacts(["B4", "B8A"], "int16", "sentinel2", 0.0, counter.statistics())
    assert facts_from_json(facts.to_json()) == facts
    from_schema = read_facts(tmp_path, facts.schema_metadata())
    assert from_schema == TileFacts(["B4", "B8A"], "int16", "sentinel2", 0.0, None)
    (tmp_path / FACTS_FILE).write_text(facts.to_json())
    assert read_facts(tmp_path, facts.schema_metadata()) == facts
    assert read_facts(tmp_path / "elsewhere") is None
    for text in ("[]", "{}", '{"bands": ["a"], "dtype": "uint8", "colour": 1}', "no JSON"):
        with pytest.raises(ValueError):
            facts_from_json(text)
