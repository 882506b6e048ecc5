"""Open sources in tests, and write image files, tars and shards as other programs do."""

import io
import tarfile
import warnings

import datasets
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from support.tile_files import SENTINEL2
from torch.nn.functional import interpolate

from moco_accel.common.errors import UserError
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.shard_writer import write_shards
from moco_accel.tiles.tiles import open_tiles

LEVEL_2A = [band for band in SENTINEL2 if band != "B10"]
FEATURES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=["sea", "land"]), "note": datasets.Value("string")}
)
IMAGE = datasets.Features({"image": datasets.Image()})


def tiles_of(source, num_bands=3, **data):
    return open_tiles(str(source), Data(**data), num_bands)


def error_message(source, num_bands=3, field="data.source", **data):
    """Return the message of the UserError that opening `source` raises."""
    with pytest.raises(UserError) as caught:
        open_tiles(str(source), Data(**data), num_bands, field)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def random_array(shape, dtype="uint16", seed=0):
    return np.random.default_rng(seed).integers(0, 255 if dtype == "uint8" else 9000, shape).astype(dtype)


def random_pixels(count, size=8, bands=3, seed=0):
    """Return uint8 [count, size, size, bands], without the last axis for one band."""
    shape = (count, size, size, bands) if bands > 1 else (count, size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tiff(array, descriptions=(), **profile):
    """Return a GeoTIFF of [bands, height, width]."""
    profile = {"count": array.shape[0], "height": array.shape[1], "width": array.shape[2], **profile}
    with warnings.catch_warnings(), rasterio.MemoryFile() as file:
        warnings.simplefilter("ignore")
        with file.open(driver="GTiff", dtype=array.dtype.name, **profile) as image:
            image.write(array)
            for number, text in enumerate(descriptions, start=1):
                image.set_band_description(number, text)
        return file.read()


def encode_image(array, kind="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def image_value(array):
    """Return the value of an Image column."""
    return {"bytes": encode_image(array), "path": None}


def resize_layer(layer, size):
    layer = torch.from_numpy(layer.astype(np.float32))
    return interpolate(layer[None, None], size, mode="bilinear")[0, 0].round().numpy()


def write_file(path, raw):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)


def write_tar(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, raw in members:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))


def image_rows(arrays):
    """Return rows for `FEATURES`."""
    return [{"image": image_value(a), "label": i % 2, "note": f"tile {i}"} for i, a in enumerate(arrays)]


def write_array_shards(arrays, folder, **kwargs):
    features = datasets.Features({"image": datasets.Array3D(arrays[0].shape, str(arrays[0].dtype))})
    write_shards([{"image": a} for a in arrays], features, folder, **kwargs)
