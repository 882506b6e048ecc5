"""Per-band statistics in constant memory, exact for integers; and what is stored of a set of tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moco_accel.common.pixels import valid_pixels
from moco_accel.sources.tile_facts import FACTS_FILE, TileFacts, facts_from_json, read_facts
from moco_accel.tiles.band_counter import BandCounter


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
            off = 0  # 9,600 values: all of them are kept
            assert abs(per_band[band] - exact) <= off


@pytest.mark.parametrize("centre", [300.0, 101_325.0, 0.001])
def test_percentiles_of_many_floats_are_close_whatever_they_lie_around(centre: float) -> None:
    """Kelvin, pressure and reflectance: a sample of each 32nd value, in two counters, one stored in between."""
    values = np.random.default_rng(1).normal(centre, centre / 1000, (24, 1, 256, 256)).astype(np.float32)
    first, second = BandCounter(1, "float32"), BandCounter(1, "float32")
    for tile in values[:20]:
        first.add(tile)
    for tile in values[20:]:
        second.add(tile)
    restored = BandCounter.restored("float32", first.state())
    second.merge(restored)
    found = second.statistics().percentiles
    spread = centre / 1000
    for percent, tolerance in (("1", 0.06), ("50", 0.02), ("99", 0.06)):  # worst measured: 0.022, 0.008, 0.022
        assert abs(found[percent][0] - np.percentile(values, int(percent))) < tolerance * spread


def test_pixels_without_data_are_not_counted() -> None:
    tile = np.array([[[1.0, 2.0], [np.nan, 4.0]], [[10.0, 20.0], [30.0, 40.0]]], np.float32)
    counter = BandCounter(2, "float32")
    counter.add(tile, np.array([[True, False], [True, True]]))
    found = counter.statistics()
    assert (found.pixels, found.mean) == ([2, 3], [2.5, 80 / 3])
    assert found.nodata_share == 0.25
    nothing = BandCounter(1, "uint16").statistics()
    assert (nothing.mean, nothing.percentiles["99"], nothing.nodata_share) == ([0.0], [0.0], 0.0)


@pytest.mark.parametrize(
    ("dtype", "nodata", "valid"),
    [
        ("uint8", 7, [False, True, True, True]),  # an ordinary value: all bands must hold it
        ("uint16", 7, [False, False, False, True]),
        ("int16", (7, None), [False, False, True, True]),
        ("uint8", (7, None), [False, False, True, True]),
        ("float32", (7, 9.0), [False, False, True, False]),
        ("uint16", None, None),
        ("uint16", 8, None),
        ("uint16", float("nan"), None),
    ],
)
def test_where_a_tile_holds_data(dtype: str, nodata: object, valid: list[bool] | None) -> None:
    tile = np.array([[[7, 7, 1, 2]], [[7, 1, 7, 9]]]).astype(dtype)
    found = valid_pixels(tile, nodata)  # type: ignore[arg-type]
    assert (None if found is None else found[0].tolist()) == valid


def test_floats_hold_no_data_where_a_band_is_not_finite() -> None:
    tile = np.array([[[1, np.nan, 1, 1]], [[1, 1, -np.inf, 7]]], np.float32)
    for nodata in (None, float("nan")):
        found = valid_pixels(tile, nodata)
        assert found is not None
        assert found.tolist() == [[True, False, False, True]]
    assert valid_pixels(tile[:, :, :1], float("nan")) is None


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
