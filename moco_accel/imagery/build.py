"""A folder of images, or one large scene, into shards of tiles, one image in memory at a time."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from PIL import Image, UnidentifiedImageError

from moco_accel.imagery.shard_writer import write_shards
from moco_accel.recipe_text import RecipeError

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
MAX_PIXELS = 1 << 30  # 3 GiB as RGB; an image is decoded whole
_KEPT_AS_ENCODED = ("JPEG", "PNG")  # what every reader of the shards can decode
_MODES = {"RGB": "RGB", "P": "RGB", "L": "L"}  # Pillow's name → how the tile is stored
_READABLE = "8-bit RGB and grey JPEG, PNG and TIFF can be read; GeoTIFF of more bands or bits cannot, yet"


class UnreadableImage(Exception):  # noqa: N818 - the reason is its message
    """One image that makes no tiles, and why."""


@dataclass
class Built:
    """What became of the images: tiles written, tiles per class, and the reason for each image left out."""

    num_images: int = 0
    num_tiles: int = 0
    mode: str | None = None
    tiles_per_class: Counter[str] = field(default_factory=Counter)
    left_out: list[tuple[Path, str]] = field(default_factory=list)


def build_tiles(
    source: Path,
    out_dir: Path,
    tile_size: int = 224,
    stride: int | None = None,
    labels_from_folders: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[float, int], None] | None = None,
) -> Built:
    """Cut images larger than `tile_size` pixels into windows every `stride` pixels; keep smaller ones whole.

    Columns: image, path (relative to `source`), row and col of the window in pixels and, with `labels_from_folders`,
    label (the folder directly under `source`). What a window no longer fits into at the right and lower edge is left
    out. `on_progress(images, tiles)` hears of the images done (a part of one counts as a fraction) and tiles cut.
    Raises RecipeError when there is nothing to read, no image makes a tile, or `out_dir` holds shards already.
    """
    _check_windows(tile_size, stride)
    paths = find_images(source)
    names = class_names(source, paths) if labels_from_folders else []
    built = Built()
    root = source if source.is_dir() else source.parent
    cut = _Cutter(tile_size, stride or tile_size, on_progress or (lambda images, tiles: None))
    rows = _rows(paths, root, names, cut, built)
    built.num_tiles = write_shards(rows, _features(names), out_dir, overwrite=overwrite)
    if not built.num_tiles:
        path, reason = built.left_out[0]
        raise RecipeError(f"none of the {len(paths)} images in {str(source)!r} makes a tile; {path}: {reason}")
    return built


def find_images(source: Path) -> list[Path]:
    """JPEG, PNG and TIFF files under `source` (or the one file it is), sorted. Raises RecipeError on none."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise RecipeError(f"SRC={str(source)!r} does not exist; a folder of images or one image works")
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise RecipeError(f"SRC={str(source)!r} holds no images; files ending in {', '.join(SUFFIXES)} work")
    return found


def class_names(source: Path, paths: list[Path]) -> list[str]:
    """Names of the folders directly under `source`, sorted. Raises RecipeError when an image lies outside of them."""
    for path in paths:
        if not source.is_dir() or path.parent == source:
            raise RecipeError(f"--labels-from-folders: {path} lies in no class folder; {source}/forest/… works")
    return sorted({_class_of(source, path) for path in paths})


def _class_of(root: Path, path: Path) -> str:
    return path.relative_to(root).parts[0]


def _check_windows(tile_size: int, stride: int | None) -> None:
    for option, value, least in (("--tile-size", tile_size, 8), ("--stride", stride, 1)):
        if value is not None and value < least:
            raise RecipeError(f"{option}={value} must be at least {least}; {option} {tile_size if least == 1 else 224}")


def _features(names: list[str]) -> datasets.Features:
    columns: dict[str, Any] = {"image": datasets.Image()}
    if names:
        columns["label"] = datasets.ClassLabel(names=names)
    columns |= {"path": datasets.Value("string"), "row": datasets.Value("int32"), "col": datasets.Value("int32")}
    return datasets.Features(columns)


def _rows(paths: list[Path], root: Path, names: list[str], cut: _Cutter, built: Built) -> Iterator[dict[str, Any]]:
    for path in paths:
        try:
            image, kept = read_image(path, cut.tile_size, built.mode)
        except UnreadableImage as reason:
            built.left_out.append((path, str(reason)))
            cut.on_progress(1, 0)
            continue
        built.mode = image.mode
        built.num_images += 1
        for fields in cut.tiles(image, kept):
            fields["path"] = str(path.relative_to(root))
            if names:
                name = _class_of(root, path)
                fields["label"] = names.index(name)
                built.tiles_per_class[name] += 1
            yield fields


def read_image(path: Path, tile_size: int, mode: str | None = None) -> tuple[Image.Image, bytes | None]:
    """Decode one image to RGB or L; also its file's bytes where they can serve as the one tile.

    `mode` is that of the images before: colour and grey tiles have different numbers of bands and never mix.
    Raises UnreadableImage.
    """
    try:
        with _any_size(), Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(f"{image.width} × {image.height} is more than {MAX_PIXELS:,} pixels; cut it up")
            decoded = _decode(image)
            encoded_as, small = image.format, max(image.size) <= tile_size
            as_is = image.mode == decoded.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(_why(path, error)) from None
    if mode not in (None, decoded.mode):
        raise UnreadableImage(f"is {_word(decoded.mode)}, the images before it are {_word(mode)}; build them apart")
    keep = small and as_is and encoded_as in _KEPT_AS_ENCODED
    return decoded, path.read_bytes() if keep else None


def _decode(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGBA":  # an alpha band that hides nothing can go; one that does is no imagery to learn from
        image.load()
        if image.getchannel("A").getextrema() == (255, 255):
            return image.convert("RGB")
        raise UnreadableImage("has transparent pixels; flatten it to RGB first")
    if mode not in _MODES:
        raise UnreadableImage(f"is of mode {mode}; {_READABLE}")
    image.load()
    return image.convert(_MODES[mode])


def _word(mode: str | None) -> str:
    return "grey" if mode == "L" else "colour"


def _why(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"cannot be identified; {_READABLE}"
    return f"is damaged ({' '.join(str(error).replace(str(path), '').split())})"


@contextmanager
def _any_size() -> Iterator[None]:
    """Pillow warns of large images as of an attack; scenes are large, and MAX_PIXELS is the limit here."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@dataclass
class _Cutter:
    tile_size: int
    stride: int
    on_progress: Callable[[float, int], None]

    def tiles(self, image: Image.Image, kept: bytes | None) -> Iterator[dict[str, Any]]:
        """One row per window: image, row, col."""
        height, width = min(self.tile_size, image.height), min(self.tile_size, image.width)
        rows = range(0, image.height - height + 1, self.stride)
        cols = range(0, image.width - width + 1, self.stride)
        for row in rows:
            for col in cols:
                raw = kept or _png(image.crop((col, row, col + width, row + height)))
                yield {"image": {"bytes": raw, "path": None}, "row": row, "col": col}
                self.on_progress(1 / (len(rows) * len(cols)), 1)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()
