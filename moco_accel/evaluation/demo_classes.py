"""Classes of the demo's labelled tiles, and the limitations of their labels."""

from __future__ import annotations

# Merged IGBP classes. Needleleaf forest (61 windows), wetland (9) and towns (0) are too rare to evaluate features on.
CLASSES: dict[str, tuple[int, ...]] = {
    "water": (0,),
    "evergreen broadleaf": (2,),
    "deciduous/mixed": (3, 4, 5),
    "shrubland": (6, 7),
    "woody savanna": (8,),
    "savanna": (9,),
    "grassland": (10,),
    "cropland": (12, 14),
    "snow/ice": (15,),
    "barren": (16,),
}

# to state with every accuracy
LIMITATIONS = "7 km pixels, plate carrée stretch, and labels that are themselves a noisy classification"
