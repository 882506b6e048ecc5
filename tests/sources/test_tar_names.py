"""Names of tar members: dots of their own, members that are passed over, hidden ones; and advice about columns."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support.source_files import encode_image, error_message, random_array, tiff, tiles_of, write_tar

ARRAYS = random_array((8, 12, 12, 3), "uint8")
RAWS = [encode_image(array) for array in ARRAYS]


@pytest.mark.parametrize(
    "name", ["ortho_0.5m_{:03}.png", "a/12.5_{}.png", "S2A_2020.06.0{}.png", "{}.png", "tile-{}.v1.png", "{}.0_x.png"]
)
def test_names_with_dots(tmp_path, name):
    write_tar(tmp_path / "t.tar", [(name.format(index), raw) for index, raw in enumerate(RAWS)])
    tiles = tiles_of(tmp_path / "t.tar")
    assert len(tiles) == 8
    assert all(np.array_equal(tiles[index].numpy(), ARRAYS[index].transpose(2, 0, 1)) for index in range(8))


def test_names_with_dots_keep_their_labels_and_bands(tmp_path):
    members = [(f"ortho_0.5m_{n}.{kind}", raw) for n in range(8) for kind, raw in (("png", RAWS[n]), ("cls", b"1"))]
    write_tar(tmp_path / "t.tar", members)
    tiles = tiles_of(tmp_path / "t.tar")
    assert tiles.labels("label") == ([1] * 8, ["0", "1"])
    assert tiles.column("__key__")[3] == "ortho_0.5m_3"
    layer = random_array((1, 12, 12))
    bands = [(f"o_0.5m_{n}.{band}.tif", tiff(layer + n)) for n in range(6) for band in ("B02", "B03")]
    write_tar(tmp_path / "b.tar", bands)
    assert len(tiles_of(tmp_path / "b.tar", 2, bands=["B2", "B3"], scaling="percentiles")) == 6


def test_columns_that_samples_share_are_kept(tmp_path):
    members = [(f"{n}.{kind}.png", RAWS[n]) for n in range(8) for kind in ("view1", "view2")]
    write_tar(tmp_path / "t.tar", members)
    message = error_message(tmp_path / "t.tar")
    works = re.search(r"data\.image_column=(\S+) works", message)
    assert len(tiles_of(tmp_path / "t.tar", image_column=works[1])) == 8


def test_members_that_are_passed_over_are_printed(tmp_path, capfd):
    others = [("readme.md", b"x"), ("0.xml", b"x"), ("1.xml", b"x"), ("LICENSE", b"x")]
    hidden = [("__MACOSX/._0.png", b"x"), ("._1.png", b"x"), (".ipynb_checkpoints/0.png", RAWS[0])]
    write_tar(tmp_path / "t.tar", [*((f"{n}.png", raw) for n, raw in enumerate(RAWS)), *others, *hidden])
    assert len(tiles_of(tmp_path / "t.tar")) == 8
    assert capfd.readouterr().err == (
        f"data.source='{tmp_path}/t.tar': members that are no tile and no label are left out: 2 .xml, 1 .md, "
        "1 without an ending; e.g. readme.md\n"
    )


def test_a_member_that_is_there_twice_is_printed(tmp_path, capfd):
    """A tar that was appended to holds a name twice; the later one counts, as for tar itself."""
    write_tar(tmp_path / "t.tar", [("0.png", RAWS[0]), ("1.png", RAWS[1]), ("0.png", RAWS[2])])
    tiles = tiles_of(tmp_path / "t.tar")
    assert np.array_equal(tiles[0].numpy(), ARRAYS[2].transpose(2, 0, 1))
    assert "left out: 1 .png; e.g. 0.png" in capfd.readouterr().err


def test_a_column_that_few_samples_have_is_not_offered(tmp_path):
    members = [(f"{n}.image.png", raw) for n, raw in enumerate(RAWS)]
    extra = [(f"{n}.extra.png", RAWS[n]) for n in range(5)]
    write_tar(tmp_path / "t.tar", [extra[0], *members, *extra[1:]])
    message = error_message(tmp_path / "t.tar")
    assert "data.image_column=image.png works" in message
    assert len(tiles_of(tmp_path / "t.tar", image_column="image.png")) == 8
    write_tar(tmp_path / "p.tar", [*extra, *((f"{n}.image.png", raw) for n, raw in enumerate(RAWS) if n > 2)])
    assert "none works, for each is missing in some of 8 tiles (extra.png 3, image.png 3)" in error_message(
        tmp_path / "p.tar"
    )


def test_images_of_several_formats_are_one_column(tmp_path):
    raws = [encode_image(array, kind) for array, kind in zip(ARRAYS[:3], ("png", "tiff", "png"), strict=True)]
    names = ["0.png", "1.TIFF", "2.png"]
    write_tar(tmp_path / "t.tar", list(zip(names, raws, strict=True)))
    tiles = tiles_of(tmp_path / "t.tar")
    assert all(np.array_equal(tiles[index].numpy(), ARRAYS[index].transpose(2, 0, 1)) for index in range(3))


def test_names_of_tar_in_its_own_folder_are_read(tmp_path):
    """`tar -cf t.tar .` writes ./0.png."""
    write_tar(tmp_path / "t.tar", [(f"./{index}.png", raw) for index, raw in enumerate(RAWS)])
    assert len(tiles_of(tmp_path / "t.tar")) == 8
