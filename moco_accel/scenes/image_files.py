"""Open a scene's image files: plain pictures whole with Pillow, all other files as rasters with rasterio."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from moco_accel.common.errors import UserError
from moco_accel.common.pixels import Mask, Pixels
from moco_accel.images.gdal import DRIVERS, load_rasterio
from moco_accel.images.headers import check_colours, is_plain_tiff
from moco_accel.images.kinds import HEAD_BYTES, Kind, image_kind
from moco_accel.images.pillow import decode_picture, open_picture

MAX_PICTURE_PIXELS = 1 << 26  # 192 MiB as RGB; larger images are read in windows
_MAX_PIXELS_PER_BYTE = 1100  # of the emptiest JPEG or PNG; TIFF and JPEG 2000 have no such limit
_FORMATS = ("JPEG", "PNG", "TIFF")
_COLOUR, _GREY = ("RGB", "P", "RGBA", "PA", "CMYK"), ("L", "LA", "1")
_BANDS: dict[str, tuple[str, ...]] = dict.fromkeys(_COLOUR, ("red", "green", "blue")) | dict.fromkeys(_GREY, ("grey",))
_MASK_SUFFIXES = (".msk", ".MSK")  # of files beside an image that GDAL reads
_GEO_TAGS = {33550, 33922, 34264, 34735, 42112, 42113}  # scale, tie points, matrix, keys, GDAL's metadata and nodata


class UnreadableImage(Exception):  # noqa: N818 - the reason is its message
    """An image that makes no tiles; the message is the reason."""


@contextmanager
def as_unreadable(path: Path, what: str = "is damaged") -> Iterator[None]:
    """Turn any failure to read a file within the context into UnreadableImage: `what`, and the reason.

    For damaged files Pillow raises TypeError, struct.error and a dozen others, rasterio CRSError and ValueError.
    """
    try:
        yield
    except (UnreadableImage, UserError, AssertionError):
        raise
    except UnidentifiedImageError:
        raise UnreadableImage("cannot be identified; only its first bytes are those of an image") from None
    except Exception as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = " ".join(text.replace(str(path), path.name).split())
        raise UnreadableImage(f"{what} ({reason or type(error).__name__})") from None


def open_raster(path: Path) -> Any:
    """Open a file as a rasterio dataset.

    Raises:
        UnreadableImage: If the file cannot be opened or is no image.
        UserError: If rasterio is not installed.
    """
    driver = DRIVERS[_read_kind(path)]
    rasterio = load_rasterio("SRC holds rasters, which need rasterio")
    with warnings.catch_warnings(), as_unreadable(path, "cannot be opened"):
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        check_colours(path)
        dataset = rasterio.open(path, driver=driver)
    if driver in ("JPEG", "PNG") and dataset.width * dataset.height > _MAX_PIXELS_PER_BYTE * path.stat().st_size:
        dataset.close()  # searching it for tiles would take hours
        raise UnreadableImage(f"is damaged (its {path.stat().st_size:,} bytes cannot hold that many pixels)")
    return dataset


def read_picture_header(path: Path) -> tuple[tuple[str, ...], int, int] | None:
    """Return a picture's band names, height and width, or None for a raster.

    A raster is a file that Pillow cannot open, or of which it would lose something: bits, a position on Earth, a mask
    inside the file or beside it, or pixels beyond `MAX_PICTURE_PIXELS`.

    Raises:
        UnreadableImage: If the file is no image, is damaged, or is a picture of another mode.
    """
    kind = _read_kind(path)
    if kind in ("jpeg2000", "png16") or any(path.with_name(path.name + end).is_file() for end in _MASK_SUFFIXES):
        return None
    try:
        with as_unreadable(path), open_picture(path, _FORMATS, any_size=True) as image:
            if image.width * image.height > MAX_PICTURE_PIXELS or (kind == "tiff" and not _is_plain(image)):
                return None
            mode, height, width = image.mode, image.height, image.width
    except UnreadableImage:
        if kind == "tiff":
            return None
        raise
    if mode not in _BANDS:
        raise UnreadableImage(f"is of mode {mode}; 8-bit RGB and grey pictures can be read")
    return _BANDS[mode], height, width


def read_picture(path: Path) -> tuple[Pixels, Mask | None, bytes | None]:
    """Read a picture whole.

    Returns:
        Pixels uint8 [bands, height, width], 0 where they are transparent; a mask [height, width] that is False there,
        None without any; and the file's bytes if they can be stored as a tile, else None.

    Raises:
        UnreadableImage: If the file is damaged.
    """
    with as_unreadable(path), open_picture(path, _FORMATS, any_size=True) as image:
        image.load()
        # any reader decodes these alike
        is_storable = image.format in ("JPEG", "PNG") and image.mode in ("RGB", "L") and not image.has_transparency_data
        pixels, _, valid = decode_picture(image)
        if valid is not None:
            pixels[:, ~valid] = 0
        return pixels, valid, path.read_bytes() if is_storable else None


def _read_kind(path: Path) -> Kind:
    with as_unreadable(path, "cannot be opened"), path.open("rb") as file:
        kind = image_kind(file.read(HEAD_BYTES))
    if kind is None or kind == "npy":
        raise UnreadableImage("cannot be identified; JPEG, PNG, TIFF and JPEG 2000 files can be read")
    return kind


def _is_plain(image: Image.Image) -> bool:
    stored: Any = getattr(image, "tag_v2", {})
    tags = {tag: value if isinstance(value, tuple) else (value,) for tag, value in stored.items()}
    return is_plain_tiff(tags) and not _GEO_TAGS & set(tags) and getattr(image, "n_frames", 1) == 1
