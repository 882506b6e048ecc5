"""What `moco-data build` was asked for, checked."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, fields
from pathlib import Path

from moco_accel.common.errors import UserError
from moco_accel.recipe.bands import canonical_bands
from moco_accel.scenes.scenes import find_images

_MAJORITY = 0.6


@dataclass(frozen=True)
class Options:
    """Each field is an option of the command line: `tile_size` is --tile-size. Raises UserError.

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
    min_majority: float | None = None
    pair_with: Path | None = None
    max_shard_mb: int = 256

    def __post_init__(self) -> None:
        for name, least, works in (("tile_size", 8, 224), ("stride", 1, self.tile_size), ("max_shard_mb", 1, 256)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{flag(name)}={value} must be at least {least}; {flag(name)} {works} works")
        for name, share in (("max_nodata", 0.1), ("max_cloud", 0.5), ("min_majority", _MAJORITY)):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{flag(name)}={value} is no share from 0 to 1; {flag(name)} {share} works")
        if self.labels_from_folders and self.label_raster:
            raise UserError("--labels-from-folders and --label-raster both make the column label; give one of them")
        if self.class_names and not self.label_raster:
            raise UserError(
                f"--class-names={self.class_names!r} names the numbers of --label-raster, which is absent; leave it out"
            )
        if self.min_majority is not None and not self.label_raster:
            raise UserError(
                f"--min-majority={self.min_majority} is of the classes of --label-raster, which is absent; leave it out"
            )
        for name in ("bands", "band_names"):
            canonical_bands(getattr(self, name) or (), flag(name))

    @property
    def step(self) -> int:
        return self.stride or self.tile_size

    @property
    def majority(self) -> float:
        return _MAJORITY if self.min_majority is None else self.min_majority

    def as_text(self) -> dict[str, str]:
        """Option → value."""
        found = {flag(field.name): getattr(self, field.name) for field in fields(self)} | {
            flag("min_majority"): self.majority
        }
        return {name: ",".join(value) if isinstance(value, tuple) else str(value) for name, value in found.items()}


def asked(source: Path, options: Options) -> dict[str, str]:
    """All that decides the tiles of a build, as its journal keeps it. Raises UserError when there is no imagery."""
    if options.pair_with and options.pair_with.resolve() == source.resolve():
        raise UserError(f"--pair-with={options.pair_with} is SRC itself; give the folder of another season")
    return {"SRC": str(source.resolve())} | options.as_text() | {"files": _digest(source, options)}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_out(out: Path, may_hold_tiles: bool) -> None:
    """Raises UserError when `out` is a file, or holds what is not ours to replace."""
    if out.exists() and not out.is_dir():
        raise UserError(f"OUT={str(out)!r} is a file; a folder works, e.g. {out.with_suffix('')}_tiles")
    if not may_hold_tiles and out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"OUT={str(out)!r} is not empty; choose another folder, or pass --overwrite")
    if foreign := set(out.glob("*.parquet")) - set(out.glob("tiles-*-of-*.parquet")):
        raise UserError(f"OUT={str(out)!r} holds other shards ({min(foreign).name}, …); choose another folder")


def _digest(source: Path, options: Options) -> str:
    """Changes when a file is added, removed, renamed, moved or written again."""
    groups = [(source, find_images(source))]
    if options.pair_with:
        groups.append((options.pair_with, find_images(options.pair_with, "--pair-with")))
    if options.label_raster:
        if not options.label_raster.is_file():
            raise UserError(f"--label-raster={options.label_raster} does not exist; a GeoTIFF of class numbers works")
        groups.append((options.label_raster, [options.label_raster]))
    digest = hashlib.sha256()
    for root, files in groups:
        for path in files:
            status, name = path.stat(), os.fsencode(path.relative_to(root))  # the folder is a class, or a season
            digest.update(b"%b\0%d\0%d\n" % (name, status.st_size, status.st_mtime_ns))
        digest.update(b"\n")
    return digest.hexdigest()
