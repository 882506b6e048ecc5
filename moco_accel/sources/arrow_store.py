"""Read memory-mapped Arrow files: a user's own, and the cache that `datasets` builds of parquet shards.

Values are read without the formatting of `datasets`, which is slow and opens images with Pillow. Pillow fails on TIFFs
with many bands or 16 bits, and only on access (datasets #5791).
"""

from __future__ import annotations

import glob
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.io.parquet import ParquetDatasetReader

from moco_accel.common.console import console
from moco_accel.common.errors import UserError, error_reason
from moco_accel.sources.arrow_validation import check_arrow_file, read_features
from moco_accel.sources.base import Source, Store, read_shards_metadata
from moco_accel.sources.parquet_files import Footer, find_page_problem, open_parquet_file
from moco_accel.sources.tile_metadata import TileMetadata

_OFFSET_BYTES = 4
_CACHE_MARGIN = 1.1  # the cache is larger than the unpacked shards: offsets, copies of repeated text


class ArrowStore(Store):
    """Rows of a memory-mapped `datasets.Dataset`, which came from the shards at `paths`."""

    def __init__(
        self,
        dataset: datasets.Dataset,
        paths: Sequence[str],
        shard_sizes: list[int],
        metadata: TileMetadata | None,
        source: Source,
    ) -> None:
        self.source, self.paths, self.shard_sizes, self.metadata = source, paths, shard_sizes, metadata
        self._dataset, self.features = dataset, dict(dataset.features)
        self._chunks: dict[str, tuple[list[int], list[pa.Array]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chunks": {}}

    def __len__(self) -> int:
        return len(self._dataset)

    def values(self, columns: Sequence[str], index: int) -> list[Any]:
        found = []
        for name in columns:
            # pyarrow would search a column's chunks one by one
            starts, chunks = self._chunks.get(name) or self._open_column(name)
            chunk = bisect_right(starts, index) - 1
            found.append(chunks[chunk][index - starts[chunk]])
        return found

    def column(self, name: str) -> list[Any]:
        try:
            return list(self._dataset.data.column(name).to_pylist())
        except (pa.ArrowException, ValueError) as error:  # ValueError: invalid UTF-8
            raise UserError(f"column {name!r} of {self.paths[0]} cannot be read ({error_reason(error)})") from None

    def _open_column(self, name: str) -> tuple[list[int], list[pa.Array]]:
        chunks = [chunk for chunk in self._dataset.data.column(name).chunks if len(chunk)]
        self._chunks[name] = [0, *accumulate(len(chunk) for chunk in chunks[:-1])], chunks
        return self._chunks[name]


def open_arrow(files: list[Path], source: Source) -> ArrowStore:
    """Open files that `datasets` wrote (`save_to_disk`, its caches).

    Raises:
        UserError: If a file is damaged, if the files have different columns, or if they hold no tiles.
    """
    parts = []
    for file in files:
        try:
            schema = check_arrow_file(file)
            read_features(schema, source)
            parts.append(datasets.Dataset.from_file(str(file)))
        except UserError:
            raise
        except Exception as error:  # arrow and `datasets` raise many types
            raise UserError(
                f"{source}: {file} is not an Arrow stream as save_to_disk of datasets writes it "
                f"({error_reason(error)}); parquet works too"
            ) from None
    metadata = read_shards_metadata(files, [part.data.schema.metadata for part in parts], source)
    try:
        dataset = datasets.concatenate_datasets(parts)
    except Exception as error:  # `datasets` raises many types
        raise _different_columns(source, error) from None
    if len(dataset) == 0:
        raise UserError(f"{source} holds shards without tiles; rebuild them")
    return ArrowStore(dataset, [str(file) for file in files], [len(part) for part in parts], metadata, source)


def prepare_arrow_cache(
    paths: list[str], footers: list[Footer], metadata: TileMetadata | None, source: Source
) -> ArrowStore:
    """Open the Arrow cache of parquet shards. `datasets` builds it if it is missing or a shard has changed.

    Raises:
        UserError: If the disk has no room for the cache, or if the shards cannot be read together.
    """
    with _quiet_datasets():
        # This reader is what Dataset.from_parquet uses. load_dataset would report every local read over the network.
        # The folder is resolved here, because it would take [ and * in its name for wildcards and follow no link.
        files = [Path(path).parent.resolve() / Path(path).name for path in paths]
        reader = ParquetDatasetReader([glob.escape(str(file)) for file in files], split="train")
        folder = Path(reader.builder.cache_dir)
        if not folder.exists():
            for path in paths:
                _check_pages(path, source)
            _announce_cache(folder, footers, source)
        try:
            dataset = reader.read()
        except OSError as error:
            if error.errno is not None:  # the disk's error, not Arrow's
                raise
            raise _different_columns(source, error) from None
        except Exception as error:  # arrow, numpy and `datasets` raise many types
            raise _different_columns(source, error.__cause__ or error) from None
    return ArrowStore(dataset, paths, [footer.num_rows for footer in footers], metadata, source)


def _check_pages(path: str, source: Source) -> None:
    """Refuse a shard with a row group that unpacks to more than its footer declares."""
    with open_parquet_file(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    for group in groups:
        if problem := find_page_problem(path, group):
            raise UserError(f"{source}: {path} has a row group that {problem}; rebuild it")


def _announce_cache(folder: Path, footers: list[Footer], source: Source) -> None:
    """Print the size and the place of the cache; refuse one that does not fit on the disk."""
    unpacked = sum(sum(footer.group_bytes) for footer in footers)
    size = int(_CACHE_MARGIN * max(unpacked, _array_bytes(footers, source)))
    parent = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(parent).free
    if size > free:
        raise UserError(
            f"{source}: its arrow cache takes {_format_bytes(size)}, and {parent} has {_format_bytes(free)} "
            "left; data.streaming=true needs no cache, HF_DATASETS_CACHE=FOLDER moves it"
        )
    rows = sum(footer.num_rows for footer in footers)
    console.print(
        f"preparing {rows:,} tiles of {source.path} as an arrow cache, once: {_format_bytes(size)} in {folder}",
        soft_wrap=True,
        markup=False,
    )


def _format_bytes(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.1f} MiB"


def _array_bytes(footers: list[Footer], source: Source) -> int:
    """Count the bytes of all Array3D columns: parquet stores repeated pixels once, Arrow does not."""
    total = 0
    for footer in footers:
        features = read_features(footer.schema, source).values()
        total += sum(array_row_bytes(feature) or 0 for feature in features) * footer.num_rows
    return total


def array_row_bytes(feature: Any) -> int | None:
    """Return the bytes of an Array3D in Arrow, offsets of its nested lists included; None for another feature."""
    if not isinstance(feature, datasets.Array3D) or None in feature.shape:
        return None
    first, second, third = feature.shape
    lists = 1 + first + first * second
    return int(first * second * third * np.dtype(feature.dtype).itemsize + lists * _OFFSET_BYTES)


def _different_columns(source: Source, error: BaseException) -> UserError:
    reason = error_reason(error)
    return UserError(f"{source}: its shards have different columns or damaged values ({reason}); rebuild them")


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Silence the progress bars and the log of `datasets`, then restore its settings."""
    verbosity, bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
