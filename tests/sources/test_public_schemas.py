"""Public parquet datasets, each as a small copy with its exact schema, read without conversion."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.source_files import LEVEL_2A, encode_image, error_message, random_array, resize_layer, tiff, tiles_of
from support.tile_files import SENTINEL2

from moco_accel.images.headers import DamagedTile
from moco_accel.sources.shard_writer import write_shards

# Major-TOM Core: a column of single-band GeoTIFFs per band, at 10, 20 and 60 m; row groups of a single row

STORED_NAMES = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
SIDES = {"B01": 8, "B02": 48, "B03": 48, "B04": 48, "B08": 48, "B09": 8}  # others: 24


@pytest.fixture
def major_tom(tmp_path):
    rows, layers = [], []
    for index in range(4):
        bands = {
            name: random_array((SIDES.get(name, 24),) * 2, seed=100 * index + n) for n, name in enumerate(STORED_NAMES)
        }
        row = {name: tiff(layer[None]) for name, layer in bands.items()}
        thumbnail = encode_image(random_array((16, 16, 3), "uint8", index))
        row |= {
            "product_id": f"S2B_MSIL2A_{index}",
            "grid_cell": f"{index}U_10R",
            "product_datetime": "20230101T000000",
            "thumbnail": {"bytes": thumbnail, "path": None},
            "cloud_mask": tiff(np.zeros((1, 48, 48), np.uint8)),
        }
        rows.append(row)
        layers.append(bands)
    names = ["product_id", "grid_cell", "product_datetime", "thumbnail", *STORED_NAMES, "cloud_mask"]
    kinds = dict.fromkeys(names[:3], "string")
    features = datasets.Features(
        {n: datasets.Image() if n == "thumbnail" else datasets.Value(kinds.get(n, "binary")) for n in names}
    )
    table = datasets.Dataset.from_list([{n: row[n] for n in names} for row in rows], features=features).data.table
    (tmp_path / "images").mkdir()
    pq.write_table(table, tmp_path / "images" / "part_00001.parquet", row_group_size=1)
    return tmp_path / "images", layers


@pytest.mark.parametrize("streaming", [False, True])
def test_major_tom_core(major_tom, streaming):
    folder, layers = major_tom
    tiles = tiles_of(folder, 4, bands=["B04", "B8a", "B1", "B02"], scaling="reflectance", streaming=streaming)
    assert (len(tiles), tiles.bands, tiles.image_column) == (4, ["B4", "B8A", "B1", "B2"], None)
    for index in (3, 0):
        expected = layers[index]
        tile = tiles[index].numpy()
        assert (tile.dtype, tile.shape) == (np.uint16, (4, 48, 48))
        assert np.array_equal(tile[0], expected["B04"])
        assert np.array_equal(tile[1], resize_layer(expected["B8A"], 48))
        assert np.array_equal(tile[2], resize_layer(expected["B01"], 48))
        assert np.array_equal(tile[3], expected["B02"])
    smaller = tiles_of(folder, 2, bands=["B05", "B09"], scaling="reflectance", streaming=streaming)
    assert smaller[0].shape == (2, 24, 24)  # the largest of the selected bands
    whole = tiles_of(folder, 12, bands=LEVEL_2A, scaling="reflectance", streaming=streaming)
    assert whole[1].shape == (12, 48, 48)
    assert whole.column("grid_cell")[2] == "2U_10R"
    assert tiles_of(folder, image_column="thumbnail", streaming=streaming)[0].shape == (3, 16, 16)


def test_major_tom_core_needs_bands(major_tom):
    folder, _ = major_tom
    listed = ", ".join(LEVEL_2A)
    assert error_message(folder, 12) == (
        f"data.bands=null, and '{folder}' has a column for each band; data.bands=[{listed}] or some of these work, or "
        "data.image_column=thumbnail"
    )
    assert error_message(folder, 2, bands=["B4", "B10"]) == (
        f"data.bands=[B4, B10] but '{folder}' has [{listed}]: B10 is not there"
    )
    assert error_message(folder, 1, bands=["B4"]).startswith("data.scaling=uint8, but the tiles in")


def test_major_tom_core_with_a_damaged_band(major_tom):
    folder, _ = major_tom
    path = folder / "part_00001.parquet"
    table = pq.read_table(path)
    rows = table.column("B03").to_pylist()
    rows[1], rows[2], rows[3] = None, rows[2][:50], tiff(np.zeros((2, 48, 48), np.uint16))
    pq.write_table(table.set_column(table.schema.get_field_index("B03"), "B03", pa.array(rows, pa.binary())), path)
    tiles = tiles_of(folder, 2, bands=["B02", "B03"], scaling="reflectance", streaming=True)
    assert tiles[0].shape == (2, 48, 48)
    for index, reason in ((1, "B03 is missing"), (2, "cannot be decoded"), (3, "B03 has 2 bands, not 1")):
        with pytest.raises(DamagedTile, match=f"^{reason}.*: row {index} of .*part_00001.parquet$"):
            tiles[index]


@pytest.mark.parametrize("streaming", [False, True])
def test_eurosat_msi(tmp_path, streaming):
    classes = ["Annual Crop", "Forest", "Sea or Lake"]
    features = datasets.Features(
        {
            "image": datasets.Array3D((64, 64, 13), "uint16"),
            "label": datasets.ClassLabel(names=classes),
            "filename": datasets.Value("string"),
        }
    )
    arrays = random_array((6, 64, 64, 13))
    rows = [{"image": a, "label": i % 3, "filename": f"{i}.tif"} for i, a in enumerate(arrays)]
    write_shards(rows, features, tmp_path / "t")
    message = error_message(tmp_path / "t", 13, scaling="reflectance")
    assert f"data.bands selects among them: data.stored_bands=[{', '.join(SENTINEL2)}] for Sentinel-2" in message
    assert message.endswith("B9, B10, B11, B12, B8A] for EuroSAT-MSI")
    red = tiles_of(tmp_path / "t", 1, stored_bands=SENTINEL2, bands=["B4"], scaling="reflectance", streaming=streaming)
    assert np.array_equal(red[5].numpy(), arrays[5].transpose(2, 0, 1)[3:4])
    tiles = tiles_of(tmp_path / "t", 13, bands=SENTINEL2, scaling="reflectance", streaming=streaming)
    assert tiles.labels("label") == ([0, 1, 2] * 2, classes)
    for index in range(6):
        assert np.array_equal(tiles[index].numpy(), arrays[index].transpose(2, 0, 1))


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_of_images_with_or_without_the_features(tmp_path, streaming):
    arrays = random_array((3, 20, 20, 3), "uint8")
    images = [{"bytes": encode_image(a), "path": f"{i}.png"} for i, a in enumerate(arrays)]
    plain = pa.table({"image": images, "label": [0, 1, 0], "raw": [b"mask", b"words", b""]})
    pq.write_table(plain, tmp_path / "plain.parquet")  # bytes that are no image are no second candidate
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["a", "b"])})
    rows = [{"img": image, "fine_label": i % 2} for i, image in enumerate(images)]
    write_shards(rows, features, tmp_path / "hub")
    binary = pa.table({"jpg": [encode_image(a) for a in arrays]}, pa.schema({"jpg": pa.binary()}))
    pq.write_table(binary, tmp_path / "binary.parquet")
    for source, column in (("plain.parquet", "image"), ("hub", "img"), ("binary.parquet", "jpg")):
        tiles = tiles_of(tmp_path / source, streaming=streaming)
        assert (tiles.image_column, tiles.bands) == (column, ["red", "green", "blue"])
        for index in range(3):
            assert np.array_equal(tiles[index].numpy(), arrays[index].transpose(2, 0, 1))
    pq.write_table(pa.table({"label": [1]}), tmp_path / "none.parquet")
    assert "has no image column (label); columns of Image, bytes or Array3D of" in error_message(
        tmp_path / "none.parquet", streaming=streaming
    )


def test_datasets_alone_cannot_read_these_tiles(tmp_path):
    """`Image(decode=True)` uses Pillow, which cannot read a TIFF of 12 bands (datasets #5791)."""
    array = random_array((12, 16, 16))
    row = {"image": {"bytes": tiff(array), "path": None}}
    write_shards([row], datasets.Features({"image": datasets.Image()}), tmp_path)
    dataset = datasets.Dataset.from_parquet(str(tmp_path / "*.parquet"))
    with pytest.raises(OSError, match="cannot identify image file"):
        dataset[0]
    for streaming in (False, True):
        tiles = tiles_of(tmp_path, 12, bands=LEVEL_2A, scaling="reflectance", streaming=streaming)
        assert np.array_equal(tiles[0].numpy(), array)
