"""What the bands of known sensors see, and which three of them make a picture."""

from __future__ import annotations

from collections.abc import Sequence

from moco_accel.recipe.bands import canonical_bands

Role = tuple[float, str]
"""Centre wavelength in nanometres, and what it sees; NIR near infrared, SWIR short-wave infrared, pan all colours."""

ROLES: dict[str, dict[str, Role]] = {
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
_FALSE_COLOUR = {  # near infrared, red, green: vegetation is red
    "sentinel2": ("B8", "B4", "B3"),
    "landsat8": ("B5", "B4", "B3"),
    "landsat7": ("B4", "B3", "B2"),
    None: ("nir", "red", "green"),
}


def role_of(band: str, sensor: str | None) -> Role | None:
    """None for what is not known: another sensor, or a name of the user's own."""
    return ROLES.get(sensor or "", {}).get(band)


def false_colour(names: Sequence[str] | None, sensor: str | None) -> tuple[str, str, str] | None:
    """Names of the near-infrared, red and green bands, where the names tell and all three are there."""
    have = set(canonical_bands(names)) if names else set()
    for triple in (_FALSE_COLOUR[None], _FALSE_COLOUR.get(sensor)):
        if triple is not None and set(triple) <= have:
            return triple
    return None
