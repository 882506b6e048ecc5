"""What parquet shards say of themselves at their ends: columns, rows and bytes of each row group."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq

from moco_accel.recipe_text import RecipeError

_SHARD_NAME = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.parquet$")
_THREADS = 16  # over a network


@dataclass(frozen=True)
class Footer:
    """What a shard's end says: rows and uncompressed bytes of each row group."""

    schema: pa.Schema
    group_rows: list[int]
    group_bytes: list[int]


@contextmanager
def opened(path: str, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    if "://" not in path:
        with pq.ParquetFile(path, metadata=metadata) as file:
            yield file
        return
    # each request goes over a network: ranges are brought together, and nothing is read ahead of them
    filesystem, name = fsspec.core.url_to_fs(path)
    with filesystem.open(name, "rb", cache_type="none") as stream:
        yield pq.ParquetFile(stream, metadata=metadata, pre_buffer=True)


def read_footers(paths: list[str], source: str, field: str) -> list[Footer]:
    def read(path: str) -> Footer:
        try:
            with opened(path) as file:
                groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
                sizes = [group.total_byte_size for group in groups]
                return Footer(file.schema_arrow, [group.num_rows for group in groups], sizes)
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0]
            raise RecipeError(f"{field}={source!r}: {path} is not a whole parquet file ({reason})") from None

    if all("://" not in path for path in paths):
        return [read(path) for path in paths]
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(read, paths))


def check_whole_set(paths: list[str], source: str, field: str) -> None:
    names = [Path(path).name for path in paths]
    for stem, count in sorted({(m["stem"], int(m["count"])) for m in map(_SHARD_NAME.fullmatch, names) if m}):
        found = sum(name.startswith(f"{stem}-") and name.endswith(f"-of-{count:05d}.parquet") for name in names)
        if found != count:
            raise RecipeError(f"{field}={source!r} holds {found} of {count} shards {stem}-…; build or copy them anew")
