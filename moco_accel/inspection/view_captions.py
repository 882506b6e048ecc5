"""Describe a view's random parameters in three short lines."""

from __future__ import annotations

from collections.abc import Sequence

from moco_accel.views.parameters import Geometry, Photometry


def caption_lines(
    geometry: Geometry, photometry: Photometry, height: int, width: int, bands: Sequence[str]
) -> list[str]:
    """Return lines on crop and orientation; colours or bands; blur, solarization and dropped bands."""
    area = geometry.height * geometry.width / (height * width)
    crop = [f"{area:.0%} of area"]
    if geometry.quarter_turns:
        crop.append(f"{90 * geometry.quarter_turns}°")
    if geometry.horizontal_flip or geometry.vertical_flip:
        flips = {(True, False): "left-right", (False, True): "up-down", (True, True): "both ways"}
        crop.append("flipped " + flips[geometry.horizontal_flip, geometry.vertical_flip])
    colours = _describe_bands(photometry) if photometry.band_gain else _describe_colours(photometry)
    return [", ".join(crop), colours, _describe_other_changes(photometry, bands)]


def _describe_colours(photometry: Photometry) -> str:
    factors = {"bright": photometry.brightness, "contrast": photometry.contrast, "colour": photometry.saturation or 1.0}
    changes = [f"{name} {factor:.2f}" for name, factor in factors.items() if factor != 1]
    if photometry.hue:
        changes.append(f"hue {photometry.hue:+.2f}")
    if photometry.saturation == 0:
        changes.append("grey")
    return ", ".join(changes) or "colours kept"


def _describe_bands(photometry: Photometry) -> str:
    gain, offset = photometry.band_gain, max(map(abs, photometry.band_offset))
    changes = [f"gain {min(gain):.2f} to {max(gain):.2f}"] if (min(gain), max(gain)) != (1, 1) else []
    if offset:
        changes.append(f"offset within ±{offset:.3f}")
    return ", ".join(changes) or "bands kept"


def _describe_other_changes(photometry: Photometry, bands: Sequence[str]) -> str:
    changes = [f"blur {photometry.blur_sigma:.1f} pixels"] if photometry.blur_sigma else []
    if photometry.solarize:
        changes.append("solarized")
    if dropped := [name for name, kept in zip(bands, photometry.band_keep, strict=False) if not kept]:
        changes.append(f"without {', '.join(dropped)}")
    return ", ".join(changes) or "sharp"
