import io
import pickle

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from moco_accel.recipe_text import RecipeError
from moco_accel.shards import open_tiles, write_shards

FEATURES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=["sea", "land"]), "note": datasets.Value("string")}
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def pixels(count, size=8, bands=3, seed=0):
    shape = (count, size, size, bands) if bands > 1 else (count, size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(array, kind="png"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": None}


def image_rows(arrays):
    return [{"image": encoded(a), "label": i % 2, "note": f"tile {i}"} for i, a in enumerate(arrays)]


def array_rows(arrays):
    return [{"image": a} for a in arrays]


def test_tiles_come_back_bit_for_bit_in_order(tmp_path):
    arrays = pixels(150)
    assert write_shards(iter(image_rows(arrays)), FEATURES, tmp_path / "t", max_shard_bytes=20_000) == 150
    assert [p.name for p in sorted((tmp_path / "t").iterdir())] == [
        f"tiles-0000{n}-of-00003.parquet" for n in range(3)
    ]  # chunks of 64 rows of about 270 bytes: one chunk to a shard
    tiles = open_tiles(str(tmp_path / "t"), "image", 3)
    assert len(tiles) == 150
    for index in (0, 63, 64, 149, -1):
        assert tiles[index].dtype == torch.uint8
        assert np.array_equal(tiles[index].numpy(), arrays[index].transpose(2, 0, 1))
    assert tiles.column("label") == [0, 1] * 75
    assert tiles.column("note")[77] == "tile 77"
    assert tiles.label_names("label") == ["sea", "land"]
    with pytest.raises(IndexError):
        tiles[150]


def test_hugging_face_restores_the_features(tmp_path):
    write_shards(image_rows(pixels(3)), FEATURES, tmp_path / "t")
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "t" / "*.parquet"), split="train")
    assert loaded.features == FEATURES
    assert loaded[2]["image"].size == (8, 8)


def test_one_file_and_a_glob_are_sources_too(tmp_path):
    write_shards(image_rows(pixels(70)), FEATURES, tmp_path / "t", max_shard_bytes=1)
    assert len(open_tiles(str(tmp_path / "t" / "tiles-00001-of-00002.parquet"), "image", 3)) == 6
    assert len(open_tiles(str(tmp_path / "t" / "*-of-*.parquet"), "image", 3)) == 70


@pytest.mark.parametrize("shape", [(13, 6, 5), (6, 5, 13)])
def test_any_number_of_bands_first_or_last(tmp_path, shape):
    arrays = np.random.default_rng(1).integers(0, 256, (4, *shape), dtype=np.uint8)
    write_shards(array_rows(arrays), datasets.Features({"image": datasets.Array3D(shape, "uint8")}), tmp_path / "t")
    tiles = open_tiles(str(tmp_path / "t"), "image", 13)
    expected = arrays if shape[0] == 13 else arrays.transpose(0, 3, 1, 2)
    for index in range(4):
        assert tiles[index].dtype == torch.uint8
        assert tiles[index].is_contiguous()
        assert np.array_equal(tiles[index].numpy(), expected[index])


def test_parquet_of_other_makers_without_the_features(tmp_path):
    arrays = pixels(2)
    plain = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    write_shards([{"image": encoded(a)} for a in arrays], plain, tmp_path / "t")
    assert np.array_equal(open_tiles(str(tmp_path / "t"), "image", 3)[1].numpy(), arrays[1].transpose(2, 0, 1))


def test_a_grey_tile_among_coloured_ones_is_repeated(tmp_path):
    grey = pixels(1, bands=1)[0]
    rows = [{"image": encoded(pixels(1)[0])}, {"image": encoded(grey)}]
    write_shards(rows, datasets.Features({"image": datasets.Image()}), tmp_path / "t")
    assert np.array_equal(open_tiles(str(tmp_path / "t"), "image", 3)[1].numpy(), np.stack([grey] * 3))


def test_tiles_pickle_into_workers(tmp_path):
    write_shards(image_rows(pixels(40, size=64)), FEATURES, tmp_path / "t")
    tiles = open_tiles(str(tmp_path / "t"), "image", 3)
    packed = pickle.dumps(tiles)
    assert len(packed) < 20_000 < 40 * 64 * 64 * 3  # the way to the file, not the tiles
    assert torch.equal(pickle.loads(packed)[7], tiles[7])


def test_the_cache_follows_the_shards_and_is_not_built_twice(tmp_path, monkeypatch, capfd):
    first, second = pixels(3, seed=1), pixels(3, seed=2)
    write_shards(image_rows(first), FEATURES, tmp_path / "t")
    open_tiles(str(tmp_path / "t"), "image", 3)
    write_shards(image_rows(second), FEATURES, tmp_path / "t", overwrite=True)
    assert np.array_equal(open_tiles(str(tmp_path / "t"), "image", 3)[0].numpy(), second[0].transpose(2, 0, 1))
    parquet = type(datasets.load_dataset_builder("parquet", data_files=str(tmp_path / "t" / "*.parquet")))
    monkeypatch.setattr(parquet, "_generate_tables", lambda *a, **k: pytest.fail("prepared again"))
    open_tiles(str(tmp_path / "t"), "image", 3)
    assert capfd.readouterr() == ("", "")


def test_an_error_while_writing_leaves_the_old_shards_alone(tmp_path):
    old = pixels(2, seed=3)
    write_shards(image_rows(old), FEATURES, tmp_path / "t")

    def broken():
        yield from image_rows(pixels(100, seed=4))
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        write_shards(broken(), FEATURES, tmp_path / "t", overwrite=True)
    assert [p.name for p in (tmp_path / "t").iterdir()] == ["tiles-00000-of-00001.parquet"]
    assert np.array_equal(open_tiles(str(tmp_path / "t"), "image", 3)[0].numpy(), old[0].transpose(2, 0, 1))


def test_shards_are_never_mixed_with_others(tmp_path):
    write_shards(image_rows(pixels(1)), FEATURES, tmp_path)
    with pytest.raises(RecipeError, match="holds shards already"):
        write_shards(image_rows(pixels(1)), FEATURES, tmp_path)
    (tmp_path / "foreign.parquet").touch()
    with pytest.raises(RecipeError, match=r"foreign\.parquet"):
        write_shards(image_rows(pixels(1)), FEATURES, tmp_path, overwrite=True)


def message(source, column="image", bands=3, **kwargs):
    with pytest.raises(RecipeError) as caught:
        open_tiles(str(source), column, bands, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_errors_name_field_value_rule_and_a_value_that_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    advice = "holds no .parquet shards; make some: moco-data build YOUR_IMAGES"
    assert message("x") == f"data.source='x' {advice} x"
    assert message("x/*.parquet", field="evaluation.test_source") == (
        f"evaluation.test_source='x/*.parquet' {advice} data/tiles"
    )
    write_shards(image_rows(pixels(70)), FEATURES, tmp_path / "t" / "train", max_shard_bytes=1)
    assert message("t") == "data.source='t' holds no .parquet shards; did you mean t/train?"
    assert message("t/train", column="img") == (
        "data.image_column='img' is not a column of 't/train' (image, label, note); data.image_column=image works"
    )
    assert message("t/train", column="note").endswith(
        "not Image, bytes or uint8 Array3D; data.image_column=image works"
    )
    assert message("t/train", bands=13) == ("encoder.bands=13 but the tiles in 't/train' have 3; encoder.bands=3 works")
    (tmp_path / "t/train/tiles-00001-of-00002.parquet").rename(tmp_path / "away")
    assert message("t/train") == "data.source='t/train' holds 1 of 2 shards tiles-…; build or copy them anew"
    (tmp_path / "t/train/tiles-00001-of-00002.parquet").write_bytes((tmp_path / "away").read_bytes()[:500])
    assert "tiles-00001-of-00002.parquet is not a whole parquet file" in message("t/train")


def test_array_bands_and_label_errors(tmp_path):
    features = datasets.Features({"image": datasets.Array3D((6, 5, 7), "uint8"), "name": datasets.Value("string")})
    write_shards([{"image": np.zeros((6, 5, 7), np.uint8), "name": "a"}], features, tmp_path)
    assert message(tmp_path, bands=3).endswith("have 6; encoder.bands=6 works")
    tiles = open_tiles(str(tmp_path), "image", 6)
    with pytest.raises(RecipeError, match="not ClassLabel or integers"):
        tiles.label_names("name")
    with pytest.raises(RecipeError, match="no column 'label'; its columns: image, name"):
        tiles.column("label")


@pytest.mark.parametrize("damage", [b"", b"not an image", None])
def test_a_damaged_tile_is_named(tmp_path, damage):
    whole = encoded(pixels(1, size=64)[0])
    bad = {"bytes": whole["bytes"][:-200] if damage is None else damage, "path": None}
    write_shards([{"image": whole}, {"image": bad}], datasets.Features({"image": datasets.Image()}), tmp_path)
    tiles = open_tiles(str(tmp_path), "image", 3)
    with pytest.raises(RecipeError, match=r"^tile 1 of .* cannot be decoded"):
        tiles[1]


def test_sixteen_bit_tiles_are_refused(tmp_path):
    rows = [{"image": encoded(np.zeros((8, 8), np.uint16))}]
    write_shards(rows, datasets.Features({"image": datasets.Image()}), tmp_path)
    assert message(tmp_path, bands=1).endswith("holds torch.uint16 tiles; 8-bit tiles (torch.uint8) work")
