"""The nodata mask of a tile."""

from __future__ import annotations

import numpy as np
import pytest

from moco_accel.common.pixels import valid_pixels


@pytest.mark.parametrize(
    ("dtype", "nodata", "valid"),
    [
        ("uint8", 7, [False, True, True, True]),  # a common value in 8 bits: all bands must have it
        ("uint16", 7, [False, False, False, True]),
        ("int16", (7, None), [False, False, True, True]),
        ("uint8", (7, None), [False, False, True, True]),
        ("float32", (7, 9.0), [False, False, True, False]),
        ("uint16", None, None),
        ("uint16", 8, None),
        ("uint16", float("nan"), None),
    ],
)
def test_pixels_with_nodata_values_are_invalid(dtype: str, nodata: object, valid: list[bool] | None) -> None:
    tile = np.array([[[7, 7, 1, 2]], [[7, 1, 7, 9]]]).astype(dtype)
    found = valid_pixels(tile, nodata)  # type: ignore[arg-type]
    assert (None if found is None else found[0].tolist()) == valid


def test_float_pixels_that_are_not_finite_are_invalid() -> None:
    tile = np.array([[[1, np.nan, 1, 1]], [[1, 1, -np.inf, 7]]], np.float32)
    for nodata in (None, float("nan")):
        found = valid_pixels(tile, nodata)
        assert found is not None
        assert found.tolist() == [[True, False, False, True]]
    assert valid_pixels(tile[:, :, :1], float("nan")) is None
