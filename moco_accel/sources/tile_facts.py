"""What is known of a set of tiles: bands by name, dtype, sensor and per-band statistics; stored with its shards.

OUT/tiles.json holds all of it; the schema of every shard holds all but the statistics (key `moco_accel`), so that a
shard copied alone still knows its bands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

FACTS_FILE = "tiles.json"
SCHEMA_KEY = b"moco_accel"
_MOST_BYTES = 1 << 24
_LONGEST_NAME = 200
_LARGEST = 1e300


@dataclass(frozen=True)
class BandStatistics:
    """Lists have a number per band, in stored units, over pixels with data. `percentiles` by percent, as text."""

    pixels: list[int]
    mean: list[float]
    std: list[float]
    minimum: list[float]
    maximum: list[float]
    percentiles: dict[str, list[float]]
    nodata_share: float


@dataclass(frozen=True)
class TileFacts:
    """`dtype` is numpy's name of the stored type; `bands` are canonical names, in stored order."""

    bands: list[str]
    dtype: str
    sensor: str | None = None
    nodata: float | None = None
    statistics: BandStatistics | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def schema_metadata(self) -> dict[bytes, bytes]:
        """For a shard's arrow schema, beside what `datasets` writes there."""
        return {SCHEMA_KEY: json.dumps(asdict(replace(self, statistics=None))).encode()}


def facts_from_json(text: str | bytes) -> TileFacts:
    """Raises ValueError when `text` is not such a description, whatever it is."""
    try:
        fields = json.loads(text)
        statistics = fields.pop("statistics", None)
        facts = TileFacts(**fields, statistics=BandStatistics(**statistics) if statistics else None)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a description of tiles: {error}") from None
    if not _is_plain(facts):
        raise ValueError("not a description of tiles: names, numbers, or how many there are of them")
    return facts


def _is_plain(facts: TileFacts) -> bool:
    """Whether each field is of its kind, and has an entry for each band: others may have written it."""
    names = facts.bands
    if not (isinstance(names, list) and names and all(map(_is_name, [*names, facts.dtype, facts.sensor or "none"]))):
        return False
    told = facts.statistics
    numbers = [] if told is None else [told.pixels, told.mean, told.std, told.minimum, told.maximum]
    if told is not None:
        if not isinstance(told.percentiles, dict) or not _is_number(told.nodata_share):
            return False
        numbers += list(told.percentiles.values())
    lists = all(isinstance(each, list) and len(each) == len(names) and all(map(_is_number, each)) for each in numbers)
    return lists and (facts.nodata is None or _is_number(facts.nodata))


def _is_name(text: object) -> bool:
    return isinstance(text, str) and text.isprintable() and 0 < len(text) <= _LONGEST_NAME


def _is_number(number: object) -> bool:
    return (isinstance(number, int | float) and abs(number) < _LARGEST) or number != number


def read_facts(folder: Path, schema_metadata: Mapping[bytes, bytes] | None = None) -> TileFacts | None:
    """Of the shards in `folder`: tiles.json, else what a shard's schema says, else None. Raises ValueError."""
    if (folder / FACTS_FILE).is_file():
        with (folder / FACTS_FILE).open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes")
        return facts_from_json(text)
    if schema_metadata and SCHEMA_KEY in schema_metadata:
        return facts_from_json(schema_metadata[SCHEMA_KEY])
    return None
