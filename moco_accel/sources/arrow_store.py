"""Arrow files, memory-mapped: those that someone has, and the cache that `datasets` prepares of parquet shards.

Values are read past the formatting of `datasets`, which is slow, and which opens images with Pillow: that fails on
TIFFs of many bands or 16 bits, and only at access (datasets #5791).
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
from moco_accel.common.errors import UserError
from moco_accel.sources.arrow_files import check_arrow_file, features_of, one_line
from moco_accel.sources.base import Reading
from moco_accel.sources.parquet_footers import Footer, opened
from moco_accel.sources.parquet_pages import why_absurd
from moco_accel.sources.shard_facts import facts_of_shards
from moco_accel.sources.tile_facts import TileFacts

_OFFSET_BYTES = 4
_CACHE_MARGIN = 1.1  # the cache holds a little more than the shards unpacked: offsets, copies of repeated text


class ArrowStore:
    """Rows of a `datasets.Dataset`; it costs no memory of its own. `names` are the files that rows came from."""

    def __init__(
        self, dataset: datasets.Dataset, names: Sequence[str], shard_sizes: list[int], facts: TileFacts | None
    ) -> None:
        self._dataset, self._names, self.shard_sizes, self.facts = dataset, list(names), shard_sizes, facts
        self.features = dict(dataset.features)
        self._chunks: dict[str, tuple[list[int], list[pa.Array]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chunks": {}}

    def __len__(self) -> int:
        return len(self._dataset)

    def values(self, columns: Sequence[str], index: int) -> list[Any]:
        found = []
        for name in columns:
            # finding a row among the chunks of a column is left to us: pyarrow looks at them one by one
            starts, chunks = self._chunks.get(name) or self._open(name)
            chunk = bisect_right(starts, index) - 1
            found.append(chunks[chunk][index - starts[chunk]])
        return found

    def at_random(self) -> ArrowStore:
        return self

    def column(self, name: str) -> list[Any]:
        try:
            return list(self._dataset.data.column(name).to_pylist())
        except (pa.ArrowException, ValueError) as error:  # text that is none
            raise UserError(f"column {name!r} of {self._names[0]} cannot be read ({one_line(error)})") from None

    def where(self, index: int) -> str:
        starts = [0, *accumulate(self.shard_sizes)]
        shard = bisect_right(starts, index) - 1
        return f"row {index - starts[shard]} of {self._names[shard]}"

    def reading(self, columns: Sequence[str]) -> Reading:
        return Reading()

    def _open(self, name: str) -> tuple[list[int], list[pa.Array]]:
        chunks = [chunk for chunk in self._dataset.data.column(name).chunks if len(chunk)]
        self._chunks[name] = [0, *accumulate(len(chunk) for chunk in chunks[:-1])], chunks
        return self._chunks[name]


def open_arrow(files: list[Path], source: str, field: str) -> ArrowStore:
    """Files as `datasets` writes them (`save_to_disk`, its caches), read in place. Raises UserError."""
    parts = []
    for file in files:
        try:
            schema = check_arrow_file(file)
            features_of(schema, source, field)
            parts.append(datasets.Dataset.from_file(str(file)))
        except UserError:
            raise
        except Exception as error:  # of arrow or, where it is not written by it, of `datasets`
            raise UserError(
                f"{field}={source!r}: {file} is not an arrow stream as save_to_disk of datasets writes it "
                f"({one_line(error)}); parquet works too"
            ) from None
    facts = facts_of_shards(files, [part.data.schema.metadata for part in parts], source, field)
    try:
        dataset = datasets.concatenate_datasets(parts)
    except Exception as error:  # it tells such in many ways
        raise _unlike(source, field, error) from None
    if len(dataset) == 0:
        raise UserError(f"{field}={source!r} holds shards without tiles; build them anew")
    return ArrowStore(dataset, [str(file) for file in files], [len(part) for part in parts], facts)


def prepare_parquet(
    paths: list[str], footers: list[Footer], facts: TileFacts | None, source: str, field: str
) -> ArrowStore:
    """The arrow cache of parquet shards, which `datasets` builds again only when one of them changes.

    Raises UserError when there is no room for it, or when the shards are unlike.
    """
    with quiet_datasets():
        # what Dataset.from_parquet uses: load_dataset would report each local reading over the network, and wait for it
        # which would also take [ and * in a folder's name for wildcards, and then follow no link to a folder
        files = [Path(path).parent.resolve() / Path(path).name for path in paths]
        reader = ParquetDatasetReader([glob.escape(str(file)) for file in files], split="train")
        folder = Path(reader.builder.cache_dir)
        if not folder.exists():
            for path in paths:
                _check_pages(path, source, field)
            _announce(folder, footers, source, field)
        try:
            dataset = reader.read()
        except OSError as error:
            if error.errno is not None:  # of the disk
                raise
            raise _unlike(source, field, error) from None
        except Exception as error:  # of arrow, numpy or its own: what the shards hold decides
            raise _unlike(source, field, error.__cause__ or error) from None
    return ArrowStore(dataset, paths, [sum(footer.group_rows) for footer in footers], facts)


def _check_pages(path: str, source: str, field: str) -> None:
    """Raises UserError for a shard with a row group that would unpack to more than it says."""
    with opened(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    if reason := next((reason for group in groups if (reason := why_absurd(path, group))), None):
        raise UserError(f"{field}={source!r}: {path} has a row group that {reason}; build it anew")


def _announce(folder: Path, footers: list[Footer], source: str, field: str) -> None:
    """Say what is prepared, how large and where; refuse what does not fit."""
    size = int(_CACHE_MARGIN * max(_unpacked_bytes(footers), _array_bytes(footers, source, field)))
    parent = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(parent).free
    if size > free:
        raise UserError(
            f"{field}={source!r}: its arrow cache takes {_size(size)}, and {parent} has {_size(free)} left; "
            f"data.streaming=true needs no cache, HF_DATASETS_CACHE=FOLDER moves it"
        )
    rows = sum(sum(footer.group_rows) for footer in footers)
    console.print(
        f"preparing {rows:,} tiles of {source} as an arrow cache, once: {_size(size)} in {folder}",
        soft_wrap=True,
        markup=False,
    )


def _size(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.1f} MiB"


def _unpacked_bytes(footers: list[Footer]) -> int:
    return sum(sum(footer.group_bytes) for footer in footers)


def _array_bytes(footers: list[Footer], source: str, field: str) -> int:
    """Of all Array3D columns: parquet keeps repeated pixels once, arrow does not."""
    total = 0
    for footer in footers:
        features = features_of(footer.schema, source, field).values()
        total += sum(array_row_bytes(feature) or 0 for feature in features) * sum(footer.group_rows)
    return total


def array_row_bytes(feature: Any) -> int | None:
    """A row of an Array3D as arrow holds it, with where each of its nested lists begins; None of anything else."""
    if not isinstance(feature, datasets.Array3D) or None in feature.shape:
        return None
    first, second, third = feature.shape
    lists = 1 + first + first * second
    return int(first * second * third * np.dtype(feature.dtype).itemsize + lists * _OFFSET_BYTES)


def _unlike(source: str, field: str, error: BaseException) -> UserError:
    return UserError(f"{field}={source!r}: its shards do not go together ({one_line(error)}); build them anew")


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress bars and log lines of `datasets` within; its settings are as before afterwards."""
    verbosity, bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
