"""Find pixels that are as white as clouds; snow, salt and surf are, too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moco_accel.recipe.bands import RGB, picture_bands
from moco_accel.scenes.layouts import Layout

_VISIBLE = {"B1", "B2", "B3", "B4", *RGB}
OFFSET_BASELINE = 400  # from this processing baseline on, Sentinel-2 values are 1,000 higher


@dataclass(frozen=True)
class CloudRule:
    """A pixel is white if all `bands` exceed `above` and differ by less than `spread`, in stored units."""

    bands: tuple[int, ...]
    above: int
    spread: int

    def is_white(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return a mask [height, width] of the white pixels in [bands, height, width]."""
        visible = pixels[list(self.bands)]
        low, high = visible.min(axis=0).astype(np.int64), visible.max(axis=0).astype(np.int64)
        return np.asarray((low > self.above) & (high - low < self.spread))


def cloud_rule(layout: Layout) -> CloudRule | None:
    """Return a scene's rule, or None if it has no visible bands or stores values of unknown units.

    - 8 bits: red, green and blue exceed 230 and differ by less than 20.
    - Sentinel-2 (uint16): the reflectance exceeds 0.35 (stored as 3,500; as 4,500 from baseline 04.00 on), and bands
      differ by less than 0.1.
    - Landsat 8 and 9 (uint16): the same reflectances in stored units. Level 1 depends on the sun's elevation; without
      metadata the sun is taken to be overhead.
    """
    visible = picture_bands(layout.bands, len(layout.bands), layout.scene.sensor)
    names = [layout.bands[index] for index in visible] if layout.bands else []
    if len(set(names)) < 3 or not set(names) <= _VISIBLE or not (set(names) == set(RGB) or layout.scene.sensor):
        return None
    if layout.dtype == "uint8":
        return CloudRule(visible, 230, 20)
    if layout.dtype == "uint16" and layout.scene.sensor == "sentinel2":
        return CloudRule(visible, 4_500 if layout.scene.baseline >= OFFSET_BASELINE else 3_500, 1_000)
    if layout.dtype == "uint16" and layout.scene.sensor == "landsat8":
        if layout.scene.surface:  # reflectance = 2.75e-5 · value - 0.2
            return CloudRule(visible, 20_000, 3_636)
        sun = math.sin(math.radians(layout.sun_elevation or 90))  # reflectance = (2e-5 · value - 0.1) / sun
        return CloudRule(visible, round((0.35 * sun + 0.1) / 2e-5), round(0.1 * sun / 2e-5))
    return None
