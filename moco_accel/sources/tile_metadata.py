"""Describe a set of tiles: band names, dtype, sensor, nodata value and per-band statistics.

`tiles.json` beside the shards holds the whole description. The Arrow schema of every shard holds all of it except the
statistics (key `moco_accel`), so that a shard copied alone keeps its band names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

METADATA_FILE = "tiles.json"
# in a folder of shards, for files beside them: pandas and pyarrow pass over a name that starts with an underscore,
# `load_dataset` over a folder whose name starts with two; earlier versions wrote the files beside the shards
DETAILS_FOLDER = "__moco__"
SCHEMA_KEY = b"moco_accel"
_MAX_FILE_BYTES = 1 << 24
_MAX_NAME_LENGTH = 200
_MAX_NUMBER = 1e300
_PER_BAND = ("pixels", "mean", "std", "minimum", "maximum")


@dataclass(frozen=True)
class BandStatistics:
    """Statistics per band, in stored units, over pixels with data.

    Attributes:
        pixels: Number of counted pixels.
        percentiles: Lists of one value per band, by percent as text ("1", "50").
        nodata_share: Share of all pixels that have no data.
    """

    pixels: list[int]
    mean: list[float]
    std: list[float]
    minimum: list[float]
    maximum: list[float]
    percentiles: dict[str, list[float]]
    nodata_share: float

    def select(self, bands: Sequence[int]) -> BandStatistics:
        """Return the statistics of the bands at these indices, in this order."""
        selected: dict[str, Any] = {name: [getattr(self, name)[band] for band in bands] for name in _PER_BAND}
        percentiles = {percent: [values[band] for band in bands] for percent, values in self.percentiles.items()}
        return replace(self, **selected, percentiles=percentiles)


@dataclass(frozen=True)
class TileMetadata:
    """Description of a set of tiles.

    Attributes:
        bands: Canonical names in stored order.
        dtype: NumPy name of the stored type.
        sensor: Key of a known sensor; None if unknown.
        nodata: Value stored where there is no data; None if there is none.
    """

    bands: list[str]
    dtype: str
    sensor: str | None = None
    nodata: float | None = None
    statistics: BandStatistics | None = None

    def to_json(self) -> str:
        """Return the text of tiles.json."""
        return json.dumps(asdict(self), indent=2)

    def schema_metadata(self) -> dict[bytes, bytes]:
        """Return the entry for a shard's Arrow schema, which holds no statistics."""
        return {SCHEMA_KEY: json.dumps(asdict(replace(self, statistics=None))).encode()}


def metadata_from_json(text: str | bytes) -> TileMetadata:
    """Parse a description of tiles.

    Raises:
        ValueError: If `text` is anything else.
    """
    try:
        fields = json.loads(text)
        statistics = fields.pop("statistics", None)
        metadata = TileMetadata(**fields, statistics=BandStatistics(**statistics) if statistics else None)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a description of tiles: {error}") from None
    if not _is_valid(metadata):
        raise ValueError("not a description of tiles: a field has a wrong type, or not one value per band")
    return metadata


def _is_valid(metadata: TileMetadata) -> bool:
    """Check types and lengths: other programs may have written the file."""
    bands = metadata.bands
    if not (isinstance(bands, list) and bands):
        return False
    if not all(map(_is_name, [*bands, metadata.dtype, metadata.sensor or "none"])):
        return False
    lists: list[object] = []
    if (found := metadata.statistics) is not None:
        if not isinstance(found.percentiles, dict) or not _is_number(found.nodata_share):
            return False
        lists = [*(getattr(found, name) for name in _PER_BAND), *found.percentiles.values()]
    one_per_band = all(isinstance(x, list) and len(x) == len(bands) and all(map(_is_number, x)) for x in lists)
    return one_per_band and (metadata.nodata is None or _is_number(metadata.nodata))


def _is_name(text: object) -> bool:
    return isinstance(text, str) and text.isprintable() and 0 < len(text) <= _MAX_NAME_LENGTH


def _is_number(number: object) -> bool:
    return (isinstance(number, int | float) and abs(number) < _MAX_NUMBER) or number != number


def details_path(folder: Path, name: str) -> Path:
    """Return the path of tiles.json or build.json of a folder of shards: beside the shards if only that one exists."""
    current = folder / DETAILS_FOLDER / name
    return folder / name if not current.exists() and (folder / name).exists() else current


def read_metadata(folder: Path, schema_metadata: Mapping[bytes, bytes] | None = None) -> TileMetadata | None:
    """Read tiles.json in `folder`, or else the entry in a shard's schema; None if there is neither.

    Raises:
        ValueError: If the description is damaged.
    """
    path = details_path(folder, METADATA_FILE)
    if path.is_file():
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
        if len(text) > _MAX_FILE_BYTES:
            raise ValueError(f"more than {_MAX_FILE_BYTES} bytes")
        return metadata_from_json(text)
    if schema_metadata and SCHEMA_KEY in schema_metadata:
        return metadata_from_json(schema_metadata[SCHEMA_KEY])
    return None
