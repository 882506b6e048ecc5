"""Ask a sample of a source's files what their values mean; refuse tags that give equal numbers different meanings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moco_accel.common.console import print_note
from moco_accel.common.errors import UserError
from moco_accel.common.pixels import Pixels
from moco_accel.images.decoded import ImageFacts
from moco_accel.images.decoding import decode_image, image_facts
from moco_accel.images.headers import DamagedTile
from moco_accel.images.image_kinds import kind_of_facts, with_products
from moco_accel.images.kinds import image_kind
from moco_accel.images.label_maps import find_label_maps, find_masks
from moco_accel.sources.arrow_store import ArrowStore
from moco_accel.sources.base import Store
from moco_accel.sources.image_choice import ImageChoice, offer_shards
from moco_accel.sources.parquet_store import ParquetStore
from moco_accel.tiles.read_tile import TileColumns, encoded_bytes

_ASKED_TILES = 1000
_ASKED_GROUPS, _ASKED_ROWS = 16, 32  # of parquet, whose row groups are read whole
_FETCHED_TILES = 20  # of a source on a network


@dataclass(frozen=True)
class AskedFile:
    """A file of the sample, the tile that it belongs to, and what its header says.

    Attributes:
        path: Path that a row of a shard gives its image; empty without one.
    """

    index: int
    column: str
    name: str
    kind: str
    facts: ImageFacts
    path: str = ""


def sample_tiles(store: Store) -> list[int]:
    """Return the indices of up to 1,000 tiles, spread evenly; the same on every process."""
    count = len(store)
    if "://" in store.paths[0]:
        return list(range(min(count, _FETCHED_TILES)))
    if count <= _ASKED_TILES:
        return list(range(count))
    if isinstance(store, ParquetStore):
        starts = np.linspace(0, count - _ASKED_ROWS, _ASKED_GROUPS).astype(int)
        return sorted({int(start) + row for start in starts for row in range(_ASKED_ROWS)})
    return [int(index) for index in np.linspace(0, count - 1, _ASKED_TILES)]


def ask_files(store: Store, columns: TileColumns) -> list[AskedFile]:
    """Read the headers of a sample of files; files without a readable one are left out.

    Tiles with a description of their own, and arrays, are not asked.
    """
    if columns.array_shape is not None or store.metadata is not None:
        return []
    return list(_asked_files(store, columns, sample_tiles(store)))


def _asked_files(store: Store, columns: TileColumns, indices: Sequence[int]) -> Iterator[AskedFile]:
    for index in indices:
        with suppress(DamagedTile):
            for column, value in zip(columns.names, store.values(columns.names, index), strict=True):
                raw = encoded_bytes(value)
                kind = image_kind(raw) or ""
                yield AskedFile(index, column, store.location(index), kind, image_facts(raw), _path_in_row(value))


def _path_in_row(value: Any) -> str:
    row = None if isinstance(value, bytes) else value.as_py()
    return str(row.get("path") or "") if isinstance(row, dict) else ""


def check_rows(store: Store, columns: TileColumns, asked: Sequence[AskedFile]) -> None:
    """Check that the sampled images of shards are of one kind, and no masks beside imagery, which cannot be left out.

    Tars and folders choose among their files when they are opened.

    Raises:
        UserError: If kinds compete. The message offers the shards that hold only one of them, if there are.
    """
    if columns.bands is not None or not isinstance(store, ParquetStore | ArrowStore):
        return
    has_paths = len({file.path for file in asked}) == len(asked)
    files = {
        f"{Path(store.paths[store.place(x.index)[0]]).name}/{x.path if has_paths else f'row {x.index}'}": x
        for x in asked
    }
    kinds = {name: kind for name, file in files.items() if (kind := kind_of_facts(file.facts)) is not None}

    def read(name: str) -> Pixels | None:
        with suppress(DamagedTile):
            raw = encoded_bytes(store.values(columns.names, files[name].index)[0])
            return decode_image(raw, columns.stored_bands, keep_alpha=False).pixels
        return None

    masks = {*find_masks(list(kinds)), *find_label_maps(list(kinds), kinds.__getitem__, read)}
    kinds = with_products(kinds) | {name: replace(kinds[name], product="masks or label maps") for name in masks}
    offer = partial(offer_shards, Path(store.paths[0]).parent, store.source)
    by_type: dict[tuple[int, str], list[str]] = {}
    for name, kind in kinds.items():
        bands = 3 if (kind.bands, kind.dtype) == (1, "uint8") else kind.bands  # grey is read as colour
        by_type.setdefault((bands, kind.dtype), []).append(name)
    usual = max(by_type.values(), key=len, default=[])
    # rows of another type are damaged tiles, which a run counts; those of shards of their own are another source
    odd = [names for names in by_type.values() if names is not usual and not offer(names, usual)]
    for name in itertools.chain.from_iterable(odd):
        kinds.pop(name, None)
    ImageChoice(store.source, print_note, offer).check_one_kind(kinds)


def describe_pages(store: Store, asked: Sequence[AskedFile]) -> list[str]:
    """Return a line about files with several pages, of which the first is read."""
    several = [file for file in asked if file.facts.pages > 1]
    if not several:
        return []
    count = f"{len(several):,} of {len(asked):,} sampled files"
    return [
        f"{store.source}: only the first page of {count} is read, e.g. {several[0].name} ({several[0].facts.pages})"
    ]


def check_scale_tags(store: Store, asked: Sequence[AskedFile], scaling: str) -> list[str]:
    """Return a line about scale and offset tags, which are not applied.

    Raises:
        UserError: If they differ among the files of one band.
    """
    by_tags: dict[tuple[str, tuple[tuple[float, float], ...]], list[AskedFile]] = {}
    for file in asked:
        by_tags.setdefault((file.column, file.facts.scaling), []).append(file)
    for column in {file.column for file in asked}:
        kinds = [files for (name, _), files in by_tags.items() if name == column]
        if len(kinds) > 1:
            first, second = kinds[:2]
            raise UserError(
                f"{store.source}: equal numbers mean different values in its files: {first[0].name} has "
                f"{_tags(first[0])}, {second[0].name} {_tags(second[0])}; {_what_works(first, second, store)}"
            )
    tagged = next((file for file in asked if file.facts.scaling), None)
    if scaling in ("uint8", "percentiles") or tagged is None:
        return []
    return [
        f"{store.source}: the files' tags ({tagged.name}: {_tags(tagged)}) are not applied; "
        f"data.scaling={scaling} is of stored values"
    ]


def _tags(file: AskedFile) -> str:
    if not file.facts.scaling:
        return "no scale and offset"
    columns = zip(*file.facts.scaling, strict=True)
    scales, offsets = (", ".join(f"{value:g}" for value in dict.fromkeys(values)) for values in columns)
    return f"scale {scales} and offset {offsets}"


def _what_works(first: Sequence[AskedFile], second: Sequence[AskedFile], store: Store) -> str:
    """Return what works: a folder that holds files of one kind, or files converted to one unit."""
    folders = [{file.name.rpartition("/")[0] for file in files} for files in (first, second)]
    own = [found - other for found, other in (folders, folders[::-1])]
    if store.paths[0] in (*folders[0], *folders[1]) or not all(len(found) == 1 for found in own):
        return "files converted by gdal_translate -unscale -ot Float32 IN OUT work"
    return f"{store.source.field}={own[0].pop()} or {store.source.field}={own[1].pop()} works"
