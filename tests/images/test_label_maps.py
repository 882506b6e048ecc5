"""Masks, label maps and quick-looks are told from imagery by name and by value."""

import numpy as np
import pytest

from moco_accel.images.label_maps import find_masks, has_mask_name, has_preview_name, is_label_map

MASKS = (
    "masks/1.png masks_b/1.png train_masks/a.png labels/a.tif annotations/a.png gt/a.png GT/a.png seg/a.tif "
    "groundtruth/a.tif ground_truth/a.tif ann_dir/train/1.png SegmentationClass/1.png a/masks/b/c.tif "
    "1_3B_AnalyticMS_DN_udm.tif 1_3B_udm2.tif 21717_sat_mask.png a_label.tif a_gt.png a-labels.tif mask_001.png "
    "label_R1C2.tif mask12.png S2_SCL.tif scene_SCL_20.tif LC08_x_QA_PIXEL.TIF LC08_x_BQA.TIF LC08_x_Fmask.tif "
    "x_cloudmask.tif x_cloud_mask.tif QA60.tif a_labelIds.png"
)
IMAGERY = (
    "images/1.png 1_3B_AnalyticMS_SR.tif a.tif unmasked/a.tif labelled/a.tif a_B4.tif x_segment12.tif GT5_scene.tif "
    "masked.tif seguin/a.tif forest/1.png scale.tif qatar.tif mask_off_scene.tif augt.tif labelling.tif"
)


@pytest.mark.parametrize("path", MASKS.split())
def test_names_of_masks(path):
    assert has_mask_name(path)


@pytest.mark.parametrize("path", IMAGERY.split())
def test_names_of_imagery(path):
    assert not has_mask_name(path)
    assert not has_preview_name(path)


@pytest.mark.parametrize(
    "path",
    [
        "S2A-ql.jpg",
        "a_thumb_large.jpg",
        "a_browse.png",
        "preview.jpg",
        "T32_PVI.jp2",
        "a_thumbnail.png",
        "quicklook.jpg",
    ],
)
def test_names_of_previews(path):
    assert has_preview_name(path)


def test_masks_are_found_beside_imagery_only():
    assert find_masks(["images/1.png", "masks/1.png"]) == ["masks/1.png"]
    assert find_masks(["masks/1.png", "masks/2.png"]) == []
    assert find_masks(["images_and_labels/x/1.png", "images_and_labels/labels/1.png"]) == [
        "images_and_labels/labels/1.png"
    ]
    assert find_masks(["labels/1.png", "labels/2.png", "labels/1_mask.png"]) == ["labels/1_mask.png"]
    assert find_masks(["a_label.tif"]) == []


def test_label_maps_have_few_values():
    generator = np.random.default_rng(0)
    for dtype in ("uint8", "uint16", "int16"):
        assert is_label_map(generator.integers(0, 2, (1, 64, 64)).astype(dtype))
        assert is_label_map(generator.integers(0, 16, (1, 64, 64)).astype(dtype))
        assert not is_label_map(generator.integers(0, 40, (1, 64, 64)).astype(dtype))
    assert is_label_map(np.zeros((1, 64, 64), np.uint8))
    assert not is_label_map(generator.integers(0, 16, (1, 4, 4)).astype("uint8"))
    assert not is_label_map(generator.integers(0, 2, (1, 64, 64)).astype("float32"))
    assert not is_label_map(generator.integers(0, 2, (2, 64, 64)).astype("uint16"))


def test_colours_of_classes_are_a_label_map_and_a_picture_is_not():
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (6, 3)).astype(np.uint8)
    assert is_label_map(colours[generator.integers(0, 6, (64, 64))].transpose(2, 0, 1))
    assert not is_label_map(generator.integers(0, 6, (3, 64, 64)).astype(np.uint8))
