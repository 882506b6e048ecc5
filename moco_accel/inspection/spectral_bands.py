"""Wavelengths of known sensors' bands, and the bands of a false-colour picture."""

from __future__ import annotations

from collections.abc import Sequence

from moco_accel.recipe.bands import canonical_bands

SpectralBand = tuple[float, str]
"""Centre wavelength in nanometres, and region: NIR is near infrared, SWIR short-wave infrared, pan panchromatic."""

_SPECTRAL_BANDS: dict[str, dict[str, SpectralBand]] = {
    "sentinel2": {
        "B1": (443, "aerosol"),
        "B2": (492, "blue"),
        "B3": (560, "green"),
        "B4": (665, "red"),
        "B5": (704, "red edge"),
        "B6": (740, "red edge"),
        "B7": (783, "red edge"),
        "B8": (833, "NIR"),
        "B8A": (865, "NIR"),
        "B9": (945, "vapour"),
        "B10": (1374, "cirrus"),
        "B11": (1614, "SWIR"),
        "B12": (2202, "SWIR"),
    },
    "landsat8": {
        "B1": (443, "aerosol"),
        "B2": (482, "blue"),
        "B3": (561, "green"),
        "B4": (655, "red"),
        "B5": (865, "NIR"),
        "B6": (1609, "SWIR"),
        "B7": (2201, "SWIR"),
        "B8": (590, "pan"),
        "B9": (1373, "cirrus"),
        "B10": (10_895, "thermal"),
        "B11": (12_005, "thermal"),
    },
    "landsat7": {
        "B1": (478, "blue"),
        "B2": (561, "green"),
        "B3": (661, "red"),
        "B4": (835, "NIR"),
        "B5": (1648, "SWIR"),
        "B6": (11_450, "thermal"),
        "B7": (2205, "SWIR"),
        "B8": (710, "pan"),
    },
}
_FALSE_COLOUR = {  # near infrared, red, green: vegetation appears red
    "sentinel2": ("B8", "B4", "B3"),
    "landsat8": ("B5", "B4", "B3"),
    "landsat7": ("B4", "B3", "B2"),
    None: ("nir", "red", "green"),
}


def spectral_band(band: str, sensor: str | None) -> SpectralBand | None:
    """Return a band's wavelength and region, or None if the sensor or the name is unknown."""
    return _SPECTRAL_BANDS.get(sensor or "", {}).get(band)


def false_colour(names: Sequence[str] | None, sensor: str | None) -> tuple[str, str, str] | None:
    """Return the names of the near-infrared, red and green bands, or None unless all three are there."""
    available = set(canonical_bands(names)) if names else set()
    for triple in (_FALSE_COLOUR[None], _FALSE_COLOUR.get(sensor)):
        if triple is not None and set(triple) <= available:
            return triple
    return None
