"""What `moco-data build` was asked for, checked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from moco_accel.bands import canonical_bands
from moco_accel.recipe_text import RecipeError


@dataclass(frozen=True)
class Options:
    """Each field is an option of the command line: `tile_size` is --tile-size. Raises RecipeError.

    Shares are of a tile's pixels. `stride` None: the tile size. `max_nodata` or `max_cloud` 1: no tile is skipped.
    """

    tile_size: int = 224
    stride: int | None = None
    bands: tuple[str, ...] | None = None
    band_names: tuple[str, ...] | None = None
    max_nodata: float = 0.1
    nodata: float | None = None
    max_cloud: float = 0.5
    labels_from_folders: bool = False
    label_raster: Path | None = None
    class_names: str | None = None
    min_majority: float = 0.6
    pair_with: Path | None = None
    max_shard_mb: int = 256

    def __post_init__(self) -> None:
        for name, least, works in (("tile_size", 8, 224), ("stride", 1, self.tile_size), ("max_shard_mb", 1, 256)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RecipeError(f"{flag(name)}={value} must be at least {least}; {flag(name)} {works}")
        for name, share in (("max_nodata", 0.1), ("max_cloud", 0.5), ("min_majority", 0.6)):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{flag(name)}={getattr(self, name)} is no share from 0 to 1; {flag(name)} {share}")
        if self.labels_from_folders and self.label_raster:
            raise RecipeError("--labels-from-folders and --label-raster both make the column label; give one of them")
        if self.class_names and not self.label_raster:
            raise RecipeError(
                f"--class-names={self.class_names!r} names the numbers of --label-raster, which is absent"
            )
        for names in (self.bands, self.band_names):
            canonical_bands(names or ())

    @property
    def step(self) -> int:
        return self.stride or self.tile_size

    def as_text(self) -> dict[str, str]:
        """Option → value, as the journal of a build keeps them."""
        found = {flag(field.name): getattr(self, field.name) for field in fields(self)}
        return {name: ",".join(value) if isinstance(value, tuple) else str(value) for name, value in found.items()}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")
