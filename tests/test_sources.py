"""What people already have, each as a small set of exactly its schema, read without conversion."""

import io
import json
import pickle
import tarfile
import warnings

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from moco_accel.imagery.shard_writer import write_shards
from moco_accel.reading.decoding import DamagedTile
from moco_accel.reading.tiles import open_tiles
from moco_accel.recipe_text import RecipeError
from moco_accel.recipe_tiles import Data

rasterio = pytest.importorskip("rasterio")

SENTINEL2 = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"]
LEVEL_2A = [band for band in SENTINEL2 if band != "B10"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def tiles_of(source, num_bands=3, **data):
    return open_tiles(str(source), Data(**data), num_bands)


def message(source, num_bands=3, **data):
    with pytest.raises(RecipeError) as caught:
        tiles_of(source, num_bands, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def draw(shape, dtype="uint16", seed=0):
    return np.random.default_rng(seed).integers(0, 255 if dtype == "uint8" else 9000, shape).astype(dtype)


def tiff(array, descriptions=(), **profile):
    """GeoTIFF bytes of [bands, height, width]."""
    profile = {"count": array.shape[0], "height": array.shape[1], "width": array.shape[2], **profile}
    with warnings.catch_warnings(), rasterio.MemoryFile() as file:
        warnings.simplefilter("ignore")
        with file.open(driver="GTiff", dtype=array.dtype.name, **profile) as image:
            image.write(array)
            for number, text in enumerate(descriptions, start=1):
                image.set_band_description(number, text)
        return file.read()


def picture(array, kind="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def enlarged(layer, size):
    return (
        interpolate(torch.from_numpy(layer.astype(np.float32))[None, None], size, mode="bilinear")[0, 0].round().numpy()
    )


# Major-TOM Core: one GeoTIFF of one band in each of its columns, at 10, 20 and 60 m; row groups of a single row

STORED_NAMES = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
SIDES = {"B01": 8, "B02": 48, "B03": 48, "B04": 48, "B08": 48, "B09": 8}  # others: 24


@pytest.fixture
def major_tom(tmp_path):
    rows, layers = [], []
    for index in range(4):
        bands = {name: draw((SIDES.get(name, 24),) * 2, seed=100 * index + n) for n, name in enumerate(STORED_NAMES)}
        row = {name: tiff(layer[None]) for name, layer in bands.items()}
        thumbnail = picture(draw((16, 16, 3), "uint8", index))
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
        assert np.array_equal(tile[1], enlarged(expected["B8A"], 48))
        assert np.array_equal(tile[2], enlarged(expected["B01"], 48))
        assert np.array_equal(tile[3], expected["B02"])
    smaller = tiles_of(folder, 2, bands=["B05", "B09"], scaling="reflectance", streaming=streaming)
    assert smaller[0].shape == (2, 24, 24)  # the largest among the chosen
    whole = tiles_of(folder, 12, bands=LEVEL_2A, scaling="reflectance", streaming=streaming)
    assert whole[1].shape == (12, 48, 48)
    assert whole.column("grid_cell")[2] == "2U_10R"
    assert tiles_of(folder, image_column="thumbnail", streaming=streaming)[0].shape == (3, 16, 16)


def test_major_tom_core_asks_which_bands(major_tom):
    folder, _ = major_tom
    listed = ", ".join(LEVEL_2A)
    assert message(folder, 12) == (
        f"data.bands=null, and '{folder}' has a column for each band; data.bands=[{listed}] or some of these work, or "
        "data.image_column=thumbnail"
    )
    assert message(folder, 2, bands=["B4", "B10"]) == (
        f"data.bands=[B4, B10] but '{folder}' has [{listed}]: B10 is not there"
    )
    assert message(folder, 1, bands=["B4"]).startswith("data.scaling=uint8, but the tiles in")


def test_major_tom_core_with_a_band_damaged(major_tom):
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


# EuroSAT-MSI: bands last


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
    arrays = draw((6, 64, 64, 13))
    rows = [{"image": a, "label": i % 3, "filename": f"{i}.tif"} for i, a in enumerate(arrays)]
    write_shards(rows, features, tmp_path / "t")
    assert message(tmp_path / "t", 13, scaling="reflectance").endswith(
        f"in their order, with encoder.bands=13: data.bands=[{', '.join(SENTINEL2)}] if they are Sentinel-2's"
    )
    tiles = tiles_of(tmp_path / "t", 13, bands=SENTINEL2, scaling="reflectance", streaming=streaming)
    assert tiles.labels("label") == ([0, 1, 2] * 2, classes)
    for index in range(6):
        assert np.array_equal(tiles[index].numpy(), arrays[index].transpose(2, 0, 1))


# s2-100k: tar shards of 12-band uint16 TIFFs


def write_tar(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, raw in members:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))


def test_tar_shards_of_twelve_bands(tmp_path):
    arrays = draw((5, 12, 16, 16))
    for shard, part in enumerate(np.split(np.arange(5), [3])):
        members = [(f"images/patch_{index}.tif", tiff(arrays[index])) for index in part]
        write_tar(tmp_path / "t" / f"shard-{shard:06d}.tar", [("images/readme.md", b"words"), *members])
    tiles = tiles_of(tmp_path / "t", 12, bands=LEVEL_2A, scaling="reflectance")
    assert tiles.shard_sizes == [3, 2]
    for index in (4, 0, 2, 1, 3):
        assert np.array_equal(tiles[index].numpy(), arrays[index])
    assert tiles.column("__key__") == [f"images/patch_{index}" for index in range(5)]
    assert torch.equal(pickle.loads(pickle.dumps(tiles))[3], tiles[3])
    assert len(tiles_of(tmp_path / "t" / "*-000001.tar", 12, bands=LEVEL_2A, scaling="reflectance")) == 2


@pytest.mark.parametrize(
    ("suffix", "raws", "labels"),
    [
        ("cls", [b"2", b"0", b"1\n"], ([2, 0, 1], ["0", "1", "2"])),
        ("txt", [b"sea", b"ice", b"sea"], ([1, 0, 1], ["ice", "sea"])),
        ("json", [json.dumps({"label": n, "lon": 1.5}).encode() for n in (1, 0, 1)], ([1, 0, 1], ["0", "1"])),
    ],
)
def test_tar_shards_with_labels(tmp_path, suffix, raws, labels):
    arrays = draw((3, 12, 12, 3), "uint8")
    kinds = [("0.png", picture(arrays[0])), ("0.jpeg", picture(arrays[1], "jpeg")), ("0.npy", npy(arrays[2]))]
    members = [m for i, raw in enumerate(raws) for m in ((f"a{i}.png", picture(arrays[i])), (f"a{i}.{suffix}", raw))]
    write_tar(tmp_path / "t.tar", members)
    tiles = tiles_of(tmp_path / "t.tar")
    assert tiles.labels("label") == labels
    assert np.array_equal(tiles[2].numpy(), arrays[2].transpose(2, 0, 1))
    for name, raw in kinds:
        write_tar(tmp_path / "one" / "t.tar", [(name, raw)])
        assert tiles_of(tmp_path / "one")[0].shape == (3, 12, 12)


def test_a_band_in_each_member(tmp_path):
    arrays = draw((2, 2, 16, 16))
    members = [(f"{i}.B0{b + 3}.tif", tiff(arrays[i, b : b + 1])) for i in range(2) for b in range(2)]
    write_tar(tmp_path / "t.tar", [*members, ("2.B04.tif", members[0][1])])
    tiles = tiles_of(tmp_path / "t.tar", 2, bands=["B4", "B3"], scaling="reflectance")
    assert np.array_equal(tiles[1].numpy(), arrays[1][::-1])
    with pytest.raises(DamagedTile, match=r"^B3 is missing: 2 in .*t.tar$"):
        tiles[2]


def test_tar_shards_that_cannot_be_read(tmp_path):
    raw = picture(draw((12, 12, 3), "uint8"))
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz"):
        pass
    assert message(tmp_path / "t.tar.gz") == message(tmp_path / "*.tar.gz")
    assert message(tmp_path / "t.tar.gz").endswith(f"gunzip {tmp_path}/t.tar.gz makes a .tar that can")
    (tmp_path / "hidden").mkdir()
    (tmp_path / "t.tar.gz").rename(tmp_path / "hidden" / "t.tar")
    assert "is not a whole, uncompressed tar (gunzip < " in message(tmp_path / "hidden")
    write_tar(tmp_path / "cut" / "t.tar", [("0.png", raw), ("1.png", raw)])
    whole = (tmp_path / "cut" / "t.tar").read_bytes()
    (tmp_path / "cut" / "t.tar").write_bytes(whole[: 512 + 512 * (-(-len(raw) // 512)) + 512 + 100])
    assert "is not a whole, uncompressed tar (unexpected end of data)" in message(tmp_path / "cut")
    write_tar(tmp_path / "two" / "t.tar", [("0.image.png", raw), ("0.mask.png", raw)])
    assert message(tmp_path / "two").endswith(
        "has several columns of imagery (image.png, mask.png); data.image_column=image.png works"
    )
    assert tiles_of(tmp_path / "two", image_column="mask.png").image_column == "mask.png"
    write_tar(tmp_path / "words" / "t.tar", [("0.txt", b"a")])
    assert "holds tar shards without images" in message(tmp_path / "words")


# parquet of RGB images, as hubs have it


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_of_images_with_or_without_the_features(tmp_path, streaming):
    arrays = draw((3, 20, 20, 3), "uint8")
    images = [{"bytes": picture(a), "path": f"{i}.png"} for i, a in enumerate(arrays)]
    plain = pa.table({"image": images, "label": [0, 1, 0], "raw": [b"mask", b"words", b""]})
    pq.write_table(plain, tmp_path / "plain.parquet")  # bytes that are no imagery don't make a second candidate
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["a", "b"])})
    rows = [{"img": image, "fine_label": i % 2} for i, image in enumerate(images)]
    write_shards(rows, features, tmp_path / "hub")
    binary = pa.table({"jpg": [picture(a) for a in arrays]}, pa.schema({"jpg": pa.binary()}))
    pq.write_table(binary, tmp_path / "binary.parquet")
    for source, column in (("plain.parquet", "image"), ("hub", "img"), ("binary.parquet", "jpg")):
        tiles = tiles_of(tmp_path / source, streaming=streaming)
        assert (tiles.image_column, tiles.bands) == (column, ["red", "green", "blue"])
        for index in range(3):
            assert np.array_equal(tiles[index].numpy(), arrays[index].transpose(2, 0, 1))
    pq.write_table(pa.table({"label": [1]}), tmp_path / "none.parquet")
    assert "has no column of imagery (label); columns of Image, bytes or Array3D of" in message(
        tmp_path / "none.parquet", streaming=streaming
    )


def test_datasets_alone_fails_where_we_read(tmp_path):
    """`Image(decode=True)` opens with Pillow, which knows no TIFF of 12 bands (datasets #5791)."""
    array = draw((12, 16, 16))
    row = {"image": {"bytes": tiff(array), "path": None}}
    write_shards([row], datasets.Features({"image": datasets.Image()}), tmp_path)
    theirs = datasets.Dataset.from_parquet(str(tmp_path / "*.parquet"))
    with pytest.raises(OSError, match="cannot identify image file"):
        theirs[0]
    for streaming in (False, True):
        tiles = tiles_of(tmp_path, 12, bands=LEVEL_2A, scaling="reflectance", streaming=streaming)
        assert np.array_equal(tiles[0].numpy(), array)


# arrow files


def test_arrow_files_are_read_in_place(tmp_path, capfd):
    arrays = draw((7, 20, 20, 3), "uint8")
    features = datasets.Features({"image": datasets.Image()})
    images = [{"image": {"bytes": picture(a), "path": None}} for a in arrays]
    dataset = datasets.Dataset.from_list(images, features=features)
    datasets.disable_progress_bars()
    dataset.save_to_disk(tmp_path / "t", num_shards=2)
    for source, count in (("t", 7), ("t/data-00001-of-00002.arrow", 3), ("t/*.arrow", 7)):
        tiles = tiles_of(tmp_path / source)
        assert len(tiles) == count
        assert np.array_equal(tiles[-1].numpy(), arrays[-1].transpose(2, 0, 1))
    assert tiles_of(tmp_path / "t").shard_sizes == [4, 3]
    assert not (tmp_path / "cache").exists()
    assert capfd.readouterr().err == ""
    with pa.ipc.new_file(tmp_path / "t" / "data-00001-of-00002.arrow", dataset.data.table.schema) as file:
        file.write_table(dataset.data.table)
    assert "data-00001-of-00002.arrow is not an arrow stream" in message(tmp_path / "t")
    (tmp_path / "t" / "more.parquet").touch()
    assert message(tmp_path / "t").endswith(
        f"holds .arrow and .parquet files; data.source='{tmp_path}/t/*.arrow' works"
    )


# folders


def put(path, raw):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)


def test_a_folder_of_images_with_classes(tmp_path):
    arrays = draw((4, 20, 20, 3), "uint8")
    put(tmp_path / "sea" / "b.png", picture(arrays[0]))
    put(tmp_path / "sea" / "deep" / "a.PNG", picture(arrays[1]))
    put(tmp_path / "land" / "c.jpg", picture(arrays[2], "jpeg", quality=95))
    put(tmp_path / "land" / "notes.txt", b"words")
    put(tmp_path / "land" / ".hidden.png", b"")
    tiles = tiles_of(tmp_path)
    assert tiles.column("file") == ["land/c.jpg", "sea/b.png", "sea/deep/a.PNG"]
    assert tiles.labels("label") == ([0, 1, 1], ["land", "sea"])
    assert (tiles.bands, tiles.image_column, tiles.shard_sizes) == (["red", "green", "blue"], "image", [3])
    assert np.array_equal(tiles[1].numpy(), arrays[0].transpose(2, 0, 1))
    assert np.array_equal(tiles[2].numpy(), arrays[1].transpose(2, 0, 1))
    assert tiles_of(tmp_path / "*" / "*.png").labels("label") == ([0], ["sea"])
    put(tmp_path / "top.png", picture(arrays[3]))
    assert "label" not in tiles_of(tmp_path).column_names
    (tmp_path / "sea" / "b.png").write_bytes(b"no image")
    with pytest.raises(DamagedTile, match=r"^is not JPEG.*: .*sea/b.png$"):
        tiles[1]
    (tmp_path / "sea" / "b.png").unlink()
    with pytest.raises(DamagedTile, match=r"^is missing: .*sea/b.png$"):
        tiles[1]


def test_a_folder_of_geotiffs_of_many_bands(tmp_path):
    arrays = draw((3, 13, 16, 16))
    for index, array in enumerate(arrays):
        put(tmp_path / "named" / f"{index}.tif", tiff(array, [*STORED_NAMES[:10], "B10", "B11", "B12"]))
        put(tmp_path / "unnamed" / f"{index}.tif", tiff(array))
    named = tiles_of(tmp_path / "named", 3, bands=["B4", "B3", "B2"], scaling="reflectance")
    assert np.array_equal(named[2].numpy(), arrays[2][[3, 2, 1]])
    assert tiles_of(tmp_path / "named", 13, scaling="reflectance").bands == SENTINEL2
    assert "have 13 bands, whose names are not stored" in message(tmp_path / "unnamed", 13, scaling="reflectance")
    unnamed = tiles_of(tmp_path / "unnamed", 13, bands=SENTINEL2, scaling="reflectance")
    assert np.array_equal(unnamed[1].numpy(), arrays[1])
    put(tmp_path / "unnamed" / "3.tif", tiff(arrays[0].astype(np.int16)))
    put(tmp_path / "unnamed" / "4.tif", tiff(arrays[0][:12]))
    odd = tiles_of(tmp_path / "unnamed", 13, bands=SENTINEL2, scaling="reflectance")
    for index, reason in ((3, "is int16, not uint16"), (4, "has 12 bands, not 13")):
        with pytest.raises(DamagedTile, match=rf"^{reason}: .*{index}.tif$"):
            odd[index]


@pytest.mark.parametrize("layout", ["{tile}/{band}.tif", "{tile}_{band}.tif", "land/{tile}/{tile}_{band}_10m.tif"])
def test_a_tiff_for_each_band(tmp_path, layout):
    arrays = draw((3, 16, 16))
    coarse = draw((3, 8, 8), seed=1)
    for tile in range(3):
        put(tmp_path / layout.format(tile=f"t{tile}", band="B02"), tiff(arrays[tile : tile + 1]))
        put(tmp_path / layout.format(tile=f"t{tile}", band="b8a"), tiff(coarse[tile : tile + 1]))
    put(tmp_path / layout.format(tile="t0", band="B12"), tiff(coarse[:1]))
    tiles = tiles_of(tmp_path, 2, bands=["B8A", "B2"], scaling="reflectance")
    assert (len(tiles), tiles.bands, tiles.image_column) == (3, ["B8A", "B2"], None)
    for tile in range(3):
        assert np.array_equal(tiles[tile].numpy(), np.stack([enlarged(coarse[tile], 16), arrays[tile]]))
    assert ("label" in tiles.column_names) == layout.startswith("land")
    assert "has a column for each band; data.bands=[B2, B8A, B12]" in message(tmp_path, 2)
    with pytest.raises(DamagedTile, match=r"^B12 is missing: .*t1"):
        tiles_of(tmp_path, 1, bands=["B12"], scaling="reflectance")[1]
    put(tmp_path / "mask.tif", tiff(coarse[:1]))
    assert f"mask.tif, which is none; data.source='{tmp_path}/**/*B[0-9]*.tif'" in message(tmp_path, 2, bands=["B2"])
    assert len(tiles_of(tmp_path / "**" / "*[bB][0-9]*.tif", 2, bands=["B8A", "B2"], scaling="reflectance")) == 3


def test_a_folder_of_npy(tmp_path):
    arrays = draw((2, 16, 18, 5)).astype(np.float32)
    put(tmp_path / "0.npy", npy(arrays[0]))
    put(tmp_path / "1.npy", npy(arrays[1].transpose(2, 0, 1)))
    names = ["v", "w", "x", "y", "z"]
    tiles = tiles_of(tmp_path, 5, bands=names, scaling="percentiles")
    assert tiles.bands == names
    for index in range(2):
        assert np.array_equal(tiles[index].numpy(), arrays[index].transpose(2, 0, 1))


# parquet in place


@pytest.fixture
def many_row_groups(tmp_path):
    arrays = draw((300, 3, 16, 16), "uint8")
    features = datasets.Features({"image": datasets.Array3D((3, 16, 16), "uint8"), "name": datasets.Value("string")})
    rows = [{"image": a, "name": str(i)} for i, a in enumerate(arrays)]
    write_shards(rows, features, tmp_path / "t", max_shard_bytes=100_000)
    return tmp_path / "t", arrays


def test_streamed_tiles_are_the_same_in_any_order(many_row_groups):
    folder, arrays = many_row_groups
    kept, streamed = tiles_of(folder), tiles_of(folder, streaming=True)
    assert len(kept.shard_sizes) > 2
    assert kept.shard_sizes == streamed.shard_sizes
    for index in np.random.default_rng(0).permutation(300):
        assert torch.equal(streamed[index], kept[index])
        assert np.array_equal(streamed[index].numpy(), arrays[index])
    assert streamed.column("name") == kept.column("name")


def test_streaming_holds_no_more_than_its_buffer(tmp_path):
    arrays = draw((1024, 3, 64, 64), "uint8")  # 12 MiB in row groups of 64, of 0.8 MiB each
    features = datasets.Features({"image": datasets.Array3D((3, 64, 64), "uint8")})
    write_shards([{"image": a} for a in arrays], features, tmp_path / "t")
    before, most = pa.total_allocated_bytes(), 0
    tiles = tiles_of(tmp_path / "t", streaming=True, shuffle_buffer_mib=3)
    for index in np.random.default_rng(0).permutation(1024)[:200]:
        assert np.array_equal(tiles[index].numpy(), arrays[index])
        most = max(most, pa.total_allocated_bytes() - before)
    assert 2 << 20 < most <= 3 << 20
    assert not (tmp_path / "cache").exists()


def test_several_workers_read_the_same_files(many_row_groups, tmp_path):
    folder, arrays = many_row_groups
    write_tar(tmp_path / "t.tar", [(f"{i}.npy", npy(a)) for i, a in enumerate(arrays)])
    for source in (folder, f"file://{folder}/*.parquet", tmp_path / "t.tar"):
        tiles = tiles_of(source, streaming=True)
        tiles[0]  # opened before the workers fork
        order = np.random.default_rng(1).permutation(300).tolist()
        loader = DataLoader(tiles, batch_size=10, sampler=order, num_workers=2)
        assert np.array_equal(torch.cat(list(loader)).numpy(), arrays[order])


def test_parquet_behind_an_address(many_row_groups):
    import fsspec

    folder, arrays = many_row_groups
    memory = fsspec.filesystem("memory")
    for path in folder.glob("*.parquet"):
        memory.pipe(f"/tiles/{path.name}", path.read_bytes())
    tiles = tiles_of("memory://tiles/*.parquet", streaming=True)
    for index in (299, 0, 150):
        assert np.array_equal(tiles[index].numpy(), arrays[index])
    first = tiles_of(f"file://{min(folder.glob('*.parquet'))}", streaming=True)
    assert np.array_equal(first[1].numpy(), arrays[1])
    assert message("memory://tiles/*.parquet").endswith("data.streaming=true works, or a copy of it here")
    assert "finds no .parquet files" in message("memory://nowhere/*.parquet", streaming=True)
    assert "cannot be listed" in message("nosuch://tiles/*.parquet", streaming=True)


def test_a_row_group_that_is_damaged_within(many_row_groups):
    folder, arrays = many_row_groups
    path = sorted(folder.glob("*.parquet"))[1]
    column = pq.read_metadata(path).row_group(0).column(0)
    raw = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    raw[start : start + 2000] = b"\xff" * 2000
    path.write_bytes(raw)
    tiles = tiles_of(folder, streaming=True)
    with pytest.raises(DamagedTile, match=r"^lies in a row group that cannot be read \(.*: row 0 of .*parquet$"):
        tiles[64]
    for index in (0, 63, 128, 299):
        assert np.array_equal(tiles[index].numpy(), arrays[index])


def test_shards_of_other_columns_are_refused(many_row_groups):
    folder, _ = many_row_groups
    write_shards(
        [{"image": np.zeros((9, 9, 3), np.uint8)}],
        datasets.Features({"image": datasets.Array3D((9, 9, 3), "uint8")}),
        folder / "x",
    )
    next((folder / "x").glob("*.parquet")).rename(folder / "other.parquet")
    for streaming in (False, True):
        assert "its shards do not go together (" in message(folder, streaming=streaming)


def test_a_hub_id_without_a_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for streaming in (False, True):
        said = message("blanchon/EuroSAT_MSI", streaming=streaming)
        assert said.startswith("data.source='blanchon/EuroSAT_MSI' is no path here, and the hub can't be asked for it")
        assert said.endswith(
            "YOUR_IMAGES blanchon/EuroSAT_MSI makes tiles there, HF_HUB_OFFLINE=1 uses an earlier download"
        )
