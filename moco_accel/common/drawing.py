"""The look of this project's pictures: dark ink on white, one typeface, tiles enlarged without smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from moco_accel.common.pixels import Pixels

PAPER, INK, FAINT = "#ffffff", "#1d2733", "#66727f"
GREEN, RED, BLUE, ORANGE = "#1f9d63", "#d8433b", "#2468b4", "#d9822b"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Shown:
    """Which three bands are red, green and blue, and the stored values that are black and white in each."""

    bands: tuple[int, int, int]
    low: Sequence[float]
    high: Sequence[float]

    def colours(self, tile: Pixels) -> Pixels:
        """A tile [bands, height, width] as [height, width, 3] uint8; NaN is black."""
        low, high = (np.asarray(values)[:, None, None] for values in (self.low, self.high))
        scaled = np.nan_to_num((tile[list(self.bands)] - low) / np.maximum(high - low, 1e-6)).clip(0, 1)
        colours: Pixels = np.rint(scaled * 255).astype(np.uint8).transpose(1, 2, 0)
        return colours


def shown_together(tiles: Sequence[Pixels], bands: tuple[int, int, int]) -> Shown:
    """The same colours for the same values in all of `tiles`: 8-bit as they are, else a band's percentiles 2 to 98."""
    if tiles[0].dtype == np.uint8:
        return Shown(bands, (0, 0, 0), (255, 255, 255))
    edges = [np.percentile(np.concatenate([tile[band].ravel() for tile in tiles]), (2, 98)) for band in bands]
    return Shown(bands, [float(low) for low, _ in edges], [float(high) for _, high in edges])


def font(size: int) -> Font:
    return ImageFont.load_default(size)


def fitting(text: str, width: float, sizes: Sequence[int] = (14, 13, 12)) -> tuple[str, Font]:
    """`text` in the largest type that fits into `width` pixels; cut short only where the smallest does not."""
    for size in sizes:
        if font(size).getlength(text) <= width:
            return text, font(size)
    while font(sizes[-1]).getlength(text) > width and text.rstrip("…"):
        text = text.rstrip("…")[:-1] + "…"
    return text, font(sizes[-1])


def square(colours: Pixels, side: int) -> Image.Image:
    """A picture [height, width, 3] uint8 centred in a white square of `side` pixels, enlarged without smoothing."""
    image = Image.fromarray(np.ascontiguousarray(colours))
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    fitted = image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)
    if size == (side, side):
        return fitted
    whole = Image.new("RGB", (side, side), PAPER)
    whole.paste(fitted, ((side - size[0]) // 2, (side - size[1]) // 2))
    return whole


def save_png(picture: Image.Image, path: Path) -> None:
    """Under its name only once it is whole; nothing of it is left behind when it can't be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        picture.save(partial, "png")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
