"""Names of files that hold one band of a tile."""

from __future__ import annotations

import pytest

from moco_accel.images.band_files import (
    band_order,
    group_band_files,
    is_band_name,
    parse_band_file,
    parse_non_band_file,
)


@pytest.mark.parametrize(
    ("stem", "parsed"),
    [
        ("B02", ("", "B2", 0)),
        ("x.b3", ("x", "B3", 0)),
        ("T18TWL_20220831T153819_B8A_20m", ("T18TWL_20220831T153819", "B8A", 20)),
        ("0_B4_10m", ("0", "B4", 10)),
        ("LC08_L2SP_014034_T1_SR_B4", ("LC08_L2SP_014034_T1", "B4", 0)),
        ("LC08_L2SP_014034_T1_ST_B10", ("LC08_L2SP_014034_T1", "B10", 0)),
        ("LE07_T1_B6_VCID_1", ("LE07_T1", "B6_VCID_1", 0)),
        ("LT05_T1_sr_band4", ("LT05_T1", "B4", 0)),
        ("LT05_T1_bt_band_6", ("LT05_T1", "B6", 0)),
        ("MOD09_B36", ("MOD09", "B36", 0)),
        ("p1_VV", ("p1", "vv", 0)),
        ("S1B_IW-hv", ("S1B_IW", "hv", 0)),
        ("p1_VH_10m", ("p1", "vh", 10)),
        ("s1a-iw-grd-vh-20200101t000000-03827f-002", ("s1a-iw-grd-20200101t000000-03827f", "vh", 0)),
        ("s1a-iw1-slc-vv-20200101t000000-03827f-004", ("s1a-iw1-slc-20200101t000000-03827f", "vv", 0)),
        ("x_Red", ("x", "red", 0)),
        ("x_red_edge", ("x", "rededge", 0)),
        ("x-red-edge-2", ("x", "rededge2", 0)),
        ("x_NIR_20m", ("x", "nir", 20)),
        ("near-infrared", ("", "nir", 0)),
        ("x_SWIR1", ("x", "swir1", 0)),
        ("x_swir_22", ("x", "swir22", 0)),
        ("x_coastal_aerosol", ("x", "coastal", 0)),
        ("IMG_170614_GRE", ("IMG_170614", "green", 0)),
        ("IMG_170614_REG", ("IMG_170614", "rededge", 0)),
        ("x_thermal", ("x", "thermal", 0)),
        ("xB02", None),
        ("colored", None),
        ("x_redder", None),
        ("x_B123", None),
        ("B2_x", None),
        ("tile_b_4", None),
        ("x_SCL", None),
        ("vvv", None),
        ("", None),
    ],
)
def test_parse_band_file(stem: str, parsed: tuple[str, str, int] | None) -> None:
    assert parse_band_file(stem) == parsed


def test_the_bands_of_a_sentinel_1_scene_share_a_name() -> None:
    names = [
        f"s1a-iw-grd-{band}-20200101t000000-20200101t000025-030639-03827f-00{n}" for band, n in (("vv", 1), ("vh", 2))
    ]
    (first, *_), (second, *_) = map(parse_band_file, names)  # type: ignore[misc]
    assert first == second == "s1a-iw-grd-20200101t000000-20200101t000025-030639-03827f"


@pytest.mark.parametrize(
    "name",
    [
        "0_CLD",
        "x_SCL_20m",
        "x.SCL",
        "T1_QA_PIXEL",
        "T1_SR_QA_AEROSOL",
        "T1_ST_EMIS",
        "a_TCI_10m",
        "a_AOT",
        "b_visual",
        "SNW",
        "a-WVP",
    ],
)
def test_files_beside_bands(name: str) -> None:
    assert parse_non_band_file(name) is not None
    assert parse_band_file(name) is None


def test_files_that_are_not_beside_bands() -> None:
    assert list(map(parse_non_band_file, ["x", "x_mask_1", "SCLx", "x_TCI_a", "B2", "x_vv"])) == [None] * 6


def test_names_of_bands() -> None:
    assert all(
        map(
            is_band_name,
            [
                "B4",
                "b04",
                "B8A",
                "SR_B4",
                "B6_VCID_2",
                "vv",
                "VH",
                "red",
                "nir",
                "Red_Edge",
                "rededge3",
                "swir16",
                "pan",
            ],
        )
    )
    assert not any(map(is_band_name, ["image", "mask", "x_B4", "B4_10m", "grey", "label", "r", "vvv", "B123"]))


def test_order_of_bands() -> None:
    bands = ["swir1", "B12", "red", "nir", "B8A", "B2", "blue", "vh", "B8", "rededge", "vv", "B6_VCID_1"]
    assert sorted(bands, key=band_order) == (
        ["vv", "vh", "B2", "B6_VCID_1", "B8", "B8A", "B12", "blue", "red", "rededge", "nir", "swir1"]
    )


def grouped(*names: str) -> dict[str, dict[str, str]]:
    found = group_band_files(names)
    return {"/".join(tile): {band: names[n] for band, n in bands.items()} for tile, bands in found.tiles.items()}


def test_words_are_bands_where_a_tile_has_two() -> None:
    assert grouped("x_red.tif", "y_red.tif") == {}
    assert grouped("x_red.tif", "x_nir.png") == {}
    assert grouped("x_red.tif", "x_red_10m.tif") == {}
    found = group_band_files(["x_nir.tif", "x_red.tif", "y_red.tif", "old_blue.tif"])
    assert found.tiles == {("", "x"): {"nir": 0, "red": 1}, ("", "y"): {"red": 2}}  # y lacks nir
    assert found.others == [3]
    assert grouped("x_B2.tif", "x_thermal.tif") == {"/x": {"B2": "x_B2.tif", "thermal": "x_thermal.tif"}}


def test_the_finest_file_of_a_band_is_taken() -> None:
    names = [
        "R10m/x_B02_10m.jp2",
        "R20m/x_B02_20m.jp2",
        "R20m/x_B8A_20m.jp2",
        "R60m/x_B02_60m.jp2",
        "R60m/x_B8A_60m.jp2",
    ]
    found = group_band_files(names)
    assert found.tiles == {("", "x"): {"B2": 0, "B8A": 2}}
    assert (found.coarser, found.repeated) == ([1, 3, 4], [])
    found = group_band_files(["x_B2_100m.tif", "x_B2_30m.tif", "x_B3.tif", "x_B03.tif"])
    assert (found.tiles, found.coarser, found.repeated) == ({("", "x"): {"B2": 1, "B3": 2}}, [0], [(2, 3, "B3")])


def test_files_that_are_no_bands_are_told_from_others() -> None:
    names = [
        "a/x_B2.tif",
        "a/x_B3.tif",
        "a/x_SCL.tif",
        "a/y_SCL.tif",
        "b/x_SCL.tif",
        "a/x_SCL.png",
        "a/x.tif",
        "c/x_TCI.tif",
    ]
    found = group_band_files(names)
    assert (found.beside, found.others) == ([2], [3, 4, 5, 6, 7])
    found = group_band_files(["g/IMG_DATA/T_B02.jp2", "g/QI_DATA/MSK_QUALIT_B02.jp2", "g/QI_DATA/T_PVI.jp2"])
    assert (found.tiles, found.beside) == ({("g/IMG_DATA", "T"): {"B2": 0}}, [1, 2])


def test_every_file_is_somewhere() -> None:
    parts = [
        "x_red.tif",
        "x_red_10m.tif",
        "x_B2.tif",
        "y_nir.tif",
        "x_TCI.tif",
        "a.png",
        "x_B2_20m.tif",
        "z_red.tif",
        "B2.TIF",
    ]
    for skipped in range(len(parts)):
        names = [name for number, name in enumerate(parts) if number != skipped]
        found = group_band_files(names)
        numbers = [n for bands in found.tiles.values() for n in bands.values()]
        numbers += [*found.coarser, *(second for _, second, _ in found.repeated), *found.beside, *found.others]
        assert sorted(numbers) == list(range(len(names)))
