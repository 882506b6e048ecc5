import shlex
from pathlib import Path

import pytest

from moco_accel.common.errors import UserError
from moco_accel.recipe.bands import canonical_band
from moco_accel.scenes.find_scenes import find_images, find_scenes

BANDS_OF_S1 = (("vh", 2), ("vv", 1))


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_sentinel2_safe_level_2a_takes_each_band_at_its_finest_resolution(tmp_path):
    safe = "S2B_MSIL2A_20220831T153819_N0400_R011_T18TWL_20220831T193823.SAFE"
    data = f"{safe}/GRANULE/L2A_T18TWL/IMG_DATA"
    stem = "T18TWL_20220831T153819"
    touch(
        tmp_path,
        *(f"{data}/R10m/{stem}_{band}_10m.jp2" for band in ("B02", "B03", "B04", "B08", "AOT", "WVP", "TCI")),
        *(f"{data}/R20m/{stem}_{band}_20m.jp2" for band in ("B02", "B05", "B8A", "B12", "SCL")),
        *(f"{data}/R60m/{stem}_{band}_60m.jp2" for band in ("B01", "B02", "B8A", "B09")),
        f"{safe}/GRANULE/L2A_T18TWL/QI_DATA/MSK_CLDPRB_20m.jp2",
        f"{safe}/GRANULE/L2A_T18TWL/QI_DATA/{stem}_PVI.jp2",
    )
    found = find_scenes(tmp_path)
    (scene,) = found.scenes
    assert scene.name == f"{data}/{stem}"
    assert scene.file_bands == ("B1", "B2", "B3", "B4", "B5", "B8", "B8A", "B9", "B12")
    folders = [path.parent.name for path in scene.files]
    assert folders == ["R60m", "R10m", "R10m", "R10m", "R20m", "R10m", "R20m", "R60m", "R20m"]
    assert (scene.sensor, scene.baseline, scene.panchromatic) == ("sentinel2", 400, None)
    assert len(found.non_band_files) == 6


@pytest.mark.parametrize(
    ("names", "sensor", "bands", "surface"),
    [
        (["LC08_L1TP_014034_20200101_20200113_02_T1_B{}.TIF"], "landsat8", ["1", "4", "10"], False),
        (["LC09_L2SP_014034_20220101_20220113_02_T1_SR_B{}.TIF"], "landsat8", ["1", "4", "7"], True),
        (["LE07_L1TP_014034_20000101_20200113_02_T1_B{}.TIF"], "landsat7", ["1", "4", "8"], False),
        (["LC80140342016001LGN00_B{}.TIF"], "landsat8", ["1", "4", "8"], False),
        (["LT05_L1TP_014034_19900101_20200113_02_T1_B{}.TIF"], "landsat7", ["1", "7"], False),
        (["s2_B{}.jp2"], "sentinel2", ["02", "8A", "12"], False),
        (["patch/B{}.tif"], "sentinel2", ["02", "8A", "12"], False),  # only Sentinel-2 has a B8A
        (["patch/B{}.tif"], None, ["02", "03"], False),
    ],
)
def test_band_files_of_one_scene(tmp_path, names, sensor, bands, surface):
    touch(tmp_path, *(name.format(band) for name in names for band in bands))
    (scene,) = find_scenes(tmp_path).scenes
    assert (scene.sensor, scene.surface) == (sensor, surface)
    assert scene.file_bands == tuple("B" + band.lstrip("0") for band in bands)


def test_scenes_differ_in_folder_or_common_part_of_names(tmp_path):
    touch(
        tmp_path, "a/x_B1.tif", "a/x_B2.tif", "a/y_B1.tif", "b/x_B1.tif", "b/x_B2.tif", "b/photo.png", "b/chart_B2.png"
    )
    scenes = find_scenes(tmp_path).scenes
    assert [(scene.name, scene.file_bands) for scene in scenes] == [
        ("a/x", ("B1", "B2")),
        ("a/y_B1.tif", ("B1",)),
        ("b/chart_B2.png", ()),
        ("b/photo.png", ()),
        ("b/x", ("B1", "B2")),
    ]


def test_quality_flags_beside_bands_are_skipped(tmp_path):
    stem = "LC08_L2SP_014034_20200101_20200113_02_T1"
    beside = ["QA_PIXEL", "QA_RADSAT", "SR_QA_AEROSOL", "ST_QA", "ST_EMIS"]
    touch(tmp_path, f"{stem}_SR_B4.TIF", f"{stem}_ST_B10.TIF", *(f"{stem}_{name}.TIF" for name in beside))
    touch(tmp_path, "alone/T18TWL_20220831T153819_TCI.jp2")
    found = find_scenes(tmp_path)
    assert sorted(path.stem.removeprefix(f"{stem}_") for path in found.non_band_files) == sorted(beside)
    assert [scene.file_bands for scene in found.scenes] == [("B4", "B10"), ()]


def test_the_source_folder_may_name_the_sensor(tmp_path):
    touch(tmp_path, "S2A_MSIL1C_20200101T000000_N0208_R1/a/tile.tif", "sub/landsat7.tif", "landsat-9/t.tif", "plot.tif")
    scenes = {scene.name: (scene.sensor, scene.baseline) for scene in find_scenes(tmp_path).scenes}
    assert scenes == {
        "S2A_MSIL1C_20200101T000000_N0208_R1/a/tile.tif": ("sentinel2", 208),
        "sub/landsat7.tif": ("landsat7", 0),
        "landsat-9/t.tif": ("landsat8", 0),
        "plot.tif": (None, 0),
    }
    inside = find_scenes(tmp_path / "S2A_MSIL1C_20200101T000000_N0208_R1")
    assert [scene.sensor for scene in inside.scenes] == ["sentinel2"]


def test_the_two_gains_of_landsat_7s_band_6_keep_their_names():
    assert [canonical_band(name) for name in ("B6_VCID_2", "b06_vcid_1", "B6")] == ["B6_VCID_2", "B6_VCID_1", "B6"]


def test_a_source_without_images_is_an_error(tmp_path):
    with pytest.raises(UserError, match="does not exist; a folder of images or one image works"):
        find_scenes(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no images; files ending in .*\.jp2 work"):
        find_scenes(tmp_path)


@pytest.mark.parametrize(
    ("names", "name", "sensor"),
    [
        (
            [f"s1a-iw-grd-{band}-20200101t000000-20200101t000025-030639-03827f-00{n}.tiff" for band, n in BANDS_OF_S1],
            "s1a-iw-grd-20200101t000000-20200101t000025-030639-03827f",
            "sentinel1",
        ),
        (["S1B_IW_1SDV_20200101_VH.tif", "S1B_IW_1SDV_20200101_VV.tif"], "S1B_IW_1SDV_20200101", "sentinel1"),
        (["field_VH.tif", "field_VV.tif"], "field", "sentinel1"),
        (["field_HH.tif", "field_HV.tif"], "field", None),
    ],
)
def test_polarisations_of_one_scene_are_stacked(tmp_path, names, name, sensor):
    touch(tmp_path, *names, "site_s1_photo.jpg")
    scene, photo = sorted(find_scenes(tmp_path).scenes, key=lambda scene: scene.name.endswith("jpg"))
    assert (scene.name, scene.sensor) == (name, sensor)
    assert scene.file_bands == (("hh", "hv") if sensor is None else ("vv", "vh"))
    assert [path.name for path in scene.files] == (names if sensor is None else names[::-1])
    assert (photo.sensor, photo.file_bands) == (None, ())


@pytest.mark.parametrize(
    ("names", "bands"),
    [
        (["x_nir.tif", "x_red.tif", "x_green.tif"], ("green", "red", "nir")),
        (["a/blue.jp2", "a/rededge2.jp2", "a/swir16.jp2"], ("blue", "rededge2", "swir16")),
        (["x_VV.tif", "x_B2.tif", "x_thermal.tif"], ("vv", "B2", "thermal")),
        (["LC08_L2SP_T1_SR_B4.TIF", "LC08_L2SP_T1_ST_B10.TIF"], ("B4", "B10")),
        (["LT05_T1_sr_band4.tif", "LT05_T1_sr_band5.tif"], ("B4", "B5")),
        (["MYD021_B31.tif", "MYD021_B32.tif"], ("B31", "B32")),
        (["x_VV_10m.tif", "x_VH_10m.tif"], ("vv", "vh")),
    ],
)
def test_named_bands_of_one_scene_are_stacked(tmp_path, names, bands):
    touch(tmp_path, *names)
    (scene,) = find_scenes(tmp_path).scenes
    assert scene.file_bands == bands
    assert len(scene.files) == len(names)


@pytest.mark.parametrize("names", [["B02.tif", "B03.tif"], ["R10m/B02_10m.jp2", "R20m/B8A_20m.jp2"]])
def test_bands_that_share_no_name_are_named_after_the_first(tmp_path, names):
    touch(tmp_path, *names)
    (scene,) = find_scenes(tmp_path).scenes
    assert (scene.name, len(scene.file_bands)) == (names[0], 2)


def test_a_word_alone_is_no_band(tmp_path):
    touch(tmp_path, "x_red.tif", "y_blue.tif", "z_red.png", "z_nir.tif", "w_red_10m.tif", "w_red_20m.tif")
    scenes = find_scenes(tmp_path).scenes
    assert len(scenes) == 6
    assert {scene.file_bands for scene in scenes} == {()}


def test_one_band_twice_is_refused(tmp_path):
    touch(tmp_path, "x_B2.tif", "x_B02.tif")
    with pytest.raises(UserError, match=r"^SRC=.*: x_B02.tif and x_B2.tif are both B2 of one scene; keep one$"):
        find_scenes(tmp_path)


def test_masks_of_sentinel_2_have_names_of_bands_and_are_none(tmp_path):
    touch(
        tmp_path, *(f"S/IMG_DATA/T_B{n}.jp2" for n in ("02", "03")), *(f"S/QI_DATA/MSK_B{n}.jp2" for n in ("02", "03"))
    )
    found = find_scenes(tmp_path)
    assert [scene.name for scene in found.scenes] == ["S/IMG_DATA/T"]
    assert [path.name for path in found.non_band_files] == ["MSK_B02.jp2", "MSK_B03.jp2"]


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        (["a.tif"], ["a.tif", "d/a.tif", "d/e/a.tif"]),
        (["d/*.tif"], ["d/a.tif"]),
        (["d/**/*.tif"], ["d/a.tif", "d/e/a.tif"]),
        (["**/e/*"], ["d/e/a.tif", "d/e/b.png"]),
        (["*.png", "d/a.*"], ["b.png", "d/a.tif", "d/e/b.png"]),
        (["?.[p]ng"], ["b.png", "d/e/b.png"]),
    ],
)
def test_only_takes_names_or_paths(tmp_path, only, chosen):
    touch(tmp_path, "a.tif", "b.png", "d/a.tif", "d/e/a.tif", "d/e/b.png")
    found = find_images(tmp_path, only=only)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == chosen


@pytest.mark.parametrize(
    ("only", "offered"),
    [
        ("d", "'d/**/*'"),
        ("d/", "'d/**/*'"),
        ("e", "'**/e/**/*'"),
        ("e/*.tif", "'**/e/*.tif'"),
        ("*.jp2", "'*.tif'"),
        ("{src}/d/*.tif", "'d/*.tif'"),
    ],
)
def test_a_pattern_that_takes_nothing_comes_with_one_that_works(tmp_path, only, offered):
    touch(tmp_path, "d/a.tif", "d/e/a.tif")
    only = only.format(src=tmp_path)
    with pytest.raises(UserError) as caught:
        find_images(tmp_path, only=[only])
    assert str(caught.value) == (
        f"--only={only!r} matches none of the 2 images in {str(tmp_path)!r}, e.g. d/a.tif; --only {offered} works"
    )
    assert find_images(tmp_path, only=shlex.split(offered))
