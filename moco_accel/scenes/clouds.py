"""Which pixels are white as clouds are. Snow, salt and surf are white, too: the rule knows no weather."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moco_accel.recipe.bands import RGB, picture_bands
from moco_accel.scenes.layouts import Layout

_VISIBLE = {"B1", "B2", "B3", "B4", *RGB}
OFFSET_BASELINE = 400  # Sentinel-2 numbers are 1,000 higher from here on


@dataclass(frozen=True)
class CloudRule:
    """A pixel is white when all `bands` exceed `above` and differ by less than `spread`, in stored numbers."""

    bands: tuple[int, ...]
    above: int
    spread: int

    def white(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """[bands, height, width] → [height, width]."""
        visible = pixels[list(self.bands)]
        low, high = visible.min(axis=0).astype(np.int64), visible.max(axis=0).astype(np.int64)
        return np.asarray((low > self.above) & (high - low < self.spread))


def cloud_rule(layout: Layout) -> CloudRule | None:
    """The rule for a scene, None where white means nothing: no visible bands, or numbers of unknown meaning.

    8 bits: red, green and blue above 230, less than 20 apart. Sentinel-2 (uint16): above a reflectance of 0.35 (3,500;
    4,500 from baseline 04.00 on), less than 0.1 apart. Landsat 8 and 9 (uint16): the same reflectances, their numbers;
    above the atmosphere those depend on the sun's elevation, which is overhead where no metadata tell.
    """
    picked = picture_bands(layout.bands, len(layout.bands), layout.scene.sensor)
    names = [layout.bands[index] for index in picked] if layout.bands else []
    if len(set(names)) < 3 or not set(names) <= _VISIBLE or not (set(names) == set(RGB) or layout.scene.sensor):
        return None
    if layout.dtype == "uint8":
        return CloudRule(picked, 230, 20)
    if layout.dtype == "uint16" and layout.scene.sensor == "sentinel2":
        return CloudRule(picked, 4_500 if layout.scene.baseline >= OFFSET_BASELINE else 3_500, 1_000)
    if layout.dtype == "uint16" and layout.scene.sensor == "landsat8":
        if layout.scene.surface:  # reflectance = 2.75e-5 · number - 0.2
            return CloudRule(picked, 20_000, 3_636)
        sun = math.sin(math.radians(layout.sun_elevation or 90))  # reflectance = (2e-5 · number - 0.1) / sun
        return CloudRule(picked, round((0.35 * sun + 0.1) / 2e-5), round(0.1 * sun / 2e-5))
    return None
