"""Band names: canonical spelling, selection by name, true colour."""

from __future__ import annotations

import pytest

from moco_accel.common.errors import UserError
from moco_accel.recipe.bands import (
    KNOWN_ORDERS,
    SENTINEL2,
    canonical_band,
    canonical_bands,
    example_bands,
    format_bands,
    offer_bands,
    parse_bands,
    picture_bands,
    select_bands,
)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        *[(spelling, "B1") for spelling in ("B01", "B1", "b1", "b01", "Band 1", "band_1", "BAND01", "SR_B1", " B1 ")],
        *[(spelling, "B8A") for spelling in ("B8a", "B8A", "b8a", "B08A")],
        ("B8", "B8"),
        ("B11", "B11"),
        ("ST_B10", "B10"),
        *[(spelling, "red") for spelling in ("Red", "R", "r", "RED")],
        ("gray", "grey"),
        ("NIR", "nir"),
        ("elevation", "elevation"),
        ("VV", "vv"),
    ],
)
def test_canonical_spelling(name: str, canonical: str) -> None:
    assert canonical_band(name) == canonical
    assert canonical_band(canonical) == canonical


def test_duplicate_bands_are_refused() -> None:
    assert canonical_bands(["B01", "b8a"]) == ["B1", "B8A"]
    with pytest.raises(UserError, match=r"bands B01, B2, B1: B01 and another are both B1; name it once"):
        canonical_bands(["B01", "B2", "B1"])


def test_bands_are_selected_by_name_in_the_requested_order() -> None:
    stored = ["B02", "B03", "B04", "B8A"]
    assert select_bands(["b4", "B3", "B8a"], stored, "data.bands", "tiles") == [2, 1, 3]
    with pytest.raises(UserError) as caught:
        select_bands(["B4", "B8"], stored, "data.bands", "tiles")
    assert str(caught.value) == "data.bands=[B4, B8] but 'tiles' has [B2, B3, B4, B8A]: B8 is not there"


def test_true_colour_from_names() -> None:
    assert picture_bands(SENTINEL2, 13, "sentinel2") == (3, 2, 1)
    assert picture_bands(["B1", "B2", "B3", "B4", "B5", "B7"], 6, "landsat7") == (2, 1, 0)
    assert picture_bands(["B1", "B2", "B3", "B4", "B5", "B7"], 6, "landsat8") == (3, 2, 1)
    assert picture_bands(["nir", "Red", "Green", "Blue"], 4) == (1, 2, 3)
    assert picture_bands(["B8", "B11"], 2) == (0, 0, 0)
    assert picture_bands(None, 5) == (0, 1, 2)


def test_ranges_of_names() -> None:
    assert parse_bands("B1..B3,nir", "--bands") == ["B1", "B2", "B3", "nir"]
    assert parse_bands("ch09..ch11", "--bands") == ["ch09", "ch10", "ch11"]
    assert len(parse_bands("B1..B224", "--bands")) == 224
    for unclear in ("B3..B1", "B1..C3", "B1..", "..", "a.b"):
        assert parse_bands(unclear, "--bands") == [unclear]


def test_long_lists_are_shortened() -> None:
    assert format_bands(["B1", "B2"]) == "B1, B2"
    assert format_bands([f"B{number}" for number in range(1, 225)]) == "B1, B2, … B224 (224)"


def test_known_orders_have_their_number_of_bands_once_each() -> None:
    for count, orders in KNOWN_ORDERS.items():
        for data, names in orders:
            assert len(canonical_bands(names)) == len(set(names)) == count, data
            assert list(names) == canonical_bands(names)
            assert f"--band-names {','.join(names)} for {data}" in offer_bands(count)
            as_field = f"data.stored_bands=[{', '.join(names)}] for {data}"
            assert as_field in offer_bands(count, lambda x: f"data.stored_bands=[{', '.join(x)}]")
    assert offer_bands(5) == "--band-names B1,B2,B3,B4,B5"
    assert offer_bands(224) == "--band-names B1..B224"


def test_examples_name_every_band_once() -> None:
    for count in range(1, 40):
        assert len(canonical_bands(parse_bands(example_bands(count), "--band-names"))) == count
