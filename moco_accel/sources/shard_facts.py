"""What the shards of a source say of themselves: one description for all of them, or an error that names two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moco_accel.common.errors import UserError
from moco_accel.sources.tile_facts import BandStatistics, TileFacts, read_facts


def facts_of_shards(
    files: Sequence[Path], metadata: Iterable[Mapping[bytes, bytes] | None], source: str, field: str
) -> TileFacts | None:
    """Of shards and their schemas' metadata. Statistics only where all lie in one folder: they don't add up.

    Raises UserError when a description is damaged, or when shards differ in bands or dtype.
    """
    found: dict[Path, TileFacts | None] = {}
    first: tuple[Path, TileFacts | None] | None = None
    for file, schema_metadata in zip(files, metadata, strict=True):
        facts = found[file.parent] = _read(file, schema_metadata, field)
        first = first or (file, facts)
        if _says(facts) != _says(first[1]):
            raise UserError(
                f"{field}={source!r}: its shards do not go together: {first[0]} has {_says(first[1])}, "
                f"{file} has {_says(facts)}; name those of one kind, e.g. {first[0].parent / '*.parquet'}"
            )
    facts = first[1] if first else None
    return facts if facts is None or len(found) == 1 else replace(facts, statistics=None)


def _read(file: Path, metadata: Mapping[bytes, bytes] | None, field: str) -> TileFacts | None:
    try:
        return read_facts(file.parent, metadata)
    except ValueError as error:
        raise UserError(f"{field}: what {file} says of its tiles is damaged ({error}); build them anew") from None


def _says(facts: TileFacts | None) -> str:
    return f"{facts.dtype} bands [{', '.join(facts.bands)}]" if facts else "no names of bands"


def select_statistics(statistics: BandStatistics, indices: Sequence[int]) -> BandStatistics:
    """Those of the bands at `indices`, in that order."""

    def chosen(numbers: Sequence[float]) -> list[float]:
        return [numbers[index] for index in indices]

    return replace(
        statistics,
        pixels=[statistics.pixels[index] for index in indices],
        mean=chosen(statistics.mean),
        std=chosen(statistics.std),
        minimum=chosen(statistics.minimum),
        maximum=chosen(statistics.maximum),
        percentiles={percent: chosen(values) for percent, values in statistics.percentiles.items()},
    )
