"""8-bit JPEG, PNG and plain TIFF images, read whole with Pillow; larger or other files are rasters.py's to read."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from moco_accel.common.errors import UserError

MAX_PICTURE_PIXELS = 1 << 26  # 192 MiB as RGB; larger images are read in windows
_FORMATS = ("JPEG", "PNG", "TIFF")
_KEPT_AS_ENCODED = ("JPEG", "PNG")  # what every reader of the shards can decode
_BANDS: dict[str, tuple[str, ...]] = dict.fromkeys(("RGB", "P", "RGBA"), ("red", "green", "blue")) | {"L": ("grey",)}
_GEO_TAGS = {33550, 33922, 34264, 34735, 42112, 42113}  # scale, tie points, matrix, keys, GDAL's facts and nodata
_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL = 258, 277

Pixels = npt.NDArray[Any]


class UnreadableImage(Exception):  # noqa: N818 - the reason is its message
    """One image that makes no tiles, and why."""


@contextmanager
def failures_of(path: Path, what: str = "is damaged") -> Iterator[None]:
    """Around what reads a file with Pillow or GDAL: turns any failure into UnreadableImage, `what` and the reason.

    Damaged files make Pillow raise TypeError, struct.error and a dozen more, GDAL's bindings CRSError and ValueError.
    """
    try:
        yield
    except (UnreadableImage, UserError, AssertionError):
        raise
    except UnidentifiedImageError:
        raise UnreadableImage("cannot be identified; it starts like an image and goes on like none") from None
    except Exception as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = " ".join(text.replace(str(path), path.name).split())
        raise UnreadableImage(f"{what} ({reason or type(error).__name__})") from None


def sniff(path: Path) -> str:
    """What its first bytes say: jpeg, png, png16, tiff, jpeg2000; a name may say otherwise. Raises UnreadableImage."""
    with failures_of(path, "cannot be opened"), path.open("rb") as file:
        head = file.read(26)
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png16" if head[24:25] == b"\x10" else "png"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head.startswith((b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51")):
        return "jpeg2000"
    raise UnreadableImage("cannot be identified; JPEG, PNG, TIFF and JPEG 2000 files can be read")


def picture_header(path: Path) -> tuple[tuple[str, ...], int, int] | None:
    """Bands by name, height and width of a picture, from its header; None for what is a raster.

    A raster is everything that Pillow cannot open or would lose something of: more bits, places on Earth, more than
    `MAX_PICTURE_PIXELS`. Raises UnreadableImage.
    """
    kind = sniff(path)
    if kind in ("jpeg2000", "png16"):
        return None
    try:
        with failures_of(path), _any_size(), Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PICTURE_PIXELS or (kind == "tiff" and not _plain_tiff(image)):
                return None
            mode, height, width = image.mode, image.height, image.width
    except UnreadableImage:
        if kind == "tiff":
            return None
        raise
    if mode not in _BANDS:
        raise UnreadableImage(f"is of mode {mode}; 8-bit RGB and grey pictures can be read")
    return _BANDS[mode], height, width


def _plain_tiff(image: Image.Image) -> bool:
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, 1)
    eight = set(bits if isinstance(bits, tuple) else (bits,)) == {8}
    samples = tags.get(_SAMPLES_PER_PIXEL, 1)  # a fourth may be near infrared, and Pillow drops it or calls it alpha
    return (
        image.mode in _BANDS
        and eight
        and samples in (1, 3)
        and not _GEO_TAGS & set(tags)
        and getattr(image, "n_frames", 1) == 1
    )


def read_picture(path: Path) -> tuple[Pixels, bytes | None]:
    """Pixels uint8 [bands, height, width]; the file's bytes where they can serve as a tile. Raises UnreadableImage."""
    with failures_of(path), _any_size(), Image.open(path, formats=_FORMATS) as image:
        decoded = _decode(image)
        keep = image.mode == decoded.mode and image.format in _KEPT_AS_ENCODED
        pixels = np.asarray(decoded)
        bands_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return bands_first, path.read_bytes() if keep else None


def _decode(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode == "RGBA":  # an alpha band that hides nothing can go; one that does is no imagery to learn from
        if image.getchannel("A").getextrema() == (255, 255):
            return image.convert("RGB")
        raise UnreadableImage("has transparent pixels; flatten it to RGB first")
    return image.convert("RGB") if image.mode == "P" else image.copy()


@contextmanager
def _any_size() -> Iterator[None]:
    """Pillow warns of large images as of an attack; scenes are large, and MAX_PICTURE_PIXELS is the limit here.

    What else it warns of and prints is quiet, too: what cannot be read is told of by us, and rasterio may read it.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
