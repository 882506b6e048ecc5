"""Options of `moco-data build`: their checks, and the identity of a build."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from moco_accel.common.errors import UserError
from moco_accel.recipe.bands import canonical_bands
from moco_accel.scenes.find_scenes import find_images

_DEFAULT_MAJORITY = 0.6


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build; each field is a command-line option (`tile_size` is --tile-size).

    Attributes:
        stride: Pixels from tile to tile; None: the tile size.
        max_nodata: Largest share of a tile's pixels without data; 1 keeps every tile.
        max_cloud: Largest share of a tile's pixels that are white like clouds; 1 keeps every tile.
        min_majority: Smallest share of a tile's pixels that its label must cover; None: 0.6.
        only: Globs of the files to take: of their names, or with a slash of their paths below SRC; None: all.
        overlap: Spread windows so that the last one ends at the edge.

    Raises:
        UserError: If a value is out of range, or options contradict each other.
    """

    tile_size: int = 224
    stride: int | None = None
    bands: Sequence[str] | None = None
    band_names: Sequence[str] | None = None
    max_nodata: float = 0.1
    nodata: float | None = None
    max_cloud: float = 0.5
    labels_from_folders: bool = False
    label_raster: Path | None = None
    class_names: str | None = None
    min_majority: float | None = None
    pair_with: Path | None = None
    max_shard_mb: int = 256
    only: Sequence[str] | None = None
    overlap: bool = False

    def __post_init__(self) -> None:
        for name, least, works in (("tile_size", 8, 224), ("stride", 1, self.tile_size), ("max_shard_mb", 1, 256)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{_flag(name)}={value} must be at least {least}; {_flag(name)} {works} works")
        for name, share in (("max_nodata", 0.1), ("max_cloud", 0.5), ("min_majority", _DEFAULT_MAJORITY)):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{_flag(name)}={value} is not a share from 0 to 1; {_flag(name)} {share} works")
        if self.labels_from_folders and self.label_raster:
            raise UserError("--labels-from-folders and --label-raster both set the column label; give only one of them")
        if self.class_names and not self.label_raster:
            raise UserError(f"--class-names={self.class_names!r} needs --label-raster, which is absent; leave it out")
        if self.min_majority is not None and not self.label_raster:
            raise UserError(f"--min-majority={self.min_majority} needs --label-raster, which is absent; leave it out")
        if self.overlap and self.stride:
            raise UserError(f"--overlap chooses the stride, which --stride={self.stride} sets; leave one of them out")
        for name in ("bands", "band_names"):
            canonical_bands(getattr(self, name) or (), _flag(name))

    @property
    def step(self) -> int:
        """Pixels from tile to tile."""
        return self.stride or self.tile_size

    @property
    def majority(self) -> float:
        """Smallest share of a tile's pixels that its label must cover."""
        return _DEFAULT_MAJORITY if self.min_majority is None else self.min_majority


def build_identity(source: Path, options: BuildOptions) -> dict[str, str]:
    """Return what determines the tiles of a build: source, options and a digest of the files.

    Raises:
        UserError: If there are no images, or --pair-with is `source` itself.
    """
    if options.pair_with and options.pair_with.resolve() == source.resolve():
        raise UserError(f"--pair-with={options.pair_with} is SRC itself; give the folder of another season")
    values = {_flag(field.name): getattr(options, field.name) for field in fields(options)}
    values["--min-majority"] = options.majority
    texts = {name: ",".join(value) if isinstance(value, list | tuple) else str(value) for name, value in values.items()}
    return {"SRC": str(source.resolve()), **texts, "files": _files_digest(source, options)}


def check_output_folder(out: Path, may_hold_tiles: bool) -> None:
    """Raise UserError if `out` is a file, holds other shards, or is not empty and `may_hold_tiles` is False."""
    if out.exists() and not out.is_dir():
        raise UserError(f"OUT={str(out)!r} is a file; a folder works, e.g. {out.with_suffix('')}_tiles")
    if not may_hold_tiles and out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"OUT={str(out)!r} is not empty; choose another folder, or pass --overwrite")
    if foreign := set(out.glob("*.parquet")) - set(out.glob("tiles-*-of-*.parquet")):
        raise UserError(f"OUT={str(out)!r} holds other shards ({min(foreign).name}, …); choose another folder")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _files_digest(source: Path, options: BuildOptions) -> str:
    """Digest of relative path, size and modification time of every file."""
    groups = [(source, find_images(source, only=options.only or (), log=lambda line: None))]  # the plan logs them
    if options.pair_with:
        groups.append((options.pair_with, find_images(options.pair_with, "--pair-with", log=lambda line: None)))
    if options.label_raster:
        if not options.label_raster.is_file():
            raise UserError(f"--label-raster={options.label_raster} does not exist; a GeoTIFF of class numbers works")
        groups.append((options.label_raster, [options.label_raster]))
    digest = hashlib.sha256()
    for root, files in groups:
        for path in files:
            status, name = path.stat(), os.fsencode(path.relative_to(root))  # the folder can be a class or a season
            digest.update(b"%b\0%d\0%d\n" % (name, status.st_size, status.st_mtime_ns))
        digest.update(b"\n")
    return digest.hexdigest()
