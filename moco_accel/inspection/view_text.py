"""What was drawn for a view, in a few short lines."""

from __future__ import annotations

from collections.abc import Sequence

from moco_accel.views.parameters import Geometry, Photometry


def lines_of(geometry: Geometry, photometry: Photometry, height: int, width: int, bands: Sequence[str]) -> list[str]:
    """Where it was cut out and how it lies; its colours, or bands; blur, solarization and bands dropped."""
    area = geometry.height * geometry.width / (height * width)
    placed = [f"{area:.0%} of area"]
    if geometry.quarter_turns:
        placed.append(f"{90 * geometry.quarter_turns}°")
    if geometry.horizontal_flip or geometry.vertical_flip:
        flips = {(True, False): "left-right", (False, True): "up-down", (True, True): "both ways"}
        placed.append("flipped " + flips[geometry.horizontal_flip, geometry.vertical_flip])
    changed = _bands(photometry) if photometry.band_gain else _colours(photometry)
    return [", ".join(placed), changed, _rest(photometry, bands)]


def _colours(photometry: Photometry) -> str:
    changes = [
        f"{name} {value:.2f}"
        for name, value in (
            ("bright", photometry.brightness),
            ("contrast", photometry.contrast),
            ("colour", photometry.saturation if photometry.saturation else 1.0),
        )
        if value != 1
    ]
    if photometry.hue:
        changes.append(f"hue {photometry.hue:+.2f}")
    if photometry.saturation == 0:
        changes.append("grey")
    return ", ".join(changes) or "colours kept"


def _bands(photometry: Photometry) -> str:
    gain, offset = photometry.band_gain, max(map(abs, photometry.band_offset))
    changes = [f"gain {min(gain):.2f} to {max(gain):.2f}"] if (min(gain), max(gain)) != (1, 1) else []
    if offset:
        changes.append(f"offset within ±{offset:.3f}")
    return ", ".join(changes) or "bands kept"


def _rest(photometry: Photometry, bands: Sequence[str]) -> str:
    changes = [f"blur {photometry.blur_sigma:.1f} pixels"] if photometry.blur_sigma else []
    if photometry.solarize:
        changes.append("solarized")
    if dropped := [name for name, kept in zip(bands, photometry.band_keep, strict=False) if not kept]:
        changes.append(f"without {', '.join(dropped)}")
    return ", ".join(changes) or "sharp"
