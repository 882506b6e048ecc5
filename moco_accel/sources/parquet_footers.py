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

from moco_accel.common.errors import UserError
from moco_accel.sources.arrow_files import one_line

_SHARD_NAME = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.parquet$")
_THREADS = 16  # over a network
_MOST_ROWS = 1 << 30
_MOST_GROUP_ROWS = 1 << 22
_MOST_GROUP_BYTES = 1 << 32
_SMALL_GROUP_BYTES, _MOST_SHRUNK = 1 << 28, 16


@dataclass(frozen=True)
class Footer:
    """What a shard's end says: rows and uncompressed bytes of each row group."""

    schema: pa.Schema
    group_rows: list[int]
    group_bytes: list[int]


@contextmanager
def opened(path: str, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    if "://" not in path:
        with pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True) as file:
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
                footer = Footer(file.schema_arrow, [group.num_rows for group in groups], sizes)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{field}={source!r}: {path} is not a whole parquet file ({one_line(error)})") from None
        if reason := _absurd(footer, path):
            raise UserError(f"{field}={source!r}: {path} {reason}; build it anew")
        return footer

    if all("://" not in path for path in paths):
        return [read(path) for path in paths]
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(read, paths))


def _absurd(footer: Footer, path: str) -> str | None:
    """What makes a footer a lie or a bomb: tiles are compressed already, and shrink little once more."""
    if min(footer.group_rows + footer.group_bytes, default=0) < 0 or sum(footer.group_rows) > _MOST_ROWS:
        return f"says that it has {sum(footer.group_rows)} tiles, of {sum(footer.group_bytes)} bytes"
    if max(footer.group_rows, default=0) > _MOST_GROUP_ROWS:
        return f"has a row group of {max(footer.group_rows)} tiles; {_MOST_GROUP_ROWS} are most"
    largest = max(footer.group_bytes, default=0)
    if largest > _MOST_GROUP_BYTES:
        return f"has a row group of {largest >> 20} MiB; {_MOST_GROUP_BYTES >> 20} MiB are most"
    if "://" not in path and largest > max(_SMALL_GROUP_BYTES, _MOST_SHRUNK * Path(path).stat().st_size):
        return f"has a row group that unpacks to {largest >> 20} MiB, over {_MOST_SHRUNK} times the file"
    return None


def check_whole_set(paths: list[str], source: str, field: str) -> None:
    names = [Path(path).name for path in paths]
    for stem, count in sorted({(m["stem"], int(m["count"])) for m in map(_SHARD_NAME.fullmatch, names) if m}):
        found = sum(name.startswith(f"{stem}-") and name.endswith(f"-of-{count:05d}.parquet") for name in names)
        if found != count:
            raise UserError(f"{field}={source!r} holds {found} of {count} shards {stem}-…; build or copy them anew")
