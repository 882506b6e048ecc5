"""Colours, text and tiles of the pictures that this project draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from moco_accel.common.atomic_files import write_atomically
from moco_accel.common.pixels import Pixels

PAPER, INK, FAINT = "#ffffff", "#1d2733", "#66727f"
GREEN, RED, BLUE, ORANGE = "#1f9d63", "#d8433b", "#2468b4", "#d9822b"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class RgbStretch:
    """Contrast stretch of the red, green and blue band from stored values: `low` is black, `high` full colour."""

    bands: tuple[int, int, int]
    low: Sequence[float]
    high: Sequence[float]

    def to_rgb(self, tile: Pixels) -> Pixels:
        """Return a tile [bands, height, width] as uint8 [height, width, 3]; NaN becomes black."""
        low, high = (np.asarray(values)[:, None, None] for values in (self.low, self.high))
        scaled = np.nan_to_num((tile[list(self.bands)] - low) / np.maximum(high - low, 1e-6)).clip(0, 1)
        rgb: Pixels = np.rint(scaled * 255).astype(np.uint8).transpose(1, 2, 0)
        return rgb


def common_stretch(tiles: Sequence[Pixels], bands: tuple[int, int, int]) -> RgbStretch:
    """Return one stretch for all tiles: 0 to 255 for 8-bit tiles, else percentiles 2 to 98 of each band's numbers."""
    if tiles[0].dtype == np.uint8:
        return RgbStretch(bands, (0, 0, 0), (255, 255, 255))
    values = [np.concatenate([tile[band].ravel() for tile in tiles]) for band in bands]
    finite = [band[np.isfinite(band)] for band in values]  # NaN marks no data
    edges = [np.percentile(band, (2, 98)) if band.size else (0.0, 1.0) for band in finite]
    return RgbStretch(bands, [float(low) for low, _ in edges], [float(high) for _, high in edges])


def load_font(size: int) -> Font:
    """Return the font of all pictures."""
    return ImageFont.load_default(size)


def fit_text(text: str, width: float, sizes: Sequence[int] = (14, 13, 12)) -> tuple[str, Font]:
    """Return `text` and the largest font that fits into `width` pixels. The text is cut if the smallest does not."""
    fonts = [load_font(size) for size in sizes]
    font = next((font for font in fonts if font.getlength(text) <= width), fonts[-1])
    while font.getlength(text) > width and text.rstrip("…"):
        text = text.rstrip("…")[:-1] + "…"
    return text, font


def fit_into_square(rgb: Pixels, side: int) -> Image.Image:
    """Centre a picture, uint8 [height, width, 3], in a white square of `side` pixels; enlarge it without smoothing."""
    image = Image.fromarray(np.ascontiguousarray(rgb))
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    fitted = image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)
    if size == (side, side):
        return fitted
    whole = Image.new("RGB", (side, side), PAPER)
    whole.paste(fitted, ((side - size[0]) // 2, (side - size[1]) // 2))
    return whole


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG atomically, and create its folder."""
    content = BytesIO()
    picture.save(content, "png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
